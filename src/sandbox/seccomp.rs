//! System calls that are refused.
//!
//! A list of what is denied, not of what is allowed. Which calls the C library, Tokio and SQLite make differs
//! between machines and from one year to the next, and a node must not die of an update; what leaks or
//! leads around these walls is a short list and does not. Its weakness, calls that did not exist when it was
//! written, is closed by number: from [`FIRST_UNKNOWN`] on the kernel seems not to have them.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};

use super::{Plan, Report};

/// All that is a way around: refused whatever the arguments.
const DENIED: &[i64] = &[
    // Requests to the kernel that no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Other processes: their memory and their open files.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Code in the kernel, or a wide door to it.
    libc::SYS_bpf,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Keys: the kernel starts a program that looks up names (dns_resolver).
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Other networks and other file trees.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The machine.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_personality,
];

/// The same, where only Intel's machines have them.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// Refused unless programs are to be started, which Landlock then picks.
const PROGRAMS: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];

/// A process in a new namespace is in another network.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Linux 6.17 ends at 469. Newer calls, and those of the x32 ABI, which begin at 2^30, are answered as by
/// a kernel without them; a C library then falls back to older ones.
const FIRST_UNKNOWN: u32 = 470;

/// Ways to put words into a terminal, which the shell behind it runs. (Each C library has a type of its own for them.)
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// The part of a socket's type that is not a flag.
const SOCK_TYPE_MASK: u64 = 0xf;

/// Takes away what [`DENIED`] lists, and sockets that are not for streams.
pub(super) fn enter(plan: &Plan, report: &mut Report) {
    let apply = |program: BpfProgram| seccompiler::apply_filter(&program);
    match denied(plan).and_then(|program| apply(unknown()).and_then(|()| apply(program))) {
        Ok(()) => {
            let sockets = match Sockets::of(plan) {
                None => "",
                Some(s) if s.names => "no raw socket, ",
                Some(s) if s.datagrams => "no raw or netlink socket, ",
                Some(_) => "no datagram, raw or netlink socket, ",
            };
            let unix = match Sockets::of(plan) {
                Some(s) if !s.unix => "no Unix socket, ",
                _ => "",
            };
            let listener = if plan.listens() {
                ""
            } else {
                "no new listener, "
            };
            let programs = match plan.starts_programs() {
                false => "no program started, ",
                true => "",
            };
            report.closed.push(format!(
                "seccomp: {sockets}{unix}{listener}{programs}no ptrace, io_uring, BPF, keys, modules or namespaces"
            ));
        }
        Err(e) => report.missing.push(format!(
            "seccomp: {e}; datagrams, listeners and programs are not taken away"
        )),
    }
}

