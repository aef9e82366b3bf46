//! Flags, environment and file, made into one validated value per role.
//!
//! Everything is parsed once, here, into types that need no further checks. What
//! stands on the command line replaces the file's key. Unknown keys are errors.
//! Paths in a file are relative to that file. pagekite.py's rc files are translated to the
//! same keys first ([`crate::rc`]).

pub mod draft;
pub mod places;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::backend::introduce::Tell;
use crate::cli::{BackendArgs, FrontendArgs};
use crate::code::{Code, Coded};
use crate::dial::target::{FrontendAddr, OriginAddr, Trust};
use crate::dial::{EgressArgs, question};
use crate::frontend::account::end_of_day;
use crate::frontend::authority::{self, Authority, Source as Asked};
use crate::frontend::balancer::Balancers;
use crate::frontend::book::Book;
use crate::frontend::limits::Limits;
use crate::frontend::storage::Policy;
use crate::kite::{KiteName, Ported, Protocol, Secret};
use crate::listen::LocalAddr;
use crate::rc::{self, Mistake, Rc, Translation};
use crate::shutdown;
use crate::sniff::TubId;
use crate::tor::TorSettings;
use crate::wiped;
use crate::witness::Witnessing;

use file::{
    AcmeTable, AuthorityEntry, BackendFile, CertificateEntry, FrontendEntry, FrontendFile,
    GrantEntry, KiteProof, ListenEntry, ListenTable, LocalTable, PageTable, ServiceEntry, TlsEnd,
    TorTable,
};

pub(crate) mod credential;
mod etcd;
pub mod file;
mod fleet;
mod tub;

pub use etcd::EtcdConfig;
pub use fleet::FleetConfig;
pub use tub::{Open, OpenProof};

/// Largest configuration or secret file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// The authority that certificates come from unless another is named.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Most tunnels to one frontend.
pub const MAX_TUNNELS: u8 = 4;
/// Most backends that may fly one kite at one frontend.
pub const MAX_BACKENDS: u8 = 16;
/// Tunnels to one frontend through Tor: no circuit is the only one.
const TUNNELS_VIA_TOR: u8 = 2;
/// The variable that may hold the secret.
pub const SECRET_VARIABLE: &str = "KITE_SECRET";

/// What is wrong with the configuration, where, and what to do about it.
#[derive(Debug)]
pub struct ConfigError {
    code: Code,
    place: String,
    problem: String,
    remedy: String,
}

impl ConfigError {
    fn new(
        code: Code,
        place: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self {
            code,
            place: place.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n  to mend it: {}",
            self.place, self.problem, self.remedy
        )
    }
}

impl std::error::Error for ConfigError {}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        self.code
    }
}

impl From<Mistake> for ConfigError {
    fn from(mistake: Mistake) -> Self {
        Self::new(
            Code::RcMistake,
            mistake.place,
            mistake.problem,
            mistake.remedy,
        )
    }
}

type Result<T> = std::result::Result<T, ConfigError>;

/// All that `kite frontend` needs to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FrontendConfig {
    /// Where visitors and backends come in. Never empty.
    pub listen: Vec<Listen>,
    /// Who may fly what, but for the kites of the book.
    pub kites: Vec<Grant>,
    /// For the kites of the book, where they say nothing.
    pub limits: Limits,
    /// Who is asked about other kites.
    pub authorities: Vec<Authority>,
    /// The file with the message of the day.
    pub motd: Option<PathBuf>,
    /// The public host name, for the printed address.
    pub name: Option<String>,
    /// Whether backends may come through an onion service, too.
    pub onion: TorChoice,
    /// Where the frontend's keys are kept.
    pub state_dir: PathBuf,
    /// Whether peers' addresses may be logged.
    pub log_peers: bool,
    /// Certificates to be shown by name.
    pub certificates: Vec<CertificateFiles>,
    /// Certificates to be got from an authority.
    pub acme: Option<Acme>,
    /// What is offered to this machine alone.
    pub local: LocalPlaces,
    /// The page at the frontend's own name.
    pub page: OwnPage,
    /// What it carries, whatever its kites are allowed.
    pub policy: Policy,
    /// Kites of strangers, if they are taken.
    pub open: Option<Open>,
    /// The other frontends that serve the same domain, if there are any.
    pub fleet: Option<FleetConfig>,
    /// Whom to become once the ports are open, as the operator wrote it.
    pub user: Option<String>,
    /// The file that this was read from, and those of its secrets.
    pub read_from: Vec<PathBuf>,
    /// How long what runs may go on after the order to stop.
    pub drain: Duration,
    /// How long after a start visitors wait for a kite that is not back yet.
    pub grace: Duration,
}

/// Where a running kite shows itself to this machine, if it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalPlaces {
    /// Metrics, for Prometheus.
    pub metrics: Option<LocalAddr>,
    /// The status page, for people.
    pub web: Option<LocalAddr>,
}

impl LocalPlaces {
    /// Is it one of these?
    pub fn has(&self, place: &LocalAddr) -> bool {
        [&self.metrics, &self.web].contains(&&Some(place.clone()))
    }
}

/// What visitors of a frontend's own name see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPage {
    /// Whether there is one.
    pub enabled: bool,
    /// How to reach the operator, as it is shown.
    pub contact: Option<String>,
}

impl Default for OwnPage {
    fn default() -> Self {
        Self {
            enabled: true,
            contact: None,
        }
    }
}

/// Which certificates to get, and from whom (RFC 8555). Who writes this has accepted the authority's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// One certificate for each. Never empty; no wildcards.
    pub names: Vec<KiteName>,
    /// Where the authority may write to, without `mailto:`.
    pub contact: Option<String>,
    /// The authority's directory, an https URL.
    pub directory: String,
    /// More certificate authorities, PEM, for the directory's own TLS.
    pub ca_file: Option<PathBuf>,
    /// As [`CertificateFiles::endpoints`].
    pub endpoints: bool,
    /// As [`CertificateFiles::redirect`].
    pub redirect: bool,
}

/// A certificate on disk, and what it is used for besides the tunnels of those who ask for its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first, PEM.
    pub cert: PathBuf,
    /// Its key, PEM; may be in the same file.
    pub key: PathBuf,
    /// Shown to whoever names nobody.
    pub default: bool,
    /// Visitors' TLS is ended also for `http` kites of older backends, which cannot ask for it.
    pub endpoints: bool,
    /// Visitors in the clear are sent to https, where TLS is ended for the kite.
    pub redirect: bool,
}

/// One listening address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address and port.
    pub address: SocketAddr,
    /// The port as visitors know it and kites are told, if a firewall or a load balancer leads it here
    /// (pagekite.py's `portalias`).
    pub port: Option<u16>,
    /// The kite that the port belongs to: TLS visitors without a server name are brought to it.
    pub kite: Option<KiteName>,
    /// All of the port's visitors are the raw kite's, from the first byte on.
    pub raw: bool,
    /// The load balancers that alone may connect, and say by a PROXY header whom each connection is from.
    pub balancers: Option<Balancers>,
}

impl Listen {
    /// A port for all kites, and for backends.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            port: None,
            kite: None,
            raw: false,
            balancers: None,
        }
    }
}

/// Names that may be flown with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Exact, or a wildcard.
    pub pattern: KiteName,
    /// What may be carried under these names.
    pub protocols: BTreeSet<Protocol>,
    /// What a backend must prove to know.
    pub secret: Secret,
    /// Whether PageKite's own signature is enough.
    pub proof: ProofRule,
    /// How much, and how fast.
    pub limits: Limits,
    /// The first second in which it does not fly any more, since 1970.
    pub expires: Option<u64>,
    /// How many backends may fly one of these names at a time, from 1 to [`MAX_BACKENDS`].
    pub backends: u8,
}

/// Which proof of the secret a grant takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProofRule {
    /// KiteProof1 where it was agreed, else PageKite's signature.
    #[default]
    Optional,
    /// KiteProof1 and nothing else.
    Required,
}

