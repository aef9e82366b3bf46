//! `kite status`: what a running kite says of itself, over its control socket ([`crate::control`]).
//!
//! `docs/status-schema.json` is made from these types. No visitor's address is in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod screen;
mod text;

pub use self::text::{Age, Size};
use super::board::{self, Board, View};
use super::score::{self, Standing};
use super::traffic::{Ledger, Of, Speed, Sum};
use crate::backend::Plan;
use crate::fleet;
use crate::frontend;
use crate::frontend::registry::TunnelView;
use crate::kite::Protocol;
use crate::tor::{DialReport, Progress};

/// The two roles. Both may run with one state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The hidden side.
    Backend,
    /// The public side.
    Frontend,
}

impl Role {
    /// Where a kite of this role answers.
    pub fn socket(self, state_dir: &Path) -> PathBuf {
        state_dir.join(match self {
            Self::Backend => "backend.sock",
            Self::Frontend => "frontend.sock",
        })
    }
}

/// How a kite is. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// What it is.
    pub role: Role,
    /// Its version.
    pub version: String,
    /// Since it started.
    pub up: u64,
    /// How it goes out: "Tor" or "direct"; none for a frontend.
    pub via: Option<String>,
    /// The embedded Tor client, if there is one.
    pub tor: Option<Tor>,
    /// What the kernel keeps from this process, one line each.
    pub sandbox: Vec<String>,
    /// A backend's tunnels.
    pub tunnels: Vec<Tunnel>,
    /// A frontend's backends.
    pub backends: Vec<Backend>,
    /// What backends dial to reach this frontend.
    pub addresses: Vec<String>,
    /// This frontend carries storage traffic and nothing else.
    #[serde(default)]
    pub storage_only: bool,
    /// How full an open frontend is.
    #[serde(default)]
    pub open: Option<Open>,
    /// The fleet that a frontend is a part of.
    #[serde(default)]
    pub fleet: Option<Fleet>,
    /// All its visitors together.
    #[serde(default)]
    pub traffic: Traffic,
    /// What passed per second, of late.
    #[serde(default)]
    pub speed: Rate,
    /// A backend's frontends, each with its tunnels taken together.
    #[serde(default)]
    pub frontends: Vec<Frontend>,
    /// The kites: those of a backend's configuration, and those that have flown at a frontend since it started.
    #[serde(default)]
    pub kites: Vec<Kite>,
    /// What went wrong, the last first; at most 32.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// The places of kites that prove themselves, at an open frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Open {
    /// Such kites are called `TUBID` and this domain.
    pub domain: String,
    /// Those that fly.
    pub flying: usize,
    /// How many may fly at one time.
    pub most: u32,
    /// How often one more was refused, since the start: for all places, or all of its address, were taken. Who is refused asks again.
    pub turned_away: u64,
}

impl From<&frontend::open::Open> for Open {
    fn from(open: &frontend::open::Open) -> Self {
        let now = open.occupancy();
        Self {
            domain: open.domain().to_string(),
            flying: now.flying,
            most: now.most,
            turned_away: now.turned_away,
        }
    }
}

/// A fleet, as one of its frontends sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Fleet {
    /// What this member is called.
    pub id: String,
    /// The key that it shows to the others.
    pub pin: String,
    /// The other members.
    pub members: Vec<Member>,
    /// Visitors that were passed on to other members, since the start.
    pub passed_on: u64,
    /// Those that are there now.
    pub passed_on_open: usize,
    /// Visitors that no member took after all.
    pub passed_in_vain: u64,
    /// Visitors that other members have brought, since the start.
    pub brought: u64,
    /// Those that are there now.
    pub brought_open: usize,
    /// The etcd that knows the members, and what they fly, if there is one.
    #[serde(default)]
    pub etcd: Option<FleetBook>,
}

