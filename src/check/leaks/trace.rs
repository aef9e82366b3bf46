//! What strace wrote, as calls that concern the network. Text in, calls out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// What strace is asked for. Answers (`accept`, `recvfrom`) say nothing about whom a process speaks to. The question
/// mark: an old strace may not know the name.
pub const CALLS: &str = "socket,connect,bind,listen,sendto,sendmsg,sendmmsg,?io_uring_setup";

/// A call of the traced processes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// A socket that is not for TCP, and no Unix stream or datagram: `AF_INET SOCK_DGRAM`. Whom a Unix socket speaks to is
    /// seen when it does.
    Socket(String),
    /// A connection, or a message, to an address of the Internet.
    To(SocketAddr),
    /// A connection to a Unix socket; `@` before an abstract name.
    ToUnix(String),
    /// nscd was asked for a host, not for a user.
    HostOfNscd,
    /// A socket was bound to an address.
    Bound(SocketAddr),
    /// A way to make calls that no trace shows.
    Ring,
    /// A line that this parser cannot read, and that therefore proves nothing.
    Unread(String),
}

/// Reads lines of `strace -f -o`; remembers those that another process's line has cut in two.
#[derive(Default)]
pub struct Trace {
    cut: HashMap<String, String>,
}

impl Trace {
    /// The call on a line, if it is one that matters.
    pub fn line(&mut self, line: &str) -> Option<Call> {
        let (process, text) = line.split_once(' ')?;
        let text = text.trim_start();
        if let Some(resumed) = text.strip_prefix("<... ") {
            let begun = self.cut.remove(process)?;
            let (_, rest) = resumed.split_once(" resumed>")?;
            return call(&format!("{begun}{rest}"));
        }
        if let Some(begun) = text.strip_suffix("<unfinished ...>") {
            self.cut
                .insert(process.to_owned(), begun.trim_end().to_owned());
            return None;
        }
        call(text)
    }

    /// The calls that had not returned when the trace ended. They count as if they had.
    pub fn rest(self) -> Vec<Call> {
        let mut cut: Vec<String> = self.cut.into_values().collect();
        cut.sort();
        cut.iter().filter_map(|begun| call(begun)).collect()
    }
}

/// One whole call, as `connect(9, {sa_family=AF_INET, …}, 16) = 0`.
fn call(text: &str) -> Option<Call> {
    // Signals and exits.
    if text.starts_with("---") || text.starts_with("+++") {
        return None;
    }
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") = ").unwrap_or((rest, ""));
    let unread = || Some(Call::Unread(text.to_owned()));
    match name {
        "socket" => {
            let mut words = arguments.split(", ");
            let (Some(family), Some(kind)) = (words.next(), words.next()) else {
                return unread();
            };
            let kind = kind.split('|').next().unwrap_or_default();
            let protocol = words.next().unwrap_or_default();
            let tcp = matches!(family, "AF_INET" | "AF_INET6")
                && matches!(protocol, "IPPROTO_IP" | "IPPROTO_TCP");
            let unix = matches!(family, "AF_UNIX" | "AF_LOCAL");
            let fine = kind == "SOCK_STREAM" && (tcp || unix) || kind == "SOCK_DGRAM" && unix;
            (!fine).then(|| Call::Socket(format!("{family} {kind} {protocol}").trim().to_owned()))
        }
        // Nobody was there to hear: how the C library finds out that nscd does not run.
        "connect" if result.starts_with("-1 ENOENT") => None,
        "connect" => match address(arguments) {
            Some(Address::Net(to)) => Some(Call::To(to)),
            Some(Address::Unix(path)) => Some(Call::ToUnix(path)),
            Some(Address::None) => None,
            None => unread(),
        },
        "sendto" | "sendmsg" | "sendmmsg" => match address(arguments) {
            Some(Address::Net(to)) => Some(Call::To(to)),
            Some(Address::Unix(path)) => Some(Call::ToUnix(path)),
            // Over a connection, which was judged when it was made.
            Some(Address::None) | None => {
                asks_nscd_for_a_host(arguments).then_some(Call::HostOfNscd)
            }
        },
        "bind" => match address(arguments) {
            Some(Address::Net(at)) => Some(Call::Bound(at)),
            Some(_) => None,
            None => unread(),
        },
        "listen" => None,
        "io_uring_setup" => Some(Call::Ring),
        _ => unread(),
    }
}

