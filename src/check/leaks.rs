//! `kite check --leaks`: the configured backend runs for a while under strace, and each of its calls that
//! concerns the network is judged here, without believing anything that the backend says of itself.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

mod trace;

use super::CheckError;
use crate::cli::{BackendArgs, CheckArgs};
use crate::code::{Code, Coded};
use crate::config::{BackendConfig, LocalPlaces};
use crate::dial::OriginAddr;
use crate::listen::LocalAddr;
use crate::observe::log;
use crate::observe::status::Role;
use crate::tor::{FirstHops, TorError, TorSettings};
use trace::{Call, Trace};

/// Most of a trace that is read, in bytes. Each piece that is sent is a line of it.
const MAX_TRACE: u64 = 1 << 30;
/// Largest directory of Tor's that is read, in bytes.
const MAX_DIRECTORY: u64 = 32 << 20;
/// A backend that does not end in so many seconds, when it is told to, is ended.
const PATIENCE: &str = "20";
/// What timeout(1) says when the time was up: told to end, or ended.
const TIME_UP: [i32; 2] = [124, 137];

/// Why nothing can be said about leaks.
#[derive(Debug, thiserror::Error)]
pub enum LeaksError {
    /// There is a leak, and it is no accident.
    #[error(
        "this backend does not use Tor: frontends see the machine's address by design; \
         add enabled = true under [tor], and check again"
    )]
    Direct,
    /// No strace.
    #[error("strace cannot be started ({0}); install it, on Debian: apt-get install strace")]
    NoStrace(io::Error),
    /// Tor's configuration is of no use.
    #[error("{}; {}", .0, .0.hint())]
    Tor(#[from] TorError),
    /// A file that is needed.
    #[error("{}: {source}; check the path and its permissions", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The backend did not run for as long as it should.
    #[error(
        "the backend ended by itself ({0}); its last words say why. Another kite may use the same state_dir: stop it first"
    )]
    Ended(ExitStatus),
    /// It never spoke to Tor.
    #[error(
        "nothing leaked, but the backend did not reach for Tor at all, so this proves nothing; give it more --seconds"
    )]
    Silent,
    /// Lines that the parser has no words for.
    #[error(
        "{count} calls could not be read, the first of them: {first}; this strace may be too new or too old for kite, please report it"
    )]
    Unread {
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
    /// More than is read.
    #[error("the trace is too long to read; give fewer --seconds")]
    TooLong,
}

impl Coded for LeaksError {
    fn code(&self) -> Code {
        match self {
            Self::Tor(e) => e.code(),
            Self::Direct
            | Self::NoStrace(_)
            | Self::File { .. }
            | Self::Ended(_)
            | Self::Silent
            | Self::Unread { .. }
            | Self::TooLong => Code::CheckUnable,
        }
    }
}

/// Runs the backend under strace and writes whom it spoke to. True if that was Tor and the origin alone.
pub fn run(args: &CheckArgs, out: &mut impl Write) -> Result<bool, CheckError> {
    let config = BackendConfig::load(&BackendArgs {
        config: args.config.clone(),
        ..BackendArgs::default()
    })?;
    if !config.tor.enabled {
        return Err(LeaksError::Direct.into());
    }
    let mut known = Known::new(&config)?;
    let trace = config.state_dir.join("check.trace");
    let private = || {
        let mut dir = fs::DirBuilder::new();
        dir.recursive(true).mode(0o700).create(&config.state_dir)?;
        let mut file = OpenOptions::new();
        file.write(true).create(true).truncate(true).mode(0o600);
        file.open(&trace)
    };
    private().map_err(|e| at(&trace, e))?;
    let ended = watch(args, &trace);
    let tally = ended.and_then(|ended| {
        // Relays that came with this run's directory.
        known.learn();
        Ok((ended, judge(&known, &trace)?))
    });
    // It names this node's guards.
    fs::remove_file(&trace).map_err(|e| at(&trace, e))?;
    let (ended, tally) = tally?;
    tally.write(args.verbose, out)?;
    if !tally.leaks.is_empty() {
        return Ok(false);
    }
    if !ended.code().is_some_and(|code| TIME_UP.contains(&code)) {
        return Err(LeaksError::Ended(ended).into());
    }
    if let Some(first) = tally.unread.first() {
        let (count, first) = (tally.unread.len(), first.clone());
        return Err(LeaksError::Unread { count, first }.into());
    }
    if !tally.parties.keys().any(|party| party.is_tor()) {
        return Err(LeaksError::Silent.into());
    }
    Ok(true)
}

fn at(path: &Path, source: io::Error) -> LeaksError {
    LeaksError::File {
        path: path.to_owned(),
        source,
    }
}

