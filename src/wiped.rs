//! What may hold a secret is read into memory that is wiped when it is let go of, also when more room is needed on the way:
//! a vector that grows by itself leaves a copy behind each time.

use std::io::{self, Read};

use data_encoding::BASE64;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// A secret on its way from one process to another, as base64: read without a copy that stays.
pub(crate) struct Exposed(Zeroizing<Vec<u8>>);

impl Exposed {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self(Zeroizing::new(secret.to_vec()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Exposed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(BASE64.encode(&self.0)))
    }
}

impl<'de> Deserialize<'de> for Exposed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Base64 has nothing that JSON escapes, so the text can be lent.
        let text = <&str>::deserialize(deserializer)?;
        decoded(text.as_bytes())
            .map(Self)
            .ok_or_else(|| D::Error::custom("no base64"))
    }
}

fn decoded(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; BASE64.decode_len(text.len()).ok()?]);
    let length = BASE64.decode_mut(text, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// The first private key in a PEM text, DER. Parsers of PEM leave what they decode, and from what, behind.
pub(crate) fn private_key(pem: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const DASHES: &str = "-----";
    let marks = |line: &str, word: &str| {
        let label = line.strip_prefix(DASHES)?.strip_suffix(DASHES)?;
        let label = label.strip_prefix(word)?;
        label.ends_with("PRIVATE KEY").then_some(())
    };
    let mut lines = str::from_utf8(pem).ok()?.lines().map(str::trim_ascii_end);
    lines.find(|line| marks(line, "BEGIN ").is_some())?;
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    loop {
        let line = lines.next()?;
        if marks(line, "END ").is_some() {
            break;
        }
        text.extend_from_slice(line.as_bytes());
    }
    decoded(&text)
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

    #[test]
    fn a_key_is_found_in_its_text() {
        let key = |text: &str| private_key(text.as_bytes()).map(|key| key.to_vec());
        let pair = rcgen::KeyPair::generate().unwrap();
        let (pem, der) = (pair.serialize_pem(), pair.serialize_der());
        let other = pem.replace("PRIVATE KEY", "CERTIFICATE");
        let whole = format!("text\n{other}\n{pem}\n{other}");
        assert_eq!(key(&whole), Some(der.clone()));
        assert_eq!(key(&whole.replace('\n', "\r\n")), Some(der.clone()));
        let longer = pem.replace("PRIVATE KEY", "RSA PRIVATE KEY");
        assert_eq!(key(&longer), Some(der));
        let half = &pem[..pem.len() / 2];
        for bad in ["", &other, half, &pem.replace("\nM", "\n*")] {
            assert_eq!(key(bad), None, "{bad}");
        }
    }

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
