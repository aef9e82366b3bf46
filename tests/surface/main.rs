//! What a user reads must be true: the man pages are those of the command line, the
//! README's files load, its tables name every flag, what the documents point to is there, and
//! docs/parity.md leaves out nothing.
//!
//! `KITE_UPDATE=1 cargo test --test surface` writes the man pages and docs/errors.md anew.
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
use kite::cli::{BackendArgs, Cli, FrontendArgs, TahoeArgs};
use kite::config::{BackendConfig, FrontendConfig};

mod codes;

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

// --------------------------------------------------------------------- README

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

#[test]
fn the_readmes_files_load() {
    let readme = read("README.md");
    let mut loaded = BTreeMap::from([("frontend.toml", 0), ("backend.toml", 0)]);
    for block in blocks(&readme, "toml") {
        let marked = |name: &str| block.lines().next().is_some_and(|l| l.contains(name));
        let dir = tempfile::tempdir().unwrap();
        let problem = if marked("frontend.toml") {
            *loaded.get_mut("frontend.toml").unwrap() += 1;
            let config = Some(lay_out(dir.path(), "frontend.toml", block));
            FrontendConfig::load(&FrontendArgs {
                config,
                ..FrontendArgs::default()
            })
            .err()
        } else if marked("backend.toml") {
            *loaded.get_mut("backend.toml").unwrap() += 1;
            let config = Some(lay_out(dir.path(), "backend.toml", block));
            BackendConfig::load(&BackendArgs {
                config,
                ..BackendArgs::default()
            })
            .err()
        } else {
            panic!(
                "its first line must say whether it is a frontend.toml or a backend.toml:\n{block}"
            );
        };
        assert!(problem.is_none(), "{}\n{block}", problem.unwrap());
    }
    assert!(loaded.values().all(|&n| n >= 2), "{loaded:?}");
}

#[test]
fn the_readmes_tahoe_cfg_is_what_kite_prints_for_its_backend() {
    let readme = read("README.md");
    let toml = blocks(&readme, "toml");
    let backend = toml.iter().find(|b| b.starts_with("# backend.toml"));
    let dir = tempfile::tempdir().unwrap();
    let config = lay_out(dir.path(), "backend.toml", backend.unwrap());
    let args = TahoeArgs {
        backend: BackendArgs {
            config: Some(config),
            ..BackendArgs::default()
        },
        ..TahoeArgs::default()
    };
    let mut printed = vec![];
    assert!(kite::tahoe::run(&args, &mut printed).unwrap());
    let printed = String::from_utf8(printed).unwrap();
    assert_eq!(blocks(&readme, "ini")[0], printed.trim_end());
}

/// The flags that the command line has, by command. What every command has is left out.
fn flags() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for command in Cli::command().get_subcommands() {
        let long = command.get_arguments().filter_map(|arg| arg.get_long());
        all.insert(
            command.get_name().to_owned(),
            long.map(str::to_owned).collect(),
        );
    }
    all
}

/// The flags that a section `### kite COMMAND` of the README has in the first column of its table, and
/// those of another command, if it says that it has them, too.
fn documented(readme: &str, command: &str) -> BTreeSet<String> {
    let section = readme
        .split("\n### ")
        .find(|s| s.starts_with(&format!("`kite {command}`")))
        .unwrap_or_else(|| panic!("README.md has no section '### `kite {command}`'"));
    let others = section
        .split_once("The flags of `kite ")
        .and_then(|(_, rest)| rest.split('`').next())
        .map(|other| documented(readme, other))
        .unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `--"))
        .filter_map(|rest| rest.split([' ', '`']).next())
        .map(str::to_owned)
        .chain(others)
        .collect()
}

#[test]
fn the_readmes_tables_have_every_flag_and_no_other() {
    let readme = read("README.md");
    for (command, flags) in flags() {
        assert_eq!(documented(&readme, &command), flags, "kite {command}");
    }
    for arg in Cli::command()
        .get_arguments()
        .filter(|a| a.get_long() == Some("log"))
    {
        let variable = arg.get_env().unwrap().to_str().unwrap();
        assert!(readme.contains("`--log ") && readme.contains(variable));
    }
}

#[test]
fn the_readmes_tables_have_every_variable() {
    let readme = read("README.md");
    let commands = Cli::command();
    let variables = commands
        .get_subcommands()
        .flat_map(|c| c.get_arguments())
        .filter_map(|arg| arg.get_env());
    for variable in variables
        .map(|v| v.to_str().unwrap())
        .chain([kite::config::SECRET_VARIABLE])
    {
        assert!(readme.contains(&format!("`{variable}`")), "{variable}");
    }
}

// ------------------------------------------------------------------ documents

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
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(
                root().join(dir).join(file).exists(),
                "{} links to {link}",
                path.display()
            );
        }
    }
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
