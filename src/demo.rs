//! `kite demo`: a real frontend, a real backend and a small storage node, in one
//! process and with nothing to set up; one visitor goes through, and then each
//! party's view is shown, as it was measured.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod node;
mod visit;

use crate::backend;
use crate::cli::DemoArgs;
use crate::code::{Code, Coded};
use crate::config;
use crate::dial::{Dialer, DirectDialer, Egress, EgressArgs, FrontendAddr, OriginAddr, TorDialer};
use crate::frontend::limits::Limits;
use crate::frontend::onion::OnionDoor;
use crate::frontend::{Frontend, Handle};
use crate::kite::{KiteName, Protocol, Secret};
use crate::observe::board::Board;
use crate::observe::progress::{Display, Event};
use crate::random::random_hex;
use crate::shutdown::{self, Shutdown};
use crate::tls::TlsClient;
use crate::tor::{Client, TorSettings};
use node::{Node, Visited};
use visit::Visit;

/// The kite of the demo.
const NAME: &str = "tahoebob.alice.example";
/// How long the service may take to be published.
const PUBLISH: Duration = Duration::from_secs(120);
/// How long the backend may take to fly its kite.
const FLY: Duration = Duration::from_secs(180);
/// How long the visit may take.
const VISIT: Duration = Duration::from_secs(60);

