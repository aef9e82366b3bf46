"""Ends and changes that were asked for: nobody is refused, and who is there may finish.

A frontend is upgraded, or stopped and started behind sockets that somebody else holds, while visitors come without a pause;
each must get what it came for.
"""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, binary
from proc import reachable, wait_until
from test_supervisor import Manager
from traffic import MIB, PATIENCE, Busy, HttpOrigin, Recorder, Stream, Visitor, random_bytes

UPGRADES = 3
READY_S = 30
TAKEN = r"upgrade: process (\d+) has taken over"


class Crowd(Busy):
    """Visitors of some kites, one after the other and several at a time, as long as the block lasts."""

    def __init__(self, address, kites, each=2, patience=PATIENCE):
        self.patience = patience
        self.served, self.failed, self.slowest = 0, [], 0.0
        super().__init__(self._visit, [(address, kite) for kite in kites for _ in range(each)])

    def _visit(self, address, kite):
        seed = 0
        while not self._stop.is_set():
            seed += 1
            began = time.monotonic()
            try:
                Visitor(address, kite.name, patience=self.patience).download(seed, 2000)
                failed = None
            except (OSError, AssertionError, http.client.HTTPException) as e:
                failed = f"{kite.name}: {e!r}"
            with self._lock:
                self.served += failed is None
                self.failed += [failed] if failed else []
                self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(0.01)


@contextlib.contextmanager
def long_visit(recorder, frontend, kite):
    """A visitor who gets the first half before the block, and the second after it, when it has asked for that."""
    halves = random_bytes(1, MIB), random_bytes(2, MIB)
    head = f"GET / HTTP/1.1\r\nHost: {kite.name}\r\n\r\n".encode()

    def serve(stream):
        stream.read(len(head))
        stream.send(halves[0])
        stream.read(1)
        stream.send(halves[1])
        stream.finish()
        stream.read_to_end()

    recorder.expect(serve)
    with Stream.visit(frontend.visitors) as visitor:
        visitor.send(head)
        visitor.read(MIB)
        yield
        visitor.send(b"!")
        visitor.finish()
        visitor.read_to_end()
        recorder.result()
    assert bytes(visitor.got) == b"".join(halves)


def process_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] == "Z"


@contextlib.contextmanager
def successors(frontend):
    """The processes that have taken the frontend's place, the last of which is ended with the block."""
    found = []
    try:
        yield found
    finally:
        found[:] = [int(pid) for pid in re.findall(TAKEN, frontend.proc.text())]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in found:
            wait_until(lambda pid=pid: process_gone(pid), 20, f"process {pid} has not ended")


def test_a_frontend_is_upgraded_under_load(kite, sup, tmp_path):
    """Three times: by the command, by a signal, by the command. A download goes on through all of them. (pagekite.py, which has
    never heard of this, comes back after a minute or two: long_faults.py.)"""
    ip, origin, manager = new_address(), Recorder(Island()), Manager(str(tmp_path / "notify"))
    with origin, HttpOrigin(Island()) as web:
        long, short = Kite("http", "long.b.example", origin.address), Kite("http", "web.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [long, short], env=manager.env,
                            keys={"drain": "5m", "grace": "60s"}).start()
        manager.hear("READY=1")
        backend = Backend(sup, "backend", [frontend.pinned()], [long, short], tunnels=2).start()
        backend.wait_up(short, ip)
        first = frontend.proc.pid
        with successors(frontend), long_visit(origin, frontend, long), Crowd(frontend.visitors, [short], each=4) as crowd:
            for i in range(UPGRADES):
                before, since = crowd.served, frontend.proc.mark()
                if i % 2:
                    os.kill(current, signal.SIGUSR2)
                else:
                    assert "a new frontend has taken over" in frontend.order("upgrade")
                current = int(frontend.proc.wait_log(TAKEN, READY_S, since)[1])
                frontend.wait_up(short, since)
                wait_until(lambda: crowd.served > before + 100, READY_S, lambda: f"only {crowd.served} visits")
            assert not process_gone(first), "the download is with the first of them"
            said = subprocess.run([binary(), "status", "--state-dir", frontend.state], capture_output=True, text=True)
            assert "web.b.example" in said.stdout, said
        assert crowd.failed == [], f"{len(crowd.failed)} of {crowd.served}"
        assert f"MAINPID={current}\nREADY=1" in manager.hear(f"MAINPID={current}")[-1]
        assert frontend.proc.wait(READY_S) == 0
        print(f"{crowd.served} visits through {UPGRADES} upgrades, none refused; the slowest took {crowd.slowest:.1f} s")
    manager.close()


