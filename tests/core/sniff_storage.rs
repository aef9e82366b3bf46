//! What a storage-only frontend lets pass: recorded Tahoe traffic whole, and nothing else.

use kite::kite::KiteName;
use kite::sniff::foolscap::{Breach, MAX_NEGOTIATION};
use kite::sniff::storage::Storage;
use kite::sniff::{HttpHead, Sniff, TubId, Visitor, sniff};
use proptest::prelude::*;

use crate::sniff::tahoe;

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\nConnection: Upgrade\r\n\r\n";
const OTHER_TUB: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A recorded visitor: its request, what follows, what the node said; the name that was asked for, and the tub.
fn recorded() -> (Vec<u8>, Vec<u8>, Vec<u8>, HttpHead) {
    let mut first = tahoe("foolscap-client-to-node", "c2s");
    let Sniff::Found(Visitor::Http(head)) = sniff(&first) else {
        panic!("a request")
    };
    let rest = first.split_off(head.len);
    (first, rest, tahoe("foolscap-client-to-node", "s2c"), head)
}

fn begun() -> Storage {
    let (first, _, _, head) = recorded();
    Storage::foolscap(&first, &head.host.unwrap(), head.foolscap).unwrap()
}

fn switched() -> Storage {
    let mut storage = begun();
    storage.origin(SWITCHING).unwrap();
    storage
}

/// What becomes of bytes that come in these pieces.
fn pieces(
    mut show: impl FnMut(&[u8]) -> Result<(), Breach>,
    bytes: &[u8],
    size: usize,
) -> Result<(), Breach> {
    bytes.chunks(size).try_for_each(&mut show)
}

#[test]
fn recorded_foolscap_passes_however_it_is_cut() {
    let (_, up, down, _) = recorded();
    for size in [1, 2, 3, 5, 7, 83, 1389, 1 << 20] {
        let mut storage = begun();
        let (answer, records) = down.split_at(SWITCHING.len());
        assert_eq!(pieces(|b| storage.origin(b), answer, size), Ok(()));
        assert_eq!(pieces(|b| storage.visitor(b), &up, size), Ok(()));
        assert_eq!(pieces(|b| storage.origin(b), records, size), Ok(()));
        // Both ways at once, and nothing but the whole tells where a record ends.
        assert_eq!(storage.visitor(b"GET /"), Err(Breach::NotTls));
    }
}

#[test]
fn recorded_https_storage_passes_however_it_is_cut() {
    for name in ["gbs-client-to-node-data", "gbs-client-to-node-calls"] {
        for size in [1, 4, 1389, 1 << 20] {
            let mut storage = Storage::tls();
            let (up, down) = (tahoe(name, "c2s"), tahoe(name, "s2c"));
            assert_eq!(pieces(|b| storage.visitor(b), &up, size), Ok(()), "{name}");
            assert_eq!(pieces(|b| storage.origin(b), &down, size), Ok(()), "{name}");
        }
    }
}

#[test]
fn a_request_must_be_foolscaps_and_for_this_tub() {
    let (first, _, _, head) = recorded();
    let (name, tub) = (head.host.unwrap(), head.foolscap);
    let other: TubId = OTHER_TUB.parse().unwrap();
    let elsewhere: KiteName = "eve.example".parse().unwrap();
    let refused = |first: &[u8], name: &KiteName, tub| Storage::foolscap(first, name, tub).err();
    assert_eq!(refused(&first, &name, None), None);
    assert_eq!(refused(&first, &name, tub), None);
    assert_eq!(refused(&first, &name, Some(other)), Some(Breach::OtherTub));
    assert_eq!(refused(&first, &elsewhere, None), Some(Breach::OtherHost));
    let text = String::from_utf8(first.clone()).unwrap();
    for (changed, why) in [
        (text.clone() + "x", Breach::TooEarly),
        (text.replace("Upgrade: TLS/1.0\r\n", ""), Breach::NoUpgrade),
        (text.replace("/id/", "/index"), Breach::NotFoolscap),
        (text.replacen("GET", "PUT", 1), Breach::NotFoolscap),
        (text[..text.len() - 2].to_owned(), Breach::NotFoolscap),
    ] {
        assert_eq!(
            refused(changed.as_bytes(), &name, None),
            Some(why),
            "{changed}"
        );
    }
}

