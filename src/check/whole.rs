//! `kite check`: all that lies between a node and its visitors, in the order in which it can go wrong.
//!
//! A kite that runs with the same state directory is asked. Where none runs, a backend is run for as long as it takes
//! to see. With Tor nothing here goes out otherwise than through it.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::CheckError;
use crate::backend::{self, Plan, probe};
use crate::cli::{BackendArgs, CheckArgs};
use crate::config::{BackendConfig, ConfigError, NodeSide, Service, places};
use crate::control;
use crate::dial::OriginDialer;
use crate::kite::Protocol;
use crate::observe::board::{Board, kite_of};
use crate::observe::status::{self, Outcome, Role, Status};
use crate::observe::traffic::Speed;
use crate::run::RunError;
use crate::shutdown;
use crate::way_out::{self, Opened, WayOut};
use crate::witness::Witness;

/// How long Tor may take to start.
const TOR_START: Duration = Duration::from_secs(180);
/// How long frontends may take to fly the kites.
const FLY: Duration = Duration::from_secs(90);
/// How often it is looked whether they do.
const LOOK: Duration = Duration::from_millis(200);
/// How long the backend may take to end.
const END: Duration = Duration::from_secs(10);

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// As it should be.
    Ok,
    /// Not so.
    Failed,
    /// Not known, for the reason given.
    NotChecked,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// How it is.
    pub result: Finding,
    /// What was looked at: `config`, `secrets`, `origin`, `tor`, `frontend`, `kite`, `visitor` or `node`.
    pub what: &'static str,
    /// What was found.
    pub text: String,
}

/// All that was looked at.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which it was looked at.
    pub rows: Vec<Row>,
    /// In a sentence.
    pub verdict: String,
    /// 0 all is well, 1 something failed, 2 something could not be checked.
    pub exit_status: u8,
}

/// Looks, and writes what it finds as it goes.
struct Checker<'a, W> {
    out: &'a mut W,
    json: bool,
    report: Report,
}

/// A check whose files have been read, and which has dialled nothing.
pub struct Check {
    json: bool,
    /// The number of kites, if the configuration is one.
    kites: Result<usize, ConfigError>,
    /// The same configuration with its secrets.
    config: Option<Result<BackendConfig, ConfigError>>,
    /// Where nobody has said whether Tor is used there is none.
    way_out: Option<Result<WayOut, RunError>>,
    /// Whether the node's files are well, and what is to be said of them.
    node: Option<(bool, String)>,
}

impl Check {
    /// Reads what there is to read.
    pub fn prepare(args: &CheckArgs) -> Result<Self, CheckError> {
        let mut flags = BackendArgs {
            config: args.config.clone(),
            state_dir: args.state_dir.clone(),
            via_tor: args.via_tor,
            ..BackendArgs::default()
        };
        places::settle_backend(&mut flags);
        let kites = NodeSide::load(&flags).map(|side| side.kites.len());
        let config = kites.is_ok().then(|| BackendConfig::load(&flags));
        let way_out = match &config {
            Some(Ok(config)) if config.tor.said || args.direct => {
                Some(WayOut::choose(config.egress(), config.ca_file.as_deref()))
            }
            _ => None,
        };
        let look = |dir: &PathBuf| -> Result<(bool, String), CheckError> {
            let mut text = Vec::new();
            let well = super::node::run(dir, args.config.as_deref(), &mut text)?;
            Ok((well, String::from_utf8_lossy(&text).trim_end().to_owned()))
        };
        Ok(Self {
            json: args.json,
            kites,
            config,
            way_out,
            node: args.node.as_ref().map(look).transpose()?,
        })
    }

    /// Whether Tor may be started.
    pub fn uses_tor(&self) -> bool {
        matches!(&self.config, Some(Ok(config)) if config.tor.enabled)
    }

    /// In Tor mode, builds the walls that a backend has. A kite that runs can still be asked.
    pub fn confine(&self) -> Result<(), RunError> {
        let (Some(Ok(config)), Some(Ok(way_out))) = (&self.config, &self.way_out) else {
            return Ok(());
        };
        let mut keep = way_out::of_backend(config);
        keep.sockets.push(Role::Backend.socket(&config.state_dir));
        way_out.confine(keep)
    }

