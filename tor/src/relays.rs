//! Whom Arti may dial: decided in one function, `Rules::judge`.
//!
//! Arti opens sockets for one purpose, to reach its first hop. So the list of
//! addresses it has any business with is short and known: the directory caches in
//! its configuration, the relays of the signed directory, or instead of all these
//! what the operator configured to get past a censor.
//!
//! Where no directory has been loaded yet, the guards that an earlier run chose
//! stand in for it; Arti keeps them on disk and tries them first. The authorities
//! are not on the list: a client never speaks to them, unless they are fallbacks too.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

/// What a permitted address is to Tor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// A directory cache from Arti's built-in list, or from `tor_network.fallback_caches`.
    Fallback,
    /// A relay of the directory in use.
    Relay,
    /// A guard that an earlier run chose, as long as there is no directory.
    Guard,
    /// A configured bridge that needs no pluggable transport.
    Bridge,
    /// A pluggable transport's port on this machine. The transport dials for itself: what
    /// it dials is seen by a packet capture only.
    Transport,
    /// The proxy of `channel.outbound_proxy`.
    Proxy,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fallback => "directory cache",
            Self::Relay => "relay",
            Self::Guard => "earlier guard",
            Self::Bridge => "bridge",
            Self::Transport => "pluggable transport",
            Self::Proxy => "proxy",
        })
    }
}

/// What the configuration says about first hops. Fixed for the life of a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Directory caches that serve before there is a directory.
    pub(crate) fallbacks: HashSet<SocketAddr>,
    /// Guards from Arti's state file.
    pub(crate) guards: HashSet<SocketAddr>,
    /// Present when bridges are in use: then nothing else may be dialled.
    pub(crate) bridges: Option<Bridges>,
    /// Present when every connection goes through a proxy: then only that may be dialled.
    pub(crate) proxy: Option<SocketAddr>,
}

/// Bridges and the transports that lead to them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bridges {
    /// Bridges to which Arti connects by itself.
    pub(crate) direct: HashSet<SocketAddr>,
    /// Ports of transports that somebody else runs. All loopback; the configuration sees to it.
    pub(crate) transports: HashSet<SocketAddr>,
    /// Arti starts a transport, which then chooses a port on loopback.
    pub(crate) managed: bool,
}

impl Rules {
    /// May Arti dial this address, and what is it?
    ///
    /// `directory` answers whether an address is a relay's; it is `None` until a
    /// directory has been loaded.
    pub(crate) fn judge<D>(&self, addr: &SocketAddr, directory: Option<D>) -> Option<Peer>
    where
        D: FnOnce(&SocketAddr) -> bool,
    {
        if let Some(bridges) = &self.bridges
            && addr.ip().is_loopback()
            && (bridges.managed || bridges.transports.contains(addr))
        {
            return Some(Peer::Transport);
        }
        if let Some(proxy) = self.proxy {
            return (*addr == proxy).then_some(Peer::Proxy);
        }
        if let Some(bridges) = &self.bridges {
            return bridges.direct.contains(addr).then_some(Peer::Bridge);
        }
        if self.fallbacks.contains(addr) {
            return Some(Peer::Fallback);
        }
        match directory {
            Some(is_relay) => is_relay(addr).then_some(Peer::Relay),
            None => self.guards.contains(addr).then_some(Peer::Guard),
        }
    }
}

/// Largest state file of Arti's that we look into, in bytes. A full sample of guards takes some 50 KiB.
const MAX_GUARDS_FILE: u64 = 4 << 20;

/// The addresses of the guards that Arti wrote down in an earlier run.
///
/// The file is Arti's own business. If it has moved or changed, nothing is found
/// here, those guards are refused, and Arti goes on to a directory cache: slower, never wrong.
pub(crate) fn guards_of_earlier_runs(arti_state_dir: &Path) -> HashSet<SocketAddr> {
    let path = arti_state_dir.join("state").join("guards.json");
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_GUARDS_FILE => {}
        _ => return HashSet::new(),
    }
    std::fs::read_to_string(&path)
        .map(|text| guards_in(&text))
        .unwrap_or_default()
}

