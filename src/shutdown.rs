//! The order to stop, passed to whoever must hear it.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long what runs may go on after the order to stop, unless configured.
pub const DRAIN: Duration = Duration::from_secs(10);

/// A future order to stop, and how long what runs may go on after it. Clones hear the same order.
#[derive(Clone)]
pub struct Shutdown(watch::Receiver<bool>, Duration);

/// The one who gives the order.
pub struct Trigger(watch::Sender<bool>);

/// An order that is not yet given, and the one who may give it.
pub fn channel() -> (Trigger, Shutdown) {
    let (tx, rx) = watch::channel(false);
    (Trigger(tx), Shutdown(rx, DRAIN))
}

impl Trigger {
    /// Gives the order. Only the first time counts.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// The same order, with so much time for what runs.
    pub fn within(self, drain: Duration) -> Self {
        Self(self.0, drain)
    }

    /// How long what runs may go on after the order.
    pub fn drain(&self) -> Duration {
        self.1
    }

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

/// SIGUSR2 from now on: the wish that another process take this one's place.
pub fn upgrades() -> std::io::Result<Signal> {
    signal(SignalKind::user_defined2())
}

/// SIGHUP from now on: the wish that the configuration be read again.
pub fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}