/// Why a demo did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A part could not start.
    #[error(
        "the demo's {part} could not start: {reason}; run it again with --log debug to see why"
    )]
    Start {
        /// Which part.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// Something took too long.
    #[error("{what} within {} s; run it again with --log debug to see why", .within.as_secs())]
    TimedOut {
        /// What did not happen.
        what: &'static str,
        /// The limit.
        within: Duration,
    },
    /// The visit failed.
    #[error("the visit failed: {0}; run it again with --log debug to see why")]
    Visit(String),
    /// A claim of the demo turned out false.
    #[error("this should never happen, please report it: {0}")]
    Broken(&'static str),
    /// Nowhere to write to.
    #[error("cannot write: {0}; see where the output goes")]
    Output(#[from] std::io::Error),
    /// Ctrl-C.
    #[error("stopped")]
    Stopped,
}

impl Coded for DemoError {
    fn code(&self) -> Code {
        match self {
            Self::Start { .. } | Self::TimedOut { .. } | Self::Visit(_) | Self::Stopped => {
                Code::DemoFailed
            }
            Self::Broken(_) => Code::Broken,
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

fn start(part: &'static str) -> impl FnOnce(String) -> DemoError {
    move |reason| DemoError::Start { part, reason }
}

/// A directory for the demo's keys, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("kite-demo-{}", random_hex(16)));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the demo and writes what happened to `out`.
pub async fn run(
    args: &DemoArgs,
    out: &mut (dyn Write + Send),
    stop: Shutdown,
) -> Result<(), DemoError> {
    let (trigger, parts) = shutdown::channel();
    let outcome = tokio::select! {
        outcome = perform(args, out, parts) => outcome,
        () = stop.requested() => Err(DemoError::Stopped),
    };
    trigger.stop();
    outcome
}

async fn perform(
    args: &DemoArgs,
    out: &mut (dyn Write + Send),
    parts: Shutdown,
) -> Result<(), DemoError> {
    let scratch = Scratch::new().map_err(|e| start("directory")(e.to_string()))?;
    let secret =
        Secret::new(random_hex(32).as_bytes()).ok_or(DemoError::Broken("an empty secret"))?;
    let name: KiteName = NAME.parse().map_err(|_| DemoError::Broken("a bad name"))?;

    writeln!(
        out,
        "kite demo: a storage node, its backend, a frontend and a visitor"
    )?;
    writeln!(out)?;
    let node = Node::start(&format!("hello from a storage node, {}", random_hex(8)))
        .map_err(|e| start("storage node")(e.to_string()))?;
    writeln!(
        out,
        "  node      {} speaks foolscap, tub {}",
        node.address, node.tub
    )?;

    let frontend = Frontend::new(config::FrontendConfig {
        listen: vec![config::Listen::at(([127, 0, 0, 1], 0).into())],
        kites: vec![config::Grant {
            pattern: name.clone(),
            protocols: [Protocol::Foolscap].into(),
            secret: secret.clone(),
            proof: config::ProofRule::Required,
            limits: Limits::default(),
            expires: None,
            backends: 1,
        }],
        state_dir: scratch.0.join("frontend"),
        log_peers: true,
        ..config::FrontendConfig::default()
    })
    .map_err(|e| start("frontend")(e.to_string()))?;
    let handle = frontend.handle();
    let public = *frontend
        .local_addrs()
        .first()
        .ok_or(DemoError::Broken("no port"))?;
    let pinned = frontend.pinned_addresses();
    tokio::spawn(frontend.run(parts.clone()));

    let tor = if args.via_tor {
        Some(bring_up_tor(args, &scratch).await?)
    } else {
        None
    };
    // The service lives as long as its handle.
    let (_door, address) = match &tor {
        Some(client) => {
            let door = offer_onion(client, &handle, out).await?;
            let address = door.address();
            (Some(door), address)
        }
        None => (
            None,
            pinned
                .first()
                .cloned()
                .ok_or(DemoError::Broken("no address"))?,
        ),
    };
    writeln!(out, "  frontend  visitors come to {public}, backends dial")?;
    writeln!(out, "            {address}")?;

    let address: FrontendAddr = address
        .parse()
        .map_err(|_| DemoError::Broken("our own address does not parse"))?;
    let dialer = dialer(tor.as_ref())?;
    let by = dialer.describe();
    let service = config::Service {
        protocol: Protocol::Foolscap,
        port: None,
        name: name.clone(),
        origin: OriginAddr::parse(&node.address.to_string(), false)
            .map_err(|_| DemoError::Broken("the node's address does not parse"))?,
        secret,
        by: config::ProvenBy::Secret,
        tub: node.tub.parse().ok(),
        tls_at_frontend: false,
        tell: backend::introduce::Tell::default(),
    };
    let to = config::Frontend {
        address,
        kites: None,
        tunnels: 1,
        homes: false,
    };
    tokio::spawn(backend::run(
        backend::Plan::fixed(vec![to], vec![service]),
        dialer,
        Board::default(),
        parts,
    ));
    let began = Instant::now();
    let flying = async {
        while handle.tunnels().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(FLY, flying)
        .await
        .map_err(|_| DemoError::TimedOut {
            what: "the backend did not reach the frontend",
            within: FLY,
        })?;
    writeln!(
        out,
        "  backend   {by}: foolscap:{name} flies after {:.1} s",
        began.elapsed().as_secs_f64()
    )?;

    let began = Instant::now();
    let seen = tokio::time::timeout(VISIT, visit::visit(public, &name, &node.tub))
        .await
        .map_err(|_| DemoError::TimedOut {
            what: "the visitor got no answer",
            within: VISIT,
        })?
        .map_err(DemoError::Visit)?;
    if seen.message != node.message {
        return Err(DemoError::Broken(
            "the visitor got another message than the node sent",
        ));
    }
    let visited = tokio::time::timeout(VISIT, node.visited())
        .await
        .map_err(|_| DemoError::TimedOut {
            what: "the node did not see the visitor leave",
            within: VISIT,
        })?
        .ok_or(DemoError::Broken("the node is gone"))?;
    if visited.received != seen.sent {
        return Err(DemoError::Broken(
            "the node did not get what the visitor sent",
        ));
    }
    writeln!(
        out,
        "  visitor   read \"{}\" in {} ms",
        seen.message,
        began.elapsed().as_millis()
    )?;
    writeln!(out)?;
    views(out, &handle, &node, &seen, &visited, args.via_tor)
}

async fn bring_up_tor(args: &DemoArgs, scratch: &Scratch) -> Result<Arc<Client>, DemoError> {
    let settings = TorSettings {
        state_dir: scratch.0.join("backend"),
        config: args.tor_config.clone(),
    };
    let client = Client::start(settings).map_err(|e| start("Tor")(e.to_string()))?;
    let mut display = Display::new();
    client
        .bootstrap(&mut |p| display.show(&Event::Tor(&p)))
        .await
        .map_err(|e| start("Tor")(e.to_string()))?;
    Ok(Arc::new(client))
}

/// Makes the frontend an onion service. Its address needs no pin: it is the key.
async fn offer_onion(
    client: &Arc<Client>,
    handle: &Handle,
    out: &mut (dyn Write + Send),
) -> Result<OnionDoor, DemoError> {
    let door = OnionDoor::open(client.clone(), handle.clone())
        .map_err(|e| start("onion service")(e.to_string()))?;
    writeln!(
        out,
        "  tor       ready; publishing the frontend as an onion service (this can take a minute)"
    )?;
    out.flush()?;
    tokio::time::timeout(PUBLISH, door.published())
        .await
        .map_err(|_| DemoError::TimedOut {
            what: "the onion service was not published",
            within: PUBLISH,
        })?;
    Ok(door)
}

/// The demo chooses its way out as a backend does: once, and by the same door.
fn dialer(tor: Option<&Arc<Client>>) -> Result<Arc<dyn Dialer>, DemoError> {
    let tls = TlsClient::new(None).map_err(|e| start("TLS")(e.to_string()))?;
    if let Some(client) = tor {
        return Ok(Arc::new(TorDialer::new(client.clone(), tls)));
    }
    match Egress::decide(EgressArgs {
        via_tor: false,
        tor: TorSettings::default(),
    }) {
        Ok(Egress::Direct(allowed)) => Ok(Arc::new(DirectDialer::new(allowed, tls))),
        Ok(Egress::Tor(_)) | Err(_) => Err(DemoError::Broken("direct mode was not granted")),
    }
}

fn views(
    out: &mut (dyn Write + Send),
    handle: &Handle,
    node: &Node,
    seen: &Visit,
    visited: &Visited,
    via_tor: bool,
) -> Result<(), DemoError> {
    if seen.wire_contains(&node.message) {
        return Err(DemoError::Broken(
            "the message crossed the frontend in the clear",
        ));
    }
    let peer = handle
        .tunnels()
        .into_iter()
        .next()
        .map(|t| t.peer)
        .ok_or(DemoError::Broken("the tunnel is gone"))?;
    writeln!(out, "What each party saw, as measured just now:")?;
    writeln!(out)?;
    writeln!(out, "  the frontend")?;
    writeln!(
        out,
        "    the backend's address  {peer}{}",
        if via_tor { ": no address at all" } else { "" }
    )?;
    writeln!(out, "    in the clear           {}", seen.first_line)?;
    writeln!(
        out,
        "    as ciphertext          {} bytes; the node's message is not readable in them",
        seen.ciphertext
    )?;
    writeln!(out, "  the visitor")?;
    writeln!(
        out,
        "    the node's address     that of the frontend, and nothing else"
    )?;
    writeln!(
        out,
        "    the node's identity    tub {}, proved by its TLS certificate",
        node.tub
    )?;
    writeln!(out, "  the node")?;
    writeln!(
        out,
        "    its visitor's address  {}: the backend, on this machine",
        visited.peer
    )?;
    writeln!(
        out,
        "    bytes from the visitor {}, as many as were sent",
        visited.received
    )?;
    writeln!(out)?;
    if via_tor {
        writeln!(
            out,
            "For real: run `kite frontend` on a public server, and beside the node"
        )?;
        writeln!(
            out,
            "  kite backend --via-tor --frontend ADDRESS --secret-file FILE foolscap:{NAME}:127.0.0.1:PORT"
        )?;
    } else {
        writeln!(
            out,
            "Without Tor the frontend sees the backend's address (here 127.0.0.1, your public"
        )?;
        writeln!(
            out,
            "address in real life). To see it vanish: kite demo --via-tor"
        )?;
        writeln!(out, "For real: README.md, \"Your first private node\".")?;
    }
    Ok(())
}
