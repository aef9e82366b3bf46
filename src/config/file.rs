//! Every key of both files, with its meaning. docs/reference.md and the JSON schemas are made of this, so a doc comment here is
//! the documentation of a key: a test demands one for each. What the values must be is decided in [`crate::config`].

use std::num::NonZeroU16;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;

use super::ProofRule;
use super::tub::OpenProof;
use crate::frontend::limits::Limits;
use crate::frontend::storage::Policy;
use crate::proxy_header::Version;

/// The JSON schema of a frontend's file.
pub fn frontend_schema() -> Schema {
    schema_for!(FrontendFile)
}

/// The JSON schema of a backend's file.
pub fn backend_schema() -> Schema {
    schema_for!(BackendFile)
}

// ---------------------------------------------------------------- frontend

/// The file of `kite frontend`.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "frontend.toml")]
#[serde(deny_unknown_fields)]
pub(super) struct FrontendFile {
    /// Where visitors and backends come in: `["0.0.0.0:80"]`, or `[[listen]]` tables, or both kinds in one list. At least one.
    /// `"[::]:80"` takes IPv6 and IPv4 together.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--listen"))]
    pub listen: Vec<ListenEntry>,
    /// The names that may fly, besides those of the book and of authorities.
    #[serde(default)]
    pub kites: Vec<GrantEntry>,
    /// The public host name, for the address that is printed at the start.
    #[schemars(extend("x-flag" = "--name"))]
    pub name: Option<String>,
    /// Backends may come through a Tor onion service, too.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--onion"))]
    pub onion: bool,
    /// Settings of the onion service's Tor.
    #[serde(default)]
    pub tor: OnionTorTable,
    /// Where the frontend's keys and book are kept. Without it `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/kite`, else
    /// `~/.local/state/kite`.
    #[schemars(extend("x-flag" = "--state-dir"))]
    pub state_dir: Option<PathBuf>,
    /// Whom to become once the ports are open, if it is root who starts it: `NAME`, `NAME:GROUP`, or numbers in their place.
    /// Without it, the owner of the state directory.
    #[schemars(extend("x-flag" = "--user"))]
    pub user: Option<String>,
    /// Put the addresses of backends and visitors into the log. Else they are `[scrubbed]`.
    #[schemars(extend("x-flag" = "--log-peers", "default" = false))]
    pub log_peers: Option<bool>,
    /// Certificates to show to those who ask for their names.
    #[serde(default)]
    pub certificates: Vec<CertificateEntry>,
    /// For each kite that has no limits of its own, key by key.
    #[serde(default)]
    pub limits: Limits,
    /// A message of the day, for backends: 1,024 bytes of this file are sent. It is read again when it changes.
    pub motd_file: Option<PathBuf>,
    /// Certificates to get from an authority.
    pub acme: Option<AcmeTable>,
    /// Who is asked about names that are not listed.
    #[serde(default)]
    pub authorities: Vec<AuthorityEntry>,
    /// Metrics for Prometheus, for this machine alone.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--metrics-listen"))]
    pub metrics: LocalTable,
    /// The status page, for this machine alone.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--web-listen"))]
    pub web: LocalTable,
    /// What visitors of the frontend's own name see.
    #[serde(default)]
    pub page: PageTable,
    /// What is carried, whatever kites are allowed: `"storage-only"` is foolscap, and Tahoe's HTTPS storage protocol on a kite's own
    /// port, and nothing that a browser shows.
    #[serde(default)]
    #[schemars(extend("default" = "any"))]
    pub policy: Policy,
    /// Kites that need no secret: each is called by its node's tub, and proves it.
    pub open: Option<OpenTable>,
    /// Other frontends that serve the same domain.
    pub fleet: Option<FleetTable>,
    /// How long what runs may go on after the order to stop: `"10s"`, an hour at most. A second order ends it at once.
    #[schemars(extend("default" = "10s"))]
    pub drain: Option<String>,
    /// How long after a start visitors of a kite that is not back yet wait for it, instead of being told that it is not
    /// there: `"15s"`, an hour at most.
    #[schemars(extend("default" = "15s"))]
    pub grace: Option<String>,
}

