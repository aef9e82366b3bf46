//! `secret_file = "credential:NAME"`: a secret that a service manager hands over, as systemd does for a unit with
//! `LoadCredential=`. It lies in a directory that this service alone can read, and nowhere that its user could.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{Code, ConfigError, Result};

/// What such a `secret_file` begins with.
const PREFIX: &str = "credential:";
/// The variable that holds the directory.
pub(crate) const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The file that is meant, or `None` if this is the path of an ordinary one.
pub(super) fn file(place: &str, path: &Path, directory: Option<&OsStr>) -> Result<Option<PathBuf>> {
    let Some(name) = path.to_str().and_then(|p| p.strip_prefix(PREFIX)) else {
        return Ok(None);
    };
    let place = format!("{place}: {}", path.display());
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(ConfigError::new(
            Code::SecretMissing,
            place,
            "that is no name of a credential",
            "write credential:NAME, with the name that LoadCredential= in the unit gives it",
        ));
    }
    let Some(directory) = directory.map(Path::new).filter(|d| d.is_absolute()) else {
        return Err(ConfigError::new(
            Code::SecretMissing,
            place,
            format!("nobody has handed over credentials: {DIRECTORY} is not set"),
            "start the service (systemctl start kite-backend, or kite-frontend), or name a file instead",
        ));
    };
    Ok(Some(directory.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, directory: Option<&str>) -> std::result::Result<Option<PathBuf>, String> {
        file("secret_file", Path::new(path), directory.map(OsStr::new)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_credential_is_in_the_managers_directory() {
        let dir = Some("/run/credentials/kite-backend.service");
        let path = PathBuf::from("/run/credentials/kite-backend.service/secrets_bob.secret");
        assert_eq!(found("credential:secrets_bob.secret", dir), Ok(Some(path)));
        assert_eq!(found("bob.secret", dir), Ok(None));
        assert_eq!(found("/etc/credential:bob", dir), Ok(None));
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        for bad in [
            "credential:",
            "credential:..",
            "credential:.",
            "credential:../../etc/shadow",
            "credential:/etc/shadow",
        ] {
            assert!(
                found(bad, Some("/run/credentials"))
                    .unwrap_err()
                    .contains("no name"),
                "{bad}"
            );
        }
    }

    #[test]
    fn without_a_manager_it_is_said_what_to_do() {
        for directory in [None, Some(""), Some("relative")] {
            let said = found("credential:bob", directory).unwrap_err();
            assert!(
                said.contains(DIRECTORY) && said.contains("systemctl start"),
                "{said}"
            );
        }
    }
}
