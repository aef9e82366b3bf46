//! What may hold a secret is read into memory that is wiped when it is let go of, also when more room is needed on the way:
//! a vector that grows by itself leaves a copy behind each time.

use std::io::{self, Read};

use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

/// Room to begin with, in bytes.
const ROOM: usize = 4096;

/// All that comes, up to so many bytes; the rest is left.
pub(crate) fn read(from: impl Read, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut from = from.take(limit);
    let mut text = Zeroizing::new(Vec::with_capacity(ROOM));
    loop {
        make_room(&mut text);
        let room = text.capacity() - text.len();
        // Never more than there is room for.
        let read = (&mut from).take(room as u64).read_to_end(&mut text)?;
        if read < room {
            return Ok(text);
        }
    }
}

/// The same.
pub(crate) async fn read_async(
    from: impl AsyncRead + Unpin,
    limit: u64,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut from = from.take(limit);
    let mut text = Zeroizing::new(Vec::with_capacity(ROOM));
    loop {
        make_room(&mut text);
        if from.read_buf(&mut *text).await? == 0 {
            return Ok(text);
        }
    }
}

/// Room for more. What had too little is wiped.
fn make_room(text: &mut Zeroizing<Vec<u8>>) {
    if text.len() < text.capacity() {
        return;
    }
    let mut larger = Zeroizing::new(Vec::with_capacity(2 * text.capacity()));
    larger.extend_from_slice(text);
    *text = larger;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_it_is_read_up_to_the_limit() {
        for length in [0, 1, ROOM - 1, ROOM, ROOM + 1, 5 * ROOM] {
            let text: Vec<u8> = (0..length).map(|i| i as u8).collect();
            for limit in [0, 1, length, length + 1, 10 * ROOM] {
                let wanted = &text[..length.min(limit)];
                let limit = limit as u64;
                assert_eq!(read(&*text, limit).unwrap().as_slice(), wanted);
                assert_eq!(read_async(&*text, limit).await.unwrap().as_slice(), wanted);
            }
        }
    }
}
