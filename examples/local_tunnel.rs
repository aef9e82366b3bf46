//! One tunnel, both of its ends in this program, over a pipe in memory.
//!
//! A [`Tunnel`] carries many streams in one connection and does not care what the
//! connection is: TCP, TLS, a stream through Tor, or, as here, a pipe. The frontend's
//! end opens streams, the backend's end takes them; each half of a stream ends on its
//! own. There is no handshake here: it comes before a tunnel, see `kite::wire::handshake`.
//!
//! Run it: `cargo run --example local_tunnel`

use bytes::{Bytes, BytesMut};
use kite::tunnel::buffer::{BUFFER_PAYLOAD, Pool};
use kite::tunnel::mux::{Liveness, MAX_STREAMS, Settings, Side};
use kite::tunnel::{Aborted, Incoming, Tunnel};
use kite::wire::frame::Open;

/// What two kites would have agreed on in their handshake.
fn settings(side: Side) -> Settings {
    Settings {
        side,
        kite: true,
        max_payload: BUFFER_PAYLOAD,
        send_window: 256 * 1024,
        recv_window: 256 * 1024,
        max_streams: MAX_STREAMS,
        liveness: Liveness::DEFAULT,
    }
}

/// The hidden side: says everything again, louder, until the visitor has finished.
async fn shout(incoming: Incoming) -> Result<(), Aborted> {
    let Incoming { open, mut stream } = incoming;
    println!(
        "backend:  stream {} for {}:{}",
        stream.sid(),
        open.proto,
        open.host
    );
    while let Some(bytes) = stream.read().await? {
        // The window opens again by as much as has been passed on.
        stream.consumed(bytes.len());
        stream.write(Bytes::from(bytes.to_ascii_uppercase()).into());
    }
    stream.finish();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (public, hidden) = tokio::io::duplex(64 * 1024);
    let pool = Pool::new();
    let frontend = Tunnel::start(
        public,
        BytesMut::new(),
        settings(Side::Frontend),
        pool.clone(),
    );
    let backend = Tunnel::start(hidden, BytesMut::new(), settings(Side::Backend), pool);
    tokio::spawn(async move {
        while let Some(incoming) = backend.accept().await {
            tokio::spawn(shout(incoming));
        }
    });

    // A visitor came: its first bytes travel in the frame that opens the stream.
    let mut open = Open::default();
    (open.proto, open.host) = ("raw".into(), "echo.example".into());
    let mut stream = frontend.open(open, Bytes::from_static(b"hello, "))?;
    stream.write(Bytes::from_static(b"tunnel").into());
    stream.finish();
    let mut answer = Vec::new();
    while let Some(bytes) = stream.read().await? {
        stream.consumed(bytes.len());
        answer.extend_from_slice(&bytes);
    }
    println!("frontend: {}", String::from_utf8_lossy(&answer));
    frontend.close("the example is over");
    println!("frontend: {}", frontend.ended().await);
    Ok(())
}
