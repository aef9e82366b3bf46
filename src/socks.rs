//! A SOCKS5 port for the node's own connections: the same Tor as the tunnels', other circuits.
//!
//! Names are passed to the exit as text. Streams share a circuit only if they have the same
//! credentials, or, without credentials, which is all that Tahoe offers, the same destination.
//! Tor has no half-close, so a connection ends when either side does.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tor_socksproto::{
    Buffer, Error, Handshake, NextStep, SocksAuth, SocksCmd, SocksProxyHandshake, SocksRequest,
    SocksStatus, SocksVersion,
};

use crate::dial::tor::sort;
use crate::dial::{DialError, TOR_DIAL_TIMEOUT};
use crate::listen::{self, TcpListener, TcpStream};
use crate::tor::{Client, DataStream, ErrorKind, IsolationToken};
use crate::tunnel::splice::Local;

/// Connections at a time. A node has one for each peer and hint; more wait in the kernel.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to say what it wants. It is on this machine.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last bytes may take to leave when one side has ended.
const CLOSE: Duration = Duration::from_secs(10);
/// Owners of circuits that are remembered. Beyond that all are forgotten, and get new circuits.
const MAX_OWNERS: usize = 4096;
/// What is read at a time, in each direction.
const PIECE: usize = 16 * 1024;

/// Whose a circuit is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Credentials(Vec<u8>, Vec<u8>),
    Destination(String, u16),
}

/// What a client wants.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) request: SocksRequest,
    /// What it sent without waiting for the answer.
    pub(crate) early: Vec<u8>,
}

/// Why a client gets nothing, and the bytes that say so to it.
#[derive(Debug)]
pub(crate) struct Refused {
    reply: Vec<u8>,
    pub(crate) reason: &'static str,
}

#[derive(Default)]
struct Circuits(Mutex<HashMap<Owner, IsolationToken>>);

impl Circuits {
    fn of(&self, owner: &Owner) -> IsolationToken {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= MAX_OWNERS && !map.contains_key(owner) {
            map.clear();
        }
        *map.entry(owner.clone()).or_insert_with(IsolationToken::new)
    }

    /// The next attempt goes through another exit.
    fn leave(&self, owner: &Owner) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.remove(owner);
    }
}

/// The way out: Tor. Tests put something in its place that needs no network.
pub trait Exit: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin;

    /// Opens one, on circuits that are shared with nobody who has another token.
    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        circuits: IsolationToken,
    ) -> BoxFuture<'a, Result<Self::Stream, ErrorKind>>;
}

impl Exit for Client {
    type Stream = DataStream;

    fn connect<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        circuits: IsolationToken,
    ) -> BoxFuture<'a, Result<DataStream, ErrorKind>> {
        Client::connect(self, host, port, circuits)
    }
}

/// Serves until it is dropped, and with it all connections.
pub async fn serve<E: Exit>(listener: TcpListener, exit: Arc<E>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let circuits = Arc::new(Circuits::default());
    let mut open = JoinSet::new();
    // Nobody closes the semaphore.
    while let Ok(slot) = slots.clone().acquire_owned().await {
        let (conn, _) = listen::accept(&listener).await;
        while open.try_join_next().is_some() {}
        let (exit, circuits) = (exit.clone(), circuits.clone());
        open.spawn(async move {
            // Neither the destination nor the credentials are anybody's business, not even the log's.
            if let Err(reason) = connection(conn, &*exit, &circuits).await {
                tracing::debug!("SOCKS: {reason}");
            }
            drop(slot);
        });
    }
}

