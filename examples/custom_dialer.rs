//! A backend with a dialer of its own: it reaches its frontend through an HTTP proxy, by CONNECT.
//!
//! A [`Dialer`] opens a connection in whatever way it likes, and hands it to [`prove`], which sees to the frontend's
//! pinned key or certificate. The backend cannot tell the difference. (kite itself has no such way out: with Tor there
//! must be only one. Who embeds kite answers for what the dialer shows to whom.)
//!
//! Run it: `cargo run --example custom_dialer`

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kite::backend::{self, Plan};
use kite::cli::{BackendArgs, FrontendArgs};
use kite::config::{BackendConfig, FrontendConfig};
use kite::dial::{DialError, Dialer, Dialled, FrontendAddr, Lane, OriginAddr, OriginDialer, prove};
use kite::frontend::Frontend;
use kite::listen::{self, TcpListener, TcpStream};
use kite::observe::board::Board;
use kite::shutdown;
use kite::tls::TlsClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};

/// The longest answer of a proxy that is read.
const MAX_HEAD: usize = 8 * 1024;
/// How long the proxy may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Dials frontends through a proxy.
struct ProxyDialer {
    proxy: OriginAddr,
    tls: TlsClient,
}

#[async_trait]
impl Dialer for ProxyDialer {
    async fn dial(&self, to: &FrontendAddr, _: Lane) -> Result<Dialled, DialError> {
        let through = async {
            let proxy = OriginDialer::new().dial(&self.proxy).await;
            let mut conn = proxy.map_err(|_| DialError::Unreachable)?;
            let target = format!("{}:{}", to.host(), to.port());
            let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
            let sent = conn.write_all(ask.as_bytes()).await;
            sent.map_err(|e| DialError::Socket(e.kind()))?;
            let head = head(&mut conn).await.ok_or(DialError::Closed)?;
            match head.split(' ').nth(1) {
                Some("200") => Ok(conn),
                _ => Err(DialError::Refused),
            }
        };
        let conn = tokio::time::timeout(PATIENCE, through).await;
        prove(conn.map_err(|_| DialError::TimedOut)??, to, &self.tls).await
    }

    fn describe(&self) -> &'static str {
        "proxy"
    }
}

/// Reads up to the empty line, and not one byte of what comes after it.
async fn head(conn: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return None;
        }
        head.push(conn.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// The proxy: connects to whatever number it is told, and counts.
async fn proxy(listener: TcpListener, used: Arc<AtomicUsize>) {
    loop {
        let (conn, _) = listen::accept(&listener).await;
        let used = used.clone();
        tokio::spawn(async move {
            let served = serve(conn).await;
            used.fetch_add(usize::from(served.is_some()), Ordering::Relaxed);
        });
    }
}

async fn serve(mut conn: TcpStream) -> Option<()> {
    let head = head(&mut conn).await?;
    let target = OriginAddr::parse(head.split(' ').nth(1)?, false).ok()?;
    let mut to = OriginDialer::new().dial(&target).await.ok()?;
    conn.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    tokio::spawn(async move { copy_bidirectional(&mut conn, &mut to).await });
    Some(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (trigger, order) = shutdown::channel();
    let state = tempfile::tempdir()?;
    let secret = state.path().join("bob.secret");
    std::fs::write(&secret, "forty-two random letters would be better")?;
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600))?;
    let frontend = Frontend::new(FrontendConfig::load(&FrontendArgs {
        listen: vec!["127.0.0.1:0".into()],
        domain: vec!["web.bob.example".into()],
        protocols: vec!["http".into()],
        secret_file: Some(secret.clone()),
        state_dir: Some(state.path().join("frontend")),
        ..FrontendArgs::default()
    })?)?;
    let pinned = frontend.pinned_addresses();
    tokio::spawn(frontend.run(order.clone()));

    let listener = listen::bind(([127, 0, 0, 1], 0).into())?;
    let dialer = ProxyDialer {
        proxy: OriginAddr::parse(&listener.local_addr()?.to_string(), false)?,
        tls: TlsClient::new(None)?,
    };
    let used = Arc::new(AtomicUsize::new(0));
    tokio::spawn(proxy(listener, used.clone()));

    let config = BackendConfig::load(&BackendArgs {
        frontend: pinned,
        services: vec!["http:web.bob.example:127.0.0.1:9".into()],
        secret_file: Some(secret),
        state_dir: Some(state.path().join("backend")),
        ..BackendArgs::default()
    })?;
    let board = Board::default();
    let plan = Plan::fixed(config.frontends, config.services);
    tokio::spawn(backend::run(plan, Arc::new(dialer), board.clone(), order));
    while board.view().iter().all(|tunnel| tunnel.kites.is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "a kite flies, by {} connection through the proxy",
        used.load(Ordering::Relaxed)
    );
    trigger.stop();
    Ok(())
}
