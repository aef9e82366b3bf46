//! Log lines, on standard error: plain text, without anybody's address unless the
//! operator asked for it.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Levels that apply to kite's own lines; from the libraries only warnings are of use.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Begins logging. `level` is one word for kite, or filters such as `kite=debug,arti_client=info`.
pub fn init(level: &str) -> Result<(), String> {
    let filters = match LEVELS.contains(&level) {
        true => format!("error,kite={level}"),
        false => level.to_owned(),
    };
    let filter = EnvFilter::try_new(&filters)
        .map_err(|e| format!("--log {level}: {e}; write a level such as info"))?;
    let stderr_is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(stderr_is_terminal && std::env::var_os("NO_COLOR").is_none())
        .try_init()
        .map_err(|e| e.to_string())
}
