//! The `X-PageKite` lines: the text in which kites are asked for, challenged,
//! granted and refused (protocol page §3.1 – §3.4).
//!
//! The same lines stand in the head of a request, in the head of an answer and in
//! NOOP frames, so there is one [`Lines`] for all three. To add a header, give it
//! a field, a line in `Lines::take` and a line in `Lines::put`.

use std::fmt;

use bytes::BytesMut;

use super::chunk::MAX_FRAME;
use super::frame::{HEADROOM, put_line};
use super::service::{fields, id, kite_id, visible};
use super::tub::{self, TubCertificate, TubClaim};
use super::{decimal, printable};
use crate::plain::plain;

pub use super::service::{KiteId, LinesError, ServiceLine};

/// What every header of PageKite's begins with. The older `X-Beanstalk` is not
/// understood: no known peer sends it, and pk.py never lets such a kite fly.
const PREFIX: &str = "X-PageKite";
/// Most lines of one kind, and most words in one list. More is an error.
pub const MAX_LINES: usize = 64;
/// Longest session id or feature word, in bytes. pk.py's ids have 49.
const MAX_WORD: usize = 128;
/// Longest name with the address of a home, in bytes.
const MAX_HOME: usize = 640;
/// Longest text meant for people, in bytes; the rest is cut off.
const MAX_TEXT: usize = 1024;

/// "You may answer my challenge inside the tunnel", and the reverse.
pub const ADD_KITES: &str = "AddKites";
/// Our extension: both ends keep per-stream windows that they tell each other,
/// and read each other's `Abort` (protocol page §15).
pub const KITE_MUX: &str = "KiteMux1";
/// Our extension: [`super::proof`] instead of SHA-1, both ways (protocol page §21.3).
/// In force only together with [`ADD_KITES`]: proof and challenge share a connection.
pub const KITE_PROOF: &str = "KiteProof1";
/// Our extension: several tunnels of one backend may fly the same kite (protocol page §21.4).
pub const KITE_BESIDE: &str = "KiteBeside1";
/// Our extension: a frontend ends visitors' TLS for those kites only that ask for it (protocol page §21.5).
pub const KITE_TLS: &str = "KiteTls1";
/// Our extension: an end that is going to stop says so, and its tunnels end with their streams (protocol page §21.7).
pub const KITE_AWAY: &str = "KiteAway1";
/// Our extension: the frontend is one of several that serve one domain; it says which of them are home to a kite, and hears
/// what the backend is known by among them (protocol page §21.9).
pub const KITE_FLEET: &str = "KiteFleet1";
/// The smallest and largest payload per frame that [`KITE_MUX`] may ask for, in bytes.
pub const MUX_FRAME: std::ops::RangeInclusive<u32> = 1024..=(MAX_FRAME - HEADROOM) as u32;
/// The smallest and largest window per stream that [`KITE_MUX`] may announce, in KB.
/// A visitor's first flight is sent without asking, and must fit into the smallest.
pub const MUX_WINDOW_KB: std::ops::RangeInclusive<u32> = 64..=64 * 1024;

/// What [`KITE_MUX`] agreed on: the wishes of the peer, within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MuxParams {
    /// The peer's window for each stream, in KB; within [`MUX_WINDOW_KB`].
    pub window_kb: u32,
    /// The largest payload that the peer wants in one frame, in bytes; within [`MUX_FRAME`].
    pub frame: u32,
}