/// All that `kite backend` needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// How frontends are reached: if enabled, through Tor and in no other way.
    pub tor: TorChoice,
    /// Where the node may come in to go out through Tor. Loopback, and only with Tor.
    pub socks: Option<SocketAddr>,
    /// Frontends to dial. Never empty.
    pub frontends: Vec<Frontend>,
    /// Kites to fly. Never empty.
    pub services: Vec<Service>,
    /// More certificate authorities for CA-verified frontends.
    pub ca_file: Option<PathBuf>,
    /// Where Tor's state is kept.
    pub state_dir: PathBuf,
    /// What is offered to this machine alone.
    pub local: LocalPlaces,
    /// Whether it visits its own kites.
    pub witnessing: Witnessing,
    /// How long what runs may go on after the order to stop.
    pub drain: Duration,
}

impl BackendConfig {
    /// What it says of the way out.
    pub fn egress(&self) -> EgressArgs {
        EgressArgs {
            via_tor: self.tor.enabled,
            tor: TorSettings {
                state_dir: self.state_dir.clone(),
                config: self.tor.config.clone(),
            },
        }
    }
}

/// Whether to use Tor, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TorChoice {
    /// Whether an embedded Tor client is started.
    pub enabled: bool,
    /// Whether somebody has said so, or said the contrary. Who runs kite with `--via-tor` need not have written it into the file,
    /// so that no other command may take silence for leave to dial directly.
    pub said: bool,
    /// Arti's own settings.
    pub config: Option<PathBuf>,
}

/// One frontend to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    /// Where it is, and how it proves itself.
    pub address: FrontendAddr,
    /// The kites to fly there; `None` for all.
    pub kites: Option<Vec<KiteName>>,
    /// How many tunnels to keep there, from 1 to [`MAX_TUNNELS`]. A frontend that is no kite
    /// gets one.
    pub tunnels: u8,
    /// Whether it may name other frontends of its fleet, to which tunnels are kept as well.
    pub homes: bool,
}

/// What of a backend's configuration concerns the node behind it. No secret is read for it.
#[derive(Debug)]
pub struct NodeSide {
    /// Whether the backend goes out through Tor.
    pub via_tor: bool,
    /// Where the node may come in to go out through Tor.
    pub socks: Option<SocketAddr>,
    /// The kites. Never empty.
    pub kites: Vec<Service<()>>,
    /// Where the backend answers, if that is known.
    pub state_dir: Option<PathBuf>,
}

/// One kite to fly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service<S = Secret> {
    /// What it carries.
    pub protocol: Protocol,
    /// The public port whose visitors it is for; `None` for those of any.
    pub port: Option<u16>,
    /// Its public name.
    pub name: KiteName,
    /// The server behind it.
    pub origin: OriginAddr,
    /// What proves that it is ours.
    pub secret: S,
    /// How that proves it.
    pub by: ProvenBy,
    /// The node's TubID; visitors for another are turned away. Only foolscap kites have one.
    pub tub: Option<TubId>,
    /// Frontends are asked to end its visitors' TLS with a certificate of their own. They can read all of
    /// it then. Only `http` and `websocket` kites.
    pub tls_at_frontend: bool,
    /// What the origin is told of its visitors.
    pub tell: Tell,
}

/// How a kite is proved to be ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvenBy {
    /// By a secret that the frontend has, too.
    #[default]
    Secret,
    /// By its name, which is its tub's: the secret is the tub's certificate and key, PEM.
    TubKey,
    /// By its name, and by the node that answers at this end. The secret is of no use to anybody.
    Node,
}

impl Service {
    /// Is it proved to be ours in the same way as this one? What stands in a secret's place where none is needed is
    /// another each time.
    pub fn is_proved_as(&self, other: &Self) -> bool {
        self.by == other.by && (self.by == ProvenBy::Node || self.secret == other.secret)
    }
}

impl<S> Service<S> {
    /// Its protocol with its port.
    pub fn ported(&self) -> Ported {
        Ported {
            protocol: self.protocol,
            port: self.port,
        }
    }
}

// ------------------------------------------------------------------- files

/// A file that one role reads.
trait RoleFile: for<'de> Deserialize<'de> + Default {
    /// The role.
    const ROLE: rc::Role;
}

impl RoleFile for FrontendFile {
    const ROLE: rc::Role = rc::Role::Frontend;
}

impl RoleFile for BackendFile {
    const ROLE: rc::Role = rc::Role::Backend;
}

/// A configuration file and what messages call it.
struct Source {
    shown: String,
    dir: PathBuf,
    /// What it was translated from, if it is no TOML.
    rc: Option<Translation>,
}

/// Line, column and key of what a parser points to. The line itself is not shown: a secret may stand there by mistake.
fn place_in(shown: &str, text: &str, span: Option<Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return shown.to_owned();
    };
    let line = before.matches('\n').count() + 1;
    let last = before.rsplit('\n').next().unwrap_or_default();
    let place = format!("{shown}:{line}:{}", last.chars().count() + 1);
    match last.split_once('=') {
        Some((key, _)) => format!("{place}: {}", key.trim()),
        None => place,
    }
}

/// What a parser says, without the value that it found: it may be a secret.
fn without_value(message: &str) -> Cow<'_, str> {
    let found = message.split_once(['"', '`']);
    match (found, message.rsplit_once(", expected ")) {
        (Some((kind, _)), Some((_, wanted))) if kind.starts_with("invalid ") => {
            format!("{}, expected {wanted}", kind.trim_end()).into()
        }
        _ => message.into(),
    }
}

impl Source {
    fn read<T: RoleFile>(path: Option<&Path>) -> Result<(Self, T)> {
        let Some(path) = path else {
            return Ok((
                Self {
                    shown: "command line".into(),
                    dir: PathBuf::new(),
                    rc: None,
                },
                T::default(),
            ));
        };
        let shown = path.display().to_string();
        if rc::is_rc(path) {
            let base = std::env::current_dir().unwrap_or_default();
            let translation = Rc::read(&[path.to_path_buf()])?.translate(T::ROLE, &base)?;
            for note in &translation.notes {
                tracing::warn!("[{}] {note}", Code::RcNote);
            }
            return Self::translated(translation);
        }
        let text = read_limited(path).map_err(|problem| {
            ConfigError::new(
                Code::FileUnreadable,
                &shown,
                problem,
                "give --config the path of a readable TOML file",
            )
        })?;
        let text = std::str::from_utf8(&text).map_err(|_| {
            ConfigError::new(
                Code::FileUnreadable,
                &shown,
                "it is not UTF-8 text",
                "save it as UTF-8",
            )
        })?;
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Self::of_text(shown, dir, text)
    }

    /// What a file says; the paths in it begin at `dir`.
    fn of_text<T: RoleFile>(shown: String, dir: PathBuf, text: &str) -> Result<(Self, T)> {
        let value = toml::from_str(text).map_err(|e| {
            ConfigError::new(
                Code::FileMalformed,
                place_in(&shown, text, e.span()),
                without_value(e.message()),
                "docs/reference.md lists the keys",
            )
        })?;
        let rc = None;
        Ok((Self { shown, dir, rc }, value))
    }

    fn translated<T: RoleFile>(mut translation: Translation) -> Result<(Self, T)> {
        let shown = translation.shown.clone();
        let table = std::mem::take(&mut translation.table);
        let file = table.try_into().map_err(|e: toml::de::Error| {
            ConfigError::new(
                Code::RcMistake,
                &shown,
                without_value(e.message()),
                "`kite import` shows it as TOML",
            )
        })?;
        let rc = Some(translation);
        let dir = PathBuf::new();
        Ok((Self { shown, dir, rc }, file))
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    /// The secret that an rc file had in this file's place.
    fn kept(&self, path: &Path) -> Option<&Secret> {
        self.rc.as_ref()?.secrets.get(path.to_str()?)
    }

    fn at(&self, key: impl fmt::Display) -> String {
        if let Some(rc) = &self.rc {
            rc.place(&key.to_string())
        } else if self.dir == PathBuf::new() && self.shown == "command line" {
            key.to_string()
        } else {
            format!("{}: {key}", self.shown)
        }
    }
}

/// A file of at most [`MAX_FILE`] bytes, or why not.
/// It may hold a secret.
pub(crate) fn read_limited(path: &Path) -> std::result::Result<Zeroizing<Vec<u8>>, String> {
    let file = std::fs::File::open(path).map_err(|e| describe_io(&e))?;
    read_open(file)
}

fn read_open(file: std::fs::File) -> std::result::Result<Zeroizing<Vec<u8>>, String> {
    let text = wiped::read(file, MAX_FILE + 1).map_err(|e| describe_io(&e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!(
            "it has more than the {MAX_FILE} bytes that make sense"
        ));
    }
    Ok(text)
}

fn describe_io(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "this user may not read it".into(),
        _ => format!("cannot be read: {error}"),
    }
}

