//! `kite`: from arguments to a role, and from errors to exit codes.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use kite::backend::join::{self, Begun, Join, JoinError};
use kite::cli::{
    BackendCommand, Cli, Command, DemoArgs, FrontendCommand, InvitationsArgs, InviteArgs,
    KitesArgs, RunningArgs, Shell, StatusArgs, TahoeArgs, WebArgs,
};
use kite::code::{Code, Coded};
use kite::config::{BackendConfig, ConfigError, FrontendConfig, places};
use kite::control;
use kite::frontend::invitations;
use kite::frontend::kites::{self, KitesError};
use kite::observe::status::{Role, Status};
use kite::observe::view::{self, ViewError};
use kite::observe::{log, progress, stderr};
use kite::privilege;
use kite::rc::import;
use kite::reload::{Answer, Order};
use kite::run::{self, Handover, Reread, RunError};
use kite::web::{Invitation, USUAL_PORT};
use kite::wizard::ask::{self, Asker};
use kite::wizard::{self, FirstRun, FirstRunError};
use kite::{check, demo, explain, shutdown, tahoe};

/// Wrong usage or configuration.
const USAGE: u8 = 2;
/// Failure at run time.
const FAILED: u8 = 1;
/// The Tor network demands a newer Arti. To start again does not help.
const OBSOLETE: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return misused(&answer),
    };
    progress::choose(cli.progress);
    let usual = match &cli.command {
        // Its findings are what is wanted.
        Command::Check(args) if !args.leaks => "error",
        Command::Demo(_) => "warn",
        _ => "info",
    };
    if let Err(problem) = log::init(cli.log.as_deref().unwrap_or(usual), cli.log_format) {
        return say(USAGE, Code::Usage, &problem);
    }
    if let Err(e) = privilege::keep_memory_private() {
        let code = Code::SandboxLacks;
        tracing::warn!(
            "[{code}] sandbox: this machine cannot do all: memory may get into core dumps: {e}"
        );
    }
    // Arti and rustls need to be told whose cryptography to use before anything else.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return say(
            FAILED,
            Code::Broken,
            &"a cryptography provider was installed twice",
        );
    }
    let job = match Job::prepare(cli.command) {
        Ok(job) => job,
        Err(code) => return code,
    };
    let runtime = match runtime(job.uses_tor()) {
        Ok(runtime) => runtime,
        Err(e) => {
            return say(
                FAILED,
                Code::Broken,
                &format!("cannot start the runtime: {e}"),
            );
        }
    };
    // Walls stand by now, and bind this thread, too.
    stderr::begin();
    let code = runtime.block_on(dispatch(job));
    // What is still running in the background is not waited for.
    runtime.shutdown_background();
    stderr::finish();
    progress::finish();
    code
}

/// One worker for every two cores: what a worker hands to another on the next core costs more than it gains, and the kernel's
/// half of the work needs a core as well (docs/performance.md). With Tor at least two, since Arti reads directories for a second
/// at a time. `TOKIO_WORKER_THREADS` says otherwise.
fn runtime(uses_tor: bool) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let least = if uses_tor { 2 } else { 1 };
        builder.worker_threads((cores / 2).max(least));
    }
    builder.enable_all().build()
}

/// What to do, as far as it can be prepared while there is one thread: walls bind only what starts within them.
enum Job {
    Frontend(Box<(FrontendConfig, Reread<FrontendConfig>, Handover)>),
    ReloadFrontend(PathBuf),
    UpgradeFrontend(PathBuf),
    Backend(Box<run::Backend>),
    Demo(DemoArgs),
    Status(StatusArgs),
    Web(WebArgs),
    Check(Box<check::whole::Check>),
    Tahoe(Box<TahoeArgs>),
    Reload(Box<BackendConfig>),
    Kites(KitesArgs),
    Invite(Box<InviteArgs>),
    Invitations(InvitationsArgs),
    Join(Box<Begun>),
}

impl Job {
    fn uses_tor(&self) -> bool {
        match self {
            Self::Frontend(start) => start.0.onion.enabled,
            Self::Backend(backend) => backend.uses_tor(),
            Self::Demo(args) => args.via_tor,
            Self::Join(begun) => begun.join().uses_tor(),
            Self::Check(check) => check.uses_tor(),
            Self::ReloadFrontend(_)
            | Self::UpgradeFrontend(_)
            | Self::Status(_)
            | Self::Tahoe(_)
            | Self::Web(_)
            | Self::Reload(_)
            | Self::Kites(_)
            | Self::Invite(_)
            | Self::Invitations(_) => false,
        }
    }

