//! The questions of `kite backend` where there is no configuration: where to, as whom, how, and to which node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::ask::{self, Asker, NoAnswer, yes};
use crate::backend::join::{self, Join};
use crate::backend::probe::{Seen, WEB_REMEDY};
use crate::code::Code;
use crate::config::draft::{BackendDraft, Way};
use crate::config::{ConfigError, places};
use crate::dial::{FrontendAddr, OriginAddr, Trust};
use crate::invitation::{Invitation, new_secret};
use crate::kite::{KiteName, Protocol, Secret};
use crate::sniff::TubId;
use crate::sniff::foolscap::TUB_ID_LEN;
use crate::tahoe::dir::NodeDir;
use crate::tls::put_secret;

/// Where nodes usually are, besides ~/.tahoe.
const NODES: &str = "/var/lib/tahoe-lafs";
/// Most nodes that are offered.
const MAX_NODES: usize = 9;
/// A node's certificate with its key, in its directory.
const NODE_KEY: &str = "private/node.pem";
/// Where a SOCKS port is looked for, beginning with the usual one.
const SOCKS_PORTS: std::ops::Range<u16> = 9150..9170;

/// What the questions need to know of the world.
pub struct World<'a> {
    /// The directory for the files.
    pub dir: PathBuf,
    /// Directories of nodes that were found.
    pub nodes: Vec<PathBuf>,
    /// Looks at an origin, as the backend will.
    pub look: &'a mut dyn FnMut(&OriginAddr, &KiteName) -> Seen,
    /// Whether nobody else listens there.
    pub is_free: &'a mut dyn FnMut(SocketAddr) -> bool,
}

/// What came of the questions. Nothing has been written.
#[derive(Debug)]
pub struct Answers {
    /// How the kite comes to its secret.
    pub door: Door,
    /// The file.
    pub file: PathBuf,
    /// The node's directory, if one was named.
    pub node: Option<PathBuf>,
}

/// How a kite comes to its secret.
#[derive(Debug)]
pub enum Door {
    /// By an invitation.
    Invitation(Box<Join>),
    /// The operators have agreed on one, or will; or there is no need to.
    Known(Box<Known>),
}

/// A kite that is known to the frontend without an invitation.
#[derive(Debug)]
pub struct Known {
    draft: BackendDraft,
    by: By,
}

/// What a frontend knows a kite by.
#[derive(Debug)]
enum By {
    /// A secret that the operators have agreed on.
    Agreed(Secret),
    /// A secret that was made here, and that the frontend's operator does not know.
    New(Secret),
    /// The node's own key: the kite is called by its tub, in this domain.
    Tub(KiteName),
}

/// What was pasted first.
enum Pasted {
    Invitation(Invitation),
    Address(FrontendAddr),
}

/// Where nodes usually are that are there.
pub fn usual_nodes() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".tahoe"));
    let system = std::fs::read_dir(NODES).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = home
        .into_iter()
        .chain(system.map(|entry| entry.path()))
        .filter(|dir| NodeDir::read(dir).is_ok())
        .collect();
    all.sort();
    all.truncate(MAX_NODES);
    all
}

/// Asks all of it, and shows what would be written.
pub fn ask(asker: &mut dyn Asker, world: &mut World<'_>) -> Result<Answers, NoAnswer> {
    let file = world.dir.join(places::BACKEND);
    ask::opening(asker, &file)?;
    let pasted = frontend(asker)?;
    let (address, kite, by, invitation) = match pasted {
        Pasted::Invitation(i) => (i.frontend.clone(), i.kite.clone(), None, Some(i)),
        Pasted::Address(address) => match domain(asker)? {
            Some(domain) => (address, domain.clone(), Some(By::Tub(domain)), None),
            None => {
                let kite = kite_name(asker)?;
                (address, kite, Some(secret(asker)?), None)
            }
        },
    };
    let via_tor = tor(asker, &address)?;
    let is_open = matches!(by, Some(By::Tub(_)));
    let (origin, tub, node) = node(asker, world, &kite, is_open)?;
    // What the node's own connections need to go through the same Tor.
    let socks = SOCKS_PORTS
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|at| via_tor && (world.is_free)(*at));
    let way = Way {
        via_tor,
        socks,
        ..Way::default()
    };
    let dir = world.dir.clone();
    let door = match (invitation, by) {
        (Some(invitation), _) => {
            let join = Join::new(invitation, dir, way, origin, tub);
            asker.say(&shown(&file, &join.text(Protocol::Foolscap)))?;
            Door::Invitation(Box::new(join))
        }
        (None, by) => {
            let by = by.ok_or(NoAnswer::Ended)?;
            let (kite, secret_file) = match (&by, tub, &node) {
                (By::Tub(domain), Some(tub), Some(node)) => (
                    called_by(tub, domain).ok_or(NoAnswer::Ended)?,
                    node.join(NODE_KEY).to_string_lossy().into_owned(),
                ),
                _ => {
                    let file = format!("{}.secret", kite.as_str().replace('*', "any"));
                    (kite, file)
                }
            };
            let draft = BackendDraft {
                way,
                frontend: address,
                secret_file,
                kite,
                protocol: Protocol::Foolscap,
                origin,
                tub,
                by_tub: is_open,
            };
            asker.say(&shown(&file, &draft.whole()))?;
            Door::Known(Box::new(Known { draft, by }))
        }
    };
    let end = match &door {
        Door::Invitation(_) => "Write it, with a new secret beside it, and take up the invitation?",
        Door::Known(_) if is_open => "Write it?",
        Door::Known(_) => "Write it, with the secret beside it?",
    };
    match yes(asker, end, true)? {
        true => Ok(Answers { door, file, node }),
        false => Err(NoAnswer::Declined),
    }
}

