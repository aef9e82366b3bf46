//! Where configuration is, unless said otherwise.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{ConfigError, backend_state_dir, frontend_state_dir, problem};
use crate::cli::{BackendArgs, FrontendArgs};
use crate::code::Code;
use crate::observe::status::Role;

/// The backend's file.
pub const BACKEND: &str = "backend.toml";
/// The frontend's file.
pub const FRONTEND: &str = "frontend.toml";

/// The directory: systemd's ConfigurationDirectory; else root's is /etc/kite, and others have one below
/// $XDG_CONFIG_HOME or ~/.config. `None` if there is no home.
pub fn directory() -> Option<PathBuf> {
    // The owner of a process' own directory is who it runs as.
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    of(root, |name| std::env::var_os(name).map(PathBuf::from))
}

fn of(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    if let Some(dir) = absolute("CONFIGURATION_DIRECTORY") {
        return Some(dir);
    }
    if root {
        return Some("/etc/kite".into());
    }
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|base| base.join("kite"))
}

/// A backend for which nothing was said takes its usual file. False if there is none, either.
pub fn settle_backend(args: &mut BackendArgs) -> bool {
    if args.config.is_some() || !args.frontend.is_empty() || !args.services.is_empty() {
        return true;
    }
    args.config = usual(BACKEND);
    args.config.is_some()
}

/// The same for a frontend.
pub fn settle_frontend(args: &mut FrontendArgs) -> bool {
    if args.config.is_some() || !args.listen.is_empty() || !args.domain.is_empty() {
        return true;
    }
    args.config = usual(FRONTEND);
    args.config.is_some()
}

/// The usual file of a frontend for whose kites something is to be done, unless it was said which it is.
pub fn settle_kites(config: &mut Option<PathBuf>, state_dir: Option<&Path>) {
    if config.is_none() && state_dir.is_none() {
        *config = usual(FRONTEND);
    }
}

/// The state directories in which this user's kites are to be found: as was said, or as the usual file of each role says, or
/// the usual one.
pub fn state_dirs(given: Option<&Path>) -> Result<[(Role, PathBuf); 2], ConfigError> {
    let backend = backend_state_dir(usual(BACKEND).as_deref(), given)?;
    let frontend = frontend_state_dir(usual(FRONTEND).as_deref(), given)?;
    Ok([(Role::Backend, backend), (Role::Frontend, frontend)])
}

/// What to do where there is no configuration and nobody to be asked.
pub fn nowhere(role: &str, name: &str) -> ConfigError {
    let place = directory().map_or_else(|| name.into(), |dir| dir.join(name));
    problem(
        Code::NothingToDo,
        &place.display().to_string(),
        "there is no configuration, here or on the command line",
        format!(
            "write this file, as README.md shows, or give --config FILE; or run `kite {role}` on a terminal, where it \
             asks, and writes the file"
        ),
    )
}

/// The file of this name in its usual place, if it is there.
pub fn usual(name: &str) -> Option<PathBuf> {
    directory()
        .map(|dir| dir.join(name))
        .filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_place() {
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/bob"));
        let both = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(PathBuf::from("/conf")),
            name => home(name),
        };
        let relative = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(PathBuf::from("conf")),
            name => home(name),
        };
        let at = |path: &str| Some(PathBuf::from(path));
        let systemd = |name: &str| (name == "CONFIGURATION_DIRECTORY").then(|| "/etc/other".into());
        assert_eq!(of(true, systemd), at("/etc/other"));
        assert_eq!(of(true, both), at("/etc/kite"));
        assert_eq!(of(false, both), at("/conf/kite"));
        assert_eq!(of(false, home), at("/home/bob/.config/kite"));
        assert_eq!(of(false, relative), at("/home/bob/.config/kite"));
        assert_eq!(of(false, |_| None), None);
    }
}
