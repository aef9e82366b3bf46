//! Two connections, joined: bytes pass both ways as they are, each half ends on its own, and a break on one side breaks the
//! other. An idle pipe holds no buffer.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;

use crate::tunnel::splice::Local;

/// Bytes that are on their way in one direction: as many as one TLS record has.
pub const MAX_PIPED: usize = 16 * 1024;

/// What went each way, in bytes, and how it ended.
#[derive(Debug)]
pub struct Piped {
    /// From the first to the second.
    pub there: u64,
    /// From the second to the first.
    pub back: u64,
    /// `Ok` if both halves ended in order.
    pub end: std::io::Result<()>,
}

/// Joins them until both halves have ended, or either side breaks. Then the other is reset. `first` is what has been taken
/// from `b` already, and goes to `a` before all else. Both are reset, too, once `stop` is over.
pub async fn pipe<A: Local, B: Local>(
    mut a: A,
    mut b: B,
    first: Bytes,
    stop: impl Future<Output = ()>,
) -> Piped {
    let mut stop = pin!(stop);
    let mut there = Half::new(Bytes::new());
    let mut back = Half::new(first);
    let end = std::future::poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        let one = there.poll(cx, &mut a, &mut b);
        let other = back.poll(cx, &mut b, &mut a);
        match (one, other) {
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => Poll::Ready(Err(e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    if end.is_err() {
        a.reset();
        b.reset();
    }
    Piped {
        there: there.passed,
        back: back.passed,
        end,
    }
}

/// One direction.
struct Half {
    state: State,
    /// Written, and perhaps not on its way yet.
    unflushed: bool,
    passed: u64,
}

enum State {
    /// These go before what is read.
    First(Bytes),
    Reading,
    /// A buffer, how much of it was read, and how much of that has been written.
    Writing(Box<[u8]>, usize, usize),
    /// The near half has ended; the far side is to be told.
    Ending,
    Done,
}

impl Half {
    fn new(first: Bytes) -> Self {
        Self {
            state: State::First(first),
            unflushed: false,
            passed: 0,
        }
    }

    fn poll<A: Local, B: Local>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut A,
        to: &mut B,
    ) -> Poll<std::io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, State::Reading) {
                State::First(bytes) if bytes.is_empty() => {}
                State::First(mut bytes) => {
                    let written = Pin::new(&mut *to).poll_write(cx, &bytes);
                    if let Poll::Ready(Ok(n)) = written {
                        bytes.advance(n);
                    }
                    self.state = State::First(bytes);
                    self.wrote(ready!(written)?)?;
                }
                State::Reading => {
                    // It goes at once if there is nothing to read.
                    let mut buffer = vec![0; MAX_PIPED].into_boxed_slice();
                    let mut room = ReadBuf::new(&mut buffer);
                    let read = Pin::new(&mut *from).poll_read(cx, &mut room);
                    let n = room.filled().len();
                    match read {
                        Poll::Ready(Ok(())) if n > 0 => self.state = State::Writing(buffer, n, 0),
                        Poll::Ready(end) => {
                            end?;
                            self.state = State::Ending;
                        }
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                State::Writing(buffer, read, done) => {
                    let left = buffer.get(done..read).unwrap_or_default();
                    let written = Pin::new(&mut *to).poll_write(cx, left);
                    let done = match &written {
                        Poll::Ready(Ok(n)) => done + n,
                        _ => done,
                    };
                    if done < read {
                        self.state = State::Writing(buffer, read, done);
                    }
                    self.wrote(ready!(written)?)?;
                }
                State::Ending => {
                    self.state = State::Ending;
                    // The far side may be gone already; that ends the half as well.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Done;
                }
                State::Done => {
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn wrote(&mut self, n: usize) -> std::io::Result<()> {
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        self.passed += n as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};

    #[tokio::test]
    async fn bytes_and_half_closes_travel_both_ways() {
        let (visitor, near) = duplex(1000);
        let (far, kite) = duplex(700);
        let first = Bytes::from_static(b"answer: ");
        let joined =
            tokio::spawn(async move { pipe(near, far, first, std::future::pending()).await });
        let up: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let down: Vec<u8> = (0..200_000u32).map(|i| (i / 3) as u8).collect();
        let (mut v_read, mut v_write) = split(visitor);
        let (mut k_read, mut k_write) = split(kite);
        let (sent, answered) = (up.clone(), down.clone());
        let visitor = tokio::spawn(async move {
            v_write.write_all(&sent).await.unwrap();
            v_write.shutdown().await.unwrap();
            let mut got = Vec::new();
            v_read.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut got = Vec::new();
        k_read.read_to_end(&mut got).await.unwrap();
        assert!(got == up, "all of it, and then the end of that half");
        // Only now the other half says something.
        k_write.write_all(&answered).await.unwrap();
        k_write.shutdown().await.unwrap();
        let heard = visitor.await.unwrap();
        assert!(heard == [b"answer: ", &down[..]].concat());
        let piped = joined.await.unwrap();
        assert!(piped.end.is_ok());
        assert_eq!((piped.there, piped.back), (300_000, 200_008));
    }

    #[tokio::test]
    async fn who_takes_nothing_has_little_read_for_it() {
        let most = 4 * MAX_PIPED;
        let (mut visitor, near) = duplex(most);
        let (far, _kite) = duplex(1);
        visitor.write_all(&vec![b'x'; most]).await.unwrap();
        let mut joined = Box::pin(pipe(near, far, Bytes::new(), std::future::pending()));
        for _ in 0..3 {
            assert!(futures::poll!(&mut joined).is_pending());
        }
        let room = vec![b'x'; most];
        let more = std::future::poll_fn(|cx| Pin::new(&mut visitor).poll_write(cx, &room));
        assert_eq!(more.await.unwrap(), MAX_PIPED, "so much was taken of it");
    }
}
