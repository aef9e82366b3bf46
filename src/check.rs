//! `kite check`: is there anything that shows the address of the machine?

use std::io::Write;

pub mod leaks;
pub mod node;
pub mod whole;

use crate::cli::CheckArgs;
use crate::code::{Code, Coded};
use crate::config::ConfigError;
use crate::tahoe::KiteError;
use crate::tahoe::dir::DirError;

/// Why something could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Nothing to look at.
    #[error("there is no node to check; add --node DIR with the directory of a Tahoe-LAFS node")]
    Nothing,
    /// The backend's configuration is of no use.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's directory is of no use.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// They do not belong together.
    #[error(transparent)]
    Kite(#[from] KiteError),
    /// A backend could not be watched, or did not show enough.
    #[error(transparent)]
    Leaks(#[from] leaks::LeaksError),
    /// Nobody reads the answer.
    #[error("cannot write the findings: {0}; see where the output goes")]
    Output(#[from] std::io::Error),
}

impl Coded for CheckError {
    fn code(&self) -> Code {
        match self {
            Self::Nothing => Code::NothingToDo,
            Self::Config(e) => e.code(),
            Self::Dir(e) => e.code(),
            Self::Kite(e) => e.code(),
            Self::Leaks(e) => e.code(),
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

/// Checks what the flags name, and writes what it finds. True if nothing leaks and nothing is broken.
pub fn run(args: &CheckArgs, out: &mut impl Write) -> Result<bool, CheckError> {
    if args.leaks {
        return leaks::run(args, out);
    }
    let dir = args.node.as_deref().ok_or(CheckError::Nothing)?;
    node::run(dir, args.config.as_deref(), out)
}
