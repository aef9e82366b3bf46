"""Each visitor finds its kite: by what it says, by the port that it comes to, by what else flies.

Real programs at both ends: sshd and ssh, the WebSocket server and client of `websockets`, and pagekite.py as either side
of the tunnel.  Debian's pagekite.py knows no Minecraft.
"""

import contextlib
import socket
import threading
import types

import pytest
import websockets.sync.client
import websockets.sync.server

from conftest import new_address, supervised
from island import Island, VISITOR
from kite import Kite
from pairs import BOTH_WAYS, Pair
from sshd import Sshd
from traffic import MIB, Origin, Stream, Visitor, random_bytes, sha256

RAW_PORT = 2222
every_pair = pytest.mark.parametrize("lab", BOTH_WAYS, indirect=True)
kite_frontends = pytest.mark.parametrize("lab", [p for p in BOTH_WAYS if p.startswith("kite-")], indirect=True)


def named(name):
    """A web server that says which it is."""
    def serve(stream):
        stream.read_until(b"\r\n\r\n")
        stream.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\nConnection: close\r\n\r\n{name}".encode())
    return Origin(Island(), serve)


def echo(stream):
    while data := stream.sock.recv(65536):
        stream.sock.sendall(data)


@contextlib.contextmanager
def websocket_server():
    """It sends back what it gets; how each visitor asked for it is kept."""
    paths = []

    def handler(connection):
        paths.append(connection.request.path)
        for message in connection:
            connection.send(message)
    with websockets.sync.server.serve(handler, "127.0.0.1", 0, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "%s:%d" % server.socket.getsockname(), paths
        server.shutdown()


@pytest.fixture(scope="module")
def lab(request, tmp_path_factory):
    """A pair with an origin for each way to be found."""
    directory, ip = tmp_path_factory.mktemp(request.param), new_address()
    with contextlib.ExitStack() as stack:
        sup = stack.enter_context(supervised(directory))
        web, web8080, wild, near, last, second = (
            stack.enter_context(named(n)) for n in ("web", "web8080", "wild", "near", "last", "second"))
        chat, paths = stack.enter_context(websocket_server())
        xmpp = stack.enter_context(Origin(Island(), echo))
        ssh = Sshd(sup, Island())
        bob = "the-secret-of-all-of-bobs-web-kites"
        kites = types.SimpleNamespace(
            web=Kite("http", "web.bob.example", web.address, bob),
            web8080=Kite("http", "web.bob.example", web8080.address, bob, port=8080),
            wild=Kite("http", "*.bob.example", wild.address, bob),
            near=Kite("http", "*.near.bob.example", near.address, bob),
            second=Kite("http2", "two.carol.example", second.address, bob),
            last=Kite("http", "unknown", last.address, bob),
            chat=Kite("websocket", "chat.bob.example", chat),
            plain_chat=Kite("http", "plain-chat.bob.example", chat, bob),
            xmpp=Kite("xmpp", "xm.bob.example", xmpp.address),
            ssh=Kite("raw", "ssh.bob.example", ssh.address, port=22))
        owned = {RAW_PORT: Kite("raw", "shell.bob.example", ssh.address)}
        pair = Pair(request.param, sup, ip, [*vars(kites).values(), *owned.values()], more=(8080,),
                    owned=owned if request.param.startswith("kite-") else None)
        yield types.SimpleNamespace(pair=pair, kites=kites, ip=ip, ssh=ssh, paths=paths, kind=request.param)


def page(lab, host, port=80):
    return Visitor((lab.ip, port), host).get("/").decode()


@every_pair
def test_ports_and_names(lab):
    """A kite of the port before one of any; the nearest name; and who is left, for the catch-all."""
    found = {(host, port): page(lab, host, port) for host, port in (
        ("web.bob.example", 80), ("web.bob.example", 8080), ("any.bob.example", 80), ("x.near.bob.example", 80),
        ("deep.x.near.bob.example", 8080), ("two.carol.example", 80), ("nobody.example", 80))}
    assert list(found.values()) == ["web", "web8080", "wild", "near", "near", "second", "last"], found


@every_pair
def test_ssh_by_connect(lab):
    """ssh checks the key of the host at the other end, and moves data both ways at once, up to the end of each."""
    sent = random_bytes(22, 2 * MIB)
    name = lab.kites.ssh.name
    assert lab.ssh.run(name, "sha256sum", sent, frontend=lab.pair.visitors).split()[0].decode() == sha256(sent)
    back = lab.ssh.run(name, "cat", sent, frontend=lab.pair.visitors)
    assert sha256(back) == sha256(sent)
    # Another port of the name is no kite's.
    with Stream.visit((lab.ip, 80)) as visitor:
        visitor.send(f"CONNECT {name}:23 HTTP/1.0\r\n\r\n".encode())
        assert b" 503 " in visitor.read_to_end().splitlines()[0]


@kite_frontends
def test_ssh_by_a_port_of_its_own(lab):
    """The server speaks first, to a visitor that need not say whom it wants."""
    assert lab.ssh.run("shell.bob.example", "echo here", to=(lab.ip, RAW_PORT)) == b"here\n"


@every_pair
@pytest.mark.parametrize("kite", ["chat", "plain_chat"])
def test_websocket(lab, kite):
    """A WebSocket kite, and an http kite that a WebSocket falls back to."""
    name = getattr(lab.kites, kite).name
    sock = socket.create_connection(lab.pair.visitors, source_address=(VISITOR, 0))
    with websockets.sync.client.connect(f"ws://{name}/room?{kite}", sock=sock, max_size=None) as client:
        for message in ("hello", b"\0\xff" * 5, random_bytes(7, 2 * MIB)):
            client.send(message)
            assert client.recv(timeout=30) == message
        assert client.ping().wait(10)
    assert f"/room?{kite}" in lab.paths


@every_pair
def test_only_websockets_reach_a_websocket_kite(lab):
    before = len(lab.paths)
    assert Visitor(lab.pair.visitors, lab.kites.chat.name).get("/").decode() == "wild"
    assert len(lab.paths) == before


@every_pair
def test_xmpp(lab):
    """The origin gets every byte of the opening."""
    opening = b"<?xml version='1.0'?><stream:stream to='xm.bob.example' xmlns='jabber:client'>"
    with Stream.visit(lab.pair.visitors) as visitor:
        visitor.send(opening)
        assert visitor.read(len(opening)) == opening
