//! The start screen: five questions, each answered as far as it is proven.

use std::fmt::Write;

use super::{Frontend, Kite, Outcome, Status};

/// How a frontend proves itself, by its address.
fn identity(address: &str) -> &'static str {
    if address.starts_with("plain://") {
        "NOT PROTECTED"
    } else if address.contains("#sha256:") {
        "pinned key"
    } else if address
        .split('#')
        .next()
        .is_some_and(|a| a.contains(".onion:"))
    {
        "onion name"
    } else {
        "certificate"
    }
}

/// So many of them.
fn many(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// In front of what belongs to the line above.
const INDENT: &str = "                    ";

/// What visits to some kites say together.
struct Visits {
    /// Of a kite through a frontend at which it is to fly.
    ways: usize,
    /// Those of them that are proven.
    proven: usize,
    /// Visits that failed, those by a name included.
    failed: usize,
    /// Whether the names lead here, as far as that was seen.
    named: bool,
}

impl Visits {
    fn of(kites: &[&Kite]) -> Self {
        let wanted = |k: &&Kite| k.wanted_at.len();
        let proven = |k: &&Kite| k.wanted_at.iter().filter(|at| k.is_proven(at)).count();
        let names = kites.iter().flat_map(|k| &k.by_name);
        let unseen = names.clone().filter(|p| p.frontend.is_none());
        let all = kites.iter().flat_map(|k| &k.probes).chain(unseen);
        Self {
            ways: kites.iter().map(wanted).sum(),
            proven: kites.iter().map(proven).sum(),
            failed: all.filter(|p| p.outcome == Outcome::Failed).count(),
            named: names.into_iter().all(|p| p.outcome == Outcome::Proven),
        }
    }

    fn reach(&self) -> String {
        let Self {
            ways,
            proven,
            failed,
            named,
        } = self;
        match () {
            () if *failed > 0 => {
                format!("NO, not everywhere: {failed} visits from outside failed; {proven} of {ways} ways are proven")
            }
            () if *proven == 0 => {
                "not proven: the kites fly, and no visit from outside was made to the end".to_owned()
            }
            () if proven < ways => {
                format!("in part: {proven} of {ways} ways, of a kite through a frontend, are proven")
            }
            () if !named => {
                "in part: each frontend brings visitors to this node; a kite's name is not proven to".to_owned()
            }
            () => "yes: visitors from outside come to this node, through each frontend".to_owned(),
        }
    }
}

impl Status {
    /// The hints of `tub.location` that visits through every frontend have proven; empty unless each kite's have. Through Tor
    /// a visit by the name must have, too; in direct mode nobody has looked where the name leads. A frontend that leads
    /// visitors astray proves nothing. Those of the frontend with the best score come first.
    pub fn proven_hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        for kite in self.kites.iter().filter(|k| k.is_foolscap()) {
            let everywhere = self.frontends.iter().all(|f| {
                kite.flies_at.contains(&f.address) || !kite.wanted_at.contains(&f.address)
            });
            let astray = |at: &String| {
                let mut here = self.frontends.iter().filter(|f| f.address == *at);
                here.any(Frontend::is_astray)
            };
            let is_good = |at: &String| kite.is_proven(at) && !astray(at);
            let proven = kite.flies_at.iter().all(is_good);
            let named = kite.by_name.iter().all(|p| p.outcome == Outcome::Proven);
            if kite.flies_at.is_empty() || !everywhere || !proven || !named {
                return Vec::new();
            }
            let (_, name) = kite.kite.split_once(':').unwrap_or_default();
            let at = match kite.by_name.is_empty() {
                true => &kite.probes,
                false => &kite.by_name,
            };
            let mut at: Vec<_> = at.iter().collect();
            // The best first.
            at.sort_by_key(|p| std::cmp::Reverse(p.frontend.as_ref().map(|at| self.points(at))));
            for (_, port) in at.iter().filter_map(|p| p.to.rsplit_once(':')) {
                let hint = format!("tcp:{name}:{port}");
                if !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
        }
        hints
    }

    fn points(&self, frontend: &str) -> u8 {
        let mut here = self.frontends.iter().filter(|f| f.address == frontend);
        let score = here.next().and_then(|f| f.score.as_ref());
        score.map_or(0, |score| score.points)
    }

    /// One screen that says whether the backend is hidden, reachable, by which name, through whom, and whether it is
    /// encrypted to whom its owner thinks.
    pub fn screen(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_screen(&mut out);
        out
    }

    fn write_screen(&self, out: &mut String) -> std::fmt::Result {
        let foolscap: Vec<_> = self.kites.iter().filter(|k| k.is_foolscap()).collect();
        let visits = Visits::of(&foolscap);
        let up = self.frontends.iter().filter(|f| f.up > 0).count();
        let flying = self.kites.iter().filter(|k| k.tunnels > 0).count();

        writeln!(
            out,
            "kite {}: {}, {}",
            self.version,
            many(self.kites.len(), "kite"),
            many(self.frontends.len(), "frontend")
        )?;
        let hidden = match &self.tor {
            Some(tor) if !tor.refused.is_empty() => {
                "IN DOUBT: connections were kept from Tor; run `kite status`, and please report this".to_owned()
            }
            Some(tor) => format!("yes: it goes out through Tor ({}) and in no other way", tor.state),
            None => "NO: frontends see this machine's address; --via-tor hides it".to_owned(),
        };
        writeln!(out, "  hidden?         {hidden}")?;
        let reachable = match () {
            () if up == 0 => "NO: no frontend is up".to_owned(),
            () if flying == 0 => "NO: no kite flies".to_owned(),
            () => visits.reach(),
        };
        writeln!(out, "  reachable?      {reachable}")?;
        for (n, kite) in self.kites.iter().enumerate() {
            let question = if n == 0 { "by which name?" } else { "" };
            let flies = match kite.flies_at.len() {
                0 => "does not fly",
                _ => "flies",
            };
            let origin = match &kite.origin {
                Some(origin) if origin.state == "unknown" => {
                    format!("origin {} not looked at", origin.address)
                }
                Some(origin) => format!("origin {}: {}", origin.address, origin.state),
                None => String::new(),
            };
            writeln!(out, "  {question:<15} {} {flies}; {origin}", kite.kite)?;
            for visit in kite.by_name.iter().filter(|p| p.frontend.is_none()) {
                let (word, text) = (visit.word(), &visit.text);
                writeln!(out, "{INDENT}by its name, {}: {word}: {text}", visit.to)?;
            }
        }
        for (n, frontend) in self.frontends.iter().enumerate() {
            let question = if n == 0 { "through whom?" } else { "" };
            write!(
                out,
                "  {question:<15} {}: {}, {}",
                frontend.address,
                frontend.state,
                identity(&frontend.address)
            )?;
            if let Some(score) = &frontend.score {
                write!(out, ", scores {score}")?;
            }
            match (frontend.up, &frontend.last_error) {
                (0, Some(error)) => writeln!(out, "; {error}")?,
                _ => writeln!(out)?,
            }
            let at = &frontend.address;
            for kite in foolscap.iter().filter(|k| k.wanted_at.contains(at)) {
                write!(out, "{INDENT}{}: ", kite.kite)?;
                match kite.probe(at) {
                    Some(visit) if visit.outcome == Outcome::NotProbed => {
                        writeln!(out, "{}: {}", visit.word(), visit.text)?;
                    }
                    Some(visit) => {
                        let (word, to, text) = (visit.word(), &visit.to, &visit.text);
                        writeln!(out, "{word} by a visit to {to}: {text}")?;
                    }
                    None => writeln!(out, "{}", kite.unvisited(at))?,
                }
            }
        }
        let encrypted = match (visits.ways, visits.proven) {
            _ if self.kites.len() > foolscap.len() && foolscap.is_empty() => {
                "not proven: no kite is foolscap, and others' keys are not known here".to_owned()
            }
            (all, proven) if all > 0 && all == proven => {
                "yes: visitors' TLS ends at this node's own key; frontends see names, addresses, sizes and times".to_owned()
            }
            _ => "not proven".to_owned(),
        };
        writeln!(out, "  encrypted to me? {encrypted}")?;
        let hints = self.proven_hints();
        if hints.is_empty() {
            writeln!(
                out,
                "  tahoe.cfg       no tub.location is shown, since no visit through each frontend came to this node"
            )?;
        } else {
            writeln!(
                out,
                "  tahoe.cfg       [node] tub.location = {}",
                hints.join(",")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::observe::score::Standing;
    use crate::observe::status::{Probe, Role, Score, Traffic, Way};

    fn frontend(address: &str, points: u8) -> Frontend {
        Frontend {
            address: address.to_owned(),
            state: "up".to_owned(),
            up: 1,
            tunnels: 1,
            retry_in: None,
            last_error: None,
            traffic: Traffic::default(),
            score: Some(Score {
                standing: Standing::Good,
                points,
                ago: 1,
                astray: Vec::new(),
            }),
        }
    }

    fn proven(frontend: &str, to: &str) -> Probe {
        Probe {
            frontend: Some(frontend.to_owned()),
            to: to.to_owned(),
            way: Way::Frontend,
            outcome: Outcome::Proven,
            finding: "own-node".to_owned(),
            text: String::new(),
            ago: 1,
            took_ms: None,
            visits: 1,
            proven: 1,
            proven_ago: Some(1),
        }
    }

    #[test]
    fn hints_of_the_best_frontend_come_first_and_one_astray_proves_nothing() {
        let all = ["alice.example:443", "carol.example:443", "dave.example:443"].map(str::to_owned);
        let mut status = Status::new(Role::Backend, Instant::now());
        let points = [60, 100, 80];
        status.frontends = (all.iter().zip(points))
            .map(|(f, p)| frontend(f, p))
            .collect();
        let ports = ["192.0.2.1:80", "192.0.2.2:8080", "192.0.2.3:8443"];
        status.kites = vec![Kite {
            kite: "foolscap:bob.alice.example".to_owned(),
            flies_at: all.to_vec(),
            wanted_at: all.to_vec(),
            tunnels: 3,
            origin: None,
            probes: (all.iter().zip(ports))
                .map(|(f, to)| proven(f, to))
                .collect(),
            by_name: Vec::new(),
            traffic: Traffic::default(),
        }];
        let hint = |port: u16| format!("tcp:bob.alice.example:{port}");
        assert_eq!(status.proven_hints(), [hint(8080), hint(8443), hint(80)]);
        if let Some(score) = &mut status.frontends[1].score {
            score.standing = Standing::Astray;
        }
        assert!(status.proven_hints().is_empty());
    }
}