enum Address {
    Net(SocketAddr),
    Unix(String),
    /// `AF_UNSPEC`: a connection is undone.
    None,
}

/// The `{sa_family=…}` among the arguments.
fn address(arguments: &str) -> Option<Address> {
    let text = arguments.split_once("{sa_family=")?.1;
    let after = |mark: &str| text.split_once(mark).map(|(_, rest)| rest);
    let quoted = |mark: &str| after(mark)?.split('"').next();
    match text.split([',', '}']).next()? {
        "AF_INET" => {
            let ip: IpAddr = quoted("inet_addr(\"")?.parse().ok()?;
            let port = after("sin_port=htons(")?.split(')').next()?.parse().ok()?;
            Some(Address::Net(SocketAddr::new(ip, port)))
        }
        "AF_INET6" => {
            let ip: IpAddr = quoted("inet_pton(AF_INET6, \"")?.parse().ok()?;
            let port = after("sin6_port=htons(")?.split(')').next()?.parse().ok()?;
            // An IPv4 address in IPv6's clothes goes to the same place.
            Some(Address::Net(SocketAddr::new(ip.to_canonical(), port)))
        }
        "AF_UNIX" | "AF_LOCAL" => match quoted("sun_path=\"") {
            Some(path) => Some(Address::Unix(path.to_owned())),
            None => Some(Address::Unix(format!("@{}", quoted("sun_path=@\"")?))),
        },
        "AF_UNSPEC" => Some(Address::None),
        // A family of its own: its socket was judged when it was made.
        _ => Some(Address::None),
    }
}