/// How a frontend stands with its fleet's etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FleetBook {
    /// What is known of the fleet is what etcd says now. If not, it is what etcd said last.
    pub fresh: bool,
    /// Seconds since that began to be so.
    pub ago: u64,
    /// Which endpoint is spoken with, or was tried last.
    pub endpoint: Option<String>,
    /// Why it is not fresh, with a code.
    pub trouble: Option<String>,
    /// Members that stand there, this one among them.
    pub members: usize,
    /// Changes that etcd is still to be told.
    pub waiting: usize,
    /// Changes that it was told, since the start.
    pub written: u64,
    /// How often it was lost, since the start.
    pub lost: u64,
    /// What stands there and cannot be read.
    pub strange: u64,
}

impl From<fleet::etcd::View> for FleetBook {
    fn from(view: fleet::etcd::View) -> Self {
        let trouble = |(code, text)| format!("[{code}] {text}");
        Self {
            fresh: view.fresh,
            ago: ago(view.since),
            endpoint: view.endpoint,
            trouble: view.trouble.map(trouble),
            members: view.members,
            waiting: view.waiting,
            written: view.written,
            lost: view.lost,
            strange: view.strange,
        }
    }
}

/// Another frontend of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// What it is called.
    pub id: String,
    /// It hears what flies here.
    pub told: bool,
    /// It tells what flies there.
    pub heard: bool,
    /// Kites that fly there, as far as is known here.
    pub kites: usize,
}

impl From<&fleet::Fleet> for Fleet {
    fn from(fleet: &fleet::Fleet) -> Self {
        let passing = fleet.passing();
        let member = |seen: fleet::Seen| Member {
            id: seen.id.to_string(),
            told: seen.tells,
            heard: seen.hears,
            kites: seen.kites,
        };
        Self {
            id: fleet.me().to_string(),
            pin: fleet.pin().to_string(),
            members: fleet.seen().into_iter().map(member).collect(),
            passed_on: passing.out,
            passed_on_open: passing.out_open,
            passed_in_vain: passing.in_vain,
            brought: passing.brought,
            brought_open: passing.brought_open,
            etcd: fleet.book().map(Into::into),
        }
    }
}

/// Visitors and their bytes, since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Visitors that came through.
    pub visitors: u64,
    /// Those that are there now.
    pub open: usize,
    /// Those that were sent away, by why: `not-here`, `not-for-this`, `malformed`, `limit-streams`,
    /// `limit-streams-per-visitor`, `limit-rate`, `limit-rate-per-visitor`, `limit-visitors`, `ended`, `too-slow`, `no-origin`
    /// or `no-tunnel`.
    pub refused: BTreeMap<String, u64>,
    /// Bytes from visitors.
    pub from_visitors: u64,
    /// Bytes to visitors.
    pub to_visitors: u64,
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// From visitors.
    pub from_visitors: u64,
    /// To visitors.
    pub to_visitors: u64,
}

/// A frontend, as its backend knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frontend {
    /// Its address, as configured.
    pub address: String,
    /// The best that its tunnels are: `up`, `suspect`, `dialling`, `waiting` or `idle`.
    pub state: String,
    /// Tunnels that are up.
    pub up: usize,
    /// Tunnels that are to be.
    pub tunnels: usize,
    /// Until the next attempt, if none is up.
    pub retry_in: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Its visitors.
    pub traffic: Traffic,
    /// How well it has done its part, as this backend's own visitors saw it in the last 30 days, those before the start
    /// included; nothing if there were none.
    #[serde(default)]
    pub score: Option<Score>,
}

/// How well a frontend does its part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Score {
    /// In a word: `good`, `poor`, or `astray`, if a way through it led to another key, or bytes were changed there.
    pub standing: Standing,
    /// The part of the visits that were good, of 100; each weighs half after 3 days.
    pub points: u8,
    /// Since the last one.
    pub ago: u64,
    /// The kites that go astray.
    pub astray: Vec<String>,
}

/// A kite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kite {
    /// `protocol:name`.
    pub kite: String,
    /// Where it flies now: at a backend, the frontends' addresses.
    pub flies_at: Vec<String>,
    /// Where it is to fly, likewise.
    #[serde(default)]
    pub wanted_at: Vec<String>,
    /// Tunnels that fly it now.
    pub tunnels: usize,
    /// What is behind it; at a backend.
    pub origin: Option<Origin>,
    /// What its own visitor found out, per frontend; at a backend.
    pub probes: Vec<Probe>,
    /// What it found out where the kite's name leads; at a backend that goes through Tor.
    #[serde(default)]
    pub by_name: Vec<Probe>,
    /// Its visitors.
    pub traffic: Traffic,
}

