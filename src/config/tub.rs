//! Kites that are called by their tubs and need no secret: a backend's own, and those that a frontend takes.

use super::file::OpenTable;
use super::*;
use crate::frontend::limits::{Rate, Size};
use crate::random::random_hex;
use crate::tub::TubKey;

/// Kites that may fly at one time, unless said otherwise.
const OPEN_KITES: u32 = 1000;
/// The same from one address. Backends that come through Tor share the addresses of its exits.
const OPEN_KITES_PER_ADDRESS: u32 = 64;

/// What strangers' kites may use, where the file says nothing.
fn usual_limits() -> Limits {
    Limits {
        quota: Some(Size(100 << 30)),
        period_days: Some(30),
        streams: Some(256),
        rate: Some(Rate {
            count: 600,
            seconds: 60,
        }),
        ..Limits::default()
    }
}

/// Kites that a frontend takes from whoever proves that they are called by their own tub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// They are called `TUBID.domain`.
    pub domain: KiteName,
    /// What proves it.
    pub proof: OpenProof,
    /// How many may fly at one time.
    pub kites: u32,
    /// How many from one address.
    pub per_address: u32,
    /// How much each may use.
    pub limits: Limits,
}

/// What proves that a kite is called by its own tub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OpenProof {
    /// The tub's key signs for this very tunnel, and the node at its end is that tub.
    #[default]
    Key,
    /// The node at its end is that tub. Who is able to reach the node can have this said of a tunnel of his own.
    Node,
}

pub(super) fn open(source: &Source, table: OpenTable, defaults: &Limits) -> Result<Open> {
    let at = |key: &str| source.at(format_args!("open.{key}"));
    let domain = parse_name(&at("domain"), &table.domain)?;
    if domain.is_wildcard() || domain.is_catch_all() {
        return Err(ConfigError::new(
            Code::BadName,
            at("domain"),
            format!("kites cannot be called below {domain}"),
            "write the domain alone, such as alice.example; its wildcard must lead here",
        ));
    }
    let number = |key: &str, value: Option<u32>, usual: u32| match value.unwrap_or(usual) {
        0 => Err(ConfigError::new(
            Code::OutOfRange,
            at(key),
            "with none of them nobody may fly",
            "write a number from 1 on, or remove [open]",
        )),
        n => Ok(n),
    };
    let own = table.limits.or(defaults);
    // A quota of one's own has a period of one's own, or none.
    let period_days = match own.is_metered() {
        true => own.period_days,
        false => own.period_days.or(usual_limits().period_days),
    };
    let limits = Limits {
        period_days,
        ..own.or(&usual_limits())
    };
    Ok(Open {
        domain,
        proof: table.proof,
        kites: number("kites", table.kites, OPEN_KITES)?,
        per_address: number(
            "kites_per_address",
            table.kites_per_address,
            OPEN_KITES_PER_ADDRESS,
        )?,
        limits,
    })
}

/// The tub that a kite is called by.
pub(super) fn tub_in_name(place: &str, name: &KiteName, ported: Ported) -> Result<TubId> {
    let wrong = |problem: String, remedy| {
        Err(ConfigError::new(
            Code::Contradiction,
            place,
            problem,
            remedy,
        ))
    };
    if ported.protocol != Protocol::Foolscap || ported.port.is_some() {
        return wrong(
            format!("a {ported} kite has no tub to prove itself by"),
            "remove proof = \"tub\", or carry foolscap on any port",
        );
    }
    let label = name.as_str().split('.').next().unwrap_or_default();
    match TubId::from_bytes(label.as_bytes()) {
        Some(tub) => Ok(tub),
        None => wrong(
            format!("{name} does not begin with a TubID, by which the kite could prove itself"),
            "begin the name with the node's: it stands in my_nodeid in the node's directory",
        ),
    }
}

/// What stands in a secret's place where there is none: nobody else will ever know it.
pub(super) fn nothing() -> Result<Secret> {
    Secret::new(random_hex(64).as_bytes()).ok_or_else(|| {
        ConfigError::new(
            Code::SecretMissing,
            "proof",
            "there is no randomness",
            "see what is wrong with this machine",
        )
    })
}

/// A node's certificate with its key, which must be those of this tub.
pub(super) fn read_key(place: &str, path: &Path, tub: TubId) -> Result<Secret> {
    let shown = path.display();
    let wrong = |code, problem: String| {
        Err(ConfigError::new(
            code,
            format!("{place}: {shown}"),
            problem,
            "give private/node.pem of the node's directory, and let nobody but its owner read it",
        ))
    };
    // Who may read it is a matter of where it lies, not of where a link to it does.
    let opened = std::fs::canonicalize(path).and_then(|real| {
        let file = std::fs::File::open(&real)?;
        let meta = file.metadata()?;
        Ok((real, file, meta))
    });
    let (real, file, meta) = match opened {
        Ok(opened) => opened,
        Err(e) => return wrong(Code::SecretMissing, describe_io(&e)),
    };
    // Tahoe writes it with the usual mode, into a directory that nobody else may enter.
    let closed = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o077 == 0);
    if meta.mode() & 0o077 != 0 && !real.parent().is_some_and(closed) {
        return wrong(
            Code::SecretExposed,
            format!(
                "other users may read this key (mode {:03o})",
                meta.mode() & 0o777
            ),
        );
    }
    let text = match read_open(file) {
        Ok(text) => text,
        Err(problem) => return wrong(Code::SecretMissing, problem),
    };
    let key = match TubKey::read(&text) {
        Ok(key) => key,
        Err(e) => return wrong(Code::SecretMissing, e.to_string()),
    };
    if key.tub() != Some(tub) {
        return wrong(
            Code::Contradiction,
            "it is the key of another tub than the one in the kite's name".to_owned(),
        );
    }
    match Secret::key(&text) {
        Some(secret) => Ok(secret),
        None => wrong(
            Code::SecretMissing,
            "it is longer than such a key can be".to_owned(),
        ),
    }
}