/// All `X-PageKite` lines of one head or frame. Unknown ones are left out.
///
/// Not for logs as a whole: at an old frontend, who knows a session id can cut
/// the tunnel (protocol page §3.7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lines {
    /// Feature words, in their order and spelling.
    pub features: Vec<String>,
    /// The peer's program. We do not send it.
    pub version: Option<String>,
    /// Our window per stream in KB; see [`KITE_MUX`].
    pub window_kb: Option<u32>,
    /// The largest payload we want in one frame, in bytes; see [`KITE_MUX`].
    pub frame: Option<u32>,
    /// What the frontend carries.
    pub protos: Vec<String>,
    /// Its ports.
    pub ports: Vec<String>,
    /// Its raw ports; may hold `virtual`.
    pub raw_ports: Vec<String>,
    /// The session to be replaced by this tunnel.
    pub replace: Option<String>,
    /// Sessions that this tunnel is to stand beside; see [`KITE_BESIDE`].
    pub beside: Vec<String>,
    /// A session that gets no more visitors once this tunnel flies; see [`KITE_BESIDE`].
    pub retire: Option<String>,
    /// Kites whose visitors' TLS the frontend is asked to end; see [`KITE_TLS`].
    pub end_tls: Vec<KiteId>,
    /// Whoever says this goes away, or has heard that the other does: no stream is opened any more; see [`KITE_AWAY`].
    pub away: bool,
    /// What the backend of a kite is known by in a fleet; see [`KITE_FLEET`].
    pub backends: Vec<(KiteId, String)>,
    /// A kite's name, and the address of a frontend that is home to it; see [`KITE_FLEET`].
    pub homes: Vec<(String, String)>,
    /// Kites that are asked for.
    pub services: Vec<ServiceLine>,
    /// Challenges: sign again with this fsalt.
    pub sign_this: Vec<(KiteId, String)>,
    /// Kites that fly.
    pub ok: Vec<KiteId>,
    /// Those among them whose TLS the frontend ends itself.
    pub ssl_ok: Vec<KiteId>,
    /// Kites that are called by their tubs; see [`super::tub::KITE_TUB`].
    pub tubs: Vec<TubClaim>,
    /// The certificates of those tubs.
    pub tub_certificates: Vec<TubCertificate>,
    /// The frontend's proofs for kites that fly; see [`KITE_PROOF`].
    pub proofs: Vec<(KiteId, Proof)>,
    /// Kites that are refused, and why, if that was said.
    pub invalid: Vec<(KiteId, Option<String>)>,
    /// Kites that another tunnel serves already.
    pub duplicate: Vec<KiteId>,
    /// What this tunnel is called now.
    pub session_id: Option<String>,
    /// The message of the day, decoded; may be empty.
    pub motd: Option<String>,
    /// Advice to upgrade; not interpreted.
    pub upgrade: Option<String>,
    /// Connections left.
    pub qconns: Option<i64>,
    /// Days left.
    pub qdays: Option<i64>,
    /// The limit of visitors, as `ips/seconds`.
    pub ips_per_sec: Option<String>,
    /// KB left.
    pub quota: Option<i64>,
}

/// A proof's text. `Debug` leaves it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof(pub String);

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(…)")
    }
}

/// Is this header name one of PageKite's?
pub(super) fn is_ours(name: &[u8]) -> bool {
    name.get(..PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX.as_bytes()))
}