/// An error of the command line.
pub(crate) fn problem(
    code: Code,
    place: &str,
    problem: impl fmt::Display,
    remedy: impl fmt::Display,
) -> ConfigError {
    ConfigError::new(code, place, problem, remedy)
}

/// Reads a secret from a file that nobody but its owner can read.
pub(crate) fn read_secret(place: &str, path: &Path) -> Result<Secret> {
    read_secret_from(place, path, 0o077)
}

/// The same, with the bits that its mode must not have.
fn read_secret_from(place: &str, path: &Path, forbidden: u32) -> Result<Secret> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|e| {
        ConfigError::new(
            Code::SecretMissing,
            format!("{place}: {shown}"),
            describe_io(&e),
            format!("write the secret to {shown} and run: chmod 600 {shown}"),
        )
    })?;
    if meta.mode() & forbidden != 0 {
        return Err(ConfigError::new(
            Code::SecretExposed,
            format!("{place}: {shown}"),
            format!(
                "other users may read this secret (mode {:03o})",
                meta.mode() & 0o777
            ),
            format!("chmod 600 {shown}"),
        ));
    }
    let remedy = format!("put the secret, and nothing else, into {shown}");
    let text = read_limited(path).map_err(|p| {
        ConfigError::new(Code::SecretMissing, format!("{place}: {shown}"), p, &remedy)
    })?;
    Secret::new(&text).ok_or_else(|| {
        ConfigError::new(
            Code::SecretMissing,
            format!("{place}: {shown}"),
            "it is empty, or longer than a secret can be",
            &remedy,
        )
    })
}

/// What the environment holds of a secret. There it stays: nobody else can read it (see [`crate::privilege`]).
fn variable_secret() -> Option<Zeroizing<String>> {
    std::env::var(SECRET_VARIABLE).ok().map(Zeroizing::new)
}

/// The secret for flags: from the file named by a flag, else from the environment.
fn flag_secret(file: Option<&Path>, variable: Option<&str>, what: &str) -> Result<Secret> {
    match (file, variable) {
        (Some(path), _) => read_secret("--secret-file", path),
        (None, Some(text)) => Secret::new(text.as_bytes()).ok_or_else(|| {
            ConfigError::new(
                Code::SecretMissing,
                SECRET_VARIABLE,
                "it is empty",
                "set it to the secret, or use --secret-file",
            )
        }),
        (None, None) => Err(ConfigError::new(
            Code::SecretMissing,
            what,
            "no secret was given",
            format!("give --secret-file FILE, or set {SECRET_VARIABLE}"),
        )),
    }
}

fn entry_secret(
    source: &Source,
    key: &str,
    file: Option<&Path>,
    flag_file: Option<&Path>,
    variable: Option<&str>,
) -> Result<Secret> {
    let place = source.at(format_args!("{key}.secret_file"));
    let Some(path) = file else {
        return flag_secret(flag_file, variable, &place);
    };
    if let Some(secret) = source.kept(path) {
        return Ok(secret.clone());
    }
    let directory = std::env::var_os(credential::DIRECTORY);
    match credential::file(&place, path, directory.as_deref())? {
        // The service manager's directory keeps others away. Its group bits may be the mask of an access list.
        Some(credential) => read_secret_from(&place, &credential, 0o007),
        None => read_secret(&place, &source.path(path)),
    }
}

pub(crate) fn parse_name(place: &str, text: &str) -> Result<KiteName> {
    text.parse().map_err(|e| {
        ConfigError::new(
            Code::BadName,
            place,
            format!("'{text}' is no kite name: {e}"),
            "write a DNS name such as bob.alice.example",
        )
    })
}

fn parse_protocol(place: &str, text: &str) -> Result<Protocol> {
    text.parse()
        .map_err(|e| ConfigError::new(Code::BadProtocol, place, e, "correct the word"))
}

/// `protocol`, with a port behind it or in the key `port`.
fn parse_ported(source: &Source, key: &str, entry: &ServiceEntry) -> Result<Ported> {
    let place = source.at(format_args!("{key}.protocol"));
    let mut ported = match &entry.protocol {
        Some(word) => word
            .parse::<Ported>()
            .map_err(|e| ConfigError::new(Code::BadProtocol, &place, e, "correct the word"))?,
        None => Ported {
            protocol: Protocol::Foolscap,
            port: None,
        },
    };
    if let Some(port) = entry.port {
        let place = source.at(format_args!("{key}.port"));
        let port = parse_port(&place, port)?;
        if ported.port.is_some_and(|other| other != port) {
            return Err(ConfigError::new(
                Code::Contradiction,
                place,
                format!("`protocol` says another port: {ported}"),
                "keep one of them",
            ));
        }
        ported.port = Some(port);
    }
    Ok(ported)
}

/// Where state is kept unless said otherwise: systemd's StateDirectory, then XDG's.
pub fn default_state_dir() -> Result<PathBuf> {
    let from = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    from("STATE_DIRECTORY")
        .or_else(|| from("XDG_STATE_HOME").map(|p| p.join("kite")))
        .or_else(|| from("HOME").map(|p| p.join(".local/state/kite")))
        .ok_or_else(|| {
            ConfigError::new(
                Code::StateDir,
                "state_dir",
                "there is no home directory to keep state in",
                "give --state-dir DIR",
            )
        })
}

fn state_dir(source: &Source, flag: Option<&Path>, file: Option<&Path>) -> Result<PathBuf> {
    match (flag, file) {
        (Some(path), _) => Ok(path.to_path_buf()),
        (None, Some(path)) => Ok(source.path(path)),
        (None, None) => default_state_dir(),
    }
}

/// The file with Arti's own settings.
fn tor_config(source: &Source, flag: Option<&Path>, file: Option<&Path>) -> Option<PathBuf> {
    match flag {
        Some(path) => Some(path.to_path_buf()),
        None => file.map(|path| source.path(path)),
    }
}

// ---------------------------------------------------------------- frontend

/// The state directory of the frontend with this file; nothing else of it need be right.
pub fn frontend_state_dir(config: Option<&Path>, flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(flag) = flag {
        return Ok(flag.to_path_buf());
    }
    let (source, file): (Source, FrontendFile) = Source::read(config)?;
    state_dir(&source, None, file.state_dir.as_deref())
}

/// The state directory of the backend with this file; nothing else of it need be right.
pub fn backend_state_dir(config: Option<&Path>, flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(flag) = flag {
        return Ok(flag.to_path_buf());
    }
    let (source, file): (Source, BackendFile) = Source::read(config)?;
    state_dir(&source, None, file.state_dir.as_deref())
}

/// What backends are to be told of a frontend, as its file has it.
#[derive(Debug)]
pub struct PublicSide {
    /// Where it listens; may be empty.
    pub listen: Vec<Listen>,
    /// Its public host name.
    pub name: Option<String>,
}

impl PublicSide {
    /// Reads that much of a frontend's file; nothing else of it need be right.
    pub fn load(config: Option<&Path>) -> Result<Self> {
        let (source, file): (Source, FrontendFile) = Source::read(config)?;
        Ok(Self {
            listen: parse_listens(&source, file.listen)?,
            name: file.name,
        })
    }
}