/// The backend's life under strace. Its log goes where ours does. strace writes no more of what is sent
/// than eight bytes, in which no address can be mistaken for one.
#[expect(
    clippy::disallowed_methods,
    reason = "strace and the backend under it, which is what is to be watched; this process dials nothing"
)]
fn watch(args: &CheckArgs, trace: &Path) -> Result<ExitStatus, LeaksError> {
    let own = std::env::current_exe().map_err(|e| at(Path::new("/proc/self/exe"), e))?;
    Command::new("strace")
        .args(["-f", "-qq", "-s", "8", "-e"])
        .arg(format!("trace={}", trace::CALLS))
        .arg("-o")
        .arg(trace)
        .args(["timeout", "--foreground", "-k", PATIENCE])
        .arg(args.seconds.to_string())
        .arg(own)
        .args(["backend", "--config"])
        .args(&args.config)
        // What it is ready for is no service manager's business.
        .env_remove("NOTIFY_SOCKET")
        .status()
        .map_err(LeaksError::NoStrace)
}

/// Whom the backend may speak to, from its configuration and Tor's signed directory.
#[derive(Default)]
struct Known {
    hops: FirstHops,
    managed: bool,
    cache_dir: PathBuf,
    relays: HashSet<SocketAddr>,
    origins: Vec<OriginAddr>,
    socks: Option<SocketAddr>,
    /// Where it shows itself to this machine; a Unix socket is looked at like that of `kite status`.
    local: LocalPlaces,
    /// Where a backend answers `kite status`; at its start it looks whether another one does.
    status: PathBuf,
    /// Frontends that are given by number.
    frontends: HashSet<SocketAddr>,
}

impl Known {
    fn new(config: &BackendConfig) -> Result<Self, LeaksError> {
        let settings = TorSettings {
            state_dir: config.state_dir.clone(),
            config: config.tor.config.clone(),
        };
        let needs = settings.needs()?;
        let frontends = config.frontends.iter().filter_map(|frontend| {
            let ip: IpAddr = frontend.address.host().parse().ok()?;
            Some(SocketAddr::new(ip, frontend.address.port()))
        });
        let mut known = Self {
            hops: settings.first_hops()?,
            managed: !needs.programs.is_empty(),
            cache_dir: needs.cache_dir,
            relays: HashSet::new(),
            origins: config.services.iter().map(|s| s.origin.clone()).collect(),
            socks: config.socks,
            local: config.local.clone(),
            status: Role::Backend.socket(&config.state_dir),
            frontends: frontends.collect(),
        };
        known.learn();
        Ok(known)
    }

    /// Reads the relays of the directory that Arti keeps, if there is one yet.
    fn learn(&mut self) {
        let Ok(blobs) = fs::read_dir(self.cache_dir.join("dir_blobs")) else {
            return;
        };
        for blob in blobs.flatten() {
            let name = blob.file_name();
            if !name.to_string_lossy().starts_with("con_") {
                continue;
            }
            let mut text = String::new();
            let read = File::open(blob.path())
                .and_then(|file| file.take(MAX_DIRECTORY).read_to_string(&mut text));
            if read.is_ok() {
                self.relays.extend(relays(&text));
            }
        }
    }

    /// Who an address is, or why nobody should have spoken to it.
    fn judge(&self, to: SocketAddr) -> Result<Party, &'static str> {
        if self.origins.contains(&OriginAddr::Tcp(to)) {
            return Ok(Party::Origin);
        }
        // A program that Arti starts chooses its port; a resolver on this machine is none.
        let chosen = self.managed && to.ip().is_loopback() && to.port() != 53;
        if self.hops.transports.contains(&to) || chosen && !self.frontends.contains(&to) {
            return Ok(Party::Transport);
        }
        let hops = &self.hops;
        let party = match (hops.proxy, &hops.bridges) {
            (Some(proxy), _) => (to == proxy).then_some(Party::Proxy),
            (None, Some(bridges)) => bridges.contains(&to).then_some(Party::Bridge),
            (None, None) if self.relays.contains(&to) => Some(Party::Relay),
            (None, None) if hops.fallbacks.contains(&to) => Some(Party::Cache),
            (None, None) => hops.guards.contains(&to).then_some(Party::Guard),
        };
        party.ok_or({
            if self.frontends.contains(&to) {
                "a frontend, past Tor"
            } else if to.port() == 53 {
                "a name server"
            } else {
                "neither of Tor nor the origin"
            }
        })
    }
}

/// The addresses of a consensus: `r NAME ID DATE TIME IP ORPORT DIRPORT`, and `a [IPV6]:PORT` below it.
fn relays(consensus: &str) -> impl Iterator<Item = SocketAddr> {
    consensus.lines().filter_map(|line| {
        let mut words = line.split(' ');
        match words.next()? {
            "r" => {
                let ip = words.nth(4)?.parse().ok()?;
                Some(SocketAddr::new(ip, words.next()?.parse().ok()?))
            }
            "a" => words.next()?.parse().ok(),
            _ => None,
        }
    })
}

