use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::cli::{BackendArgs, FrontendArgs, ImportArgs};
use crate::config::{BackendConfig, ConfigError, FrontendConfig};

fn backend(text: &str) -> Result<(BackendConfig, Vec<String>), String> {
    let translation = translate(text, Role::Backend)?;
    let notes = shown(&translation.notes);
    let config = BackendConfig::translated(translation).map_err(|e| e.to_string())?;
    Ok((config, notes))
}

fn frontend(text: &str) -> Result<(FrontendConfig, Vec<String>), String> {
    let translation = translate(text, Role::Frontend)?;
    let notes = shown(&translation.notes);
    let config = FrontendConfig::translated(translation).map_err(|e| e.to_string())?;
    Ok((config, notes))
}

fn translate(text: &str, role: Role) -> Result<Translation, String> {
    let translation = Rc::of_text(text).and_then(|rc| rc.translate(role, &here()));
    translation.map_err(|e| ConfigError::from(e).to_string())
}

/// Where relative paths begin.
fn here() -> std::path::PathBuf {
    std::env::current_dir().unwrap()
}

fn shown(notes: &[Note]) -> Vec<String> {
    notes.iter().map(ToString::to_string).collect()
}

/// A backend's addresses and kites, as text.
fn flat(config: &BackendConfig) -> (Vec<String>, Vec<String>) {
    let frontends = config.frontends.iter().map(|f| f.address.to_string());
    let kite = |s: &crate::config::Service| {
        let secret = String::from_utf8_lossy(s.secret.expose()).into_owned();
        format!("{}:{}:{}:{secret}", s.protocol, s.name, s.origin)
    };
    (
        frontends.collect(),
        config.services.iter().map(kite).collect(),
    )
}

const USUAL: &str = "kitename = bob.alice.example\n\
                     kitesecret = hunter2\n\
                     frontend = alice.example:80\n\
                     service_on = http:@kitename : localhost:49293 : @kitesecret\n";

// ------------------------------------------------------------------ backend

#[test]
fn a_backends_file_is_read_as_it_is() {
    let (config, notes) = backend(USUAL).unwrap();
    assert_eq!(notes, [""; 0]);
    let (frontends, kites) = flat(&config);
    assert_eq!(frontends, ["plain://alice.example:80"]);
    assert_eq!(kites, ["http:bob.alice.example:127.0.0.1:49293:hunter2"]);
    assert!(!config.tor.enabled);
}

#[test]
fn kites_come_in_all_forms() {
    let text = "frontend=alice.example\n\
                service_on = http,https,websocket : Bob.Example : 127.0.0.1 : 80 : s1\n\
                backend = tls:tls.example::443:s2\n\
                service_on = http://typo.example:localhost:81:s3\n\
                service_on = raw:bob.example:localhost:22\n\
                service_on = http:unknown:localhost:83:s5\n\
                define_backend = http:off.example:localhost:82:s4\n\
                service_on = https:@kitename-2.example:localhost:1:@kitesecret\n";
    let (config, notes) = backend(text).unwrap();
    assert_eq!(notes, [""; 0]);
    let (frontends, kites) = flat(&config);
    assert_eq!(frontends, ["plain://alice.example:443"]);
    assert_eq!(
        kites,
        [
            "http:bob.example:127.0.0.1:80:s1",
            "https:bob.example:127.0.0.1:80:s1",
            "websocket:bob.example:127.0.0.1:80:s1",
            "https:tls.example:127.0.0.1:443:s2",
            "http:typo.example:127.0.0.1:81:s3",
            "raw:bob.example:127.0.0.1:22:s1",
            "http:unknown:127.0.0.1:83:s5",
            // The first kite's name and secret stand in for those that nobody set.
            "https:bob.example-2.example:127.0.0.1:1:s1",
        ]
    );
}

