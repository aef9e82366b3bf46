//! The command line: definitions only. What the words mean is decided in [`crate::config`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
pub use clap_complete::Shell;

use crate::frontend::limits::{Rate, Size};
use crate::kite::Protocol;
use crate::observe::{log, progress};

/// Gives a Tahoe-LAFS storage node behind NAT a public name, without telling
/// anyone its address.
#[derive(Debug, Parser)]
#[command(name = "kite", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Try it without any set-up: kite demo\n\
    Exit status: 0 ended as asked, 1 failed at run time or a check found a leak, \
    2 wrong usage or configuration, 3 the Tor network demands a newer kite.")]
pub struct Cli {
    /// How much to log: error, warn, info, debug, trace, or filters such as kite=debug
    /// [default: info, for the demo warn]
    #[arg(long, global = true, env = "KITE_LOG", value_name = "LEVEL")]
    pub log: Option<String>,

    /// How to log: text, json (an object a line), or journald (with levels and fields)
    /// [default: journald if standard error is the journal, else text]
    #[arg(
        long,
        global = true,
        env = "KITE_LOG_FORMAT",
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub log_format: Option<log::Format>,

    /// How to show how far a start has come: auto (bars on a terminal, log lines elsewhere), lines, or json, an
    /// object a line on standard output
    #[arg(long, global = true, env = "KITE_PROGRESS", value_name = "FORM", value_enum,
          hide_possible_values = true, default_value_t = progress::Mode::Auto, hide_default_value = true)]
    pub progress: progress::Mode,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The two roles, a way to see them at work, and what the node behind them needs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Be the public side: take visitors and backends, and bring them together
    Frontend(FrontendArgs),
    /// Be the hidden side: dial frontends, and pass visitors on to the origin
    Backend(BackendCommandArgs),
    /// Say how a running kite is
    Status(StatusArgs),
    /// Print the way to a running kite's status page: an address that works once
    Web(WebArgs),
    /// Give a running backend its configuration anew: other frontends and kites, without a restart
    Reload(ReloadArgs),
    /// Say what a code in a message means, and what to do; or, with a configuration, who can see what
    Explain(ExplainArgs),
    /// Show both sides at work, here and now, with nothing to set up
    Demo(DemoArgs),
    /// Look whether visitors come to the node, from its configuration to its public name; or, with --node or --leaks, for
    /// what shows the address of the machine. Exit status: 0 all is well, 1 something failed or leaks, 2 something could
    /// not be checked
    Check(CheckArgs),
    /// Write pagekite.py's rc files anew as TOML, with each secret in a file of its own
    Import(ImportArgs),
    /// Print the lines of tahoe.cfg that the configured kites need, or put them into a node's file
    Tahoe(TahoeArgs),
    /// Print what a shell needs to complete kite's words. Debian's package has it already
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Flags of `kite frontend`. Each has a key in the file: [`crate::config::file`].
#[derive(Debug, Default, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct FrontendArgs {
    /// Without one, run a frontend.
    #[command(subcommand)]
    pub command: Option<FrontendCommand>,

    /// TOML file to read, or pagekite.py's FILE.rc, or a directory of such; flags given here
    /// replace what it says
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address to take visitors and backends on; repeat for more. With =KITE the port
    /// belongs to that kite: TLS visitors that name no server are brought to it
    #[arg(long, value_name = "ADDR:PORT[=KITE]")]
    pub listen: Vec<String>,

    /// Names that backends may fly with the secret, such as *.alice.example; repeat for more
    #[arg(long, value_name = "PATTERN")]
    pub domain: Vec<String>,

    /// What may fly under --domain: foolscap, tahoe-https, https, http, websocket, raw, xmpp,
    /// minecraft
    /// [default: foolscap]
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    pub protocols: Vec<String>,

    /// File with the secret for --domain, readable by its owner alone.
    /// The variable KITE_SECRET may hold it instead
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// The public host name that backends dial, for the address printed at start
    #[arg(long, value_name = "HOST")]
    pub name: Option<String>,

    /// Take backends through a Tor onion service, too. Its address is printed when it is published
    #[arg(long)]
    pub onion: bool,

    /// TOML file with Arti's own settings (bridges, storage, …), merged over kite's
    #[arg(long, value_name = "FILE")]
    pub tor_config: Option<PathBuf>,

    /// Where this frontend's keys are kept
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Whom to become once the ports are open, if root starts this: NAME, NAME:GROUP, or numbers
    /// [default: the owner of the state directory]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// Put the addresses of backends and visitors into the log
    #[arg(long)]
    pub log_peers: bool,

    /// Where to offer metrics to Prometheus: a loopback address, or unix:PATH
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<String>,

    /// Where to offer the status page: a loopback address, or unix:PATH. `kite web` gives the
    /// way in
    #[arg(long, value_name = "ADDR:PORT")]
    pub web_listen: Option<String>,
}

