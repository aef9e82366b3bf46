//! What comes byte by byte is decided at the same byte, and costs no more than a few times its length.

use kite::sniff::{Again, Sniff, sniff};
use proptest::prelude::*;

use crate::sniff::{broken_flight, cuts, pieces, valid_flights};

/// Shown in these pieces: the length at which it was decided, the answer, and how many bytes were looked at in all.
fn shown(flight: &[u8], pieces: &[&[u8]]) -> (usize, bool, usize) {
    let (mut again, mut length, mut looked) = (Again::default(), 0, 0);
    for piece in pieces {
        length += piece.len();
        let here = &flight[..length];
        if again.is_due(here) {
            looked += length;
            match sniff(here) {
                Sniff::NeedMore => {}
                Sniff::Found(_) => return (length, true, looked),
                Sniff::Refuse(_) => return (length, false, looked),
            }
        }
    }
    (length, matches!(sniff(flight), Sniff::Found(_)), looked)
}

fn bytewise(flight: &[u8]) -> (usize, bool, usize) {
    shown(flight, &flight.chunks(1).collect::<Vec<_>>())
}

#[test]
fn a_whole_flight_is_decided_at_its_last_byte() {
    for flight in valid_flights() {
        let (at, ..) = bytewise(&flight);
        assert_eq!(at, flight.len(), "{:?}", String::from_utf8_lossy(&flight));
    }
}

#[test]
fn single_bytes_do_not_cost_the_square_of_their_number() {
    let heads = [
        // One line that never ends, and many short ones.
        [b"GET / HTTP/1.1\r\nCookie: ".to_vec(), vec![b'x'; 20_000]].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"a:\n".repeat(7000)].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"a:\r\n".repeat(5000)].concat(),
        [b"<stream:stream a='".to_vec(), vec![b'x'; 5000]].concat(),
    ];
    for head in heads {
        let (at, found, looked) = bytewise(&head);
        assert!(!found && at < head.len(), "it is refused");
        assert!(looked < 12 * at, "{looked} bytes were looked at for {at}");
    }
    // Records of one byte each: as many looks as there are records, and each is short.
    let record = |byte| [22, 3, 1, 0, 1, byte];
    let mut hello = [1, 0, 0x3f, 0xff].map(record).concat();
    hello.extend(record(0).repeat(4000));
    let (at, _, looked) = bytewise(&hello);
    assert!(looked / at < at / 6, "{looked} for {at}");
}

proptest! {
    #[test]
    fn the_answer_is_that_of_the_whole(flight in broken_flight(), cuts in cuts()) {
        let (at, found, _) = shown(&flight, &pieces(&flight, &cuts));
        // What is found is found as early as without any saving.
        let first = (0..=flight.len()).find(|n| matches!(sniff(&flight[..*n]), Sniff::Found(_)));
        prop_assert_eq!(found, first.is_some());
        if let Some(first) = first {
            let mut end = 0;
            let ends = pieces(&flight, &cuts).iter().map(|p| { end += p.len(); end }).collect::<Vec<_>>();
            prop_assert_eq!(Some(at), ends.into_iter().find(|end| *end >= first));
        }
    }
}