/// What a kite's visitors are passed on to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Origin {
    /// Its address.
    pub address: String,
    /// `speaks foolscap`, `down`, `web server`, `not foolscap`; or `unknown`, if it was never looked at.
    pub state: String,
    /// How long it has been seen so.
    pub since: u64,
    /// Since the last look. It is looked at when visitors come.
    pub seen: Option<u64>,
    /// What was wrong last.
    pub last_trouble: Option<String>,
}

/// What became of a visit that a backend paid to its own kite, from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was seen to come in by this frontend, the kite's own node answered, and nothing was changed on the way.
    Proven,
    /// A foolscap node answered. Whose it is cannot be told without `tub_id`; or it was not this frontend that brought the
    /// visitor.
    Reached,
    /// Something is wrong.
    Failed,
    /// It was not tried, or could not be.
    NotProbed,
}

/// What a visitor's goal was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Wherever the kite's name leads, as for everybody.
    Name,
    /// The frontend's own address, with the kite's name in its mouth.
    #[default]
    Frontend,
}

/// A visit that a backend paid to its own kite, from outside: the last one, and what came of all since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// The frontend's address, as configured: the one that was visited, or, for a visit by name, the one that it was seen to
    /// come in by, if it was one of this backend's.
    pub frontend: Option<String>,
    /// Where the visitor went: `host:port`.
    pub to: String,
    /// What that is.
    #[serde(default)]
    pub way: Way,
    /// What became of it.
    pub outcome: Outcome,
    /// In one word: `own-node`, `some-node`, `other-way`, `other-node`, `altered`, `not-up`, `forbidden`, `limits`, `closed`,
    /// `timed-out`, `unreachable`, `name-not-found`, `no-way-there`, `onion` or `wildcard`.
    pub finding: String,
    /// In a sentence.
    pub text: String,
    /// Since it was paid.
    pub ago: u64,
    /// How long it took, in milliseconds.
    pub took_ms: Option<u64>,
    /// How many visits have been paid.
    #[serde(default)]
    pub visits: u64,
    /// How many of them proved the way.
    #[serde(default)]
    pub proven: u64,
    /// Since one did last.
    #[serde(default)]
    pub proven_ago: Option<u64>,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    /// With a frontend, by its address, or a kite.
    pub with: String,
    /// What.
    pub text: String,
    /// Its code, for `kite explain`, if it has one.
    pub code: Option<String>,
    /// Since it happened last.
    pub ago: u64,
    /// How often.
    pub times: u64,
}

/// The embedded Tor client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tor {
    /// `working`, `starting`, or what is the matter, by the name that it has in docs/states.md.
    pub state: String,
    /// Streams can be opened, as far as it knows.
    pub ready: bool,
    /// What it says of itself; or what is the matter, and what to do.
    pub text: String,
    /// Connections it has opened, by what they went to.
    pub dials: BTreeMap<String, u64>,
    /// Connections that were kept from it. There should be none.
    pub refused: BTreeMap<String, u64>,
}

/// One of a backend's tunnels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tunnel {
    /// The frontend's address, as configured.
    pub frontend: String,
    /// Its number among the tunnels to this frontend, from 1.
    pub tunnel: u8,
    /// `up`, `suspect`, `dialling`, `waiting` or `idle`.
    pub state: String,
    /// How long it has been so.
    pub since: u64,
    /// Through Tor, while it is up: how long its circuit has been in use. Arti may have built it some minutes before,
    /// to have one in reserve, and does not say when.
    pub circuit_age: Option<u64>,
    /// The last measured round trip, in milliseconds.
    pub round_trip_ms: Option<u64>,
    /// Open streams.
    pub streams: usize,
    /// Until the next attempt.
    pub retry_in: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// The kites that it flies.
    pub kites: Vec<String>,
    /// Its visitors, and those of the tunnels before it.
    #[serde(default)]
    pub traffic: Traffic,
    /// How often it has come to stand.
    #[serde(default)]
    pub connects: u64,
}

