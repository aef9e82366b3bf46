//! A frontend that knows by itself who may fly: here from a table of members, as it might from a database.
//!
//! The frontend is configured in the program, with a [`Judge`] for its authority. Two backends come: one whose
//! kite is a member's, and one of a stranger, who is turned away. (Its log would say why.)
//!
//! Run it: `cargo run --example own_authentication`

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use kite::backend::{self, Plan};
use kite::cli::BackendArgs;
use kite::config::{BackendConfig, FrontendConfig, Listen};
use kite::dial::{DirectDialer, Egress, EgressArgs, OriginAddr, OriginDialer};
use kite::frontend::Frontend;
use kite::frontend::authority::{Authority, Judge, Judged, PARALLEL, Source, Verdict};
use kite::frontend::limits::Limits;
use kite::kite::{KiteName, Protocol, Secret};
use kite::observe::board::Board;
use kite::tls::TlsClient;
use kite::tor::TorSettings;
use kite::{listen, shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Members by name. Each proves to know a secret, and the secret never travels.
struct Members(HashMap<KiteName, Secret>);

#[async_trait]
impl Judge for Members {
    async fn verdict(&self, name: &KiteName) -> Result<Verdict, String> {
        Ok(match self.0.get(name) {
            Some(secret) => Verdict::Secret(secret.clone()),
            None => Verdict::No("no member has this name".to_owned()),
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (trigger, order) = shutdown::channel();
    let state = tempfile::tempdir()?;
    let secret = "forty-two random letters would be better";
    let member: KiteName = "web.member.example".parse()?;
    let known = Secret::new(secret.as_bytes()).ok_or("a secret is 1 to some hundred bytes")?;

    let frontend = Frontend::new(FrontendConfig {
        listen: vec![Listen::at(([127, 0, 0, 1], 0).into())],
        authorities: vec![Authority {
            domain: None,
            source: Source::Judge(Judged::by(Members([(member, known)].into()))),
            protocols: [Protocol::Http].into(),
            parallel: PARALLEL,
            limits: Limits::default(),
        }],
        state_dir: state.path().join("frontend"),
        ..FrontendConfig::default()
    })?;
    let public = OriginAddr::parse(&frontend.local_addrs().remove(0).to_string(), false)?;
    let pinned = frontend.pinned_addresses();
    tokio::spawn(frontend.run(order.clone()));

    let origin = listen::bind(([127, 0, 0, 1], 0).into())?;
    let served = origin.local_addr()?;
    tokio::spawn(async move {
        loop {
            let (mut conn, _) = listen::accept(&origin).await;
            let _ = conn.read(&mut [0; 1024]).await;
            let _ = conn.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n").await;
        }
    });

    // The secrets are handed over in files, as on the command line.
    let file = state.path().join("secret");
    std::fs::write(&file, secret)?;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    for name in ["web.stranger.example", "web.member.example"] {
        let config = BackendConfig::load(&BackendArgs {
            frontend: pinned.clone(),
            services: vec![format!("http:{name}:{served}")],
            secret_file: Some(file.clone()),
            state_dir: Some(state.path().join("backend")),
            ..BackendArgs::default()
        })?;
        let tor = TorSettings {
            state_dir: config.state_dir.clone(),
            config: None,
        };
        let Egress::Direct(allowed) = Egress::decide(EgressArgs {
            via_tor: false,
            tor,
        })?
        else {
            return Err("Tor was not asked for".into());
        };
        let dialer = DirectDialer::new(allowed, TlsClient::new(None)?);
        let board = Board::default();
        let plan = Plan::fixed(config.frontends, config.services);
        tokio::spawn(backend::run(
            plan,
            std::sync::Arc::new(dialer),
            board.clone(),
            order.clone(),
        ));
        println!("{name}: {}", outcome(&board).await);
    }

    let mut visitor = OriginDialer::new().dial(&public).await?;
    visitor
        .write_all(b"GET / HTTP/1.0\r\nHost: web.member.example\r\n\r\n")
        .await?;
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).await?;
    println!(
        "a visitor reads: {}",
        answer.lines().last().unwrap_or_default()
    );
    trigger.stop();
    Ok(())
}

/// What became of the backend's one tunnel: it flies, or it is known why not.
async fn outcome(board: &Board) -> String {
    loop {
        for tunnel in board.view() {
            match tunnel.last_error {
                _ if !tunnel.kites.is_empty() => {
                    return format!("flies ({})", tunnel.kites.join(", "));
                }
                Some(why) => return why,
                None => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
