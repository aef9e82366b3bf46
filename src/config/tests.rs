use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::proxy_header::Version;

/// A directory with a secret that only its owner can read.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "bob.secret", "hunter2\n");
    fs::set_permissions(
        dir.path().join("bob.secret"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    dir
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap();
}

fn frontend(dir: &tempfile::TempDir, text: &str) -> Result<FrontendConfig> {
    write(dir, "frontend.toml", text);
    let config = Some(dir.path().join("frontend.toml"));
    FrontendConfig::with_secret(
        &FrontendArgs {
            config,
            ..FrontendArgs::default()
        },
        None,
    )
}

fn backend(dir: &tempfile::TempDir, text: &str) -> Result<BackendConfig> {
    write(dir, "backend.toml", text);
    let config = Some(dir.path().join("backend.toml"));
    BackendConfig::with_secret(
        &BackendArgs {
            config,
            ..BackendArgs::default()
        },
        None,
    )
}

const FRONTEND: &str = r#"
listen = ["0.0.0.0:80", { address = "[::]:8443", kite = "bob.alice.example" }]
state_dir = "state"
[[kites]]
name = "*.alice.example"
protocols = ["foolscap", "tahoe-https"]
secret_file = "bob.secret"
"#;

#[test]
fn a_kites_own_limits_come_before_the_frontends() {
    let dir = place();
    write(&dir, "motd", "hello");
    let text = format!(
        "motd_file = \"motd\"\n{FRONTEND}\nexpires = \"2027-01-31\"\n\
         limits = {{ quota = \"1GB\", visitors = \"5/60\" }}\n\
         [limits]\nquota = \"5GB\"\nperiod_days = 30\nstreams = 100\n"
    );
    let config = frontend(&dir, &text).unwrap();
    assert_eq!(config.motd, Some(dir.path().join("motd")));
    let grant = &config.kites[0];
    assert_eq!(grant.expires, Some(1_801_440_000));
    let limits = &grant.limits;
    assert_eq!(limits.quota.map(|size| size.0), Some(1 << 30));
    assert_eq!((limits.period_days, limits.streams), (Some(30), Some(100)));
    assert_eq!(limits.visitors.map(|rate| rate.count), Some(5));
    assert_eq!(config.limits.visitors, None);
}

#[test]
fn a_policy_that_leaves_nothing_is_a_mistake() {
    let dir = place();
    let error = |text: &str| match frontend(&dir, text) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("no error: {text}"),
    };
    let storage = format!("policy = \"storage-only\"\n{FRONTEND}");
    let with = |words: &str| storage.replace("\"foolscap\", \"tahoe-https\"", words);
    let both = with("\"http\", \"foolscap\"");
    assert_eq!(frontend(&dir, &both).unwrap().policy, Policy::StorageOnly);
    assert_eq!(frontend(&dir, FRONTEND).unwrap().policy, Policy::Any);
    let said = error(&with("\"http\""));
    assert!(said.contains("carries nothing of what"), "{said}");
    let said = error(&format!("policy = \"storage\"\n{FRONTEND}"));
    assert!(said.contains("unknown variant"), "{said}");
}