    /// Or how it ended already.
    fn prepare(command: Command) -> Result<Self, ExitCode> {
        Ok(match command {
            Command::Frontend(mut args) => match args.command.take() {
                Some(FrontendCommand::Kites(mut args)) => {
                    places::settle_kites(&mut args.config, args.state_dir.as_deref());
                    Self::Kites(args)
                }
                Some(FrontendCommand::Invite(mut args)) => {
                    places::settle_kites(&mut args.config, args.state_dir.as_deref());
                    Self::Invite(args)
                }
                Some(FrontendCommand::Invitations(mut args)) => {
                    places::settle_kites(&mut args.config, args.state_dir.as_deref());
                    Self::Invitations(args)
                }
                Some(FrontendCommand::Reload(args)) => Self::ReloadFrontend(socket_of(args)?),
                Some(FrontendCommand::Upgrade(args)) => Self::UpgradeFrontend(socket_of(args)?),
                None => {
                    let mut handover = Handover::find().map_err(|e| {
                        let code = Code::PortForbidden;
                        say(FAILED, code, &format!("the sockets that were handed over cannot be used: {e}; see the socket unit"))
                    })?;
                    if !places::settle_frontend(&mut args) {
                        args.config = Some(first_run(
                            "frontend",
                            places::FRONTEND,
                            wizard::run_frontend,
                        )?);
                    }
                    tell_file(args.config.as_deref());
                    let config = FrontendConfig::load(&args).map_err(|e| wrong(&e))?;
                    handover.settle(&config).map_err(|e| failed(&e))?;
                    let reread: Reread<_> = Box::new(move || FrontendConfig::load(&args));
                    Self::Frontend(Box::new((config, reread, handover)))
                }
            },
            Command::Backend(args) => {
                if let Some(BackendCommand::Join(join)) = args.command {
                    let mut terminal = ask::terminal();
                    let asker = terminal.as_mut().map(|t| t as &mut dyn Asker);
                    let join = Join::prepare(&join, asker).map_err(|e| not_joined(&e))?;
                    let begun = join.begin().map_err(|e| not_joined(&e))?;
                    begun.confine().map_err(|e| not_joined(&e))?;
                    return Ok(Self::Join(Box::new(begun)));
                }
                let mut args = args.run;
                if !places::settle_backend(&mut args) {
                    args.config = Some(first_run("backend", places::BACKEND, wizard::run_backend)?);
                }
                tell_file(args.config.as_deref());
                let config = BackendConfig::load(&args).map_err(|e| wrong(&e))?;
                let mut backend = run::Backend::prepare(config).map_err(|e| failed(&e))?;
                backend.confine().map_err(|e| failed(&e))?;
                let backend = backend.rereads(Box::new(move || BackendConfig::load(&args)));
                Self::Backend(Box::new(backend))
            }
            Command::Demo(args) => Self::Demo(args),
            Command::Status(args) => Self::Status(args),
            Command::Web(args) => Self::Web(args),
            Command::Reload(mut args) => {
                places::settle_backend(&mut args.backend);
                Self::Reload(Box::new(
                    BackendConfig::load(&args.backend).map_err(|e| wrong(&e))?,
                ))
            }
            Command::Tahoe(mut args) => {
                places::settle_backend(&mut args.backend);
                Self::Tahoe(Box::new(args))
            }
            Command::Check(args) if !args.leaks && (args.node.is_none() || args.all) => {
                let check = check::whole::Check::prepare(&args).map_err(|e| fail(USAGE, &e))?;
                check.confine().map_err(|e| failed(&e))?;
                Self::Check(Box::new(check))
            }
            // These need no runtime.
            Command::Check(args) => return Err(verdict(check::run(&args, &mut std::io::stdout()))),
            Command::Completions { shell } => return Err(complete(shell)),
            Command::Explain(args) => {
                let done = explain::run(&args, &mut std::io::stdout());
                return Err(verdict(done.map(|()| true)));
            }
            Command::Import(args) => {
                let done = import::run(&args, &mut std::io::stdout());
                return Err(verdict(done.map(|()| true)));
            }
        })
    }
}

/// Asks for what is not written yet, if somebody is there to answer; the file to start with.
fn first_run(
    role: &str,
    name: &str,
    run: fn(&mut dyn Asker) -> Result<FirstRun, FirstRunError>,
) -> Result<PathBuf, ExitCode> {
    let Some(mut terminal) = ask::terminal() else {
        return Err(wrong(&places::nowhere(role, name)));
    };
    match run(&mut terminal) {
        Ok(FirstRun::Start(file)) => Ok(file),
        Ok(FirstRun::Done) => Err(ExitCode::SUCCESS),
        Err(e) => {
            let code = if e.is_usage() { USAGE } else { FAILED };
            Err(fail(code, &e))
        }
    }
}