impl Lines {
    /// Takes one header if it is one of PageKite's; others are ignored, and so are
    /// numbers that are none.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), LinesError> {
        if !is_ours(name) {
            return Ok(());
        }
        let suffix = name
            .get(PREFIX.len()..)
            .unwrap_or_default()
            .to_ascii_lowercase();
        let value = value.trim_ascii();
        match suffix.as_slice() {
            b"" => push("X-PageKite", &mut self.services, ServiceLine::parse(value)?)?,
            b"-features" => push("Features", &mut self.features, word("Features", value)?)?,
            b"-version" => self.version = Some(printable(value, MAX_WORD)),
            b"-window" => self.window_kb = decimal(value).and_then(|n| u32::try_from(n).ok()),
            b"-frame" => self.frame = decimal(value).and_then(|n| u32::try_from(n).ok()),
            b"-protos" => self.protos = list("Protos", value)?,
            b"-ports" => self.ports = list("Ports", value)?,
            b"-raw-ports" => self.raw_ports = list("Raw-Ports", value)?,
            b"-replace" => self.replace = Some(word("Replace", value)?),
            b"-beside" => push("Beside", &mut self.beside, word("Beside", value)?)?,
            b"-end-tls" => push("End-TLS", &mut self.end_tls, id("End-TLS", value)?)?,
            b"-away" => self.away = true,
            b"-backend" => push("Backend", &mut self.backends, mark(value)?)?,
            b"-home" => push("Home", &mut self.homes, home(value)?)?,
            b"-retire" => self.retire = Some(word("Retire", value)?),
            b"-signthis" => push("SignThis", &mut self.sign_this, challenge(value)?)?,
            b"-ok" => push("OK", &mut self.ok, id("OK", value)?)?,
            b"-ssl-ok" => push("SSL-OK", &mut self.ssl_ok, id("SSL-OK", value)?)?,
            b"-tub" => push("Tub", &mut self.tubs, tub::claim(value)?)?,
            b"-tub-certificate" => push(
                "Tub-Certificate",
                &mut self.tub_certificates,
                tub::certificate(value)?,
            )?,
            b"-proof" => push("Proof", &mut self.proofs, proof(value)?)?,
            b"-invalid" => self.refuse(id("Invalid", value)?, None)?,
            b"-invalid-why" => {
                let (kite, why) = reason(value)?;
                self.refuse(kite, Some(why))?;
            }
            b"-duplicate" => push("Duplicate", &mut self.duplicate, id("Duplicate", value)?)?,
            b"-sessionid" => self.session_id = Some(word("SessionID", value)?),
            b"-misc" => self.motd = motd(value),
            b"-upgrade" => self.upgrade = Some(printable(value, MAX_TEXT)),
            b"-qconns" => self.qconns = signed(value),
            b"-qdays" => self.qdays = signed(value),
            b"-ipspersec" => self.ips_per_sec = Some(printable(value, MAX_WORD)),
            b"-quota" => self.quota = signed(value),
            _ => {}
        }
        Ok(())
    }

    /// Appends all lines, in pk.py's order, without a blank line behind them.
    pub(super) fn put(&self, out: &mut BytesMut) {
        let mut line = |suffix: &str, value: &dyn fmt::Display| {
            put_line(out, &format!("{PREFIX}{suffix}"), value)
        };
        macro_rules! each {
            ($suffix:literal, $values:expr) => {
                $values.iter().for_each(|value| line($suffix, value))
            };
        }
        each!("-Features", self.features);
        each!("-Version", self.version);
        each!("-Window", self.window_kb);
        each!("-Frame", self.frame);
        for (suffix, words) in [
            ("-Protos", &self.protos),
            ("-Ports", &self.ports),
            ("-Raw-Ports", &self.raw_ports),
        ] {
            if !words.is_empty() {
                line(suffix, &words.join(", "));
            }
        }
        each!("-Replace", self.replace);
        each!("-Beside", self.beside);
        each!("-Retire", self.retire);
        each!("-End-TLS", self.end_tls);
        each!("-Away", self.away.then_some(1));
        each!("", self.services);
        each!("-Tub-Certificate", self.tub_certificates);
        each!("-Tub", self.tubs);
        for (kite, mark) in &self.backends {
            line("-Backend", &format_args!("{kite}:{mark}"));
        }
        for (kite, fsalt) in &self.sign_this {
            line("-SignThis", &format_args!("{kite}:{fsalt}"));
        }
        each!("-OK", self.ok);
        each!("-SSL-OK", self.ssl_ok);
        for (name, address) in &self.homes {
            line("-Home", &format_args!("{name}:{address}"));
        }
        for (kite, Proof(proof)) in &self.proofs {
            line("-Proof", &format_args!("{kite}:{proof}"));
        }
        for (kite, why) in &self.invalid {
            line("-Invalid", kite);
            if let Some(why) = why {
                line("-Invalid-Why", &format_args!("{kite};{why}"));
            }
        }
        each!("-Duplicate", self.duplicate);
        each!("-SessionID", self.session_id);
        each!(
            "-Misc",
            self.motd
                .as_deref()
                .map(|text| format!("motd={}", quote(text)))
        );
        each!("-Upgrade", self.upgrade);
        each!("-QConns", self.qconns);
        each!("-QDays", self.qdays);
        each!("-IPsPerSec", self.ips_per_sec);
        each!("-Quota", self.quota);
    }

    /// Was this very word among the features? Words match exactly (protocol page §3.1).
    pub fn has_feature(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    /// Does this peer have [`KITE_PROOF`], and take it where the challenge came from?
    pub fn has_proof(&self) -> bool {
        self.has_feature(KITE_PROOF) && self.has_feature(ADD_KITES)
    }

    /// What the peer wants from [`KITE_MUX`]; in force only if both ends said the word.
    ///
    /// `None` if it did not say the word with both numbers, or said less than
    /// [`MUX_WINDOW_KB`] and [`MUX_FRAME`] begin with: to raise its wish would be to
    /// overrun it. More than they end with is cut.
    pub fn mux(&self) -> Option<MuxParams> {
        let within = |wish: u32, (least, most): (u32, u32)| (wish >= least).then(|| wish.min(most));
        self.has_feature(KITE_MUX).then_some(())?;
        Some(MuxParams {
            window_kb: within(self.window_kb?, MUX_WINDOW_KB.into_inner())?,
            frame: within(self.frame?, MUX_FRAME.into_inner())?,
        })
    }

    /// One entry per kite, although `Invalid` and `Invalid-Why` are two lines.
    fn refuse(&mut self, kite: KiteId, why: Option<String>) -> Result<(), LinesError> {
        match self.invalid.iter_mut().find(|(known, _)| *known == kite) {
            Some((_, reason)) => *reason = why.or(reason.take()),
            None => push("Invalid", &mut self.invalid, (kite, why))?,
        }
        Ok(())
    }
}

