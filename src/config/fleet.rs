//! The other frontends that serve the same domain.

use super::file::FleetTable;
use super::*;
use crate::fleet::MAX_MEMBERS;
use crate::fleet::member::{Member, MemberId};
use crate::tls::Pin;

/// A frontend's place in a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetConfig {
    /// Where the other members come in.
    pub listen: SocketAddr,
    /// What this one is called.
    pub id: MemberId,
    /// The members; this one may be among them. Empty where etcd has them.
    pub members: Vec<Member>,
    /// Where the members say who they are, and what they fly, if that is not written down.
    pub etcd: Option<EtcdConfig>,
}

pub(super) fn fleet(source: &Source, table: FleetTable) -> Result<FleetConfig> {
    let at = |key: &str| source.at(format_args!("fleet.{key}"));
    let bad = |key: &str, problem: String, remedy: &str| {
        Err(ConfigError::new(Code::BadValue, at(key), problem, remedy))
    };
    let name = |key: &str, text: &str| {
        text.parse::<MemberId>().map_err(|e| {
            ConfigError::new(
                Code::BadName,
                at(key),
                format!("'{text}': {e}"),
                "write a short name such as fe-1",
            )
        })
    };
    let listen = address(&at("listen"), &table.listen)?;
    let id = name("id", &table.id)?;
    if table.members.len() > MAX_MEMBERS {
        let problem =
            format!("it has more than {MAX_MEMBERS} members, each of which has a link to each");
        return bad("members", problem, "take some out");
    }
    let mut members: Vec<Member> = Vec::new();
    for (i, entry) in table.members.into_iter().enumerate() {
        let key = |key: &str| format!("members[{i}].{key}");
        let member = Member {
            id: name(&key("id"), &entry.id)?,
            address: address(&at(&key("address")), &entry.address)?,
            pin: entry.pin.parse::<Pin>().map_err(|e| {
                ConfigError::new(
                    Code::BadValue,
                    at(&key("pin")),
                    e,
                    "copy it from what that member's log or `kite status` shows",
                )
            })?,
            public: entry
                .public
                .map(|text| public(&at(&key("public")), &text))
                .transpose()?,
        };
        if let Some(other) = members.iter().find(|m| m.id == member.id) {
            let problem = format!("there is another member called {}", other.id);
            return bad(&key("id"), problem, "call each by a name of its own");
        }
        if let Some(other) = members.iter().find(|m| m.address == member.address) {
            let problem = format!("{} is there, too", other.id);
            return bad(
                &key("address"),
                problem,
                "write each one's own address and port",
            );
        }
        if let Some(other) = members.iter().find(|m| m.pin == member.pin) {
            let problem = format!("{} has the same key", other.id);
            let remedy = "copy it from each one's own log; where a state directory was copied, remove fleet-key.pem there";
            return bad(&key("pin"), problem, remedy);
        }
        members.push(member);
    }
    if table.etcd.is_some() && !members.is_empty() {
        let problem = "the members are in etcd, and written down here, too".to_owned();
        let remedy = "remove [[fleet.members]]: each member writes itself into etcd";
        return Err(ConfigError::new(
            Code::Contradiction,
            at("members"),
            problem,
            remedy,
        ));
    }
    let etcd = table.etcd.map(|table| etcd::etcd(source, table, listen));
    Ok(FleetConfig {
        listen,
        id,
        members,
        etcd: etcd.transpose()?,
    })
}

/// Where a member is reached by the others.
pub(super) fn address(place: &str, text: &str) -> Result<SocketAddr> {
    text.parse::<SocketAddr>().map_err(|_| {
        let problem = format!("'{text}' is no address in numbers with a port");
        let remedy = "write it as 10.0.0.2:4430 or [fd00::2]:4430";
        ConfigError::new(Code::BadValue, place, problem, remedy)
    })
}

/// Where backends are told to go: they must be able to tell that they are there.
pub(super) fn public(place: &str, text: &str) -> Result<FrontendAddr> {
    let remedy = "write what that member's log shows behind 'backends dial': HOST:PORT#sha256:PIN, or NAME.onion:PORT";
    let address = text
        .parse::<FrontendAddr>()
        .map_err(|e| ConfigError::new(Code::BadValue, place, e, remedy))?;
    match address.trust() {
        Trust::Pin(_) | Trust::Onion => Ok(address),
        Trust::Roots | Trust::Names(_) | Trust::Plain => Err(ConfigError::new(
            Code::BadValue,
            place,
            format!("{address} has no pin, and is no onion service"),
            remedy,
        )),
    }
}