/// What can be done about a frontend besides running it.
#[derive(Debug, Subcommand)]
pub enum FrontendCommand {
    /// Add, list and remove the kites that may fly, whether the frontend runs or not
    Kites(KitesArgs),
    /// Let someone fly a kite, by one line to hand to them. The secret is made at their side, and
    /// never seen here. The line goes to standard output
    Invite(Box<InviteArgs>),
    /// Show invitations, and take them back
    Invitations(InvitationsArgs),
    /// Have the running frontend read its configuration again: kites, limits and certificates, without a restart
    Reload(RunningArgs),
    /// Have the program on the disk, with the configuration as it is now, take the running frontend's place. No visitor is
    /// refused, and who is there may finish
    Upgrade(RunningArgs),
}

/// Which frontend is meant.
#[derive(Debug, Args)]
pub struct RunningArgs {
    /// The frontend's TOML file, for its state directory
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The frontend's state directory
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Flags of `kite frontend kites`.
#[derive(Debug, Args)]
pub struct KitesArgs {
    /// The frontend's TOML file, for its state directory
    #[arg(long, global = true, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The frontend's state directory, where the kites are kept
    #[arg(long, global = true, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: KitesCommand,
}

/// What to do with the kites of a frontend.
#[derive(Debug, Subcommand)]
pub enum KitesCommand {
    /// Let a kite fly. Its secret is made, and printed once, to standard output
    Add(Box<AddArgs>),
    /// Show the kites that may fly, and what they have used. Exit status: 0 also if there is none
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Let a kite fly no more. If it flies it comes down at once
    Remove {
        /// Its name, as it was added
        name: String,
    },
    /// Let nobody fly this name, whoever may: also a stranger's, at an open frontend. What flies by it comes down at once,
    /// with its visitors
    Block {
        /// The name, or *.bob.alice.example for all below
        name: String,
    },
    /// Take that back
    Unblock {
        /// The name, as it was blocked
        name: String,
    },
    /// Show the names that are blocked. Exit status: 0 also if there is none
    Blocked {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `kite frontend kites add`.
#[derive(Debug, Default, Args)]
pub struct AddArgs {
    /// The name that may fly: bob.alice.example, or *.bob.alice.example for all below
    pub name: String,

    /// File with its secret, readable by its owner alone, instead of a new one
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// The last day on which it flies, in UTC: 2027-01-31, or 30d for so many days from now
    #[arg(long, value_name = "DATE")]
    pub expires: Option<String>,

    /// What it may do, and how much.
    #[command(flatten)]
    pub terms: TermsArgs,
}

/// Flags of `kite frontend invite`.
#[derive(Debug, Default, Args)]
pub struct InviteArgs {
    /// The name that whoever holds the invitation may fly: bob.alice.example
    pub name: String,

    /// The frontend's TOML file, for its state directory, and for its address if it does not run
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The frontend's state directory, where the kites are kept
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// How long the invitation is good: 7d, or 12h
    #[arg(long, value_name = "TIME", default_value = "7d")]
    pub expires: String,

    /// The last day on which the kite flies, in UTC: 2027-01-31, or 30d for so many days from now
    #[arg(long, value_name = "DATE")]
    pub last_day: Option<String>,

    /// Invite to the frontend's onion address, not to its public one
    #[arg(long)]
    pub onion: bool,

    /// What it may do, and how much.
    #[command(flatten)]
    pub terms: TermsArgs,
}

/// Flags of `kite frontend invitations`.
#[derive(Debug, Args)]
pub struct InvitationsArgs {
    /// The frontend's TOML file, for its state directory
    #[arg(long, global = true, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The frontend's state directory, where the kites are kept
    #[arg(long, global = true, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: InvitationsCommand,
}

/// What to do with the invitations of a frontend.
#[derive(Debug, Subcommand)]
pub enum InvitationsCommand {
    /// Show whom was invited to fly what, and what became of it
    List {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Take back an invitation that nobody has used yet
    Revoke {
        /// The kite's name
        name: String,
    },
}

/// What a kite may do, and how much: flags of `add` and of `invite`.
#[derive(Debug, Default, Args)]
pub struct TermsArgs {
    /// What it may carry: foolscap, tahoe-https, https, http, websocket, raw [default: foolscap]
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    pub protocols: Vec<String>,

    /// Take KiteProof1 and nothing else: its backend must be kite, and dial the pinned address
    #[arg(long)]
    pub require_proof: bool,

    /// Bytes that its visitors may move in a period: 500MB, 10GB
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<Size>,

    /// Visitors' connections that it may have in a period
    #[arg(long, value_name = "N")]
    pub connections: Option<u64>,

    /// After so many days a new period begins [default: none ever does]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub period_days: Option<u32>,

    /// Visitors' connections at one time
    #[arg(long, value_name = "N")]
    pub streams: Option<u32>,

    /// The same, from one address
    #[arg(long, value_name = "N")]
    pub streams_per_visitor: Option<u32>,

    /// New connections within so many seconds
    #[arg(long, value_name = "N/SECONDS")]
    pub rate: Option<Rate>,

    /// The same, from one address
    #[arg(long, value_name = "N/SECONDS")]
    pub rate_per_visitor: Option<Rate>,

    /// Different visitors' addresses within so many seconds
    #[arg(long, value_name = "N/SECONDS")]
    pub visitors: Option<Rate>,
}

/// `kite backend`, and what can be done about one besides running it.
#[derive(Debug, Default, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackendCommandArgs {
    /// Without one, run a backend.
    #[command(subcommand)]
    pub command: Option<BackendCommand>,

    /// The flags for that.
    #[command(flatten)]
    pub run: BackendArgs,
}

/// What can be done about a backend besides running it.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Take up an invitation: make a secret, tell it to the frontend, and write both down
    Join(Box<JoinArgs>),
}

/// Flags of `kite backend join`.
#[derive(Debug, Default, Args)]
pub struct JoinArgs {
    /// An invitation is a secret, and an argument is none: it is refused.
    #[arg(value_name = "INVITATION", hide = true)]
    pub misplaced: Vec<String>,

