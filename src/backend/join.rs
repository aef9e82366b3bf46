//! `kite backend join`: an invitation becomes a kite. The secret is made here, told to the frontend over a connection
//! such as the backend's own, and written down together with where it belongs.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::probe::{self, Seen, WEB_REMEDY};
use crate::cli::{BackendArgs, JoinArgs};
use crate::code::{Code, Coded};
use crate::config::draft::{BackendDraft, Way};
use crate::config::{self, BackendConfig, ConfigError, Service, places};
use crate::dial::{DialError, Dialer, EgressArgs, FrontendAddr, Lane, OriginAddr};
use crate::invitation::{Invitation, InvitationError, MAX_LINE, new_secret};
use crate::kite::{KiteName, Protocol, Secret};
use crate::observe::progress::Event;
use crate::run::RunError;
use crate::sandbox;
use crate::shutdown::Shutdown;
use crate::sniff::TubId;
use crate::tahoe::dir::{DirError, NodeDir, replace};
use crate::tls::{FileError, put_secret};
use crate::way_out::WayOut;
use crate::wire::join::{Ask, Heard, MAX_BODY, Refusal, Reply, parse_reply, put_ask};
use crate::wizard::ask::{self, Asker, NoAnswer};

/// How long the frontend may take to answer, once the connection stands.
const ANSWER: Duration = Duration::from_secs(60);
/// How often the frontend is dialled: through Tor the first circuit may fail.
const DIALS: u32 = 3;
/// The pause between two.
const PAUSE: Duration = Duration::from_secs(2);
/// Letters of the invitation's number in the secret's file name: enough to tell two invitations apart.
const NUMBER: usize = 8;

/// Why nothing came of an invitation.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is in the process list now.
    #[error(
        "an invitation is a secret, and was given as an argument, which everyone on this machine can read in the \
         process list, and which the shell's history keeps. It was not used. If others use this machine ask for \
         another invitation; then run `kite backend join` and paste it, or give --invitation-file FILE"
    )]
    Misplaced,
    /// It is no invitation.
    #[error("this is no invitation that can be used: {0}")]
    Invitation(#[from] InvitationError),
    /// The file with it.
    #[error("{}: the invitation cannot be read: {problem}", .path.display())]
    File {
        /// The file, or standard input.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Nobody has said whether Tor is wanted.
    #[error(
        "it is not said how the frontend is to be reached; add --via-tor, or --direct if the frontend and everyone on \
         the way may see this machine's address"
    )]
    Way,
    /// The file says otherwise.
    #[error(
        "{} {says}, and this command line says otherwise. All kites of one backend go out in one way: change `enabled` \
         under [tor] there first, or give --to another directory", .file.display()
    )]
    OtherWay {
        /// The backend's file.
        file: PathBuf,
        /// What it says.
        says: &'static str,
    },
    /// An onion address, and no Tor.
    #[error(
        "the invitation is for an onion address, which can be reached through Tor only; use --via-tor"
    )]
    NeedsTor,
    /// Nobody has said what is behind the kite.
    #[error(
        "it is not said which server is behind the kite; add --origin 127.0.0.1:PORT, or --node DIR with the directory \
         of a Tahoe-LAFS node"
    )]
    Origin,
    /// The node's file does not say where it listens.
    #[error(
        "{}: its tahoe.cfg has no tub.port on an address of this machine; set tub.port = tcp:49293:interface=127.0.0.1 \
         under [node] and restart the node, or give --origin", .0.display()
    )]
    NoTubPort(PathBuf),
    /// The node's directory.
    #[error(transparent)]
    Node(#[from] DirError),
    /// It is there.
    #[error("{}: {kite} is in it already; remove its table first, or give --to another directory", .file.display())]
    Already {
        /// The backend's file.
        file: PathBuf,
        /// The kite.
        kite: KiteName,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The secret cannot be written.
    #[error(transparent)]
    Secret(#[from] FileError),
    /// The backend's file cannot be written.
    #[error("{}: cannot be written: {source}; run this as its owner, or give --to DIR", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The frontend was not reached. It has heard nothing.
    #[error("{frontend}: {source}; {}. The invitation was not used", .source.hint())]
    Dial {
        /// Which.
        frontend: Box<FrontendAddr>,
        /// Why.
        source: DialError,
    },
    /// It was reached, and fell silent.
    #[error(
        "{0}: the connection was lost before there was an answer; run the same command again, with the same \
         invitation: nothing is lost by that"
    )]
    Lost(Box<FrontendAddr>),
    /// Another program, or an older kite.
    #[error(
        "{0}: it answers, but knows nothing of invitations; ask its operator to install a newer kite, or for a secret"
    )]
    Foreign(Box<FrontendAddr>),
    /// It said no.
    #[error("{kite} at {frontend}: {why}")]
    Refused {
        /// Which frontend.
        frontend: Box<FrontendAddr>,
        /// Which kite.
        kite: KiteName,
        /// Why.
        why: Refusal,
    },
    /// The kite may not carry there what it is for.
    #[error(
        "{frontend}: it lets {kite} carry {granted}, and not {wanted}; if the origin is for that, run the same command \
         again with --protocol, else ask the frontend's operator"
    )]
    Protocols {
        /// Which frontend.
        frontend: Box<FrontendAddr>,
        /// Which kite.
        kite: KiteName,
        /// What it is for.
        wanted: Protocol,
        /// What it may carry.
        granted: String,
    },
    /// The person at the terminal is gone.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// The order to stop.
    #[error(
        "stopped; run the same command again, with the same invitation: nothing is lost by that"
    )]
    Stopped,
    /// Nobody reads what we say.
    #[error("cannot write: {0}")]
    Output(io::Error),
    /// It is not clear how to go out, or Tor cannot be started.
    #[error(transparent)]
    Out(#[from] Box<RunError>),
    /// Another frontend would hear of the kite.
    #[error(
        "{}: {frontend} has no `kites`, so it is asked for all of them, and would hear of {kite}; write kites = […] under \
         it, with the names that are for it", .file.display()
    )]
    Hears {
        /// The backend's file.
        file: PathBuf,
        /// Who would hear.
        frontend: Box<FrontendAddr>,
        /// Of what.
        kite: KiteName,
    },
    /// It would make public what must not be.
    #[error("the origin {0} is a web server; {WEB_REMEDY}. The invitation was not used")]
    IsWeb(OriginAddr),
}

