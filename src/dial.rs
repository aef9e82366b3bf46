//! The only way out of the process.
//!
//! Every connection that kite opens is opened in this room, or by Arti on the
//! guarded runtime of the `tor` crate. A role is handed one [`Dialer`] when it
//! starts and can ask for nothing else: there is no setting to consult later,
//! hence none to get wrong later. [`egress::Egress`] makes that choice once, and
//! [`direct::DirectDialer`] wants a token that the choice of Tor does not give out.
//! [`authority::AuthorityDialer`] is for frontends, and wants a token that only their room makes.
//! Origins have [`origin::OriginDialer`], which understands literal addresses only.
//!
//! `clippy.toml` bans connecting, binding and resolving; `tests/boundary` counts
//! the exceptions, which are in `direct.rs`, `origin.rs`, `listen.rs`, in the gate of the `tor` crate, in
//! `check/leaks.rs`, which starts strace, in [`supervisor`], which tells systemd that kite is ready, and, for a frontend
//! that asks others who may fly, in [`question`] and `frontend/authority/program.rs`.

pub mod authority;
pub mod direct;
pub mod egress;
pub mod etcd;
pub mod member;
pub mod origin;
pub mod question;
pub mod supervisor;
pub mod target;
pub mod tor;

use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::authority::AuthorityDialer;
pub use self::direct::DirectDialer;
pub use self::egress::{DirectAllowed, Egress, EgressArgs, EgressError};
pub use self::member::{MemberConn, MemberDialer};
pub use self::origin::{OriginConn, OriginDialer, OriginError};
pub use self::target::{FrontendAddr, OriginAddr, OriginAddrError, TargetError, Trust};
pub use self::tor::TorDialer;
use crate::code::{Code, Coded};
use crate::kite::KiteName;
use crate::random::jitter;
use crate::tls::{self, TlsClient, TlsError};
use crate::wire::Binding;

/// Longest wait for a direct TCP connection, look-up included.
pub const DIRECT_DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait for a stream through Tor. A new circuit takes a few seconds, an
/// onion service's rendezvous some tens; Arti tries several of each in this time.
pub const TOR_DIAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Silence after which the kernel asks a peer whether it is still there, so that a vanished one is noticed without traffic; and then how
/// often. Each connection has times of its own, from half of these on: the kernel rounds long times to seconds, and what fell silent
/// together, after a restart, would be asked together. Of ten thousand questions at one instant a queue of one thousand packets
/// (`net.core.netdev_max_backlog`, or a card's) loses most, each time anew, and whoever was there was cut off.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(90), Duration::from_secs(20));

/// A connection, whatever carries it.
///
/// A stream through Tor keeps what was written until it is flushed: whoever
/// writes must flush, or the peer waits for ever. [`tokio::io::AsyncWriteExt::shutdown`]
/// flushes too; dropping does not.
pub trait Conn: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Conn for T {}

/// Any [`Conn`], on the heap.
pub type BoxConn = Box<dyn Conn>;

/// A connection to a frontend, and what a proof on it is bound to: its TLS session, the
/// onion service's name, or nothing for `plain://`.
pub struct Dialled {
    /// The connection.
    pub conn: BoxConn,
    /// What makes it itself.
    pub binding: Option<Binding>,
}

/// Which of the tunnels to one frontend. Each has a way of its own, if the dialer knows several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

/// Where a visitor of our own goes.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// Where the kite's name leads, as everybody.
    Name(&'a KiteName),
    /// To this frontend's own address.
    Frontend(&'a FrontendAddr),
}

/// Opens connections to frontends.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Opens a connection to which all that the address demands has been done:
    /// TLS verified or pinned, the onion service authenticated.
    ///
    /// Takes at most [`TOR_DIAL_TIMEOUT`] or [`DIRECT_DIAL_TIMEOUT`], plus
    /// [`crate::tls::TLS_TIMEOUT`]. Each call tries once; trying again, and how
    /// soon, is the caller's affair. Dropping the future gives up.
    async fn dial(&self, to: &FrontendAddr, lane: Lane) -> Result<Dialled, DialError>;

    /// Opens a connection as a visitor would who goes there; through Tor on a circuit that nothing else uses. A dialer that
    /// knows no such way says so, and then kites are not visited.
    async fn visit(&self, goal: Goal<'_>, port: u16) -> Result<BoxConn, DialError> {
        let _ = (goal, port);
        Err(DialError::Socket(std::io::ErrorKind::Unsupported))
    }

    /// Whether [`Dialer::visit`] finds kites by their names, as the rest of the world does.
    fn finds_names(&self) -> bool {
        false
    }

    /// The way that the lane went has failed: the next dial is to go another, if there is one.
    fn leave(&self, to: &FrontendAddr, lane: Lane) {
        let _ = (to, lane);
    }

    /// A closed port is told at once by the frontend's own machine, and costs a packet each way: it may be asked
    /// several times a second for a while. Through Tor it costs circuits.
    fn refusals_are_cheap(&self) -> bool {
        false
    }

    /// Whether onion services can be reached.
    fn reaches_onions(&self) -> bool {
        true
    }

    /// "Tor" or "direct", for logs and status.
    fn describe(&self) -> &'static str;
}

