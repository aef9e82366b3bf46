use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::cfg::{Cfg, apply};
use super::dir::NodeDir;
use super::*;
use crate::cli::BackendArgs;

/// A backend's flags with these kites.
fn side(kites: &[&str]) -> NodeSide {
    NodeSide::load(&BackendArgs {
        via_tor: true,
        socks_listen: Some("127.0.0.1:9150".into()),
        services: kites.iter().map(|k| (*k).to_owned()).collect(),
        ..BackendArgs::default()
    })
    .unwrap()
}

fn kite() -> Kite {
    let kites = [
        "foolscap:tahoebob.alice.example:127.0.0.1:49293",
        "foolscap:tahoebob.carol.example:127.0.0.1:49293",
    ];
    Kite::new(&side(&kites), |_| None).unwrap()
}

/// A kite with Tahoe's HTTPS protocol on port 8443.
fn https_kite() -> Kite {
    Kite::new(
        &side(&["tahoe-https:tahoebob.alice.example:127.0.0.1:49293"]),
        |_| Some(8443),
    )
    .unwrap()
}

/// A node of which nothing is to be said, but for the log tub.
const GOOD: &str = "\
[node]
nickname = bob
web.port = tcp:3456:interface=127.0.0.1
tub.port = tcp:49293:interface=127.0.0.1
tub.location = tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80
timeout.keepalive = 120
timeout.disconnect = 600
[storage]
enabled = true
force_foolscap = true
[client]
force_foolscap = true
[connections]
tcp = tor
[tor]
socks.port = tcp:127.0.0.1:9150
";

fn node(text: &str) -> Node {
    Node {
        kind: Kind::Client,
        cfg: Cfg::parse(text).unwrap(),
        introducers: None,
        servers: None,
        tub: None,
    }
}

/// GOOD with one thing changed.
fn but(from: &str, to: &str) -> Node {
    assert!(GOOD.contains(from), "{from}");
    node(&GOOD.replace(from, to))
}

/// What there is to say, without the two notes that every node gets.
fn findings(node: &Node, kite: Option<&Kite>) -> Vec<Finding> {
    let mut all = check(node, kite);
    let usual = |f: &Finding| f.what.contains("log tub") || f.what.contains("lead to frontends");
    assert!(all.iter().any(usual));
    all.retain(|f| !usual(f));
    all
}

/// The one finding about this node, whether it is looked at beside a kite or alone.
fn one(node: &Node) -> Finding {
    for kite in [None, Some(&kite())] {
        let found = findings(node, kite);
        assert_eq!(found.len(), 1, "{found:#?}");
    }
    findings(node, Some(&kite())).remove(0)
}

#[track_caller]
fn finds(node: &Node, severity: Severity, line: usize, instead: &str) {
    let finding = one(node);
    let place = (finding.severity, finding.file, finding.line);
    assert_eq!(place, (severity, "tahoe.cfg", Some(line)), "{finding:?}");
    assert_eq!(
        show(&finding.instead, "").replace('\n', " ").trim(),
        instead
    );
}

#[track_caller]
fn silent(node: &Node) {
    for kite in [None, Some(&kite())] {
        assert_eq!(findings(node, kite), []);
    }
}

use Severity::{Broken, Leak, Note};

#[test]
fn a_good_node_is_left_in_peace() {
    silent(&node(GOOD));
    for (from, to) in [
        ("nickname = bob", "reveal-IP-address = true"),
        ("tcp = tor", "TCP: Tor"),
        ("web.port = tcp:3456:interface=127.0.0.1", "web.port = "),
        ("tub.port = tcp", "tub.port =\n  tcp"),
        ("web.port = tcp:3456", "web.port = 3456"),
        ("tcp:3456:interface=127.0.0.1", "unix:/run/tahoe/web"),
        ("tcp:tahoebob.alice.example:80", "tahoebob.alice.example:80"),
        (
            "tcp:tahoebob.alice.example:80",
            "tcp:TahoeBob.alice.example.:8080",
        ),
        (
            "socks.port = tcp:127.0.0.1:9150",
            "socks.port = tcp:host=localhost:port=9150",
        ),
        (
            "force_foolscap = true\n[client]",
            "force_foolscap = Yes\n[client]",
        ),
    ] {
        silent(&but(from, to));
    }
}