#[test]
fn an_open_frontend_needs_no_kites_and_has_limits_of_its_own() {
    let dir = place();
    let load = |text: &str| {
        let text = format!("listen = [\"0.0.0.0:80\"]\nstate_dir = \"state\"\n{text}");
        frontend(&dir, &text)
    };
    let open = |text: &str| load(text).unwrap().open.expect("it is open");
    let usual = open("[open]\ndomain = \"alice.example\"\n");
    assert_eq!((usual.kites, usual.per_address), (1000, 64));
    assert_eq!(usual.proof, OpenProof::Key);
    assert_eq!(usual.limits.quota.map(|q| q.0), Some(100 << 30));
    assert_eq!(usual.limits.period_days, Some(30));
    let own = open(
        "[limits]\nstreams = 5\n[open]\ndomain = \"alice.example\"\nproof = \"node\"\nkites = 7\n\
         limits = { quota = \"1GB\" }\n",
    );
    assert_eq!((own.kites, own.proof), (7, OpenProof::Node));
    assert_eq!(own.limits.quota.map(|q| q.0), Some(1 << 30));
    assert_eq!(
        (own.limits.period_days, own.limits.streams),
        (None, Some(5))
    );
    for (text, words) in [
        (
            "domain = \"*.alice.example\"",
            "open.domain: kites cannot be called",
        ),
        (
            "domain = \"alice.example\"\nkites = 0",
            "open.kites: with none",
        ),
        (
            "domain = \"alice.example\"\nproof = \"none\"",
            "unknown variant",
        ),
        ("kites = 1", "missing field `domain`"),
    ] {
        let said = load(&format!("[open]\n{text}\n")).unwrap_err().to_string();
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn a_kite_may_be_proved_by_its_tub() {
    let dir = place();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["newpb_thingy".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = certificate.pem() + &key.serialize_pem();
    let tub = crate::tub::tub_of(certificate.der());
    write(&dir, "node.pem", &pem);
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("node.pem");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o600);
    let load = |name: &str, rest: &str| {
        let text = format!(
            "[[frontends]]\naddress = \"plain://alice.example:80\"\n[[kites]]\nname = \"{name}.alice.example\"\n\
             origin = \"127.0.0.1:49293\"\nproof = \"tub\"\n{rest}\n"
        );
        backend(&dir, &text)
    };
    let by_key = load(&tub, "secret_file = \"node.pem\"").unwrap();
    let kite = &by_key.services[0];
    assert_eq!(
        (kite.by, kite.tub.map(|t| t.as_str().to_owned())),
        (ProvenBy::TubKey, Some(tub.clone()))
    );
    assert_eq!(kite.secret.expose(), pem.trim().as_bytes());
    assert_eq!(load(&tub, "").unwrap().services[0].by, ProvenBy::Node);
    let other = "a".repeat(32);
    for (name, rest, words) in [
        (
            other.as_str(),
            "secret_file = \"node.pem\"",
            "the key of another tub",
        ),
        ("bob", "", "does not begin with a TubID"),
        (
            tub.as_str(),
            "protocol = \"http\"",
            "has no tub to prove itself by",
        ),
        (tub.as_str(), "port = 80", "has no tub to prove itself by"),
        (
            tub.as_str(),
            "secret_file = \"absent\"",
            "there is no such file",
        ),
    ] {
        let said = load(name, rest).unwrap_err().to_string();
        assert!(said.contains(words), "{rest}: {said}");
        assert!(!said.contains(&key.serialize_pem()));
    }
    // As Tahoe writes it, in a directory that is closed, and in one that is not.
    mode(0o644);
    let closed = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    closed(0o700);
    assert!(load(&tub, "secret_file = \"node.pem\"").is_ok());
    closed(0o755);
    let said = load(&tub, "secret_file = \"node.pem\"")
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("other users may read this key (mode 644)"),
        "{said}"
    );
    // A link is as good as what it leads to: where that lies is looked at, not where the link does.
    let shut = tempfile::tempdir().unwrap();
    let shut_mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(shut.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    shut_mode(0o700);
    std::fs::rename(dir.path().join("node.pem"), shut.path().join("node.pem")).unwrap();
    std::os::unix::fs::symlink(shut.path().join("node.pem"), dir.path().join("node.pem")).unwrap();
    assert!(load(&tub, "secret_file = \"node.pem\"").is_ok());
    shut_mode(0o755);
    closed(0o700);
    let said = load(&tub, "secret_file = \"node.pem\"").unwrap_err();
    assert!(said.to_string().contains("other users may read this key"));
}

/// Nothing has changed, so no tunnel is made anew.
#[test]
fn a_kite_without_a_key_is_the_same_at_each_load() {
    let dir = place();
    let name = "a".repeat(32);
    let load = || {
        let text = format!(
            "[[frontends]]\naddress = \"plain://alice.example:80\"\n[[kites]]\nname = \"{name}.alice.example\"\n\
             origin = \"127.0.0.1:49293\"\nproof = \"tub\"\n"
        );
        backend(&dir, &text).unwrap().services.remove(0)
    };
    let (first, second) = (load(), load());
    assert!(first.is_proved_as(&second));
    let secret = |text: &str| Service {
        by: ProvenBy::Secret,
        secret: Secret::new(text.as_bytes()).unwrap(),
        ..load()
    };
    assert!(secret("one").is_proved_as(&secret("one")));
    assert!(!secret("one").is_proved_as(&secret("other")));
    assert!(!secret("one").is_proved_as(&first));
}

#[test]
fn authorities_are_read_and_bad_ones_are_named() {
    let dir = place();
    let listen = "listen = [\"0.0.0.0:80\"]\nstate_dir = \"state\"\n[[authorities]]\n";
    let load = |text: &str| frontend(&dir, &format!("{listen}{text}"));
    let dns = "dns = \"auth.example\"\nresolver = \"127.0.0.1:5353\"\n";
    let config = load(&format!("{dns}domain = \"alice.example\"\nparallel = 3\n")).unwrap();
    assert!(config.kites.is_empty());
    let authority = &config.authorities[0];
    assert_eq!(authority.parallel, 3);
    assert_eq!(
        authority.source,
        Asked::Dns {
            suffix: "auth.example".parse().unwrap(),
            resolver: "127.0.0.1:5353".parse().unwrap(),
        }
    );
    assert!(load("program = \"/bin/sh\"\n").is_ok());
    write(&dir, "plain", "no program");
    let plain = format!("program = \"{}\"\n", dir.path().join("plain").display());
    for (text, words) in [
        ("", "authorities[0]: it has not one way"),
        (
            "program = \"/bin/sh\"\ndns = \"auth.example\"\n",
            "it has not one way",
        ),
        (
            "program = \"sh\"\n",
            "authorities[0].program: sh is no absolute path",
        ),
        ("program = \"/no/such/program\"\n", "there is no such file"),
        (plain.as_str(), "is no program"),
        (
            "dns = \"a b\"\n",
            "authorities[0].dns: 'a b' is no kite name",
        ),
        (
            "dns = \"a.b\"\nresolver = \"localhost\"\n",
            "no address with a port",
        ),
        (
            "program = \"/bin/sh\"\nparallel = 0\n",
            "0 questions at one time",
        ),
    ] {
        let said = load(text).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn bad_limits_say_where_and_what_to_write() {
    let dir = place();
    let error = |text: &str| match frontend(&dir, &format!("{FRONTEND}{text}")) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("no error: {text}"),
    };
    for (text, words) in [
        ("expires = \"soon\"", "kites[0].expires: 'soon' is no date"),
        ("limits = { quota = \"5\" }", "no amount with a unit"),
        ("limits = { rate = \"5\" }", "not NUMBER/SECONDS"),
        ("limits = { speed = 5 }", "unknown field `speed`"),
        ("[limits]\nstreams = -1", "invalid value"),
    ] {
        let said = error(text);
        assert!(said.contains(words), "{text}: {said}");
        assert!(said.contains("to mend it"), "{said}");
    }
    let missing = frontend(&dir, &format!("motd_file = \"none\"\n{FRONTEND}"));
    assert!(missing.is_err_and(|e| e.to_string().contains("there is no such file")));
}

const BACKEND: &str = r#"
state_dir = "state"
[tor]
enabled = true
config = "arti.toml"
[[frontends]]
address = "alice.example:443"
kites = ["bob.alice.example"]
[[kites]]
name = "bob.alice.example"
origin = "127.0.0.1:49293"
secret_file = "bob.secret"
"#;

#[test]
fn a_frontends_file_is_read() {
    let dir = place();
    let config = frontend(&dir, FRONTEND).unwrap();
    assert_eq!(config.listen[1].address, "[::]:8443".parse().unwrap());
    assert_eq!(
        config.listen[1].kite,
        Some("bob.alice.example".parse().unwrap())
    );
    assert_eq!(config.kites[0].secret, Secret::new(b"hunter2").unwrap());
    assert_eq!(config.state_dir, dir.path().join("state"));
    // The table form is the same list.
    let tables = FRONTEND.replace(
        "listen = [\"0.0.0.0:80\", { address = \"[::]:8443\", kite = \"bob.alice.example\" }]\nstate_dir = \"state\"",
        "state_dir = \"state\"\n[[listen]]\naddress = \"0.0.0.0:80\"\n[[listen]]\naddress = \"[::]:8443\"\nkite = \"bob.alice.example\"",
    );
    assert_eq!(frontend(&dir, &tables).unwrap().listen, config.listen);
}

#[test]
fn an_onion_frontends_file_is_read() {
    let dir = place();
    let plain = frontend(&dir, FRONTEND).unwrap();
    assert!(!plain.onion.enabled);
    let text = format!("onion = true\n{FRONTEND}[tor]\nconfig = \"arti.toml\"\n");
    let config = frontend(&dir, &text).unwrap();
    assert!(config.onion.enabled);
    assert_eq!(config.onion.config, Some(dir.path().join("arti.toml")));
    // Settings for a Tor that is not started are a mistake.
    let error = frontend(&dir, &text.replace("onion = true", "onion = false"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tor.config") && error.contains("--onion"),
        "{error}"
    );
}

#[test]
fn a_backends_file_is_read() {
    let dir = place();
    let config = backend(&dir, BACKEND).unwrap();
    assert!(config.tor.enabled);
    assert_eq!(config.tor.config, Some(dir.path().join("arti.toml")));
    assert_eq!(config.services[0].protocol, Protocol::Foolscap);
    assert_eq!(config.frontends[0].kites.as_ref().map(Vec::len), Some(1));
}

#[test]
fn flags_replace_the_files_keys() {
    let dir = place();
    write(&dir, "frontend.toml", FRONTEND);
    let args = FrontendArgs {
        config: Some(dir.path().join("frontend.toml")),
        listen: vec!["127.0.0.1:9=x.bob.example".into()],
        domain: vec!["*.bob.example".into()],
        ..FrontendArgs::default()
    };
    let config = FrontendConfig::with_secret(&args, Some("from the environment")).unwrap();
    assert_eq!(config.listen.len(), 1);
    assert_eq!(
        config.kites[0].protocols,
        BTreeSet::from([Protocol::Foolscap])
    );
    assert_eq!(
        config.kites[0].secret,
        Secret::new(b"from the environment").unwrap()
    );
}

#[test]
fn each_mistake_names_its_place_and_its_remedy() {
    let dir = place();
    write(&dir, "open.secret", "x");
    fs::set_permissions(
        dir.path().join("open.secret"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    write(&dir, "empty.secret", "\n");
    fs::set_permissions(
        dir.path().join("empty.secret"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    for (from, to, place, remedy) in [
        ("state_dir", "stat_dir", "stat_dir", "keys"),
        ("0.0.0.0:80", "0.0.0.0", "listen[0]", "0.0.0.0:443"),
        (
            "*.alice.example",
            "*.alice..example",
            "kites[0].name",
            "DNS name",
        ),
        (
            "\"foolscap\",",
            "\"foolscrap\",",
            "kites[0].protocols",
            "correct",
        ),
        ("bob.secret", "none.secret", "none.secret", "chmod 600"),
        ("bob.secret", "open.secret", "open.secret", "chmod 600"),
        (
            "bob.secret",
            "empty.secret",
            "empty.secret",
            "put the secret",
        ),
        (
            "kite = \"bob.alice.example\"",
            "kite = \"bob.carol.example\"",
            "listen",
            "covers",
        ),
        (
            "kite = \"bob.alice.example\"",
            "kite = \"*.alice.example\"",
            "listen[1]",
            "one kite",
        ),
        (
            "secret_file",
            "proof = \"always\"\nsecret_file",
            "`always`",
            "keys",
        ),
        (
            "kite = \"bob.alice.example\" }",
            "proxy_protocol = true }",
            "listen[1].proxy_from",
            "10.0.0.5",
        ),
        (
            "kite = \"bob.alice.example\" }",
            "proxy_from = [\"10.0.0.5\"] }",
            "listen[1].proxy_from",
            "proxy_protocol = true",
        ),
        (
            "kite = \"bob.alice.example\" }",
            "proxy_protocol = true, proxy_from = [\"0.0.0.0/0\"] }",
            "listen[1].proxy_from",
            "everyone",
        ),
        (
            "kite = \"bob.alice.example\" }",
            "proxy_protocol = \"v2\", proxy_from = [\"10.0.0.5\"] }",
            "proxy_protocol",
            "true or false",
        ),
    ] {
        let text = FRONTEND.replace(from, to);
        assert_ne!(text, FRONTEND);
        let error = frontend(&dir, &text).unwrap_err().to_string();
        assert!(
            error.contains("frontend.toml") && error.contains(place) && error.contains(remedy),
            "{error}"
        );
    }
    for (from, to, place, remedy) in [
        (
            "alice.example:443\"",
            "alice.example\"",
            "frontends[0]",
            "port",
        ),
        (
            "127.0.0.1:49293",
            "localhost:49293",
            "kites[0].origin",
            "127.0.0.1:49293",
        ),
        (
            "127.0.0.1:49293",
            "10.0.0.5:49293",
            "kites[0].origin",
            "allow_origin",
        ),
        (
            "enabled = true",
            "enabled = false",
            "tor.config",
            "--via-tor",
        ),
        (
            "kites = [\"bob.alice.example\"]",
            "kites = [\"eve.alice.example\"]",
            "frontends",
            "correct the name",
        ),
        ("[[frontends]]", "[[frontend]]", "frontend", "keys"),
        ("\"127.0.0.1:49293\"", "49293", "origin", "keys"),
        (
            "origin",
            "tub_id = \"rznjxrmn\"\norigin",
            "kites[0].tub_id",
            "my_nodeid",
        ),
        (
            "origin",
            "protocol = \"tahoe-https\"\ntub_id = \"rznjxrmn666ovyilykucaws7ap26djwf\"\norigin",
            "kites[0].tub_id",
            "remove it",
        ),
        ("origin", "proxy_protocol = \"v3\"\norigin", "`v3`", "keys"),
        (
            "origin",
            "forwarded_headers = true\norigin",
            "kites[0].forwarded_headers",
            "proxy_protocol",
        ),
        (
            "origin",
            "protocol = \"https\"\nrewrite_host = \"intranet\"\norigin",
            "kites[0].rewrite_host",
            "https kite",
        ),
        (
            "origin",
            "protocol = \"http\"\nrewrite_host = \"a\\r\\nX: y\"\norigin",
            "kites[0].rewrite_host",
            "127.0.0.1:8080",
        ),
    ] {
        let text = BACKEND.replace(from, to);
        assert_ne!(text, BACKEND);
        let error = backend(&dir, &text).unwrap_err().to_string();
        assert!(
            error.contains("backend.toml") && error.contains(place) && error.contains(remedy),
            "{error}"
        );
    }
}

#[test]
fn an_onion_frontend_needs_tor() {
    let onion = format!("{}d.onion:443", "a".repeat(55));
    let args = BackendArgs {
        frontend: vec![onion],
        services: vec!["foolscap:bob.alice.example:127.0.0.1:1".into()],
        ..BackendArgs::default()
    };
    let error = BackendConfig::with_secret(&args, Some("s"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--via-tor"), "{error}");
}

#[test]
fn a_socks_port_is_on_loopback_and_in_tor() {
    let dir = place();
    let with = |socks: &str| {
        let line = format!("enabled = true\nsocks_listen = \"{socks}\"");
        BACKEND.replace("enabled = true", &line)
    };
    for good in ["127.0.0.1:9150", "[::1]:9150"] {
        assert_eq!(
            backend(&dir, &with(good)).unwrap().socks,
            Some(good.parse().unwrap())
        );
    }
    for bad in [
        "0.0.0.0:9150",
        "10.0.0.5:9150",
        "[::]:9150",
        "localhost:9150",
        "9150",
    ] {
        let error = backend(&dir, &with(bad)).unwrap_err().to_string();
        assert!(
            error.contains("tor.socks_listen") && error.contains("127.0.0.1:9150"),
            "{error}"
        );
    }
    let off = with("127.0.0.1:9150")
        .replace("enabled = true", "enabled = false")
        .replace("config = \"arti.toml\"", "");
    let error = backend(&dir, &off).unwrap_err().to_string();
    assert!(
        error.contains("tor.socks_listen") && error.contains("--via-tor"),
        "{error}"
    );
}

#[test]
fn a_listed_origin_is_taken() {
    let dir = place();
    let text = BACKEND.replace("127.0.0.1:49293", "10.0.0.5:49293");
    let text = format!("allow_origin = [\"10.0.0.5\"]\n{text}");
    assert_eq!(
        backend(&dir, &text).unwrap().services[0].origin.to_string(),
        "10.0.0.5:49293"
    );
}

#[test]
fn a_kites_tub_is_read() {
    let dir = place();
    assert_eq!(backend(&dir, BACKEND).unwrap().services[0].tub, None);
    let tub = "rznjxrmn666ovyilykucaws7ap26djwf";
    let text = BACKEND.replace("origin", &format!("tub_id = \"{tub}\"\norigin"));
    assert_eq!(
        backend(&dir, &text).unwrap().services[0].tub,
        Some(tub.parse().unwrap())
    );
}

#[test]
fn what_an_origin_is_told_is_read() {
    let dir = place();
    let tell = |keys: &str| {
        let text = BACKEND.replace("origin", &format!("{keys}\norigin"));
        backend(&dir, &text).map(|config| config.services[0].tell.clone())
    };
    assert!(tell("").unwrap().is_nothing());
    for (word, version) in [("v1", Version::V1), ("v2", Version::V2)] {
        for protocol in Protocol::ALL {
            let keys = format!("protocol = \"{protocol}\"\nproxy_protocol = \"{word}\"");
            assert_eq!(tell(&keys).unwrap().proxy_protocol, Some(version));
        }
    }
    for protocol in ["http", "websocket"] {
        let keys = format!("protocol = \"{protocol}\"\nforwarded_headers = true");
        assert!(tell(&keys).unwrap().forwarded_headers);
    }
    let host = |host: &str| tell(&format!("protocol = \"http\"\nrewrite_host = \"{host}\""));
    for good in [
        "intranet",
        "intranet.example:8080",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]:8080",
    ] {
        assert_eq!(host(good).unwrap().rewrite_host.as_deref(), Some(good));
    }
    for bad in ["", "a b", "a/b", "a:", "a:x", "a:99999", "::1", "*.example"] {
        assert!(host(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_port_behind_load_balancers_is_read() {
    let dir = place();
    let balancers = |entry: &str| {
        let text = FRONTEND.replace("\"0.0.0.0:80\"", entry);
        frontend(&dir, &text).map(|config| config.listen[0].balancers.clone())
    };
    assert_eq!(balancers("\"0.0.0.0:80\"").unwrap(), None);
    let keys = "address = \"0.0.0.0:80\", proxy_protocol = true";
    let some = balancers(&format!(
        "{{ {keys}, proxy_from = [\"10.0.0.0/8\", \"::1\"] }}"
    ));
    let expected = Balancers::parse(&["10.0.0.0/8".into(), "::1".into()]).unwrap();
    assert_eq!(some.unwrap(), Some(expected));
    // Nobody else can reach these, so nothing need be said.
    for local in ["127.0.0.1:80", "[::1]:80"] {
        let entry = format!("{{ address = \"{local}\", proxy_protocol = true }}");
        let expected = Balancers::on_this_machine();
        assert_eq!(balancers(&entry).unwrap(), Some(expected));
    }
    assert!(balancers(&format!("{{ {keys} }}")).is_err());
    assert!(balancers(&format!("{{ {keys}, proxy_from = [] }}")).is_err());
}

#[test]
fn a_grant_may_demand_proof() {
    let dir = place();
    for (line, rule) in [
        ("", ProofRule::Optional),
        ("proof = \"optional\"\n", ProofRule::Optional),
        ("proof = \"required\"\n", ProofRule::Required),
    ] {
        let text = FRONTEND.replace("secret_file", &format!("{line}secret_file"));
        assert_eq!(frontend(&dir, &text).unwrap().kites[0].proof, rule);
    }
}

#[test]
fn no_secret_ever_shows_in_an_error() {
    let dir = place();
    let error = format!("{:?}", frontend(&dir, FRONTEND).unwrap());
    assert!(!error.contains("hunter2"));
}

#[test]
fn certificates_are_read_and_one_is_the_default() {
    let dir = place();
    let at = |name: &str| dir.path().join(name);
    let text = format!(
        "{FRONTEND}[[certificates]]\ncert = \"chain.pem\"\nkey = \"key.pem\"\nredirect = true\n\
         [[certificates]]\ncert = \"both.pem\"\ndefault = true\nendpoints = true\n"
    );
    let config = frontend(&dir, &text).unwrap();
    let expected = |cert: &str, key: &str, default| CertificateFiles {
        cert: at(cert),
        key: at(key),
        default,
        endpoints: default,
        redirect: !default,
    };
    assert_eq!(
        config.certificates,
        [
            expected("chain.pem", "key.pem", false),
            expected("both.pem", "both.pem", true)
        ]
    );
    let two = format!("{text}[[certificates]]\ncert = \"more.pem\"\ndefault = true\n");
    let error = frontend(&dir, &two).unwrap_err().to_string();
    assert!(error.contains("default = true in one"), "{error}");
}

#[test]
fn tls_ends_at_the_frontend_only_where_there_is_none_behind_it() {
    let dir = place();
    let kite = |keys: &str| backend(&dir, &format!("{BACKEND}{keys}"));
    let asks = |keys| kite(keys).unwrap().services[0].tls_at_frontend;
    assert!(!asks(""));
    assert!(!asks("protocol = \"http\"\ntls = \"origin\"\n"));
    for protocol in ["http", "websocket"] {
        let keys = format!("protocol = \"{protocol}\"\ntls = \"frontend\"\n");
        assert!(kite(&keys).unwrap().services[0].tls_at_frontend);
    }
    for protocol in ["foolscap", "https", "tahoe-https", "raw"] {
        let keys = format!("protocol = \"{protocol}\"\ntls = \"frontend\"\n");
        let error = kite(&keys).unwrap_err().to_string();
        assert!(
            error.contains("kites[0].tls") && error.contains(protocol),
            "{error}"
        );
    }
    assert!(kite("tls = \"nobody\"\n").is_err());
}

#[test]
fn ports_are_read_in_both_roles() {
    let dir = place();
    let listen =
        "listen = [\"0.0.0.0:80\", { address = \"[::]:8443\", kite = \"bob.alice.example\" }]";
    let raw = |table: &str| {
        FRONTEND
            .replace(
                listen,
                &format!("listen = [{{ address = \"0.0.0.0:2222\", {table} }}]"),
            )
            .replace("\"tahoe-https\"", "\"raw\"")
    };
    let good = "port = 22, kite = \"bob.alice.example\", protocol = \"raw\"";
    let config = frontend(&dir, &raw(good)).unwrap();
    let expected = Listen {
        port: Some(22),
        kite: Some("bob.alice.example".parse().unwrap()),
        raw: true,
        ..Listen::at("0.0.0.0:2222".parse().unwrap())
    };
    assert_eq!(config.listen, [expected]);
    for (bad, place) in [
        ("protocol = \"raw\"", "belongs to none"),
        (
            "kite = \"bob.alice.example\", protocol = \"http\"",
            "'http' alone",
        ),
        ("port = 0", "0 is no port"),
    ] {
        let error = frontend(&dir, &raw(bad)).unwrap_err().to_string();
        assert!(
            error.contains("listen[0]") && error.contains(place),
            "{error}"
        );
    }
    let error = frontend(&dir, &raw(good).replace("\"raw\"]", "\"http\"]")).unwrap_err();
    assert!(error.to_string().contains("may not carry raw"), "{error}");

    let kite = |keys: &str| BACKEND.replace("origin", &format!("{keys}\norigin"));
    for (keys, ported) in [
        ("protocol = \"raw\"\nport = 22", "raw-22"),
        ("protocol = \"ssh\"", "raw-22"),
        ("protocol = \"http-8080\"\nport = 8080", "http-8080"),
        ("port = 8098", "foolscap-8098"),
    ] {
        let config = backend(&dir, &kite(keys)).unwrap();
        assert_eq!(config.services[0].ported().to_string(), ported);
    }
    for (keys, place) in [
        ("protocol = \"http-8080\"\nport = 80", "kites[0].port"),
        ("protocol = \"http-0\"", "kites[0].protocol"),
        ("port = 0", "kites[0].port"),
    ] {
        let error = backend(&dir, &kite(keys)).unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
    }
    // One name twice, if the port or the protocol is another.
    let table = |port| {
        format!(
            "[[kites]]\nname = \"bob.alice.example\"\n{port}\norigin = \"127.0.0.1:1\"\nsecret_file = \"bob.secret\"\n"
        )
    };
    let two = |port| format!("{BACKEND}{}", table(port));
    assert_eq!(backend(&dir, &two("port = 81")).unwrap().services.len(), 2);
    let error = backend(&dir, &two("protocol = \"http\""))
        .unwrap_err()
        .to_string();
    assert!(error.contains("given twice"), "{error}");
}

#[test]
fn how_many_backends_has_bounds() {
    let dir = place();
    let with = |n: u32| frontend(&dir, &format!("{FRONTEND}backends = {n}\n"));
    assert_eq!(frontend(&dir, FRONTEND).unwrap().kites[0].backends, 1);
    assert_eq!(with(16).unwrap().kites[0].backends, 16);
    for n in [0, 17] {
        let error = with(n).unwrap_err().to_string();
        assert!(error.contains("kites[0].backends"), "{error}");
    }
}

#[test]
fn metrics_and_the_page_are_for_this_machine_alone() {
    let dir = place();
    let with = |text: &str| backend(&dir, &format!("{BACKEND}\n{text}\n"));
    let both = with("[metrics]\nlisten = \"[::1]:9464\"\n[web]\nlisten = \"unix:/run/x\"").unwrap();
    assert_eq!(both.local.metrics.unwrap().to_string(), "[::1]:9464");
    assert_eq!(both.local.web.unwrap().to_string(), "unix:/run/x");
    assert_eq!(with("").unwrap().local, LocalPlaces::default());
    for (text, place) in [
        ("[web]\nlisten = \"0.0.0.0:7465\"", "web.listen"),
        ("[web]\nlisten = \"unix:x\"", "web.listen"),
        ("[metrics]\nlisten = \"localhost:1\"", "metrics.listen"),
        (
            "[metrics]\nlisten = \"127.0.0.1:1\"\n[web]\nlisten = \"127.0.0.1:1\"",
            "web.listen",
        ),
    ] {
        let error = with(text).unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
    }
    let page = |text: &str| frontend(&dir, &format!("{FRONTEND}\n[page]\n{text}\n"));
    assert_eq!(page("").unwrap().page, OwnPage::default());
    assert!(!page("enabled = false").unwrap().page.enabled);
    let error = page("contact = \"a\\nb\"").unwrap_err().to_string();
    assert!(error.contains("page.contact"), "{error}");
}

#[test]
fn a_file_without_an_end_is_refused() {
    let e = read_limited(Path::new("/dev/zero")).unwrap_err();
    assert!(e.contains("more than the 1048576 bytes"), "{e}");
}

#[test]
fn no_more_tunnels_and_no_longer_times_than_there_may_be() {
    let dir = place();
    let drain = |time: &str| frontend(&dir, &format!("drain = \"{time}\"\n{FRONTEND}"));
    let hour = MAX_DURATION.as_secs();
    assert!(drain(&format!("{hour}s")).is_ok());
    let error = drain(&format!("{}s", hour + 1))
        .err()
        .map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("no time up to an hour")));
    let backends = |n: u8| frontend(&dir, &format!("{FRONTEND}backends = {n}\n"));
    assert!(backends(MAX_BACKENDS).is_ok());
    assert!(backends(MAX_BACKENDS + 1).is_err() && backends(0).is_err());
    let tunnels = |n: u8| {
        let frontend = parse_frontend("here", "alice.example:443", None, n);
        frontend.map(|f| f.tunnels).map_err(|e| e.to_string())
    };
    assert_eq!(tunnels(MAX_TUNNELS), Ok(MAX_TUNNELS));
    assert!(tunnels(MAX_TUNNELS + 1).is_err() && tunnels(0).is_err());
}

#[test]
fn a_fleet_that_is_written_down_has_so_many_members_and_no_more() {
    use crate::fleet::MAX_MEMBERS;
    let dir = place();
    let entry = |name: usize, address: usize, key: u8| {
        let pin = format!("sha256:{}{}", char::from(b'a' + key), "A".repeat(42));
        format!(
            "[[fleet.members]]\nid = \"m{name}\"\naddress = \"10.0.0.{address}:1\"\npin = \"{pin}\"\n"
        )
    };
    let fleet = |n: usize| {
        let member = |n| entry(n, n, n as u8);
        let members: String = (0..n).map(member).collect();
        let fleet = "[fleet]\nlisten = \"10.0.0.1:1\"\nid = \"m0\"";
        frontend(&dir, &format!("{FRONTEND}{fleet}\n{members}"))
    };
    let most = fleet(MAX_MEMBERS).map(|config| config.fleet.unwrap().members.len());
    assert_eq!(most.map_err(|e| e.to_string()), Ok(MAX_MEMBERS));
    let more = fleet(MAX_MEMBERS + 1).err().map(|e| e.to_string());
    assert!(more.is_some_and(|e| e.contains("more than 16 members")));
    for (twice, said) in [
        (entry(1, 3, 3), "members[1].id: there is another"),
        (entry(2, 1, 3), "members[1].address: m1 is there, too"),
        (entry(2, 3, 1), "members[1].pin: m1 has the same key"),
    ] {
        let fleet = "[fleet]\nlisten = \"10.0.0.1:1\"\nid = \"m0\"";
        let text = format!("{FRONTEND}{fleet}\n{}{twice}", entry(1, 1, 1));
        let error = frontend(&dir, &text).err().map(|e| e.to_string());
        assert!(
            error.as_ref().is_some_and(|e| e.contains(said)),
            "{error:?}"
        );
    }
}

#[test]
fn a_frontends_own_name_is_one_name_or_an_address() {
    let dir = place();
    let named = |name: &str| {
        let config = frontend(&dir, &format!("name = \"{name}\"\n{FRONTEND}"));
        config.map(|config| config.name)
    };
    for (name, read) in [
        ("Fe.Alice.example", "fe.alice.example"),
        ("192.0.2.1", "192.0.2.1"),
    ] {
        assert_eq!(named(name).expect(name).as_deref(), Some(read));
    }
    for wrong in [
        "*.alice.example",
        "https://fe.example",
        "fe.example:443",
        "a b",
        "",
    ] {
        let said = named(wrong).expect_err(wrong).to_string();
        assert!(said.contains("frontend.toml: name"), "{said}");
    }
}

#[test]
fn what_is_refused_is_named_by_its_place_and_a_secret_among_it_is_not_repeated() {
    let dir = place();
    let kite = "[[kites]]\nname = \"bob.alice.example\"\n";
    let etcd = "endpoints = [\"https://root:hunter2@etcd.example:2379\"]\n";
    for (text, place) in [
        // Unknown, of the wrong kind, and no TOML.
        (format!("{kite}secret = \"hunter2\"\n"), "frontend.toml:3:1"),
        (
            format!("{kite}protocols = \"hunter2\"\n"),
            "frontend.toml:3:13",
        ),
        (
            format!("{kite}backends = \"a \\\"hunter2\\\" b\"\n"),
            "frontend.toml:3:12",
        ),
        (
            format!("{kite}secret_file = hunter2\n"),
            "frontend.toml:3:15",
        ),
        (
            format!("{kite}secret_file = \"hunter2\n"),
            "frontend.toml:3:",
        ),
        (
            format!(
                "{FRONTEND}[fleet]\nlisten = \"10.0.0.1:4430\"\nid = \"a\"\n[fleet.etcd]\n{etcd}"
            ),
            "fleet.etcd.endpoints[0]",
        ),
    ] {
        let said = frontend(&dir, &text).expect_err(&text).to_string();
        assert!(said.contains(place), "{place}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    // As pagekite.py writes a service.
    for service in [
        "http:bob.alice.example:localhost:80:hunter2",
        "http:bob.alice.example:127.0.0.1:80:12345",
    ] {
        let said = parse_service(service, &[], &())
            .expect_err(service)
            .to_string();
        assert!(
            said.contains("secret_file") && said.contains(":80'"),
            "{said}"
        );
        assert!(
            !said.contains("hunter2") && !said.contains("12345"),
            "{said}"
        );
    }
}
