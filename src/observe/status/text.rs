//! A status in words: one screen.

use std::collections::BTreeMap;
use std::fmt;

use super::{Kite, Outcome, Probe, Role, Score, Status, Traffic, Tunnel};
use crate::observe::score::Standing;

/// Troubles that are shown. `--json` has all that are remembered.
const SHOWN_TROUBLES: usize = 5;

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} here now, {} from them, {} to them",
            self.visitors,
            self.open,
            Size(self.from_visitors),
            Size(self.to_visitors)
        )?;
        match self.refused.is_empty() {
            true => Ok(()),
            false => write!(f, ", sent away: {}", Counts(&self.refused)),
        }
    }
}

impl fmt::Display for Kite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kite)?;
        match self.tunnels {
            0 => write!(f, "does NOT fly")?,
            1 => write!(f, "flies on 1 tunnel")?,
            n => write!(f, "flies on {n} tunnels")?,
        }
        writeln!(f, "; visitors: {}", self.traffic)?;
        if let Some(origin) = &self.origin {
            write!(f, "  origin {}: {}", origin.address, origin.state)?;
            match (origin.seen, &origin.last_trouble) {
                (Some(ago), _) if origin.state == "speaks foolscap" => {
                    writeln!(f, ", seen {} ago", Age(ago))?;
                }
                (Some(ago), Some(trouble)) => writeln!(f, ", seen {} ago: {trouble}", Age(ago))?,
                _ => writeln!(f)?,
            }
        }
        for probe in self.by_name.iter().filter(|p| p.frontend.is_none()) {
            writeln!(f, "  by its name: {probe}")?;
        }
        for frontend in &self.wanted_at {
            match self.probe(frontend) {
                Some(probe) => writeln!(f, "  through {frontend}: {probe}")?,
                None => writeln!(f, "  through {frontend}: {}", self.unvisited(frontend))?,
            }
        }
        Ok(())
    }
}