#[test]
fn a_tub_on_all_interfaces_is_a_leak() {
    let ours = "[node] tub.port = tcp:49293:interface=127.0.0.1";
    let port = "tub.port = tcp:49293:interface=127.0.0.1";
    for open in [
        "tub.port = tcp:49293",
        "tub.port = 49293",
        "tub.port: tcp:port=49293:interface=0.0.0.0",
        "tub.port = tcp:49293:interface=127.0.0.1,tcp:49293:interface=192.0.2.7",
        "tub.port = tcp6:49293,tcp:49293:interface=127.0.0.1",
        "tub.port = systemd:domain=INET:index=0,tcp:49293:127.0.0.1",
    ] {
        finds(&but(port, open), Leak, 4, ours);
    }
    finds(&but(port, "#"), Leak, 1, ours);
    // Where no kite says otherwise, another port keeps its number, and other endpoints stay.
    let found = findings(&but(port, "tub.port = listen:tor,tcp6:5000"), None);
    assert_eq!(
        found[0].instead[0].value.as_deref(),
        Some("listen:tor,tcp6:5000:interface=\\:\\:1")
    );
    let found = findings(&but(port, "tub.port = tcp:38227"), None);
    assert_eq!(
        found[0].instead[0].value.as_deref(),
        Some("tcp:38227:interface=127.0.0.1")
    );
}

#[test]
fn a_tub_that_visitors_do_not_find_is_broken() {
    let ours = "[node] tub.port = tcp:49293:interface=127.0.0.1";
    let port = "tub.port = tcp:49293:interface=127.0.0.1";
    finds(&but(port, "tub.port ="), Broken, 4, ours);
    let unix = but(
        port,
        "tub.port = unix:/run/tub,tcp:49293:interface=127.0.0.1",
    );
    finds(&unix, Broken, 4, ours);
    let elsewhere = but(port, "tub.port = tcp:5000:interface=127.0.0.1");
    assert_eq!(findings(&elsewhere, None), []);
    assert_eq!(findings(&elsewhere, Some(&kite()))[0].severity, Broken);
    for zero in ["tcp:0", "tcp:0:interface=127.0.0.1"] {
        let found = findings(&but(port, &format!("tub.port = {zero}")), None);
        assert_eq!((found.len(), found[0].severity), (1, Broken));
    }
    // A client that nobody visits is in order, but not behind a kite.
    let client = GOOD
        .replace(port, "tub.port = disabled")
        .replace("enabled = true", "enabled = false")
        .replace(
            "tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80",
            "disabled",
        );
    assert_eq!(check(&node(&client), None).len(), 1, "the log tub");
    assert_eq!(findings(&node(&client), Some(&kite()))[0].severity, Broken);
    let half = client.replace("tub.location = disabled", "tub.location = tcp:a.example:80");
    assert!(
        check(&node(&half), None)
            .iter()
            .any(|f| f.severity == Broken)
    );
}

#[test]
fn a_location_that_is_not_the_kites_is_a_leak() {
    let ours = "[node] tub.location = tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80";
    let location = "tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80";
    for more in [
        "AUTO",
        "tcp:192.0.2.7:49293",
        "192.0.2.7:49293",
        "tcp:[2001:db8::1]:80",
        "tcp:[fe80::1%%eth0]:80",
    ] {
        finds(&but(location, &format!("{location},{more}")), Leak, 5, ours);
    }
    for more in [
        "tcp:127.0.0.1:80",
        "tcp:tahoe_bob.alice.example:80",
        "nonsense",
        "tcp:a.example:port",
        "tcp:a.example:80 ",
    ] {
        finds(
            &but(location, &format!("{location},{more},tor:a.onion:1")),
            Broken,
            5,
            ours,
        );
    }
    finds(&but("tub.location = ", "# "), Leak, 1, ours);
    finds(&but(location, ""), Broken, 5, ours);
    let i2p = but(location, &format!("{location},i2p:abc.b32.i2p"));
    assert_eq!(one(&i2p).severity, Note);
    let onion = but(location, &format!("{location},tor:abc.onion:80"));
    silent(&onion);
    // Only beside a kite can a name be told from a stranger's.
    let home = but(location, &format!("{location},tcp:bob.dyndns.example:80"));
    assert_eq!(findings(&home, None), []);
    assert_eq!(findings(&home, Some(&kite()))[0].severity, Leak);
    let half = but(",tcp:tahoebob.carol.example:80", "");
    assert_eq!(findings(&half, None), []);
    let found = findings(&half, Some(&kite()));
    assert!(
        found[0].severity == Broken && found[0].what.contains("carol"),
        "{found:?}"
    );
}