/// Why a frontend could not be reached. Holds no address: say which frontend it was when reporting it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The look-up failed. Tor cannot tell a missing name from a failing resolver at the exit.
    #[error("its name was not found")]
    NameNotFound,
    /// Nobody listens on the port.
    #[error("it refused the connection")]
    Refused,
    /// No route, from here or from the exit.
    #[error("it cannot be reached over the network")]
    Unreachable,
    /// Too slow.
    #[error("it did not answer in time")]
    TimedOut,
    /// What Tor's exits say of most failures, a closed port among them.
    #[error("the Tor exit relay could not connect to it, and did not say why")]
    ExitFailed,
    /// Opened and lost at once.
    #[error("the connection was closed at once")]
    Closed,
    /// The exit relay that was asked does not go there, or none does.
    #[error("no Tor exit relay was willing to connect to its port")]
    ExitPolicy,
    /// A circuit broke, or could not be built.
    #[error("the circuit through Tor failed ({0})")]
    Circuit(&'static str),
    /// Tor has not started up yet.
    #[error("Tor is not ready yet")]
    NotBootstrapped,
    /// Not even the first relay answers.
    #[error("no Tor relay can be reached from here")]
    TorUnreachable,
    /// Tor's directory is missing, too old, or the clock is wrong.
    #[error("Tor's directory is not usable ({0})")]
    TorDirectory(&'static str),
    /// Something on this machine keeps Tor from working.
    #[error("Tor cannot work on this machine ({0})")]
    TorLocal(&'static str),
    /// The embedded Tor is too old for the network.
    #[error("the embedded Tor client is too old for today's Tor network")]
    TorObsolete,
    /// The descriptor of the onion service was not found.
    #[error("the onion service is not known to the Tor network")]
    OnionNotFound,
    /// The descriptor is there, the service is not.
    #[error("the onion service does not answer")]
    OnionDown,
    /// The onion service wants client keys, which kite has none of.
    #[error("the onion service demands client authorisation")]
    OnionAuth,
    /// An onion address in direct mode.
    #[error("an onion address can be reached through Tor only")]
    NeedsTor,
    /// Arti finds the host malformed.
    #[error("its address is malformed")]
    BadAddress,
    /// Arti's `address_filter` forbids it.
    #[error("its address is a private one, which Tor does not connect to")]
    ForbiddenAddress,
    /// The socket itself failed.
    #[error("the socket failed ({0})")]
    Socket(std::io::ErrorKind),
    /// The connection stood, and the frontend did not prove itself.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl DialError {
    /// The state's name, for logs and status; docs/states.md lists them. Where Tor itself is the
    /// matter it is one of [`crate::tor::Trouble`]'s, or near it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NameNotFound => "name-not-found",
            Self::Refused
            | Self::Unreachable
            | Self::TimedOut
            | Self::ExitFailed
            | Self::Closed => "frontend-unreachable",
            Self::ExitPolicy => "exit-policy",
            Self::Circuit(_) => "circuits-failing",
            Self::NotBootstrapped => "tor-starting",
            Self::TorUnreachable => "tor-unreachable",
            Self::TorDirectory(_) => "directory-unavailable",
            Self::TorLocal(_) => "tor-local",
            Self::TorObsolete => "tor-obsolete",
            Self::OnionNotFound => "onion-unknown",
            Self::OnionDown => "onion-down",
            Self::OnionAuth => "onion-auth",
            Self::NeedsTor | Self::BadAddress | Self::ForbiddenAddress => "address-unusable",
            Self::Socket(_) => "socket-failed",
            Self::Tls(_) => "frontend-unproven",
        }
    }

    /// True if Tor itself is the matter. Then its own watch says so, once for all frontends.
    pub fn is_tors(&self) -> bool {
        matches!(
            self,
            Self::Circuit(_)
                | Self::NotBootstrapped
                | Self::TorUnreachable
                | Self::TorDirectory(_)
                | Self::TorObsolete
        )
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NameNotFound => "check the spelling of the frontend's name",
            Self::Refused => "check the port, and that the frontend runs",
            Self::Unreachable | Self::TimedOut | Self::Closed => {
                "kite tries again; if it persists, check that the frontend runs and is not firewalled"
            }
            Self::ExitFailed => {
                "check the port, and that the frontend runs; kite tries again through another exit"
            }
            Self::ExitPolicy => {
                "let the frontend listen on 443 or 80 too, or use its onion address"
            }
            Self::Circuit(_) => {
                "kite tries again on another circuit; nothing to do unless it persists"
            }
            Self::NotBootstrapped => "wait for Tor to start; the log says how far it is",
            Self::TorUnreachable => {
                "check this machine's network; if Tor is blocked here, configure bridges in Tor's configuration"
            }
            Self::TorDirectory(_) => {
                "check this machine's clock; Tor fetches a new directory by itself"
            }
            Self::TorLocal(_) => {
                "look for another kite with the same state directory, and at its permissions and free space"
            }
            Self::TorObsolete => "install a newer kite",
            Self::OnionNotFound | Self::OnionDown => {
                "check the onion address; a service that has just started needs up to a minute"
            }
            Self::OnionAuth => {
                "ask the frontend's operator for an address without client authorisation"
            }
            Self::NeedsTor => "add --via-tor, or use the frontend's public address",
            Self::BadAddress => "check the frontend's address",
            Self::ForbiddenAddress => {
                "use the frontend's public address; in a test network set address_filter.allow_local_addrs in Tor's configuration"
            }
            Self::Socket(_) => {
                "kite tries again; if it persists, look at the limits of open files and memory"
            }
            Self::Tls(error) => error.hint(),
        }
    }

    /// True if an exit said that it cannot find or reach the host: another may.
    pub(crate) fn is_this_exits(&self) -> bool {
        matches!(
            self,
            Self::NameNotFound | Self::Unreachable | Self::ExitPolicy
        )
    }

    /// True if another exit or circuit could do better. A frontend that refuses is
    /// down whatever the path, and what is wrong on this machine stays wrong.
    pub(crate) fn blames_path(&self) -> bool {
        match self {
            Self::NameNotFound
            | Self::Unreachable
            | Self::TimedOut
            | Self::Closed
            | Self::ExitFailed
            | Self::ExitPolicy
            | Self::Circuit(_)
            | Self::OnionDown
            | Self::Tls(_) => true,
            Self::Refused
            | Self::NotBootstrapped
            | Self::TorUnreachable
            | Self::TorDirectory(_)
            | Self::TorLocal(_)
            | Self::TorObsolete
            | Self::OnionNotFound
            | Self::OnionAuth
            | Self::NeedsTor
            | Self::BadAddress
            | Self::ForbiddenAddress
            | Self::Socket(_) => false,
        }
    }
}

