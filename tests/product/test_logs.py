"""Log lines for programs: JSON, and the journal's own protocol, spoken to a socket that stands where journald's does."""

import array
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import termios
import time

import pytest

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, binary
from proc import reachable, wait_until
from screen import Terminal
from traffic import HttpOrigin, Visitor

SERVICE = Kite("http", "web.bob.example", "127.0.0.1:1")


class Journal(Island):
    """A machine whose /run has a journal; keeps what is said to it."""

    def __init__(self, directory):
        assert shutil.which("unshare"), "the tests need unshare: apt-get install util-linux"
        self.run = directory / "run"
        (self.run / "systemd/journal").mkdir(parents=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.run / "systemd/journal/socket"))
        self.socket.setblocking(False)
        self.entries = []

    def command(self, argv):
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(self.run), *argv]

    def read(self):
        """Everything that was said, each entry as a dict of its fields."""
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self.socket.recv(1 << 16)
                if datagram:                        # an empty one only asks whether somebody is there
                    self.entries.append(self._parse(datagram))
        return self.entries

    @staticmethod
    def _parse(data):
        """NAME=value lines, or NAME, a length of eight bytes, and so many bytes."""
        fields = {}
        while data:
            line, data = data.split(b"\n", 1)
            name, equals, value = line.partition(b"=")
            if not equals:
                length = int.from_bytes(data[:8], "little")
                value, data = data[8:8 + length], data[9 + length:]
            fields[name.decode()] = value.decode()
        return fields

    def wait(self, words):
        return wait_until(lambda: next((e for e in self.read() if words in e["MESSAGE"]), None), 15,
                          lambda: f"{words!r} in the journal, which has {self.entries}")


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path)
    yield made
    made.socket.close()


def frontend(sup, log_peers=False):
    return Frontend(sup, "frontend", new_address(), [SERVICE], ports=(80,), log_peers=log_peers)


def test_json_is_an_object_a_line_and_hides_addresses(kite, sup):
    role = frontend(sup)
    role.spawn(env={"KITE_LOG_FORMAT": "json"})
    role.proc.wait_log("backends dial", 15)
    with HttpOrigin(Island()) as web:
        service = Kite("http", SERVICE.name, web.address, SERVICE.secret)
        backend = Backend(sup, "backend", [role.plain()], [service])
        backend.spawn(env={"KITE_LOG_FORMAT": "json"})
        role.proc.wait_log("kite up", 15)
    role.stop()
    lines = [json.loads(line) for line in role.proc.text().splitlines()]
    assert all({"timestamp", "level", "message"} <= line.keys() for line in lines)
    assert {line["level"] for line in lines} <= {"ERROR", "WARN", "INFO", "DEBUG"}
    assert any(line["message"].startswith("tunnel from [scrubbed]") for line in lines), lines
    assert "10.77.9" not in role.proc.text() and SERVICE.secret not in role.proc.text()
    assert [json.loads(line) for line in backend.proc.text().splitlines()]


def test_the_journal_gets_levels_and_messages_without_addresses(kite, sup, journal):
    role = frontend(sup)
    role.spawn(journal, env={"KITE_LOG_FORMAT": "journald"})
    entry = journal.wait("backends dial")
    assert entry["PRIORITY"] == "6" and entry["SYSLOG_IDENTIFIER"] == "kite" and entry["TARGET"].startswith("kite::")
    with socket.create_connection(role.visitors) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
        visitor.recv(100)
    refused = journal.wait("refused")
    assert refused["KITE_PEER"] == "[scrubbed]" and refused["PRIORITY"] == "7"
    role.stop()
    assert role.proc.text() == "", "standard error is silent"


def test_the_journal_is_found_by_systemds_variable(kite, sup, journal):
    """Only if standard error is that journal."""
    role = frontend(sup)
    log = role.dir / "log"
    log.touch()
    role.spawn(journal, env={"JOURNAL_STREAM": f"{log.stat().st_dev}:{log.stat().st_ino}"})
    journal.wait("backends dial")
    role.stop()
    assert role.proc.text() == ""
    said = len(journal.read())
    role.spawn(journal, env={"JOURNAL_STREAM": f"{log.stat().st_dev}:{log.stat().st_ino + 1}"})
    role.proc.wait_log("backends dial", 15)
    assert len(journal.read()) == said


def test_a_walled_in_backend_still_reaches_the_journal(kite, sup, journal, tmp_path):
    """Its socket was opened before the walls. There is no Tor network here, and it says so, to the journal."""
    arti = tmp_path / "arti.toml"
    arti.write_text("")
    backend = Backend(sup, "backend", ["alice.example:443"], [SERVICE], via_tor=arti)
    backend.spawn(journal, env={"KITE_LOG_FORMAT": "journald"})
    journal.wait("sandbox: seccomp: no datagram")
    journal.wait("Tor: ")
    assert backend.proc.alive() and backend.proc.text() == ""


