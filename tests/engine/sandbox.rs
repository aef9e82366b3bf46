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