    /// File with the invitation [default: asked for on a terminal, else standard input]
    #[arg(long, value_name = "FILE")]
    pub invitation_file: Option<PathBuf>,

    /// Reach the frontend through Tor and in no other way, now and later
    #[arg(long, conflicts_with = "direct")]
    pub via_tor: bool,

    /// Reach the frontend without Tor: it sees this machine's address
    #[arg(long)]
    pub direct: bool,

    /// TOML file with Arti's own settings, merged over kite's
    #[arg(long, value_name = "FILE", conflicts_with = "direct")]
    pub tor_config: Option<PathBuf>,

    /// Loopback address of a SOCKS5 port, through which the node's own connections
    /// go into the same Tor: for a new backend.toml
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "direct")]
    pub socks_listen: Option<SocketAddr>,

    /// The server behind the kite: an address such as 127.0.0.1:49293, or unix:/path
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "node")]
    pub origin: Option<String>,

    /// A Tahoe-LAFS node's directory, whose tahoe.cfg tells the origin
    #[arg(long, value_name = "DIR")]
    pub node: Option<PathBuf>,

    /// What the kite carries. The frontend has a say in it, and no more: what it lets the kite
    /// carry must have this
    #[arg(long, value_name = "PROTOCOL", default_value = "foolscap")]
    pub protocol: Option<Protocol>,

    /// The directory for backend.toml and the secret
    /// [default: ~/.config/kite, for root /etc/kite]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,

    /// Where Tor's state is kept
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Flags of `kite backend`. Each has a key in the file: [`crate::config::file`].
#[derive(Debug, Default, Args)]
pub struct BackendArgs {
    /// TOML file to read, or pagekite.py's FILE.rc, or a directory of such; flags given here
    /// replace what it says
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Reach frontends through Tor and in no other way
    #[arg(long)]
    pub via_tor: bool,

    /// TOML file with Arti's own settings (bridges, storage, …), merged over kite's
    #[arg(long, value_name = "FILE")]
    pub tor_config: Option<PathBuf>,

    /// Loopback address of a SOCKS5 port, through which the node's own connections
    /// go into the same Tor
    #[arg(long, value_name = "ADDR:PORT")]
    pub socks_listen: Option<String>,

    /// Frontend to dial; repeat for more. host:port (certificate checked),
    /// host:port#sha256:PIN (pinned key), NAME.onion:port, or plain://host:port (no
    /// protection). With =KITE,KITE only these kites are flown there
    #[arg(long, value_name = "ADDRESS[=KITE,…]")]
    pub frontend: Vec<String>,

    /// Tunnels to keep to each frontend, 1 to 4. Through Tor each has a circuit of its own
    /// [default: 2 through Tor, else 1]
    #[arg(long, value_name = "N")]
    pub tunnels: Option<u8>,

    /// File with the secret for the SERVICEs, readable by its owner alone.
    /// The variable KITE_SECRET may hold it instead
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// PEM file with more certificate authorities for host:port frontends
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// An IP address, besides loopback, that an origin may have; repeat for more
    #[arg(long, value_name = "IP")]
    pub allow_origin: Vec<String>,

