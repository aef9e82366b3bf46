"""An island: network namespaces from which no packet can reach the world.

`enter()` moves this process (hence all its children) into a namespace that has
nothing but loopback, on which *every* IPv4 address is local.  What is dialled
by mistake is refused at once, by nobody, instead of leaving the machine.

`Machine` is a second namespace behind one cable (a veth pair): the hidden
node's computer.  Whatever it sends to anybody arrives at the island's end of
the cable, where `Cable` writes down each TCP dial and each UDP datagram.  So a
leak is seen as a packet, whoever sent it: no log has to be believed.

    10.77.0.x   Tor relays (tornet.py)        10.77.5.x   introducers
    10.77.1.x   frontends                     10.77.9.1   visitors
    10.77.20.x  a second, mortal Tor network  10.78.n.2   hidden machine n

Root may do this anywhere; other users where unprivileged user namespaces are
allowed.  Python 3.11 has no os.unshare and os.setns, hence ctypes.
"""

import contextlib
import ctypes
import itertools
import os
import socket
import struct
import subprocess
import threading

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
VISITOR = "10.77.9.1"
RESERVED_PORTS = (45000, 49999)     # for programs that are told where to listen: the kernel gives none of them away
BACKLOG = 4096          # a crowd comes at once: whom the kernel has no place for speaks to nobody, for seconds
IPV6 = os.path.exists("/proc/net/if_inet6")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name, *args):
    if getattr(_libc, name)(*args):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _ip(*lines):
    for line in lines:
        done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {line}: {done.stderr.strip()} (apt-get install iproute2)")


def _reserve_ports():
    """In the namespace of the calling thread, whoever asks for any port, or dials, gets none of these."""
    with open("/proc/sys/net/ipv4/ip_local_reserved_ports", "w") as f:
        f.write("%d-%d" % RESERVED_PORTS)


_free = itertools.count(46000)      # below are those that stand in the tests


def free_port():
    """A port for a program that is yet to start. Nobody takes it meanwhile, on whatever machine."""
    return next(_free)


def enter():
    """Move this process, which must have a single thread, onto the island."""
    uid, gid = os.getuid(), os.getgid()
    try:
        _call("unshare", CLONE_NEWNET | (CLONE_NEWUSER if uid else 0))
    except OSError as e:
        raise RuntimeError(
            f"no network namespace for the tests: {e}. Run them as root, or allow unprivileged "
            "user namespaces (sysctl kernel.unprivileged_userns_clone=1)") from e
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    _ip("link set lo up",
        "addr add 10.77.0.1/32 dev lo",
        "route add local 10.77.0.0/16 dev lo",
        # In the main table: in the local one it would make a hidden machine's
        # address our own, and the kernel drops what comes from outside with that.
        "route add local default dev lo table main")
    if IPV6:
        _ip("-6 route add local default dev lo table main")
    _reserve_ports()


@contextlib.contextmanager
def neighbours():
    """Within this block machines reach each other through the island: frontends that are a fleet."""
    with open("/proc/sys/net/ipv4/ip_forward", "w") as f:
        f.write("1")
    try:
        yield
    finally:
        with open("/proc/sys/net/ipv4/ip_forward", "w") as f:
            f.write("0")


@contextlib.contextmanager
def severed(sources, target):
    """Within this block none of these addresses of the island finds a way to that one."""
    rules = [f"pref 10 from {source} to {target} unreachable" for source in sources]
    # A rule counts only if it stands before the one for local addresses.
    _ip("rule add pref 100 lookup local", "rule del pref 0", *(f"rule add {rule}" for rule in rules))
    try:
        yield
    finally:
        _ip(*(f"rule del {rule}" for rule in rules), "rule add pref 0 lookup local", "rule del pref 100")


