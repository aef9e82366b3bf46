//! `kite frontend kites`: through the control socket if the frontend runs, else in its book.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::account::{Account, end_of_day};
use super::accounts::{Accounts, Listed};
use super::blocked::{self, Blocked, Since};
use super::book::{Book, BookError, Entry};
use super::invited::{self, Invited};
use super::limits::{DAY, Limits, Used};
use crate::cli::{AddArgs, KitesArgs, KitesCommand, TermsArgs};
use crate::clock::now_unix;
use crate::code::{Code, Coded};
use crate::config::{self, ConfigError, Grant, ProofRule};
use crate::control::{self, AskError};
use crate::kite::{KiteName, Secret};
use crate::observe::status::Role;
use crate::random::random_hex;

/// Length of a secret that is made here, in hexadecimal digits: 256 bits.
const SECRET_DIGITS: usize = 64;

/// What is to be done with the kites. May hold a secret: not for logs.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Let one fly.
    Add {
        /// Its name or wildcard.
        name: String,
        /// The rest.
        entry: Entry,
    },
    /// Let one fly no more.
    Remove {
        /// Its name or wildcard.
        name: String,
    },
    /// Let nobody fly this one, whoever may.
    Block {
        /// Its name, or a wildcard.
        name: String,
    },
    /// Let it fly again.
    Unblock {
        /// As it was blocked.
        name: String,
    },
    /// Name all that are blocked.
    Blocked,
    /// Name all.
    List,
    /// Invite somebody to fly one.
    Invite {
        /// The invitation's number.
        id: String,
        /// The rest.
        invited: Box<Invited>,
    },
    /// Take the invitation to fly this one back.
    Revoke {
        /// Its name or wildcard.
        name: String,
    },
    /// Name all invitations.
    Invitations,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is done, and written down.
    Done,
    /// A name is blocked.
    Grounded {
        /// So many kites came down.
        down: usize,
        /// So many fly on without it, of which it was one of many names.
        above: usize,
    },
    /// All kites.
    All(Vec<Listed>),
    /// All names that are blocked.
    Blocked(Vec<blocked::Listed>),
    /// All invitations.
    Invitations(Vec<invited::Listed>),
    /// Nothing has changed, for this reason.
    Refused(String),
}

/// By whom it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The frontend that runs.
    Frontend,
    /// Nobody runs: it is in the book, and counts from the next start.
    Book,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum KitesError {
    /// The words are wrong, or a file is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The book cannot be used, or does not agree.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The frontend does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The frontend does not agree.
    #[error("{0}")]
    Refused(String),
    /// It would come into a book that no frontend reads.
    #[error(
        "there is no state directory {0}; name the frontend's with --config FILE or --state-dir DIR"
    )]
    Nowhere(String),
    /// Nobody reads what we say.
    #[error("cannot write: {0}; see where the output goes")]
    Output(#[from] std::io::Error),
}

impl Coded for KitesError {
    fn code(&self) -> Code {
        match self {
            Self::Config(e) => e.code(),
            Self::Book(e) => e.code(),
            Self::Ask(e) => e.code(),
            Self::Refused(_) => Code::BookDisagrees,
            Self::Nowhere(_) => Code::NobodyThere,
            Self::Output(_) => Code::OutputFailed,
        }
    }
}

impl Order {
    /// What a running frontend does.
    pub(super) fn carry_out(self, accounts: &Accounts) -> Answer {
        let parse = |name: &str| name.parse::<KiteName>().map_err(|e| e.to_string());
        let done = match &self {
            Self::List => return Answer::All(accounts.list()),
            Self::Blocked => {
                return match accounts.list_blocked() {
                    Ok(all) => Answer::Blocked(all),
                    Err(e) => Answer::Refused(e.to_string()),
                };
            }
            Self::Block { name } => parse(name).and_then(|name| {
                accounts.block(&name).map_err(|e| e.to_string())?;
                tracing::info!("{name} is blocked from now on");
                Ok(())
            }),
            Self::Unblock { name } => parse(name).and_then(|name| {
                accounts.unblock(&name).map_err(|e| e.to_string())?;
                tracing::info!("{name} is not blocked any more");
                Ok(())
            }),
            Self::Invitations => {
                return match accounts.invitations() {
                    Ok(all) => Answer::Invitations(all),
                    Err(e) => Answer::Refused(e.to_string()),
                };
            }
            Self::Invite { id, invited } => parse(&invited.name).and_then(|name| {
                let known = invited.is_understood().then_some(());
                known.ok_or(control::OTHER_VERSION)?;
                accounts
                    .invite(id, &name, invited)
                    .map_err(|e| e.to_string())?;
                tracing::info!("somebody is invited to fly {name}");
                Ok(())
            }),
            Self::Revoke { name } => parse(name).and_then(|name| {
                accounts.revoke(&name).map_err(|e| e.to_string())?;
                tracing::info!("nobody is invited to fly {name} any more");
                Ok(())
            }),
            Self::Add { name, entry } => parse(name).and_then(|name| {
                let known = entry.grant(name.as_str()).is_some();
                known.then_some(()).ok_or(control::OTHER_VERSION)?;
                accounts.add(&name, entry).map_err(|e| e.to_string())?;
                tracing::info!("{name} may fly from now on");
                Ok(())
            }),
            Self::Remove { name } => parse(name).and_then(|name| {
                accounts.remove(&name).map_err(|e| e.to_string())?;
                tracing::info!("{name} may not fly any more");
                Ok(())
            }),
        };
        match done {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Refused(why),
        }
    }

