use std::fs;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443";
const PINNED: &str = "alice.example:443#sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const NODE: &str = "foolscap:tahoebob.alice.example:127.0.0.1:49293";

fn backend(flags: &[&str]) -> Sight {
    let words = ["kite", "backend"].iter().chain(flags);
    match Cli::try_parse_from(words).expect("flags").command {
        Command::Backend(args) => of_backend(&BackendOutline::load(&args.run).expect("outline")),
        _ => unreachable!("a backend's flags"),
    }
}

fn public_side(text: &str) -> Sight {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("frontend.toml");
    fs::write(&file, text).expect("written");
    let args = crate::cli::FrontendArgs {
        config: Some(file),
        ..Default::default()
    };
    of_public_side(&FrontendOutline::load(&args).expect("outline"))
}

impl Sight {
    fn party(&self, who: &str) -> &Party {
        let mut found = self.parties.iter().filter(|p| p.who.contains(who));
        let party = found.next().unwrap_or_else(|| panic!("no {who} in {self}"));
        assert!(found.next().is_none(), "two of {who} in {self}");
        party
    }

    fn open(&self, what: &str) -> bool {
        self.unprotected.iter().any(|line| line.contains(what))
    }
}

impl Party {
    #[track_caller]
    fn must_see(&self, what: &str) -> &Self {
        assert!(self.sees.iter().any(|line| line.contains(what)), "{self:?}");
        assert!(
            !self.never.iter().any(|line| line.contains(what)),
            "{self:?}"
        );
        self
    }

    #[track_caller]
    fn must_not(&self, what: &str) -> &Self {
        assert!(
            self.never.iter().any(|line| line.contains(what)),
            "{self:?}"
        );
        assert!(
            !self.sees.iter().any(|line| line.contains(what)),
            "{self:?}"
        );
        self
    }
}

#[test]
fn through_tor_nobody_but_the_guard_and_the_provider_sees_the_address() {
    let sight = backend(&[
        "--via-tor",
        "--socks-listen",
        "127.0.0.1:9150",
        "--frontend",
        ONION,
        "--frontend",
        PINNED,
        NODE,
    ]);
    sight
        .party("frontend 2gzyxa")
        .must_not(ADDRESS)
        .must_see("the kites foolscap:tahoebob.alice.example")
        .must_see("the addresses of their visitors")
        .must_see("TubID")
        .must_not("what foolscap:tahoebob.alice.example carries");
    sight.party("frontend alice.example").must_not(ADDRESS);
    sight
        .party("the exit")
        .must_not(ADDRESS)
        .must_not("the kites' names");
    sight
        .party("the guard")
        .must_see(ADDRESS)
        .must_not("the frontends");
    sight
        .party("this machine's network")
        .must_see(ADDRESS)
        .must_not("the frontends");
    sight.party("the introducer").must_see("a Tor exit");
    sight
        .party("other users")
        .must_see("SOCKS port")
        .must_not("the secrets");
    sight.party("visitors, and").must_not(ADDRESS);
    assert_eq!(sight.unprotected.len(), 1, "{sight}");
    assert!(sight.open("match the two by time and amount"));
}

#[test]
fn with_onion_frontends_alone_there_is_no_exit() {
    let sight = backend(&["--via-tor", "--frontend", ONION, NODE]);
    assert!(
        !sight.parties.iter().any(|p| p.who.contains("the exit")),
        "{sight}"
    );
    assert!(sight.open("only frontend") && sight.open("--socks-listen"));
    sight.party("the introducer").must_see(ADDRESS);
}

#[test]
fn without_tor_frontends_see_the_address_and_it_is_said_first() {
    let sight = backend(&[
        "--frontend",
        PINNED,
        "--frontend",
        "carol.example:443",
        NODE,
    ]);
    sight.party("frontend alice").must_see(ADDRESS);
    sight.party("frontend carol").must_see(ADDRESS);
    sight
        .party("this machine's network")
        .must_see("which frontends are dialled")
        .must_not("the kites' names");
    assert!(sight.unprotected[0].starts_with("Tor is off"), "{sight}");
    assert!(sight.open("carol.example:443: it is believed by a certificate"));
    assert!(!sight.open("alice.example:443#"));
    assert!(
        !sight.parties.iter().any(|p| p.who.contains("guard")),
        "{sight}"
    );
}