def test_an_upgrade_that_fails_changes_nothing(kite, sup):
    """A configuration that is wrong; and a book in a state that only the new process sees."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [mine]).start()
        frontend.manage("add", "book.b.example")
        backend = Backend(sup, "backend", [frontend.pinned()], [mine]).start()
        backend.wait_up(mine, ip)
        good = frontend.file.read_text()
        with Crowd(frontend.visitors, [mine]) as crowd:
            frontend.file.write_text("nonsense = true\n" + good)
            said = frontend.order("upgrade", status=1)
            assert "exit status: 2" in said and "KITE-C56" in said
            # It has let go of the book by the time the new one sees that this place is taken.
            with socket.create_server(("127.0.0.1", 0)) as taken:
                place = "127.0.0.1:%d" % taken.getsockname()[1]
                frontend.file.write_text(good + f'[metrics]\nlisten = "{place}"\n')
                said = frontend.order("upgrade", status=1)
            assert "exit status: 1" in said, said
            # A port that is free, and that the frontend may not open any more: where walls stand, they are the successor's too.
            frontend.file.write_text(good + f'[metrics]\nlisten = "{place}"\n')
            assert "restart the frontend" in frontend.order("reload", status=2)
            if re.search(r"Landlock \(ABI ([4-9]|\d\d)\)", frontend.proc.text()):
                assert "exit status: 1" in frontend.order("upgrade", status=1)
                assert "restart it instead" in frontend.proc.text()
            frontend.file.write_text(good)
            assert "book.b.example" in frontend.manage("list")[0]
            frontend.manage("add", "more.b.example")
        assert crowd.failed == [] and crowd.served
        assert backend.tunnels() == ["up"] and not re.search("tunnel from .* ended", frontend.proc.text())
        frontend.stop()


class Held:
    """Holds a frontend's sockets as systemd does by a socket unit, and starts it with them."""

    def __init__(self, frontend):
        self.frontend = frontend
        self.sockets = [socket.create_server((frontend.ip, port), backlog=1024) for port in frontend.ports]

    def start(self):
        """With the number of its own process in its environment, which a shell knows."""
        frontend, held = self.frontend, self.sockets
        spare = [os.dup(s.fileno()) for s in held]

        def place():
            for i, fd in enumerate(spare):
                os.dup2(os.dup(fd), 100 + i)
            for i in range(len(spare)):
                os.dup2(100 + i, 3 + i)

        words = [binary(), frontend.role, *map(str, frontend.flags())]
        env = {**os.environ, "KITE_LOG": "debug", "LISTEN_FDS": str(len(held))}
        with open(frontend.dir / "log", "ab") as log:
            proc = subprocess.Popen(["/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *words], stdout=log, stderr=log,
                                    stdin=subprocess.DEVNULL, env=env, preexec_fn=place,
                                    pass_fds=[3 + i for i in range(len(held))])
        for fd in spare:
            os.close(fd)
        return proc

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for s in self.sockets:
            s.close()


def test_a_frontend_behind_a_supervisors_sockets_is_restarted_under_load(kite, sup):
    """Who comes between the two processes waits in the kernel's queue; then for the backend, which is not back yet."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [mine], keys={"grace": "60s"})
        log = frontend.dir / "log"
        with Held(frontend) as held:
            proc = held.start()
            pin = wait_until(lambda: log.exists() and re.search(r"backends dial (\S+:443#\S+)", log.read_text()), READY_S, "a pin")
            backend = Backend(sup, "backend", [pin[1]], [mine]).start()
            backend.wait_up(mine, ip)
            with Crowd(frontend.visitors, [mine], each=4) as crowd:
                for _ in range(UPGRADES):
                    before = crowd.served
                    proc.send_signal(signal.SIGTERM)
                    assert proc.wait(30) == 0
                    proc = held.start()
                    wait_until(lambda: crowd.served > before + 100, 60, lambda: f"only {crowd.served} visits")
            assert crowd.failed == [], f"{len(crowd.failed)} of {crowd.served}"
            proc.send_signal(signal.SIGTERM)
            assert proc.wait(30) == 0
            # A socket for which nobody said what it is for would keep whoever comes there for ever.
            held.sockets.append(socket.create_server((ip, 8099)))
            assert held.start().wait(30) == 2
            assert f"{ip}:8099 was handed over" in log.read_text()
        print(f"{crowd.served} visits through {UPGRADES} restarts, none refused; the slowest took {crowd.slowest:.1f} s")


def test_a_frontend_takes_another_configuration(kite, sup, tmp_path):
    """By the command and by SIGHUP, while a download goes on. What cannot be taken is refused as a whole, with the reason."""
    ip, origin, manager = new_address(), Recorder(Island()), Manager(str(tmp_path / "notify"))
    with origin, HttpOrigin(Island()) as web:
        first, second = Kite("http", "a.b.example", origin.address), Kite("http", "c.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [first], env=manager.env).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [first]).start()
        backend.wait_up(first, ip)
        one = Backend(sup, "second", [frontend.pinned()], [second]).start()
        one.wait_line("(?i)kite refused")
        manager.hear("READY=1")

        def again(kites, **other):
            was = frontend.file.read_text()
            Frontend(sup, "frontend", ip, kites, **other)
            return was

        with long_visit(origin, frontend, first):
            assert frontend.order("reload") == "nothing has changed\n"
            good = again([first, second])
            assert frontend.order("reload") == "kite c.b.example: added\n"
            one.wait_up(second, ip, timeout=150)
            Visitor(frontend.visitors, second.name).download(1, 1000)
            again([first, second], log_peers=False)
            said = frontend.order("reload", status=2)
            assert "`log_peers` has changed" in said and "kite frontend upgrade" in said
            frontend.file.write_text("nonsense = true")
            assert "nonsense" in frontend.order("reload", status=2)
            Visitor(frontend.visitors, second.name).download(2, 1000)
            frontend.file.write_text(good)
            since = frontend.proc.mark()
            os.kill(frontend.proc.pid, signal.SIGHUP)
            said = manager.hear("RELOADING=1")
            assert "MONOTONIC_USEC=" in said[-1]
            manager.hear("READY=1")
            frontend.proc.wait_log("reload: kite c.b.example: removed", READY_S, since)
            frontend.wait_down(second, since)
            assert Visitor(frontend.visitors, second.name).ask("GET", "/")[0] == 503
        assert len(re.findall("tunnel from .* ended", frontend.proc.text())) <= 1, "the first backend's tunnel stays"
    manager.close()


def test_a_hangup_makes_a_backend_read_its_file(kite, sup):
    ip = new_address()
    with HttpOrigin(Island()) as web:
        first, second = Kite("http", "a.b.example", web.address), Kite("http", "c.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [first, second]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [first]).start()
        backend.wait_up(first, ip)
        backend.file.write_text("nonsense = true")
        os.kill(backend.proc.pid, signal.SIGHUP)
        backend.wait_line("KITE-C27.*nothing was changed")
        backend.kites = [first, second]
        backend.write()
        os.kill(backend.proc.pid, signal.SIGHUP)
        backend.wait_up(second, ip)
        Visitor(frontend.visitors, second.name).download(1, 1000)


@pytest.mark.parametrize("role", ["frontend", "backend"])
def test_the_second_signal_ends_at_once(kite, sup, role):
    """A visitor who does not go keeps a role for as long as `drain` says, and no longer than the operator wants."""
    ip, origin = new_address(), Recorder(Island())
    with origin:
        mine = Kite("http", "a.b.example", origin.address)
        frontend = Frontend(sup, "frontend", ip, [mine], keys={"drain": "1h"}).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [mine])
        backend.file.write_text(backend.file.read_text().replace('drain = "5s"', 'drain = "1h"'))
        backend.start().wait_up(mine, ip)

        def stays(stream):
            stream.send(b"!")
            stream.read_to_end()

        origin.expect(stays)
        with Stream.visit(frontend.visitors) as visitor:
            visitor.send(b"GET / HTTP/1.1\r\nHost: a.b.example\r\n\r\n")
            ending = {"frontend": frontend, "backend": backend}[role]
            visitor.read(1)
            ending.proc.popen.send_signal(signal.SIGTERM)
            ending.proc.wait_log("stopping", READY_S)
            if role == "frontend":
                wait_until(lambda: not reachable(frontend.visitors), READY_S, "it does not listen any more")
            else:
                wait_until(lambda: Visitor(frontend.visitors, mine.name).ask("GET", "/")[0] == 503, READY_S, "no more visitors")
            assert ending.proc.alive()
            ending.proc.popen.send_signal(signal.SIGTERM)
            assert ending.proc.wait(READY_S) == 1


def test_a_backend_that_starts_heeds_signals_already(kite, sup, tmp_path):
    """Tor's network is out of reach, so that it starts for ever.  Neither signal ends it, as they would a process that does not
    listen; SIGTERM does, in order."""
    (tmp_path / "arti.toml").write_text("")
    onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443"
    backend = Backend(sup, "backend", [onion], [Kite("http", "a.b.example", "127.0.0.1:1")], via_tor=tmp_path / "arti.toml").start()
    backend.proc.wait_log("Tor: ", READY_S)
    for number in (signal.SIGHUP, signal.SIGUSR2):
        os.kill(backend.proc.pid, number)
        time.sleep(0.5)
        assert backend.proc.popen.poll() is None, number
    backend.stop()