    /// Has it done by the frontend with this state directory, or does it where none runs; and which of the two. What was
    /// refused is an error.
    pub(super) async fn place(&self, state_dir: &Path) -> Result<(Answer, By), KitesError> {
        let socket = Role::Frontend.socket(state_dir);
        let (answer, by) = match control::kites(&socket, self).await {
            // A socket that nobody listens on is left over from a crash.
            Err(AskError::Nobody(_)) => (self.carry_out_alone(state_dir)?, By::Book),
            answer => (answer?, By::Frontend),
        };
        match answer {
            Answer::Refused(why) => Err(KitesError::Refused(why)),
            answer => Ok((answer, by)),
        }
    }

    /// The same where no frontend runs.
    fn carry_out_alone(&self, state_dir: &Path) -> Result<Answer, KitesError> {
        match self {
            Self::List if !Book::exists(state_dir) => return Ok(Answer::All(Vec::new())),
            Self::Blocked if !Book::exists(state_dir) => return Ok(Answer::Blocked(Vec::new())),
            Self::Invitations if !Book::exists(state_dir) => {
                return Ok(Answer::Invitations(Vec::new()));
            }
            _ => {}
        }
        let takes = matches!(
            self,
            Self::Remove { .. } | Self::Block { .. } | Self::Unblock { .. } | Self::Revoke { .. }
        );
        if takes && !state_dir.is_dir() {
            return Err(KitesError::Nowhere(state_dir.display().to_string()));
        }
        let book = Book::open(state_dir)?;
        let parse = |name: &str| config::parse_name("NAME", name);
        match self {
            Self::Add { name, entry } => book.add(&parse(name)?, entry)?,
            Self::Remove { name } => book.remove(&parse(name)?)?,
            Self::Block { name } => {
                let since = now_unix();
                book.block(&parse(name)?, Since { since })?;
            }
            Self::Unblock { name } => book.unblock(&parse(name)?)?,
            Self::Blocked => return Ok(Answer::Blocked(blocked::listed(book.blocked()?))),
            Self::Invite { id, invited } => {
                book.invite(id, &parse(&invited.name)?, invited, now_unix())?;
            }
            Self::Revoke { name } => book.revoke(&parse(name)?, now_unix())?,
            Self::Invitations => return Ok(Answer::Invitations(book.invitations(now_unix())?)),
            Self::List => {
                let (used, blocked) = (book.used()?, Blocked::default());
                blocked.set(book.blocked()?);
                let listed = |g: Grant| {
                    let used = used.get(g.pattern.as_str()).copied();
                    let account =
                        Account::new(g.pattern.as_str(), g.limits.clone(), g.expires, used);
                    let ended = account.standing(now_unix()).err();
                    Listed {
                        ended: ended.map(|end| end.to_string()),
                        blocked: blocked.covers(&g.pattern),
                        ..Listed::new(&g, used.unwrap_or_default())
                    }
                };
                return Ok(Answer::All(
                    book.grants()?.into_iter().map(listed).collect(),
                ));
            }
        }
        Ok(Answer::Done)
    }
}

