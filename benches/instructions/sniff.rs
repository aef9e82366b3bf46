//! What a visitor's first bytes cost: all at once, and one after the other.

use std::hint::black_box;

use kite::sniff::foolscap::Negotiation;
use kite::sniff::{Sniff, sniff};

use crate::count::{Case, Operation};
use crate::recorded;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let flights = [
        (
            "an HTTP head",
            recorded::packet("pagekite/17-websocket-and-port.visitor", "v2f", b"GET "),
        ),
        (
            "a ClientHello",
            recorded::packet("pagekite/06-tls-sni-passthrough.visitor", "v2f", b"\x16"),
        ),
        (
            "a ClientHello with a post-quantum share",
            recorded::packet("tahoe/foolscap-client-to-node", "c2s", b"\x16"),
        ),
        (
            "a foolscap GET",
            recorded::packet("pagekite/07-foolscap-upgrade.visitor", "v2f", b"GET /id/"),
        ),
    ];
    for (what, bytes) in flights {
        for step in [bytes.len(), 1] {
            let bytes = bytes.clone();
            cases.push(Case::new(
                format!("sniff: {what}, {}", cut(&bytes, step)),
                times(step),
                move |_| first_flight(bytes.clone(), step),
            ));
        }
        if what == "a foolscap GET" {
            for step in [bytes.len(), 1] {
                let bytes = bytes.clone();
                cases.push(Case::new(
                    format!("policy: {what}, {}", cut(&bytes, step)),
                    times(step),
                    move |_| negotiation(bytes.clone(), step),
                ));
            }
        }
    }
    cases
}

fn cut(bytes: &[u8], step: usize) -> String {
    match step {
        1 => format!("{} bytes one by one", bytes.len()),
        _ => format!("{} bytes", bytes.len()),
    }
}

fn times(step: usize) -> usize {
    if step == 1 { 40 } else { 1000 }
}

/// As the frontend asks: again with all that has come, after each piece.
fn first_flight(bytes: Vec<u8>, step: usize) -> Operation {
    Box::new(move || {
        let found = (step..=bytes.len())
            .step_by(step)
            .map(|end| sniff(black_box(&bytes[..end])))
            .find(|said| !matches!(said, Sniff::NeedMore));
        assert!(matches!(black_box(found), Some(Sniff::Found(_))));
    })
}

/// As the backend asks: the gate of a foolscap kite is shown each piece.
fn negotiation(bytes: Vec<u8>, step: usize) -> Operation {
    Box::new(move || {
        let mut gate = Negotiation::new("kite.test".parse().unwrap(), None);
        let said = bytes
            .chunks(step)
            .map(|piece| gate.visitor(black_box(piece)))
            .last();
        assert!(matches!(said, Some(Sniff::Found(()))));
    })
}
