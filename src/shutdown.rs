//! The order to stop, passed to whoever must hear it.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// A future order to stop. Clones hear the same order.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// The one who gives the order.
pub struct Trigger(watch::Sender<bool>);

/// An order that is not yet given, and the one who may give it.
pub fn channel() -> (Trigger, Shutdown) {
    let (tx, rx) = watch::channel(false);
    (Trigger(tx), Shutdown(rx))
}

impl Trigger {
    /// Gives the order. Only the first time counts.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Waits for the order; it has come, too, when nobody is left to give it.
    pub async fn requested(&self) {
        let mut rx = self.0.clone();
        let _ = rx.wait_for(|stop| *stop).await;
    }
}

/// Gives the order at SIGTERM or SIGINT; `at_once` is called at the second.
pub fn on_signals(
    trigger: Trigger,
    at_once: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        trigger.stop();
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        at_once();
    });
    Ok(())
}