/// Does what the command line says. What was asked for goes to `out`, the rest is said to `aside`.
pub async fn run(
    args: &KitesArgs,
    out: &mut (dyn Write + Send),
    aside: &mut (dyn Write + Send),
) -> Result<(), KitesError> {
    let state_dir = config::frontend_state_dir(args.config.as_deref(), args.state_dir.as_deref())?;
    let (order, secret) = match &args.command {
        KitesCommand::Add(add) => {
            let (name, entry, secret) = entry(add)?;
            let name = name.to_string();
            (Order::Add { name, entry }, secret)
        }
        KitesCommand::Remove { name } => (Order::Remove { name: name.clone() }, None),
        KitesCommand::Block { name } => {
            let name = config::parse_name("NAME", name)?.to_string();
            (Order::Block { name }, None)
        }
        KitesCommand::Unblock { name } => (Order::Unblock { name: name.clone() }, None),
        KitesCommand::Blocked { .. } => (Order::Blocked, None),
        KitesCommand::List { .. } => (Order::List, None),
    };
    let (answer, by) = order.place(&state_dir).await?;
    let mut flew = (0, 0);
    let all = match answer {
        Answer::All(all) => all,
        Answer::Blocked(all) => {
            say_blocked(&args.command, &all, out, aside)?;
            Vec::new()
        }
        Answer::Grounded { down, above } => {
            flew = (down, above);
            Vec::new()
        }
        Answer::Done | Answer::Invitations(_) | Answer::Refused(_) => Vec::new(),
    };
    match (&args.command, &order) {
        (KitesCommand::List { json: true }, _) => {
            let text = serde_json::to_string_pretty(&all).unwrap_or_default();
            writeln!(out, "{text}")?;
        }
        (KitesCommand::List { json: false }, _) => {
            for kite in &all {
                writeln!(out, "{}", shown(kite))?;
            }
            if all.is_empty() {
                let dir = state_dir.display();
                writeln!(
                    aside,
                    "no kites in {dir}; add one: kite frontend kites add NAME"
                )?;
            }
        }
        (_, Order::Add { name, .. }) => match secret {
            Some(secret) => {
                writeln!(
                    aside,
                    "{name} may fly with this secret, which is not shown again:"
                )?;
                aside.flush()?;
                writeln!(out, "{secret}")?;
            }
            None => writeln!(aside, "{name} may fly with that secret")?,
        },
        (_, Order::Remove { name }) => writeln!(aside, "{name} may not fly any more")?,
        (_, Order::Block { name }) => {
            writeln!(
                aside,
                "nobody flies {name} at this frontend from now on; to take that back: kite frontend kites unblock {name}"
            )?;
            match (by, flew) {
                (By::Book, _) => {}
                (By::Frontend, (0, 0)) => writeln!(
                    aside,
                    "nothing of that name flew here; if something should have, compare with `kite status`"
                )?,
                (By::Frontend, (0, _)) => writeln!(
                    aside,
                    "the kite of many names that flew it flies on without it"
                )?,
                (By::Frontend, (1, _)) => writeln!(aside, "one kite came down")?,
                (By::Frontend, (down, _)) => writeln!(aside, "{down} kites came down")?,
            }
        }
        (_, Order::Unblock { name }) => {
            writeln!(aside, "{name} may fly again, if it may fly at all")?
        }
        (_, _) => {}
    }
    if let Order::Add { name, .. } = &order {
        mind_the_blocked(name, &state_dir, aside).await?;
    }
    if by == By::Book && !matches!(order, Order::List | Order::Blocked) {
        let dir = state_dir.display();
        writeln!(
            aside,
            "no frontend runs with the state directory {dir}; it counts from the next start with it"
        )?;
    }
    out.flush()?;
    Ok(())
}

/// Says so if a kite that may fly now is blocked all the same.
pub(super) async fn mind_the_blocked(
    name: &str,
    state_dir: &Path,
    aside: &mut (dyn Write + Send),
) -> Result<(), KitesError> {
    let (Answer::Blocked(all), _) = Order::Blocked.place(state_dir).await? else {
        return Ok(());
    };
    let name = config::parse_name("NAME", name)?;
    let mut names = all
        .iter()
        .filter_map(|one| one.name.parse::<KiteName>().ok());
    if let Some(blocked) = names.find(|blocked| blocked.covers(&name)) {
        writeln!(
            aside,
            "Mind: {blocked} is blocked at this frontend, and {name} does not fly until: kite frontend kites unblock {blocked}"
        )?;
    }
    Ok(())
}

