"""A machine that is alone with a world that answers everything, and a record of every packet it sends.

`LoneMachine` is a hidden machine (island.py) with two cables and no other way out:

    cable   10.77.0.0/16: the island, with Tor relays and frontends
    world   every other address, IPv4 and IPv6.  Nobody lives there but `World`, which plays name server
            on each address, and accepts TCP on each address and port: what is dialled by mistake succeeds,
            and what would be sent next is seen too.  (IPv6 is recorded and not answered.)

Its programs have an /etc/resolv.conf of their own that leads into that world, so a question to the system's
resolver is a packet, and is answered, for the frontends' names with their true addresses.

`Record` writes down *every* frame that comes out of both cables, data and acknowledgements as well, and knows
whether the kernel dropped any.  `Story` is the judge: it says what in a phase was not for a relay.
"""

import collections
import contextlib
import os
import select
import socket
import struct
import threading
import time

from island import IPV6, Machine, _ip
from proc import wait_until

NAME_SERVER = "192.0.2.53"
ELSEWHERE = "192.0.2.80"              # where every name leads that is not a frontend's
SYN, RST, ACK, FIN = 2, 4, 16, 1

Packet = collections.namedtuple("Packet", "kind address port")


def strangers(packets, allowed):
    """What was sent to anybody else, and how many packets of it."""
    return collections.Counter(p for p in packets if tuple(p) not in allowed)


def readable(counts):
    """One line for each destination, for a report."""
    return "\n".join(f"    {n:6} x {p.kind} {p.address}{f' port {p.port}' if p.port else ''}"
                     for p, n in sorted(counts.items(), key=str))


class LoneMachine(Machine):
    """`names` are the frontends' names and addresses, as the world's name server gives them."""

    def __init__(self, number, names, directory):
        super().__init__(number)
        world = f"world{number}"
        _ip(f"link add {world} type veth peer name up1 netns /proc/{os.getpid()}/fd/{self._ns}")
        _ip(*self._silent(world), f"link set {world} arp off up")
        with self.inside():
            _ip(*self._silent("up1"), "link set up1 arp off up",
                f"route add 10.77.0.0/16 via {self.gateway}",
                f"route replace default dev up1 src {self.address}")
            if IPV6:
                _ip(f"addr add fd77:{number}::2/128 dev up1 nodad", "-6 route add default dev up1")
        self.etc = directory / f"etc{number}"
        self.etc.mkdir()
        for file, text in (("resolv.conf", f"nameserver {NAME_SERVER}\n"), ("hosts", "127.0.0.1 localhost\n"),
                           ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")):
            (self.etc / file).write_text(text)
        self.world = World(names)
        self.record = Record({self.cable: None, world: self.world})

    def _add_ipv6(self, number):
        """Not on this cable, where the kernel would tell its neighbours about it."""

    def command(self, argv):
        """The program sees files of our own in /etc; it keeps the pid."""
        binds = " && ".join(f'mount --bind "$0/{f}" /etc/{f}' for f in ("resolv.conf", "hosts", "nsswitch.conf"))
        return ["unshare", "--mount", "--propagation", "private",
                "sh", "-c", f'{binds} && exec "$@"', str(self.etc), *argv]

    @property
    def own(self):
        """What the cable itself needs: to find the gateway's card."""
        return {("arp", self.gateway, 0)}

    def packets(self, since=0):
        """All that was sent since then; complete up to this moment, or this fails."""
        with self.inside():
            self.record.sync(("up0", "up1"))
        return self.record.seen[since:]

    def close(self):
        self.record.close()
        super().close()


class Story:
    """What a machine sent, told in phases; each is judged at its end."""

    def __init__(self, machine, allowed):
        self.machine, self.allowed = machine, allowed | machine.own

    @contextlib.contextmanager
    def phase(self, name, quiet=False):
        """Strangers in it are an error, and so is silence; in a `quiet` one, anything."""
        since, start = self.machine.record.mark(), time.monotonic()
        yield
        packets = self.machine.packets(since)
        bad = strangers(packets, self.allowed)
        print(f"{name:45} {time.monotonic() - start:5.1f} s {len(packets):6} packets, {bad.total()} to strangers")
        assert not bad, f"{name}: the machine sent to strangers\n{readable(bad)}"
        assert bool(packets) != quiet, f"{name}: the machine sent {len(packets)} packets"


class Record:
    """Every frame that comes in at these interfaces; `answerers` maps each to a World, or None."""

    SOL_PACKET, STATISTICS, IGNORE_OUTGOING, RCVBUFFORCE = 263, 6, 23, 33
    MARK = 0x88B5                                  # an ethertype for local experiments
    LENGTH = 600                                   # a name server's question, whole

    def __init__(self, answerers):
        self.seen, self._marks = [], set()
        self._socks = {}
        for interface, answerer in answerers.items():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)       # deaf until it is bound
            sock.setsockopt(self.SOL_PACKET, self.IGNORE_OUTGOING, 1)
            sock.bind((interface, 3))
            sock.setblocking(False)
            self._socks[sock] = answerer
        self.buffer(1 << 26)
        self._open = True
        self._thread = threading.Thread(target=self._read, daemon=True, name="record")
        self._thread.start()

    def _read(self):
        while self._open:
            for sock in select.select(list(self._socks), [], [], 0.2)[0]:
                try:
                    frame, meta = sock.recvfrom(self.LENGTH)
                except OSError:                                               # the machine is being closed
                    continue
                if meta[1] == self.MARK:
                    self._marks.add(bytes(frame[:16]))
                    continue
                self.seen.append(describe(frame, meta[1]))
                answer = self._socks[sock] and self._socks[sock].answer(frame, meta[1])
                if answer:
                    sock.sendto(answer, (meta[0], 0x0800, 0, 0, meta[4]))

    def buffer(self, size):
        """How much may wait to be written down; less, where only root may have that."""
        for sock in self._socks:
            try:
                sock.setsockopt(socket.SOL_SOCKET, self.RCVBUFFORCE, size)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def mark(self):
        """A place in the record."""
        return len(self.seen)

    def sync(self, uplinks):
        """Called on the machine: a frame sent now has been seen, hence all that went before it; none was lost."""
        want = []
        for uplink in uplinks:
            token = os.urandom(16)
            want.append(token)
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
                sock.sendto(token + bytes(44), (uplink, self.MARK, 0, 0, b"\xff" * 6))
        wait_until(lambda: self._complete(want), 10, "the record sees what is sent", every=0.01)

    def _complete(self, marks):
        done = self._marks.issuperset(marks)
        for sock in self._socks:
            _, dropped = struct.unpack("II", sock.getsockopt(self.SOL_PACKET, self.STATISTICS, 8))
            assert not dropped, f"the record missed {dropped} packets"
        return done

    def close(self):
        self._open = False
        self._thread.join(2)
        for sock in self._socks:
            sock.close()