fn push<T>(header: &'static str, values: &mut Vec<T>, value: T) -> Result<(), LinesError> {
    if values.len() >= MAX_LINES {
        return Err(LinesError::TooMany(header));
    }
    values.push(value);
    Ok(())
}

/// `proto:name:bsalt:fsalt`. The fsalt must be there.
fn challenge(value: &[u8]) -> Result<(KiteId, String), LinesError> {
    let [proto, name, bsalt, fsalt] = fields("SignThis", value)?;
    if fsalt.is_empty() {
        return Err(LinesError::Form("SignThis"));
    }
    Ok((kite_id("SignThis", [proto, name, bsalt])?, fsalt.to_owned()))
}

/// `proto:name:bsalt:proof`.
fn proof(value: &[u8]) -> Result<(KiteId, Proof), LinesError> {
    let [proto, name, bsalt, proof] = fields("Proof", value)?;
    Ok((
        kite_id("Proof", [proto, name, bsalt])?,
        Proof(proof.to_owned()),
    ))
}

/// `proto:name:bsalt:mark`.
fn mark(value: &[u8]) -> Result<(KiteId, String), LinesError> {
    let [proto, name, bsalt, mark] = fields("Backend", value)?;
    if mark.is_empty() {
        return Err(LinesError::Form("Backend"));
    }
    let kite = kite_id("Backend", [proto, name, bsalt])?;
    Ok((kite, mark.to_owned()))
}

/// `name:address`, where the address has more colons.
fn home(value: &[u8]) -> Result<(String, String), LinesError> {
    let text = visible("Home", value)?;
    match text.split_once(':') {
        Some((name, address)) if !name.is_empty() && text.len() <= MAX_HOME => {
            Ok((name.to_ascii_lowercase(), address.to_owned()))
        }
        _ => Err(LinesError::Form("Home")),
    }
}

/// `proto:name:bsalt;reason`, perhaps with more behind a second semicolon.
fn reason(value: &[u8]) -> Result<(KiteId, String), LinesError> {
    let mut parts = value.splitn(3, |&b| b == b';');
    let kite = id("Invalid-Why", parts.next().unwrap_or_default().trim_ascii())?;
    Ok((
        kite,
        printable(parts.next().unwrap_or_default().trim_ascii(), MAX_WORD),
    ))
}

fn word(header: &'static str, value: &[u8]) -> Result<String, LinesError> {
    let text = visible(header, value)?;
    if text.is_empty() || text.len() > MAX_WORD {
        return Err(LinesError::Form(header));
    }
    Ok(text.to_owned())
}

/// Words between commas.
fn list(header: &'static str, value: &[u8]) -> Result<Vec<String>, LinesError> {
    let mut words = Vec::new();
    for part in value
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|p| !p.is_empty())
    {
        push(header, &mut words, word(header, part)?)?;
    }
    Ok(words)
}

