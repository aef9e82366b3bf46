//! Words to the supervisor that has started this process, if it wants to hear them: systemd, of a unit with `Type=notify`; and to its journal.
//!
//! Sockets of this machine, opened before the sandbox closes. Nothing comes back through them, and no word of it is a secret.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::code::Code;

/// Where the supervisor listens: a path, or `@` and an abstract name.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// What a process needs besides to end.
const AFTER_DRAIN: Duration = Duration::from_secs(10);

/// Whoever waits for this process to be ready, or nobody.
#[derive(Debug, Default)]
pub struct Supervisor(Option<UnixDatagram>);

impl Supervisor {
    /// The one of the environment. Trouble is only logged: kite works without.
    pub fn find() -> Self {
        let Some(address) = std::env::var_os(VARIABLE).filter(|a| !a.is_empty()) else {
            return Self::default();
        };
        let socket = reach(&address).inspect_err(|e| {
            tracing::warn!(
                "[{}] {VARIABLE} is set to {}, but nobody hears there that kite is ready: {e}; with systemd, use Type=exec",
                Code::SupervisorDeaf,
                address.display()
            );
        });
        Self(socket.ok())
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What was to be started has started.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// One line on how it goes.
    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", one_line(status)));
    }

    /// It ends, as it was told to. What runs has so much time, which the supervisor is asked to grant.
    pub fn stopping(&self, drain: Duration) {
        let most = drain + AFTER_DRAIN;
        self.say(&format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={}\nSTATUS=ending: what runs has {} s at most",
            most.as_micros(),
            drain.as_secs()
        ));
    }

    /// Another process has taken this one's place, and is ready.
    pub fn main_is(&self, process: u32) {
        self.say(&format!(
            "MAINPID={process}\nREADY=1\nSTATUS=the ports are open"
        ));
    }

    /// The configuration is read again; [`Self::ready`] follows, whatever came of it.
    pub fn reloading(&self) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
    }

    /// A supervisor that does not listen in time misses a word: kite waits for nobody here.
    fn say(&self, words: &str) {
        if let Some(socket) = &self.0
            && let Err(e) = socket.send(words.as_bytes())
        {
            tracing::debug!("the supervisor did not hear '{words}': {e}");
        }
    }
}

fn reach(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    lead(&socket, &parse(address)?)?;
    Ok(socket)
}

#[expect(
    clippy::disallowed_methods,
    reason = "sockets of the machine's own supervisor, which named one when it started this process, and of its journal"
)]
fn lead(socket: &UnixDatagram, to: &SocketAddr) -> io::Result<()> {
    socket.connect_addr(to)
}

/// Where the journal hears, a datagram for each entry.
#[derive(Debug)]
pub struct JournalSocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl JournalSocket {
    /// The one at this path. An error if nobody hears there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let address = SocketAddr::from_pathname(path)?;
        lead(&socket, &address)?;
        Ok(Self { socket, address })
    }

    /// One entry, whole. Waits while the journal's queue is full.
    pub fn send(&self, entry: &[u8]) -> io::Result<usize> {
        match self.socket.send(entry) {
            // It was started anew, and took another socket.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotConnected
                ) =>
            {
                lead(&self.socket, &self.address)?;
                self.socket.send(entry)
            }
            result => result,
        }
    }
}

/// The time by which systemd tells whether a reload came after its wish.
fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

fn parse(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name),
        _ => SocketAddr::from_pathname(address),
    }
}

/// A line break would begin another word of the supervisor's language.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_say_anything_else() {
        assert_eq!(one_line("Tor: 30%\nREADY=1"), "Tor: 30% READY=1");
    }

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        let path = parse(OsStr::new("/run/systemd/notify")).unwrap();
        assert_eq!(
            path.as_pathname().unwrap().to_str(),
            Some("/run/systemd/notify")
        );
        #[cfg(target_os = "linux")]
        assert!(parse(OsStr::new("@kite")).unwrap().as_pathname().is_none());
        assert!(parse(OsStr::new(&"x".repeat(200))).is_err());
    }

    #[test]
    fn nobody_hears_nothing() {
        let nobody = Supervisor::default();
        assert!(!nobody.is_there());
        nobody.ready("ready");
    }
}