fn parse_listens(source: &Source, entries: Vec<ListenEntry>) -> Result<Vec<Listen>> {
    let entry = |(i, entry): (usize, ListenEntry)| match entry {
        ListenEntry::Address(text) => {
            parse_listen(&source.at(format_args!("listen[{i}]")), &text, None)
        }
        ListenEntry::Port(t) => parse_listen_table(source, i, &t),
    };
    entries.into_iter().enumerate().map(entry).collect()
}

impl FrontendConfig {
    /// Reads file, flags and environment.
    pub fn load(args: &FrontendArgs) -> Result<Self> {
        Self::with_secret(args, variable_secret().as_deref().map(String::as_str))
    }

    /// What rc files were translated to.
    pub(crate) fn translated(translation: Translation) -> Result<Self> {
        let (source, file) = Source::translated(translation)?;
        Self::build(&FrontendArgs::default(), None, source, file)
    }

    /// What a file of this text would say.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Result<Self> {
        let (source, file) = Source::of_text("test.toml".into(), PathBuf::new(), text)?;
        Self::build(&FrontendArgs::default(), Some("secret"), source, file)
    }

    fn with_secret(args: &FrontendArgs, variable: Option<&str>) -> Result<Self> {
        let (source, file) = Source::read(args.config.as_deref())?;
        Self::build(args, variable, source, file)
    }

    fn build(
        args: &FrontendArgs,
        variable: Option<&str>,
        source: Source,
        file: FrontendFile,
    ) -> Result<Self> {
        let secrets = file.kites.iter().filter_map(|e| e.secret_file.as_deref());
        let etcd = file.fleet.as_ref().and_then(|fleet| fleet.etcd.as_ref());
        let password = etcd.and_then(|etcd| etcd.password_file.as_deref());
        let read_from = args
            .config
            .iter()
            .chain(&args.secret_file)
            .cloned()
            .chain(secrets.map(|path| source.path(path)))
            .chain(password.map(|path| source.path(path)))
            .collect();
        let listen = if args.listen.is_empty() {
            parse_listens(&source, file.listen)?
        } else {
            let flag = |text: &String| match text.split_once('=') {
                Some((address, kite)) => parse_listen("--listen", address, Some(kite)),
                None => parse_listen("--listen", text, None),
            };
            args.listen.iter().map(flag).collect::<Result<Vec<_>>>()?
        };
        if listen.is_empty() {
            return Err(ConfigError::new(
                Code::NothingToDo,
                source.at("listen"),
                "there is no address to listen on",
                "add --listen 0.0.0.0:443, or listen = [\"0.0.0.0:443\"]",
            ));
        }

        let kites = if args.domain.is_empty() {
            let grant = |(i, entry): (usize, GrantEntry)| {
                let key = format!("kites[{i}]");
                let protocols = parse_protocols(
                    &source.at(format_args!("{key}.protocols")),
                    entry.protocols.as_deref().unwrap_or(&args.protocols),
                )?;
                Ok(Grant {
                    pattern: parse_name(&source.at(format_args!("{key}.name")), &entry.name)?,
                    protocols,
                    secret: entry_secret(
                        &source,
                        &key,
                        entry.secret_file.as_deref(),
                        args.secret_file.as_deref(),
                        variable,
                    )?,
                    proof: entry.proof,
                    limits: entry.limits.or(&file.limits),
                    expires: entry
                        .expires
                        .map(|date| {
                            let place = source.at(format_args!("{key}.expires"));
                            parse_expires(&place, &date)
                        })
                        .transpose()?,
                    backends: parse_backends(
                        &source.at(format_args!("{key}.backends")),
                        entry.backends,
                    )?,
                })
            };
            file.kites
                .into_iter()
                .enumerate()
                .map(grant)
                .collect::<Result<Vec<_>>>()?
        } else {
            let secret = flag_secret(args.secret_file.as_deref(), variable, "--domain")?;
            let protocols = parse_protocols("--protocols", &args.protocols)?;
            let grant = |text: &String| {
                Ok(Grant {
                    pattern: parse_name("--domain", text)?,
                    protocols: protocols.clone(),
                    secret: secret.clone(),
                    proof: ProofRule::default(),
                    limits: file.limits.clone(),
                    expires: None,
                    backends: 1,
                })
            };
            args.domain.iter().map(grant).collect::<Result<Vec<_>>>()?
        };
        let state_dir = state_dir(
            &source,
            args.state_dir.as_deref(),
            file.state_dir.as_deref(),
        )?;
        let open = (file.open)
            .map(|table| tub::open(&source, table, &file.limits))
            .transpose()?;
        let others = Book::exists(&state_dir) || !file.authorities.is_empty() || open.is_some();
        if kites.is_empty() && !others {
            return Err(ConfigError::new(
                Code::NothingToDo,
                source.at("kites"),
                "no kite may fly here",
                "add --domain '*.alice.example' --secret-file FILE, or a [[kites]] table; or first, with this state directory: kite frontend kites add NAME, or kite frontend invite NAME",
            ));
        }
        narrowed(&source, file.policy, &kites, &listen)?;
        for listen in &listen {
            let Some(kite) = &listen.kite else { continue };
            let mut granted = kites.iter().filter(|g| g.pattern.covers(kite));
            let port = listen.address.port();
            if granted.clone().next().is_none() && !others {
                return Err(ConfigError::new(
                    Code::Contradiction,
                    source.at("listen"),
                    format!("port {port} is given to {kite}, which may not fly here"),
                    "add a [[kites]] table or a --domain that covers the name",
                ));
            }
            if listen.raw && !others && !granted.any(|g| g.protocols.contains(&Protocol::Raw)) {
                return Err(ConfigError::new(
                    Code::Contradiction,
                    source.at("listen"),
                    format!("port {port} is given to the raw kite {kite}, which may not carry raw"),
                    "add \"raw\" to the `protocols` of its [[kites]] table",
                ));
            }
        }

        let tor_config = tor_config(
            &source,
            args.tor_config.as_deref(),
            file.tor.config.as_deref(),
        );
        let onion = args.onion || file.onion;
        if tor_config.is_some() && !onion {
            return Err(ConfigError::new(
                Code::TorOff,
                source.at("tor.config"),
                "there are settings for Tor, but this frontend is no onion service",
                "add --onion, or onion = true; or remove the settings",
            ));
        }

        let certificates = certificates(&source, file.certificates)?;
        let acme = file.acme.map(|table| acme(&source, table)).transpose()?;

        Ok(Self {
            listen,
            kites,
            certificates,
            authorities: parse_authorities(&source, file.authorities, &file.limits)?,
            limits: file.limits,
            motd: motd(&source, file.motd_file.as_deref())?,
            acme,
            name: own_name(&source, args.name.clone().or(file.name))?,
            onion: TorChoice {
                enabled: onion,
                said: true,
                config: tor_config,
            },
            state_dir,
            log_peers: args.log_peers || file.log_peers.unwrap_or(false),
            local: local_places(
                &source,
                (&args.metrics_listen, &file.metrics),
                (&args.web_listen, &file.web),
            )?,
            page: own_page(&source, file.page)?,
            policy: file.policy,
            open,
            fleet: (file.fleet)
                .map(|table| fleet::fleet(&source, table))
                .transpose()?,
            user: args.user.clone().or(file.user),
            read_from,
            drain: duration(&source, "drain", file.drain.as_deref(), shutdown::DRAIN)?,
            grace: duration(&source, "grace", file.grace.as_deref(), GRACE)?,
        })
    }
}

/// A policy that leaves nothing of what the same file allows is a mistake.
fn narrowed(source: &Source, policy: Policy, kites: &[Grant], listen: &[Listen]) -> Result<()> {
    let nothing_left = |grant: &&Grant| !grant.protocols.iter().any(|p| policy.carries(*p));
    let contradiction = |problem: String, remedy| {
        let place = source.at("policy");
        Err(ConfigError::new(
            Code::Contradiction,
            place,
            problem,
            remedy,
        ))
    };
    if let Some(grant) = kites.iter().find(nothing_left) {
        return contradiction(
            format!(
                "it carries nothing of what {} may be used for",
                grant.pattern
            ),
            "add foolscap or tahoe-https to the `protocols` of that name, or remove the policy",
        );
    }
    if let Some(raw) = listen
        .iter()
        .find(|l| l.raw && !policy.carries(Protocol::Raw))
    {
        let port = raw.address.port();
        return contradiction(
            format!("port {port} belongs to a raw kite, which it does not carry"),
            "remove protocol = \"raw\" from that port, or remove the policy",
        );
    }
    Ok(())
}