/// Says which file is read.
fn tell_file(file: Option<&Path>) {
    if let Some(file) = file {
        tracing::info!("the configuration is {}", file.display());
    }
}

async fn dispatch(job: Job) -> ExitCode {
    let (trigger, order) = shutdown::channel();
    if let Err(e) = shutdown::on_signals(trigger, || {
        stderr::finish();
        std::process::exit(FAILED.into())
    }) {
        return say(
            FAILED,
            Code::Broken,
            &format!("cannot listen for signals: {e}"),
        );
    }
    let outcome = match job {
        Job::Frontend(start) => {
            let (config, reread, handover) = *start;
            let mut display = progress::Display::new();
            run::frontend(config, reread, handover, move |p| display.show(p), order).await
        }
        Job::ReloadFrontend(socket) => return changed(control::reread(&socket).await),
        Job::UpgradeFrontend(socket) => return upgraded(control::upgrade(&socket).await),
        Job::Backend(backend) => {
            let mut display = progress::Display::new();
            backend.run(move |p| display.show(p), order).await
        }
        Job::Status(args) if args.watch => {
            let kites = match state_dirs(args.state_dir.as_deref()) {
                Ok(kites) => kites,
                Err(code) => return code,
            };
            return match view::watch(&kites, order).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(e @ ViewError::NoTerminal) => fail(USAGE, &e),
                Err(e) => fail(FAILED, &e),
            };
        }
        Job::Status(args) => return tell(&args).await,
        Job::Web(args) => return invite(&args).await,
        Job::Check(check) => {
            return match check.run(&mut std::io::stdout()).await {
                Ok(code) => ExitCode::from(code),
                Err(e) => fail(USAGE, &e),
            };
        }
        Job::Tahoe(args) => {
            let running = tahoe::running(&args).await;
            return verdict(tahoe::run(&args, running.as_ref(), &mut std::io::stdout()));
        }
        Job::Kites(args) => {
            let (mut out, mut aside) = (std::io::stdout(), std::io::stderr());
            return managed(kites::run(&args, &mut out, &mut aside).await);
        }
        Job::Invite(args) => {
            let (mut out, mut aside) = (std::io::stdout(), std::io::stderr());
            return managed(invitations::invite(&args, &mut out, &mut aside).await);
        }
        Job::Invitations(args) => {
            let (mut out, mut aside) = (std::io::stdout(), std::io::stderr());
            return managed(invitations::run(&args, &mut out, &mut aside).await);
        }
        Job::Join(join) => {
            let mut display = progress::Display::new();
            let done = join.run(move |p| display.show(p), order).await;
            let told = done.and_then(|(join, config)| {
                join::report(&join, &config, &mut std::io::stdout()).map_err(JoinError::Output)
            });
            return match told {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => not_joined(&e),
            };
        }
        Job::Reload(config) => return reload(&config).await,
        Job::Demo(args) => {
            let mut out = std::io::stdout();
            return match demo::run(&args, &mut out, order).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => fail(FAILED, &e),
            };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

/// The end of a command that manages a frontend's kites.
fn managed(outcome: Result<(), KitesError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e @ (KitesError::Output(_) | KitesError::Ask(_))) => fail(FAILED, &e),
        Err(e) => fail(USAGE, &e),
    }
}

/// The state directories of the kites to ask.
fn state_dirs(given: Option<&Path>) -> Result<[(Role, PathBuf); 2], ExitCode> {
    places::state_dirs(given).map_err(|e| wrong(&e))
}

/// Nobody could be asked.
fn nobody(kites: &[(Role, PathBuf)]) -> ExitCode {
    fail(FAILED, &ViewError::Nobody(view::named(kites)))
}