/// Who may be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Relay,
    Cache,
    Guard,
    Bridge,
    Transport,
    Proxy,
    Origin,
    SocksPort,
    LocalPort,
}

impl Party {
    fn is_tor(self) -> bool {
        !matches!(self, Self::Origin | Self::SocksPort | Self::LocalPort)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Relay => "Tor relays",
            Self::Cache => "Tor's directory caches",
            Self::Guard => "guards of an earlier run",
            Self::Bridge => "configured bridges",
            Self::Transport => "pluggable transports",
            Self::Proxy => "the configured proxy",
            Self::Origin => "the origin",
            Self::SocksPort => "the SOCKS port, opened",
            Self::LocalPort => "metrics or page, opened",
        })
    }
}

/// Everything that a trace showed.
#[derive(Debug, Default)]
struct Tally {
    /// Addresses and how often each was dialled.
    parties: BTreeMap<Party, BTreeMap<String, u64>>,
    leaks: BTreeMap<String, u64>,
    unread: Vec<String>,
}

impl Tally {
    fn take(&mut self, known: &Known, call: Call) {
        let (whom, party) = match call {
            Call::Socket(what) => (what, Err("a socket that is not for TCP")),
            Call::To(to) => (to.to_string(), known.judge(to)),
            Call::ToUnix(path) => {
                let origin = known
                    .origins
                    .contains(&OriginAddr::Unix(path.clone().into()));
                // At nscd users are looked up, too; what it is asked for is judged. The journal gets log lines.
                let local = LocalAddr::Unix(PathBuf::from(&path));
                let own = Path::new(&path) == known.status
                    || path == log::JOURNAL
                    || known.local.has(&local);
                if own || path.ends_with("/nscd/socket") {
                    return;
                }
                let party = if origin {
                    Ok(Party::Origin)
                } else {
                    Err("a program of this machine, which may ask others")
                };
                (format!("the Unix socket {path}"), party)
            }
            Call::HostOfNscd => ("nscd".to_owned(), Err("a resolver, asked for a host")),
            Call::Bound(at) => {
                let party = if known.socks == Some(at) {
                    Ok(Party::SocksPort)
                } else if known.local.has(&LocalAddr::Tcp(at)) {
                    Ok(Party::LocalPort)
                } else if known.managed && at.ip().is_loopback() {
                    Ok(Party::Transport)
                } else {
                    Err("a port of this machine that was opened")
                };
                (at.to_string(), party)
            }
            Call::Ring => ("io_uring".to_owned(), Err("a way out that no trace shows")),
            Call::Unread(line) => return self.unread.push(line),
        };
        let count = match party {
            Ok(party) => self.parties.entry(party).or_default().entry(whom),
            Err(why) => self.leaks.entry(format!("{whom}: {why}")),
        };
        *count.or_default() += 1;
    }

    /// Guards identify a Tor client: their addresses are shown on request only.
    fn write(&self, verbose: bool, out: &mut impl Write) -> io::Result<()> {
        for (party, addresses) in &self.parties {
            let calls: u64 = addresses.values().sum();
            writeln!(
                out,
                "{party:26} addresses {:4}, calls {calls:5}",
                addresses.len()
            )?;
            if verbose {
                for (address, calls) in addresses {
                    writeln!(out, "    {address} {calls}")?;
                }
            }
        }
        for (leak, calls) in &self.leaks {
            writeln!(out, "LEAK: {leak} (calls: {calls})")?;
        }
        let verdict = match self.leaks.len() {
            0 => "no leak".to_owned(),
            n => format!("leaks: {n}"),
        };
        writeln!(out, "{verdict}")
    }
}

