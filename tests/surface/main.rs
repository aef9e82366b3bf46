//! What a user reads must be true: the man pages and docs/reference.md are those of the program, the
//! book's files load, what the documents point to is there, and docs/parity.md leaves out nothing.
//!
//! `KITE_UPDATE=1 cargo test --test surface` writes the man pages, the reference, the JSON schemas and docs/errors.md anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use kite::cli::{BackendArgs, Cli, FrontendArgs};
use kite::config::{BackendConfig, FrontendConfig};

mod codes;
mod limits;
mod reference;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a directory with this ending, by their names from the root.
fn files(dir: &str, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root().join(dir))
        .unwrap_or_else(|e| panic!("{dir}: {e}"))
        .map(|entry| Path::new(dir).join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .collect();
    found.sort();
    found
}

/// Everything that is written for readers.
fn documents() -> Vec<PathBuf> {
    [
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ]
    .into_iter()
    .map(PathBuf::from)
    .chain(files("docs", "md"))
    .chain(files("docs/man", "1"))
    .chain(files("examples", "rs"))
    .collect()
}

// ------------------------------------------------------------------ schemas

#[test]
fn the_schema_is_that_of_the_status() {
    let new = serde_json::to_string_pretty(&kite::observe::status::schema()).unwrap() + "\n";
    let kept = root().join("docs/status-schema.json");
    if std::env::var_os("KITE_UPDATE").is_some() {
        fs::write(&kept, &new).unwrap();
    }
    assert!(
        fs::read_to_string(&kept).is_ok_and(|old| old == new),
        "docs/status-schema.json is out of date; run: KITE_UPDATE=1 cargo test --test surface"
    );
}

// ------------------------------------------------------------------ man pages

#[test]
fn the_man_pages_are_those_of_the_command_line() {
    let new = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(Cli::command(), new.path()).unwrap();
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(new.path()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let kept = root().join("docs/man").join(&name);
        if std::env::var_os("KITE_UPDATE").is_some() {
            fs::write(&kept, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&kept).is_ok_and(|old| old == text),
            "docs/man/{name} is out of date; run: KITE_UPDATE=1 cargo test --test surface"
        );
        names.insert(PathBuf::from("docs/man").join(name));
    }
    let kept: BTreeSet<PathBuf> = files("docs/man", "1").into_iter().collect();
    assert_eq!(kept, names, "there is a page too many, or too few");
}

// --------------------------------------------------------------------- errors

/// The page of all codes.
const ERRORS: &str = "docs/errors.md";

#[test]
fn the_page_of_errors_is_that_of_the_catalogue() {
    let new = kite::explain::page();
    if std::env::var_os("KITE_UPDATE").is_some() {
        fs::write(root().join(ERRORS), &new).unwrap();
    }
    assert!(
        fs::read_to_string(root().join(ERRORS)).is_ok_and(|old| old == new),
        "{ERRORS} is out of date; run: KITE_UPDATE=1 cargo test --test surface"
    );
}

// ----------------------------------------------------------------------- book

/// The fenced blocks of a language in a text.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str())
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap())
        .collect()
}

