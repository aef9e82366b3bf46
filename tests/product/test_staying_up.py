"""Whatever happens to Tor is told once, by a name and with what to do (docs/states.md), and passes without a restart.

Most of these troubles take a minute to be noticed, or to pass, so they befall one backend each, all at once: each
is alone on its machine.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import threading

import pytest

import island
from clocks import library
from conftest import new_address
from kite import LOST, TOR_S, Backend, Frontend, Kite
from lone import strangers
from proc import reachable, wait_until
from tornet import OR_PORT, TorNet

NOTICE_S = 150         # a tunnel is dead, Arti has given up on its circuits, nobody gets another
PASS_S = 150           # the trouble has passed, and Arti's waits are over
HASTY = 20             # seconds between its votes
ALICE, CAROL, DAVE = "alice.example", "carol.example", "dave.example"     # exits remember a name's address
TOLD = r"WARN \[KITE-T\d\d\] Tor: ([a-z-]+): .+; .+"
CODES = {"no-network": "T01", "tor-unreachable": "T02", "tor-blocked": "T03", "guards-down": "T04", "bridge-down": "T05",
         "transport-failed": "T06", "clock-wrong": "T07", "directory-expired": "T08"}
AGAIN = r"INFO Tor: working again, after \d+ s of {via}"


class Case:
    """A backend, what befalls it, and what it must call that."""

    def __init__(self, state, backend, provoke, mend, up=True):
        self.state, self.backend, self.provoke, self.mend, self.up = state, backend, provoke, mend, up
        self.since = 0

    def status(self):
        return self.backend.status()["tor"]["state"]

    @property
    def service(self):
        return self.backend.kites[0]

    def told(self):
        return re.findall(TOLD, self.backend.proc.text(self.since))

    def wait_told(self):
        told = TOLD.replace(r"T\d\d", CODES[self.state]).replace("([a-z-]+)", self.state)
        self.backend.wait_line(told, since=self.since, timeout=NOTICE_S)
        assert self.status() == self.state

    def wait_passed(self, since):
        self.backend.wait_up(self.service, self.backend.frontends[0].partition("#")[0], since=since, timeout=PASS_S)
        self.backend.wait_line(AGAIN, self.state, since=since)
        wait_until(lambda: self.status() == "working", 10, lambda: f"{self.backend.name} is {self.status()}")
        assert self.told() == [self.state], self.backend.proc.tail()


def clock(file):
    """The environment of a process whose clock is wrong by what is in the file, whenever it looks."""
    return {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Wall:
    """Takes connections on the ORPort of an address of the island, in a relay's name, and says nothing; what a captive portal,
    or a censor, looks like.  Once it is `open` it leads to that relay."""

    def __init__(self, ip, relay):
        self.ip, self.relay, self.open = ip, relay, False
        self.fingerprint = relay.fingerprint
        self._server = socket.create_server((ip, OR_PORT))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        kept = []
        while True:
            near, _ = self._server.accept()
            kept.append(near)
            if self.open:
                far = socket.create_connection((self.relay.ip, OR_PORT))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def fall(self):
        self.open = True


@contextlib.contextmanager
def stopped(proc):
    """As if the machine slept."""
    os.kill(proc.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(proc.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    made = TorNet(tmp_path_factory.mktemp("tor"), "10.77.22", {}, bridges=("bridge", "obfs4"))
    yield made.start()
    made.stop()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A network whose directory is soon out of date."""
    made = TorNet(tmp_path_factory.mktemp("hasty"), "10.77.23", {}, exits=1, relays=2, interval=HASTY)
    yield made.start()
    made.stop()