fn signed(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Takes `motd` out of `key=value&key=value`, where values are form-encoded.
fn motd(value: &[u8]) -> Option<String> {
    let encoded = value
        .split(|&b| b == b'&')
        .find_map(|pair| pair.strip_prefix(b"motd="))?;
    let hex = |b: Option<&u8>| {
        b.and_then(|&b| char::from(b).to_digit(16))
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut said = Vec::new();
    let mut at = 0;
    while let Some(&byte) = encoded.get(at) {
        at += 1;
        said.push(
            match (byte, hex(encoded.get(at)), hex(encoded.get(at + 1))) {
                (b'+', ..) => b' ',
                (b'%', Some(high), Some(low)) => {
                    at += 2;
                    high << 4 | low
                }
                _ => byte,
            },
        );
    }
    said.truncate(MAX_TEXT);
    let text = String::from_utf8_lossy(&said);
    Some(plain(&text, MAX_TEXT))
}

/// Form-encodes a text.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lines: &[(&str, &str)]) -> Result<Lines, LinesError> {
        let mut all = Lines::default();
        for (name, value) in lines {
            all.take(name.as_bytes(), value.as_bytes())?;
        }
        Ok(all)
    }

    #[test]
    fn too_many_lines_of_a_kind_are_refused() {
        let service = ("X-PageKite", "http:k:b::s");
        assert_eq!(
            take(&vec![service; MAX_LINES]).unwrap().services.len(),
            MAX_LINES
        );
        assert_eq!(
            take(&vec![service; MAX_LINES + 1]),
            Err(LinesError::TooMany("X-PageKite"))
        );
        assert_eq!(
            take(&vec![("x-pagekite-ok", "http:k:b"); MAX_LINES + 1]),
            Err(LinesError::TooMany("OK"))
        );
        assert_eq!(
            take(&[("X-PageKite-Protos", &"a,".repeat(65))]),
            Err(LinesError::TooMany("Protos"))
        );
    }

    #[test]
    fn a_refusal_and_its_reason_are_one() {
        let id = |name: &str| KiteId {
            proto: "http".into(),
            name: name.into(),
            bsalt: "b".into(),
        };
        let lines = take(&[
            ("X-PageKite-Invalid", "http:a:b"),
            ("X-PageKite-Invalid", "http:c:b"),
            ("X-PageKite-Invalid-Why", "http:a:b;noquota;more"),
            ("X-PageKite-Invalid-Why", "http:d:b;port"),
        ]);
        assert_eq!(
            lines.unwrap().invalid,
            [
                (id("a"), Some("noquota".into())),
                (id("c"), None),
                (id("d"), Some("port".into()))
            ]
        );
    }

    #[test]
    fn a_message_of_the_day_survives_its_encoding() {
        for text in ["", "Hello & welcome", "100% +1", "a=b&c=d"] {
            let value = format!("x=1&motd={}", quote(text));
            assert_eq!(motd(value.as_bytes()).as_deref(), Some(text));
        }
        assert_eq!(motd(b"motd=a%0d%0ab%2").as_deref(), Some("a  b%2"));
        // It is a stranger's text, for a terminal.
        let umbrella = format!("motd={}", quote("a ☂"));
        assert_eq!(motd(umbrella.as_bytes()).as_deref(), Some("a ?"));
        assert_eq!(motd(b"other=1"), None);
    }

    #[test]
    fn the_extension_needs_its_word_and_both_numbers() {
        let word = ("X-PageKite-Features", KITE_MUX);
        let (window, frame) = (("X-PageKite-Window", "256"), ("X-PageKite-Frame", "16000"));
        let all = take(&[word, window, frame]).unwrap();
        assert_eq!(
            all.mux(),
            Some(MuxParams {
                window_kb: 256,
                frame: 16_000
            })
        );
        for some in [
            &[word, window][..],
            &[word, frame],
            &[window, frame],
            &[word, window, ("X-PageKite-Frame", "x")],
        ] {
            assert_eq!(take(some).unwrap().mux(), None);
        }
        let with = |window, frame| {
            take(&[
                word,
                ("X-PageKite-Window", window),
                ("X-PageKite-Frame", frame),
            ])
            .unwrap()
            .mux()
        };
        let most = MuxParams {
            window_kb: *MUX_WINDOW_KB.end(),
            frame: *MUX_FRAME.end(),
        };
        assert_eq!(with("4294967295", "4294967295"), Some(most));
        assert_eq!((with("63", "1024"), with("64", "1023")), (None, None));
        assert!(with("64", "1024").is_some());
    }

    #[test]
    fn no_value_forges_a_line() {
        let lines = Lines {
            motd: Some("a\r\nb".into()),
            replace: Some("x\r\nX-PageKite-OK: y".into()),
            ..Lines::default()
        };
        let mut out = BytesMut::new();
        lines.put(&mut out);
        assert_eq!(
            &out[..],
            b"X-PageKite-Replace: xX-PageKite-OK: y\r\nX-PageKite-Misc: motd=a%0D%0Ab\r\n"
        );
    }
}