/// One of a frontend's tunnels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// Where it comes from; scrubbed unless peers may be logged.
    pub peer: String,
    /// `protocol:name` of what it flies.
    pub kites: Vec<String>,
    /// Visitors' streams that are open.
    #[serde(default)]
    pub streams: usize,
    /// The last measured round trip, in milliseconds.
    #[serde(default)]
    pub round_trip_ms: Option<u64>,
    /// False if it owes a sign of life.
    #[serde(default)]
    pub answers: bool,
}

/// The schema of what `kite status --json` prints, as docs/status-schema.json has it.
pub fn schema() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().for_serialize();
    settings
        .into_generator()
        .into_root_schema_for::<Vec<Status>>()
        .to_value()
}

impl Status {
    /// One that says nothing yet.
    pub fn new(role: Role, began: Instant) -> Self {
        Self {
            role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            up: began.elapsed().as_secs(),
            via: None,
            tor: None,
            sandbox: Vec::new(),
            tunnels: Vec::new(),
            backends: Vec::new(),
            addresses: Vec::new(),
            storage_only: false,
            open: None,
            fleet: None,
            traffic: Traffic::default(),
            speed: Rate::default(),
            frontends: Vec::new(),
            kites: Vec::new(),
            troubles: Vec::new(),
        }
    }

    /// A backend's, from its board.
    pub fn of_backend(began: Instant, board: &Board, speed: &Speed, plan: &Plan) -> Self {
        let (probes, names) = (board.probes(), board.by_name());
        let sums = board.ledger().sums();
        let views = board.view();
        let kites = board.origins().into_iter().map(|origin| {
            let flies_at = |v: &&View| v.kites.contains(&origin.kite);
            let mut at: Vec<_> = (views.iter().filter(flies_at))
                .map(|v| v.frontend.clone())
                .collect();
            let tunnels = at.len();
            at.dedup();
            let wanted_at = plan.places_of(&origin.kite);
            let ours = |p: &&board::Probed| {
                p.kite == origin.kite && p.frontend.as_ref().is_none_or(|f| wanted_at.contains(f))
            };
            Kite {
                flies_at: at,
                tunnels,
                traffic: sum(&sums, |of| of.kite.as_ref() == Some(&origin.kite)),
                probes: probes.iter().filter(ours).map(Into::into).collect(),
                by_name: names.iter().filter(ours).map(Into::into).collect(),
                wanted_at,
                kite: origin.kite.clone(),
                origin: Some(origin.into()),
            }
        });
        let kites = kites.collect();
        let tunnels: Vec<Tunnel> = views
            .into_iter()
            .map(|view| {
                let place = Some((view.frontend.clone(), view.lane.0 + 1));
                Tunnel {
                    traffic: sum(&sums, |of| of.tunnel == place),
                    ..view.into()
                }
            })
            .collect();
        let mut frontends = Frontend::all(&tunnels, |address| {
            sum(&sums, |of| {
                of.tunnel.as_ref().is_some_and(|(at, _)| at == address)
            })
        });
        for frontend in &mut frontends {
            let at = &frontend.address;
            let flown = |kite: &str| plan.places_of(kite).contains(at);
            frontend.score = board.scores().of(at, flown).map(Into::into);
        }
        Self {
            traffic: sum(&sums, |_| true),
            speed: speed.now(),
            frontends,
            kites,
            tunnels,
            troubles: board.troubles().into_iter().map(Into::into).collect(),
            ..Self::new(Role::Backend, began)
        }
    }