async fn connection<E: Exit>(
    mut conn: TcpStream,
    exit: &E,
    circuits: &Circuits,
) -> Result<(), String> {
    let wish = timeout(HANDSHAKE, handshake(&mut conn))
        .await
        .map_err(|_| "the client did not say what it wants in time".to_owned())?
        .map_err(|e| format!("the client is gone: {}", e.kind()))?;
    let wish = match wish {
        Ok(wish) => wish,
        Err(refused) => {
            crate::refusal::say(&mut conn, &refused.reply).await;
            return Err(refused.reason.to_owned());
        }
    };
    let dialled = dial(exit, circuits, &wish.request).await;
    let status = dialled
        .as_ref()
        .err()
        .map_or(SocksStatus::SUCCEEDED, status);
    let reply = wish
        .request
        .reply(status, None)
        .map_err(|e| format!("no reply can be written: {e}"))?;
    let mut stream = match dialled {
        Ok(stream) => stream,
        Err(error) => {
            crate::refusal::say(&mut conn, &reply).await;
            return Err(format!("{error}; {}", error.hint()));
        }
    };
    let begun = async {
        conn.write_all(&reply).await?;
        stream.write_all(&wish.early).await?;
        stream.flush().await
    };
    begun.await.map_err(|e| e.kind().to_string())?;
    relay(&mut conn, &mut stream).await.map_err(|e| {
        // What has arrived must not look like everything.
        conn.reset();
        format!("broke off: {}", e.kind())
    })
}

async fn dial<E: Exit>(
    exit: &E,
    circuits: &Circuits,
    request: &SocksRequest,
) -> Result<E::Stream, DialError> {
    let owner = owner(request);
    // A name stays a name, and a number becomes its text: nothing is looked up here.
    let host = request.addr().to_string();
    let opened = timeout(
        TOR_DIAL_TIMEOUT,
        exit.connect(&host, request.port(), circuits.of(&owner)),
    )
    .await
    .map_err(|_| DialError::TimedOut)
    .and_then(|opened| opened.map_err(sort));
    if opened.as_ref().is_err_and(DialError::blames_path) {
        circuits.leave(&owner);
    }
    opened
}

fn owner(request: &SocksRequest) -> Owner {
    match request.auth() {
        SocksAuth::Username(name, word) => Owner::Credentials(name.clone(), word.clone()),
        _ => Owner::Destination(
            request.addr().to_string().to_ascii_lowercase(),
            request.port(),
        ),
    }
}

/// What SOCKS calls it.
fn status(error: &DialError) -> SocksStatus {
    match error {
        DialError::Refused => SocksStatus::CONNECTION_REFUSED,
        DialError::NameNotFound
        | DialError::BadAddress
        | DialError::OnionNotFound
        | DialError::OnionDown
        | DialError::OnionAuth => SocksStatus::HOST_UNREACHABLE,
        DialError::Unreachable | DialError::TorUnreachable => SocksStatus::NETWORK_UNREACHABLE,
        DialError::TimedOut => SocksStatus::TTL_EXPIRED,
        DialError::ExitPolicy | DialError::ForbiddenAddress => SocksStatus::NOT_ALLOWED,
        _ => SocksStatus::GENERAL_FAILURE,
    }
}

/// Reads what the client wants: SOCKS5, CONNECT, with or without a user and password, of which
/// any will do.
pub(crate) async fn handshake<C>(conn: &mut C) -> io::Result<Result<Wish, Refused>>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut state = SocksProxyHandshake::new();
    let mut buffer = Buffer::<()>::new();
    let mut greeted = false;
    loop {
        match state.step(&mut buffer) {
            Ok(NextStep::Send(bytes)) => {
                greeted = true;
                conn.write_all(&bytes).await?;
                conn.flush().await?;
            }
            Ok(NextStep::Recv(mut step)) => {
                let n = conn.read(step.buf()).await?;
                if step.note_received(n).is_err() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(NextStep::Finished(done)) => {
                let (request, early) = done.into_output_and_slice();
                let early = early.to_vec();
                return Ok(judge(request).map(|request| Wish { request, early }));
            }
            Err(error) => return Ok(Err(misspoken(&error, greeted))),
        }
    }
}

/// The protocol's reader knows older versions and Tor's own commands, too.
fn judge(request: SocksRequest) -> Result<SocksRequest, Refused> {
    if request.version() != SocksVersion::V5 {
        return Err(Refused {
            reply: Vec::new(),
            reason: "the client speaks SOCKS4, which leaves names to whoever asks",
        });
    }
    if request.command() != SocksCmd::CONNECT {
        return Err(Refused {
            reply: failure(SocksStatus::COMMAND_NOT_SUPPORTED),
            reason: "the client wants something other than a connection",
        });
    }
    Ok(request)
}

