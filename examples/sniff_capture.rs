//! Tells what the visitors in a packet capture wanted, as a frontend would have told them apart.
//!
//! It reads what `tcpdump -w` writes (pcap, not pcapng) of TCP over IPv4 or IPv6, puts the first bytes of each
//! connection that begins in the capture together, and asks the sniffer.
//!
//! Run it: `cargo run --example sniff_capture -- tests/fixtures/capture.pcap`

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kite::sniff::{MAX_FIRST_FLIGHT, Sniff, Visitor, sniff};

const SYN: u8 = 2;
const ACK: u8 = 16;
const TCP: u8 = 6;

/// A TCP segment, as far as it matters here.
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    number: u32,
    flags: u8,
    data: &'a [u8],
}

/// What a visitor has sent so far, without gaps.
#[derive(Default)]
struct Flight {
    next: u32,
    bytes: Vec<u8>,
    early: BTreeMap<u32, Vec<u8>>,
}

impl Flight {
    fn take(&mut self, number: u32, data: &[u8]) {
        // Sent twice, or more than is looked at anyway.
        let ahead = number.wrapping_sub(self.next);
        if data.is_empty() || ahead as usize > MAX_FIRST_FLIGHT {
            return;
        }
        self.early.insert(number, data.to_vec());
        while let Some(data) = self.early.remove(&self.next) {
            self.next = self.next.wrapping_add(data.len() as u32);
            self.bytes.extend(data);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1);
    let path = path.ok_or("name a file that tcpdump -w has written")?;
    let capture = std::fs::read(path)?;
    let mut flights: BTreeMap<(SocketAddr, SocketAddr), Flight> = BTreeMap::new();
    for packet in packets(&capture).ok_or("that is no pcap file with Ethernet or raw IP packets")? {
        let Some(segment) = segment(packet) else {
            continue;
        };
        let key = (segment.from, segment.to);
        if segment.flags & (SYN | ACK) == SYN {
            let next = segment.number.wrapping_add(1);
            flights.insert(
                key,
                Flight {
                    next,
                    ..Flight::default()
                },
            );
        } else if let Some(flight) = flights.get_mut(&key) {
            flight.take(segment.number, segment.data);
        }
    }
    for ((from, to), flight) in flights {
        println!("{from} to {to}: {}", describe(&flight.bytes));
    }
    Ok(())
}

fn describe(bytes: &[u8]) -> String {
    let named =
        |name: Option<_>| name.map_or("nobody".to_owned(), |n: kite::kite::KiteName| n.to_string());
    match sniff(bytes) {
        Sniff::NeedMore => format!("{} bytes, not enough to tell", bytes.len()),
        Sniff::Found(Visitor::Tls(hello)) => {
            format!("a TLS ClientHello of a visitor, for {}", named(hello.sni))
        }
        Sniff::Found(Visitor::Http(head)) if head.foolscap.is_some() => {
            format!("foolscap's opening, for {}", named(head.host))
        }
        Sniff::Found(Visitor::Http(head)) => format!("an HTTP request, for {}", named(head.host)),
        Sniff::Found(Visitor::Xmpp(host)) => format!("an XMPP stream to {host}"),
        Sniff::Found(Visitor::Minecraft(host)) => format!("a Minecraft handshake for {host}"),
        Sniff::Refuse(why) => format!("refused: {why}"),
    }
}

/// The IP packets of a capture; `None` if it is none that is understood.
fn packets(capture: &[u8]) -> Option<Vec<&[u8]>> {
    let little = match capture.get(..4)? {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => true,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => false,
        _ => return None,
    };
    let number = |at: usize| {
        let four: [u8; 4] = capture.get(at..at + 4)?.try_into().ok()?;
        Some(if little {
            u32::from_le_bytes(four)
        } else {
            u32::from_be_bytes(four)
        } as usize)
    };
    // What stands in front of the IP header.
    let link = match number(20)? {
        1 => 14,
        101 => 0,
        _ => return None,
    };
    let (mut at, mut found) = (24, Vec::new());
    while let Some(length) = number(at + 8) {
        let Some(packet) = capture.get(at + 16 + link..at + 16 + length) else {
            break;
        };
        found.push(packet);
        at += 16 + length;
    }
    Some(found)
}

/// The TCP segment in an IP packet, if there is one.
fn segment(ip: &[u8]) -> Option<Segment<'_>> {
    let (from, to, head, total) = match ip.first()? >> 4 {
        4 if ip.get(9)? == &TCP => {
            let address = |at| {
                Some(IpAddr::from(Ipv4Addr::from(
                    <[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?,
                )))
            };
            let head = usize::from(ip.first()? & 15) * 4;
            (address(12)?, address(16)?, head, short(ip, 2)?)
        }
        6 if ip.get(6)? == &TCP => {
            let address = |at| {
                Some(IpAddr::from(Ipv6Addr::from(
                    <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
                )))
            };
            (address(8)?, address(24)?, 40, short(ip, 4)? + 40)
        }
        _ => return None,
    };
    // An Ethernet frame may be longer than its packet.
    let tcp = ip.get(head..total.into())?;
    let number = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    Some(Segment {
        from: (from, short(tcp, 0)?).into(),
        to: (to, short(tcp, 2)?).into(),
        number,
        flags: *tcp.get(13)?,
        data: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
    })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