    /// Where Tor's state is kept
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where to offer metrics to Prometheus: a loopback address, or unix:PATH
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<String>,

    /// Where to offer the status page: a loopback address, or unix:PATH. `kite web` gives the
    /// way in
    #[arg(long, value_name = "ADDR:PORT")]
    pub web_listen: Option<String>,

    /// What to serve: PROTOCOL[-PORT]:KITENAME:ORIGIN, as in
    /// foolscap:tahoebob.alice.example:127.0.0.1:49293 or ssh:bob.alice.example:127.0.0.1:22
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
}

/// Flags of `kite status`.
#[derive(Debug, Default, Args)]
pub struct StatusArgs {
    /// The state directory of the kite to ask
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Print JSON, for programs; docs/status-schema.json says what is in it
    #[arg(long)]
    pub json: bool,

    /// Show it on the whole terminal, and go on doing so until q
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
}

/// Flags of `kite web`.
#[derive(Debug, Default, Args)]
pub struct WebArgs {
    /// The state directory of the kite to ask
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Flags of `kite reload`: those that the backend was started with.
#[derive(Debug, Default, Args)]
pub struct ReloadArgs {
    /// As for `kite backend`.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Flags of `kite explain`.
#[derive(Debug, Default, Args)]
pub struct ExplainArgs {
    /// A code as messages show it, such as KITE-C04 (c04 will do); or `backend` or `frontend`, for who
    /// sees what of one with the flags behind it
    #[arg(value_name = "CODE|ROLE")]
    pub what: Option<String>,

    /// The flags that the backend or frontend is started with
    #[arg(
        value_name = "FLAGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub flags: Vec<OsString>,

    /// Say who can see what with this configuration. No secret is read
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Show all codes, each on a line
    #[arg(long, conflicts_with_all = ["what", "flags"])]
    pub list: bool,

    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Flags of `kite demo`.
#[derive(Debug, Default, Args)]
pub struct DemoArgs {
    /// Make the frontend an onion service and reach it through Tor
    #[arg(long)]
    pub via_tor: bool,

    /// TOML file with Arti's own settings, merged over kite's
    #[arg(long, value_name = "FILE", requires = "via_tor")]
    pub tor_config: Option<PathBuf>,
}

/// Flags of `kite check`.
#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// A Tahoe-LAFS node's directory: name the lines of its tahoe.cfg that show its address or
    /// keep visitors away, and the lines to put instead
    #[arg(long, value_name = "DIR")]
    pub node: Option<PathBuf>,

    /// The backend's TOML file: to check all that it leads to, to see whether the node goes with
    /// it, or to run it
    #[arg(long, env = "KITE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Go through Tor and in no other way, if the file does not say so
    #[arg(long, conflicts_with_all = ["direct", "leaks"])]
    pub via_tor: bool,

    /// Go directly, if the file does not say whether Tor is used: frontends see this machine's
    /// address
    #[arg(long, conflicts_with = "leaks")]
    pub direct: bool,

    /// Check all that the configuration leads to, and then the node of --node
    #[arg(long, requires = "node", conflicts_with = "leaks")]
    pub all: bool,

    /// The state directory of the backend, if its file does not say
    #[arg(long, env = "KITE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Print JSON, for programs
    #[arg(long, conflicts_with = "leaks")]
    pub json: bool,

    /// Run the backend of --config under strace for a while, and name everything that is neither
    /// Tor nor the origin. Needs strace, and no other kite in the same state directory
    #[arg(long, requires = "config", conflicts_with = "node")]
    pub leaks: bool,

    /// How long --leaks lets the backend run
    #[arg(long, value_name = "SECONDS", requires = "leaks", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Also show the addresses, which tell your guards
    #[arg(long, requires = "leaks")]
    pub verbose: bool,
}

/// Flags of `kite import`.
#[derive(Debug, Default, Args)]
pub struct ImportArgs {
    /// rc files, or directories of them [default: ~/.pagekite.rc, else /etc/pagekite.d]
    #[arg(value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,

    /// The directory to write to. What is there already stays: a file in the way is an error
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub to: PathBuf,
}

/// Flags of `kite tahoe`: a backend's, of which it needs the kites and the SOCKS port, and two
/// of its own. No secret is read.
#[derive(Debug, Default, Args)]
pub struct TahoeArgs {
    /// Put the lines into DIR/tahoe.cfg. The old file is kept beside it; other lines stay
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,

    /// The frontends' port for visitors, of all kites or of one; repeat for more
    /// [default: what the node in DIR announces, else 80]
    #[arg(long, value_name = "[KITE=]PORT")]
    pub public_port: Vec<String>,

    /// As for `kite backend`.
    #[command(flatten)]
    pub backend: BackendArgs,
}
