//! Every option that pagekite.py knows, whether it takes a value, and what becomes of it.

/// What an option means to kite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A setting of a backend: `backend.rs` has it.
    Backend,
    /// A setting of a frontend: `frontend.rs` has it.
    Frontend,
    /// It says which role this is.
    Role,
    /// More files: `read.rs` has put their options in its place.
    Include,
    /// kite does so in any case.
    Always,
    /// Nothing any more, for this reason.
    Nothing(&'static str),
}

/// One option.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// As it is written in full, without dashes.
    pub name: &'static str,
    /// Whether `= value` belongs to it.
    pub takes_value: bool,
    /// What becomes of it.
    pub meaning: Meaning,
}

const fn flag(name: &'static str, meaning: Meaning) -> Spec {
    Spec {
        name,
        takes_value: false,
        meaning,
    }
}

const fn value(name: &'static str, meaning: Meaning) -> Spec {
    Spec {
        name,
        takes_value: true,
        meaning,
    }
}

use Meaning::{Always, Backend, Frontend, Include, Nothing, Role};

const ACCOUNT: Meaning = Nothing("accounts at pagekite.net are looked after by pagekite.py");
const BUFFERS: Meaning = Nothing("kite bounds its buffers by itself");
const LOG: Meaning = Nothing("kite logs to standard error; --log says how much");
const ORDER: Meaning = Nothing("it is an order to pagekite.py, and no setting");
const OVERLOAD: Meaning = Nothing("kite's frontends never call themselves overloaded");
const SAVE: Meaning = Nothing("kite writes no configuration, except `kite import`");
const SERVICE: Meaning =
    Nothing("leave that to what starts kite; the Debian package has units for systemd");
const TRACE: Meaning = Nothing("kite has --log debug, and `kite status`");
const UPGRADE: Meaning = Nothing("kite recommends no versions to backends");
const WEB: Meaning = Nothing("kite has no web server of its own");

/// pagekite.py's options: those of Debian's 1.5.2.201011, and what later versions added.
pub const OPTIONS: &[Spec] = &[
    // Who we are, and what we serve.
    value("kitename", Backend),
    value("kitesecret", Backend),
    value("service_on", Backend),
    value("service_off", Backend),
    value("service_cfg", Backend),
    value("backend", Backend),
    value("define_backend", Backend),
    value("be_config", Backend),
    // Where we fly.
    flag("defaults", Backend),
    value("whitelabel", Backend),
    value("whitelabels", Backend),
    value("frontend", Backend),
    value("frontends", Backend),
    value("nofrontend", Backend),
    value("fe_certname", Backend),
    flag("fe_nocertcheck", Backend),
    value("ca_certs", Backend),
    value("torify", Backend),
    value("socksify", Backend),
    value("proxy", Backend),
    flag("noproxy", Backend),
    value(
        "dyndns",
        Nothing(
            "kite tells no name server where the frontend is; let the kite's name lead there yourself",
        ),
    ),
    flag("new", Always),
    flag("all", Nothing("kite goes on trying instead of ending")),
    flag("noall", Always),
    flag("insecure", Always),
    flag("noprobes", Always),
    flag("nozchunks", Always),
    flag("sslzlib", Nothing("kite never compresses")),
    flag(
        "wschunks",
        Nothing("tunnels over WebSocket work in no version of pagekite.py"),
    ),
    value("errorurl", Nothing("kite's error pages are its own")),
    // The public side.
    flag("isfrontend", Role),
    flag("noisfrontend", Role),
    value("local", Role),
    value("host", Frontend),
    value("ports", Frontend),
    value("rawports", Frontend),
    value("portalias", Frontend),
    value("protos", Frontend),
    value("domain", Frontend),
    value("authdomain", Frontend),
    value("auththreads", Always),
    flag("authfail_closed", Frontend),
    value("register", ACCOUNT),
    value("motd", Frontend),
    value("upgradeinfo", UPGRADE),
    flag("noupgradeinfo", Always),
    value("tls_endpoint", Frontend),
    value("tls_default", Frontend),
    value("tls_ciphers", Nothing("kite offers no weak ciphers")),
    flag("tls_legacy", Nothing("kite has no TLS older than 1.2")),
    value("tunnel_acl", Frontend),
    value("client_acl", Frontend),
    value("accept_acl_file", Frontend),
    value("ratelimit_ips", Frontend),
    value("overload", OVERLOAD),
    value("overload_cpu", OVERLOAD),
    value("overload_mem", OVERLOAD),
    value("overload_file", OVERLOAD),
    value(
        "dns_hints",
        Nothing("kite's backends ask no frontend for addresses"),
    ),
    // Files.
    value("optfile", Include),
    value("optdir", Include),
    value("savefile", SAVE),
    flag("save", SAVE),
    flag("autosave", SAVE),
    flag("noautosave", Always),
    value("reloadfile", Nothing("`kite reload` does that")),
    flag("clean", Always),
    // The process.
    value(
        "keepalive",
        Nothing("kite asks after a silent tunnel by itself, from 10 s on"),
    ),
    value("buffers", BUFFERS),
    value("max_read_bytes", BUFFERS),
    value("select_loop_min_ms", BUFFERS),
    value("logfile", LOG),
    value("loglevel", LOG),
    flag("daemonize", SERVICE),
    flag("nodaemonize", Always),
    value("runas", SERVICE),
    value("pidfile", SERVICE),
    value("watchdog", SERVICE),
    flag("noloop", TRACE),
    flag("debugio", TRACE),
    value("watch", TRACE),
    flag("nullui", Always),
    flag("remoteui", ORDER),
    value("uiport", ORDER),
    flag("nocrashreport", Always),
    flag("nopyopenssl", Always),
    flag("nossl", Nothing("kite's TLS is built in")),
    // The built-in web server.
    value("httpd", WEB),
    value("httppass", WEB),
    value("pemfile", WEB),
    flag("selfsign", WEB),
    value("webpath", WEB),
    value("webroot", WEB),
    value("webaccess", WEB),
    value("webindexes", WEB),
    // pagekite.net.
    flag("signup", ACCOUNT),
    flag("list", ACCOUNT),
    flag("add", ACCOUNT),
    flag("only", ACCOUNT),
    flag("disable", ACCOUNT),
    flag("remove", ACCOUNT),
    value("service_xmlrpc", ACCOUNT),
    value("delete_backend", ACCOUNT),
    // Orders.
    flag("friendly", ORDER),
    flag("shell", ORDER),
    flag("help", ORDER),
    flag("settings", ORDER),
    flag("controlpanel", ORDER),
    flag("controlpass", ORDER),
];

