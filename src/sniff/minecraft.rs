//! The first packet of Minecraft's protocol (Java edition, 1.7 and later): the handshake, which names the server.
//!
//! `length 00 version name port next`: the length and the version are VarInts (seven bits a byte, the lowest first), the name
//! is a VarInt length and that many bytes. The port is what the player typed, and counts for nothing here: between the
//! player and this port may be a firewall's redirection.

use super::{Refusal, Sniff, visitor_name};
use crate::kite::KiteName;

/// Longest handshake, its length included, in bytes: a name of 255, and what is around it.
pub const MAX_MINECRAFT_HANDSHAKE: usize = 2 + MAX_LENGTH;

/// Id, a version of five bytes, a name's length of two, 255 bytes of name, a port, the next state.
const MAX_LENGTH: usize = 1 + 5 + 2 + MAX_SERVER + 2 + 1;
/// The same with a version of one byte, and a name of one.
pub(super) const MIN_LENGTH: usize = 1 + 1 + 1 + 1 + 2 + 1;
/// Longest name, in bytes.
const MAX_SERVER: usize = 255;

/// The server that the player wants. Mod loaders append words of their own behind a NUL, which are not looked at.
/// See [`sniff`](super::sniff) for what holds of every parser here.
pub fn handshake(bytes: &[u8]) -> Sniff<KiteName> {
    read(bytes).into()
}

fn bad(why: &'static str) -> Refusal {
    Refusal::BadOpening(why)
}

fn read(bytes: &[u8]) -> Result<Option<KiteName>, Refusal> {
    let mut rest = bytes;
    let Some(length) = var_int(&mut rest, 2)? else {
        return Ok(None);
    };
    if !(MIN_LENGTH..=MAX_LENGTH).contains(&length) {
        return Err(bad("a Minecraft handshake of an impossible length"));
    }
    // Fields that reach beyond the packet are malformed; beyond what is here, they are still to come.
    let complete = rest.len() >= length;
    let mut packet = rest.get(..length).unwrap_or(rest);
    let missing = || match complete {
        true => Err(bad("a Minecraft handshake shorter than its fields")),
        false => Ok(None),
    };
    match packet.split_first() {
        Some((0, fields)) => packet = fields,
        Some(_) => return Err(bad("no Minecraft handshake")),
        None => return Ok(None),
    }
    let Some(_version) = var_int(&mut packet, 5)? else {
        return missing();
    };
    let Some(len) = var_int(&mut packet, 2)? else {
        return missing();
    };
    if !(1..=MAX_SERVER).contains(&len) {
        return Err(bad(
            "a Minecraft handshake with a name of an impossible length",
        ));
    }
    let Some((server, after)) = packet.split_at_checked(len) else {
        return missing();
    };
    let name = server.split(|&b| b == 0).next().unwrap_or_default();
    let name = visitor_name(name).ok_or(bad("a Minecraft handshake for no name"))?;
    match after {
        // Status, login, or a transfer from another server.
        [_, _, 1..=3] if complete => Ok(Some(name)),
        [_, _, _, ..] => Err(bad("a Minecraft handshake with a malformed end")),
        _ => missing(),
    }
}

/// A VarInt of at most `most` bytes, as far as it is there.
fn var_int(bytes: &mut &[u8], most: usize) -> Result<Option<usize>, Refusal> {
    let mut value = 0;
    for (i, &b) in bytes.iter().take(most).enumerate() {
        value |= usize::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            *bytes = bytes.get(i + 1..).unwrap_or_default();
            return Ok(Some(value));
        }
    }
    match bytes.len() < most {
        true => Ok(None),
        false => Err(bad("a Minecraft handshake with a number too long")),
    }
}