def test_each_trouble_has_a_name_and_passes(kite, sup, net, hasty, machine, lone_machine, tmp_path):
    ip, far = new_address(), new_address()
    net.names[ALICE], hasty.names[ALICE] = ip, far
    names = ["unplugged", "muted", "walled", "never-plugged", "slow-clock", "fast-clock", "bridge", "obfs4", "no-program", "stale",
             "asleep"]
    services = {name: Kite("http", f"{name}.bob.example", "127.0.0.1:1") for name in names}
    frontend = Frontend(sup, "frontend", ip, list(services.values())).start()
    far_frontend = Frontend(sup, "far-frontend", far, [services["stale"]]).start()
    listed = [node for node in net.nodes if node.listed]
    plain, obfs4 = net.bridges
    wall = Wall(f"{net.subnet}.99", net.auth)
    machines = {name: lone_machine({}) if name in ("bridge", "obfs4") else machine() for name in names}
    # Where the sandbox lets its owner read.
    clocks = {name: tmp_path / name / "state" / f"{name}.offset" for name in ("slow-clock", "fast-clock")}
    for file in clocks.values():
        file.parent.mkdir(mode=0o700, parents=True)
    program = tmp_path / "transport"                 # the sandbox knows it, but it cannot be started yet
    shutil.copyfile(shutil.which("obfs4proxy"), program)

    def backend(name, network=net, to=frontend, env=None, **arti):
        toml = network.arti_toml(tmp_path / f"{name}-arti", **arti)
        return Backend(sup, name, [to.pinned(ALICE)], [services[name]], machine=machines[name], via_tor=toml, env=env)

    def set_clocks(by):
        for file in clocks.values():
            file.write_text(by.replace("SIGN", "-" if file.name.startswith("slow") else "+"))

    def forget():
        hasty.kill([hasty.auth])
        far_frontend.kill()

    def remember():
        hasty.run(hasty.auth)
        far_frontend.start()

    def install():
        """Once there is somebody again whom the program can reach."""
        _, *address = obfs4.entrance
        wait_until(lambda: reachable(tuple(address)), 10, "the bridge is back")
        program.chmod(0o755)

    set_clocks("SIGN400d")
    cases = [
        Case("no-network", backend("unplugged"), machines["unplugged"].unplug, machines["unplugged"].plug),
        Case("guards-down", backend("muted"), machines["muted"].mute, machines["muted"].unmute),
        Case("tor-blocked", backend("walled", caches=[wall]), lambda: None, wall.fall, up=False),
        Case("no-network", backend("never-plugged", caches=listed), machines["never-plugged"].unplug,
             machines["never-plugged"].plug, up=False),
        Case("clock-wrong", backend("slow-clock", env=clock(clocks["slow-clock"])), lambda: None,
             lambda: set_clocks("SIGN0d"), up=False),
        Case("clock-wrong", backend("fast-clock", env=clock(clocks["fast-clock"]), caches=listed), lambda: None,
             lambda: None, up=False),
        Case("bridge-down", backend("bridge", bridge=plain), lambda: net.kill([plain]), lambda: net.run(plain)),
        Case("bridge-down", backend("obfs4", bridge=obfs4), lambda: net.kill([obfs4]), lambda: net.run(obfs4)),
        Case("transport-failed", backend("no-program", bridge=obfs4, transport=str(program)), lambda: None, install,
             up=False),
        Case("directory-expired", backend("stale", hasty, far_frontend,
                                          more='[directory_tolerance]\npost_valid_tolerance = "5 seconds"\n'),
             forget, remember),
    ]
    sleeper = backend("asleep").start()
    for case in cases:
        if case.up:
            case.backend.start()
    for case in cases:
        if case.up:
            case.backend.wait_up(case.service, ALICE)
    sleeper.wait_up(services["asleep"], ALICE)

    with stopped(sleeper.proc):
        for case in cases:
            if case.up:
                case.since = case.backend.proc.mark()
            case.provoke()
            if not case.up:
                case.backend.start()
        for case in cases:
            case.wait_told()
        # By now it has missed all that its frontend waits for.
        frontend.wait_down(services["asleep"], timeout=60)
        marks = [case.backend.proc.mark() for case in cases]
        awake = sleeper.proc.mark()
    for case in cases:
        case.mend()
    sleeper.wait_line("INFO Tor: slept: ", since=awake)
    sleeper.wait_up(services["asleep"], ALICE, since=awake, timeout=PASS_S)
    for case, mark in zip(cases, marks):
        case.wait_passed(mark)

    for name, node in (("bridge", plain), ("obfs4", obfs4)):
        hidden = machines[name]
        assert not strangers(hidden.packets(), {node.entrance} | hidden.own), "a bridge hides every other relay"
        assert node.entrance in set(map(tuple, hidden.packets()))


