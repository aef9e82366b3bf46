//! A frontend's life: from its configuration, or from another frontend's hands, to its end or to the next one's hands.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

use super::upgrade::{Predecessor, Successor};
use super::{Reread, RunError, UpgradeError, tell_end, walls};
use crate::code::Code;
use crate::config::{FrontendConfig, LocalPlaces};
use crate::control::{self, Desk, Offered};
use crate::descriptors;
use crate::dial::supervisor::Supervisor;
use crate::frontend::awaited::Whom;
use crate::frontend::onion::OnionDoor;
use crate::frontend::{FrontendError, Handle, MAX_CONNECTIONS, Prepared, kites};
use crate::listen::TcpListener;
use crate::listen::handed::Handed;
use crate::observe::progress::Event;
use crate::observe::status::{self, Role, Status};
use crate::observe::traffic::Speed;
use crate::privilege::User;
use crate::reload::{Answer, Order};
use crate::sandbox;
use crate::shutdown::{self, Shutdown};
use crate::tor::{self, TorError, TorSettings};
use crate::web::{Doors, Invitation, Reception};

/// How long the places of another frontend, which lets go of them, are tried for.
const PLACES: Duration = Duration::from_secs(5);
/// How often Tor's state is asked for while a frontend from before still has it.
const TOR_FREE: Duration = Duration::from_secs(1);
/// How long one who has asked for an upgrade may take to hear of it, before the process may end.
const ANSWERED: Duration = Duration::from_millis(200);
/// Orders to upgrade that wait.
const MAX_UPGRADES: usize = 4;

/// What another process has for this frontend: listening sockets, and perhaps its own place.
#[derive(Default)]
pub struct Handover {
    sockets: Handed,
    predecessor: Option<Predecessor>,
    sandbox: sandbox::Report,
    supervisor: Supervisor,
}

impl Handover {
    /// Looks for it. To be called once, while there is one thread.
    pub fn find() -> std::io::Result<Self> {
        if let Some((predecessor, sockets)) = Predecessor::find()? {
            return Ok(Self {
                sockets,
                predecessor: Some(predecessor),
                ..Self::default()
            });
        }
        Ok(Self {
            sockets: Handed::by_supervisor()?,
            ..Self::default()
        })
    }

    /// Opens the ports that nobody has handed over, becomes whom the configuration names, and gives up what this frontend has
    /// no need of, for good ([`sandbox::enter`]). To be called while there is one thread.
    pub fn settle(&mut self, config: &FrontendConfig) -> Result<(), RunError> {
        descriptors::raise(MAX_CONNECTIONS);
        // By an abstract name it cannot be reached from within.
        self.supervisor = Supervisor::find();
        let plan = walls::of_frontend(config)?;
        let user = User::choose(config.user.as_deref(), &config.state_dir)?;
        let public = config.listen.iter().map(|l| l.address);
        for address in public.chain(config.fleet.iter().map(|f| f.listen)) {
            let opened = self.sockets.open(address);
            opened.map_err(|source| FrontendError::Bind { address, source })?;
        }
        walls::become_user(user.as_ref(), config)?;
        self.sandbox = walls::enter(&plan);
        Ok(())
    }
}

