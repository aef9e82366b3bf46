//! What a frontend sees to by itself, whoever comes: kites whose time or quota
//! is over come down, what was used is written down, authorities are asked again, and the message of the day is read again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::registry::Revoked;
use crate::clock::now_unix;
use crate::code::Code;
use crate::wire::Lines;

/// How often accounts are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is written down what kites have used. A crash forgets so much of it.
pub const SAVE: Duration = Duration::from_secs(10);

/// Keeps the accounts of a frontend, for ever.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut look = tokio::time::interval(LOOK);
    let mut write = tokio::time::interval(SAVE);
    let reviews = async {
        loop {
            tokio::time::sleep(LOOK).await;
            shared.judge.review().await;
        }
    };
    let mut reviews = pin!(reviews);
    loop {
        tokio::select! {
            _ = look.tick() => {
                shared.revoke();
                shared.motd.refresh();
            }
            () = &mut reviews => {}
            _ = write.tick() => save(&shared).await,
        }
    }
}

/// Writes down what kites have used.
pub(super) async fn save(shared: &Arc<Shared>) {
    let accounts = shared.accounts.clone();
    // It waits for the disk. It can fail only if the runtime ends.
    let _ = tokio::task::spawn_blocking(move || accounts.save()).await;
}

impl Shared {
    /// Takes down what may not fly any more, and tells its backends why.
    pub(super) fn revoke(&self) {
        if let Some(open) = &self.open {
            open.end_where(|name| self.accounts.grants(name) || self.registry.is_blocked(name));
        }
        for Revoked { key, end, tunnels } in self.registry.revoke(now_unix()) {
            let (proto, name) = &*key;
            tracing::warn!(
                "[{}] kite down: {proto}:{name}: {end}; `kite frontend kites list` shows what each has used",
                Code::KiteTakenDown
            );
            for grounded in tunnels {
                let last = grounded.other.is_none();
                grounded.tunnel.send_kites(Lines {
                    // pagekite.py closes the whole tunnel on a verdict without any OK.
                    ok: grounded.other.into_iter().collect(),
                    invalid: vec![(grounded.id, Some(end.word().to_owned()))],
                    ..Lines::default()
                });
                if last {
                    grounded.tunnel.close("none of its kites may fly any more");
                }
            }
        }
    }
}