/// The list, and the rules for arguments. Another ABI's call (32-bit) ends the process: its numbers mean other things.
fn denied(plan: &Plan) -> Result<BpfProgram, Error> {
    let sockets = Sockets::of(plan);
    let unless =
        |open: bool, calls: &'static [i64]| -> &'static [i64] { if open { &[] } else { calls } };
    // A datagram socket is bound before it asks. Landlock goes on to refuse TCP ports.
    let binds = plan.listens() || sockets.as_ref().is_some_and(|s| s.datagrams);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        DENIED,
        DENIED_HERE,
        unless(plan.starts_programs(), PROGRAMS),
        unless(plan.listens(), &[libc::SYS_listen]),
        unless(binds, &[libc::SYS_bind]),
    ]
    .into_iter()
    .flatten()
    .map(|&call| (call, vec![]))
    .collect();
    if let Some(sockets) = sockets {
        rules.insert(libc::SYS_socket, sockets.refused()?);
    }
    let namespace = |&flag: &i32| {
        let flag = flag as u64;
        all_of(&[(0, SeccompCmpOp::MaskedEq(flag), flag)])
    };
    rules.insert(
        libc::SYS_clone,
        NAMESPACES.iter().map(namespace).collect::<Result<_, _>>()?,
    );
    let typing = |call: u64| all_of(&[(1, SeccompCmpOp::Eq, call)]);
    rules.insert(libc::SYS_ioctl, vec![typing(TIOCSTI)?, typing(TIOCLINUX)?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

/// Which sockets can be made, besides those for TCP.
struct Sockets {
    /// Streams of this machine.
    unix: bool,
    /// And its datagrams, by which a supervisor and the journal are told things.
    words: bool,
    /// Datagrams of the Internet.
    datagrams: bool,
    /// What the C library asks before it sorts addresses: which ones this machine has.
    names: bool,
}

impl Sockets {
    /// None if any can be made.
    fn of(plan: &Plan) -> Option<Self> {
        plan.helpers.is_empty().then(|| Self {
            unix: !plan.sockets.is_empty()
                || !plan.places.is_empty()
                || plan.names
                || plan.own_program.is_some(),
            words: plan.own_program.is_some(),
            datagrams: plan.datagrams || plan.names,
            names: plan.names,
        })
    }

    /// Another family than the Internet's, another type than streams, another protocol than TCP. Others carry datagrams,
    /// or TCP that Landlock does not know for such (MPTCP, SMC).
    fn refused(&self) -> Result<Vec<SeccompRule>, Error> {
        let not = |arg, value: i32| (arg, SeccompCmpOp::Ne, value as u64);
        let kind = |value: i32| (1, SeccompCmpOp::MaskedEq(SOCK_TYPE_MASK), value as u64);
        let mut families = vec![not(0, libc::AF_INET), not(0, libc::AF_INET6)];
        let mut protocols = vec![not(2, 0), not(2, libc::IPPROTO_TCP)];
        if self.unix {
            families.push(not(0, libc::AF_UNIX));
        }
        if self.names {
            families.push(not(0, libc::AF_NETLINK));
        }
        if self.datagrams {
            protocols.push(not(2, libc::IPPROTO_UDP));
        }
        let mut rules = vec![all_of(&families)?, all_of(&protocols)?];
        for value in (0..=SOCK_TYPE_MASK as i32).filter(|&kind| kind != libc::SOCK_STREAM) {
            let mut rule = vec![kind(value)];
            match value {
                libc::SOCK_DGRAM => {
                    if self.datagrams {
                        rule.extend([not(0, libc::AF_INET), not(0, libc::AF_INET6)]);
                    }
                    if self.words {
                        rule.push(not(0, libc::AF_UNIX));
                    }
                }
                libc::SOCK_RAW if self.names => rule.push(not(0, libc::AF_NETLINK)),
                _ => {}
            }
            rules.push(all_of(&rule)?);
        }
        if self.names {
            // The family of netlink, and no other of its languages than the one of routes.
            let netlink = (0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64);
            rules.push(all_of(&[netlink, not(2, libc::NETLINK_ROUTE)])?);
        }
        Ok(rules)
    }
}

/// Arguments that the kernel takes as 32 bits are compared as 32 bits, else the upper half would be a way around.
fn all_of(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, Error> {
    let condition = |(arg, op, value): &(u8, SeccompCmpOp, u64)| {
        SeccompCondition::new(*arg, SeccompCmpArgLen::Dword, op.clone(), *value)
    };
    let conditions = conditions.iter().map(condition).collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

/// "There is no such call" for those of tomorrow. And for `clone3`, whose flags lie where no filter can
/// look; all C libraries do without it then.
fn unknown() -> BpfProgram {
    let step = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        // The number of the call is the first word.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
            1,
            0,
            FIRST_UNKNOWN,
        ),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_clone3 as u32,
        ),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of a call's number.
    fn answer(program: &BpfProgram, number: u32) -> u32 {
        let mut at = 0;
        loop {
            let step = &program[at];
            let jump = |yes| usize::from(if yes { step.jt } else { step.jf });
            at += 1 + match u32::from(step.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => 0,
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    jump(number >= step.k)
                }
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    jump(number == step.k)
                }
                code if code == libc::BPF_RET | libc::BPF_K => return step.k,
                code => panic!("{code}"),
            };
        }
    }

    #[test]
    fn calls_of_tomorrow_do_not_exist() {
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        let x32 = 1 << 30;
        for number in [
            FIRST_UNKNOWN,
            999,
            x32,
            x32 | libc::SYS_socket as u32,
            u32::MAX,
        ] {
            assert_eq!(answer(&unknown(), number), absent, "{number}");
        }
        assert_eq!(answer(&unknown(), libc::SYS_clone3 as u32), absent);
        for number in [
            0,
            libc::SYS_clone as u32,
            libc::SYS_socket as u32,
            FIRST_UNKNOWN - 1,
        ] {
            assert_eq!(
                answer(&unknown(), number),
                libc::SECCOMP_RET_ALLOW,
                "{number}"
            );
        }
    }

    #[test]
    fn the_filters_are_within_the_kernels_limit() {
        for plan in [
            Plan::default(),
            Plan {
                names: true,
                ..Plan::default()
            },
            Plan {
                helpers: vec!["/usr/local/bin/who".into()],
                ..Plan::default()
            },
            Plan {
                sockets: vec!["/run/origin".into()],
                programs: vec!["/usr/bin/obfs4proxy".into()],
                ..Plan::default()
            },
        ] {
            let steps = denied(&plan).expect("a filter").len();
            assert!((100..4096).contains(&steps), "{steps}");
        }
    }
}
