//! Does Tor work, and if not, what is the matter?
//!
//! Arti says of itself that it is ready long after the network has gone. So the
//! question is answered from what can be seen: whether those who ask for a stream
//! get one ([`Pulse`]), how the gate's connections fare, and how old the directory is.
//! [`judge`] puts it together; it is a pure function.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arti_client::ErrorKind;

/// Somebody has waited this long for Tor: now it is worth asking why.
const PATIENCE: Duration = Duration::from_secs(8);

/// And this long for a handshake, or a directory, of which Arti despairs early.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// And this long: something is wrong, though nothing shows what.
const NO_REASON: Duration = Duration::from_secs(60);

/// So many questions in a row that failed are no accident.
const MANY: u32 = 3;

/// Who asked, and does not ask again for so long, has given up. A backend asks again after two minutes at most.
const GIVEN_UP: Duration = Duration::from_secs(150);

/// Why Tor does not work. The names are stable; docs/states.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// There is no route to anywhere.
    NoNetwork,
    /// No directory yet, and no directory cache answers.
    TorUnreachable,
    /// Relays accept connections, and then it is not Tor that answers.
    TorBlocked,
    /// There is a directory; the guards do not answer.
    GuardsDown,
    /// Bridges are configured, and none answers.
    BridgeDown,
    /// The program of a pluggable transport does not run.
    TransportFailed,
    /// The clock is too far from the network's.
    ClockWrong,
    /// The directory has expired, and no newer one can be had.
    DirectoryExpired,
    /// There is no usable directory, though its caches answer.
    DirectoryUnavailable,
    /// Circuits fail for no reason that shows.
    CircuitsFailing,
    /// The network demands a protocol that this Arti does not speak.
    Obsolete,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NoNetwork,
        Self::TorUnreachable,
        Self::TorBlocked,
        Self::GuardsDown,
        Self::BridgeDown,
        Self::TransportFailed,
        Self::ClockWrong,
        Self::DirectoryExpired,
        Self::DirectoryUnavailable,
        Self::CircuitsFailing,
        Self::Obsolete,
    ];

    /// The state's name, for logs, status and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoNetwork => "no-network",
            Self::TorUnreachable => "tor-unreachable",
            Self::TorBlocked => "tor-blocked",
            Self::GuardsDown => "guards-down",
            Self::BridgeDown => "bridge-down",
            Self::TransportFailed => "transport-failed",
            Self::ClockWrong => "clock-wrong",
            Self::DirectoryExpired => "directory-expired",
            Self::DirectoryUnavailable => "directory-unavailable",
            Self::CircuitsFailing => "circuits-failing",
            Self::Obsolete => "tor-obsolete",
        }
    }

    /// Its code in kite's catalogue, which never changes.
    pub fn kite_code(self) -> &'static str {
        match self {
            Self::NoNetwork => "KITE-T01",
            Self::TorUnreachable => "KITE-T02",
            Self::TorBlocked => "KITE-T03",
            Self::GuardsDown => "KITE-T04",
            Self::BridgeDown => "KITE-T05",
            Self::TransportFailed => "KITE-T06",
            Self::ClockWrong => "KITE-T07",
            Self::DirectoryExpired => "KITE-T08",
            Self::DirectoryUnavailable => "KITE-T09",
            Self::CircuitsFailing => "KITE-T10",
            Self::Obsolete => "KITE-T11",
        }
    }

    /// What the user can do about it. kite itself goes on trying in all but the last.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::NoNetwork => {
                "check the cable, the Wi-Fi and the router; kite goes on when it is back"
            }
            Self::TorUnreachable => {
                "check this machine's network and firewall; where Tor is blocked, configure bridges in Tor's configuration"
            }
            Self::TorBlocked => {
                "log in if this network wants that first, and check the clock; where Tor is blocked, configure bridges in Tor's configuration"
            }
            Self::GuardsDown => {
                "check this machine's network; kite tries the guards again, and where Tor is blocked needs bridges"
            }
            Self::BridgeDown => {
                "check this machine's network; if that works, ask for other bridges and put them into Tor's configuration"
            }
            Self::TransportFailed => {
                "check `path` in [[bridges.transports]] of Tor's configuration, and that the program is installed"
            }
            Self::ClockWrong => {
                "set this machine's clock (and time zone), and keep it right with NTP; kite goes on by itself"
            }
            Self::DirectoryExpired | Self::DirectoryUnavailable => {
                "check this machine's clock; kite goes on asking for a new directory"
            }
            Self::CircuitsFailing => {
                "nothing, unless it lasts; then check whether this machine's network is slow or overloaded"
            }
            Self::Obsolete => "install a newer kite",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNetwork => "this machine has no network",
            Self::TorUnreachable => "no directory cache of Tor's can be reached",
            Self::TorBlocked => "relays take connections, and do not answer as relays do",
            Self::GuardsDown => "none of the guard relays can be reached",
            Self::BridgeDown => "no configured bridge can be reached",
            Self::TransportFailed => "the pluggable transport does not run",
            Self::ClockWrong => "this machine's clock seems to be wrong",
            Self::DirectoryExpired => "Tor's directory has expired, and there is no newer one",
            Self::DirectoryUnavailable => "no usable directory of Tor's can be had",
            Self::CircuitsFailing => "circuits through Tor fail",
            Self::Obsolete => "the embedded Tor client is too old for today's Tor network",
        })
    }
}

