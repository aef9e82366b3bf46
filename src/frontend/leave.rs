//! How a frontend goes: nobody comes in any more, its backends hear of it, and what runs may end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::registry::Standing;
use crate::wire::Lines;

/// How often it is looked whether what runs has ended.
const LOOK: Duration = Duration::from_millis(50);
/// So many backends are told at each look, lest all return at one instant: a thousand within 2 s.
const TOLD_AT_ONCE: usize = 25;
/// How long backends are told at that pace though no visitor is there any more.
const TELLING: Duration = Duration::from_secs(5);
/// How long those count who have come in and not yet said what they want.
const ARRIVING: Duration = Duration::from_secs(2);
/// How long a closed tunnel may take to be gone.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// Why a tunnel is closed then.
const WHY: &str = "the frontend stops";

/// Connections that have come in, and of which it is not yet clear what they want.
#[derive(Default)]
pub(super) struct Arriving(Arc<AtomicUsize>);

/// One of them, as long as this is there.
pub(super) struct Arrives(Arc<AtomicUsize>);

impl Arriving {
    pub(super) fn one(&self) -> Arrives {
        self.0.fetch_add(1, Ordering::Relaxed);
        Arrives(self.0.clone())
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Arrives {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Once nobody can come in: tells the backends, and waits until no visitor is there, for `drain` at most. Then all ends.
pub(super) async fn leave(shared: &Shared, drain: Duration) {
    let began = Instant::now();
    shared.going.send_replace(true);
    let standing = shared.registry.standing();
    let open: usize = standing.iter().map(|s| s.tunnel.streams()).sum();
    tracing::info!("stopping: {} tunnels, {open} open streams", standing.len());
    let mut told = HashSet::new();
    loop {
        // Some may just have finished their handshake.
        let standing = shared.registry.standing();
        let telling = tell(&standing, &mut told) && may_tell(began);
        let arriving = shared.arriving.any() && began.elapsed() < ARRIVING;
        let is_quiet = |s: &&Standing| s.tunnel.streams() == 0 || s.tunnel.is_closed();
        let quiet = standing.iter().filter(is_quiet);
        // Those at other members are our visitors, too.
        let passed = shared.fleet.as_ref().map_or(0, |f| f.passing().out_open);
        let over = !arriving && !telling && passed == 0 && quiet.clone().count() == standing.len();
        if over || began.elapsed() >= drain {
            break;
        }
        if !arriving {
            // An older backend cannot be told: it sees the end, and comes back.
            let older = quiet.filter(|s| !s.hears_away);
            older.for_each(|s| s.tunnel.close(WHY));
        }
        sleep(LOOK).await;
    }
    let standing = shared.registry.standing();
    standing.iter().for_each(|s| s.tunnel.close(WHY));
    let gone = async {
        for s in &standing {
            s.tunnel.ended().await;
        }
    };
    let _ = timeout(LAST_BYTES, gone).await;
}

/// Is there time left to tell more of them, though no visitor is there?
fn may_tell(began: Instant) -> bool {
    began.elapsed() < TELLING
}

/// Tells some of those who understand it and have not heard it yet. Are there more?
fn tell(standing: &[Standing], told: &mut HashSet<String>) -> bool {
    let hears = standing.iter().filter(|s| s.hears_away);
    let new: Vec<_> = hears.filter(|s| !told.contains(&s.session)).collect();
    let more = new.len() > TOLD_AT_ONCE;
    for s in new.into_iter().take(TOLD_AT_ONCE) {
        s.tunnel.send_kites(Lines {
            away: true,
            ..Lines::default()
        });
        told.insert(s.session.clone());
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Tunnel;
    use crate::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
    use crate::tunnel::mux::{Liveness, MAX_STREAMS, Settings, Side};

    #[test]
    fn nobody_is_told_for_ever() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        assert!(ago(4).is_some_and(may_tell));
        assert!(!ago(5).is_some_and(may_tell));
    }

    #[tokio::test]
    async fn a_few_are_told_at_a_time_until_all_are() {
        let mut standing = Vec::new();
        for n in 0..2 * TOLD_AT_ONCE {
            let (io, _) = tokio::io::duplex(1024);
            let settings = Settings {
                side: Side::Frontend,
                kite: true,
                max_payload: BUFFER_PAYLOAD,
                send_window: 256 * 1024,
                recv_window: 256 * 1024,
                max_streams: MAX_STREAMS,
                liveness: Liveness::DEFAULT,
            };
            standing.push(Standing {
                session: n.to_string(),
                tunnel: Tunnel::start(io, bytes::BytesMut::new(), settings, Pool::new()),
                hears_away: true,
            });
        }
        let mut told = HashSet::new();
        assert!(tell(&standing, &mut told), "there are more to tell");
        assert_eq!(told.len(), TOLD_AT_ONCE);
        assert!(!tell(&standing, &mut told));
        assert_eq!(told.len(), standing.len());
    }
}
