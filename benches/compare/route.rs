//! Ways from a visitor to the origin, one by each program.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::load::NAME;
use crate::party::{Party, free_port, wait_port};

/// One way.
pub struct Route {
    /// What it is called.
    pub name: &'static str,
    /// Where visitors dial.
    pub address: SocketAddr,
    /// The processes between them and the origin: the public side first.
    pub parties: Vec<Party>,
}

impl Route {
    /// CPU seconds that all of its processes have used.
    pub fn cpu(&self) -> f64 {
        self.parties.iter().map(Party::cpu).sum()
    }
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Nothing in between.
pub fn raw(origin: SocketAddr) -> Route {
    Route {
        name: "raw",
        address: origin,
        parties: vec![],
    }
}

/// HAProxy behind HAProxy, a connection for each visitor, as Debian ships it.
pub fn haproxy2(dir: &Path, origin: SocketAddr) -> Route {
    let mut parties = Vec::new();
    let mut to = origin;
    for side in ["back", "front"] {
        let port = free_port();
        let file = dir.join(format!("haproxy-{side}.cfg"));
        let config = format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  \
             timeout server 1h\nlisten {side}\n  bind 127.0.0.1:{port}\n  server s {to}\n"
        );
        fs::write(&file, config).unwrap();
        let args = ["-db", "-q", "-f", file.to_str().unwrap()];
        parties.insert(0, Party::start("haproxy", &args, "haproxy"));
        to = loopback(port);
        wait_port(to);
    }
    Route {
        name: "haproxy2",
        address: to,
        parties,
    }
}

/// `ssh -R` with AES-GCM.
pub fn ssh(dir: &Path, origin: SocketAddr) -> Route {
    let keygen = |file: &Path| {
        let done = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(file)
            .status();
        assert!(
            done.is_ok_and(|s| s.success()),
            "ssh-keygen; apt-get install openssh-client"
        );
    };
    let dir = &tempfile::tempdir_in(dir).unwrap().keep();
    let (host, user) = (dir.join("ssh-host"), dir.join("ssh-user"));
    keygen(&host);
    keygen(&user);
    let (port, public) = (free_port(), free_port());
    let file = dir.join("sshd_config");
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}.pub\nStrictModes no\nUsePAM no\n\
         PermitRootLogin yes\nPidFile none\nMaxSessions 100\n",
        host.display(),
        user.display()
    );
    fs::write(&file, config).unwrap();
    // Debian's sshd wants it, and makes it in its unit.
    let _ = fs::create_dir_all("/run/sshd");
    let args = ["-D", "-f", file.to_str().unwrap()];
    let server = Party::start("/usr/sbin/sshd", &args, "openssh-server");
    wait_port(loopback(port));
    let forward = format!("127.0.0.1:{public}:{origin}");
    let port = port.to_string();
    let args = [
        "-N",
        "-F",
        "none",
        "-i",
        user.to_str().unwrap(),
        "-p",
        &port,
        "-c",
        "aes128-gcm@openssh.com",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
        "-R",
        &forward,
        "127.0.0.1",
    ];
    let client = Party::start("ssh", &args, "openssh-client");
    wait_port(loopback(public));
    Route {
        name: "ssh -R",
        address: loopback(public),
        parties: vec![server, client],
    }
}

/// pagekite.py on both sides, in the clear; its headers left alone.
pub fn pagekite(dir: &Path, origin: SocketAddr) -> Route {
    let port = free_port();
    let log = |side: &str| format!("--logfile={}", dir.join(side).display());
    let start = |args: &[&str]| {
        let args = [&["--clean", "--nullui"], args].concat();
        Party::start("pagekite", &args, "pagekite")
    };
    let front = start(&[
        &log("pagekite-front.log"),
        "--isfrontend",
        "--host=127.0.0.1",
        &format!("--ports={port}"),
        "--protos=http",
        &format!("--domain=http:{NAME}:bench"),
    ]);
    wait_port(loopback(port));
    let back = start(&[
        &log("pagekite-back.log"),
        &format!("--frontend=127.0.0.1:{port}"),
        "--new",
        &format!("--service_on=http:{NAME}:{origin}:bench"),
        &format!("--service_cfg={NAME}/80:rawheaders:True"),
    ]);
    Route {
        name: "pagekite.py",
        address: loopback(port),
        parties: vec![front, back],
    }
}

