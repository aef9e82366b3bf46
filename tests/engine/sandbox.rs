//! What a process cannot do any more behind the walls. Each test has a thread of its own: the walls bind that one alone.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use kite::listen::Port;
use kite::sandbox::{self, Plan, Report};
use socket2::{Domain, Protocol, Socket, Type};

/// Runs on a thread behind the walls; gives what it gives.
fn within<T: Send>(plan: &Plan, test: impl FnOnce(&Report) -> T + Send) -> T {
    let run = || {
        let report = sandbox::enter(plan);
        let text = report.to_string();
        assert!(
            text.contains("seccomp: no") && text.contains("Landlock (ABI"),
            "these tests need Linux 5.13 with Landlock and seccomp: {text}"
        );
        test(&report)
    };
    thread::scope(|s| s.spawn(run).join().unwrap())
}

fn plan(dir: &Path) -> Plan {
    Plan {
        directories: vec![dir.join("state")],
        ..Plan::default()
    }
}

fn refused<T>(outcome: io::Result<T>, what: &str) {
    match outcome {
        Ok(_) => panic!("{what} succeeded"),
        // Landlock's word for moving something to where it would have other rights.
        Err(e) if e.kind() == ErrorKind::CrossesDevices => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{what}: {e}"),
    }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<Socket> {
    Socket::new(domain.into(), kind.into(), Some(protocol.into()))
}

#[test]
fn no_socket_but_for_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    within(&plan(dir.path()), |_| {
        refused(UdpSocket::bind("127.0.0.1:0"), "a datagram socket");
        refused(UdpSocket::bind("[::1]:0"), "a datagram socket over IPv6");
        refused(UnixDatagram::unbound(), "a Unix datagram socket");
        refused(
            UnixStream::connect(dir.path()),
            "a Unix socket, as to a resolver's daemon",
        );
        let (v4, packet, netlink, vsock) = (2, 17, 16, 40);
        let (stream, datagram, raw, seqpacket) = (1, 2, 3, 5);
        for (domain, kind, protocol, what) in [
            (v4, raw, 1, "a raw socket"),
            (packet, raw, 0, "a packet socket"),
            (packet, datagram, 0, "a packet socket without headers"),
            (netlink, raw, 0, "a netlink socket"),
            (vsock, stream, 0, "a socket to the hypervisor"),
            (
                v4,
                stream,
                262,
                "MPTCP, which Landlock does not know for TCP",
            ),
            (v4, stream, 132, "SCTP"),
            (v4, seqpacket, 132, "SCTP by packets"),
            (v4, datagram | 0o4000, 0, "a datagram socket with a flag"),
        ] {
            refused(socket(domain, kind, protocol), what);
        }
        // What Tor and the origin need.
        TcpStream::connect(at).unwrap();
        Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // Tokio's way to hear signals.
        UnixStream::pair().unwrap();
    });
}

#[test]
fn no_listener_but_the_one_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let port = Port::open("127.0.0.1:0".parse().unwrap()).unwrap();
    within(&plan(dir.path()), |_| {
        refused(TcpListener::bind("127.0.0.1:0"), "a listener");
        refused(
            UnixListener::bind(dir.path().join("state/s")),
            "a Unix listener",
        );
        let unbound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        refused(
            unbound.listen(1),
            "listening on a port that the kernel chooses",
        );
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = port.listener().unwrap();
            let at = listener.local_addr().unwrap();
            let (visitor, accepted) = tokio::join!(
                tokio::net::TcpStream::connect(at),
                kite::listen::accept(&listener)
            );
            assert_eq!(visitor.unwrap().local_addr().unwrap(), accepted.1);
        });
    });
}

#[test]
fn no_file_but_beneath_the_state_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, config) = (dir.path().join("secret"), dir.path().join("arti.toml"));
    fs::write(&secret, "x").unwrap();
    fs::write(&config, "y").unwrap();
    let state = dir.path().join("state");
    let plan = Plan {
        files: vec![config.clone()],
        ..plan(dir.path())
    };
    within(&plan, |_| {
        refused(fs::read(&secret), "reading a file elsewhere");
        refused(fs::write(&secret, ""), "writing a file elsewhere");
        refused(
            fs::File::create(dir.path().join("new")),
            "making a file elsewhere",
        );
        refused(fs::remove_file(&secret), "removing a file elsewhere");
        refused(
            fs::hard_link(&secret, state.join("link")),
            "linking a file to the inside",
        );
        refused(
            fs::rename(&secret, state.join("moved")),
            "moving a file to the inside",
        );
        refused(fs::read("/etc/resolv.conf"), "asking who resolves names");
        refused(fs::read_dir("/"), "listing the root");
        std::os::unix::fs::symlink(&secret, state.join("path")).unwrap();
        refused(
            fs::read(state.join("path")),
            "reading through a symbolic link",
        );
        refused(fs::write(&config, ""), "writing the configuration");
        assert_eq!(fs::read(&config).unwrap(), b"y");
        fs::create_dir(state.join("deep")).unwrap();
        fs::write(state.join("deep/file"), "z").unwrap();
        fs::rename(state.join("deep/file"), state.join("file")).unwrap();
        assert_eq!(fs::read(state.join("file")).unwrap(), b"z");
    });
    assert_eq!(fs::read(&secret).unwrap(), b"x");
}

