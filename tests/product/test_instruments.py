"""The instruments of the other tests can fail: each is shown what it is there to see."""

import random
import socket
import subprocess
import sys
import threading

import pytest

from conftest import ALICE, new_address
from flights import HERE, Flight
from island import IPV6, RESERVED_PORTS, Cable, Island, free_port
from lone import NAME_SERVER, Story, strangers
from traffic import Origin, Recorder, Stream, random_bytes

DIAL = """
import socket
for dial in (lambda: socket.create_connection(("10.77.1.1", 443), timeout=3),
             lambda: socket.create_connection(("192.0.2.1", 9001), timeout=3),
             lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", ("192.0.2.53", 53)),
             lambda: socket.create_connection(("2001:db8::1", 443), timeout=3)):
    try:
        dial()
    except OSError:
        pass
"""


def test_the_cable_sees_every_dial(machine):
    """TCP to a host of the island, TCP to the world, a name look-up, and IPv6."""
    hidden = machine()
    with hidden.inside():
        subprocess.run([sys.executable, "-c", DIAL], check=True, timeout=20)
    seen = hidden.log.dials()
    assert {("tcp", "10.77.1.1", 443), ("tcp", "192.0.2.1", 9001), ("udp", "192.0.2.53", 53)} <= seen
    assert not IPV6 or any(kind == "ipv6" and ip == "2001:db8::1" for kind, ip, _ in seen)


def test_a_free_port_stays_free(machine):
    """Whoever asks for any port gets none of those that programs are told to listen on, and who dials comes from none."""
    first, last = RESERVED_PORTS
    hidden = machine()
    with hidden.inside():
        with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as f:
            f.write(f"{first - 10} {first + 10}")
        given = [socket.create_server(("127.0.0.1", 0)) for _ in range(10)]
        with pytest.raises(OSError):
            socket.create_server(("127.0.0.1", 0))
        wanted = socket.create_server(("127.0.0.1", free_port()))
    numbers = {sock.getsockname()[1] for sock in given}
    assert numbers == set(range(first - 10, first)), numbers
    for place in (Island(), hidden):
        with place.inside(), open("/proc/sys/net/ipv4/ip_local_reserved_ports") as f:
            assert f.read().strip() == f"{first}-{last}"
    for sock in (*given, wanted):
        sock.close()


def test_the_cable_sees_nothing_that_others_dial(machine):
    """The island's own traffic is not the machine's, not even while the record begins."""
    cable, done = machine().cable, threading.Event()

    def chatter():
        while not done.is_set():
            with Island().connect(listener.getsockname()), listener.accept()[0]:
                pass

    with Island().listen() as listener:
        chatterer = threading.Thread(target=chatter)
        chatterer.start()
        try:
            records = [Cable(cable) for _ in range(12)]
        finally:
            done.set()
            chatterer.join()
    for record in records:
        record.close()
    assert set().union(*(record.dials() for record in records)) == set()


LEAK = """
import socket
for leak in (lambda: socket.create_connection(("{frontend}", 443), timeout=3).sendall(b"hello"),
             lambda: socket.create_connection(("198.51.100.7", 31337), timeout=3).sendall(b"hello"),
             lambda: socket.create_connection(("leaky.example", 443), timeout=5),
             lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", ("198.51.100.8", 4000)),
             lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
                 .sendto(bytes.fromhex("0800f7ff00000000"), ("198.51.100.9", 0)),
             lambda: socket.create_connection(("2001:db8::1", 443), timeout=1)):
    try:
        leak()
    except OSError as e:
        print(e)
"""


def test_the_record_sees_a_program_that_leaks(lone_machine, sup):
    """One direct dial to a frontend, one to the world, one look-up, one datagram, one ping, one dial over IPv6, beside
    an honest dial to a relay: each is reported, and nothing else is.  What can be answered succeeds."""
    ip, relay = new_address(), ("tcp", new_address(), 9001)
    hidden = lone_machine({"leaky.example": ip})
    story = Story(hidden, {relay})
    with Island().listen((ip, 443)) as frontend, Island().listen(relay[1:]):
        with story.phase("honest"):
            hidden.connect(relay[1:]).close()
        since = hidden.record.mark()
        with pytest.raises(AssertionError, match="sent to strangers") as report, story.phase("leaky"):
            hidden.connect(relay[1:]).close()
            assert sup.spawn("leak", [sys.executable, "-c", LEAK.format(frontend=ip)], machine=hidden).wait(20) == 0
        assert frontend.accept()[1][0] == hidden.address == frontend.accept()[1][0]
    expected = {("tcp", ip, 443), ("tcp", "198.51.100.7", 31337), ("udp", NAME_SERVER, 53),
                ("udp", "198.51.100.8", 4000), ("icmp", "198.51.100.9", 0)}
    if IPV6:
        expected.add(("ipv6/6", "2001:db8::1", 0))
    seen = strangers(hidden.packets(since), story.allowed)
    assert seen.keys() == expected
    assert all(f"{kind} {address}" in str(report.value) for kind, address, _ in expected)
    assert set(hidden.world.asked) == {"leaky.example"}
    assert hidden.world.accepted == [("198.51.100.7", 31337)]
    assert seen["tcp", "198.51.100.7", 31337] >= 3                # accepted: the greeting was sent as well