/// Kites of strangers, called `TUBID.domain`. They carry foolscap and nothing else, whatever `policy` says.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[open]")]
#[serde(deny_unknown_fields)]
pub(super) struct OpenTable {
    /// What stands behind the TubID. Its wildcard must lead here: `*.alice.example`.
    pub domain: String,
    /// `"key"`: the tub's key must sign for the tunnel. `"node"`: it is enough that the tub answers at the tunnel's end, which somebody
    /// in between can bring about as well.
    #[serde(default)]
    #[schemars(extend("default" = "key"))]
    pub proof: OpenProof,
    /// How many such kites may fly at a time.
    #[schemars(range(min = 1), extend("default" = 1000))]
    pub kites: Option<u32>,
    /// How many of them from one address. Backends that come through Tor share the addresses of its exits.
    #[schemars(range(min = 1), extend("default" = 64))]
    pub kites_per_address: Option<u32>,
    /// Limits of each. Where neither this nor `[limits]` says anything: 100GB in 30 days, 256 connections at a time, 600 new ones a
    /// minute.
    #[serde(default)]
    pub limits: Limits,
}

/// A frontend's place in a fleet: several frontends that serve one domain, and pass visitors on to whichever flies the kite.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[fleet]")]
#[serde(deny_unknown_fields)]
pub(super) struct FleetTable {
    /// Where the other members come in, `ADDR:PORT` in numbers: on a network of their own, if there is one.
    pub listen: String,
    /// What this member is called: up to 32 of `a-z`, `0-9` and `-`.
    pub id: String,
    /// The members, 16 at most. The same list can stand on all machines: this member may be in it.
    #[serde(default)]
    pub members: Vec<MemberEntry>,
    /// For more, or for members that come and go: who they are, and what they fly, is in etcd.
    pub etcd: Option<EtcdTable>,
}

/// An etcd (3.4 or later) in which the members of a fleet say who they are, and what they fly. No visitor waits for it.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[fleet.etcd]")]
#[serde(deny_unknown_fields)]
pub(super) struct EtcdTable {
    /// Where its clients are served, 16 at most: `https://HOST:PORT`, or `http://` for one on this machine.
    pub endpoints: Vec<String>,
    /// A file with the certificates of the authority that etcd's certificate is from. No others are believed.
    pub ca: Option<PathBuf>,
    /// The certificate that this frontend shows to etcd.
    pub cert: Option<PathBuf>,
    /// Its key; nobody but its owner and group may read it.
    pub key: Option<PathBuf>,
    /// A user of etcd's, if it wants one: it must be allowed to read and write below `prefix`.
    pub user: Option<String>,
    /// The file with the user's password, which only its owner may read.
    pub password_file: Option<PathBuf>,
    /// What all keys begin with; another fleet has another.
    #[schemars(extend("default" = "kite"))]
    pub prefix: Option<String>,
    /// Where the other members reach this one's `listen`, `ADDR:PORT` in numbers. The same, unless this says otherwise.
    pub address: Option<String>,
    /// Where backends reach this member, for those that ask which members are home to their kites: `HOST:PORT#sha256:PIN`, or
    /// `NAME.onion:PORT`. Without it they are not sent there.
    pub public: Option<String>,
}

/// One frontend of a fleet.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[fleet.members]]")]
#[serde(deny_unknown_fields)]
pub(super) struct MemberEntry {
    /// Its `id`, as its own file has it.
    pub id: String,
    /// Where its internal port is reached, `ADDR:PORT` in numbers.
    pub address: String,
    /// The key that it shows there, `sha256:…`: its log and `kite status` show it.
    pub pin: String,
    /// Where backends reach it, for those that ask which members are home to their kites: `HOST:PORT#sha256:PIN`, or
    /// `NAME.onion:PORT`. Without it they are not sent there.
    pub public: Option<String>,
}

/// Something that a running kite shows to this machine alone.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "[metrics], [web]")]
#[serde(deny_unknown_fields)]
pub(super) struct LocalTable {
    /// A loopback address with a port, or `unix:/absolute/PATH`. Without it nothing is shown. Flags: `--metrics-listen`, `--web-listen`.
    pub listen: Option<String>,
}