/// How long after a start visitors wait for a kite that is not back yet, unless configured.
pub const GRACE: Duration = Duration::from_secs(15);
/// The longest `drain`, and the longest `grace`.
pub const MAX_DURATION: Duration = Duration::from_secs(3600);

/// A time, as `10s` or `2m`.
fn duration(source: &Source, key: &str, text: Option<&str>, usual: Duration) -> Result<Duration> {
    let Some(text) = text else { return Ok(usual) };
    let parsed = humantime::parse_duration(text);
    parsed.ok().filter(|d| *d <= MAX_DURATION).ok_or_else(|| {
        ConfigError::new(
            Code::BadValue,
            source.at(key),
            format!("'{text}' is no time up to an hour"),
            "write it as 10s, 2m or 500ms",
        )
    })
}

/// Largest `page.contact`, in bytes.
const MAX_CONTACT: usize = 200;

fn own_page(source: &Source, table: PageTable) -> Result<OwnPage> {
    let strange = |text: &String| text.len() > MAX_CONTACT || text.chars().any(char::is_control);
    if table.contact.as_ref().is_some_and(strange) {
        return Err(ConfigError::new(
            Code::BadValue,
            source.at("page.contact"),
            format!("it is longer than {MAX_CONTACT} bytes, or has line breaks"),
            "write a mail address, or a web address, in one line",
        ));
    }
    Ok(OwnPage {
        enabled: table.enabled.unwrap_or(true),
        contact: table.contact.filter(|contact| !contact.trim().is_empty()),
    })
}

type LocalWish<'a> = (&'a Option<String>, &'a LocalTable);

fn local_places(source: &Source, metrics: LocalWish, web: LocalWish) -> Result<LocalPlaces> {
    let place = |(flag, table): LocalWish, flag_name: &str, key: &str, usual: &str| {
        let (place, text) = match (flag, &table.listen) {
            (Some(text), _) => (flag_name.to_owned(), text),
            (None, Some(text)) => (source.at(key), text),
            (None, None) => return Ok(None),
        };
        let remedy = format!(
            "write a loopback address with a port, such as {usual}, or unix:/absolute/PATH"
        );
        let parsed = text.parse::<LocalAddr>();
        parsed
            .map(Some)
            .map_err(|e| ConfigError::new(Code::BadLocalPlace, place, e, remedy))
    };
    let places = LocalPlaces {
        metrics: place(
            metrics,
            "--metrics-listen",
            "metrics.listen",
            "127.0.0.1:9464",
        )?,
        web: place(web, "--web-listen", "web.listen", "127.0.0.1:7465")?,
    };
    if places.metrics.is_some() && places.metrics == places.web {
        return Err(ConfigError::new(
            Code::Contradiction,
            source.at("web.listen"),
            "metrics are offered at the same place",
            "choose another port for one of them",
        ));
    }
    Ok(places)
}

fn certificates(source: &Source, entries: Vec<CertificateEntry>) -> Result<Vec<CertificateFiles>> {
    let certificates: Vec<_> = entries
        .into_iter()
        .map(|entry| CertificateFiles {
            key: source.path(entry.key.as_ref().unwrap_or(&entry.cert)),
            cert: source.path(&entry.cert),
            default: entry.default,
            endpoints: entry.endpoints,
            redirect: entry.redirect,
        })
        .collect();
    if certificates.iter().filter(|c| c.default).count() > 1 {
        return Err(ConfigError::new(
            Code::Contradiction,
            source.at("certificates"),
            "more than one is the default",
            "keep default = true in one of them",
        ));
    }
    Ok(certificates)
}

/// Who is asked about kites that are not listed.
fn parse_authorities(
    source: &Source,
    entries: Vec<AuthorityEntry>,
    defaults: &Limits,
) -> Result<Vec<Authority>> {
    let authority = |(i, entry): (usize, AuthorityEntry)| {
        let at = |key: &str| source.at(format_args!("authorities[{i}].{key}"));
        let asked = match (&entry.program, &entry.dns) {
            (Some(program), None) => Asked::Program(parse_program(&at("program"), program)?),
            (None, Some(suffix)) => Asked::Dns {
                suffix: parse_name(&at("dns"), suffix)?,
                resolver: parse_resolver(&at("resolver"), entry.resolver.as_deref())?,
            },
            _ => {
                return Err(ConfigError::new(
                    Code::BadAuthority,
                    source.at(format_args!("authorities[{i}]")),
                    "it has not one way to be asked",
                    "give program = \"/path/of/it\", or dns = \"auth.alice.example\", and not both",
                ));
            }
        };
        let parallel = entry.parallel.unwrap_or(authority::PARALLEL);
        if !(1..=authority::MAX_PARALLEL).contains(&parallel) {
            return Err(ConfigError::new(
                Code::OutOfRange,
                at("parallel"),
                format!("{parallel} questions at one time cannot be asked"),
                format!("set it to a number from 1 to {}", authority::MAX_PARALLEL),
            ));
        }
        Ok(Authority {
            domain: entry
                .domain
                .map(|text| parse_name(&at("domain"), &text))
                .transpose()?,
            source: asked,
            protocols: parse_protocols(
                &at("protocols"),
                entry.protocols.as_deref().unwrap_or_default(),
            )?,
            parallel,
            limits: entry.limits.or(defaults),
        })
    };
    entries.into_iter().enumerate().map(authority).collect()
}

/// Whoever may write it decides who may fly.
fn parse_program(place: &str, program: &Path) -> Result<PathBuf> {
    let shown = program.display();
    let remedy = "write the absolute path of a program that only its owner may change";
    if !program.is_absolute() {
        return Err(ConfigError::new(
            Code::BadAuthority,
            place,
            format!("{shown} is no absolute path"),
            remedy,
        ));
    }
    let meta = std::fs::metadata(program).map_err(|e| {
        ConfigError::new(
            Code::BadAuthority,
            place,
            format!("{shown}: {}", describe_io(&e)),
            remedy,
        )
    })?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 || meta.mode() & 0o022 != 0 {
        return Err(ConfigError::new(
            Code::BadAuthority,
            place,
            format!("{shown} is no program, or others than its owner may change it"),
            remedy,
        ));
    }
    Ok(program.to_path_buf())
}

/// Who answers the questions of a frontend that asks the DNS who may fly.
fn parse_resolver(place: &str, text: Option<&str>) -> Result<SocketAddr> {
    let remedy = "write the address and port of the server to ask, such as 127.0.0.1:53";
    match text {
        Some(text) => text.parse().map_err(|_| {
            ConfigError::new(
                Code::BadAuthority,
                place,
                format!("'{text}' is no address with a port"),
                remedy,
            )
        }),
        None => {
            let usual = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            question::usual_server(&usual).ok_or_else(|| {
                ConfigError::new(
                    Code::BadAuthority,
                    place,
                    "/etc/resolv.conf names no server",
                    remedy,
                )
            })
        }
    }
}