/// The file as it would be.
pub(super) fn shown(file: &Path, text: &str) -> String {
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!("\n{}:\n{indented}", file.display())
}

fn frontend(asker: &mut dyn Asker) -> Result<Pasted, NoAnswer> {
    let mut check = |text: &str| {
        if text.starts_with("kite-invite") {
            let read = text.parse::<Invitation>();
            return read
                .map(Pasted::Invitation)
                .map_err(|e| format!("This is no invitation that can be used: {e}."));
        }
        let address: FrontendAddr = text
            .parse()
            .map_err(|e| format!("This is no address: {e}."))?;
        match address.trust() {
            Trust::Pin(_) | Trust::Onion => Ok(Pasted::Address(address)),
            Trust::Plain => Err(
                "With plain:// everyone on the way could take the kite over. Ask the frontend's operator for the \
                 address with its pin."
                    .to_owned(),
            ),
            Trust::Roots | Trust::Names(_) => Err(
                "It has no pin. Ask the frontend's operator for the address that `kite frontend` prints: \
                 host:port#sha256:…"
                    .to_owned(),
            ),
        }
    };
    let question = "The invitation from the frontend's operator, or the frontend's address (host:port#sha256:PIN or \
                    NAME.onion:443):";
    let pasted = ask::ask(asker, question, None, &mut check)?;
    if let Pasted::Invitation(Invitation { frontend, kite, .. }) = &pasted {
        asker.say(&format!("  It lets you fly {kite} at {frontend}."))?;
    }
    Ok(pasted)
}

/// The domain of an open frontend, if it is one.
fn domain(asker: &mut dyn Asker) -> Result<Option<KiteName>, NoAnswer> {
    let question =
        "Is it an open frontend, which takes any node that proves itself by its own key?";
    if !yes(asker, question, false)? {
        return Ok(None);
    }
    let mut check = |text: &str| match text.parse::<KiteName>() {
        // As long as the name will be.
        Ok(domain) if called_by(TubId::from_random([0; TUB_ID_LEN]), &domain).is_some() => {
            Ok(domain)
        }
        Ok(_) => {
            Err("Write the domain itself, without '*'; a node's TubID is put before it.".to_owned())
        }
        Err(e) => Err(format!("This is no domain: {e}.")),
    };
    let question =
        "The domain in which it takes nodes, as its operator says (such as alice.example):";
    ask::ask(asker, question, None, &mut check).map(Some)
}

/// The kite of a node that proves itself in this domain.
fn called_by(tub: TubId, domain: &KiteName) -> Option<KiteName> {
    format!("{}.{domain}", tub.as_str()).parse().ok()
}

fn kite_name(asker: &mut dyn Asker) -> Result<KiteName, NoAnswer> {
    let mut check = |text: &str| match text.parse::<KiteName>() {
        Ok(name) if name.is_wildcard() => {
            Err("A node has one name; write it without '*'.".to_owned())
        }
        Ok(name) => Ok(name),
        Err(e) => Err(format!("This is no kite's name: {e}.")),
    };
    let question = "The kite's name, as its operator knows it (such as tahoebob.alice.example):";
    ask::ask(asker, question, None, &mut check)
}