#[test]
fn nothing_but_records_follows_a_yes() {
    let page = b"HTTP/1.1 200 OK\r\n\r\n<html>";
    assert_eq!(begun().visitor(b"\x16"), Err(Breach::TooEarly));
    assert_eq!(switched().visitor(b"G"), Err(Breach::NotTls));
    assert_eq!(switched().visitor(&[0x17, 3, 3, 0, 1]), Err(Breach::NotTls));
    assert_eq!(switched().origin(b"<html>"), Err(Breach::NotTls));
    assert_eq!(
        begun().origin(&[SWITCHING, page].concat()),
        Err(Breach::NotTls)
    );
    // An alert may be all that an origin says.
    assert_eq!(switched().origin(&[0x15, 3, 3, 0, 2, 2, 40]), Ok(()));
    for bad in [
        &[0x18, 3, 3, 0, 1, 0][..],
        &[0x16, 2, 0, 0, 1],
        &[0x16, 3, 0, 0, 1],
        &[0x16, 3, 4, 0, 1],
        &[0x16, 3, 3, 0, 0],
        &[0x16, 3, 3, 0x48, 1],
        &[0x17, 3, 3, 0, 2, 9, 9, b'H', b'T'],
    ] {
        let mut storage = switched();
        storage.visitor(&[0x16, 3, 1, 0, 1, 1]).unwrap();
        assert_eq!(storage.visitor(bad), Err(Breach::NotTls), "{bad:?}");
        assert_eq!(switched().origin(bad), Err(Breach::NotTls), "{bad:?}");
    }
    let mut storage = switched();
    assert_eq!(
        storage.origin(&[0x17, 3, 3, 0, 0, 0x17, 3, 3, 0x48, 0]),
        Ok(())
    );
}

#[test]
fn a_no_is_passed_on_and_is_no_page() {
    let (_, _, _, head) = recorded();
    let no = b"HTTP/1.1 500 Internal Server Error: unknown TubID\r\n\r\n";
    for size in [1, 9, no.len()] {
        let mut storage = begun();
        assert_eq!(pieces(|b| storage.origin(b), no, size), Ok(()));
        assert_eq!(storage.visitor(b"\x16"), Err(Breach::NotSwitched));
        let room = MAX_NEGOTIATION - no.len();
        assert_eq!(storage.origin(&vec![b'a'; room]), Ok(()));
        assert_eq!(storage.origin(b"a"), Err(Breach::NotTls));
    }
    assert_eq!(
        begun().origin(&vec![b'a'; MAX_NEGOTIATION + 1]),
        Err(Breach::NotTls)
    );
    // Nor is a yes without an end a way for more.
    let mut storage = begun();
    let long = [&b"HTTP/1.1 101 "[..], &[b'a'; MAX_NEGOTIATION]].concat();
    assert_eq!(storage.origin(&long), Err(Breach::NotTls));
    assert!(head.foolscap.is_some());
}

proptest! {
    /// Where the cuts are makes no difference, and nothing panics.
    #[test]
    fn cuts_change_nothing(
        noise in proptest::collection::vec(prop_oneof![Just(0x16u8), Just(0x17), Just(3), Just(0), any::<u8>()], 0..64),
        size in 1usize..9,
    ) {
        for begin in [begun as fn() -> Storage, switched, Storage::tls] {
            let (mut whole, mut cut) = (begin(), begin());
            prop_assert_eq!(whole.origin(&noise), pieces(|b| cut.origin(b), &noise, size));
            let (mut whole, mut cut) = (begin(), begin());
            prop_assert_eq!(whole.visitor(&noise), pieces(|b| cut.visitor(b), &noise, size));
        }
    }
}
