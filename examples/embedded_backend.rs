//! A frontend and a backend inside a program of your own, in direct mode: all on
//! loopback, with a pinned key on the tunnel hop, as `kite demo` does it.
//! Both are configured as on the command line. With `via_tor: true` Tor would be used.
//!
//! Run it: `cargo run --example embedded_backend`

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kite::cli::{BackendArgs, FrontendArgs};
use kite::config::{BackendConfig, FrontendConfig};
use kite::dial::{OriginAddr, OriginDialer};
use kite::frontend::{Frontend, Handle};
use kite::listen::{self, TcpListener};
use kite::{run, shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NAME: &str = "web.bob.example";

/// The server that is to become reachable: answers one line, whatever is asked.
async fn origin(listener: TcpListener) {
    loop {
        let (mut conn, _) = listen::accept(&listener).await;
        let _ = conn.read(&mut [0; 1024]).await;
        let _ = conn.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n").await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (_trigger, order) = shutdown::channel();
    let state = tempfile::tempdir()?;
    let secret = state.path().join("bob.secret");
    std::fs::write(&secret, "forty-two random letters would be better")?;
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600))?;
    let listener = listen::bind(([127, 0, 0, 1], 0).into())?;
    let service = format!("http:{NAME}:{}", listener.local_addr()?);
    tokio::spawn(origin(listener));

    let frontend = Frontend::new(FrontendConfig::load(&FrontendArgs {
        listen: vec!["127.0.0.1:0".into()],
        domain: vec![NAME.into()],
        protocols: vec!["http".into()],
        secret_file: Some(secret.clone()),
        state_dir: Some(state.path().join("frontend")),
        ..FrontendArgs::default()
    })?)?;
    let public = frontend.local_addrs().remove(0).to_string();
    let pinned = frontend.pinned_addresses();
    let handle = frontend.handle();
    tokio::spawn(frontend.run(order.clone()));

    let config = BackendConfig::load(&BackendArgs {
        frontend: pinned.clone(),
        services: vec![service],
        secret_file: Some(secret),
        state_dir: Some(state.path().join("backend")),
        ..BackendArgs::default()
    })?;
    tokio::select! {
        ended = run::Backend::prepare(config)?.run(|_| {}, order) => ended?,
        answer = visit(&public, &handle) => println!("through {}:\n{}", pinned.join(", "), answer?),
    }
    Ok(())
}

/// A visitor, once the kite flies. Any HTTP client would do.
async fn visit(public: &str, handle: &Handle) -> Result<String, Box<dyn std::error::Error>> {
    while handle.tunnels().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let to = OriginAddr::parse(public, false)?;
    let mut visitor = OriginDialer::new().dial(&to).await?;
    let ask = format!("GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n");
    visitor.write_all(ask.as_bytes()).await?;
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).await?;
    Ok(answer)
}
