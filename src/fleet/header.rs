//! What stands before the first byte of a visitor who is passed on to another member: a PROXY header, version 2, with fields
//! of our own. Sans-IO.

use std::net::SocketAddr;

use crate::kite::KiteName;
use crate::proxy_header::{self, Refusal};
use crate::sniff::Sniff;

/// Which kite was found, as `protocol:name`. For those who look at the wire; who takes the visitor looks itself.
const KITE: u8 = 0xE0;
/// Through how many members the visitor has come.
const HOPS: u8 = 0xE1;
/// See [`RAW`] and [`STORAGE_ONLY`].
const FLAGS: u8 = 0xE2;
/// The kite that the port belongs to at which the visitor came in.
const PORT_KITE: u8 = 0xE3;

/// All of that port's visitors are the raw kite's.
const RAW: u8 = 1;
/// The member where the visitor came in carries storage traffic and nothing else.
const STORAGE_ONLY: u8 = 2;

/// A visitor goes from the member where it came in to one that flies the kite, and no further.
pub const MAX_HOPS: u8 = 1;

/// A visitor who is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Whom the connection is from.
    pub from: SocketAddr,
    /// The port where it came in, as visitors know it.
    pub port: u16,
    /// The kite that was found, as `protocol:name`.
    pub kite: String,
    /// The kite that the port belongs to.
    pub port_kite: Option<KiteName>,
    /// All of the port's visitors are that kite's, from the first byte on.
    pub raw: bool,
    /// Nothing but storage traffic may be carried.
    pub storage_only: bool,
    /// Through how many members it has come, this one not counted: never 0.
    pub hops: u8,
}

impl Passed {
    /// As bytes.
    pub fn header(&self) -> Vec<u8> {
        let flags = RAW * u8::from(self.raw) + STORAGE_ONLY * u8::from(self.storage_only);
        let (hops, flags) = ([self.hops], [flags]);
        let mut fields = vec![
            (KITE, self.kite.as_bytes()),
            (HOPS, &hops[..]),
            (FLAGS, &flags[..]),
        ];
        if let Some(kite) = &self.port_kite {
            fields.push((PORT_KITE, kite.as_str().as_bytes()));
        }
        proxy_header::write_fields(self.from, self.port, &fields)
    }

    /// Reads it off the front of a connection; besides, how long it is.
    pub fn read(bytes: &[u8]) -> Sniff<(usize, Self), Refusal> {
        match proxy_header::read(bytes) {
            Sniff::Found(header) => match bytes.get(..header.len) {
                Some(whole) => match Self::of(whole, header.from) {
                    Some(passed) => Sniff::Found((header.len, passed)),
                    None => Sniff::Refuse(Refusal::Malformed),
                },
                None => Sniff::NeedMore,
            },
            Sniff::Refuse(why) => Sniff::Refuse(why),
            Sniff::NeedMore => Sniff::NeedMore,
        }
    }

    fn of(header: &[u8], from: Option<SocketAddr>) -> Option<Self> {
        let (port, fields) = proxy_header::fields(header)?;
        let text = |wanted: u8| {
            let value = fields.iter().find(|(kind, _)| *kind == wanted)?.1;
            std::str::from_utf8(value).ok()
        };
        let byte = |wanted: u8| match *fields.iter().find(|(kind, _)| *kind == wanted)?.1 {
            [byte] => Some(byte),
            _ => None,
        };
        let flags = byte(FLAGS)?;
        Some(Self {
            from: from?,
            port,
            // One with the longest of names has no room in its field.
            kite: text(KITE).unwrap_or_default().to_owned(),
            port_kite: text(PORT_KITE).map(str::parse).transpose().ok()?,
            raw: flags & RAW != 0,
            storage_only: flags & STORAGE_ONLY != 0,
            hops: byte(HOPS)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passed() -> impl Strategy<Value = Passed> {
        let address = prop_oneof![
            any::<[u8; 4]>().prop_map(std::net::IpAddr::from),
            any::<[u8; 16]>().prop_map(|ip| std::net::IpAddr::from(ip).to_canonical()),
        ];
        (
            (address, any::<u16>(), any::<u16>()),
            "[a-z0-9]{1,9}:[a-z]{1,30}\\.example",
            proptest::option::of("[a-z]{1,30}\\.example"),
            any::<(bool, bool, u8)>(),
        )
            .prop_map(
                |((ip, from, port), kite, port_kite, (raw, storage_only, hops))| Passed {
                    from: SocketAddr::new(ip, from),
                    port,
                    kite,
                    port_kite: port_kite.map(|name| name.parse().expect("a name")),
                    raw,
                    storage_only,
                    hops,
                },
            )
    }

    #[test]
    fn the_longest_name_is_passed_on_too() {
        let name = [["a"; 60].concat(), ["b"; 60].concat(), ["c"; 60].concat()].join(".");
        let passed = Passed {
            from: "192.0.2.1:5000".parse().expect("an address"),
            port: 443,
            kite: format!("websocket-443:{name}.{}.example", "d".repeat(60)),
            port_kite: None,
            raw: false,
            storage_only: false,
            hops: 1,
        };
        let header = passed.header();
        let Sniff::Found((len, read)) = Passed::read(&header) else {
            panic!("it is refused");
        };
        assert_eq!(
            (len, read.from, read.port),
            (header.len(), passed.from, 443)
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(passed in passed(), first in any::<Vec<u8>>()) {
            let header = passed.header();
            let whole = [&header[..], &first].concat();
            prop_assert_eq!(Passed::read(&whole), Sniff::Found((header.len(), passed)));
            for cut in 0..header.len() {
                prop_assert_eq!(Passed::read(&whole[..cut]), Sniff::NeedMore);
            }
        }

        #[test]
        fn noise_is_refused(passed in passed(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut header = passed.header();
            let at = at.index(header.len());
            header[at] = with;
            // Whatever it is, it is decided without a panic, and never longer than it is.
            if let Sniff::Found((len, _)) = Passed::read(&header) {
                prop_assert!(len <= header.len());
            }
        }
    }

    #[test]
    fn a_header_that_is_a_load_balancers_is_no_members() {
        let from = "203.0.113.7:4711".parse().ok();
        for version in [proxy_header::Version::V1, proxy_header::Version::V2] {
            let header = proxy_header::write(version, from, 80, "bob.example");
            assert_eq!(Passed::read(&header), Sniff::Refuse(Refusal::Malformed));
        }
    }
}
