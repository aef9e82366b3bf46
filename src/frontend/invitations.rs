//! `kite frontend invite` and `kite frontend invitations`: through the control socket if the frontend runs, else in
//! its book.

use std::io::Write;
use std::path::Path;

use super::invited::{Invited, Listed};
use super::kites::{self, Answer, KitesError, Order};
use super::limits::DAY;
use super::{UNKNOWN_NAME, pinned_address};
use crate::cli::{InvitationsArgs, InvitationsCommand, InviteArgs};
use crate::clock::now_unix;
use crate::code::Code;
use crate::config::{self, ConfigError, PublicSide};
use crate::control::{self, AskError};
use crate::dial::{FrontendAddr, Trust};
use crate::invitation::{Invitation, Token, new_secret};
use crate::observe::status::Role;
use crate::tls::TlsServer;

/// Longest life of an invitation, in days.
const MAX_DAYS: u64 = 90;
/// The port that most networks let through.
const USUAL_PORT: u16 = 443;

/// Makes an invitation. The line goes to `out`, the rest is said to `aside`.
pub async fn invite(
    args: &InviteArgs,
    out: &mut (dyn Write + Send),
    aside: &mut (dyn Write + Send),
) -> Result<(), KitesError> {
    let state_dir = config::frontend_state_dir(args.config.as_deref(), args.state_dir.as_deref())?;
    let kite = config::parse_name("NAME", &args.name)?;
    let (life, shown) = life(&args.expires)?;
    let last_day = args.last_day.as_deref();
    let last_day = last_day
        .map(|text| kites::expires("--last-day", text))
        .transpose()?;
    // Its place is taken by the one that the holder makes.
    let nobodys = new_secret().ok_or_else(|| {
        config::problem(Code::Broken, "NAME", "no secret can be made", "try again")
    })?;
    let entry = kites::terms(&args.terms, &kite, nobodys, last_day)?;
    let frontend = address(args.config.as_deref(), &state_dir, args.onion).await?;

    let token = Token::new();
    let order = Order::Invite {
        id: token.id(),
        invited: Box::new(Invited::new(&kite, &token, entry, now_unix() + life)),
    };
    order.place(&state_dir).await?;
    let invitation = Invitation {
        frontend,
        kite,
        token,
    };
    let Invitation { frontend, kite, .. } = &invitation;
    writeln!(
        aside,
        "This line lets whoever holds it fly {kite} at {frontend}: once, and for {shown} from now.\n\
         Hand it to the node's operator in a way that others cannot read. They run: kite backend join"
    )?;
    if kite.is_wildcard() {
        writeln!(
            aside,
            "Mind: {kite} is not one name. Whoever holds the line may fly any name below it that nobody else flies, one after \
             the other, and visitors will take them for yours."
        )?;
    }
    kites::mind_the_blocked(kite.as_str(), &state_dir, aside).await?;
    aside.flush()?;
    writeln!(out, "{}", *invitation.line())?;
    out.flush()?;
    Ok(())
}