/// The page at the frontend's own name.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "[page]")]
#[serde(deny_unknown_fields)]
pub(super) struct PageTable {
    /// Whether there is one. `false`: visitors are told that nothing is here.
    #[schemars(extend("default" = true))]
    pub enabled: Option<bool>,
    /// How to reach the operator, as it is shown: a mail address, a web address, or any words, 200 bytes at most.
    pub contact: Option<String>,
}

/// A program or a name server that knows which kites may fly. It has one of `program` and `dns`.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[authorities]]")]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorityEntry {
    /// It is asked about names below this one; the longest domain wins. Without it, about all.
    pub domain: Option<String>,
    /// The absolute path of a program that is run as `PROGRAM --auth NAME` and prints a JSON object. It gets 10 s.
    pub program: Option<PathBuf>,
    /// A domain below which the question is put to the DNS, as pagekite.py does.
    pub dns: Option<String>,
    /// The name server that is asked, `ADDR:PORT`. Without it the first of `/etc/resolv.conf`.
    pub resolver: Option<String>,
    /// What its kites may carry.
    #[schemars(extend("default" = ["foolscap"]))]
    pub protocols: Option<Vec<String>>,
    /// Questions at one time.
    #[schemars(extend("default" = 8))]
    pub parallel: Option<usize>,
    /// Limits of its kites, where its answer names none.
    #[serde(default)]
    pub limits: Limits,
}

/// Certificates from an authority (ACME), one for each name.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[acme]")]
#[serde(deny_unknown_fields)]
pub(super) struct AcmeTable {
    /// The names. No wildcards.
    pub names: Vec<String>,
    /// Must be `true`: the authority's terms are accepted.
    #[serde(default)]
    pub accept_terms: bool,
    /// A mail address for the authority.
    pub contact: Option<String>,
    /// The https URL of the authority's directory.
    #[schemars(extend("default" = "https://acme-v02.api.letsencrypt.org/directory"))]
    pub directory: Option<String>,
    /// More certificate authorities for the directory's own TLS, PEM.
    pub ca_file: Option<PathBuf>,
    /// As in `[[certificates]]`, for these.
    #[serde(default)]
    pub endpoints: bool,
    /// As in `[[certificates]]`, for these.
    #[serde(default)]
    pub redirect: bool,
}

/// A certificate, looked at every 5 s: a new one is taken without a restart.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[certificates]]")]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateEntry {
    /// The chain, the frontend's own first, PEM.
    pub cert: PathBuf,
    /// Its key, PEM. Without it, in the same file.
    pub key: Option<PathBuf>,
    /// For TLS that names nobody. Where none says so it is the first.
    #[serde(default)]
    pub default: bool,
    /// TLS ends here also for `http` kites of backends that are no kite, and cannot ask for it.
    #[serde(default)]
    pub endpoints: bool,
    /// Http visitors of kites whose TLS ends here are sent to https.
    #[serde(default)]
    pub redirect: bool,
}

/// What a frontend may say of Tor: it is on if `onion` is.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "[tor]")]
#[serde(deny_unknown_fields)]
pub(super) struct OnionTorTable {
    /// A file with Arti's own settings, laid over kite's. An unknown key is an error.
    #[schemars(extend("x-flag" = "--tor-config"))]
    pub config: Option<PathBuf>,
}

/// `"ADDR:PORT"`, or a table.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected \"ADDR:PORT\", or a table with `address`, and as wanted, `port`, `kite`, `protocol`, `proxy_protocol` (true or false) and `proxy_from` (a list)"
)]
pub(super) enum ListenEntry {
    /// For all kites, and for backends.
    Address(String),
    /// With what else is wanted.
    Port(ListenTable),
}

/// A port with something special about it.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[listen]]")]
#[serde(deny_unknown_fields)]
pub(super) struct ListenTable {
    /// `ADDR:PORT`.
    pub address: String,
    /// What visitors and kites call the port, where a firewall or a load balancer leads another one here.
    pub port: Option<u16>,
    /// The kite that the port belongs to: TLS visitors that name no server are brought to it.
    pub kite: Option<String>,
    /// `"raw"`: all of the port's visitors are the kite's, from the first byte on.
    pub protocol: Option<String>,
    /// Every connection comes from a load balancer and begins with a PROXY header.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// The load balancers, as IP addresses or networks. Not needed where `address` is loopback.
    pub proxy_from: Option<Vec<String>>,
}