fn acme(source: &Source, table: AcmeTable) -> Result<Acme> {
    let place = source.at("acme.names");
    let names = table.names.iter().map(|name| parse_name(&place, name));
    let names: Vec<KiteName> = names.collect::<Result<_>>()?;
    if names.is_empty() {
        return Err(ConfigError::new(
            Code::BadAcme,
            place,
            "there is no name to get a certificate for",
            "write names = [\"alice.example\"], or remove [acme]",
        ));
    }
    if let Some(name) = names.iter().find(|name| name.is_wildcard()) {
        return Err(ConfigError::new(
            Code::BadAcme,
            place,
            format!(
                "kite cannot get a certificate for {name}: authorities want a change in DNS for that"
            ),
            "list each name, or get it with another program and name its files under [[certificates]]",
        ));
    }
    if !table.accept_terms {
        return Err(ConfigError::new(
            Code::BadAcme,
            source.at("acme.accept_terms"),
            "the authority's terms of service are not accepted",
            "read them (Let's Encrypt's are at https://letsencrypt.org/repository/), then add accept_terms = true",
        ));
    }
    let directory = table.directory.unwrap_or_else(|| LETS_ENCRYPT.to_owned());
    if !directory.starts_with("https://") {
        return Err(ConfigError::new(
            Code::BadAcme,
            source.at("acme.directory"),
            format!("'{directory}' is no https URL"),
            "copy the URL of the ACME directory from the authority's documentation",
        ));
    }
    Ok(Acme {
        names,
        contact: table
            .contact
            .map(|c| c.trim_start_matches("mailto:").to_owned()),
        directory,
        ca_file: table.ca_file.map(|path| source.path(&path)),
        endpoints: table.endpoints,
        redirect: table.redirect,
    })
}

/// What backends are told to dial: a DNS name, or an address.
fn own_name(source: &Source, name: Option<String>) -> Result<Option<String>> {
    let Some(name) = name else { return Ok(None) };
    if name.parse::<IpAddr>().is_ok() {
        return Ok(Some(name));
    }
    let parsed = parse_name(&source.at("name"), &name)?;
    if parsed.is_wildcard() {
        return Err(ConfigError::new(
            Code::BadName,
            source.at("name"),
            format!("'{name}' is many names"),
            "write the one that backends dial, such as fe.alice.example",
        ));
    }
    Ok(Some(parsed.to_string()))
}

/// The message of the day's file, which must be there at the start.
fn motd(source: &Source, file: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(path) = file.map(|file| source.path(file)) else {
        return Ok(None);
    };
    read_limited(&path).map_err(|e| {
        ConfigError::new(
            Code::BadValue,
            source.at("motd_file"),
            format!("{}: {e}", path.display()),
            "write the message there, or remove the key",
        )
    })?;
    Ok(Some(path))
}

/// The last day on which a kite flies, as the first second after it.
fn parse_expires(place: &str, date: &str) -> Result<u64> {
    end_of_day(date).map_err(|e| {
        ConfigError::new(
            Code::BadValue,
            place,
            e,
            "write the last day on which it flies, in UTC, as year, month and day",
        )
    })
}

fn parse_listen(place: &str, address: &str, kite: Option<&str>) -> Result<Listen> {
    let address = address.parse().map_err(|_| {
        ConfigError::new(
            Code::BadListen,
            place,
            format!("'{address}' is no address with a port"),
            "write an IP address and a port, such as 0.0.0.0:443 or [::]:443",
        )
    })?;
    let kite = kite.map(|text| parse_name(place, text)).transpose()?;
    if let Some(kite) = kite.as_ref().filter(|k| k.is_wildcard()) {
        return Err(ConfigError::new(
            Code::BadListen,
            place,
            format!("a port cannot belong to all of {kite}"),
            "name one kite",
        ));
    }
    Ok(Listen {
        kite,
        ..Listen::at(address)
    })
}

fn parse_listen_table(source: &Source, i: usize, table: &ListenTable) -> Result<Listen> {
    let place = source.at(format_args!("listen[{i}]"));
    let mut listen = parse_listen(&place, &table.address, table.kite.as_deref())?;
    let place = format!("{place}.proxy_from");
    listen.balancers = match (table.proxy_protocol, &table.proxy_from) {
        (false, None) => None,
        (false, Some(_)) => {
            return Err(ConfigError::new(
                Code::BadBalancers,
                place,
                "there are load balancers, but nothing is taken from them",
                "add proxy_protocol = true, or remove it",
            ));
        }
        (true, None) if listen.address.ip().is_loopback() => Some(Balancers::on_this_machine()),
        (true, None) => {
            return Err(ConfigError::new(
                Code::BadBalancers,
                place,
                "whoever may write a PROXY header may claim any address, so it must be said who may",
                "list the load balancers' addresses or networks, as in proxy_from = [\"10.0.0.5\", \"10.1.0.0/16\"]",
            ));
        }
        (true, Some(from)) => {
            let balancers = Balancers::parse(from).map_err(|problem| {
                ConfigError::new(
                    Code::BadBalancers,
                    place,
                    problem,
                    "write addresses or networks, such as 10.0.0.5, 10.1.0.0/16 or fd00::/64",
                )
            })?;
            Some(balancers)
        }
    };
    let place = source.at(format_args!("listen[{i}]"));
    listen.port = table
        .port
        .map(|port| parse_port(&place, port))
        .transpose()?;
    listen.raw = parse_raw(&place, table.protocol.as_deref(), listen.kite.as_ref())?;
    Ok(listen)
}

/// Is it a port of a raw kite's own?
fn parse_raw(place: &str, protocol: Option<&str>, kite: Option<&KiteName>) -> Result<bool> {
    match protocol {
        None => Ok(false),
        Some("raw") if kite.is_some() => Ok(true),
        Some("raw") => Err(ConfigError::new(
            Code::Contradiction,
            place,
            "the visitors of a raw port name no kite, and it belongs to none",
            "add `kite` with the name of the kite that gets them all",
        )),
        Some(other) => Err(ConfigError::new(
            Code::BadValue,
            place,
            format!("a port cannot be for '{other}' alone"),
            "write protocol = \"raw\", or leave it out: other visitors are told apart by what they say",
        )),
    }
}

fn parse_backends(place: &str, backends: Option<u8>) -> Result<u8> {
    match backends.unwrap_or(1) {
        n @ 1..=MAX_BACKENDS => Ok(n),
        n => Err(ConfigError::new(
            Code::OutOfRange,
            place,
            format!("{n} backends cannot fly one kite"),
            format!("write a number from 1 to {MAX_BACKENDS}"),
        )),
    }
}

fn parse_port(place: &str, port: u16) -> Result<u16> {
    match port {
        0 => Err(ConfigError::new(
            Code::OutOfRange,
            place,
            "0 is no port",
            "write the port as visitors know it, from 1 to 65535",
        )),
        port => Ok(port),
    }
}

/// Foolscap alone unless said otherwise: what a frontend is for, and of no use to a phisher.
pub(crate) fn parse_protocols(place: &str, words: &[String]) -> Result<BTreeSet<Protocol>> {
    if words.is_empty() {
        return Ok(BTreeSet::from([Protocol::Foolscap]));
    }
    words
        .iter()
        .map(|word| parse_protocol(place, word))
        .collect()
}

// ----------------------------------------------------------------- backend

impl BackendConfig {
    /// Reads file, flags and environment.
    pub fn load(args: &BackendArgs) -> Result<Self> {
        Self::with_secret(args, variable_secret().as_deref().map(String::as_str))
    }

    /// What rc files were translated to.
    pub(crate) fn translated(translation: Translation) -> Result<Self> {
        let args = BackendArgs {
            via_tor: translation.proxied.is_some(),
            ..BackendArgs::default()
        };
        let (source, file) = Source::translated(translation)?;
        Self::build(&args, None, source, file)
    }