#[test]
fn a_promise_that_tahoe_cannot_keep_stops_the_node() {
    finds(
        &but("nickname = bob", "reveal-IP-address = false"),
        Broken,
        2,
        "[node] reveal-IP-address = true",
    );
    let onion = GOOD
        .replace("nickname = bob", "reveal-IP-address = no")
        .replace(
            "tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80",
            "tor:abc.onion:80",
        );
    assert_eq!(check(&node(&onion), None).len(), 1, "the log tub");
    let other = onion
        .replace("abc.onion", "abc.example")
        .replace("enabled = true\nforce_foolscap = true", "");
    assert!(
        check(&node(&other), None)
            .iter()
            .any(|f| f.severity == Broken && f.what.contains("no onion"))
    );
    let twice = but(
        "socks.port = tcp:127.0.0.1:9150",
        "socks.port = tcp:127.0.0.1:9150\nlaunch = ?",
    );
    assert!(one(&twice).what.contains("'?'"), "two rules, one word");
    let word = one(&but("nickname = bob", "reveal-IP-address = maybe"));
    assert!(word.severity == Broken && word.what.contains("maybe"));
}

#[test]
fn a_web_interface_for_all_is_a_leak() {
    for open in [
        "tcp:3456",
        "3456",
        "tcp:3456:interface=0.0.0.0",
        "tcp:3456:interface=",
    ] {
        let node = but("tcp:3456:interface=127.0.0.1", open);
        finds(
            &node,
            Leak,
            3,
            "[node] web.port = tcp:3456:interface=127.0.0.1",
        );
    }
    finds(
        &but("tcp:3456:interface=127.0.0.1", "x:y"),
        Leak,
        3,
        "[node] web.port = tcp:3456:interface=127.0.0.1",
    );
    // The port of the tub is no place for it, on whatever interface.
    for origin in ["tcp:49293:interface=127.0.0.1", "tcp:49293"] {
        let found = findings(&but("tcp:3456:interface=127.0.0.1", origin), Some(&kite()));
        assert_eq!((found.len(), found[0].severity), (1, Broken));
        assert!(show(&found[0].instead, "").contains("3456"));
    }
}

#[test]
fn sftp_for_all_is_a_leak() {
    let with = |text: &str| node(&format!("{GOOD}[sftpd]\n{text}"));
    finds(
        &with("enabled = true"),
        Leak,
        17,
        "[sftpd] port = tcp:8022:interface=127.0.0.1",
    );
    finds(
        &with("enabled = 1\nport = tcp:22"),
        Leak,
        19,
        "[sftpd] port = tcp:22:interface=127.0.0.1",
    );
    silent(&with("enabled = false\nport = tcp:22"));
    silent(&with("enabled = true\nport = tcp:22:interface=127.0.0.1"));
}

