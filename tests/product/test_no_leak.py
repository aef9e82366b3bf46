"""Proof by capture: whatever happens, a backend in Tor mode sends packets to Tor relays and to nobody else.

The backend lives on a machine that is alone (lone.py): every packet that leaves it is written down, a name
server would answer it, and every address and port of the world would accept it.  The frontends, too, could be
dialled directly, and the name server knows where they are.

The same is measured of pagekite.py's three ways to use Tor, which do leak: docs/measured-leaks.md.

To see the reports:  tests/run product -k no_leak -rP
"""

import contextlib
import time

import pytest

import foolscap_peer
from conftest import new_address
from kite import CONNECTED, LOST, RETRY, Backend, Frontend, Kite
from lone import readable, strangers
from proc import wait_until
from tornet import TorNet

SUBNET = "10.77.21"
ALICE, CAROL = new_address(), new_address()
NAMES = {"alice.example": ALICE}
NOWHERE = "nowhere.example"              # no exit can resolve it; the system's resolver would get an answer
SIZE = 500_000


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A Tor network of this file's own, since it dies here."""
    made = TorNet(tmp_path_factory.mktemp("tor"), SUBNET, NAMES)
    yield made.start()
    made.stop()


class Story:
    """What a machine sent, told in phases; each is judged at its end."""

    def __init__(self, machine, allowed):
        self.machine, self.allowed = machine, allowed | machine.own
        self.told = []

    @contextlib.contextmanager
    def phase(self, name, quiet=False):
        """Strangers in it are an error, and so is silence, unless it is `quiet`: then nothing may leave at all."""
        since, start = self.machine.record.mark(), time.monotonic()
        yield
        packets = self.machine.packets(since)
        bad = strangers(packets, self.allowed)
        self.told.append(f"{name:45} {time.monotonic() - start:5.1f} s {len(packets):6} packets, "
                         f"{sum(bad.values())} of them to strangers")
        print(self.told[-1])
        assert not bad, f"{name}: the machine sent to strangers\n{readable(bad)}"
        assert bool(packets) != quiet, f"{name}: {len(packets)} packets"


def test_relays_and_nobody_else(kite, sup, net, lone_machine):
    hidden = lone_machine({**NAMES, NOWHERE: ALICE})
    story = Story(hidden, net.relays)
    tub = foolscap_peer.TubOrigin(sup, hidden, "tub.bob.example")
    service = Kite("foolscap", "tub.bob.example", tub.address)
    alice = Frontend(sup, "alice", ALICE, [service]).start()
    carol = Frontend(sup, "carol", CAROL, [service]).start()
    # By name, by a name that nobody can find, and by a number that could be dialled as it stands.
    addresses = [alice.pinned("alice.example"), alice.pinned(NOWHERE), carol.pinned()]
    backend = Backend(sup, "backend", addresses, [service], machine=hidden,
                      via_tor=net.arti_toml(sup.directory / "arti"))

    def exchange(seed, *frontends):
        for frontend in frontends:
            foolscap_peer.exchange(sup, tub.furl, {service.name: frontend.ip}, f"{seed}{frontend.ip[-1]}", SIZE)

    def wait_up(since=0, timeout=None):
        for frontend, via in ((alice, "alice.example"), (carol, CAROL)):
            backend.wait_up(service, via, since=since, timeout=timeout)

    with story.phase("before the backend: the node alone", quiet=True):
        pass
    with story.phase("cold bootstrap"):
        backend.start().wait_tor()
    with story.phase("tunnels up: by name, and by number"):
        wait_up()
    since = backend.proc.mark()
    with story.phase("a frontend's name that does not resolve"):
        backend.wait_line(RETRY, NOWHERE, since=since, timeout=60)
        wait_until(lambda: NOWHERE in net.asked, 5, "an exit was asked for that name")
    with story.phase("storage traffic through both"):
        exchange(1, alice, carol)

    since = backend.proc.mark()
    with story.phase("a frontend is killed"):
        alice.kill()
        backend.wait_line(LOST, "alice.example", since=since, timeout=60)
        backend.wait_tries(2, "alice.example", since=since)
        exchange(2, carol)
    with story.phase("that frontend returns"):
        alice.start()
        backend.wait_line(CONNECTED, "alice.example", since=since, timeout=60)
        backend.wait_up(service, "alice.example", since=since)

    since = backend.proc.mark()
    with story.phase("all of Tor is killed"):
        net.kill()
        for via in ("alice.example", CAROL):
            backend.wait_line(LOST, via, since=since, timeout=60)
            backend.wait_tries(3, via, since=since, timeout=60)
    with story.phase("Tor returns"):
        since = backend.proc.mark()
        net.start()
        wait_up(since, 150)
        exchange(3, alice, carol)

    with story.phase("SIGKILL"):
        backend.kill()
        for frontend in (alice, carol):
            frontend.wait_down(service, timeout=30)
    with story.phase("a start after the crash, with what is on disk"):
        backend.start()
        wait_up()
        exchange(4, alice)

    with story.phase("SIGTERM"):
        backend.stop()
    with story.phase("a warm start"):
        backend.start()
        wait_up()
        exchange(5, carol)
    with story.phase("SIGTERM again"):
        backend.stop()
    with story.phase("after it", quiet=True):
        time.sleep(1)                    # nothing to wait for: it is to stay silent

    assert not strangers(hidden.packets(), story.allowed)
    assert not hidden.world.asked and not hidden.world.accepted
    assert "alice.example" in net.asked
    for frontend in (alice, carol):
        peers = frontend.tunnel_peers()
        assert len(peers) >= 4, frontend.proc.tail()
        assert set(peers) <= net.exits
        print(f"{frontend.name} saw {', '.join(sorted(set(peers)))}: exits")