class Machine:
    """A computer behind a cable.  Sockets and processes made `inside` are its own."""

    def __init__(self, number):
        self.address = f"10.78.{number}.2"
        self.gateway = f"10.78.{number}.1"
        self.cable = f"cable{number}"
        self._lock = threading.RLock()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("unshare", CLONE_NEWNET)
            self._ns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _call("setns", self._home, CLONE_NEWNET)
        _ip(f"link add {self.cable} type veth peer name up0 netns /proc/{os.getpid()}/fd/{self._ns}",
            *self._silent(self.cable),
            f"addr add {self.gateway}/30 dev {self.cable}",
            f"link set {self.cable} up")
        with self.inside():
            _ip("link set lo up",
                *self._silent("up0"),
                f"addr add {self.address}/30 dev up0",
                "link set up0 up",
                f"route add default via {self.gateway}")
            _reserve_ports()
        if IPV6:                        # so that a dial over IPv6 is seen as well
            self._add_ipv6(number)
        self.log = Cable(self.cable)

    def _add_ipv6(self, number):
        _ip(f"addr add fd77:{number}::1/64 dev {self.cable} nodad")
        with self.inside():
            _ip(f"addr add fd77:{number}::2/64 dev up0 nodad",
                f"-6 route add default via fd77:{number}::1")

    @staticmethod
    def _silent(interface):
        """The kernel asks nothing by itself there: no router, no name for itself."""
        return [f"link set {interface} addrgenmode none"] if IPV6 else []

    def command(self, argv):
        """How a program is started here."""
        return argv

    @contextlib.contextmanager
    def inside(self):
        """Within this block the calling thread lives on the machine."""
        with self._lock:
            _call("setns", self._ns, CLONE_NEWNET)
            try:
                yield self
            finally:
                _call("setns", self._home, CLONE_NEWNET)

    def unplug(self):
        """No network, as when Wi-Fi is switched off."""
        with self.inside():
            _ip("link set up0 down")

    def plug(self):
        with self.inside():
            _ip("link set up0 up", f"route add default via {self.gateway}")

    def mute(self):
        """The cable is whole, and nobody at its other end answers, or says that he will not: a provider's outage."""
        _ip(f"rule add pref 5 to {self.address} blackhole")

    def unmute(self):
        _ip(f"rule del pref 5 to {self.address} blackhole")

    def listen(self, address=("127.0.0.1", 0)):
        with self.inside():
            return socket.create_server(address, backlog=BACKLOG)

    def connect(self, address, timeout=10):
        with self.inside():
            return socket.create_connection(address, timeout=timeout)

    def close(self):
        self.log.close()
        os.close(self._ns)
        os.close(self._home)


class Island:
    """The island itself, where a test can do without a hidden machine."""

    def command(self, argv):
        return argv

    @contextlib.contextmanager
    def inside(self):
        yield self

    def listen(self, address=("127.0.0.1", 0)):
        return socket.create_server(address, backlog=BACKLOG)

    def connect(self, address, timeout=10):
        return socket.create_connection(address, timeout=timeout)


class Cable:
    """Everything a machine starts: TCP dials and datagrams that come out of its cable."""

    # "Keep a packet that is not IPv4, or not TCP, or a SYN without ACK" as a
    # classic BPF program over packets that begin with the IP header.
    FILTER = [(0x30, 0, 0, 0), (0x54, 0, 0, 0xF0), (0x15, 0, 6, 0x40),      # version 4?
              (0x30, 0, 0, 9), (0x15, 0, 4, 6),                             # protocol TCP?
              (0xB1, 0, 0, 0), (0x50, 0, 0, 13), (0x54, 0, 0, 0x12),        # SYN and ACK bits
              (0x15, 0, 1, 0x02),
              (0x06, 0, 0, 256), (0x06, 0, 0, 0)]
    SO_ATTACH_FILTER = 26
    PACKET_OUTGOING = 4

    def __init__(self, interface):
        program = b"".join(struct.pack("HBBI", *step) for step in self.FILTER)
        buffer = ctypes.create_string_buffer(program)
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)      # deaf until it is bound
        self._sock.setsockopt(socket.SOL_SOCKET, self.SO_ATTACH_FILTER,
                              struct.pack("HL", len(self.FILTER), ctypes.addressof(buffer)))
        self._sock.bind((interface, 3))
        self._sock.settimeout(0.2)
        self._seen = []
        self._open = True
        self._thread = threading.Thread(target=self._read, daemon=True, name=interface)
        self._thread.start()

    def _read(self):
        while self._open:
            try:
                packet, meta = self._sock.recvfrom(256)
            except socket.timeout:
                continue
            except OSError:
                return
            if meta[2] != self.PACKET_OUTGOING:
                entry = self._parse(packet, meta[1])
                if entry:
                    self._seen.append(entry)

    @staticmethod
    def _parse(packet, ethertype):
        """(protocol, destination, port), or None for what carries no message to anybody."""
        if ethertype == 0x0806:                                   # ARP on the cable
            return None
        if ethertype not in (0x0800, 0x86dd) or len(packet) < (24 if ethertype == 0x0800 else 40):
            return (f"ethertype {ethertype:04x}", "", 0)          # whatever it is, it is no silence
        if packet[0] >> 4 == 6:
            if packet[6] in (0, 58):                              # neighbour discovery
                return None
            return ("ipv6", socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[6])
        if packet[0] >> 4 != 4:
            return (f"ethertype {ethertype:04x}", "", 0)
        protocol, header = packet[9], (packet[0] & 15) * 4
        if protocol == 1:                                         # an error report, not a message
            return None
        port = int.from_bytes(packet[header + 2:header + 4], "big")   # 0 if the packet is too short for one
        name = {6: "tcp", 17: "udp"}.get(protocol, f"ip {protocol}")
        return (name, socket.inet_ntoa(packet[16:20]), port)

    def mark(self):
        """A place in the record, for `since`."""
        return len(self._seen)

    def dials(self, since=0):
        """The distinct (protocol, address, port) since then."""
        assert self._thread.is_alive() or not self._open, "the recorder died: its record proves nothing"
        return set(self._seen[since:])

    def close(self):
        self._open = False
        self._thread.join(2)
        self._sock.close()