/// The one-letter forms.
const LETTERS: &[(char, &str)] = &[
    ('A', "authdomain"),
    ('D', "dyndns"),
    ('E', "errorurl"),
    ('H', "httpd"),
    ('I', "pidfile"),
    ('L', "logfile"),
    ('N', "new"),
    ('O', "optdir"),
    ('P', "pemfile"),
    ('R', "register"),
    ('S', "savefile"),
    ('U', "runas"),
    ('X', "httppass"),
    ('Z', "daemonize"),
    ('a', "all"),
    ('f', "isfrontend"),
    ('h', "host"),
    ('o', "optfile"),
    ('p', "ports"),
];

/// An option by its name or a beginning that is no other's.
pub fn find(word: &str) -> Result<&'static Spec, NotFound> {
    if let Some(exact) = OPTIONS.iter().find(|o| o.name == word) {
        return Ok(exact);
    }
    let mut begin = OPTIONS.iter().filter(|o| o.name.starts_with(word));
    match (begin.next(), begin.next()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(other)) => Err(NotFound::Ambiguous(one.name, other.name)),
        (None, _) => Err(NotFound::Unknown),
    }
}

/// An option by its letter.
pub fn by_letter(letter: char) -> Option<&'static Spec> {
    let (_, name) = LETTERS.iter().find(|(l, _)| *l == letter)?;
    OPTIONS.iter().find(|o| o.name == *name)
}

/// Why a word names no option.
#[derive(Debug, PartialEq, Eq)]
pub enum NotFound {
    /// pagekite.py has none of this name.
    Unknown,
    /// Two of those that it could be.
    Ambiguous(&'static str, &'static str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_option_is_there_twice_and_each_letter_has_one() {
        let names: BTreeSet<_> = OPTIONS.iter().map(|o| o.name).collect();
        assert_eq!(names.len(), OPTIONS.len());
        for (letter, name) in LETTERS {
            assert_eq!(by_letter(*letter).map(|o| o.name), Some(*name));
        }
        assert_eq!(by_letter('z'), None);
    }

    #[test]
    fn a_beginning_is_enough_if_it_is_no_others() {
        assert_eq!(find("kitesec").unwrap().name, "kitesecret");
        assert_eq!(find("frontend").unwrap().name, "frontend");
        assert_eq!(find("frontends").unwrap().name, "frontends");
        assert_eq!(
            find("kite"),
            Err(NotFound::Ambiguous("kitename", "kitesecret"))
        );
        assert_eq!(find("abort_not_configured"), Err(NotFound::Unknown));
    }
}
