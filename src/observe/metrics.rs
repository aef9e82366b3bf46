//! Metrics for Prometheus, made anew from a [`Status`] each time they are asked for.
//!
//! Labels are kites, frontends and words of ours. No visitor, and nothing about one, is a label.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderMap};
use hyper::http::request::Parts;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::control::Desk;
use crate::observe::status::{
    Fleet, FleetBook, Kite, Member, Open, Outcome, Role, Status, Traffic,
};
use crate::tor::Trouble;
use crate::web::door::{self, Answer, Site};

/// Kites that have rows of their own. Where a wildcard may be flown there could be any number of names; the rest
/// counts as [`OTHERS`].
const MAX_KITES: usize = 1000;
/// What the kites beyond [`MAX_KITES`] are called.
const OTHERS: &str = "(others)";
/// What is written where visitors came to no kite.
const NONE: &str = "(none)";
/// The type of the OpenMetrics text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The states that Tor can be in besides those of trouble.
const TOR_FINE: [&str; 2] = ["working", "starting"];
/// The states of a tunnel.
const TUNNEL_STATES: [&str; 5] = ["up", "suspect", "dialling", "waiting", "idle"];

type Labels = Vec<(&'static str, String)>;
type Row<T> = (Labels, T);

/// Shows the metrics at `/metrics`.
pub struct Metrics(Arc<dyn Desk>);

impl Metrics {
    /// Of this kite.
    pub fn new(desk: Arc<dyn Desk>) -> Self {
        Self(desk)
    }
}

impl Site for Metrics {
    fn answer(&self, request: &Parts) -> Answer {
        if request.uri.path() != "/metrics" {
            return door::text(StatusCode::NOT_FOUND, "Metrics are at /metrics.\n");
        }
        let open = wants_openmetrics(&request.headers);
        match encode(&self.0.status(), open) {
            Ok(metrics) if open => door::content(StatusCode::OK, OPENMETRICS, metrics),
            Ok(metrics) => door::content(StatusCode::OK, prometheus_text::CONTENT_TYPE, metrics),
            Err(_) => door::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The metrics cannot be written.\n",
            ),
        }
    }
}

/// Prometheus says that it can read it; a person with curl does not.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter();
    accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"))
}

/// The metrics as text: OpenMetrics, or Prometheus's own older form.
pub fn encode(status: &Status, openmetrics: bool) -> Result<String, std::fmt::Error> {
    let mut out = Book(Registry::with_prefix("kite"));
    out.process(status);
    match status.role {
        Role::Backend => out.backend(status),
        Role::Frontend => out.frontend(status),
    }
    out.kites(status);
    let mut metrics = String::new();
    match openmetrics {
        true => text::encode(&mut metrics, &out.0)?,
        false => prometheus_text::encode(&mut metrics, &out.0)?,
    }
    Ok(metrics)
}

/// Metrics on their way out.
struct Book(Registry);

