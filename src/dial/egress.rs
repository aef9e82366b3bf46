//! Tor or direct: decided once, before anything is dialled.

use crate::code::{Code, Coded};
use crate::tor::TorSettings;

/// The permission to open direct connections to frontends.
///
/// Only [`Egress::decide`] makes one, and only when Tor was not asked for. Neither
/// `Clone` nor `Default` nor readable from a file: what holds it was handed it.
#[derive(Debug)]
pub struct DirectAllowed(());

/// How this process reaches frontends.
#[derive(Debug)]
pub enum Egress {
    /// Through Tor and nothing else.
    Tor(TorSettings),
    /// Straight over the Internet: frontends see this machine's address.
    Direct(DirectAllowed),
}

/// What flags, environment and files said. Consumed by the decision.
#[derive(Debug)]
pub struct EgressArgs {
    /// `--via-tor`, or `[tor] enabled = true`.
    pub via_tor: bool,
    /// Where Tor keeps its state, and so on.
    pub tor: TorSettings,
}

/// Why the arguments do not say clearly how to go out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// Somebody configured Tor and did not turn it on. Going out directly could be the leak they meant to prevent.
    #[error(
        "a Tor configuration is given, but Tor is off; add --via-tor (or enabled = true under [tor]), or remove it"
    )]
    TorConfiguredButOff,
    /// Arti must have somewhere to keep its guards.
    #[error("Tor needs a state directory; set state_dir")]
    NoStateDir,
}

impl Coded for EgressError {
    fn code(&self) -> Code {
        match self {
            Self::TorConfiguredButOff => Code::TorOff,
            Self::NoStateDir => Code::StateDir,
        }
    }
}

impl Egress {
    /// Decides. The Tor arm carries no [`DirectAllowed`], and there is no other source of one.
    pub fn decide(args: EgressArgs) -> Result<Self, EgressError> {
        match args {
            EgressArgs { via_tor: true, tor } if tor.state_dir.as_os_str().is_empty() => {
                Err(EgressError::NoStateDir)
            }
            EgressArgs { via_tor: true, tor } => Ok(Self::Tor(tor)),
            EgressArgs {
                via_tor: false,
                tor,
            } if tor.config.is_some() => Err(EgressError::TorConfiguredButOff),
            EgressArgs {
                via_tor: false,
                tor: _,
            } => Ok(Self::Direct(DirectAllowed(()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn args(via_tor: bool, state_dir: &str, config: Option<&str>) -> EgressArgs {
        let config = config.map(PathBuf::from);
        EgressArgs {
            via_tor,
            tor: TorSettings {
                state_dir: state_dir.into(),
                config,
            },
        }
    }

    #[test]
    fn tor_when_asked_direct_when_not() {
        assert!(matches!(
            Egress::decide(args(true, "/s", None)),
            Ok(Egress::Tor(_))
        ));
        assert!(matches!(
            Egress::decide(args(true, "/s", Some("arti.toml"))),
            Ok(Egress::Tor(_))
        ));
        assert!(matches!(
            Egress::decide(args(false, "/s", None)),
            Ok(Egress::Direct(_))
        ));
    }

    #[test]
    fn doubt_is_an_error() {
        let refused = |a| Egress::decide(a).expect_err("an error");
        assert_eq!(
            refused(args(false, "/s", Some("arti.toml"))),
            EgressError::TorConfiguredButOff
        );
        assert_eq!(refused(args(true, "", None)), EgressError::NoStateDir);
    }
}
