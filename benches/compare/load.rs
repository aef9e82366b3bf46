//! The origin, and the clients: cheap enough not to be what is measured. Bytes are sent with sendfile(2), and thrown away
//! within the kernel with MSG_TRUNC.

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// The name that routes are found by.
pub const NAME: &str = "bench.kite.test";
/// What is sent and taken at once.
const BLOCK: usize = 1 << 20;
/// TCP: take the bytes off the queue, and copy none of them (tcp(7)).
const MSG_TRUNC: i32 = 0x20;
/// A connection that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says its port, then serves `GET /down/BYTES`, `/up/BYTES` (answered by one byte when all is there), and `/echo`.
pub fn origin() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let file = block_file();
    for conn in listener.incoming() {
        let Ok(mut conn) = conn else { continue };
        let file = file.try_clone().unwrap();
        // Streams that stay idle are there by the thousand.
        let server = std::thread::Builder::new().stack_size(128 * 1024);
        let _ = server.spawn(move || {
            let _ = conn.set_nodelay(true);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if conn.read(&mut byte).unwrap_or(0) == 0 {
                    return;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let mut parts = path.split('/').skip(1);
            let what = parts.next().unwrap_or_default();
            let bytes = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            match what {
                "down" => give(&conn, &file, bytes),
                "up" => {
                    take(&conn, bytes);
                    let _ = conn.write_all(b"!");
                }
                _ => {
                    let mut buf = [0; 4096];
                    while let Ok(n @ 1..) = conn.read(&mut buf) {
                        if conn.write_all(&buf[..n]).is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
}

/// A file of [`BLOCK`] bytes that lives in memory.
pub fn block_file() -> std::fs::File {
    let dir = if std::path::Path::new("/dev/shm").is_dir() {
        "/dev/shm".into()
    } else {
        std::env::temp_dir()
    };
    let mut file = tempfile::tempfile_in(dir).unwrap();
    file.write_all(&vec![0x5a; BLOCK]).unwrap();
    file
}

/// Sends so many bytes, or as many as are taken.
pub fn give(conn: &TcpStream, file: &std::fs::File, bytes: u64) {
    let socket = SockRef::from(conn);
    let mut left = bytes;
    while left > 0 {
        let offset = (bytes - left) as usize % BLOCK;
        let piece = (BLOCK - offset).min(left as usize);
        match socket.sendfile(file, offset, NonZeroUsize::new(piece)) {
            Ok(n @ 1..) => left -= n as u64,
            _ => return,
        }
    }
}

/// Takes so many bytes; how many came.
pub fn take(conn: &TcpStream, bytes: u64) -> u64 {
    let socket = SockRef::from(conn);
    let mut nowhere = vec![MaybeUninit::uninit(); BLOCK];
    let mut got = 0;
    while got < bytes {
        let most = nowhere.len().min((bytes - got) as usize);
        match socket.recv_with_flags(&mut nowhere[..most], MSG_TRUNC) {
            Ok(n @ 1..) => got += n as u64,
            _ => break,
        }
    }
    got
}

/// A visitor's connection on which the request is sent.
pub fn visit(to: SocketAddr, path: &str) -> TcpStream {
    let mut conn = TcpStream::connect(to).unwrap();
    conn.set_nodelay(true).unwrap();
    conn.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(conn, "GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").unwrap();
    conn
}

/// Seconds that a download of so many bytes takes.
pub fn download(to: SocketAddr, bytes: u64) -> f64 {
    let began = Instant::now();
    let conn = visit(to, &format!("/down/{bytes}"));
    let got = take(&conn, bytes);
    assert_eq!(got, bytes, "the stream ended early");
    began.elapsed().as_secs_f64()
}

/// Seconds that an upload takes, until the origin has said that all is there.
pub fn upload(to: SocketAddr, bytes: u64, file: &std::fs::File) -> f64 {
    let began = Instant::now();
    let mut conn = visit(to, &format!("/up/{bytes}"));
    give(&conn, file, bytes);
    conn.read_exact(&mut [0]).unwrap();
    began.elapsed().as_secs_f64()
}

/// Seconds from the dial to the first byte of an answer.
pub fn knock(to: SocketAddr) -> f64 {
    let began = Instant::now();
    let mut conn = visit(to, "/down/1");
    conn.read_exact(&mut [0]).unwrap();
    began.elapsed().as_secs_f64()
}

/// A connection that echoes.
pub fn echo(to: SocketAddr) -> TcpStream {
    let mut conn = visit(to, "/echo");
    ping(&mut conn);
    conn
}

/// Seconds that 64 bytes take there and back.
pub fn ping(conn: &mut TcpStream) -> f64 {
    let began = Instant::now();
    conn.write_all(&[7; 64]).unwrap();
    conn.read_exact(&mut [0; 64]).unwrap();
    began.elapsed().as_secs_f64()
}
