//! The start screen: five questions, each answered as far as it is proven.

use std::fmt::Write;

use super::{Outcome, Probe, Status};

/// What a visit said of a frontend's kite, or that there was none.
fn probe_of<'a>(status: &'a Status, frontend: &str) -> Option<&'a Probe> {
    let probes = status.kites.iter().flat_map(|k| &k.probes);
    let mut at = probes.filter(|p| p.frontend == frontend);
    at.find(|p| p.outcome == Outcome::Failed).or_else(|| {
        status
            .kites
            .iter()
            .flat_map(|k| &k.probes)
            .find(|p| p.frontend == frontend)
    })
}

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

impl Status {
    /// The hints of `tub.location` that visits through every frontend have proven; empty unless each kite's have.
    pub fn proven_hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        for kite in self.kites.iter().filter(|k| k.kite.starts_with("foolscap")) {
            let proven = |at: &String| {
                let mut here = kite.probes.iter().filter(|p| p.frontend == *at);
                here.any(|p| p.outcome == Outcome::Proven)
            };
            let everywhere = self.frontends.iter().all(|f| {
                kite.flies_at.contains(&f.address) || !kite.wanted_at.contains(&f.address)
            });
            if kite.flies_at.is_empty() || !everywhere || !kite.flies_at.iter().all(proven) {
                return Vec::new();
            }
            for probe in &kite.probes {
                let hint = format!("tcp:{}", probe.to);
                if !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
        }
        hints
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
        let foolscap: Vec<_> = (self.kites.iter())
            .filter(|k| k.kite.starts_with("foolscap"))
            .collect();
        let probes: Vec<_> = foolscap.iter().flat_map(|k| &k.probes).collect();
        let count = |outcome| probes.iter().filter(|p| p.outcome == outcome).count();
        let up = self.frontends.iter().filter(|f| f.up > 0).count();
        let flying = self.kites.iter().filter(|k| k.tunnels > 0).count();

        writeln!(
            out,
            "kite {}: {} kites, {} frontends",
            self.version,
            self.kites.len(),
            self.frontends.len()
        )?;
        let hidden = match &self.tor {
            Some(tor) if !tor.refused.is_empty() => {
                "IN DOUBT: connections were kept from Tor; run `kite status`, and please report this".to_owned()
            }
            Some(tor) => format!("yes: it goes out through Tor ({}) and in no other way", tor.state),
            None => "NO: frontends see this machine's address; --via-tor hides it".to_owned(),
        };
        writeln!(out, "  hidden?         {hidden}")?;
        let reachable = match (count(Outcome::Proven), count(Outcome::Failed), up) {
            (_, _, 0) => "NO: no frontend is up".to_owned(),
            (_, _, _) if flying == 0 => "NO: no kite flies".to_owned(),
            (proven, 0, _) if proven > 0 && proven == probes.len() => {
                "yes: visitors from outside come to this node".to_owned()
            }
            (_, failed, _) if failed > 0 => {
                format!(
                    "NO, not everywhere: {failed} of {} visits from outside failed",
                    probes.len()
                )
            }
            (0, _, _) => "not proven: the kites fly, and no visit from outside was made to the end"
                .to_owned(),
            (proven, _, _) => format!(
                "in part: {proven} of {} visits from outside came to this node",
                probes.len()
            ),
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
            match (frontend.up, &frontend.last_error) {
                (0, Some(error)) => writeln!(out, "; {error}")?,
                _ => writeln!(out)?,
            }
            if let Some(probe) = probe_of(self, &frontend.address) {
                let result = match probe.outcome {
                    Outcome::Proven => "ok",
                    Outcome::Reached => "reached, not proven",
                    Outcome::Failed => "FAILED",
                    Outcome::NotProbed => "not probed",
                };
                writeln!(
                    out,
                    "                    visit to {}: {result}: {}",
                    probe.to, probe.text
                )?;
            }
        }
        let encrypted = match (probes.len(), count(Outcome::Proven)) {
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