#[test]
fn a_frontend_proves_itself_as_the_file_demands() {
    let at = |more: &str| flat(&backend(&format!("{USUAL}{more}")).unwrap().0).0;
    assert_eq!(at("fe_certname = alice.example"), ["alice.example:80"]);
    assert_eq!(
        at("fe_certname = FE.example\nfe_certname = b.example\nfrontend=x.example:1"),
        [
            "alice.example:80#name:fe.example,b.example",
            "x.example:1#name:fe.example,b.example"
        ]
    );
    assert_eq!(
        at("fe_certname = fe.example\nfe_certname ="),
        ["plain://alice.example:80"]
    );
    let (config, notes) = backend(&format!("{USUAL}fe_nocertcheck")).unwrap();
    assert_eq!(flat(&config).0, ["alice.example:80"]);
    assert!(matches!(notes.as_slice(), [n] if n.starts_with("test.rc:5: fe_nocertcheck: ")));
}

#[test]
fn pools_and_services_are_one_frontend() {
    let with = |line: &str| backend(&USUAL.replace("frontend = alice.example:80", line)).unwrap();
    let (config, notes) = with("frontends = 3 : pool.example : 443");
    assert_eq!(flat(&config).0, ["plain://pool.example:443"]);
    assert!(matches!(notes.as_slice(), [n] if n.contains("pool.example:443")));
    let (config, notes) = with("defaults");
    let address = flat(&config).0.concat();
    assert!(
        address.starts_with("fe4_152.b5p.us:443#name:b5p.us,frontends.b5p.us,"),
        "{address}"
    );
    assert_eq!(notes.len(), 1);
    let (config, _) = with("whitelabel = kites.example");
    let address = flat(&config).0.concat();
    assert!(address.starts_with("fe4_152.kites.example:443#name:fe.kites.example,kites.example,"));
    // The pool named last counts, and a frontend that is never to be dialled is not.
    let (config, notes) = with(
        "defaults\nfrontends = 1:p.example:1\nfrontend=q.example:2\nnofrontend=q.example:2\nnofrontend=192.0.2.1:3",
    );
    assert!(flat(&config).0.concat().starts_with("p.example:1#name:"));
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn whoever_asked_for_a_proxy_gets_tor_or_nothing() {
    for line in [
        "torify = localhost:9050",
        "socksify = localhost:9050",
        "proxy = tor:localhost:9050",
        "proxy = http://user:hunter2@proxy.example:8080/",
    ] {
        let text = format!("{USUAL}{line}\n");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rc");
        fs::write(&file, &text).unwrap();
        let args = |via_tor| BackendArgs {
            config: Some(file.clone()),
            via_tor,
            ..BackendArgs::default()
        };
        let refused = BackendConfig::load(&args(false)).unwrap_err().to_string();
        assert!(
            refused.contains("x.rc:5") && refused.contains("add --via-tor"),
            "{refused}"
        );
        assert!(!refused.contains("hunter2"));
        assert!(BackendConfig::load(&args(true)).unwrap().tor.enabled);
        let (config, notes) = backend(&text).unwrap();
        assert!(config.tor.enabled);
        assert!(
            matches!(notes.as_slice(), [n] if n.starts_with("test.rc:5: ") && !n.contains("hunter2"))
        );
    }
    for line in ["proxy = none", "proxy = default:", "torify = a:1\nnoproxy"] {
        let (config, notes) = backend(&format!("{USUAL}{line}\n")).unwrap();
        assert!(!config.tor.enabled && notes.is_empty(), "{line}");
    }
}

#[test]
fn an_origin_on_another_machine_is_taken_with_a_warning() {
    let (config, notes) = backend(&USUAL.replace("localhost", "192.168.1.5")).unwrap();
    assert_eq!(
        flat(&config).1,
        ["http:bob.alice.example:192.168.1.5:49293:hunter2"]
    );
    assert!(
        matches!(notes.as_slice(), [n] if n.starts_with("test.rc:4: ") && n.contains("another machine"))
    );
}

#[test]
fn authorities_are_named_by_their_whole_path() {
    let with = |line: &str| backend(&format!("{USUAL}fe_certname = a.b\n{line}")).unwrap();
    let (config, notes) = with("ca_certs = own.pem");
    assert_eq!(config.ca_file, Some(here().join("own.pem")));
    assert_eq!(notes.len(), 1);
    let (config, notes) = with("ca_certs = /etc/ssl/certs/ca-certificates.crt");
    assert_eq!((config.ca_file, notes.len()), (None, 0));
}

#[test]
fn an_http_origin_hears_of_its_visitors_unless_it_shall_not() {
    let told = |more: &str| {
        let (config, notes) = backend(&format!("{USUAL}{more}\n")).unwrap();
        assert_eq!(notes, [""; 0]);
        config.services[0].tell.clone()
    };
    let usual = told("");
    assert!(usual.forwarded_headers);
    assert_eq!((usual.proxy_protocol, usual.rewrite_host), (None, None));
    let site = "service_cfg = bob.alice.example/80";
    assert!(told(&format!("{site}:rawheaders:False")).forwarded_headers);
    assert!(
        told(&format!(
            "{site}:rawheaders:True\n{site}:rewritehost:x.example"
        ))
        .is_nothing()
    );
    assert_eq!(
        told(&format!("{site}:rewritehost:x.example")).rewrite_host,
        Some("x.example".into())
    );
    assert_eq!(
        told(&format!("{site}:rewritehost:True")).rewrite_host,
        Some("localhost".into())
    );
    assert!(
        told(&format!("{site}:proxyproto:True"))
            .proxy_protocol
            .is_some()
    );
    let tls = USUAL.replace("http:", "https:");
    assert!(backend(&tls).unwrap().0.services[0].tell.is_nothing());
}

/// One warning for each line without a meaning, with its place and without its value.
#[test]
fn what_has_no_meaning_gives_one_warning() {
    for line in [
        "keepalive = 20",
        "all",
        "errorurl = http://hunter2/",
        "dyndns = user:hunter2@dyndns.org",
        "logfile = /hunter2",
        "runas = hunter2:hunter2",
        "daemonize",
        "buffers = 1",
        "httpd = localhost:hunter2",
        "httppass = hunter2",
        "signup",
        "add",
        "service_xmlrpc = hunter2",
        "save",
        "wschunks",
        "ports = 80",
        "domain = http:a:hunter2",
        "service_cfg = bob.alice.example/80:indexes:all",
        "service_cfg = bob.alice.example/8080:rawheaders:True",
        "service_on = http:c.example:localhost:builtin:hunter2",
        "service_on = irc:c.example:localhost:6667:hunter2",
    ] {
        let (_, notes) = backend(&format!("{USUAL}{line}\n")).unwrap();
        let [note] = notes.as_slice() else {
            panic!("{line}: {notes:?}")
        };
        let option = line.split(' ').next().unwrap();
        assert!(
            note.starts_with(&format!("test.rc:5: {option}: ")),
            "{note}"
        );
        assert!(!note.contains("hunter2"), "{note}");
    }
    for line in [
        "new",
        "insecure",
        "nullui",
        "noprobes",
        "nozchunks",
        "noall",
        "clean",
        "service_off = http:off.example:localhost:builtin:s",
        "service_cfg = bob.alice.example/80:rawheaders:True",
        "service_cfg = bob.alice.example/80:insecure:True",
        "service_cfg = bob.alice.example/80:proxyproto:False",
    ] {
        let (_, notes) = backend(&format!("{USUAL}{line}\n")).unwrap();
        assert_eq!(notes, [""; 0], "{line}");
    }
}

#[test]
fn each_mistake_of_a_backend_names_its_line_and_its_remedy() {
    for (line, problem, remedy) in [
        ("service_on = hunter2", "not PROTOCOL:NAME", "http:bob"),
        (
            "service_on = http:a.example:localhost:80:hunter2:x",
            "not PROTOCOL:NAME",
            "':'",
        ),
        (
            "service_on = http:a..b:localhost:80:hunter2",
            "no kite's name",
            "bob.alice",
        ),
        (
            "service_on = http:a.example:localhost:hunter2:x",
            "no number",
            "PORT",
        ),
        (
            "service_on = http:a.example:localhost:0:hunter2",
            "no number",
            "PORT",
        ),
        (
            "service_on = http:a.example:nas.local:80:hunter2",
            "looked up",
            "192.168.1.5:80",
        ),
        (
            "service_on = gopher:a.example:localhost:80:hunter2",
            "no protocol",
            "https",
        ),
        (
            "service_on = raw/0:a.example:localhost:80:hunter2",
            "no port",
            "raw/22",
        ),
        (
            "service_on = http:a.example:localhost:80",
            "no secret",
            "@kitesecret",
        ),
        (
            "service_on = http:a.example:localhost:80:",
            "secret is empty",
            "last part",
        ),
        (
            "service_on = http:bob.alice.example:localhost:81:hunter2",
            "test.rc:4",
            "keep one",
        ),
        (
            "service_on = http,http:a.example:localhost:80:hunter2",
            "test.rc:5",
            "keep one",
        ),
        ("service_cfg = hunter2", "not NAME/PORT", "rawheaders"),
        (
            "service_cfg = bob.alice.example/80:password/eve:hunter2",
            "no password",
            "origin",
        ),
        (
            "service_cfg = bob.alice.example/80:ip/10.1:True",
            "address",
            "origin",
        ),
        ("frontends = hunter2", "not COUNT", "1:"),
        ("frontends = 1:@/file:443", "from a file", "frontend ="),
        ("frontend = a b:80", "'a b' is no host", ""),
        ("frontend = a.example:0", "no port", ""),
        ("fe_certname = fe.example/ab12", "SHA-1", "#sha256"),
        ("fe_certname = a b", "no list of DNS names", ""),
        ("isfrontend", "a frontend's files", "kite frontend"),
        ("local = 80", "at once", "kite frontend"),
        ("hunter2", "no option", "#"),
        ("kitesecret hunter2", "needs a value", "kitesecret ="),
        ("defaults = hunter2", "takes no value", "alone"),
    ] {
        let error = backend(&format!("{USUAL}{line}\n")).expect_err(line);
        let place = if line.starts_with("fe_certname = a b") {
            3
        } else {
            5
        };
        assert!(
            error.contains(&format!("test.rc:{place}: ")),
            "{line}: {error}"
        );
        assert!(
            error.contains(problem) && error.contains(remedy),
            "{line}: {error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    for (line, problem) in [
        ("kitename", "@kitename has no value"),
        ("kitesecret", "@kitesecret has no value"),
    ] {
        let text: String = USUAL
            .lines()
            .filter(|l| !l.starts_with(line))
            .map(|l| format!("{l}\n"))
            .collect();
        let error = backend(&text).expect_err(line);
        assert!(
            error.contains("test.rc:3: ") && error.contains(problem),
            "{error}"
        );
    }
    let none = backend("frontend = a.example\n").unwrap_err();
    assert!(none.contains("there is no kite to fly"), "{none}");
    let none = backend("service_on=http:a.example:localhost:80:s\n").unwrap_err();
    assert!(none.contains("there is no frontend to dial"), "{none}");
}

// ----------------------------------------------------------------- frontend

const FRONTEND: &str = "isfrontend\n\
                        host = 192.0.2.1\n\
                        ports = 80, 443\n\
                        protos = http, https\n\
                        rawports = virtual\n\
                        domain = * : *.alice.example : s1\n\
                        domain = raw,websocket:bob.alice.example:s2\n";

#[test]
fn a_frontends_file_is_read_as_it_is() {
    let (config, notes) = frontend(FRONTEND).unwrap();
    assert_eq!(notes, [""; 0]);
    let listen: Vec<String> = config
        .listen
        .iter()
        .map(|l| l.address.to_string())
        .collect();
    assert_eq!(listen, ["192.0.2.1:80", "192.0.2.1:443"]);
    let grant = |g: &crate::config::Grant| {
        let protocols: Vec<String> = g.protocols.iter().map(ToString::to_string).collect();
        let secret = String::from_utf8_lossy(g.secret.expose()).into_owned();
        format!("{}:{}:{secret}", protocols.join(","), g.pattern)
    };
    let grants: Vec<String> = config.kites.iter().map(grant).collect();
    assert_eq!(
        grants,
        [
            "https,http:*.alice.example:s1",
            "websocket,raw:bob.alice.example:s2"
        ]
    );
    let more = frontend(&format!(
        "{FRONTEND}motd = Cargo.toml\nratelimit_ips = 9/60\nratelimit_ips = Alice.example:5/60\ndomain=raw:carol.example:s3\n"
    ));
    let config = more.unwrap().0;
    let tls = frontend(&format!(
        "{FRONTEND}tls_endpoint = a.example:/a.pem\ntls_endpoint = b.example : b.pem\ntls_default = b.example\n"
    ));
    let shown = |c: &crate::config::CertificateFiles| {
        (c.cert.clone(), c.key == c.cert, c.endpoints, c.default)
    };
    let certificates: Vec<_> = tls.unwrap().0.certificates.iter().map(shown).collect();
    assert_eq!(
        certificates,
        [
            ("/a.pem".into(), true, true, false),
            (here().join("b.pem"), true, true, true)
        ]
    );
    assert_eq!(config.motd, Some(here().join("Cargo.toml")));
    let rates: Vec<_> = config
        .kites
        .iter()
        .map(|k| k.limits.visitors.map(|r| r.to_string()))
        .collect();
    assert_eq!(
        rates,
        [
            Some("5/60".into()),
            Some("5/60".into()),
            Some("9/60".to_owned())
        ]
    );
    let auth = frontend(
        "isfrontend\nauthdomain = x.example:/bin/x\nauthdomain = /bin/sh\nauthdomain=Y.example:/bin/sh\nratelimit_ips = y.example:5/60\nauthfail_closed\n",
    );
    let (config, notes) = auth.unwrap();
    assert_eq!(notes, [""; 0]);
    let of = |a: &crate::frontend::authority::Authority| {
        (
            a.domain.as_ref().map(ToString::to_string),
            a.limits.visitors.map(|r| r.to_string()),
        )
    };
    let authorities: Vec<_> = config.authorities.iter().map(of).collect();
    assert_eq!(
        authorities,
        [
            (None, None),
            (Some("y.example".to_owned()), Some("5/60".to_owned()))
        ]
    );
    let usual = frontend("isfrontend\ndomain=*:a.example:s\n").unwrap().0;
    assert_eq!(usual.listen[0].address.to_string(), "0.0.0.0:80");
    let v6 = frontend("isfrontend\nhost=::\ndomain=*:a.example:s\n")
        .unwrap()
        .0;
    assert_eq!(v6.listen[0].address.to_string(), "[::]:80");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    let own = "ab".repeat(32);
    let said = [
        frontend(&format!("isfrontend\ndomain = http:{own}:bob.example\n")).err(),
        backend(&format!(
            "frontend = a.example:80\nservice_on = http:{own}:localhost:80:bob.example\n"
        ))
        .err(),
    ];
    for said in said {
        let said = said.expect("a mistake").to_string();
        assert!(
            said.contains("no kite's name") && !said.contains(&own),
            "{said}"
        );
    }
}

#[test]
fn what_has_no_meaning_to_a_frontend_gives_one_warning() {
    for line in [
        "overload = 5",
        "dns_hints = a,b",
        "upgradeinfo = a;b;c;d;e",
        "service_on = http:x.example:localhost:80:hunter2",
        "frontend = a.example:80",
        "domain = irc:c.example:hunter2",
        "domain = raw-22:c.example:hunter2",
        "rawports = 22",
        "portalias = 8080:80",
        "tls_default = alice.example",
        "authdomain = /bin/sh",
        "tls_ciphers = hunter2",
        "keepalive = 20",
    ] {
        let (_, notes) = frontend(&format!("{FRONTEND}{line}\n")).unwrap();
        let [note] = notes.as_slice() else {
            panic!("{line}: {notes:?}")
        };
        let option = line.split(' ').next().unwrap();
        assert!(
            note.starts_with(&format!("test.rc:8: {option}: ")),
            "{note}"
        );
        assert!(!note.contains("hunter2"), "{note}");
    }
    for line in ["noupgradeinfo", "auththreads = 4", "rawports = virtual"] {
        let (_, notes) = frontend(&format!("{FRONTEND}{line}\n")).unwrap();
        assert_eq!(notes, [""; 0], "{line}");
    }
}

#[test]
fn each_mistake_of_a_frontend_names_its_line_and_its_remedy() {
    for (line, problem, remedy) in [
        ("host = alice.example", "looked up", "numbers"),
        ("ports = 80,x", "no ports", "65535"),
        ("ports =", "no ports", "65535"),
        ("rawports = hunter2", "something else", "virtual"),
        ("portalias = 8080", "not PORT:PORT", "8080:80"),
        ("tls_endpoint = hunter2", "not NAME:FILE", "pem"),
        ("motd = /nowhere", "no such file", "message"),
        ("client_acl = deny:hunter2", "by their address", "firewall"),
        ("ratelimit_ips = many", "not VISITORS/SECONDS", "20/60"),
        ("ratelimit_ips = a:0/60", "not VISITORS/SECONDS", "20/60"),
        ("domain = http:hunter2", "not PROTOCOL:NAME", "SECRET"),
        ("domain = http:a:b:hunter2", "not PROTOCOL:NAME", "':'"),
        ("domain = http:*:hunter2", "no kite's name", "*.alice"),
        ("domain = gopher:a.example:hunter2", "no protocol", "https"),
        ("domain = http:a.example:", "secret is empty", "last part"),
        (
            "domain = http:*.alice.example:hunter2",
            "test.rc:6",
            "keep one",
        ),
    ] {
        let error = frontend(&format!("{FRONTEND}{line}\n")).expect_err(line);
        assert!(error.contains("test.rc:8: "), "{line}: {error}");
        assert!(
            error.contains(problem) && error.contains(remedy),
            "{line}: {error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = frontend(USUAL).unwrap_err();
    assert!(
        error.starts_with("test.rc: ") && error.contains("kite backend"),
        "{error}"
    );
    let error = frontend("isfrontend\n").unwrap_err();
    assert!(error.contains("no kite may fly here"), "{error}");
}

// -------------------------------------------------------------------- files

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn read(dir: &Path) -> Result<Vec<&'static str>, String> {
    let rc = Rc::read(&[dir.to_path_buf()]);
    rc.map(|rc| rc.settings.iter().map(|s| s.name).collect())
        .map_err(|e| ConfigError::from(e).to_string())
}

#[test]
fn a_directorys_files_are_read_in_order_and_name_others() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("more")).unwrap();
    write(d, "20_b.rc", "new");
    write(
        d,
        "10_a.rc",
        &format!(
            "all\noptfile = {}\nnoall\nEND\n!",
            d.join("other").display()
        ),
    );
    write(
        d,
        "other",
        &format!("defaults\noptdir = {}\nEND", d.join("more").display()),
    );
    write(d, "more/x.rc", "insecure");
    for (name, text) in [("30.rc.sample", "!"), (".hidden.rc", "!"), ("README", "!")] {
        write(d, name, text);
    }
    assert_eq!(
        read(d).unwrap(),
        ["all", "defaults", "insecure", "noall", "new"]
    );
    assert!(is_rc(d) && is_rc(Path::new("/x/.pagekite.rc")) && is_rc(Path::new("a.rc")));
    assert!(!is_rc(Path::new("backend.toml")) && !is_rc(Path::new("rc")));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    assert!(read(d).unwrap_err().contains("no .rc file"));
    write(d, "a.rc", "new\noptfile = /nowhere");
    assert!(
        read(d)
            .unwrap_err()
            .contains("a.rc:2: optfile: there is nothing")
    );
    write(
        d,
        "a.rc",
        &format!("optfile = {}", d.join("a.rc").display()),
    );
    assert!(read(d).unwrap_err().contains("too often"));
    let twice = format!("optdir = {}\n", d.display()).repeat(2);
    write(d, "a.rc", &twice);
    assert!(read(d).unwrap_err().contains("too often"));
    fs::write(d.join("a.rc"), b"kitename = \xff").unwrap();
    assert!(read(d).unwrap_err().contains("not UTF-8"));
}

#[test]
fn a_file_with_a_secret_that_others_may_read_gives_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let notes = |mode, text: &str| {
        write(dir.path(), "a.rc", text);
        let path = dir.path().join("a.rc");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        shown(&Rc::read(&[path]).unwrap().notes)
    };
    assert_eq!(notes(0o600, USUAL), [""; 0]);
    assert_eq!(notes(0o644, "defaults"), [""; 0]);
    let warned = notes(0o640, USUAL);
    assert!(matches!(warned.as_slice(), [n] if n.contains("chmod 600") && !n.contains("hunter2")));
}

