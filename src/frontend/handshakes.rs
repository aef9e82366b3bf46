//! How fast one address may begin TLS that ends here: each handshake costs us a key exchange and a signature, and whoever asks for
//! it next to nothing. It is made to wait, at the doorstep, and takes nobody else's turn.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::doorstep::Whence;
use super::limits::{Bucket, Rate};
use crate::household::Visitor;

/// Handshakes that one address, or one network of IPv6, may begin at once; and then so many in [`SPAN`]. Those of this machine are not
/// counted, as it may be a load balancer or a Tor daemon.
pub const MAX_HANDSHAKES: u32 = 256;
/// See [`MAX_HANDSHAKES`].
pub const SPAN: Duration = Duration::from_secs(2);
/// Addresses whose handshakes are counted at a time. Those of one more are not: so many addresses are a flood that no count of each
/// could hold up.
pub const MAX_PACED: usize = 8 * 1024;
/// Between two looks for addresses that need not be known any more.
const SWEEP: Duration = Duration::from_secs(10);

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Table>);

#[derive(Default)]
struct Table {
    queues: HashMap<Visitor, Queue>,
    swept: Option<Instant>,
}

/// Those of one address, first come, first served.
type Queue = Arc<tokio::sync::Mutex<Bucket>>;

impl Handshakes {
    /// Waits until one more may begin from there, behind those that came before it.
    pub(super) async fn turn(&self, from: Whence) {
        let Whence::Address(visitor) = from else {
            return;
        };
        let Some(queue) = self.queue(visitor, Instant::now()) else {
            return;
        };
        let mut bucket = queue.lock().await;
        let wait = bucket.wait(rate(), Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        bucket.take(rate(), Instant::now());
    }

    fn queue(&self, of: Visitor, now: Instant) -> Option<Queue> {
        let table = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.swept.is_none_or(|swept| now >= swept + SWEEP) {
            table.swept = Some(now);
            table.queues.retain(|_, queue| is_needed(queue, now));
            table.queues.shrink_to_fit();
        }
        let known = table.queues.get(&of);
        if known.is_none() && table.queues.len() >= MAX_PACED {
            return None;
        }
        Some(table.queues.entry(of).or_default().clone())
    }
}

/// Somebody waits in it, or its bucket is not yet full again.
fn is_needed(queue: &Queue, now: Instant) -> bool {
    Arc::strong_count(queue) > 1 || queue.try_lock().is_ok_and(|bucket| !bucket.is_full(now))
}

fn rate() -> Rate {
    Rate {
        count: MAX_HANDSHAKES,
        seconds: SPAN.as_secs().try_into().unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn address(n: u64) -> Whence {
        Whence::Address(Visitor(n))
    }

    #[tokio::test]
    async fn one_address_waits_and_nobody_waits_for_it() {
        let all = Handshakes::default();
        let began = Instant::now();
        // A burst, and a quarter of the span's more.
        for _ in 0..MAX_HANDSHAKES + MAX_HANDSHAKES / 4 {
            all.turn(address(1)).await;
        }
        assert!(began.elapsed() >= SPAN / 4, "{:?}", began.elapsed());
        // Whoever waits holds up those of its own address only, and is not counted if it leaves.
        while all.turn(address(1)).now_or_never().is_some() {}
        assert!(all.turn(address(2)).now_or_never().is_some());
        for _ in 0..2 * MAX_HANDSHAKES {
            assert!(all.turn(Whence::Anybody).now_or_never().is_some());
        }
    }

    #[test]
    fn so_many_addresses_are_known_and_only_while_they_must_be() {
        let all = Handshakes::default();
        let now = Instant::now();
        let known: Vec<_> = (0..MAX_PACED as u64)
            .map(|n| all.queue(Visitor(n), now).expect("a queue"))
            .collect();
        assert!(all.queue(Visitor(u64::MAX), now).is_none());
        assert!(
            all.queue(Visitor(7), now).is_some(),
            "who is known is counted"
        );
        known[7]
            .try_lock()
            .expect("a bucket")
            .take(rate(), now + SWEEP);
        drop(known);
        assert!(all.queue(Visitor(u64::MAX), now + SWEEP).is_some());
        let table = all.0.lock().unwrap();
        let mut left: Vec<_> = table.queues.keys().map(|v| v.0).collect();
        left.sort_unstable();
        assert_eq!(left, [7, u64::MAX]);
    }
}