def describe(frame, ethertype):
    if ethertype == 0x0806:
        return Packet("arp", socket.inet_ntoa(frame[24:28]), 0)
    if ethertype == 0x86DD:
        return Packet(f"ipv6/{frame[6]}", socket.inet_ntop(socket.AF_INET6, frame[24:40]), 0)
    if ethertype != 0x0800:
        return Packet(f"ethertype {ethertype:04x}", "", 0)
    protocol, header, to = frame[9], (frame[0] & 15) * 4, socket.inet_ntoa(frame[16:20])
    if struct.unpack("!H", frame[6:8])[0] & 0x1FFF:
        return Packet("fragment", to, 0)
    if protocol in (6, 17):
        return Packet({6: "tcp", 17: "udp"}[protocol], to, struct.unpack("!H", frame[header + 2:header + 4])[0])
    return Packet({1: "icmp"}.get(protocol, f"ip/{protocol}"), to, 0)


class World:
    """Answers TCP on every address and port, and name look-ups on every address.  It keeps no connections:
    each answer follows from the packet, which is enough for whoever only wants to be accepted."""

    def __init__(self, names):
        self.names = names
        self.asked, self.accepted = [], []

    def answer(self, frame, ethertype):
        """The IPv4 packet that goes back, if any."""
        if ethertype != 0x0800:
            return None
        header = (frame[0] & 15) * 4
        total, = struct.unpack("!H", frame[2:4])
        protocol, sender, target = frame[9], frame[12:16], frame[16:20]
        body = frame[header:]
        if protocol == 6:
            reply = self._tcp(sender, target, body, total - header)
        elif protocol == 17 and body[2:4] == b"\0\x35":
            reply = self._names(body)
        else:
            return None
        if reply is None:
            return None
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(reply), 0, 0, 64, protocol, 0, target, sender)
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + reply

    def _tcp(self, sender, target, segment, length):
        port_from, port_to, seq, ack, offset, flags = struct.unpack("!HHIIBB", segment[:14])
        taken = length - (offset >> 4) * 4 + bool(flags & SYN) + bool(flags & FIN)
        if flags & RST or not taken:
            return None
        if flags & SYN:
            self.accepted.append((socket.inet_ntoa(target), port_to))
        reply = struct.pack("!HHIIBBHHH", port_to, port_from, ack if flags & ACK else 4096,
                            (seq + taken) & 0xFFFFFFFF, 5 << 4, ACK | (flags & (SYN | FIN)), 65535, 0, 0)
        pseudo = target + sender + struct.pack("!HH", 6, len(reply))
        return reply[:16] + struct.pack("!H", checksum(pseudo + reply)) + reply[18:]

    def _names(self, datagram):
        query = datagram[8:]
        labels, i = [], 12
        while query[i]:
            labels.append(query[i + 1:i + 1 + query[i]].decode("latin1"))
            i += 1 + query[i]
        name, kind = ".".join(labels).lower(), struct.unpack("!H", query[i + 1:i + 3])[0]
        self.asked.append(name)
        answer = b""
        if kind == 1:
            answer = b"\xc0\x0c" + struct.pack("!HHIH4s", 1, 1, 60, 4, socket.inet_aton(self.names.get(name, ELSEWHERE)))
        said = query[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(answer), 0, 0) + query[12:i + 5] + answer
        return datagram[2:4] + datagram[:2] + struct.pack("!HH", 8 + len(said), 0) + said


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