/// How old Tor's directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Directory {
    #[default]
    None,
    Timely,
    Expired,
    /// It is not valid yet.
    Early,
}

/// What can be seen from outside of Arti.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signs {
    /// How long somebody has waited for a stream, or for the start, without success.
    pub(crate) waited: Option<Duration>,
    /// How many of these attempts failed through Tor's fault.
    pub(crate) failures: u32,
    /// How the last of them failed.
    pub(crate) error: Option<ErrorKind>,
    /// Connections that failed since one succeeded, or since a relay was last heard.
    pub(crate) failed: u32,
    /// No relay was heard for some minutes.
    pub(crate) silent: bool,
    /// The last of them for want of a route.
    pub(crate) no_route: bool,
    pub(crate) directory: Directory,
    /// Connections stand, and none has become one to a relay.
    pub(crate) no_handshake: bool,
    /// Arti's own guesses.
    pub(crate) thinks_clock: bool,
    pub(crate) thinks_filtered: bool,
    pub(crate) thinks_directory: bool,
    /// The clock says that this program has not been released yet.
    pub(crate) before_release: bool,
    pub(crate) bridges: bool,
    /// The program of a transport is missing.
    pub(crate) no_transport: bool,
}

impl Signs {
    /// Somebody waits, and Arti tries nothing.
    pub(crate) fn is_stuck(&self) -> bool {
        self.waited.is_some_and(|waited| waited >= PATIENCE)
            && self.failed == 0
            && self.directory == Directory::Timely
    }

    /// Relays answer, and nothing comes of it: perhaps the clock is wrong.
    pub(crate) fn is_puzzling(&self) -> bool {
        self.waited.is_some_and(|waited| waited >= PATIENCE)
            && self.failed == 0
            && (self.no_handshake || matches!(self.directory, Directory::Expired))
    }
}

