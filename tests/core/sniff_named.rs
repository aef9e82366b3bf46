//! XMPP and Minecraft: whom a visitor wants who names neither by HTTP nor by TLS. That the answer does not depend
//! on how the bytes were cut is tested with all flights in `sniff.rs`.

use kite::sniff::{MAX_FIRST_FLIGHT, Refusal, Sniff, Visitor, minecraft, sniff, xmpp};

use crate::sniff::{found_at_the_end, recorded, refused};

fn visitor(connection: u64) -> Vec<u8> {
    recorded(
        "pagekite/26-other-protocols.visitor.jsonl",
        "v2f",
        connection,
    )
}

fn name(text: &str) -> kite::kite::KiteName {
    text.parse().unwrap()
}

#[test]
fn recorded_visitors_are_told_apart() {
    let xmpp = found_at_the_end(&visitor(1));
    assert_eq!(xmpp, Visitor::Xmpp(name("xm.test")));
    let minecraft = found_at_the_end(&visitor(2));
    assert_eq!(minecraft, Visitor::Minecraft(name("mc.test")));
    // IRC has no place for a host of ours: pagekite.py takes it out of NICK. It is not carried.
    assert!(matches!(refused(&visitor(0)), Refusal::BadRequest(_)));
}

#[test]
fn xmpp_is_read_as_clients_write_it() {
    for opening in [
        // As in RFC 6120 §9.1.1.
        "<stream:stream\n     from='juliet@im.test'\n     to='im.test'\n     version='1.0'\n     xml:lang='en'\n     \
         xmlns='jabber:client'\n     xmlns:stream='http://etherx.jabber.org/streams'>",
        "<?xml version='1.0'?>\r\n<stream:stream to=\"IM.test.\" xmlns=\"jabber:server\">",
        "<?xml version=\"1.0\" encoding=\"utf-8\" ?><stream:stream xmlns = 'a>b' to = 'im.test' >",
    ] {
        let found = found_at_the_end(opening.as_bytes());
        assert_eq!(found, Visitor::Xmpp(name("im.test")), "{opening}");
    }
}

#[test]
fn what_is_no_xmpp_stream_to_one_host_is_refused() {
    for bad in [
        "<stream:stream>",
        "<stream:stream to='a.test' to='b.test'>",
        "<stream:stream to='*.test'>",
        "<stream:stream to='a b'>",
        "<stream:stream to='a.test'/>",
        "<stream:stream to=a.test>",
        "<stream:stream to='a<b'>",
        "<stream:stream to='a\0b'>",
        "<stream:streams to='a.test'>",
        "<stream:stream='a.test'>",
        "<message to='a.test'>",
        "<?xml version='1.0'><stream:stream to='a.test'>",
        "<?xml <stream:stream to='a.test'>",
        "<?xml?>x",
        "<a",
        "< stream:stream to='a.test'>",
    ] {
        assert!(
            matches!(refused(bad.as_bytes()), Refusal::BadOpening(_)),
            "{bad}"
        );
    }
    let mut endless = b"<stream:stream to='a.test' x='".to_vec();
    endless.resize(xmpp::MAX_XMPP_OPENING - 1, b'x');
    assert_eq!(sniff(&endless), Sniff::NeedMore);
    endless.push(b'x');
    assert!(matches!(
        sniff(&endless),
        Sniff::Refuse(Refusal::BadOpening(_))
    ));
    assert!(endless.len() <= MAX_FIRST_FLIGHT);
}

/// A handshake of version 763 for this name.
fn handshake(server: &[u8], next: u8) -> Vec<u8> {
    let mut fields = vec![0, 0xfb, 0x05];
    var_int(&mut fields, server.len());
    fields.extend_from_slice(server);
    fields.extend_from_slice(&[0x63, 0xdd, next]);
    let mut packet = Vec::new();
    var_int(&mut packet, fields.len());
    [packet, fields].concat()
}

fn var_int(out: &mut Vec<u8>, value: usize) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        out.extend_from_slice(&[0x80 | (value & 0x7f) as u8, (value >> 7) as u8]);
    }
}

#[test]
fn minecraft_is_read_as_clients_write_it() {
    let labels = ["x".repeat(63), "y".repeat(63), "z".repeat(60)].join(".");
    for server in ["mc.test", "MC.test.", "mc.test\0FML2\0", &labels] {
        let bare = name(server.split('\0').next().unwrap());
        for next in 1..=3 {
            let found = found_at_the_end(&handshake(server.as_bytes(), next));
            assert_eq!(found, Visitor::Minecraft(bare.clone()), "{server}");
        }
    }
    // A length that begins as TLS, as HTTP and as XMPP do.
    for (length, first) in [
        (15, 0x16),
        (b'G' as usize - 7, b'G'),
        (b'<' as usize - 7, b'<'),
    ] {
        let server = "m".repeat(length - 5) + ".test";
        let packet = handshake(server.as_bytes(), 2);
        assert_eq!(packet[0], first);
        assert_eq!(found_at_the_end(&packet), Visitor::Minecraft(name(&server)));
    }
}

#[test]
fn what_is_no_minecraft_handshake_is_refused() {
    let good = handshake(b"mc.test", 2);
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    for (bad, why) in [
        (with(0, good[0] - 1), "a length that is too small"),
        (with(0, good[0] + 1), "a length that is too large"),
        (with(0, 0x7f), "a length that is far too large"),
        (with(4, 0), "a name without a byte"),
        (with(4, 0x70), "a name longer than the packet"),
        (with(6, b' '), "a name that is none"),
        (with(good.len() - 1, 4), "a state that does not exist"),
        (handshake(b"*.test", 1), "a wildcard"),
        (handshake(&[b'x'; 255], 1), "a label too long"),
        (vec![0xff, 0x7f, 0], "a length beyond the limit"),
        (
            vec![0x10, 0, 0x80, 0x80, 0x80, 0x80, 0x80],
            "an endless number",
        ),
    ] {
        // Some are known only when the packet they promise would be complete.
        let padded = [&bad[..], &[9; 200]].concat();
        assert!(matches!(refused(&padded), Refusal::BadOpening(_)), "{why}");
    }
    assert!(good.len() <= minecraft::MAX_MINECRAFT_HANDSHAKE);
}