impl Kite {
    /// Why there is no visit through this frontend.
    pub fn unvisited(&self, frontend: &String) -> &'static str {
        match () {
            () if !self.is_foolscap() => "not visited: only foolscap kites can be",
            () if !self.flies_at.contains(frontend) => "not visited: it does not fly there",
            () => "not visited yet",
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of 100", self.points)?;
        match self.standing {
            Standing::Good => Ok(()),
            Standing::Poor => write!(f, ", POOR"),
            Standing::Astray => write!(f, ", leads ASTRAY: {}", self.astray.join(", ")),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, to, text) = (self.word(), &self.to, &self.text);
        match self.outcome {
            Outcome::NotProbed => write!(f, "{word}: {text}")?,
            _ => write!(f, "{word}, {} ago at {to}: {text}", Age(self.ago))?,
        }
        match (self.visits, self.proven_ago) {
            // The last one says it all.
            (..=1, _) => Ok(()),
            (visits, Some(ago)) => write!(
                f,
                " ({} of {visits} visits proved it, the last {} ago)",
                self.proven,
                Age(ago)
            ),
            (visits, None) => write!(f, " (none of {visits} visits proved it)"),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Backend => "backend",
            Role::Frontend => "frontend",
        };
        writeln!(f, "kite {role} {}, up {}", self.version, Age(self.up))?;
        match (&self.via, &self.tor) {
            (Some(_), Some(_)) => writeln!(
                f,
                "hidden: yes, it goes out through Tor and in no other way"
            )?,
            (Some(_), None) => writeln!(f, "hidden: NO, frontends see this machine's address")?,
            (None, _) => {}
        }
        if let Some(tor) = &self.tor {
            writeln!(f, "Tor: {}; {}", tor.state, tor.text)?;
            writeln!(f, "  dialled: {}", Counts(&tor.dials))?;
            if !tor.refused.is_empty() {
                writeln!(f, "  REFUSED: {}; please report this", Counts(&tor.refused))?;
            }
        }
        for line in &self.sandbox {
            writeln!(f, "sandbox: {line}")?;
        }
        writeln!(f, "visitors: {}", self.traffic)?;
        if self.speed.from_visitors + self.speed.to_visitors > 0 {
            let (from, to) = (self.speed.from_visitors, self.speed.to_visitors);
            writeln!(f, "now: {}/s from them, {}/s to them", Size(from), Size(to))?;
        }
        for tunnel in &self.tunnels {
            write!(f, "{tunnel}")?;
        }
        for frontend in &self.frontends {
            if let Some(score) = &frontend.score {
                let (at, ago) = (&frontend.address, Age(score.ago));
                writeln!(f, "{at} scores {score}; last visit {ago} ago")?;
            }
        }
        for kite in &self.kites {
            write!(f, "{kite}")?;
        }
        if self.storage_only {
            writeln!(f, "  carries Tahoe's storage traffic and nothing else")?;
        }
        if let Some(open) = &self.open {
            write!(
                f,
                "open: {} of {} kites fly in {}",
                open.flying, open.most, open.domain
            )?;
            match open.turned_away {
                0 => writeln!(f)?,
                n => writeln!(f, "; one more was refused {n} times")?,
            }
        }
        for address in &self.addresses {
            writeln!(f, "backends dial {address}")?;
        }
        if let Some(fleet) = &self.fleet {
            writeln!(f, "fleet: this is {}, {}", fleet.id, fleet.pin)?;
            if let Some(book) = &fleet.etcd {
                let at = book.endpoint.as_deref().unwrap_or("its first endpoint");
                let state = match (book.fresh, &book.trouble) {
                    (true, _) => "fresh",
                    (false, None) => "not reached yet",
                    (false, Some(_)) => "frozen",
                };
                write!(f, "etcd at {at}: {state} for {}", Age(book.ago))?;
                writeln!(
                    f,
                    "; members there: {}, changes to tell it: {}",
                    book.members, book.waiting
                )?;
                if let Some(trouble) = &book.trouble {
                    writeln!(f, "  {trouble}")?;
                }
            }
            for member in &fleet.members {
                let (id, kites) = (&member.id, member.kites);
                let link = match (member.told, member.heard) {
                    (true, true) => "linked",
                    (true, false) => "it is told what flies here, and says nothing",
                    (false, true) => "it cannot be told what flies here",
                    (false, false) => "not linked",
                };
                writeln!(f, "member {id}: {link}; kites there: {kites}")?;
            }
            writeln!(
                f,
                "visitors passed on: {} ({} now), in vain {}; brought by members: {} ({} now)",
                fleet.passed_on,
                fleet.passed_on_open,
                fleet.passed_in_vain,
                fleet.brought,
                fleet.brought_open
            )?;
        }
        for backend in &self.backends {
            writeln!(
                f,
                "tunnel from {}: {}",
                backend.peer,
                backend.kites.join(", ")
            )?;
        }
        for trouble in self.troubles.iter().take(SHOWN_TROUBLES) {
            writeln!(
                f,
                "trouble {} ago, {}: {}",
                Age(trouble.ago),
                trouble.with,
                trouble.text
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tunnel {}: {} for {}",
            self.frontend,
            self.tunnel,
            self.state,
            Age(self.since)
        )?;
        if let Some(age) = self.circuit_age {
            write!(f, ", circuit in use for {}", Age(age))?;
        }
        if let Some(ms) = self.round_trip_ms {
            write!(f, ", round trip {ms} ms")?;
        }
        if self.state == "up" || self.state == "suspect" {
            write!(f, ", {} streams", self.streams)?;
        }
        if let Some(seconds) = self.retry_in {
            write!(f, ", next try in {}", Age(seconds))?;
        }
        writeln!(f)?;
        if !self.kites.is_empty() {
            writeln!(f, "  flies {}", self.kites.join(", "))?;
        }
        match &self.last_error {
            Some(error) => writeln!(f, "  last trouble: {error}"),
            None => Ok(()),
        }
    }
}

/// Seconds, in the two largest units.
pub struct Age(pub u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes) = (self.0 / 86_400, self.0 / 3_600 % 24, self.0 / 60 % 60);
        match self.0 {
            0..60 => write!(f, "{} s", self.0),
            60..3_600 => write!(f, "{minutes} min {} s", self.0 % 60),
            3_600..86_400 => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}

struct Counts<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing yet");
        }
        let each: Vec<String> = self
            .0
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        f.write_str(&each.join(", "))
    }
}

/// Bytes, in a unit that suits them.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
        if self.0 < 1000 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1000.0;
        let mut shown = "kB";
        for unit in units {
            shown = unit;
            if value < 999.95 {
                break;
            }
            value /= 1000.0;
        }
        match value < 9.995 {
            true => write!(f, "{value:.2} {shown}"),
            false => write!(f, "{value:.1} {shown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_suit_them() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_990, "1.00 MB"),
            (5_300_000_000, "5.30 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Size(n).to_string(), text);
        }
        for (n, text) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3_700, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(Age(n).to_string(), text);
        }
    }
}