/// A kite that may fly.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[kites]]")]
#[serde(deny_unknown_fields)]
pub(super) struct GrantEntry {
    /// A name, or `*.` and a domain for all names below it.
    #[schemars(extend("x-flag" = "--domain"))]
    pub name: String,
    /// What it may carry: `foolscap`, `tahoe-https`, `https`, `http` (with `http2` and `http3`), `websocket`, `raw`, `xmpp`,
    /// `minecraft`.
    #[schemars(extend("x-flag" = "--protocols", "default" = ["foolscap"]))]
    pub protocols: Option<Vec<String>>,
    /// The file with what a backend must know; nobody but its owner may be able to read it. `credential:NAME` is
    /// one of systemd's credentials. Without it `--secret-file`, or the variable `KITE_SECRET`.
    #[schemars(extend("x-flag" = "--secret-file"))]
    pub secret_file: Option<PathBuf>,
    /// What proves that a backend knows the secret.
    #[serde(default)]
    #[schemars(extend("default" = "optional"))]
    pub proof: ProofRule,
    /// Its last day, in UTC: `"2027-01-31"`.
    pub expires: Option<String>,
    /// Limits of its own: `limits = { quota = "10GB", period_days = 30 }`.
    #[serde(default)]
    pub limits: Limits,
    /// How many kite backends may fly a name at a time, 1 to 16.
    #[schemars(range(min = 1, max = 16), extend("default" = 1))]
    pub backends: Option<u8>,
}

// ----------------------------------------------------------------- backend

/// The file of `kite backend`.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "backend.toml")]
#[serde(deny_unknown_fields)]
pub(super) struct BackendFile {
    /// Tor, as the only way out.
    #[serde(default)]
    pub tor: TorTable,
    /// The frontends to dial. At least one.
    #[serde(default)]
    pub frontends: Vec<FrontendEntry>,
    /// The kites to fly. At least one.
    #[serde(default)]
    pub kites: Vec<ServiceEntry>,
    /// More certificate authorities, PEM, for frontends that are dialled as plain `HOST:PORT`.
    #[schemars(extend("x-flag" = "--ca-file"))]
    pub ca_file: Option<PathBuf>,
    /// IP addresses, besides loopback, that an origin may have.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--allow-origin"))]
    pub allow_origin: Vec<String>,
    /// Where Tor's guards and directory are kept. Without it `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/kite`, else
    /// `~/.local/state/kite`. One kite with Tor for each directory.
    #[schemars(extend("x-flag" = "--state-dir"))]
    pub state_dir: Option<PathBuf>,
    /// Metrics for Prometheus, for this machine alone.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--metrics-listen"))]
    pub metrics: LocalTable,
    /// The status page, for this machine alone.
    #[serde(default)]
    #[schemars(extend("x-flag" = "--web-listen"))]
    pub web: LocalTable,
    /// The backend's visits to its own kites.
    #[serde(default)]
    pub probe: ProbeTable,
    /// How long what runs may go on after the order to stop: `"10s"`, an hour at most. A second order ends it at once.
    #[schemars(extend("default" = "10s"))]
    pub drain: Option<String>,
}

/// A backend's visits to its own kites, from outside.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "[probe]")]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeTable {
    /// Whether it visits them, after a kite came up and rarely from then on. Without it: yes.
    pub enabled: Option<bool>,
    /// The frontends' port for visitors. Without it the one that is dialled, or 80 where that is 443 or an onion service's.
    pub public_port: Option<NonZeroU16>,
}

/// Whether Tor is used, and how.
#[derive(Deserialize, JsonSchema, Default)]
#[schemars(title = "[tor]")]
#[serde(deny_unknown_fields)]
pub(super) struct TorTable {
    /// Reach frontends through Tor and in no other way. `kite check` and `kite backend join` ask where neither this nor a flag says
    /// whether. Default: false.
    #[schemars(extend("x-flag" = "--via-tor"))]
    pub enabled: Option<bool>,
    /// A file with Arti's own settings, laid over kite's: bridges, `address_filter`, storage, … An unknown key is an error.
    #[schemars(extend("x-flag" = "--tor-config"))]
    pub config: Option<PathBuf>,
    /// The `ADDR:PORT`, on loopback, of a SOCKS5 port that leads into the same Tor, for the node's own connections. Only with Tor.
    #[schemars(extend("x-flag" = "--socks-listen"))]
    pub socks_listen: Option<String>,
}

