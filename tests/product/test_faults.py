"""What happens in the real world: processes that are killed, origins that misbehave, full disks, spoiled files, wrong clocks.

What takes minutes (a process that is stopped for five of them, a cable that is out) is in long_faults.py, with its result in
docs/limits.md.
"""

import contextlib
import os
import signal
import socket
import struct
import time

import pytest

from clocks import Clock
from conftest import new_address
from island import Island, free_port
from kite import Backend, Frontend, Kite, binary
from kite import run as refused
from proc import wait_until
from test_graceful import Crowd
from traffic import HttpOrigin, Recorder, Stream, Visitor

READY_S = 30
HOUR = 3600


def test_kills_under_load(kite, sup):
    """Without a goodbye, either side, while visitors come. A frontend that is there again refuses nobody: who comes waits for
    the backend, which comes by itself. What was acknowledged is in the book."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.b.example", web.address, limits={"quota": "10GB"})
        frontend = Frontend(sup, "frontend", ip, [mine], keys={"grace": "5s"}).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [mine]).start()
        backend.wait_up(mine, ip)
        for n in range(3):
            with Crowd(frontend.visitors, [mine]) as crowd:
                wait_until(lambda: crowd.served > 10, READY_S, "visits")
                frontend.manage("add", f"book{n}.b.example")
                frontend.kill()
            frontend.start()
            with Crowd(frontend.visitors, [mine]) as crowd:
                wait_until(lambda: crowd.served > 10, READY_S, lambda: crowd.failed)
                assert f"book{n}.b.example" in frontend.manage("list")[0]
            assert crowd.failed == []
        for _ in range(3):
            since = frontend.proc.mark()
            with Crowd(frontend.visitors, [mine]) as crowd:
                wait_until(lambda: crowd.served > 10, READY_S, "visits")
                backend.kill()
                frontend.wait_down(mine, since)
            backend.start().wait_up(mine, ip)
            Visitor(frontend.visitors, mine.name).download(1, 1000)
        frontend.stop()


def test_origins_that_misbehave(kite, sup):
    """Down, slow, silent, resetting in the middle, ending one half: the visitor sees just that, the tunnel and other visitors
    nothing."""
    ip, origin = new_address(), Recorder(Island())
    nowhere = f"127.0.0.1:{free_port()}"
    head = b"GET / HTTP/1.1\r\nHost: odd.b.example\r\n\r\n"
    with origin, HttpOrigin(Island()) as web:
        good, odd, down = (Kite("http", f"{name}.b.example", address)
                           for name, address in (("good", web.address), ("odd", origin.address), ("down", nowhere)))
        frontend = Frontend(sup, "frontend", ip, [good, odd, down]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [good, odd, down]).start()
        backend.wait_up(odd, ip)

        def play(script):
            """What the visitor gets, and whether that ended in order."""
            origin.expect(script)
            with Stream.visit(frontend.visitors) as visitor:
                visitor.send(head)
                try:
                    visitor.read_to_end()
                    visitor.finish()
                except ConnectionError:
                    pass
                origin.result()
                return bytes(visitor.got), visitor.ended

        def slow(stream):
            stream.read(len(head))
            for byte in b"slow but sure":
                time.sleep(0.1)
                stream.send(bytes([byte]))
            stream.finish()
            stream.read_to_end()

        def resets(stream):
            stream.read(len(head))
            stream.send(b"half of wh")
            time.sleep(0.3)
            stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.sock.close()

        def ends_first(stream):
            stream.finish()
            assert stream.read_to_end() == head

        with Crowd(frontend.visitors, [good], each=1) as crowd:
            assert play(slow) == (b"slow but sure", True)
            got, ended = play(resets)
            assert b"half of wh".startswith(got) and not ended, "a reset looks like one"
            assert play(ends_first) == (b"", True)
            with pytest.raises((OSError, AssertionError)):
                Visitor(frontend.visitors, down.name).download(1, 1000)
            wait_until(lambda: crowd.served > 20, READY_S, lambda: crowd.failed)
        assert crowd.failed == []
        assert backend.tunnels() == ["up"] and "lost after" not in backend.proc.text()


class OnSmallDisk:
    """A role whose state is on a disk of its own, of a megabyte or so."""

    MOUNT = 'mount -t tmpfs -o size=3m,mode=700 small "$1" && cp -a "$2"/. "$1" && shift 2 && exec "$@"'

    def spawn(self, machine=None, level="debug", env=None):
        self.state.mkdir(exist_ok=True)
        kept = self.dir / "kept"
        kept.mkdir(exist_ok=True)
        argv = ["unshare", "--mount", "/bin/sh", "-c", self.MOUNT, "sh", self.state, kept, binary(), self.role, *self.flags()]
        self.proc = self.sup.spawn(self.name, argv, cwd=self.dir, env={"KITE_LOG": level}, log=self.dir / "log")
        return self.proc

    def inside(self, path=""):
        """The same file as its process sees it."""
        return f"/proc/{self.proc.pid}/root{self.state}/{path}"

    def fill(self):
        with contextlib.suppress(OSError), open(self.inside("ballast"), "wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass


class SmallDisk(OnSmallDisk, Frontend):
    def manage_inside(self, *args):
        asked = self.sup.spawn("manage", ["nsenter", "--target", self.proc.pid, "--mount", binary(), "frontend", "kites", *args,
                                          "--config", self.file], log=self.dir / "manage-log")
        return asked.wait(20), asked.text()


def test_a_full_disk(kite, sup):
    """Visitors are served, nothing that was written is lost, what cannot be written is refused with the reason; and when there
    is room again all is well without a restart."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.b.example", web.address, limits={"quota": "10GB"})
        frontend = SmallDisk(sup, "frontend", ip, [mine]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [mine]).start()
        backend.wait_up(mine, ip)
        assert frontend.manage_inside("add", "early.b.example")[0] == 0
        frontend.fill()
        added, said = 0, (0, "")
        while said[0] == 0 and added < 60:
            said = frontend.manage_inside("add", f"k{added}.b.example", "--visitors", "1/60")
            added += said[0] == 0
            frontend.fill()
        assert said[0] == 2 and "the disk is full; make room there" in said[1], said
        Visitor(frontend.visitors, mine.name).download(1, 100_000)
        frontend.proc.wait_log(r"KITE-C30.*the disk is full", READY_S)
        os.unlink(frontend.inside("ballast"))
        assert frontend.manage_inside("add", "late.b.example")[0] == 0
        kites = frontend.manage_inside("list")[1]
        assert all(f"{name}.b.example" in kites for name in ("early", "late", *(f"k{n}" for n in range(added))))
        Visitor(frontend.visitors, mine.name).download(2, 100_000)
        frontend.stop()