    /// Checks all, and writes the table, or JSON. Gives the exit status.
    pub async fn run(self, out: &mut (impl Write + Send)) -> Result<u8, CheckError> {
        let mut checker = Checker {
            out,
            json: self.json,
            report: Report::default(),
        };
        checker.all(self).await?;
        checker.end()
    }
}

impl<W: Write + Send> Checker<'_, W> {
    fn row(
        &mut self,
        what: &'static str,
        result: Finding,
        text: impl Into<String>,
    ) -> Result<(), CheckError> {
        let text = text.into();
        if !self.json {
            let shown = match result {
                Finding::Ok => "ok",
                Finding::Failed => "FAILED",
                Finding::NotChecked => "not checked",
            };
            writeln!(self.out, "{what:<9} {shown:<12} {text}")?;
            self.out.flush()?;
        }
        self.report.rows.push(Row { result, what, text });
        Ok(())
    }

    fn end(mut self) -> Result<u8, CheckError> {
        let count = |finding| {
            self.report
                .rows
                .iter()
                .filter(|r| r.result == finding)
                .count()
        };
        let (failed, open) = (count(Finding::Failed), count(Finding::NotChecked));
        let first = |finding| {
            let row = self.report.rows.iter().find(|r| r.result == finding);
            row.map(|r| r.what).unwrap_or_default()
        };
        let (verdict, exit) = match (failed, open) {
            (0, 0) => ("All is well: visitors come to this node.".to_owned(), 0),
            (0, open) => (
                format!(
                    "Nothing failed, but {open} could not be checked; the first is: {}.",
                    first(Finding::NotChecked)
                ),
                2,
            ),
            (failed, _) => (
                format!(
                    "{failed} failed; mend the first, {}, before the others.",
                    first(Finding::Failed)
                ),
                1,
            ),
        };
        self.report.verdict = verdict;
        self.report.exit_status = exit;
        if self.json {
            let text = serde_json::to_string_pretty(&self.report).map_err(std::io::Error::from)?;
            writeln!(self.out, "{text}")?;
        } else {
            writeln!(self.out, "\n{}", self.report.verdict)?;
        }
        Ok(exit)
    }

    async fn all(&mut self, check: Check) -> Result<(), CheckError> {
        match check.kites {
            Ok(1) => self.row("config", Finding::Ok, "1 kite")?,
            Ok(number) => self.row("config", Finding::Ok, format!("{number} kites"))?,
            Err(e) => self.row("config", Finding::Failed, e.to_string())?,
        }
        match check.config {
            Some(Ok(config)) => {
                self.row(
                    "secrets",
                    Finding::Ok,
                    "each kite has one that its owner alone can read",
                )?;
                self.beyond(config, check.way_out).await?;
            }
            Some(Err(e)) => {
                self.row("secrets", Finding::Failed, e.to_string())?;
                self.unseen("there is no usable configuration")?;
            }
            None => self.unseen("there is no usable configuration")?,
        }
        if let Some((well, text)) = check.node {
            let result = if well { Finding::Ok } else { Finding::Failed };
            // The last line is the verdict on all.
            for line in text.lines().filter(|line| line.starts_with("  ")) {
                if !self.json {
                    writeln!(self.out, "{line}")?;
                }
            }
            self.row("node", result, text)?;
        }
        Ok(())
    }

    fn unseen(&mut self, why: &str) -> Result<(), CheckError> {
        for what in ["origin", "tor", "frontend", "kite", "visitor"] {
            self.row(what, Finding::NotChecked, why)?;
        }
        Ok(())
    }

    /// What lies behind a configuration that can be used.
    async fn beyond(
        &mut self,
        config: BackendConfig,
        way_out: Option<Result<WayOut, RunError>>,
    ) -> Result<(), CheckError> {
        for service in &config.services {
            self.origin(service).await?;
        }
        let socket = Role::Backend.socket(&config.state_dir);
        match (control::status(&socket).await, way_out) {
            (Ok(status), _) => {
                self.tor(&status)?;
                self.ways(&status)?;
                let asked = Instant::now();
                match control::probe(&socket).await {
                    Ok(status) => self.visitors(&status, asked.elapsed())?,
                    Err(e) => self.row("visitor", Finding::NotChecked, e.to_string())?,
                }
                Ok(())
            }
            (Err(control::AskError::Nobody(_)), None) => {
                self.row(
                    "tor",
                    Finding::NotChecked,
                    "nobody has said whether Tor is used, so nothing was dialled; add --via-tor, or --direct if the \
                     frontends may see this machine's address, or write `enabled` under [tor]",
                )?;
                for what in ["frontend", "kite", "visitor"] {
                    self.row(what, Finding::NotChecked, "nothing was dialled")?;
                }
                Ok(())
            }
            (Err(control::AskError::Nobody(_)), Some(way_out)) => {
                self.for_a_while(config, way_out).await
            }
            (Err(e), _) => {
                for what in ["tor", "frontend", "kite", "visitor"] {
                    self.row(what, Finding::NotChecked, e.to_string())?;
                }
                Ok(())
            }
        }
    }

    async fn origin(&mut self, service: &Service) -> Result<(), CheckError> {
        let (kite, origin) = (kite_of(service), &service.origin);
        if service.protocol == Protocol::Foolscap {
            let seen = probe::look(service).await;
            let (result, text) = match seen.trouble(service) {
                None => (Finding::Ok, format!("{kite}: {origin} {}", seen.name())),
                Some(trouble) => (Finding::Failed, format!("{kite}: {trouble}")),
            };
            return self.row("origin", result, text);
        }
        match OriginDialer::new().dial(origin).await {
            Ok(_) => self.row(
                "origin",
                Finding::Ok,
                format!("{kite}: {origin} takes connections"),
            ),
            Err(e) => self.row(
                "origin",
                Finding::Failed,
                format!("{kite}: {e}; {}", e.hint()),
            ),
        }
    }

    /// Runs a backend, until it is seen whether its kites fly and are reached.
    async fn for_a_while(
        &mut self,
        config: BackendConfig,
        way_out: Result<WayOut, RunError>,
    ) -> Result<(), CheckError> {
        let opened = match way_out {
            Ok(way_out) => open(way_out).await,
            Err(e) => Err(e.to_string()),
        };
        let Opened { dialer, client } = match opened {
            Ok(opened) => opened,
            Err(why) => {
                self.row("tor", Finding::Failed, why)?;
                for what in ["frontend", "kite", "visitor"] {
                    self.row(what, Finding::NotChecked, "there is no way out")?;
                }
                return Ok(());
            }
        };
        match &client {
            Some(_) => self.row(
                "tor",
                Finding::Ok,
                "it has started, and circuits can be built",
            )?,
            None => self.row(
                "tor",
                Finding::Ok,
                "not used: frontends see this machine's address",
            )?,
        }
        let (board, began) = (Board::default(), Instant::now());
        let plan = Plan {
            frontends: config.frontends.clone(),
            services: config.services.clone(),
        };
        let plans = Plan::fixed(config.frontends, config.services);
        let (stop, order) = shutdown::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(backend::run(
            plans.clone(),
            dialer.clone(),
            board.clone(),
            order,
        ));
        let now = || Status::of_backend(began, &board, &Speed::default(), &plan);
        while began.elapsed() < FLY && !is_settled(&now()) {
            sleep(LOOK).await;
        }
        self.ways(&now())?;
        Witness::new(plans, dialer, board.clone(), config.witnessing)
            .visit_all()
            .await;
        self.visitors(&now(), began.elapsed())?;
        stop.stop();
        let _ = timeout(END, tasks.join_all()).await;
        drop(client);
        Ok(())
    }

    fn tor(&mut self, status: &Status) -> Result<(), CheckError> {
        let since = status::Age(status.up);
        match &status.tor {
            Some(tor) if tor.ready && tor.refused.is_empty() => self.row(
                "tor",
                Finding::Ok,
                format!("{} (a kite runs, for {since})", tor.state),
            ),
            Some(tor) => self.row(
                "tor",
                Finding::Failed,
                format!("{}; {}", tor.state, tor.text),
            ),
            None => self.row(
                "tor",
                Finding::Ok,
                format!(
                    "not used: frontends see this machine's address (a kite runs, for {since})"
                ),
            ),
        }
    }

    /// Frontends, and what flies there.
    fn ways(&mut self, status: &Status) -> Result<(), CheckError> {
        for frontend in &status.frontends {
            let address = &frontend.address;
            match (frontend.up, &frontend.last_error) {
                (1.., _) => self.row(
                    "frontend",
                    Finding::Ok,
                    format!("{address}: it proved itself, and the tunnel stands"),
                )?,
                (0, Some(e)) => self.row("frontend", Finding::Failed, format!("{address}: {e}"))?,
                (0, None) => self.row(
                    "frontend",
                    Finding::Failed,
                    format!("{address}: {} for too long", frontend.state),
                )?,
            }
        }
        for kite in &status.kites {
            for at in &kite.wanted_at {
                let (kite, flies) = (&kite.kite, kite.flies_at.contains(at));
                let up = status
                    .frontends
                    .iter()
                    .any(|f| f.address == *at && f.up > 0);
                let said = status
                    .troubles
                    .iter()
                    .find(|t| t.with == *at && t.text.contains(kite.as_str()));
                match (flies, said) {
                    (true, _) => self.row("kite", Finding::Ok, format!("{kite} flies at {at}"))?,
                    (false, Some(trouble)) => {
                        self.row("kite", Finding::Failed, format!("{at}: {}", trouble.text))?
                    }
                    (false, None) if up => self.row(
                        "kite",
                        Finding::Failed,
                        format!("{kite} does not fly at {at}; its log says why"),
                    )?,
                    (false, None) => self.row(
                        "kite",
                        Finding::NotChecked,
                        format!("{kite} at {at}: there is no tunnel"),
                    )?,
                }
            }
        }
        Ok(())
    }

    /// What visitors from outside come to: by name, where that did not show through whom, and through each frontend.
    /// A visit that is older than `age` says nothing of now.
    fn visitors(&mut self, status: &Status, age: Duration) -> Result<(), CheckError> {
        for kite in &status.kites {
            let name = &kite.kite;
            for visit in kite.by_name.iter().filter(|p| p.frontend.is_none()) {
                let (result, text) = visited(visit, age);
                let text = format!("{name} at {}, where its name leads: {text}", visit.to);
                self.row("visitor", result, text)?;
            }
            for at in &kite.wanted_at {
                let (result, text) = match kite.probe(at) {
                    Some(visit) if kite.flies_at.contains(at) => {
                        let (result, text) = visited(visit, age);
                        (result, format!("{name} at {}, {at}: {text}", visit.to))
                    }
                    _ => (
                        Finding::NotChecked,
                        format!("{name} at {at}: {}", kite.unvisited(at)),
                    ),
                };
                self.row("visitor", result, text)?;
            }
        }
        Ok(())
    }
}