#[test]
fn no_program_is_started() {
    let dir = tempfile::tempdir().unwrap();
    within(&plan(dir.path()), |_| {
        refused(
            Command::new("/bin/true").status(),
            "a program of the system",
        );
        let own = dir.path().join("state/own");
        fs::write(&own, "#!/bin/true\n").unwrap();
        let run = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&own, run).unwrap();
        refused(Command::new(&own).status(), "a program of one's own");
    });
}

#[test]
fn a_transport_is_started_and_no_other_program() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan {
        programs: vec!["/bin/cat".into()],
        ..plan(dir.path())
    };
    within(&plan, |_| {
        let echo = |program: &str, arg: &str| Command::new(program).arg(arg).output();
        let inside = dir.path().join("state/x");
        fs::write(&inside, "hello").unwrap();
        assert_eq!(
            echo("/bin/cat", inside.to_str().unwrap()).unwrap().stdout,
            b"hello"
        );
        let outside = echo("/bin/cat", "/etc/resolv.conf").unwrap();
        assert!(!outside.status.success(), "it reads no more than we do");
        refused(echo("/bin/true", ""), "another program");
        // It must listen for us, where the kernel likes.
        let free = Port::open("127.0.0.1:0".parse().unwrap()).unwrap();
        drop(free);
        refused(TcpListener::bind("127.0.0.1:9150"), "a port of its choice");
        refused(UdpSocket::bind("127.0.0.1:0"), "a datagram socket");
    });
}

#[test]
fn a_unix_origin_can_be_dialled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("origin");
    let origin = UnixListener::bind(&path).unwrap();
    let plan = Plan {
        sockets: vec![path.clone()],
        ..plan(dir.path())
    };
    within(&plan, |_| {
        UnixStream::connect(&path)
            .unwrap()
            .write_all(b"hello")
            .unwrap();
        refused(UnixDatagram::unbound(), "a Unix datagram socket");
    });
    let mut said = String::new();
    origin
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "hello");
}

#[test]
fn threads_are_bound_and_the_rest_of_the_process_is_not() {
    let dir = tempfile::tempdir().unwrap();
    within(&plan(dir.path()), |_| {
        let later = thread::spawn(|| UdpSocket::bind("127.0.0.1:0"));
        refused(
            later.join().unwrap(),
            "a datagram socket of a thread started later",
        );
    });
    UdpSocket::bind("127.0.0.1:0").unwrap();
}

// ------------------------------------------------------ a frontend's

#[test]
fn who_asks_the_dns_has_datagrams_and_nothing_else_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let plan = Plan {
        datagrams: true,
        ..plan(dir.path())
    };
    within(&plan, |_| {
        let asking = UdpSocket::bind("0.0.0.0:0").unwrap();
        asking
            .send_to(b"who?", server.local_addr().unwrap())
            .unwrap();
        refused(TcpListener::bind("127.0.0.1:0"), "a listener");
        refused(UnixDatagram::unbound(), "a Unix datagram socket");
        let (v4, netlink, packet) = (2, 16, 17);
        refused(socket(v4, 3, 17), "a raw socket of the datagrams' protocol");
        refused(socket(v4, 2, 1), "a socket to ping with");
        refused(socket(netlink, 3, 0), "a netlink socket");
        refused(socket(packet, 2, 0), "a packet socket");
        refused(fs::read("/etc/hosts"), "reading how names are looked up");
        refused(Command::new("/bin/true").status(), "a program");
    });
    let mut asked = [0; 8];
    assert_eq!(server.recv(&mut asked).unwrap(), 4);
}

#[test]
fn names_are_looked_up_and_nothing_else_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("secret");
    fs::write(&elsewhere, "x").unwrap();
    let plan = Plan {
        names: true,
        ..plan(dir.path())
    };
    within(&plan, |_| {
        #[allow(clippy::disallowed_methods, reason = "what is tried is the lookup")]
        let found = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 80)).unwrap();
        assert!(found.into_iter().all(|at| at.ip().is_loopback()));
        let (v4, netlink) = (2, 16);
        socket(netlink, 3, 0).unwrap();
        for (domain, kind, protocol, what) in [
            (netlink, 3, 9, "a netlink socket to the audit log"),
            (netlink, 3, 12, "a netlink socket to the packet filter"),
            (v4, 3, 1, "a raw socket"),
            (v4, 2, 1, "a socket to ping with"),
        ] {
            refused(socket(domain, kind, protocol), what);
        }
        refused(TcpListener::bind("127.0.0.1:0"), "a listener");
        refused(fs::read(&elsewhere), "reading a file elsewhere");
        refused(fs::write("/etc/kite-was-here", ""), "writing a setting");
        refused(fs::read_dir("/etc"), "listing the settings");
        refused(Command::new("/bin/true").status(), "a program");
    });
}