impl Coded for DialError {
    fn code(&self) -> Code {
        match self {
            Self::NameNotFound => Code::NameNotFound,
            Self::Refused
            | Self::Unreachable
            | Self::TimedOut
            | Self::ExitFailed
            | Self::Closed => Code::FrontendUnreachable,
            Self::ExitPolicy => Code::ExitPolicy,
            Self::Circuit(_) => Code::CircuitsFailing,
            Self::NotBootstrapped => Code::TorStarting,
            Self::TorUnreachable => Code::TorUnreachable,
            Self::TorDirectory(_) => Code::DirectoryUnavailable,
            Self::TorLocal(_) => Code::TorLocal,
            Self::TorObsolete => Code::TorObsolete,
            Self::OnionNotFound => Code::OnionUnknown,
            Self::OnionDown => Code::OnionDown,
            Self::OnionAuth => Code::OnionAuth,
            Self::NeedsTor | Self::BadAddress | Self::ForbiddenAddress => Code::AddressUnusable,
            Self::Socket(_) => Code::SocketFailed,
            Self::Tls(error) => error.code(),
        }
    }
}

/// Does to a fresh connection what the address demands. The one place where trust is decided,
/// whichever dialer opened the connection: a [`Dialer`] of your own ends with it, too.
pub async fn prove<S: Conn>(
    conn: S,
    to: &FrontendAddr,
    tls: &TlsClient,
) -> Result<Dialled, DialError> {
    let (conn, binding): (BoxConn, _) = match to.trust() {
        Trust::Roots | Trust::Names(_) | Trust::Pin(_) => {
            let conn = tls.secure(conn, to).await?;
            let binding = tls::binding(conn.get_ref().1);
            (Box::new(conn), binding)
        }
        Trust::Onion => (Box::new(conn), Some(Binding::onion(to.host()))),
        Trust::Plain => (Box::new(conn), None),
    };
    Ok(Dialled { conn, binding })
}