/// Puts a configuration, and the secrets that it names, into a directory of its own.
fn lay_out(dir: &Path, name: &str, text: &str) -> PathBuf {
    let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"));
    let kites = table.get("kites").and_then(|v| v.as_array()).cloned();
    for kite in kites.unwrap_or_default() {
        let Some(secret) = kite.get("secret_file").and_then(|v| v.as_str()) else {
            continue;
        };
        let path = dir.join(secret);
        fs::write(&path, "a secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Its first line does not say which file it is: its tables must be in one of them.
fn part_of_a_file(page: &Path, block: &str) {
    let table: toml::Table = block.parse().unwrap_or_else(|e| panic!("{e}\n{block}"));
    let schemas = [
        kite::config::file::frontend_schema(),
        kite::config::file::backend_schema(),
    ];
    let known = |key: &String| {
        let place = format!("/properties/{key}");
        schemas.iter().any(|s| s.pointer(&place).is_some())
    };
    for key in table.keys() {
        assert!(
            known(key),
            "{}: no file has {key}:\n{block}",
            page.display()
        );
    }
}

#[test]
fn the_books_files_load() {
    let mut loaded = BTreeMap::from([("frontend.toml", 0), ("backend.toml", 0), ("arti.toml", 0)]);
    let pages = documents();
    let pages = pages
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "md"));
    for (page, block) in pages.flat_map(|page| {
        let text = read(page);
        let found: Vec<String> = blocks(&text, "toml")
            .into_iter()
            .map(str::to_owned)
            .collect();
        found.into_iter().map(move |block| (page, block))
    }) {
        let first = block.lines().next().unwrap_or_default();
        let name = first.trim_start_matches("# ").to_owned();
        let Some(seen) = loaded.get_mut(name.as_str()) else {
            part_of_a_file(page, &block);
            continue;
        };
        *seen += 1;
        let dir = tempfile::tempdir().unwrap();
        let problem = match name.as_str() {
            "frontend.toml" => {
                let config = Some(lay_out(dir.path(), &name, &block));
                let mut args = FrontendArgs {
                    config,
                    ..FrontendArgs::default()
                };
                if !block.contains("[[kites]]") {
                    // Its kites are in the frontend's book.
                    args.state_dir = Some(dir.path().join("state"));
                    kite::frontend::book::Book::open(&dir.path().join("state")).unwrap();
                }
                FrontendConfig::load(&args).err()
            }
            "backend.toml" => {
                let config = Some(lay_out(dir.path(), &name, &block));
                BackendConfig::load(&BackendArgs {
                    config,
                    ..BackendArgs::default()
                })
                .err()
            }
            // Arti's own, with a bridge that is shortened: it need only be TOML.
            _ => block
                .parse::<toml::Table>()
                .map(drop)
                .err()
                .map(|e| panic!("{e}\n{block}")),
        };
        assert!(
            problem.is_none(),
            "{}: {}\n{block}",
            page.display(),
            problem.unwrap()
        );
    }
    assert!(
        loaded["frontend.toml"] > 5 && loaded["backend.toml"] > 3,
        "{loaded:?}"
    );
}

// ------------------------------------------------------------------ documents

/// What a link into a page can name: its headings, as GitHub spells them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        found.insert(kept.replace(' ', "-"));
    }
    found
}

#[test]
fn what_the_documents_link_to_is_there() {
    for path in documents()
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "md"))
    {
        let text = read(&path);
        let dir = path.parent().unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = match file {
                "" => path.clone(),
                file => dir.join(file),
            };
            assert!(
                root().join(&file).exists(),
                "{} links to {link}",
                path.display()
            );
            let page = file.extension().is_some_and(|e| e == "md");
            assert!(
                !page || anchor.is_empty() || anchors(&read(&file)).contains(anchor),
                "{} links to {link}, and there is no such heading",
                path.display()
            );
        }
    }
}

#[test]
fn the_codes_that_the_documents_name_are_there() {
    let all = read(ERRORS);
    let mut named = 0;
    for path in documents() {
        let text = read(&path);
        for rest in text.split("KITE-").skip(1) {
            let code: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            if code.len() != 3 || !"TFBC".contains(&code[..1]) {
                continue;
            }
            let there = all.contains(&format!("\n### KITE-{code}: "));
            assert!(there, "{}: there is no KITE-{code}", path.display());
            named += 1;
        }
    }
    assert!(named > 50, "only {named} codes were named");
}