    /// A frontend's.
    pub fn of_frontend(
        began: Instant,
        tunnels: Vec<TunnelView>,
        ledger: &Ledger,
        speed: &Speed,
    ) -> Self {
        let sums = ledger.sums();
        let kite = |(of, sum): &(Of, Sum)| {
            let kite = of.kite.clone()?;
            Some(Kite {
                flies_at: Vec::new(),
                wanted_at: Vec::new(),
                tunnels: tunnels.iter().filter(|t| t.kites.contains(&kite)).count(),
                origin: None,
                probes: Vec::new(),
                by_name: Vec::new(),
                traffic: (*sum).into(),
                kite,
            })
        };
        let mut kites: Vec<_> = sums.iter().filter_map(kite).collect();
        kites.sort_by(|a, b| a.kite.cmp(&b.kite));
        Self {
            traffic: sum(&sums, |_| true),
            speed: speed.now(),
            kites,
            backends: tunnels.into_iter().map(Into::into).collect(),
            ..Self::new(Role::Frontend, began)
        }
    }

    /// Nothing is amiss: a backend has a tunnel to each of its frontends.
    pub fn is_well(&self) -> bool {
        let stands = |frontend: &str| {
            let mut tunnels = self.tunnels.iter().filter(|t| t.frontend == frontend);
            tunnels.any(|t| t.state == "up")
        };
        self.tunnels.iter().all(|t| stands(&t.frontend))
            && self.tor.as_ref().is_none_or(|tor| tor.refused.is_empty())
    }
}

impl Kite {
    /// Only such kites can be visited, and so proven.
    pub fn is_foolscap(&self) -> bool {
        let (protocol, _) = self.kite.split_once(':').unwrap_or_default();
        let (protocol, _) = protocol.split_once('-').unwrap_or((protocol, ""));
        protocol == Protocol::Foolscap.to_string()
    }

    /// Its own visitor's last visit through this frontend.
    pub fn probe(&self, frontend: &str) -> Option<&Probe> {
        let through = |p: &&Probe| p.frontend.as_deref() == Some(frontend);
        self.probes.iter().find(through)
    }

    /// Whether that has proven the way.
    pub fn is_proven(&self, frontend: &str) -> bool {
        let probe = self.probe(frontend);
        probe.is_some_and(|p| p.outcome == Outcome::Proven)
    }
}

impl Frontend {
    /// A way through it led to another key, or bytes were changed there, and nothing has shown since that this is over.
    pub fn is_astray(&self) -> bool {
        let standing = self.score.as_ref().map(|score| score.standing);
        standing == Some(Standing::Astray)
    }
}

impl Probe {
    /// What it found, in a word or two.
    pub fn word(&self) -> &'static str {
        match self.outcome {
            Outcome::Proven => "proven",
            Outcome::Reached => "reached, not proven",
            Outcome::Failed => "FAILED",
            Outcome::NotProbed => "not visited",
        }
    }
}

fn sum(sums: &[(Of, Sum)], which: impl Fn(&Of) -> bool) -> Traffic {
    let chosen = sums.iter().filter(|(of, _)| which(of));
    chosen.map(|(_, sum)| *sum).sum::<Sum>().into()
}

impl From<Sum> for Traffic {
    fn from(sum: Sum) -> Self {
        Self {
            visitors: sum.visitors,
            open: sum.open,
            refused: sum.refusals(),
            from_visitors: sum.from_visitors,
            to_visitors: sum.to_visitors,
        }
    }
}