impl Book {
    fn gauge(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        rows: impl IntoIterator<Item = Row<f64>>,
    ) {
        let (family, mut is_empty) = (Family::<Labels, Gauge<f64, AtomicU64>>::default(), true);
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
            is_empty = false;
        }
        self.put(name, unit, help, is_empty, family);
    }

    fn counter(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        rows: impl IntoIterator<Item = Row<u64>>,
    ) {
        let (family, mut is_empty) = (Family::<Labels, Counter>::default(), true);
        for (labels, value) in rows {
            family.get_or_create(&labels).inc_by(value);
            is_empty = false;
        }
        self.put(name, unit, help, is_empty, family);
    }

    /// A metric without a row is left out.
    fn put(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        is_empty: bool,
        metric: impl prometheus_client::registry::Metric,
    ) {
        match (is_empty, unit) {
            (true, _) => {}
            (false, Some(unit)) => self.0.register_with_unit(name, help, unit, metric),
            (false, None) => self.0.register(name, help, metric),
        }
    }

    fn process(&mut self, status: &Status) {
        let role = match status.role {
            Role::Backend => "backend",
            Role::Frontend => "frontend",
        };
        let build = vec![("version", status.version.clone()), ("role", role.into())];
        self.0
            .register("build", "Which kite runs, and as what", Info::new(build));
        let up = (vec![], status.up as f64);
        self.gauge("uptime", Some(Unit::Seconds), "Since the start", [up]);
        let troubles = Trouble::ALL.iter().map(|trouble| trouble.name());
        let Some(tor) = &status.tor else { return };
        let known = TOR_FINE.into_iter().chain(troubles);
        self.gauge(
            "tor_state",
            None,
            "1 for the state that the embedded Tor is in, 0 for the others",
            states("state", &tor.state, known, &vec![]),
        );
        let counts = |counts: &std::collections::BTreeMap<String, u64>| -> Vec<Row<u64>> {
            let row = |(to, n): (&String, &u64)| (vec![("to", to.clone())], *n);
            counts.iter().map(row).collect()
        };
        self.counter(
            "tor_dials",
            None,
            "Connections that the embedded Tor has opened, by what to",
            counts(&tor.dials),
        );
        self.counter(
            "tor_refused_dials",
            None,
            "Connections that were kept from the embedded Tor; there should be none",
            counts(&tor.refused),
        );
    }

    fn backend(&mut self, status: &Status) {
        let hidden = f64::from(u8::from(status.tor.is_some()));
        self.gauge(
            "hidden",
            None,
            "1 if this backend goes out through Tor and in no other way, 0 if frontends see its address",
            [(vec![], hidden)],
        );
        let tunnels = || {
            status.tunnels.iter().map(|tunnel| {
                let number = tunnel.tunnel.to_string();
                let labels = vec![("frontend", tunnel.frontend.clone()), ("tunnel", number)];
                (labels, tunnel)
            })
        };
        self.gauge(
            "tunnel_state",
            None,
            "1 for the state that a tunnel is in, 0 for the others",
            tunnels().flat_map(|(labels, tunnel)| {
                states("state", &tunnel.state, TUNNEL_STATES, &labels)
            }),
        );
        self.gauge(
            "tunnel_streams",
            None,
            "Visitors' streams that are open in a tunnel",
            tunnels().map(|(labels, tunnel)| (labels, tunnel.streams as f64)),
        );
        let milliseconds = |ms: u64| ms as f64 / 1000.0;
        self.gauge(
            "tunnel_round_trip",
            Some(Unit::Seconds),
            "The last measured round trip of a tunnel that stands",
            tunnels().filter_map(|(labels, t)| Some((labels, milliseconds(t.round_trip_ms?)))),
        );
        self.gauge(
            "tunnel_retry",
            Some(Unit::Seconds),
            "Until a tunnel is tried again",
            tunnels().filter_map(|(labels, t)| Some((labels, t.retry_in? as f64))),
        );
        self.counter(
            "tunnel_connects",
            None,
            "How often a tunnel has come to stand",
            tunnels().map(|(labels, tunnel)| (labels, tunnel.connects)),
        );
        self.gauge(
            "tunnel_circuit_age",
            Some(Unit::Seconds),
            "How long a tunnel has used its Tor circuit",
            tunnels().filter_map(|(labels, t)| Some((labels, t.circuit_age? as f64))),
        );
        let of_frontends = || {
            let labels = |address: &String| vec![("frontend", address.clone())];
            status
                .frontends
                .iter()
                .map(move |f| (labels(&f.address), f))
        };
        self.gauge(
            "frontend_tunnels_up",
            None,
            "Tunnels to a frontend that stand",
            of_frontends().map(|(labels, frontend)| (labels, frontend.up as f64)),
        );
        self.gauge(
            "frontend_tunnels_wanted",
            None,
            "Tunnels to a frontend that there should be",
            of_frontends().map(|(labels, frontend)| (labels, frontend.tunnels as f64)),
        );
    }

    fn frontend(&mut self, status: &Status) {
        let here = |n: usize| [(vec![], n as f64)];
        self.gauge(
            "backend_tunnels",
            None,
            "Tunnels that backends hold",
            here(status.backends.len()),
        );
        let silent = status.backends.iter().filter(|backend| !backend.answers);
        self.gauge(
            "backend_tunnels_silent",
            None,
            "Tunnels of backends that owe a sign of life",
            here(silent.count()),
        );
        if let Some(open) = &status.open {
            self.open(open);
        }
        if let Some(fleet) = &status.fleet {
            self.fleet(fleet);
        }
    }

    fn open(&mut self, open: &Open) {
        self.gauge(
            "open_kites",
            None,
            "Kites that prove themselves, and fly",
            [(vec![], open.flying as f64)],
        );
        self.gauge(
            "open_kites_most",
            None,
            "How many of them may fly at one time",
            [(vec![], f64::from(open.most))],
        );
        self.counter(
            "open_kites_turned_away",
            None,
            "How often one more was refused, since all places, or all of its address, were taken",
            [(vec![], open.turned_away)],
        );
    }

    fn fleet(&mut self, fleet: &Fleet) {
        let member = |m: &Member| vec![("member", m.id.clone())];
        let links = fleet.members.iter().flat_map(|m| {
            [("told", m.told), ("heard", m.heard)].map(|(direction, stands)| {
                let mut labels = member(m);
                labels.push(("direction", direction.to_owned()));
                (labels, f64::from(u8::from(stands)))
            })
        });
        self.gauge(
            "fleet_link",
            None,
            "Whether a link to or from another member stands",
            links,
        );
        let kites = fleet.members.iter().map(|m| (member(m), m.kites as f64));
        self.gauge(
            "fleet_kites",
            None,
            "Kites that fly at another member",
            kites,
        );
        let way = |word: &str| vec![("direction", word.to_owned())];
        self.counter(
            "fleet_visitors",
            None,
            "Visitors that were passed on to other members, or brought by them",
            [
                (way("passed_on"), fleet.passed_on),
                (way("brought"), fleet.brought),
            ],
        );
        let open = (fleet.passed_on_open as f64, fleet.brought_open as f64);
        self.gauge(
            "fleet_visitors_open",
            None,
            "Those that are there now",
            [(way("passed_on"), open.0), (way("brought"), open.1)],
        );
        self.counter(
            "fleet_visitors_in_vain",
            None,
            "Visitors that no other member took after all",
            [(vec![], fleet.passed_in_vain)],
        );
        if let Some(book) = &fleet.etcd {
            self.fleet_book(book);
        }
    }

    fn fleet_book(&mut self, book: &FleetBook) {
        let one = |value: f64| [(vec![], value)];
        self.gauge(
            "fleet_etcd_fresh",
            None,
            "Whether what is known of the fleet is what etcd says now",
            one(f64::from(u8::from(book.fresh))),
        );
        self.gauge(
            "fleet_etcd_members",
            None,
            "Members that stand in etcd",
            one(book.members as f64),
        );
        self.gauge(
            "fleet_etcd_waiting",
            None,
            "Changes that etcd is still to be told",
            one(book.waiting as f64),
        );
        for (name, help, value) in [
            (
                "fleet_etcd_written",
                "Changes that etcd was told",
                book.written,
            ),
            ("fleet_etcd_lost", "How often etcd was lost", book.lost),
            (
                "fleet_etcd_strange",
                "What stands in etcd and cannot be read",
                book.strange,
            ),
        ] {
            self.counter(name, None, help, [(vec![], value)]);
        }
    }

    fn kites(&mut self, status: &Status) {
        let kites = bounded(&status.kites);
        let labels = |kite: &str| vec![("kite", kite.to_owned())];
        self.gauge(
            "kite_tunnels",
            None,
            "Tunnels that a kite flies by",
            kites.iter().map(|k| (labels(&k.name), k.tunnels as f64)),
        );
        self.gauge(
            "visitors_open",
            None,
            "Visitors of a kite that are there now",
            kites
                .iter()
                .map(|k| (labels(&k.name), k.traffic.open as f64)),
        );
        self.counter(
            "visitors",
            None,
            "Visitors of a kite that came through",
            kites.iter().map(|k| (labels(&k.name), k.traffic.visitors)),
        );
        self.counter(
            "refusals",
            None,
            "Visitors of a kite that were sent away, by why",
            refusals(&kites, &status.traffic),
        );
        self.counter(
            "traffic",
            Some(Unit::Bytes),
            "Bytes of a kite's visitors, from them and to them",
            kites.iter().flat_map(|k| {
                let way = |word: &str| {
                    let mut labels = labels(&k.name);
                    labels.push(("direction", word.to_owned()));
                    labels
                };
                [
                    (way("from_visitors"), k.traffic.from_visitors),
                    (way("to_visitors"), k.traffic.to_visitors),
                ]
            }),
        );
        let origins = status.kites.iter().take(MAX_KITES);
        self.gauge(
            "origin_state",
            None,
            "1 for what a kite's origin was last seen to be",
            origins.filter_map(|k| {
                let mut labels = labels(&k.kite);
                labels.push(("state", k.origin.as_ref()?.state.clone()));
                Some((labels, 1.0))
            }),
        );
        self.probes(status);
        self.scores(status);
    }

    fn scores(&mut self, status: &Status) {
        let scored = || {
            let frontends = status.frontends.iter();
            frontends
                .filter_map(|f| Some((vec![("frontend", f.address.clone())], f.score.as_ref()?)))
        };
        self.gauge(
            "frontend_score",
            None,
            "The part of a backend's visits through a frontend that were good, of 1, the later ones weighing more",
            scored().map(|(labels, score)| (labels, f64::from(score.points) / 100.0)),
        );
        self.gauge(
            "frontend_astray",
            None,
            "Kites whose visitors a frontend leads to another key, or with changed bytes",
            scored().map(|(labels, score)| (labels, score.astray.len() as f64)),
        );
    }

    fn probes(&mut self, status: &Status) {
        let probes = || {
            let kites = status.kites.iter().take(MAX_KITES);
            kites.flat_map(|kite| {
                kite.probes.iter().map(|probe| {
                    let frontend = ("frontend", probe.frontend.clone().unwrap_or_default());
                    (vec![("kite", kite.kite.clone()), frontend], probe)
                })
            })
        };
        let tried = || probes().filter(|(_, probe)| probe.outcome != Outcome::NotProbed);
        self.gauge(
            "probe_success",
            None,
            "1 if a kite's own visitor reached its node by a frontend, 0 if not",
            tried().map(|(labels, probe)| {
                let proven = probe.outcome == Outcome::Proven;
                (labels, f64::from(u8::from(proven)))
            }),
        );
        self.gauge(
            "probe_age",
            Some(Unit::Seconds),
            "Since that visit",
            tried().map(|(labels, probe)| (labels, probe.ago as f64)),
        );
        self.gauge(
            "probe_duration",
            Some(Unit::Seconds),
            "How long that visit took",
            tried().filter_map(|(labels, p)| Some((labels, p.took_ms? as f64 / 1000.0))),
        );
    }
}