#[test]
fn tahoes_https_protocol_needs_a_port_of_its_own() {
    let without = but("force_foolscap = true\n[client]", "[client]");
    finds(&without, Broken, 8, "[storage] force_foolscap = true");
    let text = GOOD.replace("force_foolscap = true\n[client]", "[client]");
    silent(&node(&text.replace("tcp:tahoebob", "tahoebob")));
    silent(&node(&text.replace("enabled = true", "enabled = false")));
    // The kite may have such a port.
    let own = text.replace(
        "tcp:tahoebob.alice.example:80,tcp:tahoebob.carol.example:80",
        "tcp:tahoebob.alice.example:8443",
    );
    assert_eq!(findings(&node(&own), Some(&https_kite())), []);
    let forced = own.replace("enabled = true", "force_foolscap = true");
    assert_eq!(
        findings(&node(&forced), Some(&https_kite()))[0].severity,
        Note
    );
}

#[test]
fn through_a_socks_port_only_foolscap_works() {
    let text = GOOD.replace("[client]\nforce_foolscap = true\n", "");
    let finding = one(&node(&text));
    assert_eq!(
        show(&finding.instead, ""),
        "[client]\nforce_foolscap = true\n"
    );
    let control = text.replace(
        "socks.port",
        "control.port = tcp:127.0.0.1:9051\nsocks.port",
    );
    silent(&node(&control));
}

#[test]
fn direct_connections_are_a_leak() {
    let instead = "[connections] tcp = tor  [tor] socks.port = tcp:127.0.0.1:9150";
    finds(&but("tcp = tor", "tcp = tcp"), Leak, 14, instead);
    finds(&but("tcp = tor", ""), Leak, 13, instead);
    finds(&but("tcp = tor", "tcp = disabled"), Broken, 14, instead);
    finds(
        &but("tcp = tor", "tcp = tor ; through kite"),
        Broken,
        14,
        instead,
    );
    finds(&but("tcp = tor", "tcp =\n tor"), Broken, 14, instead);
    assert_eq!(one(&but("tcp = tor", "tcp = i2p")).severity, Note);
}

#[test]
fn tor_must_be_where_kite_is() {
    let instead = "[tor] socks.port = tcp:127.0.0.1:9150";
    let socks = "socks.port = tcp:127.0.0.1:9150";
    finds(
        &but(socks, "socks.port = tcp:192.0.2.7:9150"),
        Leak,
        16,
        instead,
    );
    finds(&but(socks, "socks.port = 9150"), Broken, 16, instead);
    finds(
        &but(socks, &format!("{socks}\nenabled = off")),
        Broken,
        17,
        "[tor] # no enabled",
    );
    for (text, alone) in [
        ("socks.port = tcp:127.0.0.1:9050", None),
        ("", Some(Note)),
        ("control.port = tcp:127.0.0.1:9051", Some(Note)),
        ("launch = true", Some(Note)),
    ] {
        let node = but(socks, text);
        let found = findings(&node, None);
        assert_eq!(found.first().map(|f| f.severity), alone, "{text}");
        let found = findings(&node, Some(&kite()));
        assert_eq!((found.len(), found[0].severity), (1, Broken), "{text}");
        assert!(show(&found[0].instead, "").contains(socks));
    }
}

#[test]
fn what_tor_does_not_cover_is_a_leak() {
    let furl = "log_gatherer.furl = pb://abc@tcp:logs.example:1/x";
    finds(
        &but("nickname = bob", furl),
        Leak,
        2,
        "[node] # no log_gatherer.furl",
    );
    silent(&but("nickname = bob", "log_gatherer.furl ="));
    for direct in [
        "    connections: {tcp: tcp}",
        "    connections:\n      tcp: tcp",
        "    connections: {\"tcp\": \"tcp\", i2p: null}",
    ] {
        let mut node = node(GOOD);
        node.servers = Some(format!("storage:\n  v0-abc:\n{direct}\n"));
        let finding = one(&node);
        assert_eq!(
            (finding.severity, finding.file),
            (Leak, "private/servers.yaml")
        );
    }
    let mut good = node(GOOD);
    good.servers = Some("storage:\n  v0-abc:\n    # connections: {tcp: tcp}\n    connections: {tcp: tor}\n    ann:\n      anonymous-storage-FURL: pb://abc@tcp:tcp:80/x\n".into());
    silent(&good);
    assert_eq!(
        one(&node(&format!("{GOOD}[storage]\nplugins = zkap"))).severity,
        Note
    );
}