/// Lists invitations, or takes one back.
pub async fn run(
    args: &InvitationsArgs,
    out: &mut (dyn Write + Send),
    aside: &mut (dyn Write + Send),
) -> Result<(), KitesError> {
    let state_dir = config::frontend_state_dir(args.config.as_deref(), args.state_dir.as_deref())?;
    match &args.command {
        InvitationsCommand::Revoke { name } => {
            let name = config::parse_name("NAME", name)?.to_string();
            let order = Order::Revoke { name: name.clone() };
            order.place(&state_dir).await?;
            writeln!(aside, "nobody is invited to fly {name} any more")?;
        }
        InvitationsCommand::List { json } => {
            let all = match Order::Invitations.place(&state_dir).await? {
                (Answer::Invitations(all), _) => all,
                _ => Vec::new(),
            };
            match json {
                true => {
                    let text = serde_json::to_string_pretty(&all).unwrap_or_default();
                    writeln!(out, "{text}")?;
                }
                false => {
                    let now = now_unix();
                    for invitation in &all {
                        writeln!(out, "{}", line(invitation, now))?;
                    }
                    if all.is_empty() {
                        writeln!(aside, "no invitations; make one: kite frontend invite NAME")?;
                    }
                }
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// One line for one invitation.
fn line(of: &Listed, now_unix: u64) -> String {
    let left = of.expires.saturating_sub(now_unix);
    let left = match of.state.as_str() {
        "open" if left >= 2 * DAY => format!(", for {} more days", left / DAY),
        "open" => format!(", for {} more hours", left.div_ceil(3600)),
        _ => String::new(),
    };
    format!("{}; {}{left}", of.name, of.state)
}

/// `7d` or `12h`, in seconds; and in words.
fn life(text: &str) -> Result<(u64, String), ConfigError> {
    let number = |unit| text.strip_suffix(unit)?.parse::<u64>().ok();
    let (seconds, shown) = match (number('d'), number('h')) {
        (Some(n), _) => (n.saturating_mul(DAY), format!("{n} days")),
        (None, Some(n)) => (n.saturating_mul(3600), format!("{n} hours")),
        (None, None) => (0, String::new()),
    };
    if !(3600..=MAX_DAYS * DAY).contains(&seconds) {
        return Err(config::problem(
            Code::BadValue,
            "--expires",
            format!("'{text}' is no time that an invitation can be good for"),
            format!("write days or hours, such as 7d or 12h, up to {MAX_DAYS}d"),
        ));
    }
    Ok((seconds, shown))
}

/// Where the holder of an invitation is to go: what the running frontend says of itself, else what its file says.
async fn address(
    config: Option<&Path>,
    state_dir: &Path,
    onion: bool,
) -> Result<FrontendAddr, KitesError> {
    let socket = Role::Frontend.socket(state_dir);
    let (all, runs) = match control::status(&socket).await {
        Ok(status) => (status.addresses, true),
        Err(AskError::Nobody(_)) => (at_rest(config, state_dir)?, false),
        Err(e) => return Err(e.into()),
    };
    Ok(choose(&all, onion, runs)?)
}

/// The addresses of a frontend that does not run. Where its onion service is it knows when it runs.
fn at_rest(config: Option<&Path>, state_dir: &Path) -> Result<Vec<String>, KitesError> {
    let side = PublicSide::load(config)?;
    let key = |e: &dyn std::fmt::Display| {
        config::problem(
            Code::StateDir,
            "--state-dir",
            e.to_string(),
            "run this as the user that runs the frontend",
        )
    };
    std::fs::create_dir_all(state_dir).map_err(|e| key(&e))?;
    let pin = TlsServer::load_or_create(state_dir)
        .map_err(|e| key(&e))?
        .pin();
    let shared = side.listen.iter().filter(|listen| listen.kite.is_none());
    Ok(shared
        .map(|listen| {
            let port = listen.port.unwrap_or(listen.address.port());
            pinned_address(side.name.as_deref(), listen.address, port, &pin)
        })
        .collect())
}

/// One that can be dialled from elsewhere: on the usual port, if there is one.
fn choose(all: &[String], onion: bool, runs: bool) -> Result<FrontendAddr, ConfigError> {
    let nameless = all.iter().any(|text| text.starts_with(UNKNOWN_NAME));
    let known = all.iter().filter(|text| !text.starts_with(UNKNOWN_NAME));
    let known = known.filter_map(|text| text.parse::<FrontendAddr>().ok());
    let (hidden, public): (Vec<_>, Vec<_>) = known.partition(FrontendAddr::is_onion);
    let mut public: Vec<_> = public
        .into_iter()
        .filter(|address| matches!(address.trust(), Trust::Pin(_)))
        .collect();
    public.sort_by_key(|address| address.port() != USUAL_PORT);
    let chosen = match onion {
        true => hidden.into_iter().next(),
        false => public.into_iter().chain(hidden).next(),
    };
    chosen.ok_or_else(|| match (onion, runs, nameless) {
        (true, true, _) => config::problem(
            Code::NothingToDo,
            "--onion",
            "the frontend has no onion address, or it is not published yet",
            "start it with --onion, or onion = true, and wait for `backends dial …onion` in its log",
        ),
        (true, false, _) => config::problem(
            Code::NothingToDo,
            "--onion",
            "the frontend does not run, and knows its onion address only when it does",
            "start it, and try again",
        ),
        (false, _, true) => config::problem(
            Code::NothingToDo,
            "name",
            "it is not known under which name or address this frontend can be reached",
            "set name = \"alice.example\" in its file (or --name), and restart it if it runs",
        ),
        (false, true, false) => config::problem(
            Code::NothingToDo,
            "listen",
            "the frontend takes backends on no public port",
            "add an address without a kite of its own to `listen`",
        ),
        (false, false, false) => config::problem(
            Code::NothingToDo,
            "--config",
            "the frontend does not run, and no file says where it will listen",
            "start it, or give --config FILE",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443";

    #[test]
    fn the_address_that_most_can_reach_is_chosen() {
        let at = |place: &str| format!("{place}#{PIN}");
        let chosen = |all: &[String], onion| choose(all, onion, true).map(|a| a.to_string());
        let all = [
            at("alice.example:80"),
            at("alice.example:443"),
            ONION.to_owned(),
        ];
        assert_eq!(chosen(&all, false).expect("one"), at("alice.example:443"));
        assert_eq!(chosen(&all, true).expect("one"), ONION);
        let nameless = [at(&format!("{UNKNOWN_NAME}:443")), ONION.to_owned()];
        assert_eq!(chosen(&nameless, false).expect("one"), ONION);
        let why = |all: &[String], onion, runs| {
            let error = choose(all, onion, runs).expect_err("none");
            error.to_string()
        };
        assert!(why(&nameless[..1], false, true).starts_with("name: "));
        assert!(why(&all[..2], true, true).starts_with("--onion: "));
        assert!(why(&all[..2], true, false).contains("does not run"));
        assert!(why(&[], false, false).starts_with("--config: "));
        assert!(why(&[], false, true).starts_with("listen: "));
    }

    #[test]
    fn a_life_has_bounds() {
        assert_eq!(life("7d").expect("a week").0, 7 * DAY);
        assert_eq!(life("12h").expect("a day").0, DAY / 2);
        for bad in [
            "",
            "7",
            "0d",
            "0h",
            "91d",
            "d",
            "-1d",
            "99999999999999999999d",
        ] {
            assert!(life(bad).is_err(), "{bad}");
        }
    }
}
