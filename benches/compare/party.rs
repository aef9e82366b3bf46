//! Child processes: started, waited for, measured, ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a party may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// A process, ended with us.
pub struct Party(Child);

impl Drop for Party {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Party {
    /// Starts a program that says nothing that we need. `package` is Debian's.
    pub fn start(program: &str, args: &[&str], package: &str) -> Self {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|e| panic!("{program}: {e}; apt-get install {package}")))
    }

    /// Starts this program in another role; the address that it says.
    pub fn own(args: &[&str]) -> (Self, SocketAddr) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (Self(child), line.trim().parse().unwrap())
    }

    /// Starts kite and waits until its log has said `mark` so many times; the rest of the last such line.
    pub fn kite(args: &[&str], mark: &str, times: usize) -> (Self, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kite"))
            .args(args)
            .env("KITE_SECRET", "a secret for a benchmark")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let party = Self(child);
        let mut left = times;
        loop {
            let mut line = String::new();
            let read = log.read_line(&mut line).unwrap();
            assert!(read > 0, "kite {args:?} ended before it said '{mark}'");
            if let Some((_, rest)) = line.split_once(mark) {
                left -= 1;
                if left == 0 {
                    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                    return (party, rest.trim().to_owned());
                }
            }
        }
    }

    /// Starts kite; whenever its log says `mark`, that is told.
    pub fn watched(
        args: &[&str],
        mark: &'static str,
    ) -> (Self, std::sync::mpsc::Receiver<Instant>) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kite"))
            .args(args)
            .env("KITE_SECRET", "a secret for a benchmark")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains(mark) {
                    let _ = tell.send(Instant::now());
                }
            }
        });
        (Self(child), told)
    }

    /// Starts a frontend on a port of loopback (0 for any) that carries HTTP for these names; what backends dial, with its pin.
    pub fn frontend(state: &Path, port: u16, domains: &[&str]) -> (Self, String) {
        let listen = format!("127.0.0.1:{port}");
        let state = state.to_str().unwrap();
        let mut args = vec!["frontend", "--listen", &listen, "--protocols", "http"];
        args.extend(["--state-dir", state]);
        args.extend(domains.iter().flat_map(|domain| ["--domain", domain]));
        // "backends dial ADDRESS" comes behind "listening on ADDRESS".
        Self::kite(&args, "backends dial ", 1)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it without a goodbye.
    pub fn kill(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Its whole resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        family(self.pid())
            .into_iter()
            .map(|pid| kb_of(pid, "VmRSS:"))
            .sum()
    }

    /// Its open files.
    pub fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// CPU seconds that it, and its children that have ended or not, have used.
    pub fn cpu(&self) -> f64 {
        family(self.pid()).into_iter().map(cpu_of).sum()
    }

    /// Its memory, in bytes: private and anonymous, which is what grows.
    pub fn memory(&self) -> u64 {
        family(self.pid()).into_iter().map(memory_of).sum()
    }
}

/// A process and its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let path = format!("/proc/{}/task", all[at]);
        for task in fs::read_dir(path).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|n| n.parse::<u32>().ok()),
            );
        }
        at += 1;
    }
    all
}

fn cpu_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |n: usize| {
        fields
            .get(n)
            .and_then(|f| f.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    // utime and stime, in ticks of 10 ms.
    (ticks(11) + ticks(12)) / 100.0
}

fn memory_of(pid: u32) -> u64 {
    kb_of(pid, "RssAnon:")
}

/// What the kernel says of a process' memory under this word, in bytes.
fn kb_of(pid: u32, word: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(word));
    let kb = line.and_then(|l| l.split_whitespace().next());
    kb.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A port that nobody has now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until somebody listens.
pub fn wait_port(address: SocketAddr) {
    let end = Instant::now() + READY;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "nobody listens at {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
