//! A backend's file as text, whole or with a kite more. Other lines, comments too, stay as they are.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::dial::{FrontendAddr, OriginAddr};
use crate::kite::{KiteName, Protocol};
use crate::sniff::TubId;

/// One kite at one frontend.
#[derive(Debug, Clone)]
pub struct BackendDraft {
    /// How to go out, if the file is new.
    pub way: Way,
    /// Where to.
    pub frontend: FrontendAddr,
    /// As whom.
    pub kite: KiteName,
    /// For what.
    pub protocol: Protocol,
    /// What is behind it.
    pub origin: OriginAddr,
    /// The node that is meant.
    pub tub: Option<TubId>,
    /// The secret's file, beside this one; or the node's key, if that proves the kite.
    pub secret_file: String,
    /// The node proves the kite, which is called by its tub.
    pub by_tub: bool,
}

/// How to go out, and where state is kept.
#[derive(Debug, Clone, Default)]
pub struct Way {
    /// Through Tor and in no other way.
    pub via_tor: bool,
    /// Arti's own settings.
    pub tor_config: Option<PathBuf>,
    /// Where the node comes in to go out through Tor.
    pub socks: Option<SocketAddr>,
    /// Where state is kept, if not in its usual place.
    pub state_dir: Option<PathBuf>,
}

impl BackendDraft {
    /// A new file.
    pub fn whole(&self) -> String {
        let Way {
            via_tor,
            tor_config,
            socks,
            state_dir,
        } = &self.way;
        let mut text = String::from("# Read by `kite backend`.\n");
        if let Some(dir) = state_dir {
            let _ = writeln!(text, "state_dir = {}", quoted(&dir.to_string_lossy()));
        }
        match via_tor {
            true => {
                text += "\n# All connections go through Tor, and in no other way.\n[tor]\nenabled = true\n"
            }
            false => {
                text += "\n# Without Tor the frontend sees this machine's address.\n[tor]\nenabled = false\n"
            }
        }
        if let Some(config) = tor_config {
            let _ = writeln!(text, "config = {}", quoted(&config.to_string_lossy()));
        }
        if let Some(socks) = socks {
            let _ = writeln!(
                text,
                "# Here the node comes in to go out through the same Tor.\nsocks_listen = {}",
                quoted(&socks.to_string())
            );
        }
        text + &self.tables(true)
    }

    /// An old file, with this at its end. `dialled`: the file has the frontend already, for all kites.
    pub fn appended(&self, old: &str, dialled: bool) -> String {
        let end = if old.is_empty() || old.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        format!("{old}{end}{}", self.tables(!dialled))
    }

    fn tables(&self, frontend: bool) -> String {
        let mut text = String::new();
        let name = quoted(self.kite.as_str());
        if frontend {
            let address = quoted(&self.frontend.to_string());
            let _ = write!(
                text,
                "\n[[frontends]]\naddress = {address}\nkites = [{name}]\n"
            );
        }
        let _ = write!(text, "\n[[kites]]\nname = {name}\n");
        if self.protocol != Protocol::Foolscap {
            let _ = writeln!(text, "protocol = {}", quoted(self.protocol.as_str()));
        }
        let _ = writeln!(text, "origin = {}", quoted(&self.origin.to_string()));
        if self.by_tub {
            text += "# The node's key signs, and never leaves this machine.\nproof = \"tub\"\n";
        } else if let Some(tub) = &self.tub {
            let _ = writeln!(text, "tub_id = {}", quoted(tub.as_str()));
        }
        let _ = writeln!(text, "secret_file = {}", quoted(&self.secret_file));
        text
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
