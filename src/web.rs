//! What a running kite shows to this machine alone, over HTTP: metrics for Prometheus, and a status page for people.
//!
//! Both are off unless asked for, and never on an address that other machines can reach. [`door`] takes requests,
//! [`page`] shows the page to those who have a [`session`], [`recorder`] keeps the traffic that it plots in a [`ring`].

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rand::RngCore;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

pub mod door;
pub(crate) mod io;
pub mod page;
pub mod recorder;
pub mod ring;
pub mod session;

use crate::code::{Code, Coded};
use crate::config::LocalPlaces;
use crate::control::Desk;
use crate::frontend::{bind_problem, cannot_listen};
use crate::listen::{LocalAddr, LocalListener, LocalPort};
use crate::observe::metrics::Metrics;
use crate::observe::status::Role;
use recorder::Recorder;
use session::{Guests, LENGTH, TOKEN_LIFE, Word};

/// A place that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}: {}; the place is given with {flag}", self.problem())]
pub struct DoorError {
    address: LocalAddr,
    what: &'static str,
    flag: &'static str,
    source: std::io::Error,
}

impl DoorError {
    fn problem(&self) -> String {
        match &self.address {
            LocalAddr::Tcp(address) => bind_problem(&self.source, address.port()),
            LocalAddr::Unix(_) => self.source.to_string(),
        }
    }
}

impl Coded for DoorError {
    fn code(&self) -> Code {
        cannot_listen(&self.source)
    }
}

/// What `kite web` is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invitation {
    /// The way in.
    Open {
        /// Where the page is, as configured.
        at: String,
        /// The address for a browser. It works once.
        url: String,
        /// For so many minutes.
        minutes: u64,
    },
    /// There is no page.
    Off,
}

/// Gives out the way to the status page.
#[derive(Default)]
pub struct Reception {
    place: OnceLock<LocalAddr>,
    guests: Mutex<Guests>,
}

impl Reception {
    /// For one visit.
    pub fn invite(&self) -> Invitation {
        let Some(place) = self.place.get() else {
            return Invitation::Off;
        };
        let token = new_word();
        self.lock().invite(Instant::now(), token);
        let host = match place {
            LocalAddr::Tcp(address) => address.to_string(),
            LocalAddr::Unix(_) => format!("localhost:{USUAL_PORT}"),
        };
        Invitation::Open {
            at: place.to_string(),
            url: format!(
                "http://{host}/enter?token={}",
                data_encoding::HEXLOWER.encode(&token)
            ),
            minutes: TOKEN_LIFE.as_secs() / 60,
        }
    }

    /// Takes a token, and gives the name of a new session for it.
    fn enter(&self, token: &Word) -> Option<Word> {
        let session = new_word();
        let welcome = self.lock().enter(Instant::now(), token, session);
        welcome.then_some(session)
    }

    fn knows(&self, session: &Word) -> bool {
        self.lock().knows(Instant::now(), session)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the page is usually, and where a Unix socket is forwarded to for a browser.
pub const USUAL_PORT: u16 = 7465;

fn new_word() -> Word {
    let mut word = [0; LENGTH];
    rand::rng().fill_bytes(&mut word);
    word
}

/// Open ports that nobody is answered at yet.
pub struct Doors {
    metrics: Option<LocalPort>,
    page: Option<(LocalPort, Recorder)>,
    reception: Arc<Reception>,
}

impl Doors {
    /// Opens what is configured, in a process that can still open ports.
    pub fn open(places: &LocalPlaces, state_dir: &Path, role: Role) -> Result<Self, DoorError> {
        let open = |place: &Option<LocalAddr>, what, flag| {
            let failed = |address: &LocalAddr, source| DoorError {
                address: address.clone(),
                what,
                flag,
                source,
            };
            let place = place.as_ref();
            place
                .map(|at| LocalPort::open(at).map_err(|e| failed(at, e)))
                .transpose()
        };
        let page = open(&places.web, "the status page", "--web-listen")?;
        Ok(Self {
            metrics: open(&places.metrics, "metrics", "--metrics-listen")?,
            page: page.map(|port| (port, Recorder::open(state_dir, role))),
            reception: Arc::default(),
        })
    }

    /// Who gives out the way to the page.
    pub fn reception(&self) -> Arc<Reception> {
        self.reception.clone()
    }

    /// Answers from now on, until what it returns is dropped. Must be called within a Tokio runtime.
    pub fn offer(self, desk: &Arc<dyn Desk>) -> JoinSet<()> {
        let mut doors = JoinSet::new();
        let listener = |port: LocalPort, what: &str| {
            let listener = port.listener();
            listener
                .inspect_err(|e| {
                    tracing::warn!(
                        "[{}] {what} will not be shown: {e}; restart kite",
                        Code::Broken
                    )
                })
                .ok()
        };
        if let Some(at) = self.metrics.and_then(|port| listener(port, "metrics")) {
            announce("metrics for Prometheus", &at);
            let metrics = Arc::new(Metrics::new(desk.clone()));
            doors.spawn(door::serve(at, metrics));
        }
        if let Some((port, recorder)) = self.page
            && let Some(at) = listener(port, "the status page")
        {
            announce("status page", &at);
            let _ = self.reception.place.set(at.address().clone());
            let recorder = Arc::new(recorder);
            doors.spawn(recorder::record(recorder.clone(), desk.clone()));
            let page = page::Page::new(at.address(), self.reception, recorder, desk.clone());
            doors.spawn(door::serve(at, Arc::new(page)));
        }
        doors
    }
}

fn announce(what: &str, at: &LocalListener) {
    let way = match what {
        "status page" => "; `kite web` prints the way in",
        _ => "",
    };
    tracing::info!("{what} at {}{way}", at.address());
}
