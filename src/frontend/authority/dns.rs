//! The DNS as an authority: the question is what a backend said, the address in the answer is the
//! verdict, and whoever answers holds the secret (protocol page §12).

use std::net::{Ipv4Addr, SocketAddr};

use simple_dns::rdata::{A, CNAME, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};

use super::{Word, reason};
use crate::dial::question::{self, Reply};
use crate::frontend::limits::Rate;
use crate::kite::KiteName;
use crate::wire::ServiceLine;

/// Aliases that are followed within one answer.
const MAX_ALIASES: usize = 8;

/// Asks; or says what went wrong.
pub(super) async fn ask(
    line: &ServiceLine,
    name: &KiteName,
    suffix: &KiteName,
    resolver: SocketAddr,
) -> Result<Word, String> {
    // It is the backend's doing that there is nothing to ask: that is no failure, which might let it in.
    let id = rand::random();
    let Some((question, query)) = prepare(id, line, name, suffix) else {
        return Ok(Word::no("unauthorized"));
    };
    let take = |bytes: &[u8]| take(bytes, id, &question);
    question::ask(resolver, &query, take)
        .await
        .map_err(|e| format!("{resolver}: {e}"))?
        .map_err(str::to_owned)
}

/// The question, and the packet that asks it; none if a peer's words make no name.
pub(crate) fn prepare(
    id: u16,
    line: &ServiceLine,
    name: &KiteName,
    suffix: &KiteName,
) -> Option<(String, Vec<u8>)> {
    let question = question(line, name, suffix)?;
    let query = query(id, &question)?;
    Some((question, query))
}

/// A name as one that can be asked for: a wildcard's star has no place there.
pub(crate) fn label(name: &KiteName) -> String {
    name.as_str().replace('*', "_any_")
}

/// None if what the backend chose would be more than one label: the others would be taken for something else.
fn question(line: &ServiceLine, name: &KiteName, suffix: &KiteName) -> Option<String> {
    let ServiceLine {
        bsalt,
        fsalt,
        signature,
        proto,
        ..
    } = line;
    let salts = [bsalt, fsalt, signature, proto];
    (!salts.iter().any(|label| label.contains('.'))).then(|| {
        format!(
            "{bsalt}.{fsalt}.{signature}.{proto}.{}.{suffix}",
            label(name)
        )
    })
}

/// None if that is no name: a label has 63 characters, all of them 253, and a peer's salts are its own choice.
fn query(id: u16, question: &str) -> Option<Vec<u8>> {
    let fits = |label: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    if question.len() > 253 || !question.split('.').all(fits) {
        return None;
    }
    let name = Name::new(question).ok()?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet
        .questions
        .push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().ok()
}

/// What a packet says, if it is the answer to our question.
pub(crate) fn take(bytes: &[u8], id: u16, question: &str) -> Reply<Result<Word, &'static str>> {
    let Ok(packet) = Packet::parse(bytes) else {
        return Reply::Other;
    };
    let same = |name: &Name<'_>, text: &str| name.to_string().eq_ignore_ascii_case(text);
    let ours = matches!(packet.questions.as_slice(), [asked]
        if same(&asked.qname, question) && asked.qtype == TYPE::A.into());
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !ours {
        return Reply::Other;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Reply::Cut;
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Reply::Taken(Ok(Word::no("unauthorized"))),
        _ => return Reply::Taken(Err("it could not find the answer")),
    }
    let mut name = question.to_owned();
    let mut alias = false;
    for _ in 0..MAX_ALIASES {
        let of_name = || {
            packet
                .answers
                .iter()
                .filter(|record| same(&record.name, &name))
        };
        let address = of_name().find_map(|record| match &record.rdata {
            RData::A(A { address }) => Some(Ipv4Addr::from(*address)),
            _ => None,
        });
        if let Some(address) = address {
            return Reply::Taken(Ok(word(address, alias.then_some(name.as_str()))));
        }
        let next = of_name().find_map(|record| match &record.rdata {
            RData::CNAME(CNAME(target)) => Some(target.to_string()),
            _ => None,
        });
        match next {
            Some(next) => name = next,
            None => break,
        }
        alias = true;
    }
    Reply::Taken(Err("its answer has no address"))
}