def test_frontends_that_exits_do_not_reach(kite, sup, net, machine):
    """Another exit is taken; if none goes there, that has a name.  And all guards are lost, and found."""
    ip, hidden = new_address(), machine()
    net.names[CAROL] = ip
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned(CAROL)], [service], machine=hidden,
                      via_tor=net.arti_toml(sup.directory / "arti")).start()
    backend.wait_up(service, CAROL)

    since = backend.proc.mark()
    frontend.kill()
    backend.wait_line(r"WARN \[KITE-F01\] frontend .*{via}.*: frontend-unreachable: .+\(.+\)", CAROL, since=since, timeout=TOR_S)
    assert any((t["last_error"] or "").startswith("[KITE-F01] frontend-unreachable: ") for t in backend.status()["tunnels"])
    *deaf, good = sorted(net.exits)
    with island.severed(deaf, ip):
        since, before = backend.proc.mark(), len(frontend.tunnel_peers())
        frontend.start()
        backend.wait_up(service, CAROL, since=since, timeout=PASS_S)
        frontend.wait_up(service)
        assert set(frontend.tunnel_peers()[before:]) == {good}

    def policy(text):
        """The exits begin anew with it: C tor would take up to a minute to heed a change."""
        net.exit_policy = text
        exits = [node for node in net.nodes if node.role == "exit"]
        net.kill(exits)
        for node in exits:
            net.run(node)

    since = backend.proc.mark()
    frontend.kill()
    backend.wait_line(LOST, CAROL, since=since, timeout=TOR_S)
    policy(f"reject {ip}:*,accept *:*")
    frontend.start()
    backend.wait_line(r"WARN \[KITE-F02\] frontend .*{via}.*: exit-policy: .+\(.+\)", CAROL, since=since, timeout=TOR_S)
    since = backend.proc.mark()
    policy("accept *:*")
    backend.wait_up(service, CAROL, since=since, timeout=PASS_S)

    since = backend.proc.mark()
    net.kill(net.guards)
    case = Case("guards-down", backend, None, None)
    case.since = since
    case.wait_told()
    since = backend.proc.mark()
    for node in net.guards:
        net.run(node)
    case.wait_passed(since)
    assert hidden.log.dials() <= net.relays


def test_an_obsolete_tor_ends_in_order(kite, sup, hasty, machine, tmp_path):
    """The authority begins to demand what this Arti does not speak.  (C tor cannot be told to: its list is a part of
    the program, and one letter of a copy's is changed.)"""
    ip, hidden = new_address(), machine()
    hasty.names[DAVE] = ip
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned(DAVE)], [service], machine=hidden,
                      via_tor=hasty.arti_toml(sup.directory / "arti")).start()
    backend.wait_up(service, DAVE)
    strict = tmp_path / "tor"
    strict.write_bytes(demanding(open(shutil.which("tor"), "rb").read()))
    strict.chmod(0o755)
    hasty.kill([hasty.auth])
    hasty.program = strict
    hasty.run(hasty.auth)
    assert backend.proc.wait(NOTICE_S) == 3, backend.proc.tail()
    said = backend.proc.text()
    assert re.search(r"WARN \[KITE-T11\] Tor: tor-obsolete: .+; install a newer kite", said)
    assert "the backend stops" in frontend.proc.text() or "stopping" in said, "the tunnels were closed"
    # And again: with what is on disk it does not even begin.
    backend.start()
    assert backend.proc.wait(TOR_S) == 3, backend.proc.tail()


def demanding(program):
    """The demand of Link=4, which is in C tor's list for clients, becomes one of Link=3, which Arti does not have."""
    old, new = b"FlowCtrl=1 Link=4 Microdesc=2", b"FlowCtrl=1 Link=3 Microdesc=2"
    assert program.count(old) == 1, "Debian's tor has another list now"
    return program.replace(old, new)