/// nscd's protocol: version 2, then what is asked for. 4 to 7: a host by name or address; 13: the hosts' table;
/// 14: getaddrinfo.
fn asks_nscd_for_a_host(arguments: &str) -> bool {
    let asked = arguments.split_once("\"\\2\\0\\0\\0").map(|(_, rest)| rest);
    asked.is_some_and(|rest| {
        ["\\4\\0", "\\5\\0", "\\6\\0", "\\7\\0", "\\r\\0", "\\16\\0"]
            .iter()
            .any(|kind| rest.starts_with(kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(text: &str) -> Vec<Call> {
        let mut trace = Trace::default();
        let mut found: Vec<Call> = text.lines().filter_map(|l| trace.line(l)).collect();
        found.extend(trace.rest());
        found
    }

    fn to(address: &str) -> Call {
        Call::To(address.parse().expect("an address"))
    }

    #[test]
    fn a_silent_process_says_nothing() {
        let text = "\
7 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_IP) = 9
7 socket(AF_INET6, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = -1 EAFNOSUPPORT (Address family not supported by protocol)
7 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, 0) = 3
7 connect(3, {sa_family=AF_UNIX, sun_path=\"/var/run/nscd/socket\"}, 110) = -1 ENOENT (No such file or directory)
7 sendto(9, \"\\26\\3\\1\\2\\0\\1\\0\\1\\374\\3\\3\"..., 517, MSG_NOSIGNAL, NULL, 0) = 517
7 sendmsg(9, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base=\"\\27\\3\"..., iov_len=536}], msg_iovlen=1}, MSG_NOSIGNAL) = 536
7 listen(9, 1024)                         = 0
7 --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---
7 +++ exited with 0 +++
";
        assert_eq!(calls(text), []);
    }

    #[test]
    fn addresses_are_read_in_every_form() {
        let text = "\
7   connect(9, {sa_family=AF_INET, sin_port=htons(9001), sin_addr=inet_addr(\"192.0.2.1\")}, 16) = -1 EINPROGRESS (Operation now in progress)
8   connect(9, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, \"2001:db8::1\", &sin6_addr), sin6_scope_id=0}, 28) = 0
8   connect(9, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, \"::ffff:192.0.2.2\", &sin6_addr), sin6_scope_id=0}, 28) = 0
8   connect(9, {sa_family=AF_UNIX, sun_path=\"/run/origin\"}, 110) = 0
8   connect(9, {sa_family=AF_UNIX, sun_path=@\"bus\"}, 110) = 0
8   connect(9, {sa_family=AF_UNSPEC, sa_data=\"\"}, 16) = 0
8   bind(9, {sa_family=AF_INET, sin_port=htons(9150), sin_addr=inet_addr(\"127.0.0.1\")}, 16) = 0
";
        assert_eq!(
            calls(text),
            [
                to("192.0.2.1:9001"),
                to("[2001:db8::1]:443"),
                to("192.0.2.2:80"),
                Call::ToUnix("/run/origin".into()),
                Call::ToUnix("@bus".into()),
                Call::Bound("127.0.0.1:9150".parse().expect("an address")),
            ]
        );
    }

    #[test]
    fn lines_cut_in_two_are_joined_and_none_is_lost() {
        let text = "\
7   connect(9, {sa_family=AF_INET, sin_port=htons(9001), sin_addr=inet_addr(\"192.0.2.1\")}, 16 <unfinished ...>
8   connect(3, {sa_family=AF_UNIX, sun_path=\"/var/run/nscd/socket\"}, 110 <unfinished ...>
7   <... connect resumed>) = 0
8   <... connect resumed>) = -1 ENOENT (No such file or directory)
9   connect(9, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr(\"192.0.2.53\")}, 16 <unfinished ...>
";
        assert_eq!(calls(text), [to("192.0.2.1:9001"), to("192.0.2.53:53")]);
    }

    #[test]
    fn each_kind_of_leak_is_seen() {
        for (line, leak) in [
            (
                "socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_IP) = 5",
                Call::Socket("AF_INET SOCK_DGRAM IPPROTO_IP".into()),
            ),
            (
                "socket(AF_INET, SOCK_DGRAM, IPPROTO_IP) = -1 EPERM (Operation not permitted)",
                Call::Socket("AF_INET SOCK_DGRAM IPPROTO_IP".into()),
            ),
            (
                "socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6) = 5",
                Call::Socket("AF_INET6 SOCK_RAW IPPROTO_ICMPV6".into()),
            ),
            (
                "socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP) = 5",
                Call::Socket("AF_INET SOCK_STREAM IPPROTO_MPTCP".into()),
            ),
            (
                "socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 5",
                Call::Socket("AF_NETLINK SOCK_RAW NETLINK_ROUTE".into()),
            ),
            (
                "socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_IP)) = 5",
                Call::Socket("AF_PACKET SOCK_DGRAM htons(ETH_P_IP)".into()),
            ),
            (
                "socket(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0) = 5",
                Call::Socket("AF_UNIX SOCK_SEQPACKET 0".into()),
            ),
            (
                "sendto(5, \"READY=1\"..., 7, MSG_NOSIGNAL, {sa_family=AF_UNIX, sun_path=\"/run/systemd/notify\"}, 21) = 7",
                Call::ToUnix("/run/systemd/notify".into()),
            ),
            (
                "sendto(5, \"\\1\\2\"..., 30, MSG_NOSIGNAL, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr(\"192.0.2.53\")}, 16) = 30",
                to("192.0.2.53:53"),
            ),
            (
                "sendmmsg(5, [{msg_hdr={msg_name={sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr(\"192.0.2.53\")}, msg_namelen=16}}], 1, 0) = 1",
                to("192.0.2.53:53"),
            ),
            (
                "connect(5, {sa_family=AF_UNIX, sun_path=\"/run/systemd/resolve/io.systemd.Resolve\"}, 42) = 0",
                Call::ToUnix("/run/systemd/resolve/io.systemd.Resolve".into()),
            ),
            (
                "sendto(3, \"\\2\\0\\0\\0\\16\\0\\0\\0\\16\\0\\0\\0alice.example\\0\", 26, MSG_NOSIGNAL, NULL, 0) = 26",
                Call::HostOfNscd,
            ),
            (
                "sendto(3, \"\\2\\0\\0\\0\\r\\0\\0\\0\\6\\0\\0\\0hosts\\0\", 18, MSG_NOSIGNAL, NULL, 0) = 18",
                Call::HostOfNscd,
            ),
            ("io_uring_setup(8, {flags=0}) = 5", Call::Ring),
        ] {
            assert_eq!(calls(&format!("7 {line}")), [leak], "{line}");
        }
        let users = "7 sendto(3, \"\\2\\0\\0\\0\\v\\0\\0\\0\\7\\0\\0\\0passwd\\0\", 19, MSG_NOSIGNAL, NULL, 0) = 19";
        assert_eq!(calls(users), [], "the table of users is no host");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_silence() {
        for line in [
            "connect(5, 0x7ffd1234, 16) = 0",
            "connect(5, {sa_family=AF_INET, sin_port=?}, 16) = 0",
            "socket(AF_INET",
            "newcall(5) = 0",
        ] {
            assert_eq!(calls(&format!("7 {line}")), [Call::Unread(line.into())]);
        }
    }
}
