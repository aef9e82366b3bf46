//! Listening sockets that somebody else has opened: systemd, by a socket unit (`LISTEN_FDS`), or the kite whose place this
//! one takes. Who connects meanwhile waits in the kernel's queue, and is not refused.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use socket2::SockRef;

use super::Port;

/// Sockets in one message: the kernel takes 253.
const AT_ONCE: usize = 64;
/// Stands in a message with sockets behind which there are more.
const MORE: u8 = b'+';
/// Stands in the last one.
const LAST: u8 = b'.';
/// How long the other kite may take to hand over its sockets.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sockets that are open already.
#[derive(Debug, Default)]
pub struct Handed(Vec<std::net::TcpListener>);

impl Handed {
    /// Those of a supervisor. To be called once, while there is one thread.
    pub fn by_supervisor() -> io::Result<Self> {
        let mut given = ListenFd::from_env();
        let mut all = Vec::new();
        for i in 0..given.len() {
            let Some(socket) = given.take_tcp_listener(i)? else {
                continue;
            };
            if !SockRef::from(&socket).is_listener()? {
                return Err(io::Error::other("a socket does not listen"));
            }
            all.push(socket);
        }
        Ok(Self(all))
    }

    /// Opens the port of an address, unless it is open: for who cannot open it any more when it is wanted. Where the kernel
    /// is to choose, it is left to choose later.
    pub fn open(&mut self, address: SocketAddr) -> io::Result<()> {
        if address.port() != 0 && self.find(address).is_none() {
            self.0.push(Port::open(address)?.0);
        }
        Ok(())
    }

    /// The one for an address; or, for all addresses of the machine, the one that takes IPv4 and IPv6 together, which is
    /// what systemd makes of a port alone.
    pub fn take(&mut self, address: SocketAddr) -> io::Result<Option<Port>> {
        let Some(at) = self.find(address) else {
            return Ok(None);
        };
        let socket = self.0.swap_remove(at);
        socket.set_nonblocking(true)?;
        Ok(Some(Port(socket)))
    }

    fn find(&self, address: SocketAddr) -> Option<usize> {
        let is_at = |wanted: SocketAddr| {
            move |s: &std::net::TcpListener| s.local_addr().is_ok_and(|at| at == wanted)
        };
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        let exact = self.0.iter().position(is_at(address));
        exact.or_else(|| match address.ip().is_unspecified() {
            true => self.0.iter().position(is_at(both)),
            false => None,
        })
    }

    /// Where those listen that nobody has taken.
    pub fn rest(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|s| s.local_addr().ok()).collect()
    }
}

/// One end of the way between a kite and the one that takes its place: sockets go through it, and lines.
#[derive(Debug)]
pub struct Passage(UnixStream);

impl Passage {
    /// Both ends.
    pub fn new() -> io::Result<(Self, Self)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The end that stands at standard input, where the kite before put it. What asks for input from then on gets none.
    pub fn at_stdin() -> io::Result<Self> {
        let end = Self(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
        // It is a socket, or this fails.
        end.0.local_addr()?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(end)
    }

    /// As what a new process is given.
    pub fn into_fd(self) -> OwnedFd {
        self.0.into()
    }

    /// Hands over sockets that go on listening here.
    pub fn give(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.set_write_timeout(Some(PATIENCE))?;
        let mut parts = sockets.chunks(AT_ONCE).peekable();
        loop {
            let part = parts.next().unwrap_or_default();
            let word = if parts.peek().is_some() { MORE } else { LAST };
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !part.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(part)) {
                return Err(io::Error::other("too many sockets"));
            }
            let sent = sendmsg(
                &self.0,
                &[IoSlice::new(&[word])],
                &mut beside,
                SendFlags::NOSIGNAL,
            )?;
            if sent != 1 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            if word == LAST {
                return Ok(());
            }
        }
    }