    /// What a file of this text would say.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Result<Self> {
        let (source, file) = Source::of_text("test.toml".into(), PathBuf::new(), text)?;
        Self::build(&BackendArgs::default(), Some("secret"), source, file)
    }

    fn with_secret(args: &BackendArgs, variable: Option<&str>) -> Result<Self> {
        let (source, file) = Source::read(args.config.as_deref())?;
        Self::build(args, variable, source, file)
    }

    fn build(
        args: &BackendArgs,
        variable: Option<&str>,
        source: Source,
        file: BackendFile,
    ) -> Result<Self> {
        let (tor, socks) = tor_choice(&source, args, &file.tor)?;
        let frontends = frontends(&source, args, file.frontends, tor.enabled)?;

        let services = services(
            &source,
            args,
            file.kites,
            &file.allow_origin,
            |own| match own {
                Some(Own {
                    key,
                    file,
                    tub: Some(tub),
                }) => match file {
                    Some(file) => {
                        let place = source.at(format_args!("{key}.secret_file"));
                        let directory = std::env::var_os(credential::DIRECTORY);
                        let lent = credential::file(&place, file, directory.as_deref())?;
                        tub::read_key(&place, &lent.unwrap_or_else(|| source.path(file)), tub)
                    }
                    None => tub::nothing(),
                },
                Some(Own { key, file, .. }) => {
                    entry_secret(&source, key, file, args.secret_file.as_deref(), variable)
                }
                None => flag_secret(args.secret_file.as_deref(), variable, "SERVICE"),
            },
        )?;
        for frontend in &frontends {
            for name in frontend.kites.iter().flatten() {
                if !services.iter().any(|s| s.name == *name) {
                    return Err(ConfigError::new(
                        Code::Contradiction,
                        source.at("frontends"),
                        format!(
                            "{} shall fly {name}, which is not among the kites",
                            frontend.address
                        ),
                        "correct the name, or add the kite",
                    ));
                }
            }
        }

        Ok(Self {
            tor,
            socks,
            frontends,
            services,
            ca_file: args
                .ca_file
                .clone()
                .or(file.ca_file.map(|p| source.path(&p))),
            state_dir: state_dir(
                &source,
                args.state_dir.as_deref(),
                file.state_dir.as_deref(),
            )?,
            local: local_places(
                &source,
                (&args.metrics_listen, &file.metrics),
                (&args.web_listen, &file.web),
            )?,
            witnessing: Witnessing {
                enabled: file.probe.enabled.unwrap_or(true),
                public_port: file.probe.public_port.map(NonZeroU16::get),
            },
            drain: duration(&source, "drain", file.drain.as_deref(), shutdown::DRAIN)?,
        })
    }
}

impl NodeSide {
    /// Reads file and flags. Frontends are not looked at.
    pub fn load(args: &BackendArgs) -> Result<Self> {
        let (source, file): (Source, BackendFile) = Source::read(args.config.as_deref())?;
        let kites = services(&source, args, file.kites, &file.allow_origin, |_| Ok(()))?;
        let (tor, socks) = tor_choice(&source, args, &file.tor)?;
        Ok(Self {
            via_tor: tor.enabled,
            socks,
            kites,
            state_dir: state_dir(
                &source,
                args.state_dir.as_deref(),
                file.state_dir.as_deref(),
            )
            .ok(),
        })
    }
}

/// The frontends of flags, or else of the file.
fn frontends(
    source: &Source,
    args: &BackendArgs,
    entries: Vec<FrontendEntry>,
    via_tor: bool,
) -> Result<Vec<Frontend>> {
    let usual = if via_tor { TUNNELS_VIA_TOR } else { 1 };
    let tunnels = args.tunnels.unwrap_or(usual);
    let frontends = if args.frontend.is_empty() {
        let entry = |(i, entry): (usize, FrontendEntry)| {
            let place = source.at(format_args!("frontends[{i}]"));
            let frontend = parse_frontend(
                &place,
                &entry.address,
                entry.kites,
                args.tunnels.or(entry.tunnels).unwrap_or(usual),
            )?;
            if entry.homes && *frontend.address.trust() == Trust::Plain {
                return Err(ConfigError::new(
                    Code::Contradiction,
                    place,
                    "homes are taken from frontends that prove who they are, which plain:// does not",
                    "give its pinned address or its onion name, or remove homes",
                ));
            }
            Ok(Frontend {
                homes: entry.homes,
                ..frontend
            })
        };
        entries
            .into_iter()
            .enumerate()
            .map(entry)
            .collect::<Result<Vec<_>>>()?
    } else {
        let flag = |text: &String| match text.split_once('=') {
            Some((address, kites)) => parse_frontend(
                "--frontend",
                address,
                Some(kites.split(',').map(str::to_owned).collect()),
                tunnels,
            ),
            None => parse_frontend("--frontend", text, None, tunnels),
        };
        args.frontend.iter().map(flag).collect::<Result<Vec<_>>>()?
    };
    if frontends.is_empty() {
        return Err(ConfigError::new(
            Code::NothingToDo,
            source.at("frontends"),
            "there is no frontend to dial",
            "add --frontend ADDRESS with the address that `kite frontend` printed, or a [[frontends]] table",
        ));
    }

    if !via_tor && frontends.iter().any(|f| f.address.is_onion()) {
        return Err(ConfigError::new(
            Code::TorOff,
            source.at("frontends"),
            "an onion frontend can be reached through Tor only",
            "add --via-tor, or enabled = true under [tor]",
        ));
    }

    Ok(frontends)
}

/// A kite's table, as far as its secret goes.
struct Own<'a> {
    key: &'a str,
    file: Option<&'a Path>,
    /// That it proves itself by this.
    tub: Option<TubId>,
}