/// Errors that say something of Tor, and not of who was to be reached through it, nor of this machine's files. What a
/// later Arti may add is among them: a trouble without a good name is better than one that nobody hears of.
pub(crate) fn blames_tor(error: ErrorKind) -> bool {
    use ErrorKind as K;
    let neutral = matches!(
        error,
        // Arti itself waited in vain for a word of the exit, or of an onion service: either may be silent.
        K::RemoteNetworkTimeout
            | K::NoExit
            | K::OnionServiceConnectionFailed
            | K::OnionServiceProtocolViolation
            | K::OnionServiceMissingClientAuth
            | K::OnionServiceWrongClientAuth
            | K::OnionServiceAddressInvalid
            | K::InvalidStreamTarget
            | K::ForbiddenStreamTarget
            // The state `tor-local`, and `tor-obsolete`.
            | K::LocalResourceAlreadyInUse
            | K::LocalResourceExhausted
            | K::FsPermissions
            | K::PersistentStateAccessFailed
            | K::PersistentStateCorrupted
            | K::CacheAccessFailed
            | K::CacheCorrupted
            | K::KeystoreAccessFailed
            | K::KeystoreCorrupted
            | K::InvalidConfig
            | K::InvalidConfigTransition
            | K::NoHomeDirectory
            | K::FeatureDisabled
            | K::SoftwareDeprecated
    );
    !neutral && !praises_tor(error)
}

/// The exit, or an onion service's relays, answered: Tor works.
fn praises_tor(error: ErrorKind) -> bool {
    use ErrorKind as K;
    matches!(
        error,
        K::RemoteHostNotFound
            | K::RemoteHostResolutionFailed
            | K::RemoteConnectionRefused
            | K::RemoteNetworkFailed
            // An END cell that says so; what Arti measures itself is another kind.
            | K::ExitTimeout
            | K::RemoteStreamClosed
            | K::RemoteStreamReset
            | K::RemoteStreamError
            | K::ExitPolicyRejected
            | K::OnionServiceNotFound
            | K::OnionServiceNotRunning
    )
}

/// What is the matter; `None` if nobody waits, or it is too early to tell. The order is that of causes.
pub(crate) fn judge(signs: &Signs) -> Option<Trouble> {
    let waited = signs.waited?;
    if waited < PATIENCE {
        return None;
    }
    if signs.no_transport || signs.error == Some(ErrorKind::ExternalToolFailed) {
        return Some(Trouble::TransportFailed);
    }
    if signs.no_route {
        return Some(Trouble::NoNetwork);
    }
    if signs.before_release
        || signs.directory == Directory::Early
        || signs.thinks_clock
        || signs.error == Some(ErrorKind::ClockSkew)
    {
        return Some(Trouble::ClockWrong);
    }
    if signs.directory == Directory::Expired && !signs.silent {
        // One dead guard more or less does not matter then.
        return Some(Trouble::DirectoryExpired);
    }
    if signs.failed > 0 {
        return Some(match signs.directory {
            _ if signs.bridges => Trouble::BridgeDown,
            Directory::None => Trouble::TorUnreachable,
            _ => Trouble::GuardsDown,
        });
    }
    if signs.directory == Directory::Expired {
        return Some(Trouble::DirectoryExpired);
    }
    if signs.thinks_filtered || signs.no_handshake && waited >= START_PATIENCE {
        return Some(match signs.bridges {
            true => Trouble::BridgeDown,
            false => Trouble::TorBlocked,
        });
    }
    if signs.thinks_directory && signs.directory == Directory::None && waited >= START_PATIENCE {
        return Some(Trouble::DirectoryUnavailable);
    }
    if signs.bridges && signs.error == Some(ErrorKind::TorAccessFailed) {
        // A transport on this machine answers for a bridge that does not.
        return Some(Trouble::BridgeDown);
    }
    (waited >= NO_REASON && signs.failures >= MANY).then_some(Trouble::CircuitsFailing)
}

/// Whether those who ask Tor for something get it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<Mutex<Beat>>);

#[derive(Debug, Default)]
struct Beat {
    /// The first question since the last success.
    since: Option<Instant>,
    /// When somebody last asked, or stopped waiting.
    last: Option<Instant>,
    /// How many wait now.
    waiting: usize,
    /// Questions that failed through Tor's fault since the last success.
    failures: u32,
    /// How the last of these failed.
    error: Option<ErrorKind>,
}