/// The verdict: an address, and the alias that it stands behind.
fn word(address: Ipv4Addr, alias: Option<&str>) -> Word {
    // error[-ips-seconds].x.days.connections.rest, numbers in hexadecimal.
    let mut labels = alias.unwrap_or_default().split('.');
    let mut error = labels.next().unwrap_or_default().splitn(4, '-');
    let hex = |text: Option<&str>| text.and_then(|t| u64::from_str_radix(t, 16).ok());
    let why = error.next().filter(|why| !why.is_empty());
    let small = |n: Option<u64>| n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let (ips, seconds) = (small(hex(error.next())), small(hex(error.next())));
    let days = hex(labels.nth(1)).filter(|n| *n > 0);
    let connections = hex(labels.next()).filter(|n| *n > 0);
    let refused = match address.octets() {
        [255, 255, 255, _] => Some(why.map_or_else(|| "unauthorized".to_owned(), reason)),
        [0, 0, 0, 0] => Some("quota".to_owned()),
        _ => None,
    };
    Word {
        secret: None,
        refused,
        kb: Some(u64::from(address.to_bits())),
        days,
        connections,
        visitors: ips
            .zip(seconds)
            .map(|(count, seconds)| Rate { count, seconds }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::ResourceRecord;

    const ASKED: &str = "b.f.s.http.ok.test.auth.example";

    fn answer(id: u16, question: &str, records: Vec<(&str, RData<'static>)>) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        packet.questions.push(Question::new(
            Name::new(question).expect("a name").into_owned(),
            TYPE::A.into(),
            CLASS::IN.into(),
            false,
        ));
        for (name, data) in records {
            let name = Name::new(name).expect("a name").into_owned();
            packet
                .answers
                .push(ResourceRecord::new(name, CLASS::IN, 60, data));
        }
        packet.build_bytes_vec().expect("a packet")
    }

    fn a(address: [u8; 4]) -> RData<'static> {
        RData::A(A {
            address: u32::from_be_bytes(address),
        })
    }

    fn cname(target: &str) -> RData<'static> {
        RData::CNAME(CNAME(Name::new(target).expect("a name").into_owned()))
    }

    fn taken(bytes: &[u8]) -> Option<Result<Word, &'static str>> {
        match take(bytes, 7, ASKED) {
            Reply::Taken(word) => Some(word),
            Reply::Cut | Reply::Other => None,
        }
    }

    #[test]
    fn an_address_is_the_quota_or_a_no() {
        let of = |address| {
            taken(&answer(7, ASKED, vec![(ASKED, a(address))]))
                .expect("taken")
                .expect("a word")
        };
        assert_eq!(of([0, 1, 0, 0]).kb, Some(65536));
        assert_eq!(of([0, 1, 0, 0]).refused, None);
        assert_eq!(of([255, 255, 254, 255]).refused, None);
        assert_eq!(of([0, 0, 0, 0]).refused.as_deref(), Some("quota"));
        for last in [0, 1, 2, 255] {
            let word = of([255, 255, 255, last]);
            assert_eq!(word.refused.as_deref(), Some("unauthorized"), "{last}");
        }
    }

    #[test]
    fn an_alias_says_more() {
        let alias = "nodays-a-3c.x.1e.64.rest.example";
        let of = |address| {
            let records = vec![(ASKED, cname(alias)), (alias, a(address))];
            taken(&answer(7, ASKED, records))
                .expect("taken")
                .expect("a word")
        };
        let good = of([0, 0, 1, 0]);
        assert_eq!(
            (good.kb, good.days, good.connections),
            (Some(256), Some(30), Some(100))
        );
        assert_eq!(
            good.visitors.map(|r| r.to_string()).as_deref(),
            Some("10/60")
        );
        assert_eq!(of([255, 255, 255, 2]).refused.as_deref(), Some("nodays"));
    }

    #[test]
    fn what_does_not_answer_us_is_passed_over() {
        let good = answer(7, ASKED, vec![(ASKED, a([0, 0, 1, 0]))]);
        assert!(taken(&good).is_some());
        let other = "b.f.s.http.evil.test.auth.example";
        for bad in [
            answer(8, ASKED, vec![(ASKED, a([0, 0, 1, 0]))]),
            answer(7, other, vec![(ASKED, a([0, 0, 1, 0]))]),
            query(7, ASKED).expect("a query"),
            good[..good.len() / 2].to_vec(),
            vec![],
        ] {
            assert!(taken(&bad).is_none(), "{bad:?}");
        }
        // The right answer, about somebody else.
        let strange = answer(7, ASKED, vec![(other, a([0, 0, 1, 0]))]);
        assert!(matches!(taken(&strange), Some(Err(_))));
        let endless = answer(7, ASKED, vec![(ASKED, cname(ASKED))]);
        assert!(matches!(taken(&endless), Some(Err(_))));
    }

    #[test]
    fn a_peer_cannot_ask_for_what_is_no_name() {
        let line = |bsalt: &str| ServiceLine {
            proto: "http-80".into(),
            name: "*.ok.test".into(),
            bsalt: bsalt.into(),
            fsalt: "t".repeat(36),
            signature: "5".repeat(36),
        };
        let asked = |bsalt: &str| {
            let name: KiteName = "*.ok.test".parse().expect("a name");
            let suffix: KiteName = "auth.example".parse().expect("a name");
            query(7, &question(&line(bsalt), &name, &suffix)?)
        };
        let query = asked(&"b".repeat(36)).expect("a query");
        let packet = Packet::parse(&query).expect("a packet");
        let name = packet.questions[0].qname.to_string();
        assert!(
            name.ends_with(".http-80._any_.ok.test.auth.example"),
            "{name}"
        );
        for bad in ["a.b", "a b", "", "\u{e9}", &"b".repeat(64)] {
            assert!(asked(bad).is_none(), "{bad}");
            // Nobody is asked, and it is a no: also where a failure is a yes.
            let name: KiteName = "*.ok.test".parse().expect("a name");
            let suffix: KiteName = "auth.example".parse().expect("a name");
            let nobody = ([127, 0, 0, 1], 1).into();
            let line = line(bad);
            let word = futures::FutureExt::now_or_never(ask(&line, &name, &suffix, nobody));
            assert_eq!(word, Some(Ok(Word::no("unauthorized"))), "{bad}");
        }
    }
}
