//! A program of the operator's, asked for one kite: `PROGRAM --auth NAME` (protocol page §12).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Word;
use super::dns::label;
use super::reason;
use crate::frontend::limits::Rate;
use crate::kite::{KiteName, Secret};
use crate::wiped;

/// How long the program may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;
/// All that it finds in its environment: ours may hold secrets.
const SEARCH: (&str, &str) = ("PATH", "/usr/local/bin:/usr/bin:/bin");

/// What it prints. What is not listed here is ignored.
#[derive(Deserialize)]
struct Printed {
    secret: Option<String>,
    #[serde(default = "unlimited")]
    quota_kb: serde_json::Value,
    quota_days: Option<i64>,
    quota_conns: Option<i64>,
    #[serde(rename = "ips_per_sec-ips")]
    ips: Option<u32>,
    #[serde(rename = "ips_per_sec-secs")]
    secs: Option<u32>,
    reason: Option<String>,
    error: Option<String>,
}

fn unlimited() -> serde_json::Value {
    (-1).into()
}

/// Asks; or says what went wrong, without anything that the program said.
pub(super) async fn ask(program: &Path, name: &KiteName) -> Result<Word, String> {
    let text = timeout(PATIENCE, run(program, name)).await;
    let text = text.unwrap_or_else(|_| Err(format!("it took more than {} s", PATIENCE.as_secs())));
    let text = text.map_err(|e| format!("{}: {e}", program.display()))?;
    parse(&text).ok_or_else(|| {
        let shown = program.display();
        format!("{shown}: it printed no JSON object as it should; try: {shown} --auth {name}")
    })
}

/// The program, and all that it has started and not sent elsewhere: dead when nobody waits for it any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Whoever has left already is not missed.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Without a shell, in a clean environment, and dead with its children when nobody waits for it any more.
#[expect(
    clippy::disallowed_methods,
    reason = "the operator's own program, named in the frontend's configuration; a backend has none"
)]
async fn run(program: &Path, name: &KiteName) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut child = Command::new(program)
        .arg("--auth")
        .arg(label(name))
        .env_clear()
        .env(SEARCH.0, SEARCH.1)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("it cannot be run: {e}"))?;
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let mut group = Group(id.and_then(Pid::from_raw));
    let output = child.stdout.take().ok_or("it has no output")?;
    let text = wiped::read_async(output, MAX_ANSWER + 1)
        .await
        .map_err(|e| format!("it cannot be read: {}", e.kind()))?;
    if text.len() as u64 > MAX_ANSWER {
        return Err(format!("it printed more than {MAX_ANSWER} bytes"));
    }
    let status = child.wait().await.map_err(|e| e.to_string())?;
    // It has ended by itself; its number may be another's soon.
    group.0 = None;
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    Ok(text)
}

/// None if that is no answer.
pub(crate) fn parse(text: &[u8]) -> Option<Word> {
    let printed: Printed = serde_json::from_slice(text).ok()?;
    let why = printed.reason.or(printed.error).map(|why| reason(&why));
    let Some(secret) = printed.secret.map(Zeroizing::new) else {
        // A kite that it does not know.
        return Some(Word::no(why.as_deref().unwrap_or("unauthorized")));
    };
    let secret = Secret::new(secret.as_bytes())?;
    // Only absence, or a number below 0, is no limit: `null` is as good as 0.
    let kb = match &printed.quota_kb {
        serde_json::Value::Null => Some(0),
        value => {
            let whole = value.as_f64().map(|kb| kb as i64);
            u64::try_from(value.as_i64().or(whole)?).ok()
        }
    };
    let left = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let visitors = printed.ips.zip(printed.secs).map(|(count, seconds)| Rate {
        count: count.max(1),
        seconds: seconds.max(1),
    });
    Some(Word {
        secret: Some(secret),
        refused: (kb == Some(0)).then(|| why.unwrap_or_else(|| "quota".to_owned())),
        kb,
        days: left(printed.quota_days),
        connections: left(printed.quota_conns),
        visitors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Option<Word> {
        parse(text.as_bytes())
    }

    #[test]
    fn its_words_are_understood() {
        let all = word(
            r#"{"secret": "s", "quota_kb": 100, "quota_days": 3, "quota_conns": 7,
                "ips_per_sec-ips": 5, "ips_per_sec-secs": 60, "other": [1]}"#,
        )
        .expect("an answer");
        assert_eq!(all.secret, Secret::new(b"s"));
        assert_eq!(
            (all.kb, all.days, all.connections, all.refused),
            (Some(100), Some(3), Some(7), None)
        );
        assert_eq!(all.visitors.map(|r| r.to_string()).as_deref(), Some("5/60"));
        let plain = word(r#"{"secret": "s"}"#).expect("an answer");
        assert_eq!((plain.kb, plain.refused), (None, None));
        let endless =
            word(r#"{"secret": "s", "quota_kb": -2, "quota_days": 0}"#).expect("an answer");
        assert_eq!(
            (endless.kb, endless.days, endless.refused),
            (None, None, None)
        );
    }

    #[test]
    fn a_no_is_a_no() {
        let why = |text| word(text).and_then(|word| word.refused);
        for (text, reason) in [
            (r#"{}"#, "unauthorized"),
            (r#"{"error": "no such kite"}"#, "no such kite"),
            (r#"{"secret": "s", "quota_kb": 0}"#, "quota"),
            (r#"{"secret": "s", "quota_kb": null}"#, "quota"),
            (
                r#"{"secret": "s", "quota_kb": 0, "reason": "noquota"}"#,
                "noquota",
            ),
        ] {
            assert_eq!(why(text).as_deref(), Some(reason), "{text}");
        }
        for bad in [
            "",
            "no",
            "[]",
            r#"{"secret": ""}"#,
            r#"{"secret": 5}"#,
            r#"{"secret": "s", "quota_kb": "x"}"#,
        ] {
            assert_eq!(word(bad), None, "{bad}");
        }
    }
}