/// The secret, which may be new.
fn secret(asker: &mut dyn Asker) -> Result<By, NoAnswer> {
    if !yes(
        asker,
        "Has the frontend's operator given you a secret for it?",
        true,
    )? {
        let new = new_secret().ok_or(NoAnswer::Ended)?;
        return Ok(By::New(new));
    }
    let mut check = |text: &str| {
        Secret::new(text.as_bytes())
            .map(By::Agreed)
            .ok_or_else(|| "It is empty, or longer than a secret can be.".to_owned())
    };
    ask::ask_hidden(asker, "Then paste it (it is not shown):", &mut check)
}

fn tor(asker: &mut dyn Asker, to: &FrontendAddr) -> Result<bool, NoAnswer> {
    if to.is_onion() {
        asker.say("An onion address is reached through Tor, so all connections go through Tor.")?;
        return Ok(true);
    }
    join::ask_tor(asker)
}

/// Which node: its origin, its TubID, and its directory if it has one here.
fn node(
    asker: &mut dyn Asker,
    world: &mut World<'_>,
    kite: &KiteName,
    is_open: bool,
) -> Result<(OriginAddr, Option<TubId>, Option<PathBuf>), NoAnswer> {
    let World { nodes, look, .. } = world;
    for (i, dir) in nodes.iter().enumerate() {
        asker.say(&format!("  {}: the node in {}", i + 1, dir.display()))?;
    }
    let (question, usual) = match nodes.is_empty() {
        true if is_open => ("The node's directory, where its key is:", None),
        false if is_open => ("Which node? A number, or another directory:", Some("1")),
        true => (
            "The node's directory, or the address of its foolscap port (such as 127.0.0.1:49293):",
            None,
        ),
        false => (
            "Which node? A number, another directory, or the address of its foolscap port:",
            Some("1"),
        ),
    };
    loop {
        let mut check = |text: &str| {
            let chosen = chosen(text, nodes)?;
            match (&chosen, is_open) {
                ((_, Some(_), Some(_)), _) | (_, false) => Ok(chosen),
                ((_, None, Some(dir)), true) => Err(format!(
                    "{}: it has no my_nodeid, by which the kite would be called. Start the node once, and answer again.",
                    dir.display()
                )),
                ((_, _, None), true) => Err(
                    "An open frontend takes the node by its key: name the node's directory."
                        .to_owned(),
                ),
            }
        };
        let (origin, tub, dir) = ask::ask(asker, question, usual, &mut check)?;
        match look(&origin, kite) {
            Seen::Foolscap => asker.say(&format!("  {origin} answers as a foolscap port."))?,
            Seen::Web => {
                asker.say(&format!("  {origin} is a web server. {WEB_REMEDY}."))?;
                continue;
            }
            Seen::Unknown => {
                asker.say(&format!(
                    "  {origin} does not answer as a foolscap port does; visitors are refused until it does."
                ))?;
                if !yes(asker, "Take it all the same?", false)? {
                    continue;
                }
            }
            Seen::Down(e) => {
                asker.say(&format!(
                    "  {e}; {}. Visitors are refused until it answers.",
                    e.hint()
                ))?;
                if !yes(asker, "Take it all the same?", false)? {
                    continue;
                }
            }
        }
        return Ok((origin, tub, dir));
    }
}

type Chosen = (OriginAddr, Option<TubId>, Option<PathBuf>);

/// A number, a directory or an address.
fn chosen(text: &str, nodes: &[PathBuf]) -> Result<Chosen, String> {
    let numbered = || nodes.get(text.parse::<usize>().ok()?.checked_sub(1)?);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(text.strip_prefix("~/")?));
    let dir = match numbered() {
        Some(dir) => Some(dir.clone()),
        None => home().or_else(|| text.starts_with(['/', '.']).then(|| PathBuf::from(text))),
    };
    let Some(dir) = dir else {
        let origin = OriginAddr::parse(text, false).map_err(|e| format!("{e}."))?;
        return Ok((origin, None, None));
    };
    let node = NodeDir::read(&dir).map_err(|e| format!("{e}."))?;
    let at = node.node.tub_address().ok_or_else(|| {
        format!(
            "{}: its tahoe.cfg has no tub.port on an address of this machine. Set tub.port = \
             tcp:49293:interface=127.0.0.1 under [node], restart the node, and answer again.",
            dir.display()
        )
    })?;
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    Ok((OriginAddr::Tcp(at), node.node.tub, Some(dir)))
}

