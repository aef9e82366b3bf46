"""Without Tor there is no way out: a backend waits, tries again, and never dials directly.

On a Tor network of their own, which these tests kill.  The proof is the record
of the hidden machine's cable: relays are all it ever dials.  The frontend's
address is even one that the machine could reach, and its name is one that only
the exits can find.
"""

import re
import time

import pytest

from conftest import new_address
from kite import LOST, RETRY, TOR_READY, Backend, Frontend, Kite
from proc import wait_until
from tornet import TorNet
from traffic import MIB, HttpOrigin, Visitor

NAME = "mortal.example"
WATCH_S = 20


@pytest.fixture
def mortal(tmp_path):
    """Makes the network; whether and when it runs is up to the test."""
    made = []

    def make(ip):
        made.append(TorNet(tmp_path / "tor", "10.77.20", {NAME: ip}, exits=2))
        return made[-1]

    yield make
    for net in made:
        net.stop()


def retries(backend, since):
    return len(re.findall(RETRY.format(via=NAME), backend.proc.text(since)))


def test_tor_dies_and_returns(kite, sup, machine, mortal):
    ip, hidden = new_address(), machine()
    net = mortal(ip).start()
    with HttpOrigin(hidden) as web:
        service = Kite("http", "web.bob.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        backend = Backend(sup, "backend", [frontend.pinned(NAME)], [service], machine=hidden,
                          via_tor=net.arti_toml(sup.directory / "arti")).start()
        backend.wait_up(service, NAME)
        frontend.wait_up(service)
        visitor = Visitor(frontend.visitors, service.name)
        visitor.download(seed=1, size=MIB)

        since, dialled, peers = backend.proc.mark(), hidden.log.mark(), len(frontend.tunnel_peers())
        net.kill()
        frontend.wait_down(service, timeout=60)
        backend.wait_line(LOST, NAME, since=since, timeout=60)
        assert visitor.ask("GET", "/bytes/1/1", timeout=10)[0] == 503
        time.sleep(WATCH_S)
        wait_until(lambda: retries(backend, since) >= 2, 60, "it tries again and again", every=1)
        assert backend.proc.alive()
        assert hidden.log.dials(dialled) <= net.relays
        assert len(frontend.tunnel_peers()) == peers

        since = backend.proc.mark()
        net.start()
        backend.wait_up(service, NAME, since=since, timeout=150)
        frontend.wait_up(service)
        visitor.download(seed=2, size=MIB)
        visitor.upload(seed=3, size=MIB)

        assert set(frontend.tunnel_peers()) <= net.exits
        assert hidden.log.dials() <= net.relays
        backend.stop()
        assert hidden.log.dials() <= net.relays


def test_no_tor_from_the_start(kite, sup, machine, mortal):
    """The frontend is up and could be dialled; Tor is not.  It is there in the end."""
    ip, hidden = new_address(), machine()
    net = mortal(ip)
    service, other = (Kite("http", name, "127.0.0.1:1") for name in ("web.bob.example", "other.bob.example"))
    frontend = Frontend(sup, "frontend", ip, [service, other]).start()
    # One name that only exits could resolve, one address that needs no resolving; a kite for each, as it is one frontend.
    backend = Backend(sup, "backend", [frontend.pinned(NAME), frontend.pinned()], [service, other], machine=hidden,
                      via_tor=net.arti_toml(sup.directory / "arti"), share=True).start()
    wait_until(lambda: hidden.log.dials() & net.relays, 30, "it tries to reach a relay")
    time.sleep(WATCH_S)
    assert backend.proc.alive(), backend.proc.tail()
    assert not re.search(TOR_READY, backend.proc.text())
    assert backend.proc.text().count("WARN [KITE-T02] Tor: tor-unreachable: ") == 1, backend.proc.tail()
    assert backend.status()["tor"]["state"] == "tor-unreachable"
    assert not frontend.tunnel_peers()
    assert hidden.log.dials() <= net.relays
    net.start()
    backend.wait_up(service, NAME, timeout=150)
    backend.wait_up(other, ip)
    wait_until(lambda: backend.status()["tor"]["state"] == "working", 10, backend.status)
    assert set(frontend.tunnel_peers()) <= net.exits
    assert hidden.log.dials() <= net.relays
    backend.stop()