def test_no_journal_is_an_error_with_a_remedy(kite, sup, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    machine = Island()
    machine.command = lambda argv: ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(empty),
                                    *argv]
    proc = sup.spawn("lone", [binary(), "--log-format", "journald", "status"], machine=machine, log=tmp_path / "log",
                     env={**os.environ})
    assert proc.wait(10) == 2
    assert "does systemd's journald run here? If not, use text or json" in proc.text()


def test_a_log_that_nobody_reads_stops_nothing(kite, sup):
    """Standard error is a pipe that is full: visitors are served, the frontend answers and ends; and what is missing is counted."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        frontend.stop()
        end, say = os.pipe()
        room = fcntl.fcntl(say, fcntl.F_SETPIPE_SZ, 4096)
        proc = subprocess.Popen([binary(), "frontend", *map(str, frontend.flags())], stderr=say, env={**os.environ, "KITE_LOG": "trace"})
        os.close(say)
        try:
            backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
            backend.wait_up(service, ip)
            for n in range(200):
                Visitor(frontend.visitors, service.name).download(n, 10_000)
                if n >= 20 and full(end, room):
                    break
            else:
                raise AssertionError("the pipe was never full")
            Visitor(frontend.visitors, service.name).download(1, 1_000_000)
            assert frontend.status()["kites"]
            # More than the lines that may wait.
            for n in range(1500):
                Visitor(frontend.visitors, service.name).download(n, 10)
            reader = os.fdopen(end, "rb")
            lines = iter(reader.readline, b"")
            assert any(b"log lines are not here" in line for line in itertools.islice(lines, 200_000)), "nothing is said of it"
            backend.stop()
            # It stops, though nobody reads again.
            proc.send_signal(signal.SIGTERM)
            assert proc.wait(20) == 0
            reader.close()
        finally:
            proc.kill()
            proc.wait()


def test_a_journal_that_has_stopped_stops_nothing(kite, sup, journal):
    """Its queue is full: visitors are served, the frontend answers and ends; and what is missing is counted."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        frontend.stop()
        frontend.spawn(journal, level="trace", env={"KITE_LOG_FORMAT": "journald"})
        wait_until(lambda: reachable(frontend.visitors), 15, "the frontend listens")
        backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
        backend.wait_up(service, ip)
        # More than the lines that may wait, and the queue in the kernel.
        for n in range(2000):
            Visitor(frontend.visitors, service.name).download(n, 10)
        Visitor(frontend.visitors, service.name).download(1, 1_000_000)
        assert frontend.status()["kites"]
        missing = journal.wait("log lines are not here")
        assert missing["PRIORITY"] == "4" and missing["SYSLOG_IDENTIFIER"] == "kite"
        backend.stop()
        # It ends, though nobody reads again.
        frontend.stop()
        assert frontend.proc.text() == ""


def test_a_terminal_that_has_stopped_stops_nothing(kite, sup):
    """Somebody pressed Ctrl-S while a spinner turned, and went home: the kite flies, serves, and ends in order."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        pinned = frontend.pinned()
        frontend.stop()
        backend = Backend(sup, "backend", [pinned], [service])
        terminal = Terminal([binary(), "backend", *map(str, backend.flags())],
                            {**os.environ, "KITE_LOG": "trace", "TERM": "xterm-256color"})
        try:
            terminal.wait("frontend-unreachable")
            termios.tcflow(terminal.theirs, termios.TCOOFF)
            time.sleep(3)                                  # the spinner turns ten times a second
            frontend.start()
            frontend.wait_up(service, timeout=40)
            for n in range(300):
                Visitor(frontend.visitors, service.name).download(n, 1000)
            terminal.proc.send_signal(signal.SIGTERM)
            assert terminal.proc.wait(20) == 0
        finally:
            termios.tcflow(terminal.theirs, termios.TCOON)
            terminal.close()


def test_progress_that_nobody_reads_stops_nothing(kite, sup):
    """A program wants to know only that all is well.  Its pipe is full, and yet the kite flies, and ends in order."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
        backend.wait_up(service, ip)
        backend.stop()
        end, say = os.pipe()
        room = fcntl.fcntl(say, fcntl.F_SETPIPE_SZ, 4096)
        os.write(say, b"x" * (room - 1) + b"\n")
        since = frontend.proc.mark()
        proc = subprocess.Popen([binary(), "--progress", "json", "backend", *map(str, backend.flags())], stdout=say, env={**os.environ})
        os.close(say)
        try:
            frontend.wait_up(service, since)
            Visitor(frontend.visitors, service.name).download(1, 1_000_000)
            # It stops, though nobody reads.
            proc.send_signal(signal.SIGTERM)
            assert proc.wait(20) == 0
        finally:
            proc.kill()
            proc.wait()
            os.close(end)


def full(pipe, room):
    """A pipe has all that it can hold, or as good as."""
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] > room - 1000