#[test]
fn an_introducer_that_tor_does_not_reach_is_broken() {
    let with = |hints: &str| {
        let mut node = node(GOOD);
        node.introducers = Some(format!(
            "introducers:\n  a:\n    furl: pb://abc@{hints}/introducer\n"
        ));
        node
    };
    for hints in [
        "tcp:192.168.1.5:45001",
        "tcp:[2001:db8::1]:45001",
        "127.0.0.1:1,tcp:10.0.0.1:2",
    ] {
        let finding = one(&with(hints));
        assert_eq!(
            (finding.severity, finding.line),
            (Broken, Some(3)),
            "{hints}"
        );
    }
    for hints in [
        "tcp:intro.example:45001",
        "tcp:203.0.114.7:45001",
        "tcp:10.0.0.1:2,tor:abc.onion:1",
    ] {
        silent(&with(hints));
    }
    let finding = one(&but(
        "[client]",
        "[client]\nintroducer.furl = pb://abc@10.0.0.1:1/introducer",
    ));
    assert_eq!((finding.severity, finding.file), (Broken, "tahoe.cfg"));
}

#[test]
fn habits_are_noted() {
    finds(
        &but("timeout.disconnect = 600", ""),
        Note,
        1,
        "[node] timeout.disconnect = 600",
    );
    let twice = one(&but("nickname = bob", "nickname = bob\nNickname = rob"));
    assert!(twice.severity == Note && twice.line == Some(2) && twice.what.contains("line 3"));
}

#[test]
fn an_introducer_stores_nothing() {
    let text = "[node]\ntub.port = tcp:1:interface=127.0.0.1\ntub.location = tcp:a.example:80\n\
                timeout.keepalive = 1\ntimeout.disconnect = 2\n[connections]\ntcp = tor\n[tor]\nsocks.port = tcp:127.0.0.1:9050\n";
    let mut node = node(text);
    assert_eq!(findings(&node, None).len(), 2, "force_foolscap, twice");
    node.kind = Kind::Introducer;
    assert_eq!(findings(&node, None), []);
    assert!(!show(&kite().lines(Kind::Introducer).unwrap(), "").contains("foolscap"));
}

// ----------------------------------------------------------------- the file

/// Written down from Python: `ConfigParser(strict=False)` reads these values.
#[test]
fn a_file_is_read_as_python_reads_it() {
    let text = "\u{feff}# head\n[node]\nNickName : bob = rob\nweb.port=\n tub.location = tcp:a:80,\n   # not this\n\n  tcp:b:80 ; this\n; nor this\n\
                [Node]\nx = 1\n[node] behind\r\nnickname = 100%% bob\r\n[other]\nx = %(y)s\n[no]de]\nx=2\n";
    let cfg = Cfg::parse(text).unwrap();
    assert_eq!(cfg.value("node", "NICKNAME"), Some("100% bob"));
    assert_eq!(cfg.entry("node", "nickname").unwrap().line, 13);
    // Deeper than the line above it: a continuation, whatever it looks like.
    assert_eq!(
        cfg.value("node", "web.port"),
        Some("\ntub.location = tcp:a:80,\ntcp:b:80 ; this")
    );
    assert_eq!(cfg.value("Node", "x"), Some("1"));
    assert_eq!(cfg.value("other", "x"), Some("%(y)s"));
    assert_eq!(cfg.value("no]de", "x"), Some("2"));
    for (bad, line) in [
        ("x = 1\n", 1),
        ("[node]\n\nword\n", 3),
        ("[node]\n= 1\n", 2),
        ("[]\n", 1),
        ("[DEFAULT]\ntcp = tcp\n", 2),
        ("[node]\nnickname = 100%\n", 2),
        // Python's line ends: what looks like one line is two.
        ("[node]\r\n\rtub.port = 1\r\n", 2),
    ] {
        assert_eq!(Cfg::parse(bad).unwrap_err().line, line, "{bad:?}");
    }
}