def test_the_judge_does_not_take_silence_for_honesty(lone_machine):
    """A phase in which nothing is seen has shown nothing; and where silence is due, one packet breaks it."""
    hidden = lone_machine({})
    story = Story(hidden, {("tcp", "192.0.2.1", 9001)})
    with pytest.raises(AssertionError, match="0 packets"), story.phase("nothing happens"):
        pass
    with pytest.raises(AssertionError, match="packets"), story.phase("somebody talks", quiet=True):
        hidden.connect(("192.0.2.1", 9001)).close()


def test_the_record_says_when_it_missed_something(lone_machine):
    """A record with too small a buffer is no proof, and fails as one."""
    hidden = lone_machine({})
    with hidden.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        hidden.record.buffer(1)
        for _ in range(5000):
            flood.sendto(bytes(1000), (hidden.gateway, 9))
    with pytest.raises(AssertionError, match="the record missed"):
        hidden.packets()


def test_the_cable_ignores_what_is_answered(machine):
    """A connection *to* the machine is no dial of its own."""
    hidden = machine()
    with Origin(hidden, lambda s: s.send(s.read(4)), (hidden.address, 0)) as echo, \
            Stream(socket.create_connection(echo.sock.getsockname(), timeout=5)) as visitor:
        visitor.send(b"echo")
        assert visitor.read(4) == b"echo"
    assert hidden.log.dials() == set()


def test_a_frontend_sees_who_comes(machine):
    """A direct dial would show the machine's own address, which is no exit's."""
    hidden = machine()
    with Island().listen((new_address(), 443)) as frontend:
        with hidden.connect(frontend.getsockname()):
            _, (peer, _) = frontend.accept()
    assert peer == hidden.address


@pytest.fixture
def relay():
    """Plays a flight through a relay that may do harm, and compares as the real tests do."""
    def through(harm, name="foolscap-client-to-node"):
        flight = Flight(name)
        with Recorder(Island()) as origin:
            def carry(visitor):
                with Stream(socket.create_connection(origin.sock.getsockname(), timeout=5)) as behind:
                    done = 0
                    for direction, data in flight.steps:
                        if data is None:
                            continue
                        source, sink = (visitor, behind) if direction == "c2s" else (behind, visitor)
                        sink.send(harm(source.read(len(data)), done))
                        done += len(data)
                    for end in (visitor, behind):
                        end.finish()

            with Origin(Island(), carry) as middle, Stream.visit(middle.sock.getsockname()) as visitor:
                origin.expect(lambda s: flight.play("s2c", s, random.Random(1)), flight.tubid)
                flight.play("c2s", visitor, random.Random(2))
                return bytes(origin.result().got) == flight.sent("c2s") and bytes(visitor.got) == flight.sent("s2c")
    return through


def test_a_faithful_relay_passes(relay):
    assert relay(lambda data, done: data)


def test_one_changed_byte_is_seen(relay):
    """Late in the stream, where nothing looks at the bytes any more."""
    assert not relay(lambda data, done: data[:-1] + bytes([data[-1] ^ 1]) if done > 50_000 else data)


def test_one_lost_byte_is_seen(relay, monkeypatch):
    monkeypatch.setattr("traffic.PATIENCE", 2)
    with pytest.raises((AssertionError, OSError)):
        assert relay(lambda data, done: data[:-1] if done > 50_000 else data)


def test_an_early_end_is_seen():
    """Whoever waits for more than comes says so."""
    with Origin(Island(), lambda s: s.send(random_bytes(1, 999))) as short, \
            Stream.visit(short.sock.getsockname()) as visitor:
        with pytest.raises(AssertionError, match="1 bytes too early"):
            visitor.read(1000)


def test_the_flights_are_what_they_are_called():
    """The recordings begin as Tahoe's two protocols and TLS do, and name the kites that the tests serve."""
    for file in HERE.glob("*.jsonl"):
        flight = Flight(file.stem)
        first = flight.sent("c2s")
        if file.stem.startswith("foolscap"):
            assert first.startswith(b"GET /id/") and flight.host.startswith("tahoebob") and flight.tubid
        else:
            assert first[:2] == b"\x16\x03" and first[5] == 1
            assert flight.host == ("kite.test" if file.stem == "tls-by-sni" else None)


def test_pagekite_is_real(sup):
    """The peer is Debian's pagekite.py, and a frontend of it refuses an unknown kite in its own way."""
    from pagekite_peer import PagekiteFrontend
    frontend = PagekiteFrontend(sup, "frontend", new_address(), []).start()
    with Stream.visit(frontend.visitors) as visitor:
        visitor.send(b"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n")
        assert b"X-PageKite-UUID:" in visitor.read_to_end()


def test_a_host_behind_tor_sees_an_exit(tornet, sup):
    """A stock Tor client gets through this network, by a name that only exits know, and shows an exit's address."""
    tornet.client(sup, ("127.0.0.1", 9050))
    with Island().listen((ALICE, 80)) as host, Stream(socket.create_connection(("127.0.0.1", 9050), timeout=5)) as socks:
        socks.send(b"\x05\x01\x00")
        assert socks.read(2) == b"\x05\x00"
        socks.send(b"\x05\x01\x00\x03\x0dalice.example\x00\x50")
        host.settimeout(40)
        peer = host.accept()[1][0]
    assert peer in tornet.exits
    assert "alice.example" in tornet.asked
