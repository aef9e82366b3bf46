//! What is known of each foolscap origin: no visitor is passed to one that has not just been
//! seen to be a foolscap port. Nodes stop, and something else may take their port.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::probe::{Seen, look};
use crate::config::Service;
use crate::dial::OriginAddr;
use crate::kite::Protocol;
use crate::observe::board::Board;
use crate::proxy_header::Version;

/// How long an origin that was seen to speak foolscap is passed visitors without another
/// look, if no connection with it has ended since.
pub const TRUSTED_FOR: Duration = Duration::from_secs(10);
/// How long an origin that did not is left alone; its visitors are refused meanwhile.
pub const DISTRUSTED_FOR: Duration = Duration::from_secs(2);

/// The foolscap origins of a backend, for the visitors of all its tunnels.
pub struct Watch {
    origins: std::sync::Mutex<HashMap<Place, Arc<Origin>>>,
    board: Board,
}

/// An origin, and whether it is spoken to with a PROXY header: what answers one may not answer the other.
type Place = (OriginAddr, Option<Version>);

fn place(service: &Service) -> Place {
    (service.origin.clone(), service.tell.proxy_protocol)
}

#[derive(Default)]
struct Origin {
    last: Mutex<Option<Look>>,
    /// A connection has failed or ended since the last look began: the node may be gone.
    doubtful: AtomicBool,
}

struct Look {
    seen: Seen,
    began: Instant,
    done: Instant,
}

impl Watch {
    /// Nothing is known yet. What is seen is written on `board`.
    pub fn new(services: &[Service], board: Board) -> Self {
        let watch = Self {
            origins: std::sync::Mutex::default(),
            board,
        };
        watch.turn_to(services);
        watch
    }

    /// These are the kites from now on. What is known of their origins stays known.
    pub fn turn_to(&self, services: &[Service]) {
        self.board.turn_to(services);
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        let foolscap = services.iter().filter(|s| s.protocol == Protocol::Foolscap);
        *origins = foolscap
            .map(|s| {
                let place = place(s);
                let known = origins.get(&place).cloned().unwrap_or_default();
                (place, known)
            })
            .collect();
    }

    /// May a visitor be passed to this kite's origin? Looks if need be; whoever comes meanwhile
    /// waits for the same answer, or for the next. Always true for kites that are not foolscap.
    pub async fn trusts(&self, service: &Service) -> bool {
        let Some(origin) = self.of(service) else {
            return true;
        };
        let came = Instant::now();
        let mut last = origin.last.lock().await;
        if !last.as_ref().is_some_and(|look| origin.counts(look, came)) {
            origin.doubtful.store(false, Ordering::SeqCst);
            let began = Instant::now();
            let seen = look(service).await;
            seen.note(service, &self.board);
            // One line for each change, not for each visitor.
            if last.as_ref().is_none_or(|last| last.seen != seen) {
                seen.log(service);
            }
            let done = Instant::now();
            *last = Some(Look { seen, began, done });
        }
        last.as_ref().is_some_and(|l| l.seen == Seen::Foolscap)
    }

    /// A connection with this kite's origin has failed or ended.
    pub fn doubt(&self, service: &Service) {
        if let Some(origin) = self.of(service) {
            origin.doubtful.store(true, Ordering::SeqCst);
        }
    }

    fn of(&self, service: &Service) -> Option<Arc<Origin>> {
        if service.protocol != Protocol::Foolscap {
            return None;
        }
        let origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        // A kite that has just gone: its last visitors are looked after one by one.
        Some(origins.get(&place(service)).cloned().unwrap_or_default())
    }
}

impl Origin {
    /// Does this look do for a visitor who came then?
    fn counts(&self, look: &Look, came: Instant) -> bool {
        let age = look.done.elapsed();
        // One that began later does in any case: so nobody waits for more than two.
        look.began >= came
            || match look.seen {
                Seen::Foolscap => age < TRUSTED_FOR && !self.doubtful.load(Ordering::SeqCst),
                _ => age < DISTRUSTED_FOR,
            }
    }
}