#[test]
fn what_is_in_the_clear_is_named() {
    let frontend = "plain://dan.example:80";
    let sight = backend(&[
        "--via-tor",
        "--frontend",
        frontend,
        "--allow-origin",
        "192.168.1.5",
        "http:web.dan.example:127.0.0.1:80",
        "raw-22:ssh.dan.example:192.168.1.5:22",
        "https:tls.dan.example:127.0.0.1:443",
    ]);
    sight
        .party("frontend plain://dan")
        .must_see("all that http:web.dan.example carries: it has no TLS")
        .must_see("all that raw-22:ssh.dan.example carries, unless")
        .must_not("what https:tls.dan.example carries")
        .must_not(ADDRESS);
    sight
        .party("the exit")
        .must_see("which it can change as well")
        .must_not(ADDRESS);
    sight
        .party("frontends' own networks")
        .must_see("all that http:web.dan.example carries")
        .must_not("what https:tls.dan.example carries")
        .must_not(ADDRESS);
    assert!(sight.open("plain://dan.example:80: whoever carries"));
    assert!(sight.open("http:web.dan.example: frontends, and everybody"));
    assert!(sight.open("192.168.1.5:22 is not on this machine"));
    assert!(!sight.open("https:tls"));
    sight
        .party("whomever the origin connects to")
        .must_see(ADDRESS);
}

#[test]
fn kites_are_shown_where_they_fly_and_nowhere_else() {
    let other = "http:web.carol.example:127.0.0.1:80";
    let sight = backend(&[
        "--frontend",
        &format!("{PINNED}=tahoebob.alice.example"),
        "--frontend",
        "carol.example:443=web.carol.example",
        NODE,
        other,
    ]);
    let shown = format!("{:?}", sight.party("frontend alice"));
    assert!(
        shown.contains("tahoebob") && !shown.contains("carol"),
        "{shown}"
    );
    let shown = format!("{:?}", sight.party("frontend carol"));
    assert!(
        shown.contains("web.carol") && !shown.contains("tahoebob"),
        "{shown}"
    );
}

#[test]
fn a_frontend_that_ends_tls_reads_what_it_carries() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("backend.toml");
    // The secret's file is not there, and is not missed.
    let text = "[[frontends]]\naddress = \"carol.example:443\"\n[[kites]]\nname = \"web.carol.example\"\n\
                protocol = \"http\"\norigin = \"127.0.0.1:80\"\ntls = \"frontend\"\nsecret_file = \"absent\"\n";
    fs::write(&file, text).expect("written");
    let sight = backend(&["--config", file.to_str().expect("text")]);
    sight
        .party("frontend carol")
        .must_see("it ends its visitors' TLS");
    assert!(sight.open("with the frontend's certificate only the frontend"));
}

#[test]
fn a_frontends_side_is_told_as_well() {
    let usual = public_side(
        "listen = [\"0.0.0.0:443\"]\nonion = true\n[[kites]]\nname = \"*.alice.example\"\nsecret_file = \"absent\"\n",
    );
    usual
        .party("this frontend, and")
        .must_not("what foolscap")
        .must_see("from which address");
    usual.party("readers of").must_not("anybody's address");
    usual
        .party("Tor's relays")
        .must_not("that it is this frontend");
    assert_eq!(usual.unprotected, [""; 0]);

    let open = public_side(
        "listen = [\"0.0.0.0:443\"]\nlog_peers = true\n[[kites]]\nname = \"web.alice.example\"\n\
         protocols = [\"http\"]\nsecret_file = \"absent\"\n[[authorities]]\ndns = \"auth.alice.example\"\n\
         resolver = \"192.0.2.53:53\"\n[acme]\nnames = [\"alice.example\"]\naccept_terms = true\nendpoints = true\n",
    );
    open.party("this frontend, and")
        .must_see("web.alice.example")
        .must_see("(tls = \"frontend\")")
        .must_see("endpoints = true");
    open.party("readers of").must_see("log_peers is on");
    let narrow = public_side(
        "listen = [\"0.0.0.0:443\"]\npolicy = \"storage-only\"\n[[kites]]\nname = \"web.alice.example\"\n\
         protocols = [\"http\", \"foolscap\"]\nsecret_file = \"absent\"\n",
    );
    narrow
        .party("this frontend, and")
        .must_not("anything that a browser shows");
    assert!(!narrow.open("web.alice.example"), "{narrow}");
    let strangers = |proof: &str| {
        public_side(&format!(
            "listen = [\"0.0.0.0:443\"]\n[open]\ndomain = \"alice.example\"\nproof = \"{proof}\"\n"
        ))
    };
    assert!(strangers("key").open("each under its own tub's name"));
    assert!(strangers("node").open("whoever can reach a node"));
    open.party("certificate authority")
        .must_see("which it publishes");
    open.party("192.0.2.53:53").must_see("in the clear");
    assert_eq!(open.unprotected.len(), 4, "{open}");
}

#[test]
fn all_of_it_is_in_the_text_and_in_the_json() {
    let sight = backend(&["--frontend", PINNED, NODE]);
    let text = sight.to_string();
    let json = serde_json::to_value(&sight).expect("JSON");
    assert_eq!(json["role"], "backend");
    for party in &sight.parties {
        assert!(!party.sees.is_empty(), "{party:?}");
        for line in party.sees.iter().chain(&party.never) {
            assert!(text.contains(line.as_str()));
        }
    }
    assert_eq!(
        json["parties"].as_array().map(Vec::len),
        Some(sight.parties.len())
    );
    assert!(text.contains("\nNot protected\n  - Tor is off"));
}