/// A state set: 1 for the one, 0 for the others.
fn states(
    label: &'static str,
    now: &str,
    known: impl IntoIterator<Item = &'static str>,
    labels: &Labels,
) -> Vec<Row<f64>> {
    let row = |state: &'static str| {
        let mut labels = labels.clone();
        labels.push((label, state.to_owned()));
        (labels, f64::from(u8::from(state == now)))
    };
    known.into_iter().map(row).collect()
}

/// Of each kite; and what is left of `all`, whose visitors came to no kite.
fn refusals(kites: &[Numbers], all: &Traffic) -> Vec<Row<u64>> {
    let mut rest = all.refused.clone();
    for (why, n) in kites.iter().flat_map(|kite| &kite.traffic.refused) {
        let left = rest.entry(why.clone()).or_default();
        *left = left.saturating_sub(*n);
    }
    rest.retain(|_, n| *n > 0);
    let row = |kite: &str, why: &String, n: u64| {
        (vec![("kite", kite.to_owned()), ("reason", why.clone())], n)
    };
    let of_kites = kites.iter().flat_map(|kite| {
        let refused = kite.traffic.refused.iter();
        refused.map(|(why, n)| row(&kite.name, why, *n))
    });
    let of_none = rest.iter().map(|(why, n)| row(NONE, why, *n));
    of_kites.chain(of_none).collect()
}