/// Runs a frontend until `shutdown`, or until another has taken its place. `progress` hears of Tor's start and of the onion
/// service, if it is an onion frontend; visitors, and backends on other ports, are served meanwhile.
pub async fn frontend(
    config: FrontendConfig,
    reread: Reread<FrontendConfig>,
    handover: Handover,
    progress: impl FnMut(&Event<'_>) + Send,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let settings = config.onion.enabled.then(|| TorSettings {
        state_dir: config.state_dir.clone(),
        config: config.onion.config.clone(),
    });
    let drain = config.drain;
    let (state_dir, local) = (config.state_dir.clone(), config.local.clone());
    let Handover {
        mut sockets,
        mut predecessor,
        sandbox,
        supervisor,
    } = handover;
    let prepared = Prepared::new(config, &mut sockets)?;
    if predecessor.is_none() && !sockets.rest().is_empty() {
        return Err(FrontendError::Handed(sockets.rest()).into());
    }
    // What the configuration does not name any more is closed.
    drop(sockets);
    let whom = match &mut predecessor {
        Some(before) => before.let_go().map_err(FrontendError::Abandoned)?,
        None => Whom::entitled(),
    };
    let frontend = prepared.complete(whom)?;
    let places = Places { state_dir, local };
    let doors = places.doors(predecessor.is_some()).await?;
    let handle = frontend.handle();
    let sockets = frontend.sockets();
    let onion: Arc<OnceLock<String>> = Arc::default();
    let tor: Arc<OnceLock<Arc<tor::Client>>> = Arc::default();
    let speed = Speed::default();
    let supervisor = Arc::new(supervisor);
    let (upgrades, orders) = queue();
    let desk = Arc::new(FrontendDesk {
        tor: tor.clone(),
        pinned: frontend.pinned_addresses(),
        published: onion.clone(),
        handle: handle.clone(),
        began: Instant::now(),
        speed: speed.clone(),
        reception: Mutex::new(doors.reception()),
        sandbox: sandbox.to_string().lines().map(Into::into).collect(),
        reread,
        upgrades: upgrades.clone(),
    });
    let office = Office {
        open: None,
        places,
        desk: desk.clone(),
        handle: handle.clone(),
        sockets,
        supervisor: supervisor.clone(),
    };
    // Dropped, they do no more.
    let mut helpers = JoinSet::new();
    helpers.spawn(speed.watch(handle.ledger()));
    helpers.spawn(heed_signals(supervisor.clone(), desk, upgrades));
    let (stop, order) = shutdown::channel();
    let mut serving = pin!(frontend.run(order.within(drain)));
    let mut office = pin!(office.keep(doors, orders));
    let ending = tokio::spawn(tell_end(supervisor.clone(), shutdown.clone().within(drain)));
    if let Some(before) = &mut predecessor {
        before.ready().map_err(FrontendError::Abandoned)?;
    }
    supervisor.ready("the ports are open");
    let mut onion_side = pin!(onion_side(
        settings,
        predecessor,
        handle,
        tor,
        onion,
        progress
    ));
    tokio::select! {
        // The ports before all else.
        biased;
        () = &mut serving => return Ok(()),
        () = shutdown.requested() => {}
        // Another has taken our place, and the supervisor looks at that one.
        successor = &mut office => {
            ending.abort();
            // It sees our process end by the end of what it holds of it, so that must not be sooner.
            std::mem::forget(successor);
        }
        end = &mut onion_side => end?,
    }
    stop.stop();
    tokio::select! {
        () = serving => Ok(()),
        end = onion_side => end,
    }
}

