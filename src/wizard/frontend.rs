//! The questions of `kite frontend` where there is no configuration: under which name, and on which ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::ask::{self, Asker, NoAnswer, yes};
use super::backend::shown;
use crate::config::places;
use crate::kite::KiteName;

/// The ports that visitors and backends are used to.
const USUAL_PORTS: &str = "443, 80";
/// Most ports that are taken.
const MAX_PORTS: usize = 8;

/// What the questions need to know of the world.
pub struct World<'a> {
    /// The directory for the file.
    pub dir: PathBuf,
    /// Where state is kept unless another place is named.
    pub state_dir: PathBuf,
    /// Whether a port can be listened on, or what to do about it.
    pub bind: &'a mut dyn FnMut(SocketAddr) -> Result<(), String>,
}

/// What came of the questions. Nothing has been written.
#[derive(Debug)]
pub struct Answers {
    /// The public name, or address.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// What is to be in it.
    pub text: String,
    /// Where the key and the book are to be.
    pub state_dir: PathBuf,
}

/// Asks all of it, and shows what would be written.
pub fn ask(asker: &mut dyn Asker, world: &mut World<'_>) -> Result<Answers, NoAnswer> {
    let file = world.dir.join(places::FRONTEND);
    ask::opening(asker, &file)?;
    let name = public_name(asker)?;
    let ports = ports(asker, world)?;
    let state_dir = state_dir(asker, world)?;
    let onion = yes(
        asker,
        "Take backends through a Tor onion service, too? (They need no exit relay then.)",
        false,
    )?;
    let listen: Vec<String> = ports.iter().map(|at| format!("\"{at}\"")).collect();
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = format!(
        "# Read by `kite frontend`. Who may fly is in the book: kite frontend kites, kite frontend invite.\n\
         name = {}\nlisten = [{}]\nstate_dir = {}\n",
        quoted(&name),
        listen.join(", "),
        quoted(&state_dir.to_string_lossy())
    );
    if onion {
        text += "onion = true\n";
    }
    asker.say(&shown(&file, &text))?;
    match yes(asker, "Write it, and make this frontend's key?", true)? {
        true => Ok(Answers {
            name,
            file,
            text,
            state_dir,
        }),
        false => Err(NoAnswer::Declined),
    }
}

fn public_name(asker: &mut dyn Asker) -> Result<String, NoAnswer> {
    let mut check = |text: &str| {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return match ip {
                ip if ip.is_unspecified() => {
                    Err("This is no address that can be dialled.".to_owned())
                }
                IpAddr::V4(ip) => Ok(ip.to_string()),
                IpAddr::V6(ip) => Ok(format!("[{ip}]")),
            };
        }
        match text.parse::<KiteName>() {
            Ok(name) if name.is_wildcard() => {
                Err("Write the name of this machine, without '*'; kites get names of their own.".to_owned())
            }
            Ok(name) if !name.as_str().contains('.') => {
                Err("This name is known in no other network; write the whole one, such as alice.example.".to_owned())
            }
            Ok(name) => Ok(name.to_string()),
            Err(e) => Err(format!("This is no name of a host: {e}.")),
        }
    };
    let question = "Under which name do others reach this machine? (such as alice.example)";
    ask::ask(asker, question, None, &mut check)
}

fn ports(asker: &mut dyn Asker, world: &mut World<'_>) -> Result<Vec<SocketAddr>, NoAnswer> {
    let bind = &mut world.bind;
    let mut check = |text: &str| {
        let words: Vec<&str> = text
            .split([',', ' '])
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .collect();
        if words.is_empty() || words.len() > MAX_PORTS {
            return Err(format!(
                "Write one to {MAX_PORTS} ports, such as {USUAL_PORTS}."
            ));
        }
        let mut ports = Vec::new();
        for word in words {
            let port = word.parse::<u16>().ok().filter(|port| *port != 0);
            let port = port
                .ok_or_else(|| format!("'{word}' is no port; write a number from 1 to 65535."))?;
            let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            if ports.contains(&at) {
                return Err(format!("{port} stands there twice."));
            }
            bind(at).map_err(|why| format!("Port {port}: {why}."))?;
            ports.push(at);
        }
        Ok(ports)
    };
    let question = "On which ports? Backends and visitors come to the same ones; most networks let 443 through, and \
                    Tahoe's visitors come to 80.";
    ask::ask(asker, question, Some(USUAL_PORTS), &mut check)
}