/// Prints how each kite is that runs with these state directories.
async fn tell(args: &StatusArgs) -> ExitCode {
    let kites = match state_dirs(args.state_dir.as_deref()) {
        Ok(kites) => kites,
        Err(code) => return code,
    };
    let mut well = true;
    let mut found = Vec::new();
    for (role, dir) in &kites {
        let socket = role.socket(dir);
        if !socket.exists() {
            continue;
        }
        match control::status(&socket).await {
            Ok(status) => found.push(status),
            Err(e) => {
                well = false;
                eprintln!("kite: [{}] {e}", e.code());
            }
        }
    }
    if found.is_empty() && well {
        return nobody(&kites);
    }
    well &= found.iter().all(Status::is_well);
    if args.json {
        match serde_json::to_string_pretty(&found) {
            Ok(text) => println!("{text}"),
            Err(e) => return say(FAILED, Code::Broken, &e),
        }
    } else {
        found.iter().for_each(|status| print!("{status}"));
    }
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

/// Prints the way to the status page of each kite that runs with these state directories.
async fn invite(args: &WebArgs) -> ExitCode {
    let kites = match state_dirs(args.state_dir.as_deref()) {
        Ok(kites) => kites,
        Err(code) => return code,
    };
    let sockets = kites.iter().map(|(role, dir)| role.socket(dir));
    let (mut asked, mut shown) = (false, false);
    for socket in sockets.filter(|socket| socket.exists()) {
        asked = true;
        match control::web(&socket).await {
            Ok(Invitation::Open { at, url, minutes }) => {
                shown = true;
                eprintln!(
                    "The status page is at {at}. This address works once, for {minutes} minutes:"
                );
                if let Some(path) = at.strip_prefix("unix:") {
                    eprintln!(
                        "(first bring it to your browser: ssh -N -L {USUAL_PORT}:{path} THIS-MACHINE)"
                    );
                }
                println!("{url}");
            }
            Ok(Invitation::Off) => eprintln!(
                "kite: [{}] it has no status page; give it one with --web-listen 127.0.0.1:{USUAL_PORT}, or listen under [web], and start it again",
                Code::NoPage
            ),
            Err(e) => eprintln!("kite: [{}] {e}", e.code()),
        }
    }
    match (asked, shown) {
        (_, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(FAILED),
        (false, false) => nobody(&kites),
    }
}

/// Gives the backend with this state directory its configuration anew, and prints what has changed.
async fn reload(config: &BackendConfig) -> ExitCode {
    let socket = Role::Backend.socket(&config.state_dir);
    changed(control::reload(&socket, &Order::new(config)).await)
}

/// The control socket of the frontend that is meant.
fn socket_of(mut args: RunningArgs) -> Result<PathBuf, ExitCode> {
    places::settle_kites(&mut args.config, args.state_dir.as_deref());
    let dir = kite::config::frontend_state_dir(args.config.as_deref(), args.state_dir.as_deref());
    dir.map(|dir| Role::Frontend.socket(&dir))
        .map_err(|e| wrong(&e))
}

/// What came of an upgrade.
fn upgraded(answer: Result<Answer, control::AskError>) -> ExitCode {
    match answer {
        Ok(Answer::Changed(_)) => {
            println!("a new frontend has taken over; the old one ends with its visitors");
            ExitCode::SUCCESS
        }
        Ok(Answer::Refused(why)) => say(FAILED, Code::UpgradeFailed, &why),
        Err(e) => fail(FAILED, &e),
    }
}

/// What came of a reload.
fn changed(answer: Result<Answer, control::AskError>) -> ExitCode {
    match answer {
        Ok(Answer::Changed(lines)) => {
            let nothing = lines.is_empty().then_some("nothing has changed");
            let lines = lines.iter().map(String::as_str).chain(nothing);
            lines.for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Ok(Answer::Refused(why)) => say(
            USAGE,
            Code::ReloadRefused,
            &format!("nothing was changed: {why}"),
        ),
        Err(e) => fail(FAILED, &e),
    }
}

/// Prints what a shell needs to complete the command line.
fn complete(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kite", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => say(
            FAILED,
            Code::OutputFailed,
            &format!("standard output cannot be written: {e}; see where it goes"),
        ),
    }
}

/// A clean bill, findings, or no answer.
fn verdict<E: Coded + Display>(clean: Result<bool, E>) -> ExitCode {
    match clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(e) => fail(USAGE, &e),
    }
}

fn failed(error: &RunError) -> ExitCode {
    let status = match () {
        () if error.is_configuration() => USAGE,
        () if error.is_obsolete() => OBSOLETE,
        () => FAILED,
    };
    fail(status, error)
}

fn not_joined(error: &JoinError) -> ExitCode {
    let code = if error.is_usage() { USAGE } else { FAILED };
    fail(code, error)
}

fn wrong(error: &ConfigError) -> ExitCode {
    fail(USAGE, error)
}

/// What clap has to say: help that was asked for, or what is wrong with the words.
fn misused(answer: &clap::Error) -> ExitCode {
    // Nobody is left to be told.
    let _ = answer.print();
    let help = answer.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    match u8::try_from(answer.exit_code()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(status) if help => ExitCode::from(status),
        _ => say(USAGE, Code::Usage, &Code::Usage.entry().title),
    }
}

/// The last word of a command: what is the matter, and where there is more of it.
fn fail(status: u8, error: &(impl Coded + Display)) -> ExitCode {
    say(status, error.code(), error)
}

fn say(status: u8, code: Code, message: &impl Display) -> ExitCode {
    // Where nobody reads, nobody waits.
    if stderr::finish() {
        eprintln!("kite: [{code}] {message}\n  more: kite explain {code}");
    }
    progress::end(code, message.to_string());
    ExitCode::from(status)
}