impl Frontend {
    /// The frontends of these tunnels, in their order.
    fn all(tunnels: &[Tunnel], traffic: impl Fn(&str) -> Traffic) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        // The best comes first.
        let rank = |state: &str| {
            let states = ["up", "suspect", "dialling", "waiting", "idle"];
            states.iter().position(|s| *s == state)
        };
        for tunnel in tunnels {
            let up = usize::from(tunnel.state == "up");
            let Some(known) = all.iter_mut().find(|f| f.address == tunnel.frontend) else {
                all.push(Self {
                    address: tunnel.frontend.clone(),
                    state: tunnel.state.clone(),
                    up,
                    tunnels: 1,
                    retry_in: tunnel.retry_in,
                    last_error: tunnel.last_error.clone(),
                    traffic: traffic(&tunnel.frontend),
                    score: None,
                });
                continue;
            };
            known.up += up;
            known.tunnels += 1;
            known.retry_in = match (known.retry_in, tunnel.retry_in) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if rank(&tunnel.state) < rank(&known.state) {
                known.state.clone_from(&tunnel.state);
            }
            if known.last_error.is_none() {
                known.last_error.clone_from(&tunnel.last_error);
            }
        }
        for frontend in all.iter_mut().filter(|f| f.up > 0) {
            frontend.retry_in = None;
        }
        all
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn ago(at: Instant) -> u64 {
    at.elapsed().as_secs()
}

impl From<board::Origin> for Origin {
    fn from(origin: board::Origin) -> Self {
        Self {
            address: origin.address,
            state: origin.state.to_owned(),
            since: ago(origin.since),
            seen: origin.seen.map(ago),
            last_trouble: origin.trouble,
        }
    }
}

impl From<score::Score> for Score {
    fn from(score: score::Score) -> Self {
        Self {
            standing: score.standing,
            points: score.points,
            ago: score.ago.as_secs(),
            astray: score.astray,
        }
    }
}

impl From<&board::Probed> for Probe {
    fn from(probed: &board::Probed) -> Self {
        Self {
            frontend: probed.frontend.clone(),
            to: probed.to.clone(),
            way: probed.way,
            outcome: probed.outcome,
            finding: probed.finding.to_owned(),
            text: probed.text.clone(),
            ago: ago(probed.at),
            took_ms: Some(milliseconds(probed.took)),
            visits: probed.record.visits,
            proven: probed.record.proven,
            proven_ago: probed.record.last_proven.map(ago),
        }
    }
}

/// The code that a message carries in front.
fn code_of(text: &str) -> Option<String> {
    let (code, _) = text.strip_prefix('[')?.split_once(']')?;
    Some(code.to_owned())
}

impl From<board::Trouble> for Trouble {
    fn from(trouble: board::Trouble) -> Self {
        Self {
            with: trouble.with,
            code: code_of(&trouble.what),
            text: trouble.what,
            ago: ago(trouble.at),
            times: trouble.times,
        }
    }
}

impl From<View> for Tunnel {
    fn from(view: View) -> Self {
        Self {
            frontend: view.frontend,
            tunnel: view.lane.0 + 1,
            state: view.state.to_owned(),
            since: view.since.as_secs(),
            circuit_age: None,
            round_trip_ms: view.round_trip.map(milliseconds),
            streams: view.streams,
            retry_in: view.retry_in.map(|d| d.as_secs()),
            last_error: view.last_error,
            kites: view.kites,
            traffic: Traffic::default(),
            connects: view.connects,
        }
    }
}

impl Tunnel {
    /// A tunnel through Tor keeps to one circuit from its beginning to its end.
    pub fn in_tor(self) -> Self {
        let stands = matches!(self.state.as_str(), "up" | "suspect");
        Self {
            circuit_age: stands.then_some(self.since),
            ..self
        }
    }
}

impl From<TunnelView> for Backend {
    fn from(view: TunnelView) -> Self {
        Self {
            peer: view.peer,
            kites: view.kites,
            streams: view.streams,
            round_trip_ms: view.round_trip.map(milliseconds),
            answers: view.answers,
        }
    }
}

impl Tor {
    /// From what the client says.
    pub fn new(progress: Progress, dialled: &DialReport) -> Self {
        let named = |(what, n): (String, &u64)| (what, *n);
        let (state, text) = match (progress.trouble, progress.ready) {
            (Some(trouble), _) => {
                let (code, remedy) = (trouble.kite_code(), trouble.remedy());
                (trouble.name(), format!("[{code}] {trouble}; {remedy}"))
            }
            (None, true) => ("working", progress.text),
            (None, false) => ("starting", progress.blocked.unwrap_or(progress.text)),
        };
        Self {
            state: state.to_owned(),
            ready: progress.ready,
            text,
            dials: dialled
                .allowed
                .iter()
                .map(|(p, n)| named((p.to_string(), n)))
                .collect(),
            refused: dialled
                .refused
                .iter()
                .map(|(r, n)| named((r.to_string(), n)))
                .collect(),
        }
    }
}
