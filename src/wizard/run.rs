//! The first run itself: asks, writes, and says what is next.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ask::{Asker, NoAnswer, yes};
use super::{backend as ask_backend, frontend as ask_frontend};
use crate::backend::introduce::Tell;
use crate::backend::join::{self, JoinError};
use crate::backend::probe::{self, Seen};
use crate::cli::{BackendArgs, InviteArgs};
use crate::code::{Code, Coded};
use crate::config::{self, ConfigError, NodeSide, ProvenBy, Service, places};
use crate::dial::OriginAddr;
use crate::frontend::book::{Book, BookError};
use crate::frontend::{bind_problem, invitations, kites::KitesError};
use crate::invitation::new_secret;
use crate::kite::{KiteName, Protocol};
use crate::listen;
use crate::observe::progress;
use crate::shutdown;
use crate::tahoe::dir::{DirError, NodeDir};
use crate::tahoe::{self, Kite, KiteError};
use crate::tls::{FileError, TlsServer, put_secret};
use ask_backend::Door;

/// How long what still runs of a step may take to end.
const END: Duration = Duration::from_secs(5);

/// What to do after the questions.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstRun {
    /// Start with this file.
    Start(PathBuf),
    /// All is written, and nothing is to be started now.
    Done,
}

/// Why the first run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FirstRunError {
    /// The person at the terminal is gone.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// There is no place for the file, or one is in the way.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The invitation came to nothing.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The frontend's file or key cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The book.
    #[error(transparent)]
    Book(#[from] BookError),
    /// Nobody can be invited.
    #[error(transparent)]
    Kites(#[from] KitesError),
    /// The node's file. The backend's is written.
    #[error(transparent)]
    Node(#[from] DirError),
    /// The system gives no threads.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

impl FirstRunError {
    /// True if what was said is to be mended, false if the world is.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Join(e) => e.is_usage(),
            Self::Kites(KitesError::Output(_) | KitesError::Ask(_)) | Self::Runtime(_) => false,
            _ => true,
        }
    }
}

impl Coded for FirstRunError {
    fn code(&self) -> Code {
        match self {
            Self::NoAnswer(_) => Code::NotWritten,
            Self::Config(e) => e.code(),
            Self::Join(e) => e.code(),
            Self::File(e) => e.code(),
            Self::Book(e) => e.code(),
            Self::Kites(e) => e.code(),
            Self::Node(e) => e.code(),
            Self::Runtime(_) => Code::Broken,
        }
    }
}

/// Runs a step that waits. All of it has ended when this returns: a backend builds its walls while it is alone.
fn wait<T>(step: impl Future<Output = T>) -> Result<T, FirstRunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(FirstRunError::Runtime)?;
    let done = runtime.block_on(step);
    runtime.shutdown_timeout(END);
    Ok(done)
}

fn directory() -> Result<PathBuf, ConfigError> {
    places::directory().ok_or_else(|| {
        config::problem(
            Code::NotWritten,
            "HOME",
            "there is no home directory to keep a configuration in",
            "give --config FILE",
        )
    })
}

/// `kite backend` for the first time.
pub fn backend(asker: &mut dyn Asker) -> Result<FirstRun, FirstRunError> {
    let dir = directory()?;
    let mut world = ask_backend::World {
        dir: dir.clone(),
        nodes: ask_backend::usual_nodes(),
        look: &mut look,
        is_free: &mut |at| bind(at).is_ok(),
    };
    let answers = ask_backend::ask(asker, &mut world)?;
    match answers.door {
        Door::Known(known) => asker.say(&known.write(&dir)?)?,
        Door::Invitation(join) => {
            // Without walls: what is asked next may want the node's files, and the backend builds its own.
            let begun = join.begin()?;
            let done = wait(async {
                // Ctrl-C ends it, as everywhere in the questions; what was begun is taken up again by the same invitation.
                let (_trigger, order) = shutdown::channel();
                let mut display = progress::Display::new();
                begun.run(move |p| display.show(p), order).await
            })?;
            let (join, config) = done?;
            let mut said = Vec::new();
            let _ = join::report(&join, &config, &mut said);
            let said = String::from_utf8_lossy(&said).into_owned();
            let written = said
                .lines()
                .take_while(|line| !line.starts_with("Start it"));
            asker.say(&written.collect::<Vec<_>>().join("\n"))?;
        }
    }
    if let Some(node) = &answers.node {
        offer_lines(asker, node, &answers.file)?;
    }
    start(asker, "backend", answers.file)
}