/// Somebody waits for Tor, until this is dropped.
pub(crate) struct Waiting(Pulse);

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut beat = self.0.lock();
        beat.waiting = beat.waiting.saturating_sub(1);
        beat.last = Some(Instant::now());
    }
}

impl Pulse {
    /// Somebody asks.
    pub(crate) fn asked(&self) -> Waiting {
        let mut beat = self.lock();
        let now = Instant::now();
        beat.since.get_or_insert(now);
        beat.last = Some(now);
        beat.waiting += 1;
        Waiting(self.clone())
    }

    /// How it went.
    pub(crate) fn ended<T>(&self, outcome: &Result<T, ErrorKind>) {
        let mut beat = self.lock();
        match outcome {
            Err(error) if blames_tor(*error) => {
                beat.error = Some(*error);
                beat.failures = beat.failures.saturating_add(1);
            }
            Err(error) if !praises_tor(*error) => {}
            _ => {
                *beat = Beat {
                    waiting: beat.waiting,
                    last: beat.last,
                    ..Beat::default()
                }
            }
        }
    }

    /// Forgets a question that failed, if nobody has asked again for [`GIVEN_UP`]: who asked does not want it any more.
    pub(crate) fn forget(&self, now: Instant) {
        let mut beat = self.lock();
        let quiet = |last: Instant| now.saturating_duration_since(last) >= GIVEN_UP;
        if beat.waiting == 0 && beat.last.is_some_and(quiet) {
            *beat = Beat::default();
        }
    }

