"""Proof by capture: whatever happens, a backend in Tor mode sends packets to Tor relays and to nobody else.

The backend lives on a machine that is alone (lone.py): every packet that leaves it is written down, a name
server would answer it, and every address and port of the world would accept it.  The frontends, too, could be
dialled directly, and the name server knows where they are.

The same is measured of pagekite.py's three ways to use Tor, which do leak: docs/measured-leaks.md.

To see the reports:  tests/run product -k no_leak -rP
"""

import collections
import concurrent.futures
import time

import pytest

import foolscap_peer
from conftest import new_address
from kite import CONNECTED, LOST, RETRY, Backend, Frontend, Kite
from lone import NAME_SERVER, Story, readable, strangers
from pagekite_peer import PagekiteBackend
from proc import wait_until
from tornet import Circuits, TorNet
from traffic import HttpOrigin, Visitor

SUBNET = "10.77.21"
ALICE, CAROL = new_address(), new_address()
NAMES = {"alice.example": ALICE}
NOWHERE = "nowhere.example"              # no exit can resolve it; the system's resolver would get an answer
SIZE = 500_000
CELL = 498                               # bytes of a stream in one of Tor's cells
WATCH_S = 5                              # without Tor: a try for each frontend has begun (and may last a minute)

# What a user's session may hold; kite must not care.
PROXIES = {"ALL_PROXY": "socks5://192.0.2.90:1080", "http_proxy": "http://192.0.2.90:3128", "NO_PROXY": "*"}

SOCKS = ("10.77.3.1", 9050)              # a stock Tor client's port, for pagekite.py
POOL, ONION, DYNDNS = "pool.example", "abcdefghijklmnop.onion", "dyndns.example"


@pytest.fixture(scope="module")
def mortal_net(tmp_path_factory):
    """A Tor network of this file's own, since it dies here."""
    made = TorNet(tmp_path_factory.mktemp("tor"), SUBNET, dict(NAMES))
    yield made.start()
    made.stop()


@pytest.fixture
def net(mortal_net):
    """The network, alive."""
    return mortal_net if mortal_net.sup.procs else mortal_net.start()


def test_relays_and_nobody_else(kite, sup, net, lone_machine):
    """Each phase of a backend's life is judged by itself, then the whole; and the frontends say whom they saw."""
    hidden = lone_machine({**NAMES, NOWHERE: ALICE})
    story = Story(hidden, net.relays)
    tub = foolscap_peer.TubOrigin(sup, hidden, "tub.bob.example")
    service = Kite("foolscap", "tub.bob.example", tub.address)
    other = foolscap_peer.TubOrigin(sup, hidden, "other.bob.example")
    second = Kite("foolscap", "other.bob.example", other.address)
    alice = Frontend(sup, "alice", ALICE, [service, second]).start()
    carol = Frontend(sup, "carol", CAROL, [service, second]).start()
    # By name, by a name that nobody can find, and by a number that could be dialled as it stands.
    addresses = [alice.pinned("alice.example"), alice.pinned(NOWHERE), carol.pinned()]
    backend = Backend(sup, "backend", addresses, [service], machine=hidden,
                      via_tor=net.arti_toml(sup.directory / "arti"), env=PROXIES)

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
        backend.wait_line(r"WARN \[KITE-F03\] frontend .*{via}.*: name-not-found: ", NOWHERE)
    with story.phase("storage traffic through both"):
        exchange(1, alice, carol)

    since = backend.proc.mark()
    with story.phase("a reload: another kite, and a frontend less"):
        backend.kites.append(second)
        backend.frontends = [alice.pinned("alice.example"), carol.pinned()]
        assert backend.reload().splitlines() == [
            f"frontend {alice.pinned(NOWHERE)}: removed", f"kite foolscap:{second.name}: added"]
        for via in ("alice.example", CAROL):
            backend.wait_up(second, via, since=since)
        for frontend in (alice, carol):
            foolscap_peer.exchange(sup, other.furl, {second.name: frontend.ip}, f"6{frontend.ip[-1]}", SIZE)
        exchange(6, alice, carol)

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
            backend.wait_line(RETRY, via, since=since, timeout=60)
        mark = hidden.record.mark()
        wait_until(lambda: hidden.record.mark() > mark + 2, 30, "it knocks at the dead relays' doors")
        time.sleep(WATCH_S)
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

    assert not strangers(hidden.packets(), story.allowed)        # nor between the phases
    assert not hidden.world.asked and not hidden.world.accepted
    assert "alice.example" in net.asked
    for frontend in (alice, carol):
        peers = frontend.tunnel_peers()
        assert len(peers) >= 4, frontend.proc.tail()
        assert set(peers) <= net.exits
        print(f"{frontend.name} saw {', '.join(sorted(set(peers)))}: exits")


