//! The envelope of a frame: its size line, its limits, and its compression
//! (protocol page §6.1, §6.4).

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::frame::FrameError;

/// Largest frame we take from a peer that has proven a kite, in bytes; on the
/// wire and inflated alike. The protocol page (§6.5) says: accept 1 MiB, refuse more.
pub const MAX_FRAME: usize = 1 << 20;
/// Longest size line, in characters before its CRLF. `100000Z100000R` has 14.
pub const MAX_SIZE_LINE: usize = 16;

/// What a peer may send us now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame without its size line, in bytes, on the wire and inflated.
    pub max_frame: usize,
    /// Most bytes of headers in a frame, with their blank line.
    pub max_head: usize,
    /// Whether compressed frames are understood. If not, one is an error.
    pub allow_compressed: bool,
}

impl Limits {
    /// For a tunnel on which a kite flies.
    ///
    /// The head is wide because the `Host` in it is the visitor's own text at an
    /// old frontend: a narrow limit would let any visitor of a wildcard kite cut
    /// the tunnel with a long one.
    pub const ESTABLISHED: Limits = Limits {
        max_frame: MAX_FRAME,
        max_head: 64 * 1024,
        allow_compressed: true,
    };
    /// Before the first kite is proven: enough for 64 service lines of the usual size, or
    /// for the verdict on them with its proofs, and no more.
    pub const UNPROVEN: Limits = Limits {
        max_frame: 32 * 1024,
        max_head: 32 * 1024,
        allow_compressed: false,
    };
}

/// A size line that has been read and found within limits.
struct Size {
    /// Bytes of the line itself, CRLF included.
    line: usize,
    /// Bytes that follow it.
    wire: usize,
    /// What they inflate to, if they are compressed.
    inflated: Option<usize>,
    /// The sender begins a new deflate stream here.
    restart: bool,
}

/// Takes chunks off a buffer: whole, within limits, inflated.
pub(super) struct Chunks {
    pub(super) limits: Limits,
    /// One stream per direction and tunnel; made when first needed (40 KB of window).
    inflate: Option<Box<Decompress>>,
}

impl Chunks {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            inflate: None,
        }
    }

    /// The next chunk, or `None` (and nothing taken) until it is there as a whole.
    pub(super) fn take(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
        let Some(size) = size_line(buf, &self.limits)? else {
            return Ok(None);
        };
        if buf.len() < size.line + size.wire {
            return Ok(None);
        }
        buf.advance(size.line);
        let chunk = buf.split_to(size.wire).freeze();
        if size.restart {
            self.inflate = None;
        }
        match size.inflated {
            None => Ok(Some(chunk)),
            Some(len) => self.inflate(&chunk, len).map(Some),
        }
    }

    /// How long the size line at the front of `buf` is, and what follows it, if that is not compressed.
    pub(super) fn plain(&self, buf: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
        let size = size_line(buf, &self.limits)?;
        Ok(size
            .filter(|size| size.inflated.is_none() && !size.restart)
            .map(|size| (size.line, size.wire)))
    }

    /// Inflates one chunk, which must give exactly `len` bytes. More is never
    /// produced, so a bomb costs what its size line admitted.
    fn inflate(&mut self, mut input: &[u8], len: usize) -> Result<Bytes, FrameError> {
        let stream = self
            .inflate
            .get_or_insert_with(|| Box::new(Decompress::new(true)));
        let mut out = vec![0; len];
        let mut filled = 0;
        // Where surplus would go: the stream must be asked once more after `out`
        // is full, as it may hold output back and must swallow the flush marker.
        let mut surplus = [0; 1];
        loop {
            let room = match out.get_mut(filled..) {
                Some(room) if !room.is_empty() => room,
                _ => &mut surplus,
            };
            let (read_before, made_before) = (stream.total_in(), stream.total_out());
            let status = stream
                .decompress(input, room, FlushDecompress::Sync)
                .map_err(|_| FrameError::Inflate)?;
            if status == Status::StreamEnd {
                // A peer never ends its stream: what came next could not be read.
                return Err(FrameError::Inflate);
            }
            let read = stream.total_in() - read_before;
            let made = stream.total_out() - made_before;
            input = usize::try_from(read)
                .ok()
                .and_then(|n| input.get(n..))
                .ok_or(FrameError::Inflate)?;
            filled = usize::try_from(made)
                .ok()
                .and_then(|n| n.checked_add(filled))
                .ok_or(FrameError::Inflate)?;
            if filled > len {
                return Err(FrameError::InflatedLength);
            }
            if read == 0 && made == 0 {
                break;
            }
        }
        if filled != len || !input.is_empty() {
            return Err(FrameError::InflatedLength);
        }
        Ok(out.into())
    }
}

/// Reads the size line at the front of `buf`; `None` until it is complete.
/// Rubbish is an error as soon as its first byte is there.
fn size_line(buf: &[u8], limits: &Limits) -> Result<Option<Size>, FrameError> {
    let mut numbers = [0u64; 2];
    let mut digits = [0usize; 2];
    let mut field = 0;
    let mut restart = false;
    for (at, &byte) in buf.iter().enumerate() {
        if byte == b'\r' {
            let Some(&next) = buf.get(at + 1) else {
                return Ok(None);
            };
            if next != b'\n' || digits.get(field) == Some(&0) {
                return Err(FrameError::SizeLine);
            }
            return size(numbers, field == 1, restart, at + 2, limits).map(Some);
        }
        if at >= MAX_SIZE_LINE || restart {
            return Err(FrameError::SizeLine);
        }
        match (byte, char::from(byte).to_digit(16)) {
            (_, Some(digit)) => {
                if let (Some(number), Some(count)) = (numbers.get_mut(field), digits.get_mut(field))
                {
                    // 16 digits at most: four bits each fit exactly.
                    *number = *number << 4 | u64::from(digit);
                    *count += 1;
                }
            }
            (b'Z', _) if field == 0 && digits[0] > 0 => field = 1,
            (b'R', _) => restart = true,
            _ => return Err(FrameError::SizeLine),
        }
    }
    Ok(None)
}

/// Checks the numbers of a size line against the limits.
fn size(
    numbers: [u64; 2],
    compressed: bool,
    restart: bool,
    line: usize,
    limits: &Limits,
) -> Result<Size, FrameError> {
    let [first, second] = numbers;
    if first == 0 || (compressed && second == 0) {
        return Err(FrameError::Empty);
    }
    if compressed && !limits.allow_compressed {
        return Err(FrameError::Compressed);
    }
    let within = |n: u64| {
        usize::try_from(n)
            .ok()
            .filter(|&n| n <= limits.max_frame)
            .ok_or(FrameError::TooLarge {
                size: n,
                max: limits.max_frame,
            })
    };
    let first = within(first)?;
    Ok(if compressed {
        Size {
            line,
            wire: within(second)?,
            inflated: Some(first),
            restart,
        }
    } else {
        Size {
            line,
            wire: first,
            inflated: None,
            restart,
        }
    })
}