/// Reads `{"default": {"guards": [{"orports": ["192.0.2.1:9001", …], …}, …]}, "restricted": …}`.
fn guards_in(text: &str) -> HashSet<SocketAddr> {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    ["default", "restricted"]
        .iter()
        .filter_map(|set| json.get(set)?.get("guards")?.as_array())
        .flatten()
        .filter_map(|guard| guard.get("orports")?.as_array())
        .flatten()
        .filter_map(|port| port.as_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    fn set(texts: &[&str]) -> HashSet<SocketAddr> {
        texts.iter().map(|t| addr(t)).collect()
    }

    fn plain() -> Rules {
        Rules {
            fallbacks: set(&["192.0.2.1:9001"]),
            guards: set(&["192.0.2.3:443"]),
            ..Rules::default()
        }
    }

    fn relay_at_2(a: &SocketAddr) -> bool {
        *a == addr("192.0.2.2:9001")
    }

    fn nothing() -> Option<fn(&SocketAddr) -> bool> {
        None
    }

    #[test]
    fn before_a_directory_only_fallbacks_and_earlier_guards() {
        let judge = |a: &str| plain().judge(&addr(a), nothing());
        assert_eq!(judge("192.0.2.1:9001"), Some(Peer::Fallback));
        assert_eq!(judge("192.0.2.3:443"), Some(Peer::Guard));
        assert_eq!(judge("192.0.2.2:9001"), None);
        assert_eq!(judge("192.0.2.1:443"), None, "the port counts");
        assert_eq!(judge("127.0.0.1:9001"), None);
    }

    #[test]
    fn with_a_directory_its_relays_and_no_stale_guard() {
        let judge = |a: &str| plain().judge(&addr(a), Some(relay_at_2));
        assert_eq!(judge("192.0.2.2:9001"), Some(Peer::Relay));
        assert_eq!(judge("192.0.2.1:9001"), Some(Peer::Fallback));
        assert_eq!(judge("192.0.2.3:443"), None);
        assert_eq!(judge("198.51.100.1:443"), None, "a frontend");
        assert_eq!(judge("192.0.2.53:53"), None, "a resolver");
        assert_eq!(judge("127.0.0.1:9050"), None);
    }

    #[test]
    fn with_bridges_nothing_but_bridges() {
        let rules = Rules {
            bridges: Some(Bridges {
                direct: set(&["192.0.2.9:9001"]),
                ..Bridges::default()
            }),
            ..plain()
        };
        let judge = |a: &str| rules.judge(&addr(a), Some(relay_at_2));
        assert_eq!(judge("192.0.2.9:9001"), Some(Peer::Bridge));
        for no in [
            "192.0.2.1:9001",
            "192.0.2.2:9001",
            "192.0.2.3:443",
            "127.0.0.1:4000",
        ] {
            assert_eq!(judge(no), None, "{no}");
        }
    }

    #[test]
    fn transports_are_on_this_machine() {
        let with = |managed, ports: &[&str]| Rules {
            bridges: Some(Bridges {
                direct: HashSet::new(),
                transports: set(ports),
                managed,
            }),
            ..plain()
        };
        let managed = with(true, &[]);
        assert_eq!(
            managed.judge(&addr("127.0.0.1:40000"), nothing()),
            Some(Peer::Transport)
        );
        assert_eq!(
            managed.judge(&addr("[::1]:40000"), nothing()),
            Some(Peer::Transport)
        );
        assert_eq!(managed.judge(&addr("192.0.2.1:9001"), nothing()), None);
        let unmanaged = with(false, &["127.0.0.1:4000", "192.0.2.7:4000"]);
        assert_eq!(
            unmanaged.judge(&addr("127.0.0.1:4000"), nothing()),
            Some(Peer::Transport)
        );
        assert_eq!(unmanaged.judge(&addr("127.0.0.1:4001"), nothing()), None);
        assert_eq!(
            unmanaged.judge(&addr("192.0.2.7:4000"), nothing()),
            None,
            "not on this machine"
        );
    }

    #[test]
    fn with_a_proxy_nothing_but_the_proxy() {
        let mut rules = Rules {
            proxy: Some(addr("192.0.2.8:1080")),
            ..plain()
        };
        assert_eq!(
            rules.judge(&addr("192.0.2.8:1080"), Some(relay_at_2)),
            Some(Peer::Proxy)
        );
        assert_eq!(rules.judge(&addr("192.0.2.2:9001"), Some(relay_at_2)), None);
        assert_eq!(rules.judge(&addr("192.0.2.1:9001"), nothing()), None);
        rules.bridges = Some(Bridges {
            direct: set(&["192.0.2.9:9001"]),
            managed: true,
            ..Bridges::default()
        });
        assert_eq!(
            rules.judge(&addr("192.0.2.9:9001"), nothing()),
            None,
            "through the proxy only"
        );
        assert_eq!(
            rules.judge(&addr("127.0.0.1:40000"), nothing()),
            Some(Peer::Transport)
        );
    }

    #[test]
    fn the_state_file_is_read_with_patience() {
        let text = r#"{"default": {"guards": [{"id": {}, "orports": ["192.0.2.3:443", "[2001:db8::3]:443"]}, {"orports": 7}]},
                       "restricted": {"guards": [{"orports": ["192.0.2.4:443", "nonsense"]}]}, "bridges": {"guards": []}}"#;
        assert_eq!(
            guards_in(text),
            set(&["192.0.2.3:443", "[2001:db8::3]:443", "192.0.2.4:443"])
        );
        for odd in ["", "[]", "{", "{\"default\": 1}"] {
            assert!(guards_in(odd).is_empty());
        }
        assert!(guards_of_earlier_runs(Path::new("/nonexistent")).is_empty());
    }
}