/// A document names a test as `file::name`; both must be there.
#[test]
fn the_tests_that_the_documents_name_are_there() {
    let mut named = 0;
    for path in documents() {
        let text = read(&path);
        let spans = text.split('`').skip(1).step_by(2);
        let tests = spans.filter_map(|span| span.split_once("::"));
        for (file, name) in tests.filter(|(file, _)| file.ends_with(".rs") || file.ends_with(".py"))
        {
            let there = fs::read_to_string(root().join(file)).is_ok_and(|source| {
                source.contains(&format!("fn {name}(")) || source.contains(&format!("def {name}("))
            });
            assert!(there, "{}: {file}::{name} is not there", path.display());
            named += 1;
        }
    }
    assert!(
        named > 20,
        "only {named} tests were named: has the spelling changed?"
    );
}

// --------------------------------------------------------------------- parity

/// The long options of Debian's pagekite.py 1.5.2.201011, without those that only ask for help or come twice.
const PAGEKITE_OPTIONS: &str = "noloop clean nopyopenssl nossl nocrashreport nullui remoteui uiport help settings \
    optfile optdir savefile friendly shell signup list add only disable remove save service_xmlrpc controlpanel \
    controlpass httpd pemfile httppass errorurl webpath logfile daemonize nodaemonize runas pidfile isfrontend \
    noisfrontend defaults whitelabel whitelabels local domain auththreads authdomain authfail_closed motd register \
    host noupgradeinfo upgradeinfo ports protos portalias rawports tls_legacy tls_default tls_endpoint selfsign \
    fe_certname fe_nocertcheck ca_certs kitename kitesecret backend define_backend be_config insecure ratelimit_ips \
    max_read_bytes select_loop_min_ms service_on service_off service_cfg tunnel_acl client_acl accept_acl_file \
    frontend nofrontend frontends keepalive torify socksify proxy noproxy new all dyndns nozchunks sslzlib wschunks \
    buffers noprobes debugio watch loglevel watchdog overload overload_cpu overload_mem overload_file reloadfile \
    autosave noautosave webroot webaccess webindexes delete_backend";

/// What is wrong with the rows of parity.md.
fn complaints_about_parity(page: &str) -> Vec<String> {
    let mut complaints = vec![];
    let mut rows = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [subject, verdict, how, shown] = cells[..] else {
            continue;
        };
        if verdict == "kite" {
            continue;
        }
        rows += 1;
        let named = shown.contains("::");
        let fault = match verdict {
            "same" | "better" if !named => "no test shows it",
            "left out" if how.is_empty() => "no reason is given",
            "same" | "better" | "left out" => match (subject, how, shown) {
                ("", ..) | (_, "", _) | (.., "") => "a cell is empty",
                _ if !named && shown != "—" => "it is shown by something else than a test",
                _ => continue,
            },
            _ => "it is none of same, better, left out",
        };
        complaints.push(format!("{subject}: {fault}"));
    }
    if rows < 100 {
        complaints.push(format!(
            "only {rows} rows: has the form of the page changed?"
        ));
    }
    for option in PAGEKITE_OPTIONS.split_whitespace() {
        if !page.contains(&format!("`--{option}`")) {
            complaints.push(format!("--{option} has no row"));
        }
    }
    complaints
}

/// That the tests which it names are there is seen above.
#[test]
fn every_row_of_the_parity_page_has_a_test_or_a_reason() {
    let complaints = complaints_about_parity(&read("docs/parity.md"));
    assert!(
        complaints.is_empty(),
        "docs/parity.md:\n{}",
        complaints.join("\n")
    );
}

#[test]
fn a_bad_row_of_the_parity_page_is_seen() {
    let page = read("docs/parity.md");
    for bad in [
        "| a | same | b | — |",
        "| a | better | b | a test |",
        "| a | left out |  | — |",
        "| a | not yet | b | — |",
        "| a | perhaps | b | `x.rs::y` |",
        "| a | same |  | `x.rs::y` |",
        "|  | same | b | `x.rs::y` |",
        "| a | left out | b |  |",
        "| a | left out | b | my word |",
    ] {
        let found = complaints_about_parity(&format!("{page}\n{bad}\n"));
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
    }
    let without = page.replace("`--torify`", "`--tor`");
    assert_eq!(complaints_about_parity(&without), ["--torify has no row"]);
}

// ------------------------------------------------------------------- packages