/// Reads a trace to its end.
fn judge(known: &Known, trace: &Path) -> Result<Tally, LeaksError> {
    let file = File::open(trace).map_err(|e| at(trace, e))?;
    if file.metadata().map_err(|e| at(trace, e))?.len() > MAX_TRACE {
        return Err(LeaksError::TooLong);
    }
    let (mut tally, mut calls) = (Tally::default(), Trace::default());
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| at(trace, e))?;
        if let Some(call) = calls.line(&line) {
            tally.take(known, call);
        }
    }
    for call in calls.rest() {
        tally.take(known, call);
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    const DIRECTORY: &str = "network-status-version 3 microdesc
r relay0 AAAA 2038-01-01 00:00:00 192.0.2.1 9001 0
a [2001:db8::1]:9001
m abc
s Fast Guard Running
r relay1 BBBB 2038-01-01 00:00:00 192.0.2.2 443 80
";

    fn known() -> Known {
        Known {
            hops: FirstHops {
                fallbacks: [addr("192.0.2.3:9001")].into(),
                guards: [addr("192.0.2.4:443")].into(),
                ..FirstHops::default()
            },
            relays: relays(DIRECTORY).collect(),
            origins: vec![
                OriginAddr::Tcp(addr("127.0.0.1:49293")),
                OriginAddr::Unix("/run/origin".into()),
            ],
            socks: Some(addr("127.0.0.1:9150")),
            local: LocalPlaces {
                metrics: Some("127.0.0.1:9464".parse().expect("an address")),
                web: Some("unix:/run/page".parse().expect("an address")),
            },
            frontends: [addr("198.51.100.1:443")].into(),
            status: "/var/lib/kite/backend.sock".into(),
            ..Known::default()
        }
    }

    #[test]
    fn the_directorys_relays_are_found() {
        let found: HashSet<_> = relays(DIRECTORY).collect();
        let want = ["192.0.2.1:9001", "[2001:db8::1]:9001", "192.0.2.2:443"];
        assert_eq!(found, want.map(addr).into());
    }

    #[test]
    fn everybody_is_told_apart() {
        let known = known();
        for (to, party) in [
            ("192.0.2.1:9001", Party::Relay),
            ("[2001:db8::1]:9001", Party::Relay),
            ("192.0.2.3:9001", Party::Cache),
            ("192.0.2.4:443", Party::Guard),
            ("127.0.0.1:49293", Party::Origin),
        ] {
            assert_eq!(known.judge(addr(to)), Ok(party), "{to}");
        }
        for (to, why) in [
            ("198.51.100.1:443", "a frontend, past Tor"),
            ("192.0.2.53:53", "a name server"),
            ("127.0.0.53:53", "a name server"),
            ("192.0.2.1:80", "neither of Tor nor the origin"),
            ("127.0.0.1:9150", "neither of Tor nor the origin"),
        ] {
            assert_eq!(known.judge(addr(to)), Err(why), "{to}");
        }
    }

    #[test]
    fn behind_bridges_or_a_proxy_there_are_no_relays() {
        let mut known = known();
        known.hops.bridges = Some([addr("192.0.2.9:443")].into());
        assert_eq!(known.judge(addr("192.0.2.9:443")), Ok(Party::Bridge));
        assert!(known.judge(addr("192.0.2.1:9001")).is_err());
        assert!(known.judge(addr("127.0.0.1:4000")).is_err());
        known.managed = true;
        assert_eq!(known.judge(addr("127.0.0.1:4000")), Ok(Party::Transport));
        known.hops.proxy = Some(addr("192.0.2.8:1080"));
        assert_eq!(known.judge(addr("192.0.2.8:1080")), Ok(Party::Proxy));
        assert!(known.judge(addr("192.0.2.9:443")).is_err());
    }

    #[test]
    fn a_report_hides_guards_and_names_leaks() {
        let (known, mut tally) = (known(), Tally::default());
        for call in [
            Call::To(addr("192.0.2.1:9001")),
            Call::To(addr("192.0.2.1:9001")),
            Call::To(addr("192.0.2.2:443")),
            Call::Bound(addr("127.0.0.1:9150")),
            Call::Bound(addr("127.0.0.1:9464")),
            Call::ToUnix("/run/page".into()),
            Call::ToUnix("/run/origin".into()),
            Call::ToUnix("/var/run/nscd/socket".into()),
            Call::ToUnix("/var/lib/kite/backend.sock".into()),
            Call::ToUnix("/run/systemd/journal/socket".into()),
        ] {
            tally.take(&known, call);
        }
        let shown = |tally: &Tally, verbose| {
            let mut out = Vec::new();
            tally.write(verbose, &mut out).expect("a vector");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(
            shown(&tally, false),
            "Tor relays                 addresses    2, calls     3\n\
             the origin                 addresses    1, calls     1\n\
             the SOCKS port, opened     addresses    1, calls     1\n\
             metrics or page, opened    addresses    1, calls     1\n\
             no leak\n"
        );
        assert!(shown(&tally, true).contains("\n    192.0.2.1:9001 2\n"));
        for leak in [
            Call::Socket("AF_INET SOCK_DGRAM IPPROTO_IP".into()),
            Call::To(addr("198.51.100.1:443")),
            Call::To(addr("192.0.2.53:53")),
            Call::ToUnix("/run/systemd/resolve/io.systemd.Resolve".into()),
            Call::HostOfNscd,
            Call::Bound(addr("0.0.0.0:9150")),
            Call::Ring,
        ] {
            tally.take(&known, leak);
        }
        let text = shown(&tally, false);
        assert_eq!(text.matches("LEAK: ").count(), 7, "{text}");
        assert!(text.contains("LEAK: 198.51.100.1:443: a frontend, past Tor (calls: 1)"));
        assert!(text.ends_with("leaks: 7\n"));
    }
}
