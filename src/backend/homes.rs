//! The members of a fleet that are home to our kites: a frontend names them, and where the operator wants that (`homes = true`)
//! tunnels are kept there, too.
//!
//! A frontend must not be able to send us anywhere: it may name addresses with a pin, or onion services, for kites that fly at
//! it, over a tunnel on which it has proved itself. They are dialled as all frontends are, and what they name in their turn
//! counts for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::Plan;
use crate::config::Frontend;
use crate::dial::{FrontendAddr, Trust};
use crate::kite::KiteName;
use crate::wire::Verdict;

/// Most frontends that are dialled because others have named them.
pub const MAX_HOMES: usize = 8;

/// Kites, each with an address that is home to it.
type Said = Vec<(KiteName, FrontendAddr)>;

/// What frontends have said of homes, by their addresses. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Homes(Arc<watch::Sender<BTreeMap<String, Said>>>);

impl Homes {
    /// Hears what a frontend says of the kites of a verdict: instead of what it said of them before.
    pub(super) fn hear(&self, of: &FrontendAddr, verdict: &Verdict) {
        if *of.trust() == Trust::Plain {
            return;
        }
        let flies = |name: &str| {
            let mut all = verdict.flying.iter().chain(&verdict.heard);
            all.any(|id| id.name == name)
        };
        let read = |(name, address): &(String, String)| {
            let address: FrontendAddr = address.parse().ok()?;
            let proves = matches!(address.trust(), Trust::Pin(_) | Trust::Onion);
            let name = name.parse().ok().filter(|_| proves && flies(name))?;
            Some((name, address))
        };
        let said: Said = verdict.homes.iter().filter_map(read).collect();
        self.0.send_if_modified(|all| {
            let place = all.entry(of.to_string()).or_default();
            let before = place.clone();
            place.retain(|(name, _)| !flies(name.as_str()));
            place.extend(said);
            *place != before
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Said>> {
        self.0.subscribe()
    }

    /// The plan with the homes that its frontends may name; onion services only where they can be reached.
    pub(super) fn complete(&self, mut plan: Plan, onions: bool) -> Plan {
        // Nobody else's word counts, and so it is not kept.
        self.0.send_if_modified(|all| {
            let counts = |of: &String| {
                let mut asked = plan.frontends.iter().filter(|f| f.homes);
                asked.any(|f| f.address.to_string() == *of)
            };
            all.retain(|of, _| counts(of));
            let is_ours = |name: &KiteName| plan.services.iter().any(|s| s.name == *name);
            for said in all.values_mut() {
                said.retain(|(name, _)| is_ours(name));
            }
            false
        });
        let all = self.0.borrow();
        let mut more: Vec<Frontend> = Vec::new();
        for asked in plan.frontends.iter().filter(|f| f.homes) {
            for (name, address) in all.get(&asked.address.to_string()).into_iter().flatten() {
                let same = |f: &Frontend| is_same(&f.address, address);
                if plan.frontends.iter().any(same) || address.is_onion() && !onions {
                    continue;
                }
                match more.iter().position(same) {
                    Some(at) => {
                        if let Some(names) = more.get_mut(at).and_then(|f| f.kites.as_mut())
                            && !names.contains(name)
                        {
                            names.push(name.clone());
                        }
                    }
                    None if more.len() < MAX_HOMES => more.push(Frontend {
                        address: address.clone(),
                        kites: Some(vec![name.clone()]),
                        tunnels: asked.tunnels,
                        homes: false,
                    }),
                    None => {}
                }
            }
        }
        plan.frontends.append(&mut more);
        plan
    }
}

/// Both lead to one frontend: the address is the same, or the key, of which each member has its own.
fn is_same(a: &FrontendAddr, b: &FrontendAddr) -> bool {
    let same_key = matches!((a.trust(), b.trust()), (Trust::Pin(a), Trust::Pin(b)) if a == b);
    same_key || (a.host(), a.port()) == (b.host(), b.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::introduce::Tell;
    use crate::config::{ProvenBy, Service};
    use crate::dial::OriginAddr;
    use crate::kite::{Protocol, Secret};
    use crate::wire::KiteId;

    const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:80";

    /// At the default port, with a key of its own.
    fn member(host: &str, key: u8) -> String {
        let pin = data_encoding::BASE64URL_NOPAD.encode(&[key; 32]);
        format!("{host}:443#sha256:{pin}")
    }

    fn frontend(address: &str, homes: bool) -> Frontend {
        Frontend {
            address: address.parse().unwrap(),
            kites: None,
            tunnels: 2,
            homes,
        }
    }

    fn bob() -> Service {
        Service {
            protocol: Protocol::Http,
            port: None,
            name: "bob.example".parse().unwrap(),
            origin: OriginAddr::parse("127.0.0.1:1", false).unwrap(),
            secret: Secret::new(b"s").unwrap(),
            by: ProvenBy::Secret,
            tub: None,
            tls_at_frontend: false,
            tell: Tell::default(),
        }
    }

    fn verdict(flying: &str, homes: &[(&str, &str)]) -> Verdict {
        Verdict {
            flying: vec![KiteId {
                proto: "http".into(),
                name: flying.into(),
                bsalt: "b".into(),
            }],
            homes: homes
                .iter()
                .map(|(n, a)| ((*n).into(), (*a).into()))
                .collect(),
            ..Verdict::default()
        }
    }

    fn places(homes: &Homes, plan: &[Frontend], onions: bool) -> Vec<String> {
        let plan = Plan {
            frontends: plan.to_vec(),
            services: vec![bob()],
        };
        let all = homes.complete(plan, onions).frontends;
        all.iter().map(|f| f.address.to_string()).collect()
    }

    #[test]
    fn homes_are_taken_from_whom_they_may_be_taken_and_from_nobody_else() {
        let first = member("fe1.example", 1);
        let home = member("fe2.example", 2);
        let entry = frontend(&first, true);
        let homes = Homes::default();
        let named = [
            ("bob.example", home.as_str()),
            ("bob.example", first.as_str()),
            ("bob.example", "fe3.example:443"),
            ("bob.example", "plain://fe4.example:443"),
            ("eve.example", &member("fe5.example", 5)),
            ("bob.example", ONION),
            ("bob.example", "nonsense"),
            // By another name, and by another port.
            ("bob.example", &member("192.0.2.1", 1)),
            (
                "bob.example",
                &member("fe2.example", 2).replace(":443", ":80"),
            ),
        ];
        homes.hear(&entry.address, &verdict("bob.example", &named));
        assert_eq!(
            places(&homes, std::slice::from_ref(&entry), false),
            [first.clone(), home.clone()]
        );
        assert_eq!(
            places(&homes, std::slice::from_ref(&entry), true),
            [first.clone(), home.clone(), ONION.into()]
        );
        // Nobody asked for that.
        assert_eq!(
            places(&homes, &[frontend(&first, false)], true),
            std::slice::from_ref(&first)
        );
        assert!(homes.0.borrow().is_empty(), "it is not kept either");
        homes.hear(&entry.address, &verdict("bob.example", &named));
        // A home's own word counts for nothing.
        let there = frontend(&home, false);
        let elsewhere = member("fe6.example", 6);
        homes.hear(
            &there.address,
            &verdict("bob.example", &[("bob.example", &elsewhere)]),
        );
        assert_eq!(
            places(&homes, std::slice::from_ref(&entry), false),
            [first.clone(), home]
        );
        // Nor that of somebody who has proved nothing.
        let plain = frontend("plain://fe7.example:80", true);
        homes.hear(
            &plain.address,
            &verdict("bob.example", &[("bob.example", &elsewhere)]),
        );
        assert_eq!(places(&homes, &[plain], false), ["plain://fe7.example:80"]);
        // Other homes take the place of the first.
        homes.hear(&entry.address, &verdict("bob.example", &[]));
        assert_eq!(places(&homes, &[entry], false), [first]);
    }

    #[test]
    fn no_more_than_some_are_dialled_and_each_for_its_kites() {
        let entry = frontend(&member("fe.example", 99), true);
        let homes = Homes::default();
        let all: Vec<_> = (0..20)
            .map(|i| member(&format!("h{i}.example"), i))
            .collect();
        let named: Vec<_> = all.iter().map(|a| ("bob.example", a.as_str())).collect();
        homes.hear(&entry.address, &verdict("bob.example", &named));
        let plan = Plan {
            frontends: vec![entry],
            services: vec![bob()],
        };
        let full = homes.complete(plan, false);
        assert_eq!(full.frontends.len(), 1 + MAX_HOMES);
        let bob: Vec<KiteName> = vec!["bob.example".parse().unwrap()];
        assert!(
            full.frontends[1..]
                .iter()
                .all(|f| f.kites.as_ref() == Some(&bob) && f.tunnels == 2)
        );
    }
}