/// What the Dockerfile copies from the tree is there, and .dockerignore lets it through and nothing else.
#[test]
fn the_dockerfile_copies_what_there_is() {
    let copied: BTreeSet<String> = read("Dockerfile")
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|words| !words.starts_with("--from="))
        .flat_map(|words| {
            let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
            words[..words.len() - 1].to_vec()
        })
        .collect();
    assert!(copied.len() > 5, "{copied:?}");
    for path in &copied {
        assert!(root().join(path).exists(), "Dockerfile copies {path}");
    }
    let ignore = read(".dockerignore");
    let rules = ignore
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let (all, let_through): (Vec<&str>, Vec<&str>) = rules.partition(|line| *line == "*");
    assert_eq!(all.len(), 1);
    let let_through = let_through
        .into_iter()
        .map(|l| l.trim_start_matches('!').to_owned());
    assert_eq!(let_through.collect::<BTreeSet<_>>(), copied);
}

/// Everything that needs the tree to be built is copied: each target of the manifest, and its lints.
#[test]
fn the_dockerfile_copies_all_that_cargo_wants() {
    let dockerfile = read("Dockerfile");
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let benches = manifest["bench"].as_array().unwrap();
    let paths = members
        .iter()
        .chain(benches.iter().map(|bench| &bench["path"]));
    for path in paths.map(|path| path.as_str().unwrap()) {
        let top = path.split('/').next().unwrap();
        assert!(dockerfile.contains(&format!("COPY {top} {top}\n")), "{top}");
    }
    let mut rooms = vec![root().join("src"), root().join("tor/src")];
    while let Some(room) = rooms.pop() {
        for entry in fs::read_dir(&room).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rooms.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            for included in code.split("include_").skip(1) {
                let Some((_, rest)) = included.split_once("!(\"") else {
                    continue;
                };
                let file = room.join(rest.split('"').next().unwrap());
                let file = file
                    .canonicalize()
                    .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                let inside = file.strip_prefix(root()).unwrap();
                let top = inside.iter().next().unwrap().to_str().unwrap();
                assert!(
                    dockerfile.contains(&format!("COPY {top} ")),
                    "{} is compiled into kite, and not copied by the Dockerfile",
                    inside.display()
                );
            }
        }
    }
}

/// What a lock file says of a crate of ours: each that it depends on, with its version.
fn locked(file: &str, name: &str) -> BTreeMap<String, String> {
    let lock: toml::Table = read(file).parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let all = |wanted: &str| -> Vec<&toml::Value> {
        let named = packages.iter();
        named
            .filter(|p| p["name"].as_str() == Some(wanted))
            .collect()
    };
    let ours = all(name).pop().unwrap()["dependencies"].as_array().unwrap();
    let mut found = BTreeMap::new();
    for dependency in ours.iter().map(|d| d.as_str().unwrap()) {
        // The version stands there only if there are several.
        let (name, version) = dependency.split_once(' ').unwrap_or((dependency, ""));
        let version = match version {
            "" => all(name)[0]["version"].as_str().unwrap(),
            version => version,
        };
        found.insert(name.to_owned(), version.to_owned());
    }
    found
}

/// `fuzz/` is a workspace of its own, and nothing else would see that its lock file has been left behind.
#[test]
fn the_fuzzers_are_built_of_what_kite_is_built_of() {
    for (name, manifest) in [("kite", "Cargo.toml"), ("kite-tor", "tor/Cargo.toml")] {
        let manifest: toml::Table = read(manifest).parse().unwrap();
        let stands_in = |table: &str, name: &str| manifest[table].get(name).is_some();
        let mut of_kite = locked("Cargo.lock", name);
        of_kite.retain(|of, _| stands_in("dependencies", of) || !stands_in("dev-dependencies", of));
        assert_eq!(
            locked("fuzz/Cargo.lock", name),
            of_kite,
            "`fuzz/run build` makes fuzz/Cargo.lock anew"
        );
    }
}
