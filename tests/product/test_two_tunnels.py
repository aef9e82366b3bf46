"""Two tunnels to a frontend, on circuits of their own: an exit that dies, or falls silent, costs no new visitor."""

import json
import os
import signal
import subprocess
import time

import pytest

import foolscap_peer
from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite
from pagekite_peer import PagekiteFrontend
from proc import wait_until
from tornet import TorNet
from traffic import HttpOrigin, Visitor

NAME = "tub.bob.example"
BACK_S = 90            # a lost or replaced tunnel is there again
AWAY_S = 20            # the first visitor into a dead tunnel: it is asked, suspected, and left
STARTS = 8             # backends that may choose one exit for both tunnels, before one chooses two


@pytest.fixture(scope="module")
def own_net(tmp_path_factory):
    """A network of this file's own, since exits die here."""
    made = TorNet(tmp_path_factory.mktemp("tor"), "10.77.24", {}, exits_are_kin=True)
    yield made.start()
    made.stop()


@pytest.fixture
def flying(kite, sup, machine, own_net):
    """A backend whose two tunnels come from two exits."""
    hidden = machine()
    tub = foolscap_peer.TubOrigin(sup, hidden, NAME)
    service = Kite("foolscap", NAME, tub.address)
    frontend = Frontend(sup, "frontend", new_address(), [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned()], [service], machine=hidden,
                      via_tor=own_net.arti_toml(sup.directory / "arti"))
    for _ in range(STARTS):
        before = len(frontend.tunnel_peers())
        backend.start()
        wait_until(lambda: len(frontend.tunnel_peers()) >= before + 2, BACK_S, lambda: backend.proc.tail())
        wait_until(lambda: backend.tunnels() == ["up", "up"], 10, backend.status)
        peers = frontend.tunnel_peers()[-2:]
        if len(set(peers)) == 2:
            return tub, frontend, backend, peers
        backend.stop()
    raise AssertionError(f"{STARTS} backends had both tunnels through one exit")


def exit_at(net, ip):
    """The process of the exit that shows this address."""
    node = next(n for n in net.nodes if n.ip == ip)
    return next(p for p in net.sup.procs if p.name == node.name)


def visit(sup, tub, frontend, seed):
    """A client that has never been here; how long it took, in seconds."""
    began = time.monotonic()
    foolscap_peer.exchange(sup, tub.furl, {NAME: frontend.ip}, seed, 20_000)
    return time.monotonic() - began


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_losing_one_circuit_loses_no_new_visitor(flying, sup, own_net, how):
    tub, frontend, backend, peers = flying
    calm = visit(sup, tub, frontend, 1)
    before = len(frontend.tunnel_peers())
    victim = exit_at(own_net, peers[0])
    if how == "killed":
        victim.kill()
    else:
        os.kill(victim.pid, signal.SIGSTOP)
    try:
        took = [visit(sup, tub, frontend, 10 + i) for i in range(6)]
        assert max(took) < AWAY_S, f"a new visitor was kept waiting: {took}"
        wait_until(lambda: len(frontend.tunnel_peers()) > before, BACK_S, lambda: backend.proc.tail(60))
        wait_until(lambda: backend.tunnels() == ["up", "up"], BACK_S, backend.status)
        assert visit(sup, tub, frontend, 20) > 0
        assert frontend.tunnel_peers()[-1] != peers[0]
    finally:
        if how == "silent":
            os.kill(victim.pid, signal.SIGCONT)
        else:
            own_net.sup.procs.remove(victim)
            own_net.sup.spawn(victim.name, victim.argv)
    said = backend.status()
    assert said["exit status"] == 0 and said["via"] == "Tor" and said["tor"]["ready"] and not said["tor"]["refused"]
    ages = [tunnel["circuit_age"] for tunnel in said["tunnels"]]
    assert None not in ages and min(ages) < max(ages), "one circuit is younger than the other"
    print(f"exit {how}: a visit took {calm:.1f} s before, {', '.join(f'{t:.1f}' for t in took)} s after")


def test_an_old_frontend_gets_one_tunnel(kite, sup):
    """pagekite.py has never heard of the second."""
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = PagekiteFrontend(sup, "frontend", new_address(), [service]).start()
        backend = Backend(sup, "backend", [frontend.plain()], [service], tunnels=2).start()
        backend.wait_up(service, frontend.ip)
        Visitor(frontend.visitors, service.name).download(1, 1000)
        assert backend.tunnels() == ["up", "idle"]
        assert backend.status()["exit status"] == 0


def test_status_says_how_it_is(kite, sup):
    """In direct mode, of both roles; and that there is nobody, when there is nobody."""
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", new_address(), [service]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
        backend.wait_up(service, frontend.ip)
        Visitor(frontend.visitors, service.name).upload(1, 1000)
        said = backend.status()
        assert said["exit status"] == 0 and said["via"] == "direct" and said["tor"] is None
        tunnel, = said["tunnels"]
        assert (tunnel["state"], tunnel["kites"], tunnel["tunnel"]) == ("up", ["http:web.bob.example"], 1)
        assert tunnel["circuit_age"] is None
        assert os.stat(backend.state / "backend.sock").st_mode & 0o777 == 0o600
        text = subprocess.run([kite, "status", "--state-dir", backend.state], capture_output=True, text=True, check=True)
        assert "hidden: NO" in text.stdout and "flies http:web.bob.example" in text.stdout
        public = subprocess.run([kite, "status", "--json", "--state-dir", frontend.state], capture_output=True, check=True)
        shown, = json.loads(public.stdout)
        assert shown["backends"][0]["kites"] == ["http:web.bob.example"]
        assert shown["addresses"] == [frontend.pinned(port=port) for port in frontend.ports]

        frontend.stop()
        wait_until(lambda: backend.status()["exit status"] == 1, 10, "the loss is seen")
        tunnel, = backend.status()["tunnels"]
        assert tunnel["state"] in ("waiting", "dialling") and tunnel["last_error"]
        backend.stop()
    gone = subprocess.run([kite, "status", "--state-dir", backend.state], capture_output=True, text=True)
    assert gone.returncode == 1 and "no kite" in gone.stderr
