//! What a frontend keeps of its rights and of this machine when it is ready to run: everything else is given up.

use std::path::{Path, PathBuf};

use super::{RunError, needs};
use crate::code::Code;
use crate::config::{FrontendConfig, credential};
use crate::fleet::etcd::Endpoint;
use crate::frontend::authority::Source;
use crate::listen::LocalAddr;
use crate::privilege::{self, User};
use crate::sandbox::{self, Plan, Report};
use crate::tor::TorSettings;

/// Where the supervisor listens, which the one that takes this frontend's place is to tell that it has.
const SUPERVISOR: &str = "NOTIFY_SOCKET";
/// Who the users are: the one that takes this frontend's place looks whether it is who it is to be.
const USERS: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// Who is asked about names, where the configuration does not say.
const RESOLVER: &str = "/etc/resolv.conf";

/// What a frontend needs, and the one that takes its place, which lives within the same walls. It dials nobody but those that
/// its configuration has it ask.
pub(super) fn of_frontend(config: &FrontendConfig) -> Result<Plan, RunError> {
    let onion = config.onion.enabled.then(|| TorSettings {
        state_dir: config.state_dir.clone(),
        config: config.onion.config.clone(),
    });
    let needs = onion.as_ref().map(needs).transpose()?;
    let etcd = || config.fleet.iter().flat_map(|fleet| &fleet.etcd);
    let mut plan = Plan {
        directories: vec![config.state_dir.clone()],
        names: config.acme.is_some()
            || etcd().any(|e| e.settings.endpoints.iter().any(Endpoint::is_name)),
        files: USERS.map(PathBuf::from).to_vec(),
        ports: config.listen.iter().map(|l| l.address.port()).collect(),
        // Without it there is no upgrade in place, and all else works.
        own_program: std::env::current_exe().ok(),
        ..Plan::default()
    };
    plan.sockets
        .extend(std::env::var_os(SUPERVISOR).map(PathBuf::from));
    plan.ports
        .extend(config.fleet.iter().map(|f| f.listen.port()));
    for place in [&config.local.metrics, &config.local.web] {
        match place {
            Some(LocalAddr::Tcp(address)) => plan.ports.push(address.port()),
            Some(LocalAddr::Unix(path)) => plan.places.push(path.clone()),
            None => {}
        }
    }
    for authority in &config.authorities {
        match &authority.source {
            Source::Program(program) => plan.helpers.push(program.clone()),
            Source::Dns { .. } => {
                plan.datagrams = true;
                plan.files.push(RESOLVER.into());
            }
            Source::Judge(_) => {}
        }
    }
    if let Some(needs) = needs {
        plan.directories.extend([needs.state_dir, needs.cache_dir]);
        plan.programs = needs.programs;
        plan.files.extend(onion.and_then(|onion| onion.config));
    }
    let certificates = config.certificates.iter().flat_map(|c| [&c.cert, &c.key]);
    let authorities = config.acme.iter().flat_map(|acme| &acme.ca_file);
    // Secrets of pagekite.py's files have names, and no files.
    let own = config.read_from.iter().filter(|path| path.exists());
    let read = certificates.chain(authorities).chain(own);
    let etcds = etcd().flat_map(|etcd| etcd.settings.files());
    let read = read.chain(&config.motd).chain(etcds);
    read.for_each(|path| may_change(path, &mut plan.files));
    let credentials = std::env::var_os(credential::DIRECTORY).map(PathBuf::from);
    plan.files.extend(credentials);
    Ok(plan)
}

/// A file that is read again when it has changed. Most programs write a new one and put it in the old one's place, so it is its
/// directory that stays; and that of what a symbolic link leads to, which certbot's certificates are.
fn may_change(path: &Path, files: &mut Vec<PathBuf>) {
    let places = [std::path::absolute(path), path.canonicalize()];
    for path in places.into_iter().flatten() {
        let open = match path.parent() {
            // The root is no place to open wide.
            Some(dir) if !path.is_dir() && dir.parent().is_some() => dir,
            _ => &path,
        };
        if !files.iter().any(|known| known == open) {
            files.push(open.to_owned());
        }
    }
}

/// Becomes whom the frontend is to be. The log says who that is.
pub(super) fn become_user(user: Option<&User>, config: &FrontendConfig) -> Result<(), RunError> {
    let dir = &config.state_dir;
    if let Some(user) = user {
        user.settle(dir)?;
        user.become_for_good()?;
        tracing::info!("the ports are open; from now on this is {user}");
    } else if config.user.is_none() && privilege::own_uid() == 0 {
        tracing::warn!(
            "[{}] this frontend goes on as root, without root's capabilities; add --user NAME, and give NAME the state \
             directory {}",
            Code::StaysRoot,
            dir.display()
        );
    }
    Ok(())
}

/// Gives up what root had, and what a service was given for its ports; then raises the walls. The log says which stand.
pub(super) fn enter(plan: &Plan) -> Report {
    let kept = privilege::drop_capabilities();
    let mut report = sandbox::enter(plan);
    if let Err(e) = kept {
        report
            .missing
            .push(format!("capabilities: {e}; they are not taken away"));
    }
    report.tell();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change_is_read_by_its_directory_and_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["live", "archive"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        std::fs::write(dir.join("archive/cert1.pem"), "").unwrap();
        std::os::unix::fs::symlink("../archive/cert1.pem", dir.join("live/cert.pem")).unwrap();
        let mut files = Vec::new();
        may_change(&dir.join("live/cert.pem"), &mut files);
        may_change(&dir.join("live/cert.pem"), &mut files);
        assert_eq!(files, [dir.join("live"), dir.join("archive")]);
        let opened = |path: &str| {
            let mut files = Vec::new();
            may_change(Path::new(path), &mut files);
            files
        };
        assert_eq!(opened("/kite.toml"), [Path::new("/kite.toml")]);
        assert_eq!(opened("kite.toml"), [std::env::current_dir().unwrap()]);
        // pagekite.py's files, named by their directory.
        assert_eq!(opened(dir.to_str().unwrap()), [dir]);
    }
}