/// What a visit says, if it is not older than `age`.
fn visited(visit: &status::Probe, age: Duration) -> (Finding, String) {
    let result = match visit.outcome {
        Outcome::Proven => Finding::Ok,
        Outcome::Failed => Finding::Failed,
        Outcome::Reached | Outcome::NotProbed => Finding::NotChecked,
    };
    match visit.outcome {
        Outcome::NotProbed => (result, format!("not visited: {}", visit.text)),
        _ if visit.ago > age.as_secs() + 1 => (
            Finding::NotChecked,
            format!(
                "it was not visited now, or that was not over in time; the last visit, {} s ago: {}",
                visit.ago, visit.text
            ),
        ),
        _ => (result, visit.text.clone()),
    }
}

/// Is there nothing more to wait for? What Tor or a circuit is to blame for may pass.
fn is_settled(status: &Status) -> bool {
    let passing = [
        "circuits-failing",
        "tor-",
        "directory-",
        "exit-policy",
        "onion-",
    ];
    let settled = |f: &status::Frontend| {
        let failed = f.last_error.as_ref();
        f.up > 0 || failed.is_some_and(|e| !passing.iter().any(|name| e.contains(name)))
    };
    !status.frontends.is_empty() && status.frontends.iter().all(settled)
}

/// The way out, if Tor does not take too long to start.
async fn open(way_out: WayOut) -> Result<Opened, String> {
    let mut last = String::new();
    let opening = way_out.open(|p| last = p.blocked.unwrap_or(p.text));
    match timeout(TOR_START, opening).await {
        Ok(opened) => opened.map_err(|e| e.to_string()),
        Err(_) => Err(format!(
            "it did not start within {} s: {last}",
            TOR_START.as_secs()
        )),
    }
}