    /// Takes what is handed over.
    pub fn take(&self) -> io::Result<Handed> {
        self.0.set_read_timeout(Some(PATIENCE))?;
        let mut all = Vec::new();
        loop {
            let mut word = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut words = [IoSliceMut::new(&mut word)];
            let got = recvmsg(&self.0, &mut words, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(sockets) = message {
                    all.extend(sockets.map(std::net::TcpListener::from));
                }
            }
            match (got.bytes, word) {
                (1, [MORE]) => {}
                (1, [LAST]) => return Ok(Handed(all)),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.0.set_write_timeout(Some(PATIENCE))?;
        self.0.write_all(line.as_bytes())?;
        self.0.write_all(b"\n")
    }

    /// Reads a line of so many bytes at most, waiting so long for each piece of it (or for ever); an error if the other end
    /// is gone. Both ends speak in turn, so nothing is behind it.
    pub fn hear(&mut self, most: usize, patience: Option<Duration>) -> io::Result<String> {
        self.0.set_read_timeout(patience)?;
        let mut line = Vec::new();
        let mut piece = [0; 4096];
        while line.len() <= most {
            let got = self.0.read(&mut piece)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.extend_from_slice(piece.get(..got).unwrap_or_default());
            if line.last() == Some(&b'\n') && line.len() <= most + 1 {
                line.pop();
                let text = String::from_utf8(line);
                return text.map_err(io::Error::other);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Passage {
        /// How long the other end may take for what is read, and for what is written.
        pub(crate) fn patience(&self) -> [Option<Duration>; 2] {
            let read = self.0.read_timeout().expect("a socket");
            [read, self.0.write_timeout().expect("a socket")]
        }
    }

    fn listener(address: &str) -> std::net::TcpListener {
        let port = Port::open(address.parse().expect("an address")).expect("a port");
        port.0
    }

    fn at(socket: &std::net::TcpListener) -> SocketAddr {
        socket.local_addr().expect("an address")
    }

    #[test]
    fn sockets_and_lines_go_through_in_their_order() {
        let (mut old, mut new) = Passage::new().expect("a pair");
        let sockets: Vec<_> = (0..AT_ONCE + 1).map(|_| listener("127.0.0.1:0")).collect();
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        old.give(&fds).expect("room");
        old.say("yours").expect("room");
        let mut handed = new.take().expect("sockets");
        assert_eq!(new.hear(5, None).expect("a line"), "yours");
        assert_eq!(handed.rest().len(), sockets.len());
        let port = handed
            .take(at(&sockets[3]))
            .expect("no trouble")
            .expect("it is there");
        assert_eq!(at(&port.0), at(&sockets[3]));
        assert!(handed.take(at(&sockets[3])).expect("no trouble").is_none());
        // It is the same queue.
        let address = at(&sockets[3]);
        drop(sockets);
        let visitor = std::thread::spawn(move || {
            #[allow(clippy::disallowed_methods)]
            std::net::TcpStream::connect(address).is_ok()
        });
        assert!(visitor.join().expect("a visitor"));

        old.give(&[]).expect("room");
        assert!(new.take().expect("no sockets").rest().is_empty());
        old.say("too long").expect("room");
        assert!(new.hear(7, None).is_err());
        drop(old);
        assert!(new.hear(100, None).is_err());
    }

    #[test]
    fn who_hands_nothing_over_is_not_waited_for_for_ever() {
        let (old, mut new) = Passage::new().expect("a pair");
        assert_eq!(new.patience(), [None; 2]);
        old.give(&[]).expect("room");
        new.take().expect("no sockets");
        assert_eq!(new.patience(), [Some(PATIENCE), None]);
        assert_eq!(old.patience(), [None, Some(PATIENCE)]);
        // And one that is silent is given up when the time is over.
        let soon = Some(Duration::from_millis(20));
        assert!(new.hear(9, soon).is_err());
        drop(old);
    }

    #[test]
    fn a_port_for_all_addresses_is_found_as_systemd_makes_it() {
        let socket = listener("[::]:0");
        let port = at(&socket).port();
        let mut handed = Handed(vec![socket]);
        let on = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), port);
        assert!(handed.take(on("127.0.0.1")).expect("no trouble").is_none());
        assert!(handed.take(on("0.0.0.0")).expect("no trouble").is_some());
        assert!(handed.take(on("0.0.0.0")).expect("no trouble").is_none());
    }
}