/// Unsent bytes that the kernel may hold of a tunnel. What comes next stands behind them, whatever its turn.
pub const TUNNEL_UNSENT: u32 = 128 * 1024;

/// For a connection that carries a tunnel: see [`TUNNEL_UNSENT`].
pub fn tune_tunnel(socket: &tokio::net::TcpStream) {
    // Nothing but delay is lost where the kernel knows no such thing.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(TUNNEL_UNSENT);
}

/// Unsent bytes that the kernel may hold for a visitor, or for an origin. Whoever reads nothing would be held some megabytes
/// else, and a thousand of those all that the kernel has for TCP: then every connection of the machine crawls.
pub const STREAM_UNSENT: u32 = 128 * 1024;

/// For a connection that a stream is joined with: see [`STREAM_UNSENT`].
pub fn tune_stream(socket: &tokio::net::TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(STREAM_UNSENT);
}

/// A silent member of the fleet is probed after the first, and as often as the second says; after [`MEMBER_GONE`] without an
/// answer it is gone.
const MEMBER_KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// As soon as a tunnel that does not answer: who waits for a member that was cut off is to go elsewhere.
const MEMBER_GONE: Duration = Duration::from_secs(25);

/// For a connection between members of a fleet.
pub fn tune_member(socket: &tokio::net::TcpStream) {
    tune_stream(socket);
    let (time, interval) = MEMBER_KEEPALIVE;
    let keepalive = socket2::TcpKeepalive::new().with_time(time);
    let keepalive = keepalive.with_interval(interval).with_retries(3);
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(MEMBER_GONE));
}

/// See [`KEEPALIVE`].
pub(crate) fn keepalive() -> socket2::TcpKeepalive {
    let (time, interval) = KEEPALIVE;
    socket2::TcpKeepalive::new()
        .with_time(jitter(time))
        .with_interval(jitter(interval))
}

/// Small writes leave at once, and a peer that vanished is noticed.
fn tune(socket: &tokio::net::TcpStream) -> std::io::Result<()> {
    let keepalive = keepalive();
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_holds_little_that_is_unsent() {
        let port = crate::listen::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let at = port.local_addr().expect("an address");
        #[allow(clippy::disallowed_methods, reason = "to ourselves")]
        let conn = tokio::net::TcpStream::connect(at).await.expect("a queue");
        let unsent = || socket2::SockRef::from(&conn).tcp_notsent_lowat();
        tune_tunnel(&conn);
        assert_eq!(unsent().expect("a number"), TUNNEL_UNSENT);
        socket2::SockRef::from(&conn)
            .set_tcp_notsent_lowat(0)
            .expect("a number");
        tune_stream(&conn);
        assert_eq!(unsent().expect("a number"), STREAM_UNSENT);
    }

    #[test]
    fn every_name_is_documented() {
        let page = include_str!("../docs/states.md");
        for error in [
            DialError::NameNotFound,
            DialError::ExitFailed,
            DialError::ExitPolicy,
            DialError::Circuit(""),
            DialError::TorUnreachable,
            DialError::TorDirectory(""),
            DialError::TorLocal(""),
            DialError::TorObsolete,
            DialError::OnionNotFound,
            DialError::OnionDown,
            DialError::OnionAuth,
            DialError::BadAddress,
            DialError::Socket(std::io::ErrorKind::Other),
            DialError::Tls(TlsError::Closed),
        ] {
            let name = error.name();
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