impl Known {
    /// Writes the secret and the file. All of it, or nothing.
    pub fn write(&self, dir: &Path) -> Result<String, ConfigError> {
        let problem = |e: &dyn std::fmt::Display| {
            crate::config::problem(
                Code::NotWritten,
                "backend.toml",
                e.to_string(),
                "choose another directory with --to, or mend it",
            )
        };
        let BackendDraft {
            secret_file, kite, ..
        } = &self.draft;
        let (secret, file) = (dir.join(secret_file), dir.join(places::BACKEND));
        let text = match &self.by {
            By::Agreed(text) | By::New(text) => Some(text),
            By::Tub(_) => None,
        };
        let new = text.map(|_| &secret).into_iter().chain([&file]);
        if let Some(there) = new.into_iter().find(|path| path.exists()) {
            return Err(problem(&format!(
                "{} is there already, and stays as it is",
                there.display()
            )));
        }
        if let Some(text) = text {
            let text = Zeroizing::new([text.expose(), b"\n"].concat());
            put_secret(dir, secret_file, &text).map_err(|e| problem(&e))?;
        }
        if let Err(e) = put_secret(dir, places::BACKEND, self.draft.whole().as_bytes()) {
            if text.is_some() {
                let _ = std::fs::remove_file(&secret);
            }
            return Err(problem(&e));
        }
        Ok(match self.by {
            By::New(_) => format!(
                "A new secret is in {}. The frontend's operator needs it: kite frontend kites add {kite} --secret-file FILE",
                secret.display()
            ),
            By::Agreed(_) => format!("The secret is in {}.", secret.display()),
            By::Tub(_) => format!(
                "The kite is {kite}. Nobody needs to be told: the node's key, in {}, proves it.",
                secret.display()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::OriginError;
    use crate::invitation::Token;
    use crate::wizard::script::Script;

    const PIN: &str = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443";

    fn run(
        answers: &[&str],
        seen: &[Seen],
        nodes: Vec<PathBuf>,
    ) -> (Script, Result<Answers, NoAnswer>) {
        let mut script = Script::new(answers);
        let mut seen = seen.iter().cloned();
        let mut world = World {
            dir: "/conf/kite".into(),
            nodes,
            look: &mut |_, _| seen.next().unwrap_or(Seen::Foolscap),
            is_free: &mut |at| at.port() != 9150,
        };
        let got = ask(&mut script, &mut world);
        (script, got)
    }

    fn invitation(frontend: &str) -> String {
        let made = Invitation {
            frontend: frontend.parse().expect("an address"),
            kite: "bob.alice.example".parse().expect("a name"),
            token: Token::new(),
        };
        made.line().to_string()
    }

    #[test]
    fn an_invitation_says_almost_all() {
        let line = invitation(&format!("alice.example:443#{PIN}"));
        let (script, got) = run(&[&line, "", "127.0.0.1:49293", ""], &[], vec![]);
        let got = got.expect("answers");
        assert!(script.is_through());
        assert_eq!(got.file, Path::new("/conf/kite/backend.toml"));
        let Door::Invitation(join) = got.door else {
            panic!("an invitation")
        };
        assert!(join.uses_tor());
        for shown in [
            "enabled = true",
            "socks_listen = \"127.0.0.1:9151\"",
            "name = \"bob.alice.example\"",
            "origin = \"127.0.0.1:49293\"",
            PIN,
        ] {
            assert!(script.heard.contains(shown), "{shown}\n{}", script.heard);
        }
        assert!(!script.heard.contains(&line));
    }

    #[test]
    fn each_wrong_answer_is_explained_and_asked_again() {
        let good = format!("alice.example:443#{PIN}");
        let answers = [
            "alice.example:443",
            "plain://alice.example:80",
            "kite-invite1:xyz",
            "alice.example",
            good.as_str(),
            "n",
            "*.alice.example",
            "a..b",
            "bob.alice.example",
            "y",
            "",
            "hunter2",
            "perhaps",
            "no",
            "storage.example:1",
            "192.0.2.1:80",
            "/nowhere",
            "127.0.0.1:3456",
            "127.0.0.1:49293",
            "n",
            "127.0.0.1:49293",
            "y",
            "y",
        ];
        let down = OriginAddr::parse("127.0.0.1:49293", false).expect("an address");
        let seen = [
            Seen::Web,
            Seen::Unknown,
            Seen::Down(OriginError::Refused(down)),
        ];
        let (script, got) = run(&answers, &seen, vec![]);
        let got = got.expect("answers");
        assert!(script.is_through());
        for why in [
            "It has no pin",
            "everyone on the way",
            "damaged",
            "no port",
            "without '*'",
            "It is empty",
            "Answer yes or no",
            "sees this machine's address",
            "needs a look-up",
            "not on this machine",
            "No such file or directory",
            "must never be public",
            "does not answer as a foolscap port",
        ] {
            assert!(script.heard.contains(why), "{why}\n{}", script.heard);
        }
        let Door::Known(known) = got.door else {
            panic!("a secret")
        };
        assert!(!known.draft.way.via_tor && known.draft.way.socks.is_none());
        assert!(matches!(&known.by, By::Agreed(secret) if secret.expose() == b"hunter2"));
        assert!(!script.heard.contains("hunter2"));
    }

    #[test]
    fn onion_means_tor_and_no_means_nothing() {
        let (script, got) = run(
            &[ONION, "", "bob.alice.example", "n", "127.0.0.1:1", "n"],
            &[],
            vec![],
        );
        assert!(matches!(got, Err(NoAnswer::Declined)));
        assert!(script.heard.contains("reached through Tor"));
        for cut in 0..5 {
            let answers = [ONION, "", "bob.alice.example", "n", "127.0.0.1:1"];
            let (_, got) = run(&answers[..cut], &[], vec![]);
            assert!(matches!(got, Err(NoAnswer::Ended)), "{cut}");
        }
    }

    #[test]
    fn a_node_is_found_by_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("tahoe-client.tac"), "").expect("a file");
        std::fs::write(
            dir.path().join("my_nodeid"),
            "rznjxrmn666ovyilykucaws7ap26djwf\n",
        )
        .expect("a file");
        let cfg = dir.path().join("tahoe.cfg");
        std::fs::write(&cfg, "[node]\ntub.port = disabled\n").expect("a file");
        let nodes = vec![dir.path().to_path_buf()];
        assert!(
            chosen("1", &nodes)
                .expect_err("no port")
                .contains("tub.port")
        );
        std::fs::write(&cfg, "[node]\ntub.port = tcp:49293\n").expect("a file");
        let line = invitation(ONION);
        let (script, got) = run(&[&line, "", ""], &[], nodes.clone());
        assert_eq!(got.expect("answers").node, Some(nodes[0].clone()));
        assert!(script.heard.contains("origin = \"127.0.0.1:49293\""));
        assert!(
            script
                .heard
                .contains("tub_id = \"rznjxrmn666ovyilykucaws7ap26djwf\"")
        );
    }

    #[test]
    fn at_an_open_frontend_the_nodes_key_is_all() {
        let tub = "rznjxrmn666ovyilykucaws7ap26djwf";
        let (node, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(node.path().join("tahoe-client.tac"), "").unwrap();
        let cfg = node.path().join("tahoe.cfg");
        std::fs::write(&cfg, "[node]\ntub.port = tcp:49293\n").unwrap();
        let nodes = vec![node.path().to_path_buf()];
        let answers = [
            ONION,
            "y",
            "*.alice.example",
            "a..b",
            "alice.example",
            "127.0.0.1:49293",
            "1",
            "y",
        ];
        let (script, got) = run(&answers, &[], nodes.clone());
        assert!(matches!(got, Err(NoAnswer::Ended)), "it has no tub yet");
        for why in [
            "without '*'",
            "no domain",
            "name the node's directory",
            "Start the node once",
        ] {
            assert!(script.heard.contains(why), "{why}\n{}", script.heard);
        }
        std::fs::write(node.path().join("my_nodeid"), format!("{tub}\n")).unwrap();
        let (script, got) = run(&[ONION, "y", "alice.example", "", ""], &[], nodes);
        let got = got.expect("answers");
        assert!(script.is_through());
        let Door::Known(known) = got.door else {
            panic!("no invitation")
        };
        let key = node.path().join(NODE_KEY);
        for shown in [
            format!("name = \"{tub}.alice.example\""),
            "proof = \"tub\"".to_owned(),
            format!("secret_file = \"{}\"", key.display()),
        ] {
            assert!(script.heard.contains(&shown), "{shown}\n{}", script.heard);
        }
        let said = known.write(out.path()).expect("written");
        assert!(
            said.contains(&format!("The kite is {tub}.alice.example.")),
            "{said}"
        );
        let files = std::fs::read_dir(out.path()).unwrap().count();
        assert_eq!(files, 1, "the key stays where it is");
    }

    #[test]
    fn what_is_there_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_, got) = run(
            &[ONION, "", "bob.alice.example", "n", "127.0.0.1:1", "y"],
            &[],
            vec![],
        );
        let Door::Known(known) = got.expect("answers").door else {
            panic!("a secret")
        };
        let there = dir.path().join(places::BACKEND);
        std::fs::write(&there, "mine").expect("a file");
        assert!(known.write(dir.path()).is_err());
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("a directory").count(),
            1
        );
        std::fs::remove_file(&there).expect("a file");
        let said = known.write(dir.path()).expect("written");
        assert!(said.contains("kites add bob.alice.example"));
    }
}