/// A kite's numbers.
struct Numbers {
    name: String,
    tunnels: usize,
    traffic: Traffic,
}

/// At most [`MAX_KITES`], and the rest in one.
fn bounded(kites: &[Kite]) -> Vec<Numbers> {
    let mut all: Vec<Numbers> = Vec::new();
    for kite in kites {
        match all.get_mut(MAX_KITES) {
            Some(others) => {
                others.tunnels += kite.tunnels;
                others.traffic.visitors += kite.traffic.visitors;
                others.traffic.open += kite.traffic.open;
                others.traffic.from_visitors += kite.traffic.from_visitors;
                others.traffic.to_visitors += kite.traffic.to_visitors;
                for (why, n) in &kite.traffic.refused {
                    *others.traffic.refused.entry(why.clone()).or_default() += n;
                }
            }
            None => all.push(Numbers {
                name: match all.len() {
                    MAX_KITES => OTHERS.to_owned(),
                    _ => kite.kite.clone(),
                },
                tunnels: kite.tunnels,
                traffic: kite.traffic.clone(),
            }),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn kite(name: String) -> Kite {
        Kite {
            wanted_at: Vec::new(),
            kite: name,
            flies_at: vec![],
            tunnels: 1,
            origin: None,
            probes: vec![],
            by_name: vec![],
            traffic: Traffic {
                visitors: 2,
                refused: [("limit-rate".to_owned(), 3)].into(),
                ..Traffic::default()
            },
        }
    }

    #[test]
    fn labels_are_bounded_and_nothing_is_lost() {
        let mut status = Status::new(Role::Frontend, Instant::now());
        let number = MAX_KITES + 50;
        status.kites = (0..number)
            .map(|n| kite(format!("http:k{n}.a.example")))
            .collect();
        status.traffic.refused = [
            ("limit-rate".to_owned(), 3 * number as u64),
            ("not-here".to_owned(), 7),
        ]
        .into();
        let text = encode(&status, true).expect("text");
        let rows = |of: &str| text.lines().filter(|l| l.starts_with(of)).count();
        assert_eq!(rows("kite_visitors_total{"), MAX_KITES + 1);
        assert_eq!(rows("kite_refusals_total{"), MAX_KITES + 2);
        for row in [
            "kite_visitors_total{kite=\"(others)\"} 100\n",
            "kite_refusals_total{kite=\"http:k7.a.example\",reason=\"limit-rate\"} 3\n",
            "kite_refusals_total{kite=\"(others)\",reason=\"limit-rate\"} 150\n",
            "kite_refusals_total{kite=\"(none)\",reason=\"not-here\"} 7\n",
        ] {
            assert!(text.contains(row), "{row}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_fleet_is_counted_and_no_other_frontend_has_rows_for_one() {
        let mut status = Status::new(Role::Frontend, Instant::now());
        assert!(!encode(&status, true).expect("text").contains("fleet"));
        status.fleet = Some(Fleet {
            members: vec![Member {
                id: "b".into(),
                told: true,
                heard: false,
                kites: 3,
            }],
            passed_on: 5,
            brought_open: 2,
            etcd: Some(FleetBook {
                fresh: true,
                waiting: 7,
                lost: 2,
                ..FleetBook::default()
            }),
            ..Fleet::default()
        });
        let text = encode(&status, true).expect("text");
        for row in [
            "kite_fleet_link{member=\"b\",direction=\"told\"} 1",
            "kite_fleet_link{member=\"b\",direction=\"heard\"} 0",
            "kite_fleet_kites{member=\"b\"} 3",
            "kite_fleet_visitors_total{direction=\"passed_on\"} 5",
            "kite_fleet_visitors_open{direction=\"brought\"} 2",
            "kite_fleet_visitors_in_vain_total 0",
            "kite_fleet_etcd_fresh 1",
            "kite_fleet_etcd_waiting 7",
            "kite_fleet_etcd_lost_total 2",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(row)),
                "{row}\n{text}"
            );
        }
    }

    #[test]
    fn a_strange_name_cannot_add_lines() {
        let mut status = Status::new(Role::Frontend, Instant::now());
        status.kites = vec![kite("x\"} 1\nkite_evil 1".into())];
        for openmetrics in [true, false] {
            let text = encode(&status, openmetrics).expect("text");
            assert!(!text.contains("\nkite_evil"), "{text}");
        }
    }

    #[test]
    fn exactly_one_state_is_on() {
        let rows = states("state", "waiting", TUNNEL_STATES, &vec![]);
        assert_eq!(rows.len(), 5);
        assert_eq!(rows.iter().map(|(_, v)| v).sum::<f64>(), 1.0);
        assert_eq!(rows[3].1, 1.0);
    }
}