fn misspoken(error: &Error, greeted: bool) -> Refused {
    match (error, greeted) {
        (Error::NotImplemented(_), false) => Refused {
            // No acceptable method.
            reply: vec![5, 0xff],
            reason: "the client wants an authentication that there is not",
        },
        (Error::NotImplemented(_), true) => Refused {
            reply: failure(SocksStatus::COMMAND_NOT_SUPPORTED),
            reason: "the client wants something other than a connection",
        },
        (Error::Decode(_), true) => Refused {
            reply: failure(SocksStatus::ADDRTYPE_NOT_SUPPORTED),
            reason: "the client's address is of an unknown kind",
        },
        _ => Refused {
            reply: Vec::new(),
            reason: "the client does not speak SOCKS5",
        },
    }
}

/// A reply where there is no request to answer.
fn failure(status: SocksStatus) -> Vec<u8> {
    vec![5, status.into(), 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Passes bytes both ways until either side ends, then ends both. What had been read by then has been
/// written and flushed; an end of one half alone cannot be told to the other side of Tor.
async fn relay<A, B>(local: &mut A, remote: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let outcome = {
        let (mut from_local, mut to_local) = tokio::io::split(&mut *local);
        let (mut from_remote, mut to_remote) = tokio::io::split(&mut *remote);
        let over = watch::Sender::new(false);
        let mut out = pin!(pump(&mut from_local, &mut to_remote, over.subscribe()));
        let mut back = pin!(pump(&mut from_remote, &mut to_local, over.subscribe()));
        // The other side reads no more, and writes what it has read.
        tokio::select! {
            done = &mut out => {
                over.send_replace(true);
                done.and(timeout(CLOSE, back).await.unwrap_or(Ok(())))
            }
            done = &mut back => {
                over.send_replace(true);
                done.and(timeout(CLOSE, out).await.unwrap_or(Ok(())))
            }
        }
    };
    // Shutting down flushes. A side that does not take its last bytes is gone.
    let _ = timeout(CLOSE, remote.shutdown()).await;
    if outcome.is_ok() {
        let _ = timeout(CLOSE, local.shutdown()).await;
    }
    outcome
}

async fn pump<R, W>(from: &mut R, to: &mut W, mut over: watch::Receiver<bool>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut piece = vec![0; PIECE];
    loop {
        let n = tokio::select! {
            biased;
            _ = over.wait_for(|over| *over) => return Ok(()),
            n = from.read(&mut piece) => n?,
        };
        let Some(bytes) = piece.get(..n).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        to.write_all(bytes).await?;
        // A stream through Tor keeps what is not flushed.
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// What the port makes of a client's words, and what it answered.
    async fn said(words: &[u8]) -> (io::Result<Result<Wish, Refused>>, Vec<u8>) {
        let (mut client, mut port) = duplex(4096);
        client.write_all(words).await.expect("room");
        client.shutdown().await.expect("an end");
        let wish = handshake(&mut port).await;
        drop(port);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("an answer");
        (wish, answer)
    }

    fn greeting_and(request: &[u8]) -> Vec<u8> {
        [b"\x05\x01\x00".as_slice(), request].concat()
    }

    #[tokio::test]
    async fn tahoes_words_are_understood() {
        let words = greeting_and(b"\x05\x01\x00\x03\x12intro.grid.example\x4a\x7eGET /id/");
        let (wish, answer) = said(&words).await;
        let wish = wish.expect("io").expect("a wish");
        assert_eq!(answer, b"\x05\x00");
        assert_eq!(wish.request.addr().to_string(), "intro.grid.example");
        assert_eq!(wish.request.port(), 0x4a7e);
        assert_eq!(wish.early, b"GET /id/");
        assert_eq!(
            owner(&wish.request),
            Owner::Destination("intro.grid.example".into(), 0x4a7e)
        );
        let reply = wish.request.reply(SocksStatus::SUCCEEDED, None);
        assert_eq!(reply.expect("bytes"), failure(SocksStatus::SUCCEEDED));
    }

    #[tokio::test]
    async fn any_credentials_do_and_own_their_circuits() {
        let (wish, answer) =
            said(b"\x05\x02\x00\x02\x01\x03bob\x01x\x05\x01\x00\x01\x0a\x4d\x05\x01\x00\x50").await;
        let request = wish.expect("io").expect("a wish").request;
        assert_eq!(answer, b"\x05\x02\x01\x00");
        assert_eq!(request.addr().to_string(), "10.77.5.1");
        let bob = owner(&request);
        assert_eq!(bob, Owner::Credentials(b"bob".to_vec(), b"x".to_vec()));
        let circuits = Circuits::default();
        let other = Owner::Destination("a.example".into(), 80);
        assert_eq!(circuits.of(&bob), circuits.of(&bob));
        assert_ne!(circuits.of(&bob), circuits.of(&other));
        let before = circuits.of(&bob);
        circuits.leave(&bob);
        assert_ne!(circuits.of(&bob), before);
    }

    #[test]
    fn owners_are_forgotten_together_when_there_are_too_many() {
        let circuits = Circuits::default();
        let owner = |n| Owner::Destination("a.example".into(), n);
        let first = circuits.of(&owner(0));
        for n in 0..MAX_OWNERS as u16 {
            circuits.of(&owner(n));
        }
        assert_eq!(circuits.of(&owner(0)), first);
        circuits.of(&owner(MAX_OWNERS as u16));
        assert_eq!(circuits.0.lock().expect("lock").len(), 1);
        assert_ne!(circuits.of(&owner(0)), first);
    }

    #[tokio::test]
    async fn everything_else_is_refused_in_its_own_words() {
        for (words, reply) in [
            // GSSAPI only.
            (b"\x05\x01\x01".to_vec(), b"\x05\xff".to_vec()),
            // BIND, UDP ASSOCIATE, and Tor's RESOLVE.
            (
                greeting_and(b"\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50"),
                failure(SocksStatus::COMMAND_NOT_SUPPORTED),
            ),
            (
                greeting_and(b"\x05\x03\x00\x01\x01\x02\x03\x04\x00\x50"),
                failure(SocksStatus::COMMAND_NOT_SUPPORTED),
            ),
            (
                greeting_and(b"\x05\xf0\x00\x03\x01a\x00\x00"),
                failure(SocksStatus::COMMAND_NOT_SUPPORTED),
            ),
            // An address of no known kind.
            (
                greeting_and(b"\x05\x01\x00\x07\x01\x02\x03\x04\x00\x50"),
                failure(SocksStatus::ADDRTYPE_NOT_SUPPORTED),
            ),
            // SOCKS4, and a web browser.
            (b"\x04\x01\x00\x50\x01\x02\x03\x04\x00".to_vec(), vec![]),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![]),
        ] {
            let (wish, _) = said(&words).await;
            let refused = wish.expect("io").expect_err("a refusal");
            assert_eq!(refused.reply, reply, "{words:?}: {}", refused.reason);
        }
        // Half a handshake.
        assert!(said(b"\x05\x01\x00\x05\x01").await.0.is_err());
    }

    #[tokio::test]
    async fn when_one_side_ends_the_other_gets_all_and_ends() {
        for far_ends_first in [true, false] {
            let (mut client, mut near) = duplex(64);
            let (mut far, mut server) = duplex(64);
            let relaying = tokio::spawn(async move { relay(&mut near, &mut far).await });
            let (first, second) = match far_ends_first {
                true => (&mut server, &mut client),
                false => (&mut client, &mut server),
            };
            first.write_all(b"the last bytes").await.expect("sent");
            first.shutdown().await.expect("an end");
            let mut got = Vec::new();
            second.read_to_end(&mut got).await.expect("an end");
            assert_eq!(got, b"the last bytes");
            relaying.await.expect("no panic").expect("an orderly end");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_written_whoever_ends() {
        let answer: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        // A client that reads slowly: its side takes 64 bytes at a time.
        let (mut client, mut local) = duplex(64);
        let (mut remote, mut far) = duplex(4096);
        far.write_all(&answer).await.expect("room");
        let relaying = tokio::spawn(async move { relay(&mut local, &mut remote).await });
        let mut first = [0; 10];
        client.read_exact(&mut first).await.expect("the beginning");
        client.shutdown().await.expect("its half ends");
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("the rest");
        assert!(
            [&first[..], &rest].concat() == answer,
            "{} bytes came",
            10 + rest.len()
        );
        relaying.await.expect("no panic").expect("in order");
    }
}
