"""`kite reload`: a running backend takes its configuration anew, without a restart and behind its walls."""

import sys

import pytest

from conftest import new_address
from island import Island, free_port
from kite import Backend, Frontend, Kite
from pagekite_peer import PagekiteFrontend
from proc import reachable, wait_until
from traffic import MIB, HttpOrigin, Recorder, Stream, Visitor, random_bytes


@pytest.mark.parametrize("kind", ["kite", "pagekite"])
def test_kites_come_and_go(kite, sup, kind):
    """At a kite frontend the download that is under way arrives whole.  (pagekite.py's takes one tunnel for a kite, so
    there the old one must go first.)"""
    ip, origin = new_address(), Recorder(Island())
    with origin, HttpOrigin(Island()) as web:
        first, second = Kite("http", "a.b.example", origin.address), Kite("http", "c.b.example", web.address)
        if kind == "kite":
            frontend = Frontend(sup, "frontend", ip, [first, second]).start()
            address = frontend.pinned()
        else:
            frontend = PagekiteFrontend(sup, "frontend", ip, [first, second]).start()
            address = frontend.plain()
        backend = Backend(sup, "backend", [address], [first], tunnels=1).start()
        backend.wait_up(first, ip)
        halves = random_bytes(1, MIB), random_bytes(2, MIB)
        head = b"GET / HTTP/1.1\r\nHost: a.b.example\r\n\r\n"

        def serve(stream):
            stream.read(len(head))
            stream.send(halves[0])
            stream.read(1)                       # the visitor has the first half, and the kites have changed
            stream.send(halves[1])
            stream.finish()
            stream.read_to_end()

        if kind == "kite":
            origin.expect(serve)
            with Stream.visit(frontend.visitors) as visitor:
                visitor.send(head)
                visitor.read(MIB)
                change(backend, [first, second], "kite http:c.b.example: added")
                Visitor(frontend.visitors, second.name).download(seed=1, size=MIB)
                visitor.send(b"!")
                visitor.finish()
                visitor.read_to_end()
                origin.result()
            assert bytes(visitor.got) == b"".join(halves)
        else:
            change(backend, [first, second], "kite http:c.b.example: added")
            Visitor(frontend.visitors, second.name).download(seed=1, size=MIB)
        change(backend, [second], "kite http:a.b.example: removed")
        wait_until(lambda: Visitor(frontend.visitors, first.name).ask("GET", "/")[0] == 503, 10, "it is gone")
        Visitor(frontend.visitors, second.name).download(seed=2, size=MIB)


def change(backend, kites, said):
    """The kites are these now."""
    since = backend.proc.mark()
    backend.kites = kites
    assert backend.reload() == said + "\n"
    backend.wait_up(kites[-1], since=since, via="")
    assert backend.reload() == "nothing has changed\n"


def test_what_cannot_be_changed(kite, sup, tornet):
    """Behind the walls of Tor mode, too, and before Tor is up: one clear message, and all stays as it was."""
    ip, toml = new_address(), tornet.arti_toml(sup.directory / "arti")
    with HttpOrigin(Island()) as web:
        first, second = Kite("http", "a.b.example", web.address), Kite("http", "c.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [first, second]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [first], via_tor=toml).start()
        backend.wait_up(first, ip)

        def refused(said, **what):
            was = {key: getattr(backend, key) for key in what}
            vars(backend).update(what)
            answer = backend.reload(status=2)
            assert said in answer and "restart kite instead" in answer, answer
            vars(backend).update(was)

        refused("`tor.enabled` has changed", via_tor=None)
        refused("`tor.socks_listen` has changed", socks="127.0.0.1:9150")
        refused("`tunnels` has changed", tunnels_each=1)
        refused("unix:/run/other is a new origin", kites=[Kite("http", "a.b.example", "unix:/run/other")])
        port = free_port()
        server = sup.spawn("server", [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", port])
        wait_until(lambda: reachable(("127.0.0.1", port)), 10, server.tail)
        backend.kites = [Kite("foolscap", "f.b.example", f"127.0.0.1:{port}")]
        assert "is a web server, not a foolscap port" in backend.reload(status=2)
        wait_until(lambda: backend.status()["tunnels"][0]["kites"] == ["http:a.b.example"], 10, backend.status)
        change(backend, [first, second], "kite http:c.b.example: added")
        backend.stop()
        assert "no kite answers at" in backend.reload(status=1)