/// A frontend to dial.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[frontends]]")]
#[serde(deny_unknown_fields)]
pub(super) struct FrontendEntry {
    /// `HOST:PORT#sha256:PIN`, `NAME.onion:PORT`, `HOST:PORT`, `HOST:PORT#name:NAME,…` or `plain://HOST:PORT`.
    #[schemars(extend("x-flag" = "--frontend"))]
    pub address: String,
    /// The kites to fly there. Without it, all.
    #[schemars(extend("x-flag" = "--frontend"))]
    pub kites: Option<Vec<String>>,
    /// Tunnels to keep there, 1 to 4. Without it 2 through Tor, else 1. Through Tor each has circuits of its own. A frontend
    /// that is no kite gets one.
    #[schemars(range(min = 1, max = 4), extend("x-flag" = "--tunnels"))]
    pub tunnels: Option<u8>,
    /// If it is one of a fleet, it may name the members that are home to the kites, and tunnels are kept there, too. It could
    /// name anybody: only addresses with a pin, and onion services, are taken from it, 8 at most, and dialled as all frontends
    /// are.
    #[serde(default)]
    #[schemars(extend("default" = false))]
    pub homes: bool,
}

/// A kite to fly.
#[derive(Deserialize, JsonSchema)]
#[schemars(title = "[[kites]]")]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceEntry {
    /// Its public name.
    #[schemars(extend("x-flag" = "SERVICE"))]
    pub name: String,
    /// What it carries. With `-PORT` behind it, as `http-8080`, or `port` beside it, only visitors of that port.
    #[schemars(extend("x-flag" = "SERVICE", "default" = "foolscap"))]
    pub protocol: Option<String>,
    /// The frontend's port whose visitors it is for. Without it, those of any.
    #[schemars(extend("x-flag" = "SERVICE"))]
    pub port: Option<u16>,
    /// The server behind it: `ADDR:PORT` in numbers, on this machine, or `unix:/path/of/socket`.
    #[schemars(extend("x-flag" = "SERVICE"))]
    pub origin: String,
    /// The file with what proves that the kite is ours; nobody but its owner may be able to read it. `credential:NAME` is
    /// one of systemd's credentials. Without it `--secret-file`, or the variable `KITE_SECRET`.
    #[schemars(extend("x-flag" = "--secret-file"))]
    pub secret_file: Option<PathBuf>,
    /// What proves that the kite is ours: `"secret"`, or `"tub"` where the name begins with the node's TubID and the frontend is open.
    /// `secret_file` is then the node's `private/node.pem`; without it the frontend can only look who answers, and not all take that.
    #[serde(default)]
    #[schemars(extend("default" = "secret"))]
    pub proof: KiteProof,
    /// The node's TubID: visitors for any other are turned away here. It stands in the node's `my_nodeid`, and between `pb://`
    /// and `@` in its FURLs. For `foolscap` only.
    pub tub_id: Option<String>,
    /// Where visitors' TLS ends. For `http` and `websocket` only.
    #[serde(default)]
    #[schemars(extend("default" = "origin"))]
    pub tls: TlsEnd,
    /// The origin is told who its visitor is, by a header before the first byte.
    pub proxy_protocol: Option<Version>,
    /// `X-Forwarded-For`, `-Proto` and `-Port` are put into the first request. For `http` and `websocket` only.
    #[serde(default)]
    pub forwarded_headers: bool,
    /// Another `Host` in the first request. For `http` and `websocket` only.
    pub rewrite_host: Option<String>,
}

/// What proves that a kite is ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum KiteProof {
    /// A secret that the frontend has, too.
    #[default]
    Secret,
    /// Its name, which is its tub's.
    Tub,
}

/// Where the TLS of a kite's visitors ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TlsEnd {
    /// At the origin, if there is any.
    #[default]
    Origin,
    /// At the frontend, which can then read what visitors say.
    Frontend,
}