/// A certificate is renewed by a new file in the old one's place, a configuration is edited so: its directory stays readable.
#[test]
fn a_file_that_is_replaced_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (live, state) = (dir.path().join("live"), dir.path().join("state"));
    fs::create_dir(&live).unwrap();
    let cert = live.join("cert.pem");
    fs::write(&cert, "old").unwrap();
    let plan = Plan {
        files: vec![live.clone()],
        ..plan(dir.path())
    };
    let (turn, told) = std::sync::mpsc::channel();
    let (ready, renewed) = std::sync::mpsc::channel();
    thread::scope(|s| {
        let cert = &cert;
        s.spawn(move || {
            within(&plan, move |report| {
                assert_eq!(fs::read(cert).unwrap(), b"old");
                turn.send(()).unwrap();
                renewed.recv().unwrap();
                assert_eq!(fs::read(cert).unwrap(), b"new");
                refused(fs::write(cert, "mine"), "writing a certificate");
                refused(
                    fs::rename(cert, state.join("mine")),
                    "taking a certificate away",
                );
                assert!(report.to_string().contains("and to read in"), "{report}");
            });
        });
        told.recv().unwrap();
        fs::write(live.join("new"), "new").unwrap();
        fs::rename(live.join("new"), cert).unwrap();
        ready.send(()).unwrap();
    });
}

#[test]
fn an_operators_own_program_finds_what_it_needs_but_no_door_into_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("accounts");
    fs::write(&elsewhere, "bob").unwrap();
    let plan = Plan {
        helpers: vec!["/bin/cat".into()],
        ..plan(dir.path())
    };
    thread::scope(|s| {
        s.spawn(|| {
            let report = sandbox::enter(&plan).to_string();
            assert!(
                report.contains("no Landlock: /bin/cat may need") && !report.contains("datagram"),
                "{report}"
            );
            let said = Command::new("/bin/cat").arg(&elsewhere).output().unwrap();
            assert_eq!(said.stdout, b"bob");
            UdpSocket::bind("127.0.0.1:0").unwrap();
            let apart = Command::new("/usr/bin/unshare")
                .args(["--net", "/bin/true"])
                .output();
            assert!(!apart.unwrap().status.success(), "another network");
        });
    });
}

#[test]
fn its_own_next_version_takes_over_and_no_other_program_starts() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let own = bin.join("kite");
    fs::copy("/bin/true", &own).unwrap();
    let plan = Plan {
        own_program: Some(own.clone()),
        ..plan(dir.path())
    };
    let (turn, told) = std::sync::mpsc::channel();
    let (ready, replaced) = std::sync::mpsc::channel();
    thread::scope(|s| {
        let own = &own;
        s.spawn(move || {
            within(&plan, move |_| {
                assert!(Command::new(own).status().unwrap().success());
                turn.send(()).unwrap();
                replaced.recv().unwrap();
                assert_eq!(Command::new(own).status().unwrap().code(), Some(1));
                refused(Command::new("/bin/sh").status(), "a shell");
                UnixDatagram::unbound().unwrap();
                refused(UdpSocket::bind("127.0.0.1:0"), "a datagram socket");
                refused(TcpListener::bind("127.0.0.1:9150"), "a port of its choice");
            });
        });
        told.recv().unwrap();
        // As a package manager does it.
        fs::copy("/bin/false", bin.join("new")).unwrap();
        fs::rename(bin.join("new"), own).unwrap();
        ready.send(()).unwrap();
    });
}

#[test]
fn the_ports_of_the_configuration_are_opened_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let places = dir.path().join("places");
    fs::create_dir(&places).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    let plan = Plan {
        ports: vec![at.port()],
        places: vec![places.join("page")],
        ..plan(dir.path())
    };
    within(&plan, |_| {
        TcpListener::bind(at).unwrap();
        refused(TcpListener::bind("127.0.0.1:0"), "any other port");
        UnixListener::bind(places.join("page")).unwrap();
        UnixListener::bind(dir.path().join("state/control")).unwrap();
        fs::remove_file(places.join("page")).unwrap();
        refused(
            UnixListener::bind(dir.path().join("page")),
            "a Unix socket elsewhere",
        );
        refused(
            fs::write(places.join("file"), ""),
            "a file where a socket may be",
        );
        refused(UnixDatagram::unbound(), "a Unix datagram socket");
        refused(UdpSocket::bind("127.0.0.1:0"), "a datagram socket");
        refused(Command::new("/bin/true").status(), "a program");
    });
}