#[test]
fn a_change_leaves_every_other_line() {
    let changed = |text: &str, change: Change| apply(text, &[change]).unwrap();
    let port = || Change::set("node", "tub.port", "tcp:1");
    for (before, after) in [
        ("", "[node]\ntub.port = tcp:1\n"),
        ("[a]\nb = c", "[a]\nb = c\n\n[node]\ntub.port = tcp:1\n"),
        (
            "[node]\n# a\n\n[b]\n",
            "[node]\ntub.port = tcp:1\n# a\n\n[b]\n",
        ),
        (
            "[node]\n  a = b\n    c\n# d\n [e]\n",
            "[node]\n  a = b\n    c\n  tub.port = tcp:1\n# d\n [e]\n",
        ),
        (
            "[node]\r\nTUB.port: x\r\n  y\r\n# z\r\n",
            "[node]\r\ntub.port = tcp:1\r\n# z\r\n",
        ),
        (
            "[node]\ntub.port = a\ntub.port = b\n",
            "[node]\ntub.port = a\ntub.port = tcp:1\n",
        ),
        (
            "[node]\n# a\n  [b]\n",
            "[node]\n  tub.port = tcp:1\n# a\n  [b]\n",
        ),
        (
            "[node]\na = b\n[c]\n[node]\n",
            "[node]\na = b\n[c]\n[node]\ntub.port = tcp:1\n",
        ),
        ("[node]\n TUB.PORT:tcp:1\n", "[node]\n TUB.PORT:tcp:1\n"),
    ] {
        assert_eq!(changed(before, port()), after);
        assert_eq!(changed(after, port()), after, "once more");
    }
    let text = "[tor]\nlaunch = 1\n a\n# b\nc = d\n[e]\n[tor]\nLaunch = 2";
    assert_eq!(
        changed(text, Change::remove("tor", "launch")),
        "[tor]\n# b\nc = d\n[e]\n[tor]\n"
    );
    let percent = changed("", Change::set("node", "nickname", "100%"));
    assert_eq!(
        Cfg::parse(&percent).unwrap().value("node", "nickname"),
        Some("100%")
    );
}

/// A node's directory with this file.
fn place(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tahoe-client.tac"), "").unwrap();
    fs::write(dir.path().join("tahoe.cfg"), text).unwrap();
    dir
}

const WORST: &str = "\
# mine
[node]
reveal-IP-address = false
web.port = 3456
tub.port = tcp:38227
tub.location = AUTO
timeout.keepalive = 30
log_gatherer.furl = pb://abc@tcp:logs.example:1/x
[sftpd]
enabled = true
[tor]
launch = true
enabled = false
";

#[test]
fn the_worst_node_is_mended_in_one_go() {
    let dir = place(WORST);
    let file = dir.path().join("tahoe.cfg");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let mut node = NodeDir::read(dir.path()).unwrap();
    let written = node.write(&kite()).unwrap();
    assert_eq!(fs::read_to_string(written.backup.unwrap()).unwrap(), WORST);
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.starts_with(
            "# mine\n[node]\nreveal-IP-address = true\nweb.port = tcp:3456:interface=127.0.0.1\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("timeout.keepalive = 30\n"),
        "the operator's choice: {text}"
    );
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    let left = findings(&NodeDir::read(dir.path()).unwrap().node, Some(&kite()));
    assert_eq!(left, []);
    // Again: nothing happens.
    let again = NodeDir::read(dir.path()).unwrap().write(&kite()).unwrap();
    assert!(again.changes.is_empty() && again.backup.is_none());
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 3, "the file, its backup, and what made it a node");
    // The next change has a backup of its own.
    let moved = Kite::new(&side(&["foolscap:b.example:127.0.0.1:1"]), |_| None).unwrap();
    let third = NodeDir::read(dir.path()).unwrap().write(&moved).unwrap();
    assert!(third.backup.unwrap().ends_with("tahoe.cfg.kite-backup-2"));
}