// ------------------------------------------------------------------- import

/// Imports a text, and reads what was written.
fn imported(text: &str) -> Result<(tempfile::TempDir, String), String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "test.rc", text);
    let args = ImportArgs {
        files: vec![dir.path().join("test.rc")],
        to: dir.path().join("new"),
    };
    let mut said = Vec::new();
    import::run(&args, &mut said).map_err(|e| e.to_string())?;
    Ok((dir, String::from_utf8(said).unwrap()))
}

fn load_backend(dir: &tempfile::TempDir) -> BackendConfig {
    let config = Some(dir.path().join("new/backend.toml"));
    let args = BackendArgs {
        config,
        ..BackendArgs::default()
    };
    BackendConfig::load(&args).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn an_import_is_what_the_rc_file_was() {
    let text = format!(
        "{USUAL}keepalive = 20\ninsecure\ntorify = localhost:9050\nca_certs = /own.pem\nfe_certname = fe.example\n\
         service_on = https:@kitename:10.0.0.5:443:other\nservice_on = http:c.example:localhost:1:@kitesecret\n\
         service_on = http:*.d.example:localhost:1:third\n"
    );
    let (dir, said) = imported(&text).unwrap();
    assert_eq!(load_backend(&dir), backend(&text).unwrap().0);
    let new = dir.path().join("new");
    let mut names: Vec<_> = fs::read_dir(&new)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "any.d.example.secret",
            "backend.toml",
            "bob.alice.example-2.secret",
            "bob.alice.example.secret"
        ]
    );
    for name in &names[..1] {
        let mode = fs::metadata(new.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let toml = fs::read_to_string(new.join("backend.toml")).unwrap();
    for secret in ["hunter2", "\"other\"", "third"] {
        assert!(!toml.contains(secret) && !said.contains(secret), "{secret}");
    }
    assert!(
        toml.contains("test.rc:5: keepalive: ") && toml.contains("test.rc:6: insecure: "),
        "{toml}"
    );
    assert!(
        said.contains("test.rc:5: keepalive: ") && said.contains("kite backend --config"),
        "{said}"
    );
}

#[test]
fn an_imported_frontend_is_what_the_rc_file_was() {
    let (dir, _) = imported(FRONTEND).unwrap();
    let args = FrontendArgs {
        config: Some(dir.path().join("new/frontend.toml")),
        ..FrontendArgs::default()
    };
    // Where the secrets are read from differs: the rc file has them in it.
    let unread = |config| FrontendConfig {
        read_from: Vec::new(),
        ..config
    };
    let loaded = FrontendConfig::load(&args).unwrap();
    assert_eq!(unread(loaded), unread(frontend(FRONTEND).unwrap().0));
}

#[test]
fn an_import_overwrites_nothing_and_leaves_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "test.rc", USUAL);
    write(dir.path(), "backend.toml", "mine");
    let args = ImportArgs {
        files: vec![dir.path().join("test.rc")],
        to: dir.path().to_path_buf(),
    };
    let error = import::run(&args, &mut Vec::new()).unwrap_err().to_string();
    assert!(
        error.contains("backend.toml: it is there already"),
        "{error}"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("backend.toml")).unwrap(),
        "mine"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert!(
        imported("kitename = x")
            .unwrap_err()
            .contains("no frontend")
    );
}

