"""What stands behind a foolscap kite, tried with the real thing: Tahoe's node, and its web interface.

The node has both on one machine, as every node has that its owner uses.  Taps
in front of them note what each connection begins with.
"""

import re

import pytest

from conftest import new_address, supervised
from island import Island
from kite import STREAM_ENDED, Backend, Frontend, Kite
from pairs import Pair
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel
from traffic import MIB, Stream, Tap, Visitor, random_bytes, sha256

NAME, OWN_PORT = "tahoebob.origin.example", 8443
INTRO, INTRODUCER = "intro.origin.example", "10.77.5.4"
WEB = ("127.0.0.1", 45090)
LATER = ("127.0.0.1", 45091)
UPGRADE = "Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n"
WAIT_S = 30


class Node:
    """A storage node with a web interface, which clients reach at `ip`."""

    def __init__(self, sup):
        self.ip = new_address()
        self.hosts = {INTRO: INTRODUCER, NAME: self.ip}
        self.introducer = Introducer(sup, sup.directory / "introducer", self.hosts, INTRO, INTRODUCER).run()
        self.storage = Storage(sup, sup.directory / "node", self.hosts, Island(), self.introducer.furl,
                               [f"tcp:{NAME}:{OWN_PORT}"], force_foolscap=False)
        self.storage.change("node", **{"web.port": "tcp:%d:interface=%s" % (WEB[1], WEB[0])})
        self.storage.run()
        for address in (WEB, self.storage.target):
            wait_until(lambda a=address: answers(a), WAIT_S, lambda: self.storage.proc.tail())
        self.tub = (self.storage.dir / "my_nodeid").read_text().strip()


def answers(address):
    try:
        Stream.visit(address).close()
        return True
    except OSError:
        return False



@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with supervised(tmp_path_factory.mktemp("origin-safety")) as sup:
        yield Node(sup)


@pytest.fixture
def tap(request):
    """Makes taps on loopback."""
    def make(target, address=("127.0.0.1", 0)):
        made = Tap(Island(), target, address)
        request.addfinalizer(made.close)
        return made
    return make


def probes(tap, tub):
    """All connections were kite's own question, for a tub that is not the node's."""
    return all(re.fullmatch(rb"GET /id/[a-z2-7]{32} HTTP/1.1\r\nHost: .*", b, re.S) and tub.encode() not in b
               for b in tap.beginnings)


def negotiate(frontend, tub, name=NAME):
    """A foolscap client's opening; the status line that it gets, and the stream."""
    visitor = Stream.visit(frontend)
    visitor.send(f"GET /id/{tub} HTTP/1.1\r\nHost: {name}\r\n{UPGRADE}\r\n".encode())
    return visitor.read_until(b"\r\n").decode().strip(), visitor


def test_the_web_interface_is_refused_at_the_start(kite, sup, node):
    assert Visitor(WEB, "localhost").get("/")                   # it is one
    service = Kite("foolscap", NAME, "%s:%d" % WEB)
    backend = Backend(sup, "backend", ["plain://10.77.1.254:1"], [service]).start()
    assert backend.proc.wait(20) == 2, backend.proc.tail()
    said = backend.proc.text()
    assert "[KITE-B04]" in said and "web server" in said and "tub.port" in said and NAME in said


def test_the_web_interface_in_a_nodes_place(kite, sup, node, tap):
    """Down, the web interface, the node, and the web interface again, on one port of a running kite."""
    service = Kite("foolscap", NAME, "%s:%d" % LATER, tub=node.tub)
    pair = Pair("kite-kite", sup, new_address(), [service])

    def status():
        line, visitor = negotiate(pair.visitors, node.tub)
        visitor.close()
        return line

    assert "503" in status()
    web = tap(WEB, LATER)
    wait_until(lambda: "503" in status() and web.beginnings, WAIT_S, "a look at the web interface")
    said = pair.backend.proc.text()
    for _ in range(20):
        assert "503" in status()
    assert probes(web, node.tub)
    lines = [line for line in pair.backend.proc.text().splitlines() if "is a web server" in line]
    assert len(lines) == 1 and "tub.port" in lines[0], "one line, not one for each visitor"
    web.close()

    real = tap(node.storage.target, LATER)
    since = pair.backend.proc.mark()
    wait_until(lambda: "101" in status(), WAIT_S, lambda: pair.backend.proc.tail())
    assert "404" in negotiate(pair.visitors, "a" * 32)[0]       # tub_id: another node's client
    pair.backend.wait_line(STREAM_ENDED, NAME, since=since)
    real.close()
    web = tap(WEB, LATER)
    for _ in range(5):
        assert "503" in status()
    assert web.beginnings and probes(web, node.tub)


def test_storage_traffic_passes(kite, sup, node, tap):
    """A client that prefers HTTPS, and one that insists on foolscap, to the same public port."""
    foolscap, https = tap(node.storage.target), tap(node.storage.target)
    kites = [Kite("foolscap", NAME, foolscap.address, tub=node.tub), Kite("tahoe-https", NAME, https.address)]
    frontend = Frontend(sup, "frontend", node.ip, kites, owned={OWN_PORT: kites[1]}).start()
    backend = Backend(sup, "backend", [frontend.pinned()], kites).start()
    for service in kites:
        backend.wait_up(service, node.ip)
    clients = in_parallel(*(
        lambda n=n: Client(sup, sup.directory / f"client{n}", node.hosts, node.introducer.furl,
                           shares=(1, 1, 1)) for n in range(2)))
    clients[1].change("client", force_foolscap="true")
    data = random_bytes(15, MIB)
    for client in clients:
        client.run()
    for client in clients:
        client.wait_connected(1)
        assert sha256(client.download(client.upload(data))) == sha256(data)
    assert https.protocols() == {"https"}
    assert foolscap.protocols() == {"foolscap"}
    assert not probes(foolscap, node.tub), "a client came, too"


def test_a_frontend_that_looks_at_nothing(kite, sup, node, tap):
    """pagekite.py's frontend brings whatever says the name; the backend lets none of it through."""
    tub = tap(node.storage.target)
    service = Kite("foolscap", NAME, tub.address, tub=node.tub)
    pair = Pair("pagekite-kite", sup, new_address(), [service])
    before = f"Host: {NAME}\r\n"
    for first in (f"GET / HTTP/1.1\r\n{before}User-Agent: Mozilla/5.0\r\nAccept: text/html\r\n\r\n",
                  f"GET /uri/URI:DIR2:x HTTP/1.1\r\n{before}{UPGRADE}\r\n",
                  f"POST /uri?t=mkdir HTTP/1.1\r\n{before}Content-Length: 4\r\n\r\nbody",
                  f"GET /id/{node.tub} HTTP/1.1\r\n{before}\r\n",
                  f"GET /id/{node.tub} HTTP/1.1\r\n{before}{UPGRADE}\r\nGET /uri HTTP/1.1\r\n\r\n",
                  f"OPTIONS * HTTP/1.1\r\n{before}\r\n"):
        with Stream.visit(pair.visitors) as visitor:
            visitor.send(first.encode())
            assert not visitor.read_to_end().startswith(b"HTTP/1.1 101"), first
    assert probes(tub, node.tub)
    assert "101" in negotiate(pair.visitors, node.tub)[0]
    assert not probes(tub, node.tub)