#[test]
fn only_a_nodes_file_is_touched() {
    let dir = place("[node]\n");
    fs::remove_file(dir.path().join("tahoe-client.tac")).unwrap();
    let error = NodeDir::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tahoe create-node"), "{error}");
    let dir = place("[node\n");
    let error = NodeDir::read(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("line 1") && error.contains("tahoe.cfg"),
        "{error}"
    );
    // A file that is a link stays one.
    let dir = place("");
    let (link, real) = (dir.path().join("tahoe.cfg"), dir.path().join("real.cfg"));
    fs::rename(&link, &real).unwrap();
    std::os::unix::fs::symlink("real.cfg", &link).unwrap();
    NodeDir::read(dir.path()).unwrap().write(&kite()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(real).unwrap().contains("tub.port"));
}

// ------------------------------------------------------------ the configuration

#[test]
fn a_configuration_has_lines_for_one_node() {
    let error =
        |kites: &[&str]| match Kite::new(&side(kites), |_| None).map(|k| k.lines(Kind::Client)) {
            Ok(Ok(_)) => panic!("{kites:?}"),
            Ok(Err(e)) | Err(e) => e.to_string(),
        };
    assert!(error(&["http:a.example:127.0.0.1:1"]).contains("no kite"));
    assert!(
        error(&[
            "foolscap:a.example:127.0.0.1:1",
            "foolscap:b.example:127.0.0.1:2"
        ])
        .contains("several")
    );
    assert!(error(&["foolscap:*.example:127.0.0.1:1"]).contains("tub.location"));
    assert!(error(&["foolscap:a_b.example:127.0.0.1:1"]).contains("tub.location"));
    assert!(error(&["foolscap:a.example:unix:/run/tub"]).contains("Unix socket"));
    assert!(error(&["tahoe-https:a.example:127.0.0.1:1"]).contains("--public-port a.example=PORT"));
    let direct = NodeSide {
        socks: None,
        ..side(&["foolscap:a.example:127.0.0.1:1"])
    };
    let error = Kite::new(&direct, |_| None)
        .unwrap()
        .lines(Kind::Client)
        .unwrap_err();
    assert!(error.to_string().contains("--socks-listen"), "{error}");

    let lines = show(&kite().lines(Kind::Client).unwrap(), "");
    assert_eq!(findings(&node(&lines), Some(&kite())), []);
    let lines = show(&https_kite().lines(Kind::Client).unwrap(), "");
    assert!(
        lines.contains("tcp:tahoebob.alice.example:8443") && lines.contains("# no force_foolscap")
    );
    assert_eq!(findings(&node(&lines), Some(&https_kite())), []);
    let v6 = Kite::new(&side(&["foolscap:a.example:[::1]:7"]), |_| None).unwrap();
    let lines = show(&v6.lines(Kind::Client).unwrap(), "");
    assert!(
        lines.contains("tub.port = tcp6:7:interface=\\:\\:1"),
        "{lines}"
    );
    assert_eq!(findings(&node(&lines), Some(&v6)), []);
}

#[test]
fn the_tub_that_a_kite_names_is_the_nodes() {
    let tub = |c: &str| c.repeat(32).parse().ok();
    let named = Kite {
        tubs: vec![("tahoebob.alice.example".parse().unwrap(), tub("a").unwrap())],
        ..kite()
    };
    let at_home = |own, kite: &Kite| {
        let node = Node {
            tub: own,
            ..node(GOOD)
        };
        let findings = check(&node, Some(kite));
        findings.iter().all(|f| f.file != "my_nodeid")
    };
    assert!(at_home(tub("a"), &named) && at_home(None, &named) && at_home(tub("b"), &kite()));
    assert!(!at_home(tub("b"), &named));
}

#[test]
fn a_file_may_end_with_half_of_a_lines_end() {
    let change = [Change::set("node", "nickname", "bob")];
    for text in ["[node]\r\n\r", "\r\n\r", "[node]\nx = 1\r"] {
        let changed = apply(text, &change).unwrap();
        let read = Cfg::parse(&changed).unwrap();
        assert_eq!(read.value("node", "nickname"), Some("bob"), "{changed:?}");
    }
}