/// The kites of flags, or else of the file. `secret` is asked for each table's secret, or once for all flags.
fn services<S: Clone>(
    source: &Source,
    args: &BackendArgs,
    entries: Vec<ServiceEntry>,
    allowed: &[String],
    secret: impl Fn(Option<Own<'_>>) -> Result<S>,
) -> Result<Vec<Service<S>>> {
    let allowed = if args.allow_origin.is_empty() {
        allowed
    } else {
        &args.allow_origin
    };
    let allowed = allowed
        .iter()
        .map(|text| {
            text.parse::<IpAddr>().map_err(|_| {
                ConfigError::new(
                    Code::BadValue,
                    source.at("allow_origin"),
                    format!("'{text}' is no IP address"),
                    "write a number such as 192.168.1.5",
                )
            })
        })
        .collect::<Result<Vec<_>>>()?;

    let services = if args.services.is_empty() {
        let entry = |(i, entry): (usize, ServiceEntry)| {
            let key = format!("kites[{i}]");
            let ported = parse_ported(source, &key, &entry)?;
            let Ported { protocol, port } = ported;
            let name = parse_name(&source.at(format_args!("{key}.name")), &entry.name)?;
            let (own_tub, by) = match (entry.proof, &entry.secret_file) {
                (KiteProof::Secret, _) => (None, ProvenBy::Secret),
                (KiteProof::Tub, file) => {
                    let place = source.at(format_args!("{key}.proof"));
                    let by = match file {
                        Some(_) => ProvenBy::TubKey,
                        None => ProvenBy::Node,
                    };
                    (Some(tub::tub_in_name(&place, &name, ported)?), by)
                }
            };
            let secret = secret(Some(Own {
                key: &key,
                file: entry.secret_file.as_deref(),
                tub: own_tub,
            }))?;
            let tub =
                |text: &String| parse_tub(&source.at(format_args!("{key}.tub_id")), text, protocol);
            let tell = parse_tell(
                |name| source.at(format_args!("{key}.{name}")),
                &entry,
                protocol,
            )?;
            Ok(Service {
                protocol,
                port,
                tub: entry.tub_id.as_ref().map(tub).transpose()?.or(own_tub),
                by,
                tls_at_frontend: tls_at_frontend(
                    &source.at(format_args!("{key}.tls")),
                    entry.tls,
                    protocol,
                )?,
                name,
                origin: parse_origin(
                    &source.at(format_args!("{key}.origin")),
                    &entry.origin,
                    &allowed,
                )?,
                secret,
                tell,
            })
        };
        entries
            .into_iter()
            .enumerate()
            .map(entry)
            .collect::<Result<Vec<_>>>()?
    } else {
        let secret = secret(None)?;
        let flag = |text: &String| parse_service(text, &allowed, &secret);
        args.services.iter().map(flag).collect::<Result<Vec<_>>>()?
    };
    if services.is_empty() {
        return Err(ConfigError::new(
            Code::NothingToDo,
            source.at("kites"),
            "there is no kite to fly",
            "add foolscap:KITENAME:127.0.0.1:PORT, or a [[kites]] table",
        ));
    }
    for (i, a) in services.iter().enumerate() {
        if services
            .iter()
            .take(i)
            .any(|b| a.name == b.name && a.ported().on_wire() == b.ported().on_wire())
        {
            return Err(ConfigError::new(
                Code::Contradiction,
                source.at("kites"),
                format!(
                    "{} is given twice for what the wire calls {}",
                    a.name,
                    a.ported().on_wire()
                ),
                "keep one of them, or give them different ports",
            ));
        }
    }
    Ok(services)
}

/// Whether to use Tor, and the SOCKS port that leads into it.
fn tor_choice(
    source: &Source,
    args: &BackendArgs,
    table: &TorTable,
) -> Result<(TorChoice, Option<SocketAddr>)> {
    let config = tor_config(source, args.tor_config.as_deref(), table.config.as_deref());
    let enabled = args.via_tor || table.enabled.unwrap_or(false);
    let said = args.via_tor || table.enabled.is_some();
    // To turn it on by itself would be as safe, but whoever starts kite is to know which Tor it is.
    if let Some(place) = source.rc.as_ref().and_then(|rc| rc.proxied.as_ref())
        && !args.via_tor
    {
        return Err(ConfigError::new(
            Code::TorOff,
            place,
            "this line asks for Tor, or another proxy, and without it frontends would see this machine's address",
            "add --via-tor: kite has Tor built in; or remove the line, if kite shall dial directly",
        ));
    }
    if config.is_some() && !enabled {
        return Err(ConfigError::new(
            Code::TorOff,
            source.at("tor.config"),
            "there are settings for Tor, but Tor is off, and frontends would see this machine's address",
            "add --via-tor, or enabled = true under [tor]; or remove the settings",
        ));
    }
    let socks = match (&args.socks_listen, &table.socks_listen) {
        (Some(text), _) => Some(parse_socks("--socks-listen", text)?),
        (None, Some(text)) => Some(parse_socks(&source.at("tor.socks_listen"), text)?),
        (None, None) => None,
    };
    if socks.is_some() && !enabled {
        return Err(ConfigError::new(
            Code::TorOff,
            source.at("tor.socks_listen"),
            "a SOCKS port leads into Tor, but Tor is off",
            "add --via-tor, or enabled = true under [tor]; or remove the SOCKS port",
        ));
    }
    let choice = TorChoice {
        enabled,
        said,
        config,
    };
    Ok((choice, socks))
}

/// Whoever can connect may use this machine's Tor, so nobody outside may.
fn parse_socks(place: &str, text: &str) -> Result<SocketAddr> {
    let remedy = "write a loopback address with a port, such as 127.0.0.1:9150";
    let address: SocketAddr = text.parse().map_err(|_| {
        ConfigError::new(
            Code::BadSocks,
            place,
            format!("'{text}' is no address with a port"),
            remedy,
        )
    })?;
    if !address.ip().is_loopback() {
        return Err(ConfigError::new(
            Code::BadSocks,
            place,
            format!("{address} can be reached from other machines"),
            remedy,
        ));
    }
    Ok(address)
}

fn parse_frontend(
    place: &str,
    address: &str,
    kites: Option<Vec<String>>,
    tunnels: u8,
) -> Result<Frontend> {
    if !(1..=MAX_TUNNELS).contains(&tunnels) {
        return Err(ConfigError::new(
            Code::OutOfRange,
            place,
            format!("{tunnels} tunnels cannot be kept"),
            format!("set tunnels to a number from 1 to {MAX_TUNNELS}"),
        ));
    }
    let address = address.parse().map_err(|e| {
        ConfigError::new(
            Code::BadFrontend,
            place,
            e,
            "copy the address that `kite frontend` printed at its start",
        )
    })?;
    let kites = kites
        .map(|names| names.iter().map(|n| parse_name(place, n)).collect())
        .transpose()?;
    Ok(Frontend {
        address,
        kites,
        tunnels,
        homes: false,
    })
}

fn parse_service<S: Clone>(text: &str, allowed: &[IpAddr], secret: &S) -> Result<Service<S>> {
    let mut parts = text.splitn(3, ':');
    let (Some(protocol), Some(name), Some(origin)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(ConfigError::new(
            Code::BadProtocol,
            "SERVICE",
            format!("'{text}' is not PROTOCOL[-PORT]:KITENAME:ORIGIN"),
            "write, for instance, foolscap:tahoebob.alice.example:127.0.0.1:49293",
        ));
    };
    let Ported { protocol, port } = protocol.parse().map_err(|e| {
        ConfigError::new(
            Code::BadProtocol,
            "SERVICE",
            e,
            "correct the word before the first colon",
        )
    })?;
    Ok(Service {
        protocol,
        port,
        name: parse_name("SERVICE", name)?,
        origin: parse_origin("SERVICE", origin, allowed)?,
        secret: secret.clone(),
        by: ProvenBy::Secret,
        tub: None,
        tls_at_frontend: false,
        tell: Tell::default(),
    })
}

/// Whoever has TLS of its own must not lose it by a word in a file.
fn tls_at_frontend(place: &str, end: TlsEnd, protocol: Protocol) -> Result<bool> {
    match (end, protocol) {
        (TlsEnd::Origin, _) => Ok(false),
        (TlsEnd::Frontend, Protocol::Http | Protocol::Websocket) => Ok(true),
        (TlsEnd::Frontend, _) => Err(ConfigError::new(
            Code::Contradiction,
            place,
            format!("the TLS of a {protocol} kite's visitors cannot end at the frontend"),
            "remove it, or write protocol = \"http\" if the frontend may read what the kite carries",
        )),
    }
}

fn parse_tub(place: &str, text: &str, protocol: Protocol) -> Result<TubId> {
    if protocol != Protocol::Foolscap {
        return Err(ConfigError::new(
            Code::Contradiction,
            place,
            format!("the visitors of a {protocol} kite name no tub"),
            "remove it, or write protocol = \"foolscap\"",
        ));
    }
    text.parse().map_err(|e| {
        ConfigError::new(Code::BadValue,
            place,
            format!("'{text}' is no TubID: {e}"),
            "copy it from my_nodeid in the node's directory, or from between pb:// and @ in its storage FURL",
        )
    })
}

/// Only a kite that carries HTTP has a head in which lines can be put.
fn parse_tell(
    at: impl Fn(&str) -> String,
    entry: &ServiceEntry,
    protocol: Protocol,
) -> Result<Tell> {
    let carries_http = matches!(protocol, Protocol::Http | Protocol::Websocket);
    for (key, set) in [
        ("forwarded_headers", entry.forwarded_headers),
        ("rewrite_host", entry.rewrite_host.is_some()),
    ] {
        if set && !carries_http {
            return Err(ConfigError::new(
                Code::Contradiction,
                at(key),
                format!("the bytes of a {protocol} kite are not kite's to change"),
                "remove it; proxy_protocol tells an origin that understands it who its visitor is",
            ));
        }
    }
    if let Some(host) = &entry.rewrite_host
        && !is_host(host)
    {
        return Err(ConfigError::new(
            Code::BadValue,
            at("rewrite_host"),
            format!("'{host}' is no host"),
            "write a name or an address, with a port if need be, such as intranet.example or 127.0.0.1:8080",
        ));
    }
    Ok(Tell {
        proxy_protocol: entry.proxy_protocol,
        forwarded_headers: entry.forwarded_headers,
        rewrite_host: entry.rewrite_host.clone(),
    })
}

/// `name`, `name:port`, an address, or an address with a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port),
        _ => (text, "80"),
    };
    let name = host.parse::<KiteName>().is_ok_and(|n| !n.is_wildcard());
    (name && port.parse::<u16>().is_ok()) || text.parse::<SocketAddr>().is_ok()
}

fn parse_origin(place: &str, text: &str, allowed: &[IpAddr]) -> Result<OriginAddr> {
    let listed = text
        .parse::<SocketAddr>()
        .is_ok_and(|a| allowed.contains(&a.ip()));
    OriginAddr::parse(text, listed).map_err(|e| {
        ConfigError::new(Code::BadOrigin, place, e, "give the node's own address, such as 127.0.0.1:49293; another machine's must be listed in allow_origin")
    })
}

pub mod outline;
#[cfg(test)]
mod tests;
