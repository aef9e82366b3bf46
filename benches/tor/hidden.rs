//! The hidden machine: kite's backends and bare Arti streams, in one process and through one Tor client.

use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use kite::backend::{self, Plan};
use kite::cli::BackendArgs;
use kite::config::BackendConfig;
use kite::dial::TorDialer;
use kite::observe::board::Board;
use kite::observe::log;
use kite::shutdown;
use kite::tls::TlsClient;
use kite::tor::{Client, DataStream, IsolationToken, TorSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_blocking;

/// Written and read at once: what one frame of kite's carries.
const BLOCK: usize = 64 * 1024;
/// Circuits for bare streams.
const CIRCUITS: usize = 2;

/// `args`: Arti's configuration, a state directory, the host and port of a server behind the exits, then the
/// configuration files of backends. Says `ready`, and then does what is asked, a line each, and answers with seconds:
///
/// ```text
/// send 2 BYTES    so many bytes out through each of two circuits, until the server has them all
/// take 2 BYTES    so many bytes in
/// echo 20         twenty round trips of 64 bytes on an open stream
/// ```
pub fn serve(args: &[String]) {
    let [config, state_dir, host, port, backends @ ..] = args else {
        panic!("usage: hidden ARTI.toml STATE_DIR HOST PORT BACKEND.toml…");
    };
    log::init("info", None).unwrap();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .unwrap();
    // The same runtime as kite's own.
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let settings = TorSettings {
            state_dir: PathBuf::from(state_dir),
            config: Some(PathBuf::from(config)),
        };
        let client = Arc::new(Client::start(settings).unwrap());
        client.bootstrap(&mut |_| {}).await.unwrap();
        let (_stop, order) = shutdown::channel();
        for file in backends {
            let args = BackendArgs {
                config: Some(PathBuf::from(file)),
                ..BackendArgs::default()
            };
            let config = BackendConfig::load(&args).unwrap();
            let plan = Plan::fixed(config.frontends, config.services);
            let dialer = TorDialer::new(client.clone(), TlsClient::new(None).unwrap());
            let (board, order) = (Board::default(), order.clone());
            tokio::spawn(backend::run(plan, Arc::new(dialer), board, order));
        }
        let bare = Bare {
            client,
            host: host.clone(),
            port: port.parse().unwrap(),
            circuits: [(); CIRCUITS].map(|()| IsolationToken::new()),
        };
        bare.obey().await;
    });
}

/// Streams of which kite knows nothing.
struct Bare {
    client: Arc<Client>,
    host: String,
    port: u16,
    circuits: [IsolationToken; CIRCUITS],
}

impl Bare {
    async fn obey(&self) {
        say("ready");
        let next = || spawn_blocking(|| std::io::stdin().lines().next());
        while let Some(line) = next().await.unwrap() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                [what, circuits, bytes] => {
                    let bytes: usize = bytes.parse().unwrap();
                    say(self
                        .transfer(what == "send", circuits.parse().unwrap(), bytes)
                        .await);
                }
                ["echo", times] => {
                    let took = self.echo(times.parse().unwrap()).await;
                    let took: Vec<String> = took.iter().map(f64::to_string).collect();
                    say(took.join(" "));
                }
                _ => panic!("{line}?"),
            }
        }
    }

    /// Seconds from the request, on streams that stand already, to the last byte.
    async fn transfer(&self, send: bool, circuits: usize, bytes: usize) -> f64 {
        let ask = if send { "up" } else { "down" };
        let opening = self.circuits[..circuits].iter().map(|c| self.open(*c));
        let mut streams = join_all(opening).await;
        let began = Instant::now();
        join_all(streams.iter_mut().map(async |stream| {
            request(stream, &format!("/{ask}/{bytes}")).await;
            let mut block = vec![0x5a; BLOCK];
            let mut left = bytes;
            while left > 0 {
                let most = left.min(BLOCK);
                left -= match send {
                    true => stream.write(&block[..most]).await.unwrap(),
                    false => stream.read(&mut block[..most]).await.unwrap(),
                };
            }
            if send {
                stream.flush().await.unwrap();
                stream.read_exact(&mut [0]).await.unwrap();
            }
        }))
        .await;
        began.elapsed().as_secs_f64()
    }

    async fn echo(&self, times: usize) -> Vec<f64> {
        let mut stream = self.open(self.circuits[0]).await;
        request(&mut stream, "/echo").await;
        let mut took = Vec::new();
        // The first is for the request.
        for _ in 0..=times {
            let began = Instant::now();
            stream.write_all(&[7; 64]).await.unwrap();
            stream.flush().await.unwrap();
            stream.read_exact(&mut [0; 64]).await.unwrap();
            took.push(began.elapsed().as_secs_f64());
        }
        took.split_off(1)
    }

    async fn open(&self, circuit: IsolationToken) -> DataStream {
        let connecting = self.client.connect(&self.host, self.port, circuit);
        connecting.await.unwrap()
    }
}

async fn request(stream: &mut DataStream, path: &str) {
    let ask = format!("GET {path} HTTP/1.1\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}

fn say(answer: impl Display) {
    println!("{answer}");
    std::io::stdout().flush().unwrap();
}
