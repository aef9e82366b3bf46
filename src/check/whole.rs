//! `kite check`: all that lies between a node and its visitors, in the order in which it can go wrong.
//!
//! A kite that runs with the same state directory is asked. Where none runs, a backend is run for as long as it takes
//! to see. With Tor nothing here goes out otherwise than through it.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::CheckError;
use crate::backend::{self, Plan, probe};
use crate::cli::{BackendArgs, CheckArgs};
use crate::config::{BackendConfig, NodeSide, Service, places};
use crate::control;
use crate::dial::{Dialer, DirectDialer, Egress, OriginDialer, TorDialer};
use crate::kite::Protocol;
use crate::observe::board::{Board, kite_of};
use crate::observe::status::{self, Outcome, Role, Status};
use crate::observe::traffic::Speed;
use crate::run;
use crate::shutdown;
use crate::tls::TlsClient;
use crate::tor::Client;
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

/// Checks all, and writes the table, or JSON. Gives the exit status.
pub async fn run(args: &CheckArgs, out: &mut (impl Write + Send)) -> Result<u8, CheckError> {
    let mut checker = Checker {
        out,
        json: args.json,
        report: Report::default(),
    };
    checker.all(args).await?;
    checker.end()
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

    async fn all(&mut self, args: &CheckArgs) -> Result<(), CheckError> {
        let mut flags = BackendArgs {
            config: args.config.clone(),
            state_dir: args.state_dir.clone(),
            via_tor: args.via_tor,
            ..BackendArgs::default()
        };
        places::settle_backend(&mut flags);
        let side = NodeSide::load(&flags);
        match &side {
            Ok(side) => {
                let number = side.kites.len();
                let kites = if number == 1 { "kite" } else { "kites" };
                self.row("config", Finding::Ok, format!("{number} {kites}"))?
            }
            Err(e) => self.row("config", Finding::Failed, e.to_string())?,
        }
        if side.is_ok() {
            match BackendConfig::load(&flags) {
                Ok(config) => {
                    self.row(
                        "secrets",
                        Finding::Ok,
                        "each kite has one that its owner alone can read",
                    )?;
                    self.beyond(config, args.direct).await?;
                }
                Err(e) => {
                    self.row("secrets", Finding::Failed, e.to_string())?;
                    self.unseen("there is no usable configuration")?;
                }
            }
        } else {
            self.unseen("there is no usable configuration")?;
        }
        if let Some(dir) = &args.node {
            let mut text = Vec::new();
            let well = super::node::run(dir, args.config.as_deref(), &mut text)?;
            let result = if well { Finding::Ok } else { Finding::Failed };
            for line in String::from_utf8_lossy(&text).trim_end().lines() {
                // The last line is the verdict on all.
                if !self.json && line.starts_with("  ") {
                    writeln!(self.out, "{line}")?;
                }
            }
            let text = String::from_utf8_lossy(&text);
            self.row("node", result, text.trim_end())?;
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
    async fn beyond(&mut self, config: BackendConfig, direct: bool) -> Result<(), CheckError> {
        for service in &config.services {
            self.origin(service).await?;
        }
        let socket = Role::Backend.socket(&config.state_dir);
        match control::status(&socket).await {
            Ok(status) => {
                self.tor(&status)?;
                self.ways(&status)?;
                let asked = Instant::now();
                match control::probe(&socket).await {
                    Ok(status) => self.visitors(&status, asked.elapsed())?,
                    Err(e) => self.row("visitor", Finding::NotChecked, e.to_string())?,
                }
                Ok(())
            }
            Err(control::AskError::Nobody(_)) if !config.tor.said && !direct => {
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
            Err(control::AskError::Nobody(_)) => self.for_a_while(config).await,
            Err(e) => {
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
    async fn for_a_while(&mut self, config: BackendConfig) -> Result<(), CheckError> {
        let lost = |e: String| (Finding::Failed, e);
        let started = start(&config).await.map_err(lost);
        let (dialer, client): (Arc<dyn Dialer>, _) = match started {
            Ok(started) => started,
            Err((result, text)) => {
                self.row("tor", result, text)?;
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

    /// What visitors from outside come to.
    /// A visit that is older than `age` says nothing of now.
    fn visitors(&mut self, status: &Status, age: Duration) -> Result<(), CheckError> {
        for kite in &status.kites {
            for at in &kite.wanted_at {
                let name = &kite.kite;
                let probe = kite.probes.iter().find(|p| p.frontend == *at);
                let (result, text) = match probe {
                    _ if !kite.kite.starts_with("foolscap") => (
                        Finding::NotChecked,
                        format!("{name}: only foolscap kites can be visited"),
                    ),
                    Some(probe) if probe.ago > age.as_secs() + 1 => (
                        Finding::NotChecked,
                        format!(
                            "{name} at {}, {at}: the visit was not over in time; the last one, {} s ago: {}",
                            probe.to, probe.ago, probe.text
                        ),
                    ),
                    Some(probe) if kite.flies_at.contains(at) => {
                        let result = match probe.outcome {
                            Outcome::Proven => Finding::Ok,
                            Outcome::Failed => Finding::Failed,
                            Outcome::Reached | Outcome::NotProbed => Finding::NotChecked,
                        };
                        (
                            result,
                            format!("{name} at {}, {at}: {}", probe.to, probe.text),
                        )
                    }
                    _ => (
                        Finding::NotChecked,
                        format!("{name} at {at}: it does not fly there"),
                    ),
                };
                self.row("visitor", result, text)?;
            }
        }
        Ok(())
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

/// The way out, as the configuration has it.
async fn start(config: &BackendConfig) -> Result<(Arc<dyn Dialer>, Option<Arc<Client>>), String> {
    let egress = Egress::decide(config.egress()).map_err(|e| e.to_string())?;
    let tls = TlsClient::new(config.ca_file.as_deref()).map_err(|e| e.to_string())?;
    match egress {
        Egress::Direct(allowed) => Ok((Arc::new(DirectDialer::new(allowed, tls)), None)),
        Egress::Tor(settings) => {
            run::needs(&settings).map_err(|e| e.to_string())?;
            let client = Client::start(settings).map_err(|e| format!("{e}; {}", e.hint()))?;
            let client = Arc::new(client);
            let mut last = String::new();
            let mut heed = |p: crate::tor::Progress| last = p.blocked.unwrap_or(p.text);
            let started = timeout(TOR_START, client.bootstrap(&mut heed)).await;
            match started {
                Ok(Ok(())) => Ok((Arc::new(TorDialer::new(client.clone(), tls)), Some(client))),
                Ok(Err(e)) => Err(format!("{e}; {}", e.hint())),
                Err(_) => Err(format!(
                    "it did not start within {} s: {last}",
                    TOR_START.as_secs()
                )),
            }
        }
    }
}