/// rathole: a connection for each visitor, made ahead of time.
pub fn rathole(dir: &Path, origin: SocketAddr) -> Route {
    let (port, public) = (free_port(), free_port());
    let start = |side: &str, config: String| {
        let file = dir.join(format!("rathole-{side}.toml"));
        fs::write(&file, config).unwrap();
        Party::start("rathole", &[file.to_str().unwrap()], "cargo")
    };
    let server = start(
        "server",
        format!(
            "[server]\nbind_addr = \"127.0.0.1:{port}\"\ndefault_token = \"bench\"\n\
             [server.services.bench]\nbind_addr = \"127.0.0.1:{public}\"\n"
        ),
    );
    wait_port(loopback(port));
    let client = start(
        "client",
        format!(
            "[client]\nremote_addr = \"127.0.0.1:{port}\"\ndefault_token = \"bench\"\n\
             [client.services.bench]\nlocal_addr = \"{origin}\"\n"
        ),
    );
    wait_port(loopback(public));
    Route {
        name: "rathole",
        address: loopback(public),
        parties: vec![server, client],
    }
}

/// The one port on which a bore server hears its clients.
const BORE_CONTROL: u16 = 7835;

/// bore: a connection for each visitor.
pub fn bore(_dir: &Path, origin: SocketAddr) -> Route {
    let public = free_port().to_string();
    let here = "127.0.0.1";
    let args = ["server", "--bind-addr", here, "--min-port", &public];
    let args = [&args[..], &["--max-port", &public]].concat();
    let server = Party::start("bore", &args, "cargo");
    wait_port(loopback(BORE_CONTROL));
    let port = origin.port().to_string();
    let args = ["local", &port, "--local-host", here, "--to", here];
    let args = [&args[..], &["--port", &public]].concat();
    let client = Party::start("bore", &args, "cargo");
    let public = loopback(public.parse().unwrap());
    wait_port(public);
    Route {
        name: "bore",
        address: public,
        parties: vec![server, client],
    }
}

/// What kite's tunnel is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    Plain,
    Pinned,
}

/// A kite frontend; what its log says behind the mark, too.
pub struct Frontend {
    pub party: Party,
    pub visitors: SocketAddr,
    pub address: String,
}

/// A frontend on a port of loopback; 0 for any.
pub fn frontend(dir: &Path, hop: Hop, port: u16) -> Frontend {
    let domains = [NAME, &format!("*.{NAME}")];
    let (party, pinned) = Party::frontend(&dir.join("frontend"), port, &domains);
    let (place, _) = pinned.split_once('#').unwrap();
    let visitors = place.parse().unwrap();
    let address = match hop {
        Hop::Plain => format!("plain://{place}"),
        Hop::Pinned => pinned,
    };
    Frontend {
        party,
        visitors,
        address,
    }
}

/// A backend with one tunnel.
pub fn backend(dir: &Path, address: &str, origin: SocketAddr) -> Party {
    let service = format!("http:{NAME}:{origin}");
    let state = dir.join("backend");
    let state = state.to_str().unwrap();
    let args = [
        "backend",
        "--frontend",
        address,
        "--state-dir",
        state,
        &service,
    ];
    Party::kite(&args, "kite up: ", 1).0
}

/// kite in direct mode.
pub fn kite(dir: &Path, origin: SocketAddr, hop: Hop) -> Route {
    let (name, dir) = match hop {
        Hop::Plain => ("kite", dir.join("plain")),
        Hop::Pinned => ("kite, pinned", dir.join("pinned")),
    };
    let front = frontend(&dir, hop, 0);
    let back = backend(&dir, &front.address, origin);
    Route {
        name,
        address: front.visitors,
        parties: vec![front.party, back],
    }
}