impl JoinError {
    /// True if what was said is to be mended, false if the world is.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Lost(_) | Self::Stopped | Self::Output(_) => false,
            Self::Out(e) => e.is_configuration(),
            _ => true,
        }
    }
}

impl Coded for JoinError {
    fn code(&self) -> Code {
        match self {
            Self::Misplaced
            | Self::Invitation(_)
            | Self::File { .. }
            | Self::Way
            | Self::Origin
            | Self::NoTubPort(_) => Code::InvitationUnusable,
            Self::OtherWay { .. } | Self::Already { .. } | Self::Hears { .. } => {
                Code::Contradiction
            }
            Self::Out(e) => e.code(),
            Self::NeedsTor => Code::TorOff,
            Self::Node(e) => e.code(),
            Self::Config(e) => e.code(),
            Self::Secret(_) | Self::Write { .. } | Self::NoAnswer(_) | Self::Stopped => {
                Code::NotWritten
            }
            Self::Dial { source, .. } => source.code(),
            Self::Lost(_) | Self::Foreign(_) | Self::Refused { .. } | Self::Protocols { .. } => {
                Code::InvitationRefused
            }
            Self::Output(_) => Code::OutputFailed,
            Self::IsWeb(_) => Code::OriginIsWeb,
        }
    }
}

/// All that is needed to take an invitation up. Nothing has been written or dialled.
#[derive(Debug)]
pub struct Join {
    invitation: Invitation,
    /// The directory for the files.
    dir: PathBuf,
    /// The file as it is now, with what it says.
    old: Option<(String, BackendConfig)>,
    way: Way,
    origin: OriginAddr,
    tub: Option<TubId>,
    protocol: Protocol,
}