fn start(asker: &mut dyn Asker, role: &str, file: PathBuf) -> Result<FirstRun, FirstRunError> {
    // From here on all is written: who leaves now has a configuration.
    let now = yes(asker, "\nStart it now?", true).unwrap_or(false);
    if now {
        return Ok(FirstRun::Start(file));
    }
    let _ = asker.say(&format!("When you want it: kite {role}"));
    Ok(FirstRun::Done)
}

/// Looks at an origin as the backend does.
fn look(origin: &OriginAddr, kite: &KiteName) -> Seen {
    let Some(secret) = new_secret() else {
        return Seen::Unknown;
    };
    let service = Service {
        protocol: Protocol::Foolscap,
        port: None,
        name: kite.clone(),
        origin: origin.clone(),
        secret,
        by: ProvenBy::Secret,
        tub: None,
        tls_at_frontend: false,
        tell: Tell::default(),
    };
    wait(async move { probe::look(&service).await }).unwrap_or(Seen::Unknown)
}

/// Shows the lines that the node needs, and puts them in if that is wanted.
fn offer_lines(asker: &mut dyn Asker, dir: &Path, file: &Path) -> Result<(), FirstRunError> {
    let side = NodeSide::load(&BackendArgs {
        config: Some(file.to_path_buf()),
        ..BackendArgs::default()
    })?;
    let mut node = NodeDir::read(dir)?;
    let port = |name: &KiteName| tahoe::announced_port(&node.node.cfg, name);
    let kite = match Kite::new(&side, port) {
        Ok(kite) => kite,
        Err(KiteError::NoNode) => return Ok(()),
        Err(e) => return Ok(asker.say(&format!("\nNo lines for tahoe.cfg: {e}"))?),
    };
    let planned = match node.plan(&kite) {
        Ok(planned) => planned,
        // Without Tor there are none to be had.
        Err(DirError::Kite(e)) => return Ok(asker.say(&format!("\nNo lines for tahoe.cfg: {e}"))?),
        Err(e) => return Err(e.into()),
    };
    let cfg = dir.join("tahoe.cfg");
    if planned.is_empty() {
        return Ok(asker.say(&format!("\n{} has all the lines already.", cfg.display()))?);
    }
    asker.say(&format!(
        "\nThe node must announce the kite, and go out through the same Tor. {} needs these lines for that:\n{}\
         Whether visitors get through is proven once the kite flies: kite check says so.",
        cfg.display(),
        tahoe::show(&planned, "    ")
    ))?;
    if yes(asker, "Put them in? The old file is kept beside it.", true)? {
        let written = node.write(&kite)?;
        if let Some(backup) = &written.backup {
            asker.say(&format!("The old file is {}.", backup.display()))?;
        }
        asker.say("Restart the node once the kite flies: it reads the file at its start.")?;
    } else {
        asker.say(&format!("Later: kite tahoe --write {}", dir.display()))?;
    }
    Ok(())
}

/// `kite frontend` for the first time. The invitation's line goes to standard output.
pub fn frontend(asker: &mut dyn Asker) -> Result<FirstRun, FirstRunError> {
    let mut world = ask_frontend::World {
        dir: directory()?,
        state_dir: config::default_state_dir()?,
        bind: &mut bind,
    };
    let answers = ask_frontend::ask(asker, &mut world)?;
    let ask_frontend::Answers {
        file, state_dir, ..
    } = &answers;
    // The key first: what it lies on is checked, and without it the file is of no use.
    let pin = TlsServer::load_or_create(state_dir)?.pin();
    // A frontend without kites wants a book.
    drop(Book::open(state_dir)?);
    if file.exists() {
        let there = format!("{} is there already, and stays as it is", file.display());
        return Err(config::problem(
            Code::NotWritten,
            places::FRONTEND,
            there,
            "start it with --config",
        )
        .into());
    }
    put_secret(&world.dir, places::FRONTEND, answers.text.as_bytes())?;
    asker.say(&format!(
        "Written: {}. This frontend's key is {pin}.",
        file.display()
    ))?;
    if let Some(kite) = ask_frontend::first_kite(asker, &answers.name)? {
        let args = InviteArgs {
            name: kite.to_string(),
            config: Some(file.clone()),
            expires: "7d".to_owned(),
            ..InviteArgs::default()
        };
        let mut aside = Vec::new();
        wait(async { invitations::invite(&args, &mut std::io::stdout(), &mut aside).await })??;
        asker.say(&String::from_utf8_lossy(&aside))?;
    }
    start(asker, "frontend", answers.file)
}

/// Whether a port can be listened on; if not, what to do.
fn bind(at: SocketAddr) -> Result<(), String> {
    wait(async move { listen::bind(at).map(drop) })
        .map_err(|e| e.to_string())?
        .map_err(|e| bind_problem(&e, at.port()))
}