fn state_dir(asker: &mut dyn Asker, world: &World<'_>) -> Result<PathBuf, NoAnswer> {
    let usual = world.state_dir.display().to_string();
    let mut check = |text: &str| match PathBuf::from(text) {
        path if path.is_absolute() => Ok(path),
        _ => Err("Write a whole path, which begins with '/'.".to_owned()),
    };
    let question = "Where are its key and the book of kites to be kept?";
    ask::ask(asker, question, Some(&usual), &mut check)
}

/// Whom to invite first; nobody if the answer is empty.
pub fn first_kite(asker: &mut dyn Asker, name: &str) -> Result<Option<KiteName>, NoAnswer> {
    asker.say(
        "\nA node's operator flies a kite: a name that leads to this machine in the DNS (an entry of its own, or one \
         for all with '*').",
    )?;
    let mut check = |text: &str| match text {
        "" => Ok(None),
        text => match text.parse::<KiteName>() {
            Ok(kite) if kite.as_str() == name => Err(
                "This is the frontend's own name; a kite needs another, such as tahoebob below it."
                    .to_owned(),
            ),
            Ok(kite) if !kite.as_str().contains('.') => {
                Err("Write the whole name, such as tahoebob.alice.example.".to_owned())
            }
            Ok(kite) => Ok(Some(kite)),
            Err(e) => Err(format!("This is no kite's name: {e}.")),
        },
    };
    let question =
        "Whom to invite first? The name of their kite (nothing: later, by kite frontend invite):";
    ask::ask(asker, question, None, &mut check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wizard::script::Script;

    fn run(answers: &[&str]) -> (Script, Result<Answers, NoAnswer>) {
        let mut script = Script::new(answers);
        let mut world = World {
            dir: "/etc/kite".into(),
            state_dir: "/var/lib/kite".into(),
            bind: &mut |at| match at.port() {
                80 => Err("another program uses this port".to_owned()),
                _ => Ok(()),
            },
        };
        let got = ask(&mut script, &mut world);
        (script, got)
    }

    #[test]
    fn a_name_and_ports_are_enough() {
        let (script, got) = run(&["Alice.Example", "443, 8080", "", "", ""]);
        let got = got.expect("answers");
        assert!(script.is_through());
        assert_eq!(got.state_dir, PathBuf::from("/var/lib/kite"));
        for line in [
            "name = \"alice.example\"\n",
            "listen = [\"0.0.0.0:443\", \"0.0.0.0:8080\"]\n",
            "state_dir = \"/var/lib/kite\"\n",
        ] {
            assert!(got.text.contains(line), "{}", got.text);
        }
        assert!(script.heard.contains("/etc/kite/frontend.toml"));
        let (_, got) = run(&["alice.example", "443", "/s", "y", "y"]);
        assert!(got.expect("answers").text.contains("onion = true"));
    }

    #[test]
    fn each_wrong_answer_is_explained_and_asked_again() {
        let answers = [
            "*.alice.example",
            "localhost",
            "a b",
            "0.0.0.0",
            "alice.example",
            "",
            "x",
            "443,443",
            "0",
            "8443",
            "here",
            "/state",
            "",
            "n",
        ];
        let (script, got) = run(&answers);
        assert!(matches!(got, Err(NoAnswer::Declined)));
        assert!(script.is_through());
        for why in [
            "without '*'",
            "no other network",
            "no name of a host",
            "no address that can be dialled",
            "another program uses this port",
            "'x' is no port",
            "twice",
            "'0' is no port",
            "begins with '/'",
        ] {
            assert!(script.heard.contains(why), "{why}\n{}", script.heard);
        }
    }

    #[test]
    fn the_first_kite_has_a_name_of_its_own() {
        let mut script = Script::new(&["alice.example", "bob", "bob.alice.example"]);
        let kite = first_kite(&mut script, "alice.example").expect("an answer");
        assert_eq!(kite.expect("a kite").as_str(), "bob.alice.example");
        assert!(script.heard.contains("own name") && script.heard.contains("whole name"));
        let none = first_kite(&mut Script::new(&[""]), "alice.example");
        assert!(none.expect("an answer").is_none());
    }
}