/// In words.
fn list(protocols: &[Protocol]) -> String {
    match protocols {
        [] => "nothing that this kite knows".to_owned(),
        known => known
            .iter()
            .map(|p| p.to_string())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

impl Join {
    /// Reads the invitation and what there is. `asker` is asked for what the flags do not say, if there is one.
    pub fn prepare(args: &JoinArgs, mut asker: Option<&mut dyn Asker>) -> Result<Self, JoinError> {
        if !args.misplaced.is_empty() {
            return Err(JoinError::Misplaced);
        }
        let dir = match args.to.clone().or_else(places::directory) {
            Some(dir) => dir,
            None => {
                return Err(config::problem(
                    Code::NotWritten,
                    "--to",
                    "there is no home directory",
                    "give --to DIR",
                )
                .into());
            }
        };
        let old = read_old(&dir.join(places::BACKEND))?;
        let invitation = match (&args.invitation_file, &mut asker) {
            (Some(path), _) => read_invitation(path, std::fs::File::open(path))?,
            (None, Some(asker)) => ask_invitation(&mut **asker)?,
            (None, None) => read_invitation(Path::new("standard input"), Ok(io::stdin().lock()))?,
        };
        let file = dir.join(places::BACKEND);
        if let Some((_, old)) = &old
            && old.services.iter().any(|s| s.name == invitation.kite)
        {
            let kite = invitation.kite;
            return Err(JoinError::Already { file, kite });
        }
        let hears = |f: &&config::Frontend| f.kites.is_none() && f.address != invitation.frontend;
        if let Some((_, old)) = &old
            && let Some(other) = old.frontends.iter().find(hears)
        {
            return Err(JoinError::Hears {
                file,
                frontend: Box::new(other.address.clone()),
                kite: invitation.kite,
            });
        }
        let way = way(args, &file, old.as_ref().map(|(_, old)| old), &mut asker)?;
        if invitation.frontend.is_onion() && !way.via_tor {
            return Err(JoinError::NeedsTor);
        }
        let (origin, tub) = origin(args, &mut asker)?;
        Ok(Self {
            invitation,
            dir,
            old,
            way,
            origin,
            tub,
            protocol: args.protocol.unwrap_or(Protocol::Foolscap),
        })
    }

    /// One that a wizard has put together, for a file that is new.
    pub fn new(
        invitation: Invitation,
        dir: PathBuf,
        way: Way,
        origin: OriginAddr,
        tub: Option<TubId>,
    ) -> Self {
        Self {
            invitation,
            dir,
            old: None,
            way,
            origin,
            tub,
            protocol: Protocol::Foolscap,
        }
    }

    /// Whether Tor is needed.
    pub fn uses_tor(&self) -> bool {
        self.way.via_tor
    }

    /// The backend's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(places::BACKEND)
    }

    /// Makes the secret, and sees that all that is to be written can be read. Nobody has been told of it.
    pub fn begin(self) -> Result<Begun, JoinError> {
        let secret_file = self.secret_file();
        let (secret, is_new) = self.secret(&secret_file)?;
        let chosen = self.check(self.protocol).and_then(|config| {
            let args = EgressArgs {
                via_tor: config.tor.enabled || self.way.via_tor,
                ..config.egress()
            };
            let way_out = WayOut::choose(args, config.ca_file.as_deref()).map_err(Box::new)?;
            Ok((config, way_out))
        });
        let secret = Made {
            secret,
            path: self.dir.join(&secret_file),
            is_new,
        };
        match chosen {
            Ok((config, way_out)) => Ok(Begun {
                join: self,
                secret,
                config,
                way_out,
            }),
            Err(e) => {
                secret.forget();
                Err(e)
            }
        }
    }

    fn draft(&self, protocol: Protocol) -> BackendDraft {
        BackendDraft {
            way: self.way.clone(),
            frontend: self.invitation.frontend.clone(),
            kite: self.invitation.kite.clone(),
            protocol,
            origin: self.origin.clone(),
            tub: self.tub.filter(|_| protocol == Protocol::Foolscap),
            secret_file: self.secret_file(),
            by_tub: false,
        }
    }

    /// A name that no other invitation's secret has.
    fn secret_file(&self) -> String {
        let id = self.invitation.token.id();
        let number = id.get(..NUMBER).unwrap_or(&id);
        let kite = self.invitation.kite.as_str().replace('*', "any");
        format!("{kite}-{number}.secret")
    }

    /// The file as it is to be.
    pub fn text(&self, protocol: Protocol) -> String {
        let draft = self.draft(protocol);
        match &self.old {
            None => draft.whole(),
            Some((text, old)) => {
                let same = |f: &config::Frontend| f.address == draft.frontend && f.kites.is_none();
                draft.appended(text, old.frontends.iter().any(same))
            }
        }
    }

    /// The secret: an earlier try's, or a new one, written down before anybody hears of it.
    fn secret(&self, name: &str) -> Result<(Secret, bool), JoinError> {
        let path = self.dir.join(name);
        if path.exists() {
            return Ok((config::read_secret("secret_file", &path)?, false));
        }
        let secret = new_secret().ok_or_else(|| {
            config::problem(Code::Broken, "secret", "none can be made", "try again")
        })?;
        let text = Zeroizing::new([secret.expose(), b"\n"].concat());
        put_secret(&self.dir, name, &text)?;
        Ok((secret, true))
    }

    /// Would kite take the file?
    fn check(&self, protocol: Protocol) -> Result<BackendConfig, JoinError> {
        let name = format!("{}.{}", places::BACKEND, std::process::id());
        put_secret(&self.dir, &name, self.text(protocol).as_bytes())?;
        let path = self.dir.join(&name);
        let loaded = load(&path);
        let _ = std::fs::remove_file(&path);
        Ok(loaded?)
    }

    fn write(&self, protocol: Protocol) -> Result<(), JoinError> {
        let text = self.text(protocol);
        match self.old {
            None => put_secret(&self.dir, places::BACKEND, text.as_bytes())?,
            // With the owner and mode of the old one, of which a copy is kept.
            Some(_) => {
                let path = self.file();
                replace(&path, &text).map_err(|source| JoinError::Write { path, source })?;
            }
        }
        Ok(())
    }
}

/// A secret on the disk.
#[derive(Debug)]
struct Made {
    secret: Secret,
    path: PathBuf,
    /// No earlier try has left it.
    is_new: bool,
}

impl Made {
    /// Nobody has heard of it.
    fn forget(&self) {
        if self.is_new {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// All that was to be done before the frontend is asked has been done.
#[derive(Debug)]
pub struct Begun {
    join: Join,
    secret: Made,
    config: BackendConfig,
    way_out: WayOut,
}

impl Begun {
    /// What this is about.
    pub fn join(&self) -> &Join {
        &self.join
    }

    /// In Tor mode, builds the walls that a backend has; what is still to be written can be. To be called before any other thread
    /// is there.
    pub fn confine(&self) -> Result<(), JoinError> {
        let keep = sandbox::Plan {
            directories: vec![self.join.dir.clone(), self.config.state_dir.clone()],
            ..sandbox::Plan::default()
        };
        Ok(self.way_out.confine(keep).map_err(Box::new)?)
    }

    /// Tells the frontend the secret, and writes down where it belongs. `progress` hears of Tor's start.
    pub async fn run(
        self,
        progress: impl FnMut(&Event<'_>) + Send,
        shutdown: Shutdown,
    ) -> Result<(Join, BackendConfig), JoinError> {
        let Self {
            join,
            secret,
            config,
            way_out,
        } = self;
        if join.leads_to_web(&config).await {
            secret.forget();
            return Err(JoinError::IsWeb(join.origin));
        }
        let exchange = join.exchange(way_out, &secret.secret, progress);
        let exchanged = tokio::select! {
            exchanged = exchange => exchanged,
            () = shutdown.requested() => return Err(JoinError::Stopped),
        };
        let protocols = match exchanged {
            Ok(protocols) => protocols,
            Err(e) => {
                // Where the frontend may have taken it the secret is kept, for the next try.
                let unsure = matches!(e, JoinError::Lost(_))
                    || matches!(&e, JoinError::Refused { why, .. } if *why == Refusal::Trouble);
                if !unsure {
                    secret.forget();
                }
                return Err(e);
            }
        };
        let known = protocols.iter().filter_map(|word| word.parse().ok());
        let known: Vec<Protocol> = known.collect();
        // What the kite is for is said on this side: else a frontend could have it carry what the origin must not show.
        if !known.contains(&join.protocol) {
            return Err(JoinError::Protocols {
                frontend: Box::new(join.invitation.frontend.clone()),
                kite: join.invitation.kite.clone(),
                wanted: join.protocol,
                granted: list(&known),
            });
        }
        join.write(join.protocol)?;
        Ok((join, config))
    }
}

impl Join {
    /// Is the new kite's origin Tahoe's web interface? What is not there yet, or says nothing, is told by the backend; so are
    /// the origins of kites that were there before.
    async fn leads_to_web(&self, config: &BackendConfig) -> bool {
        let is_new = |kite: &&Service| kite.name == self.invitation.kite;
        match config.services.iter().find(is_new) {
            Some(kite) if kite.protocol == Protocol::Foolscap => {
                probe::look(kite).await == Seen::Web
            }
            _ => false,
        }
    }

    /// Dials as the backend will, and asks.
    async fn exchange(
        &self,
        way_out: WayOut,
        secret: &Secret,
        mut progress: impl FnMut(&Event<'_>) + Send,
    ) -> Result<Vec<String>, JoinError> {
        let opened = way_out.open(|p| progress(&Event::Tor(&p))).await;
        let way = opened.map_err(Box::new)?;
        let reply = ask_frontend(&*way.dialer, &self.invitation, secret).await?;
        match reply {
            Reply::Joined { protocols } => Ok(protocols),
            Reply::Refused(why) => Err(JoinError::Refused {
                frontend: Box::new(self.invitation.frontend.clone()),
                kite: self.invitation.kite.clone(),
                why,
            }),
        }
    }
}

/// One request and one answer.
pub async fn ask_frontend(
    dialer: &dyn Dialer,
    invitation: &Invitation,
    secret: &Secret,
) -> Result<Reply, JoinError> {
    let frontend = &invitation.frontend;
    let mut tries = 1;
    let dialled = loop {
        match dialer.dial(frontend, Lane(0)).await {
            Ok(dialled) => break dialled,
            Err(source) if tries >= DIALS || !source.blames_path() => {
                let frontend = Box::new(frontend.clone());
                return Err(JoinError::Dial { frontend, source });
            }
            Err(source) => tracing::info!("{frontend}: {source}; trying again"),
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    };
    let mut conn = dialled.conn;
    let text = Zeroizing::new(String::from_utf8_lossy(secret.expose()).into_owned());
    let request = put_ask(&Ask {
        token: invitation.token.text().to_string(),
        kite: invitation.kite.to_string(),
        secret: text.to_string(),
    });
    let asking = async {
        conn.write_all(&request).await?;
        conn.flush().await?;
        let mut got = BytesMut::with_capacity(MAX_BODY);
        loop {
            match parse_reply(&got) {
                Heard::NeedMore => {}
                heard => return io::Result::Ok(heard),
            }
            if conn.read_buf(&mut got).await? == 0 {
                return Ok(Heard::NeedMore);
            }
        }
    };
    match timeout(ANSWER, asking).await {
        Ok(Ok(Heard::Reply(reply))) => Ok(reply),
        Ok(Ok(Heard::Foreign)) => Err(JoinError::Foreign(Box::new(frontend.clone()))),
        _ => Err(JoinError::Lost(Box::new(frontend.clone()))),
    }
}

fn load(path: &Path) -> Result<BackendConfig, ConfigError> {
    BackendConfig::load(&BackendArgs {
        config: Some(path.to_path_buf()),
        ..BackendArgs::default()
    })
}

fn read_old(path: &Path) -> Result<Option<(String, BackendConfig)>, JoinError> {
    if !path.exists() {
        return Ok(None);
    }
    let config = load(path)?;
    let unreadable = |problem| JoinError::File {
        path: path.to_path_buf(),
        problem,
    };
    let bytes = config::read_limited(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes.to_vec()).map_err(|e| unreadable(e.to_string()))?;
    Ok(Some((text, config)))
}

fn read_invitation(path: &Path, from: io::Result<impl Read>) -> Result<Invitation, JoinError> {
    let mut text = Zeroizing::new(String::new());
    let limit = 2 * MAX_LINE as u64;
    from.and_then(|from| from.take(limit).read_to_string(&mut text))
        .map_err(|e| JoinError::File {
            path: path.to_path_buf(),
            problem: e.to_string(),
        })?;
    Ok(text.parse()?)
}

/// Asks for the line, and says what it says.
pub fn ask_invitation(asker: &mut dyn Asker) -> Result<Invitation, NoAnswer> {
    let mut check = |text: &str| {
        text.parse::<Invitation>()
            .map_err(|e| format!("This is no invitation that can be used: {e}."))
    };
    let invitation = ask::ask(asker, "Paste the invitation:", None, &mut check)?;
    let Invitation { frontend, kite, .. } = &invitation;
    asker.say(&format!("  It lets you fly {kite} at {frontend}."))?;
    Ok(invitation)
}

/// What the flags say of Tor, or the person at the terminal.
fn decide(args: &JoinArgs, asker: &mut Option<&mut dyn Asker>) -> Result<bool, JoinError> {
    match asker {
        _ if args.via_tor => Ok(true),
        _ if args.direct => Ok(false),
        Some(asker) => Ok(ask_tor(&mut **asker)?),
        None => Err(JoinError::Way),
    }
}

fn way(
    args: &JoinArgs,
    file: &Path,
    old: Option<&BackendConfig>,
    asker: &mut Option<&mut dyn Asker>,
) -> Result<Way, JoinError> {
    let via_tor = match old {
        Some(old) => {
            if !old.tor.said {
                return Ok(Way {
                    via_tor: decide(args, asker)?,
                    ..Way::default()
                });
            }
            let says = match old.tor.enabled {
                true if args.direct => "goes through Tor",
                false if args.via_tor => "does without Tor",
                through_tor => {
                    return Ok(Way {
                        via_tor: through_tor,
                        ..Way::default()
                    });
                }
            };
            let file = file.to_path_buf();
            return Err(JoinError::OtherWay { file, says });
        }
        None => decide(args, asker)?,
    };
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Ok(Way {
        via_tor,
        tor_config: args.tor_config.as_ref().map(absolute),
        socks: args.socks_listen.filter(|_| via_tor),
        state_dir: args.state_dir.as_ref().map(absolute),
    })
}

/// Asks for Tor, and says what it costs to do without.
pub fn ask_tor(asker: &mut dyn Asker) -> Result<bool, NoAnswer> {
    let via_tor = ask::yes(
        asker,
        "Go through Tor, so that nobody learns this machine's address?",
        true,
    )?;
    if !via_tor {
        asker.say(
            "  Then the frontend's operator, and everyone on the way, sees this machine's address and when it is up.",
        )?;
    }
    Ok(via_tor)
}

fn origin(
    args: &JoinArgs,
    asker: &mut Option<&mut dyn Asker>,
) -> Result<(OriginAddr, Option<TubId>), JoinError> {
    if let Some(dir) = &args.node {
        let node = NodeDir::read(dir)?;
        let at = node
            .node
            .tub_address()
            .ok_or_else(|| JoinError::NoTubPort(dir.clone()))?;
        return Ok((OriginAddr::Tcp(at), node.node.tub));
    }
    let parse = |text: &str| OriginAddr::parse(text, false);
    if let Some(text) = &args.origin {
        let origin = parse(text).map_err(|e| {
            config::problem(
                Code::BadOrigin,
                "--origin",
                e,
                "write an address such as 127.0.0.1:49293",
            )
        })?;
        return Ok((origin, None));
    }
    let Some(asker) = asker else {
        return Err(JoinError::Origin);
    };
    let mut check = |text: &str| parse(text).map_err(|e| format!("{e}."));
    let question = "Which server is behind the kite? (its address, such as 127.0.0.1:49293)";
    Ok((ask::ask(&mut **asker, question, None, &mut check)?, None))
}

/// What to say when all is done.
pub fn report(join: &Join, config: &BackendConfig, out: &mut dyn Write) -> io::Result<()> {
    let file = join.file();
    let (shown, usual) = (file.display(), places::usual(places::BACKEND));
    writeln!(
        out,
        "{} may fly at {}.",
        join.invitation.kite, join.invitation.frontend
    )?;
    writeln!(
        out,
        "Written: {shown}, and {} with the secret.",
        join.dir.join(join.secret_file()).display()
    )?;
    let flag = match usual == Some(file.clone()) {
        true => String::new(),
        false => format!(" --config {shown}"),
    };
    match crate::observe::status::Role::Backend
        .socket(&config.state_dir)
        .exists()
    {
        true => writeln!(
            out,
            "A backend may be running: tell it with `kite reload{flag}`."
        )?,
        false => writeln!(out, "Start it: kite backend{flag}")?,
    }
    out.flush()
}
