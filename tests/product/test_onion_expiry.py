"""An onion frontend that Tor has forgotten, or cannot reach, is found again by the same address, without a restart."""

import time

import foolscap_peer
import pytest
from clocks import Clock
from conftest import new_address
from kite import TOR_READY, Backend, Frontend, Kite
from proc import wait_until
from tornet import TorNet
from traffic import MIB

HASTY = 20             # seconds between votes
MORNING = 6            # the hour at which the test begins: the service's time period, a day, does not end in it
SLEEP_H = 4
FORGET_S = 20          # relays see their clock, and do what is overdue
RETURN_S = 120         # the service is found again; a try in between may have failed, and is half a minute from the next
NOTICE_S = 150         # a look at the service fails, and Arti is found to be stuck
RENEW_S = 75           # and is replaced
PASS_S = 150           # the guards are back, and so is the service
EXPIRED = r"launching the onion service anew: its descriptor may have expired"
RENEWED = r"launching the onion service anew: Tor has begun anew"
CLOSED = r"an entrance of the onion service closes"
FORGOTTEN = "Removing v3 descriptor"
STORED = "Publish request for HS descriptor handled successfully"
UNKNOWN = "onion-unknown"


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A network whose relays' clocks can be set, and say what they do with descriptors."""
    early = (MORNING - time.gmtime().tm_hour) * 3600
    made = TorNet(tmp_path_factory.mktemp("tor"), "10.77.25", {}, exits=2, relays=3, interval=HASTY, clock=Clock(early))
    yield made.start()
    made.stop()


def test_a_service_whose_descriptor_expired_is_found_again(kite, sup, machine, net):
    """The frontend sleeps for longer than relays remember it, and its circuits live: so Arti, whose timers slept, too,
    uploads nothing for an hour or two.  A tunnel from before stays; who comes for the first time is let in."""
    ip, hidden, near, cold = new_address(), machine(), "near.bob.example", "cold.bob.example"
    clock = Clock(net.clock.ahead, sleep=True)
    tub = foolscap_peer.TubOrigin(sup, hidden, near)
    tub_of_cold = foolscap_peer.TubOrigin(sup, hidden, cold)
    old = Kite("foolscap", near, tub.address)
    new = Kite("foolscap", cold, tub_of_cold.address)

    def arti(name):
        return net.arti_toml(sup.directory / f"{name}-tor", period=24 * 60)

    def backend(name, service):
        return Backend(sup, name, [onion], [service], machine=hidden, via_tor=arti(name),
                       env=clock.environment(sup.directory / name / "state")).start()

    frontend = Frontend(sup, "frontend", ip, [old, new], onion=arti("frontend"),
                        env=clock.environment(sup.directory / "frontend" / "state")).start()
    onion = frontend.wait_onion()
    before = backend("before", old)
    before.wait_up(old, onion)
    frontend.wait_up(old)
    hosts = {near: ip, cold: ip}
    foolscap_peer.exchange(sup, tub.furl, hosts, seed=1, size=MIB)
    holders = [node for node in net.nodes if STORED in net.log(node)]
    assert holders

    net.clock.advance(SLEEP_H * 3600)
    wait_until(lambda: all(FORGOTTEN in net.log(node) for node in holders), FORGET_S, "relays forget the descriptor")
    woken, told, logs = frontend.proc.mark(), before.proc.mark(), {node: len(net.log(node)) for node in holders}
    clock.advance(SLEEP_H * 3600)
    after = backend("after", new)
    after.wait_up(new, onion, timeout=RETURN_S)
    frontend.wait_up(new)
    foolscap_peer.exchange(sup, tub_of_cold.furl, hosts, seed=2, size=MIB)
    frontend.proc.wait_log(EXPIRED, 1, woken)
    assert any(STORED in net.log(node)[logs[node]:] for node in holders), "it was uploaded again"
    assert frontend.proc.text(woken).count(TOR_READY) == 0, "by the same process"

    # Who was there is still there, and needed no descriptor.
    assert before.status()["exit status"] == 0, before.proc.tail()
    foolscap_peer.exchange(sup, tub.furl, hosts, seed=3, size=MIB)
    assert UNKNOWN not in before.proc.text(told)

    # And comes again, which does.  Nothing is left of what the service was before.
    since = frontend.proc.mark()
    before.stop()
    frontend.proc.wait_log(CLOSED, 30, since)
    before.start()
    before.wait_up(old, onion, timeout=RETURN_S)
    foolscap_peer.exchange(sup, tub.furl, hosts, seed=4, size=MIB)


def test_a_service_outlives_its_arti(kite, sup, machine, net):
    """All guards go, and nobody asks the frontend's Tor for anything.  It finds out by itself, calls it by its name, and
    a fresh Arti has the service, with the same address, when they are back."""
    ip, hidden, name = new_address(), machine(), "tub.bob.example"
    tub = foolscap_peer.TubOrigin(sup, hidden, name)
    service = Kite("foolscap", name, tub.address)
    clock = Clock(net.clock.ahead, sleep=True)
    frontend = Frontend(sup, "frontend", ip, [service], onion=net.arti_toml(sup.directory / "frontend-tor"),
                        env=clock.environment(sup.directory / "frontend" / "state")).start()
    onion = frontend.wait_onion()
    backend = Backend(sup, "backend", [onion], [service], machine=hidden,
                      via_tor=net.arti_toml(sup.directory / "backend-tor"),
                      env=clock.environment(sup.directory / "backend" / "state")).start()
    backend.wait_up(service, onion)
    frontend.wait_up(service)

    since = frontend.proc.mark()
    net.kill(net.guards)
    frontend.proc.wait_log(r"WARN \[KITE-T04\] Tor: guards-down: .+; .+", NOTICE_S, since)
    frontend.proc.wait_log(RENEWED, RENEW_S, since)
    told, since = backend.proc.mark(), frontend.proc.mark()
    for node in net.guards:
        net.run(node)
    backend.wait_up(service, onion, since=told, timeout=PASS_S)
    frontend.wait_up(service, since)
    foolscap_peer.exchange(sup, tub.furl, {name: ip}, seed=5, size=MIB)