/// Tor and the onion service, if there are settings for it; else nothing. Ends only in trouble.
async fn onion_side(
    settings: Option<TorSettings>,
    predecessor: Option<Predecessor>,
    handle: Handle,
    tor: Arc<OnceLock<Arc<tor::Client>>>,
    onion: Arc<OnceLock<String>>,
    progress: impl FnMut(&Event<'_>) + Send,
) -> Result<(), RunError> {
    let Some(settings) = settings else {
        return std::future::pending().await;
    };
    let follows = predecessor.is_some();
    if let Some(before) = predecessor {
        // One process has Tor's state, and the onion service.
        tracing::info!("the onion service follows when the frontend before has ended");
        let _ = spawn_blocking(move || before.gone()).await;
    }
    let client = Arc::new(start_tor(settings, follows).await?);
    let _ = tor.set(client.clone());
    let mut obsolete = pin!(client.watch());
    // The service lives as long as its handle: until all tunnels have ended.
    let _door = tokio::select! {
        door = open_door(&client, handle, &onion, progress) => door?,
        end = &mut obsolete => return Err(end.into()),
    };
    Err(obsolete.await.into())
}

/// Tor's client, which has dialled nothing yet. One that follows others waits until all these have let go of Tor's state: who
/// was before the one before it may outlive that one.
async fn start_tor(settings: TorSettings, follows: bool) -> Result<tor::Client, TorError> {
    let mut said = false;
    loop {
        match tor::Client::start(settings.clone()) {
            Err(TorError::InUse) if follows => {
                if !std::mem::replace(&mut said, true) {
                    tracing::info!(
                        "an older frontend still has Tor's state; the onion service follows when that has ended"
                    );
                }
                sleep(TOR_FREE).await;
            }
            started => return started,
        }
    }
}

/// Starts Tor and publishes the frontend's onion service, however long it takes.
async fn open_door(
    client: &Arc<tor::Client>,
    frontend: Handle,
    address: &OnceLock<String>,
    mut progress: impl FnMut(&Event<'_>) + Send,
) -> Result<OnionDoor, RunError> {
    client.bootstrap(&mut |p| progress(&Event::Tor(&p))).await?;
    tracing::info!("Tor ready; publishing the onion service, which can take a minute");
    let door = OnionDoor::open(client.clone(), frontend)?;
    progress(&Event::Onion(None));
    door.published().await;
    progress(&Event::Onion(Some(&door.address())));
    tracing::info!("backends dial {}", door.address());
    let _ = address.set(door.address());
    Ok(door)
}

/// Reads the configuration again at SIGHUP, and has another take this one's place at SIGUSR2, for ever.
async fn heed_signals(
    supervisor: Arc<Supervisor>,
    desk: Arc<FrontendDesk>,
    upgrades: mpsc::Sender<Upgrade>,
) {
    let (Ok(mut hangups), Ok(mut upgrade)) = (shutdown::hangups(), shutdown::upgrades()) else {
        return;
    };
    loop {
        tokio::select! {
            Some(()) = hangups.recv() => {
                supervisor.reloading();
                // It logs what comes of it.
                desk.reread().await;
                supervisor.ready("the configuration was read again");
            }
            Some(()) = upgrade.recv() => {
                // Nobody waits for the answer, which is logged.
                let _ = upgrades.try_send(oneshot::channel().0);
            }
        }
    }
}

/// One who waits for what comes of an upgrade.
type Upgrade = oneshot::Sender<Answer>;

/// Where such orders wait.
fn queue() -> (mpsc::Sender<Upgrade>, mpsc::Receiver<Upgrade>) {
    mpsc::channel(MAX_UPGRADES)
}

/// Where a frontend can be asked: one process at a time has these.
struct Places {
    state_dir: PathBuf,
    local: LocalPlaces,
}

impl Places {
    /// Opens the ports for this machine; those of a frontend that lets go of them are tried for a while.
    async fn doors(&self, patient: bool) -> Result<Doors, RunError> {
        let began = Instant::now();
        loop {
            match Doors::open(&self.local, &self.state_dir, Role::Frontend) {
                Err(_) if patient && began.elapsed() < PLACES => {
                    sleep(Duration::from_millis(50)).await;
                }
                opened => return Ok(opened?),
            }
        }
    }
}

/// Answers questions, and hands all over when that is ordered.
struct Office {
    open: Option<(Offered, JoinSet<()>)>,
    places: Places,
    desk: Arc<FrontendDesk>,
    handle: Handle,
    sockets: Vec<Weak<TcpListener>>,
    supervisor: Arc<Supervisor>,
}

impl Office {
    /// Until another has taken this one's place.
    async fn keep(mut self, doors: Doors, mut orders: mpsc::Receiver<Upgrade>) -> Successor {
        self.open(doors);
        while let Some(asker) = orders.recv().await {
            let done = self.hand_over().await;
            let answer = match &done {
                Ok(_) => Answer::Changed(Vec::new()),
                Err(e) => {
                    tracing::warn!("[{}] upgrade: {e}; this one goes on", Code::UpgradeFailed);
                    Answer::Refused(e.to_string())
                }
            };
            // Whoever asked by a signal does not wait.
            let _ = asker.send(answer);
            if let Ok(successor) = done {
                sleep(ANSWERED).await;
                return successor;
            }
        }
        std::future::pending().await
    }

    fn open(&mut self, doors: Doors) {
        let socket = control::Socket::open(&Role::Frontend.socket(&self.places.state_dir));
        self.desk.receive(doors.reception());
        let desk: Arc<dyn Desk> = self.desk.clone();
        let control = control::offer(socket, desk.clone());
        self.open = Some((control, doors.offer(&desk)));
    }

    /// Has another take this one's place. In trouble all is as it was.
    async fn hand_over(&mut self) -> Result<Successor, UpgradeError> {
        let mut successor = Successor::start(&self.sockets)?;
        tracing::info!("upgrade: process {} is to take over", successor.id());
        successor.prepared().await?;
        let expected = self.handle.expected();
        self.handle.lend_book().await;
        if let Some((control, mut doors)) = self.open.take() {
            control.close().await;
            doors.shutdown().await;
        }
        if let Err(e) = successor.takes_over(&expected).await {
            self.handle.take_book_back().await;
            match self.places.doors(true).await {
                Ok(doors) => self.open(doors),
                Err(e) => tracing::warn!(
                    "[{}] upgrade: what was open for this machine alone is not any more: {e}; restart kite",
                    Code::UpgradeFailed
                ),
            }
            return Err(e);
        }
        tracing::info!(
            "upgrade: process {} has taken over; this one ends with its visitors",
            successor.id()
        );
        self.supervisor.main_is(successor.id());
        Ok(successor)
    }
}

/// What a running frontend can be asked.
struct FrontendDesk {
    tor: Arc<OnceLock<Arc<tor::Client>>>,
    pinned: Vec<String>,
    published: Arc<OnceLock<String>>,
    handle: Handle,
    began: Instant,
    speed: Speed,
    reception: Mutex<Arc<Reception>>,
    sandbox: Vec<String>,
    reread: Reread<FrontendConfig>,
    upgrades: mpsc::Sender<Upgrade>,
}

impl FrontendDesk {
    /// The way to the status page is given out there.
    fn receive(&self, reception: Arc<Reception>) {
        *self.reception() = reception;
    }

    fn reception(&self) -> std::sync::MutexGuard<'_, Arc<Reception>> {
        self.reception
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Desk for FrontendDesk {
    fn status(&self) -> Status {
        let onion = self.published.get();
        Status {
            addresses: self.pinned.iter().chain(onion).cloned().collect(),
            storage_only: self.handle.policy().is_storage_only(),
            open: self.handle.open().map(Into::into),
            fleet: self.handle.fleet().map(Into::into),
            tor: self
                .tor
                .get()
                .map(|c| status::Tor::new(c.progress(), &c.dialled())),
            sandbox: self.sandbox.clone(),
            ..Status::of_frontend(
                self.began,
                self.handle.tunnels(),
                &self.handle.ledger(),
                &self.speed,
            )
        }
    }

    fn web(&self) -> Invitation {
        self.reception().invite()
    }

    async fn reload(&self, _: Order) -> Answer {
        Answer::Refused("it is a frontend: use `kite frontend reload`".to_owned())
    }

    async fn reread(&self) -> Answer {
        let taken = match (self.reread)() {
            Ok(config) => self.handle.turn_to(config).await,
            Err(e) => Err(e.to_string()),
        };
        match taken {
            Ok(lines) => {
                lines
                    .iter()
                    .for_each(|line| tracing::info!("reload: {line}"));
                Answer::Changed(lines)
            }
            Err(why) => {
                tracing::warn!(
                    "[{}] reload: nothing was changed: {why}",
                    Code::ReloadRefused
                );
                Answer::Refused(why)
            }
        }
    }

    async fn upgrade(&self) -> Answer {
        let (asker, answer) = oneshot::channel();
        if self.upgrades.send(asker).await.is_err() {
            return Answer::Refused("it stops".to_owned());
        }
        answer
            .await
            .unwrap_or_else(|_| Answer::Refused("it stops".to_owned()))
    }

    async fn kites(&self, order: kites::Order) -> kites::Answer {
        self.handle.kites(order).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_orders_wait() {
        let (upgrades, mut orders) = queue();
        let order = || upgrades.try_send(oneshot::channel().0);
        assert!((0..4).all(|_| order().is_ok()));
        assert!(order().is_err());
        orders.try_recv().expect("the first");
        assert!(order().is_ok());
    }

    #[tokio::test]
    async fn who_follows_waits_for_all_who_have_tors_state() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a directory");
        let settings = TorSettings {
            state_dir: dir.path().to_owned(),
            config: None,
        };
        let oldest = start_tor(settings.clone(), false).await.expect("a client");
        let alone = start_tor(settings.clone(), false).await;
        assert!(matches!(alone.err(), Some(TorError::InUse)));
        let mut next = pin!(start_tor(settings, true));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut next).await;
        assert!(early.is_err(), "it waits");
        drop(oldest);
        next.await.expect("it has Tor's state");
    }
}