def test_each_tunnel_has_circuits_of_its_own(kite, sup, net, machine):
    """Through each of the two tunnels to each of six frontends comes an upload of 200 KB, all at once; the exits see twelve
    circuits that carry so much, and none that carries more.  (The frontends are six names of one address and port.)"""
    number, size, ip, hidden = 6, 200_000, new_address(), machine()
    least = size // CELL
    net.names.update({f"f{i}.example": ip for i in range(number)})
    with HttpOrigin(hidden) as web, Circuits(net) as circuits:
        kites = [Kite("http", f"k{i}.bob.example", web.address, "of all of them") for i in range(number)]
        frontend = Frontend(sup, "frontend", ip, [Kite("http", "*.bob.example", None, "of all of them")]).start()
        backend = Backend(sup, "backend", [frontend.pinned(f"f{i}.example") for i in range(number)], kites,
                          machine=hidden, via_tor=net.arti_toml(sup.directory / "arti"), share=True).start()
        for i, service in enumerate(kites):
            backend.wait_up(service, f"f{i}.example")
        wait_until(lambda: backend.tunnels() == ["up"] * 2 * number, 60, backend.status)
        # A frontend gives a visitor to the tunnel that has fewer.
        uploads = [Visitor(frontend.visitors, k.name) for k in kites for _ in range(2)]
        with concurrent.futures.ThreadPoolExecutor(len(uploads)) as pool:
            for done in [pool.submit(visitor.upload, 1, size) for visitor in uploads]:
                done.result()
        busy, number = [], len(uploads)

        def counted():
            """An exit tells its counts once a second."""
            busy[:] = sorted(n for n in circuits.cells().values() if n > least // 2)
            return sum(busy) >= number * least and busy[0] >= least

        wait_until(counted, 10, lambda: f"every upload was counted: {busy}")
        print(f"{number} uploads of at least {least} cells; cells of busy circuits: {busy}; "
              f"tunnels by exit: {dict(collections.Counter(frontend.tunnel_peers()))}")
    assert len(busy) == number
    assert busy[-1] < 2 * least
    assert set(frontend.tunnel_peers()) <= net.exits


def test_what_pagekite_leaks(kite, sup, net, lone_machine):
    """The control, and the claim of docs/measured-leaks.md: pagekite.py's ways to use Tor on machines of the same kind.
    The record must show what each leaks, no more and no less."""
    ip, socks, through = new_address(), f"{SOCKS[0]}:{SOCKS[1]}", {}
    net.client(sup, SOCKS)
    named, pool = "--frontend=alice.example:80", f"--frontends=1:{POOL}:80"
    proxy, socksify, torify = f"--proxy=tor:{socks}", f"--socksify={socks}", f"--torify={socks}"
    # flags, environment; then what is to be seen: names asked (KITE is its own), and how the frontend is reached
    cases = {
        "torify": ([named, torify], {}, {"alice.example"}, "never"),
        "torify-pool": ([pool, torify], {}, {POOL}, "never"),
        "proxy": ([named, proxy], {}, {"alice.example"}, "exit"),
        "proxy-pool": ([pool, proxy], {}, {POOL, "KITE"}, "exit"),
        "socksify": ([named, socksify], {}, {"alice.example"}, "exit"),
        "socksify-pool": ([pool, socksify], {}, {POOL, "KITE"}, "exit"),
        "onion": ([f"--frontend={ONION}:80", socksify], {}, {ONION}, "never"),
        "dyndns": ([named, socksify, f"--dyndns=http://{DYNDNS}/%(domain)s/%(sign)s"], {},
                   {"alice.example", DYNDNS}, "exit"),
        "no-proxy": ([named, socksify], {"NO_PROXY": ip}, {"alice.example"}, "direct"),
        "number": ([f"--frontend={ip}:80", socksify], {}, set(), "exit"),
    }
    services = {case: Kite("http", f"{case}.bob.example", "127.0.0.1:1") for case in cases}
    frontend = Frontend(sup, "frontend", ip, list(services.values())).start()
    machines = {case: lone_machine({"alice.example": ip, POOL: ip}) for case in cases}
    pagekites = {case: PagekiteBackend(sup, case, None, [services[case]], machine=machines[case], reach=flags,
                                       env=env).start() for case, (flags, env, _, _) in cases.items()}

    def asked(case):
        return {name.replace(services[case].name, "KITE") for name in machines[case].world.asked}

    def reached(case):
        if f"kite up: http:{services[case].name}" not in frontend.proc.text():
            return "never"
        return "direct" if machines[case].address in frontend.tunnel_peers() else "exit"

    def died(case):
        return "TypeError" in pagekites[case].said()

    def seen():
        return {case: (asked(case), reached(case)) for case in cases}

    def due():
        return all(asked(case) >= names and reached(case) == how and died(case) == ("torify" in case)
                   for case, (_, _, names, how) in cases.items())

    wait_until(due, 60, lambda: f"pagekite.py does as ever: {seen()}", every=0.2)
    for case, (flags, env, _, _) in cases.items():
        bad = strangers(machines[case].packets(), machines[case].own | {("tcp", *SOCKS)})
        through[case] = set(bad)
        print(f"{case}: pagekite {' '.join([f'{k}={v}' for k, v in env.items()] + flags)}\n"
              f"    asked the system's resolver: {', '.join(sorted(asked(case))) or 'nothing'}\n"
              f"    reached the frontend: {dict(never='never', exit='by an exit', direct='directly')[reached(case)]}\n"
              f"{readable(bad)}")
    assert seen() == {case: (names, how) for case, (_, _, names, how) in cases.items()}
    for case, (_, _, names, how) in cases.items():
        assert through[case] == ({("udp", NAME_SERVER, 53)} if names else set()) | (
            {("tcp", ip, 80)} if how == "direct" else set())
