//! Files by path, and on newer kernels: devices, signals, abstract and other Unix sockets.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

use super::{Plan, Report};

/// The newest that the crate knows. On an older kernel the crate asks for less, and [`LACKS`] says what.
const ABI_KNOWN: ABI = ABI::V10;

/// What was seen to be read (by strace) once Tor runs: how much memory there is, of which Arti takes its
/// share, and randomness, by SQLite.
const SYSTEM: [&str; 4] = [
    "/proc/meminfo",
    "/proc/self/cgroup",
    "/sys/fs/cgroup",
    "/dev/urandom",
];

/// Where journald listens, if log lines go to it through a socket that is open already.
const JOURNAL: &str = "/run/systemd/journal";

/// What looking up a name reads: the system's settings, each of which may be replaced by a new file at any time. That is all
/// that this user may read of /etc, and the places that lead there.
const RESOLVER: [&str; 5] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
];

/// What a program of the system needs to start.
const LIBRARIES: [&str; 5] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
];

/// What an older kernel leaves open: below this ABI, what, the Linux that has it, and where it matters.
type Lack = (i32, &'static str, &'static str, fn(&Plan) -> bool);

const LACKS: [Lack; 5] = [
    (
        3,
        "files elsewhere can be emptied (not read)",
        "6.2",
        |_| true,
    ),
    (
        4,
        "a pluggable transport can listen on any port",
        "6.7",
        |plan| !plan.programs.is_empty(),
    ),
    (5, "open devices take any command", "6.10", |_| true),
    (
        6,
        "other processes of this user can be signalled",
        "6.12",
        |_| true,
    ),
    (
        9,
        "Unix sockets elsewhere can be dialled, if there is a unix: origin",
        "7.1",
        |plan| !plan.sockets.is_empty(),
    ),
];

/// Takes away all files but the plan's.
pub(super) fn enter(plan: &Plan, report: &mut Report) {
    if !plan.helpers.is_empty() {
        report.closed.push(format!(
            "no Landlock: {} may need any file, and would be kept from it",
            listed(plan.helpers.iter())
        ));
        return;
    }
    match restrict(plan) {
        Ok((RulesetStatus::NotEnforced, _)) => report.missing.push(
            "Landlock: not in this kernel, or not switched on (Linux 5.13 has it; lsm=landlock,…); \
             files outside the state directory are not taken away"
                .to_owned(),
        ),
        Ok((_, abi)) => {
            let programs: Vec<_> = plan.programs.iter().chain(&plan.own_program).collect();
            let programs = match programs.as_slice() {
                [] => "no program can be started".to_owned(),
                some => format!(
                    "no program can be started but {}",
                    listed(some.iter().copied())
                ),
            };
            let read = match plan.files.as_slice() {
                [] => String::new(),
                some => format!(", and to read in {}", listed(some.iter())),
            };
            report.closed.push(format!(
                "Landlock (ABI {abi}): no file can be opened but in {}{read}; {programs}",
                listed(tops(&plan.directories))
            ));
            for (since, what, linux, matters) in LACKS {
                if abi < since && matters(plan) {
                    report.missing.push(format!("Landlock {since}: {what} (Linux {linux} mends it)"));
                }
            }
        }
        Err(e) => report.missing.push(format!(
            "Landlock: {e}; files outside the state directory are not taken away"
        )),
    }
}

fn listed<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> String {
    let shown: Vec<_> = paths.map(|p| p.display().to_string()).collect();
    shown.join(", ")
}

/// Those that do not lie in another.
fn tops(dirs: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    let outer = |dir: &PathBuf| !dirs.iter().any(|d| d != dir && dir.starts_with(d));
    dirs.iter().filter(move |dir| outer(dir))
}

/// The status, and the ABI of this kernel as far as it is known.
fn restrict(plan: &Plan) -> Result<(RulesetStatus, i32), RulesetError> {
    let all = AccessFs::from_all(ABI_KNOWN);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let read_dir = read | AccessFs::ReadDir;
    let datagrams = match plan.datagrams || plan.names {
        true => AccessNet::BindUdp | AccessNet::ConnectSendUdp,
        false => BitFlags::EMPTY,
    };
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        // Not TCP connections: by port alone they cannot be told apart.
        .handle_access(AccessNet::from_all(ABI_KNOWN) & !(datagrams | AccessNet::ConnectTcp))?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(&plan.directories, all & !never))?
        .add_rules(path_beneath_rules(&plan.files, read))?
        .add_rules(path_beneath_rules(SYSTEM, read_dir))?
        // The directory: a socket is another file each time its server starts.
        .add_rules(path_beneath_rules(
            plan.sockets.iter().filter_map(|path| path.parent()),
            AccessFs::ResolveUnix,
        ))?
        .add_rules(path_beneath_rules([JOURNAL], AccessFs::ResolveUnix))?;
    for port in &plan.ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    rules = rules.add_rules(path_beneath_rules(
        plan.places.iter().filter_map(|path| path.parent()),
        AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::ResolveUnix,
    ))?;
    if plan.names {
        rules = rules
            .add_rules(path_beneath_rules(RESOLVER, read | AccessFs::ResolveUnix))?
            // The C library loads a part of itself for it.
            .add_rules(path_beneath_rules(LIBRARIES, read_dir))?;
    }
    if plan.starts_programs() {
        let beside = plan.own_program.iter().filter_map(|path| path.parent());
        rules = rules
            .add_rules(path_beneath_rules(&plan.programs, read | AccessFs::Execute))?
            .add_rules(path_beneath_rules(beside, read | AccessFs::Execute))?
            .add_rules(path_beneath_rules(LIBRARIES, read_dir | AccessFs::Execute))?
            .add_rules(path_beneath_rules(
                ["/dev/null"],
                read | AccessFs::WriteFile,
            ))?;
        if !plan.programs.is_empty() {
            // "Any free port", which is what a transport asks for.
            rules = rules.add_rule(NetPort::new(0, AccessNet::BindTcp))?;
        }
    }
    let status = rules.restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => kernel_abi.unwrap_or(effective_abi as i32),
        _ => 0,
    };
    Ok((status.ruleset, abi))
}