    /// How long somebody has waited for a success, how often that failed, and how it did the last time.
    pub(crate) fn read(&self) -> (Option<Duration>, u32, Option<ErrorKind>) {
        let beat = self.lock();
        let waited = beat.since.map(|since| since.elapsed());
        (waited, beat.failures, beat.error)
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Signs {
        Signs {
            waited: Some(PATIENCE),
            directory: Directory::Timely,
            ..Signs::default()
        }
    }

    #[test]
    fn nobody_waits_nothing_is_wrong() {
        let idle = Signs {
            waited: None,
            failed: 9,
            no_route: true,
            directory: Directory::Expired,
            ..Signs::default()
        };
        assert_eq!(judge(&idle), None);
        assert_eq!(
            judge(&waiting()),
            None,
            "and waiting alone is no trouble yet"
        );
        let early = Signs {
            waited: Some(PATIENCE / 2),
            failed: 9,
            ..waiting()
        };
        assert_eq!(judge(&early), None);
    }

    #[test]
    fn each_sign_has_its_trouble() {
        let cases = [
            (
                Signs {
                    no_route: true,
                    failed: 3,
                    ..waiting()
                },
                Trouble::NoNetwork,
            ),
            (
                Signs {
                    failed: 1,
                    ..waiting()
                },
                Trouble::GuardsDown,
            ),
            (
                Signs {
                    failed: 1,
                    directory: Directory::None,
                    ..waiting()
                },
                Trouble::TorUnreachable,
            ),
            (
                Signs {
                    failed: 1,
                    bridges: true,
                    ..waiting()
                },
                Trouble::BridgeDown,
            ),
            (
                Signs {
                    bridges: true,
                    error: Some(ErrorKind::TorAccessFailed),
                    ..waiting()
                },
                Trouble::BridgeDown,
            ),
            (
                Signs {
                    error: Some(ErrorKind::ExternalToolFailed),
                    ..waiting()
                },
                Trouble::TransportFailed,
            ),
            (
                Signs {
                    directory: Directory::Expired,
                    ..waiting()
                },
                Trouble::DirectoryExpired,
            ),
            (
                Signs {
                    directory: Directory::Early,
                    failed: 2,
                    ..waiting()
                },
                Trouble::ClockWrong,
            ),
            (
                Signs {
                    before_release: true,
                    ..waiting()
                },
                Trouble::ClockWrong,
            ),
            (
                Signs {
                    thinks_clock: true,
                    failed: 2,
                    ..waiting()
                },
                Trouble::ClockWrong,
            ),
            (
                Signs {
                    thinks_filtered: true,
                    ..waiting()
                },
                Trouble::TorBlocked,
            ),
            (
                Signs {
                    waited: Some(START_PATIENCE),
                    thinks_directory: true,
                    directory: Directory::None,
                    ..waiting()
                },
                Trouble::DirectoryUnavailable,
            ),
            (
                Signs {
                    no_transport: true,
                    ..waiting()
                },
                Trouble::TransportFailed,
            ),
            (
                Signs {
                    waited: Some(NO_REASON),
                    failures: MANY,
                    error: Some(ErrorKind::TorNetworkTimeout),
                    ..waiting()
                },
                Trouble::CircuitsFailing,
            ),
        ];
        for (signs, trouble) in cases {
            assert_eq!(judge(&signs), Some(trouble), "{signs:?}");
        }
    }

    #[test]
    fn every_name_is_documented() {
        let page = include_str!("../../docs/states.md");
        for trouble in [
            Trouble::NoNetwork,
            Trouble::TorUnreachable,
            Trouble::TorBlocked,
            Trouble::GuardsDown,
            Trouble::BridgeDown,
            Trouble::TransportFailed,
            Trouble::ClockWrong,
            Trouble::DirectoryExpired,
            Trouble::DirectoryUnavailable,
            Trouble::CircuitsFailing,
            Trouble::Obsolete,
        ] {
            let name = trouble.name();
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn one_failure_is_no_trouble_of_tors() {
        let once = Signs {
            waited: Some(NO_REASON),
            failures: 1,
            error: Some(ErrorKind::CircuitCollapse),
            ..waiting()
        };
        assert_eq!(judge(&once), None);
    }

    #[test]
    fn an_answer_from_an_exit_is_a_pulse() {
        let pulse = Pulse::default();
        let _waiting = pulse.asked();
        pulse.ended::<()>(&Err(ErrorKind::TorAccessFailed));
        let (waited, failures, error) = pulse.read();
        assert!(waited.is_some() && error == Some(ErrorKind::TorAccessFailed));
        assert_eq!(failures, 1);
        // Arti's own clock, and an exit's word (tor-error 0.47 has their names the other way round).
        pulse.ended::<()>(&Err(ErrorKind::RemoteNetworkTimeout));
        assert!(pulse.read().0.is_some(), "silence proves nothing");
        pulse.ended::<()>(&Err(ErrorKind::ExitTimeout));
        assert_eq!(pulse.read(), (None, 0, None));
        pulse.ended::<()>(&Err(ErrorKind::RemoteConnectionRefused));
        assert_eq!(pulse.read(), (None, 0, None));
    }

    #[test]
    fn who_gave_up_is_forgotten_and_who_waits_is_not() {
        let (pulse, later) = (Pulse::default(), Instant::now() + 2 * GIVEN_UP);
        let waiting = pulse.asked();
        pulse.ended::<()>(&Err(ErrorKind::CircuitCollapse));
        pulse.forget(later);
        assert!(pulse.read().0.is_some(), "it waits still");
        drop(waiting);
        pulse.forget(Instant::now());
        assert!(pulse.read().0.is_some(), "it may ask again soon");
        pulse.forget(later);
        assert_eq!(pulse.read(), (None, 0, None));
    }

    #[test]
    fn what_nobody_else_can_mend_is_tors() {
        for kind in [
            ErrorKind::CircuitRefused,
            ErrorKind::RelayTooBusy,
            ErrorKind::RelayIdMismatch,
            ErrorKind::TorProtocolViolation,
            ErrorKind::RemoteProtocolViolation,
            ErrorKind::Internal,
            ErrorKind::Other,
        ] {
            assert!(blames_tor(kind), "{kind:?}");
        }
    }
}
