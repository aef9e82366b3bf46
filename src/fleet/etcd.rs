//! A fleet's book of who flies what, kept in etcd: one lease for each frontend, under which stands what it flies; and a watch,
//! by which each frontend knows what all others fly without asking.
//!
//! No visitor waits for etcd: what is known of others is in memory, and what is to be told waits in the outbox. While etcd
//! cannot be reached nothing is forgotten.

use std::path::PathBuf;
use std::sync::Arc;

mod connection;
pub mod endpoint;
mod keeper;
mod mirror;
mod outbox;
pub(crate) mod record;
mod state;
pub(crate) mod wire;

pub use self::endpoint::Endpoint;
use self::keeper::Keeper;
pub use self::state::{State, View};
use super::member::Member;
use super::{Fleet, Host, Inside};
use crate::code::{Code, Coded};
use crate::dial::DialError;
use crate::dial::etcd::EtcdDialer;
use crate::kite::Secret;
use crate::tls::TlsError;
use crate::tls::{FileError, Identity, PrivateClient};

/// Where etcd is, and how it is spoken with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// At least one. If one does not answer it is the next one's turn.
    pub endpoints: Vec<Endpoint>,
    /// Whose certificates are believed. Without it, nobody's: there is no https then.
    pub ca: Option<PathBuf>,
    /// By which this frontend proves itself: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Who this frontend is to etcd, if that wants to know.
    pub login: Option<Login>,
    /// What all keys begin with, without a slash at its end.
    pub prefix: String,
}

impl Settings {
    /// What is read at the start, but for the password.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(own)
    }
}

/// A user of etcd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// And what proves it.
    pub password: Secret,
}

/// An etcd that can be spoken with: what belongs to it on this machine has been read.
pub struct Etcd {
    settings: Settings,
    dialer: EtcdDialer,
    state: Arc<State>,
}

impl Etcd {
    /// Reads certificates and keys.
    pub fn new(settings: Settings) -> Result<Self, FileError> {
        let own = settings.identity.as_ref();
        let identity = own.map(|(cert, key)| Identity { cert, key });
        let tls = PrivateClient::new(settings.ca.as_deref(), identity)?;
        Ok(Self {
            dialer: EtcdDialer::new(Inside(()), tls),
            settings,
            state: Arc::default(),
        })
    }

    /// How it stands with it.
    pub fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Keeps what flies here in etcd and what flies elsewhere in the fleet's map, until `over`; then says good-bye. `me` is how
    /// the others are to know this frontend.
    pub async fn keep(
        self,
        fleet: Arc<Fleet>,
        host: Arc<dyn Host>,
        me: &Member,
        over: impl Future<Output = ()>,
    ) {
        let keeper = Keeper::new(self.settings, self.dialer, fleet, host, self.state, me);
        keeper.run(over).await;
    }
}

/// Why etcd does not do what it was asked. Holds no address: say which it was when reporting it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No connection.
    #[error("{0}")]
    Dial(DialError),
    /// It, or this frontend, could not prove what it is.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// Too slow.
    #[error("it did not answer in time")]
    TimedOut,
    /// The connection ended.
    #[error("the connection ended")]
    Closed,
    /// It has lost the others of its cluster.
    #[error("its cluster has no leader")]
    NoLeader,
    /// Its database has reached its quota.
    #[error("its database is full, and takes nothing new")]
    Full,
    /// Our lease is over.
    #[error("the lease is over")]
    LeaseGone,
    /// Our token is over, or there is none and it wants one.
    #[error("it wants a user and a password")]
    TokenGone,
    /// It has users, and takes the name in our certificate for one, which its HTTP interface does not do.
    #[error("it has users, and this frontend's certificate has a name of its own (CommonName)")]
    NamedCertificate,
    /// It asks nobody who he is.
    #[error("it knows no users")]
    NoUsers,
    /// It knows us, and this is not ours to do.
    #[error("it says: {0}")]
    Forbidden(String),
    /// What is asked for has been forgotten.
    #[error("it has forgotten what was asked for")]
    Compacted,
    /// It says no for another reason.
    #[error("it says: {0}")]
    Refused(String),
    /// Whatever answers there has no such interface.
    #[error("what answers is no etcd of version 3.4 or later (status {0})")]
    NoGateway(u16),
    /// An answer that cannot be read.
    #[error("its answer cannot be understood")]
    Gibberish,
    /// An answer without an end.
    #[error("its answer is too long")]
    TooLong,
}

impl Trouble {
    fn of_dial(error: DialError) -> Self {
        match error {
            DialError::Tls(TlsError::BadCertificate { reason }) => {
                Self::Tls(format!("its certificate was refused: {reason}"))
            }
            DialError::Tls(e) => Self::Tls(e.to_string()),
            DialError::Socket(std::io::ErrorKind::PermissionDenied) => Self::Tls(
                "plain http is for an etcd on this machine, and the name leads elsewhere".into(),
            ),
            other => Self::Dial(other),
        }
    }

    fn of_http(error: hyper::Error) -> Self {
        match error.is_parse() {
            true => Self::Gibberish,
            false => Self::Closed,
        }
    }

    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Dial(_) | Self::TimedOut | Self::Closed | Self::NoLeader => {
                "check that etcd runs, and the network between; kite tries again"
            }
            Self::Tls(_) => {
                "check `ca`, `cert` and `key` in [fleet.etcd], and the names in etcd's certificate"
            }
            Self::NamedCertificate => {
                "issue `cert` in [fleet.etcd] without a CommonName, and say by `user` and `password_file` who this frontend is"
            }
            Self::Full => {
                "compact and defragment etcd, then `etcdctl alarm disarm`; or raise its --quota-backend-bytes"
            }
            Self::TokenGone | Self::Forbidden(_) => {
                "check `user` and `password_file` in [fleet.etcd], and what etcd allows this user below the prefix"
            }
            Self::LeaseGone | Self::Compacted | Self::NoUsers => {
                "nothing is to be done; kite begins anew"
            }
            Self::Refused(_) | Self::Gibberish | Self::TooLong => {
                "look at etcd's own log; kite tries again"
            }
            Self::NoGateway(_) => {
                "check `endpoints` in [fleet.etcd]; etcd's JSON gateway must be on, as it is unless told otherwise"
            }
        }
    }
}

impl Coded for Trouble {
    fn code(&self) -> Code {
        match self {
            Self::Dial(_) | Self::TimedOut | Self::Closed | Self::NoLeader => Code::EtcdLost,
            _ => Code::EtcdRefuses,
        }
    }
}