/// Shows what is blocked.
fn say_blocked(
    command: &KitesCommand,
    all: &[blocked::Listed],
    out: &mut (dyn Write + Send),
    aside: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    if matches!(command, KitesCommand::Blocked { json: true }) {
        let text = serde_json::to_string_pretty(all).unwrap_or_default();
        return writeln!(out, "{text}");
    }
    for blocked::Listed { name, since } in all {
        writeln!(out, "{name}; blocked since {since}")?;
    }
    match all {
        [] => writeln!(aside, "no name is blocked"),
        _ => Ok(()),
    }
}

/// What the flags of `add` say; with the secret, if it was made here.
fn entry(add: &AddArgs) -> Result<(KiteName, Entry, Option<String>), ConfigError> {
    let name = config::parse_name("NAME", &add.name)?;
    let made = add.secret_file.is_none().then(|| random_hex(SECRET_DIGITS));
    let secret = match (&add.secret_file, &made) {
        (Some(file), _) => config::read_secret("--secret-file", file)?,
        (None, text) => {
            Secret::new(text.as_deref().unwrap_or_default().as_bytes()).ok_or_else(|| {
                config::problem(Code::Broken, "NAME", "no secret can be made", "try again")
            })?
        }
    };
    let expires = add.expires.as_deref();
    let expires = expires
        .map(|text| self::expires("--expires", text))
        .transpose()?;
    let entry = terms(&add.terms, &name, secret, expires)?;
    Ok((name, entry, made))
}

/// A kite's entry, by the flags that `add` and `invite` have in common.
pub(super) fn terms(
    terms: &TermsArgs,
    name: &KiteName,
    secret: Secret,
    expires: Option<u64>,
) -> Result<Entry, ConfigError> {
    Ok(Entry::new(&Grant {
        pattern: name.clone(),
        backends: 1,
        protocols: config::parse_protocols("--protocols", &terms.protocols)?,
        secret,
        proof: match terms.require_proof {
            true => ProofRule::Required,
            false => ProofRule::Optional,
        },
        limits: Limits {
            quota: terms.quota,
            connections: terms.connections,
            period_days: terms.period_days,
            streams: terms.streams,
            streams_per_visitor: terms.streams_per_visitor,
            rate: terms.rate,
            rate_per_visitor: terms.rate_per_visitor,
            visitors: terms.visitors,
        },
        expires,
    }))
}

/// Most days ahead that a kite may end: a century.
const MAX_DAYS: u32 = 36_500;

/// `30d`, or a date.
pub(super) fn expires(place: &str, text: &str) -> Result<u64, ConfigError> {
    let days = text
        .strip_suffix('d')
        .and_then(|n| n.parse::<u32>().ok().filter(|days| *days <= MAX_DAYS));
    match days {
        Some(days) => Ok(now_unix() + u64::from(days) * DAY),
        None => end_of_day(text).map_err(|e| {
            config::problem(
                Code::BadValue,
                place,
                e,
                "write a date, or a number of days such as 30d",
            )
        }),
    }
}

/// One line for one kite.
fn shown(kite: &Listed) -> String {
    let mut words = vec![kite.name.clone(), kite.protocols.join(",")];
    let Limits {
        quota,
        connections,
        period_days,
        ..
    } = &kite.limits;
    let Used {
        bytes,
        connections: visits,
        ..
    } = kite.used;
    let of = |all: Option<String>| all.map(|all| format!(" of {all}")).unwrap_or_default();
    let mut used = format!(
        "used {}{}, {visits}{} connections",
        super::limits::Size(bytes),
        of(quota.map(|size| size.to_string())),
        of(connections.map(|n| n.to_string())),
    );
    if let Some(days) = period_days {
        used += &format!(" in {days} days");
    }
    words.push(used);
    words.extend(kite.expires.as_ref().map(|day| format!("until {day}")));
    if kite.configured {
        words.push("from the configuration file".to_owned());
    }
    words.extend(kite.blocked.then(|| "BLOCKED".to_owned()));
    words.extend(kite.ended.as_ref().map(|why| format!("ENDED: {why}")));
    let flies = |tunnels| match (tunnels, kite.seen) {
        (0, _) if kite.blocked || kite.ended.is_some() => None,
        (0, true) => Some("DOWN".to_owned()),
        (0, false) => Some("not seen since the start".to_owned()),
        (1, _) => Some("flies by 1 tunnel".to_owned()),
        (n, _) => Some(format!("flies by {n} tunnels")),
    };
    words.extend(kite.tunnels.and_then(flies));
    words.join("; ")
}