// --------------------------------------------------------------- properties

/// A line that a backend's file may have, most of them sensible.
fn line() -> impl Strategy<Value = String> {
    let name = "[a-d]{1,2}\\.(alice|carol)\\.example";
    let host = prop::sample::select(vec!["localhost", "127.0.0.1", "", "10.0.0.5"]);
    let protocols = prop::sample::select(vec![
        "http",
        "https",
        "websocket",
        "http,https",
        "raw",
        "tls",
        "irc",
    ]);
    // A text names no files that could be read.
    let kept = options::OPTIONS
        .iter()
        .filter(|o| o.meaning != options::Meaning::Include);
    let option = prop::sample::select(kept.map(|o| o.name).collect::<Vec<_>>());
    prop_oneof![
        4 => (protocols, name, host, 1..65535u16, "[a-zA-Z0-9 #\"\\\\é]{1,12}x")
            .prop_map(|(p, n, h, port, s)| format!("service_on = {p}:{n}:{h}:{port}:{s}")),
        2 => (name, 1..65535u16).prop_map(|(n, p)| format!("frontend = {n}:{p}")),
        1 => name.prop_map(|n| format!("fe_certname = {n}")),
        1 => (name, "[a-z/]{1,10}").prop_map(|(n, k)| format!("service_cfg = {n}/80:{k}:True")),
        1 => "[a-z/ .]{1,10}".prop_map(|p| format!("ca_certs = {p}")),
        1 => (option, prop::option::of("[a-z0-9.:,/@]{0,12}")).prop_map(|(o, v)| match v {
            Some(v) => format!("{o} = {v}"),
            None => o.to_owned(),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever loads, loads the same after an import.
    #[test]
    fn an_import_changes_nothing(lines in prop::collection::vec(line(), 1..12)) {
        let text = format!("frontend = f.example:443\n{}\nservice_on=http:z.example:localhost:1:s\n", lines.join("\n"));
        if let Ok((config, _)) = backend(&text).map_err(|e| assert!(e.contains("to mend it"), "{e}")) {
            let (dir, _) = imported(&text).unwrap();
            prop_assert_eq!(load_backend(&dir), config);
        }
    }

    /// Any text at all is a configuration or one mistake, and both roles live.
    #[test]
    fn any_text_is_judged(text in "(?s).{0,120}", lines in prop::collection::vec(line(), 0..6)) {
        let text = format!("{}\n{text}", lines.join("\n"));
        let _ = backend(&text);
        let _ = frontend(&format!("isfrontend\n{text}"));
        let _ = frontend(&text);
    }

    /// Nor do the values of single options harm.
    #[test]
    fn any_value_is_judged(
        option in prop::sample::select(options::OPTIONS.iter().map(|o| o.name).collect::<Vec<_>>()),
        value in "[a-z0-9.:,/@*=\\-é\"]{0,40}",
    ) {
        let _ = backend(&format!("{USUAL}{option} = {value}\n"));
        let _ = frontend(&format!("{FRONTEND}{option} = {value}\n"));
    }
}