class SmallBackend(OnSmallDisk, Backend):
    pass


def test_a_full_disk_at_the_backend(kite, sup):
    """From the start on: kites fly, visitors are served, it answers, takes another configuration and ends in order."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        mine, more = Kite("http", "web.b.example", web.address), Kite("http", "more.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [mine, more]).start()
        backend = SmallBackend(sup, "backend", [frontend.pinned()], [mine])
        page = '[web]\nlisten = "127.0.0.1:0"\n'
        backend.file.write_text(backend.file.read_text() + page)
        backend.start()
        backend.proc.wait_log("Tor is off", READY_S)
        backend.fill()
        backend.wait_up(mine, ip)
        Visitor(frontend.visitors, mine.name).download(1, 300_000)
        backend.kites = [mine, more]
        backend.write()
        backend.file.write_text(backend.file.read_text() + page)
        os.kill(backend.proc.pid, signal.SIGHUP)
        backend.wait_up(more, ip)
        Visitor(frontend.visitors, more.name).download(2, 300_000)
        backend.stop()


def damage(path, how):
    good = path.read_bytes()
    path.write_bytes({"cut": good[: len(good) // 2], "noise": os.urandom(len(good)), "empty": b""}[how])
    return good


@pytest.mark.parametrize("how", ["cut", "noise", "empty", "readable"])
def test_spoiled_files_of_a_frontend(kite, sup, how):
    """Its own key, a fleet member's, the book: refused, named, and left alone; never made anew. With the file from a backup
    all is as it was. What only the plots are made of begins anew, and is said so."""
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "web.b.example", None)],
                        tables=f'[web]\nlisten = "127.0.0.1:0"\n[fleet]\nid = "a"\nlisten = "{ip}:4430"\n').start()
    frontend.manage("add", "book.b.example")
    pin = frontend.pin
    frontend.stop()
    for name, code in (("frontend-key.pem", "KITE-F"), ("fleet-key.pem", "KITE-F"), ("kites.redb", "KITE-C28")):
        path = frontend.state / name
        if how == "readable":
            path.chmod(0o644)
            said = refused("frontend", *frontend.flags())
            assert "chmod 600" in said
            path.chmod(0o600)
        else:
            good = damage(path, how)
            spoiled = path.read_bytes()
            said = refused("frontend", *frontend.flags())
            # (The database notes in its first bytes that it was opened.)
            assert "from a backup" in said and path.read_bytes()[64:] == spoiled[64:]
            path.write_bytes(good)
        assert code in said and str(path) in said, said
    plots = frontend.state / "frontend-traffic"
    if how != "readable":
        plots.write_bytes({"cut": b"KITE", "noise": os.urandom(5000), "empty": b""}[how])
    frontend.start()
    if how != "readable":
        frontend.proc.wait_log("KITE-C50", READY_S)
    assert frontend.pin == pin
    assert "book.b.example" in frontend.manage("list")[0]
    frontend.stop()


def test_clocks_that_jump(kite, sup):
    """By hours, ahead and back, at either side and while visitors come: tunnels stay, and new ones are made."""
    ip, ours, theirs = new_address(), Clock(sleep=True), Clock(sleep=True)
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.b.example", web.address, limits={"quota": "10GB"})
        frontend = Frontend(sup, "frontend", ip, [mine], env=ours.environment(sup.directory / "ours")).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [mine],
                          env=theirs.environment(sup.directory / "theirs")).start()
        backend.wait_up(mine, ip)
        with Crowd(frontend.visitors, [mine]) as crowd:
            for clock, hours in ((ours, 5), (theirs, -7), (ours, -9), (theirs, 30)):
                before = crowd.served
                clock.advance(hours * HOUR)
                time.sleep(1.5)          # libfaketime looks once a second
                wait_until(lambda: crowd.served > before + 20, READY_S, lambda: crowd.failed)
        assert crowd.failed == []
        assert "lost after" not in backend.proc.text()
        since = backend.proc.mark()
        frontend.stop()
        frontend.start()
        backend.wait_up(mine, ip, since=since)
        Visitor(frontend.visitors, mine.name).download(1, 1000)
