"""The node's own connections: a Tahoe node with the lines of `kite tahoe` never shows its address.

The cable of its machine is the proof: relays are all that it dials, node and
backend together.  The introducer has a name that only the exits can find, and
the kernel's table of its connections says from where they come.
"""

import contextlib
import socket

import pytest

from conftest import new_address
from island import Island
from kite import SOCKS, Backend, Frontend, Kite, run
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel
from traffic import Origin, random_bytes, sha256

PORT = ("127.0.0.1", 9150)
INTRODUCER = "10.77.5.3"
INTRO, NAME = "intro.socks.example", "tahoebob.socks.example"


def peers(address, port):
    """The addresses that have a connection with a server on the island."""
    def text(field):
        return socket.inet_ntoa(bytes.fromhex(field.split(":")[0])[::-1]), int(field.split(":")[1], 16)
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    return {text(row[2])[0] for row in rows if text(row[1]) == (address, port) and row[3] == "01"}


def test_a_node_goes_out_through_the_socks_port(kite, sup, machine, tornet):
    ip, hidden = new_address(), machine()
    hosts = {INTRO: INTRODUCER, NAME: ip}
    tornet.names.update(hosts)
    introducer = Introducer(sup, sup.directory / "introducer", hosts, INTRO, INTRODUCER).run()
    node, client = in_parallel(
        lambda: Storage(sup, sup.directory / "node", {}, hidden, introducer.furl, [f"tcp:{NAME}:80"],
                        force_foolscap=False),
        lambda: Client(sup, sup.directory / "client", hosts, introducer.furl, shares=(1, 1, 1)))
    service = Kite("foolscap", NAME, "%s:%d" % node.target)
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned(NAME)], [service], machine=hidden, socks="%s:%d" % PORT,
                      via_tor=tornet.arti_toml(sup.directory / "backend-tor")).start()
    backend.wait_up(service, NAME)
    backend.wait_line(SOCKS, "%s:%d" % PORT, timeout=1)
    run("tahoe", "--config", backend.file, "--write", node.dir, status=0)
    node.run()
    wait_until(lambda: peers(INTRODUCER, 45001), 90, lambda: "the node reaches the introducer\n" + node.proc.tail())
    # Nobody else is there yet: this is the node, and it has an exit's address.
    assert peers(INTRODUCER, 45001) <= tornet.exits
    assert INTRO in tornet.asked

    client.run()
    client.wait_connected(1)
    data = random_bytes(14, 1_000_000)
    assert sha256(client.download(client.upload(data))) == sha256(data)
    assert hidden.log.dials() <= tornet.relays
    assert set(frontend.tunnel_peers()) <= tornet.exits


@pytest.fixture
def port(kite, sup, machine, tornet):
    """A backend's SOCKS port; connects to it from its machine."""
    hidden = machine()
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    backend = Backend(sup, "backend", ["plain://10.77.1.254:1"], [service], machine=hidden, socks="%s:%d" % PORT,
                      via_tor=tornet.arti_toml(sup.directory / "backend-tor")).start()
    backend.wait_line(SOCKS, "%s:%d" % PORT, timeout=90)

    @contextlib.contextmanager
    def ask(host, number):
        with hidden.connect(PORT, timeout=90) as sock:
            sock.sendall(b"\5\1\0")
            assert sock.recv(2) == b"\5\0"
            sock.sendall(b"\5\1\0\3" + bytes([len(host)]) + host.encode() + number.to_bytes(2, "big"))
            yield sock, sock.recv(10)[1]

    yield ask
    assert hidden.log.dials() <= tornet.relays


def test_both_ends_end_and_failures_have_codes(port, tornet):
    ip = new_address()
    tornet.names["echo.socks.example"] = ip

    def serve(stream):
        stream.send(stream.read(5)[::-1])

    with Origin(Island(), serve, (ip, 7)), port("echo.socks.example", 7) as (sock, code):
        assert code == 0
        sock.sendall(b"hello")
        got = b""
        while piece := sock.recv(100):
            got += piece
        assert got == b"olleh"
    for host in ("nowhere.socks.example", ip):
        with port(host, 9) as (_, code):
            assert code != 0, host
