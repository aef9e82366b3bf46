"""The main job: a Tahoe-LAFS grid whose storage nodes are hidden behind kite and Tor.

Three storage nodes with `force_foolscap = true`, each on a machine of its own
beside its own `kite backend --via-tor`; two frontends, alice and carol, both in
each node's `tub.location`; an introducer, and a client that has neither kite
nor Tor and reaches the nodes by their names at the frontends.

Then a fourth node that speaks Tahoe's HTTPS protocol (GBS), which names no
kite, on a public port of its own; and a fifth whose backend comes to its frontend
through an onion service.

The nodes' own connections, to the introducer and to each other, go into the same
Tor through each backend's SOCKS port.

A tap between kite and each node notes how each visitor begins, so that the
protocol in use is seen, not assumed; a recorder on each machine's cable sees
whatever leaves it; and each party is asked whom it has seen.
"""

import re
import secrets
import shutil
import socket
import time

import pytest

from conftest import ALICE, CAROL, supervised
from island import Machine
from kite import CONNECTED, LOST, RETRY, Backend, Frontend, Kite
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel, new_tub
from traffic import Tap, random_bytes, sha256

NODES = 3
SOCKS_PORT = ("127.0.0.1", 9150)
SIZE = 10_000_000
INTRODUCER = "10.77.5.1"
HOSTS = {"intro.grid.example": INTRODUCER, "*.alice.example": ALICE, "*.carol.example": CAROL}


class World:
    """The whole grid, ready for use."""

    def __init__(self, sup, tornet, undo):
        self.sup, self.tornet = sup, tornet
        # What the nodes look up, the exits do.
        tornet.names.update({"intro.grid.example": INTRODUCER},
                            **{f"tahoebob{i}.{f}.example": ip for i in range(NODES)
                               for f, ip in (("alice", ALICE), ("carol", CAROL))})
        self.frontends = {}
        secret = secrets.token_hex(16)
        for name, ip in (("alice", ALICE), ("carol", CAROL)):
            wild = Kite("foolscap", f"*.{name}.example", None, secret)
            self.frontends[name] = Frontend(sup, name, ip, [wild]).start()
        self.introducer = Introducer(sup, sup.directory / "introducer", HOSTS, "intro.grid.example", INTRODUCER).run()
        self.machines = [Machine(i + 1) for i in range(NODES)]
        for m in self.machines:
            undo(m.close)

        def make_node(i):
            hints = [f"tcp:tahoebob{i}.{f}.example:80" for f in self.frontends]
            return lambda: Storage(sup, sup.directory / f"node{i}", {}, self.machines[i], self.introducer.furl,
                                   hints, force_foolscap=True)

        def make_client():
            return Client(sup, sup.directory / "client", HOSTS, self.introducer.furl, shares=(2, 3, 3))

        *self.nodes, self.client = in_parallel(*(make_node(i) for i in range(NODES)), make_client)
        self.taps, self.backends, self.kites = [], [], []
        for i, (machine, node) in enumerate(zip(self.machines, self.nodes, strict=True)):
            node.change("client", force_foolscap="true")
            node.change("connections", tcp="tor")
            node.change("tor", **{"socks.port": "tcp:%s:%d" % SOCKS_PORT})
            node.run()
            self.taps.append(Tap(machine, node.target))
            undo(self.taps[-1].close)
            self.kites.append({f: Kite("foolscap", f"tahoebob{i}.{f}.example", self.taps[-1].address, secret)
                               for f in self.frontends})
            self.backends.append(Backend(
                sup, f"backend{i}", [f.pinned(f"{name}.example") for name, f in self.frontends.items()],
                list(self.kites[i].values()), machine=machine, socks="%s:%d" % SOCKS_PORT,
                via_tor=tornet.arti_toml(sup.directory / f"backend{i}-tor")).start())
        self.client.run()
        self.wait_flying()
        self.client.wait_connected(NODES)

    def wait_flying(self, *names, since=None):
        """Every node's kite is up at these frontends (all of them, if none is named)."""
        for i, backend in enumerate(self.backends):
            for name in names or self.frontends:
                backend.wait_up(self.kites[i][name], f"{name}.example", since=since[i] if since else 0)
                self.frontends[name].wait_up(self.kites[i][name], timeout=30)

    def marks(self):
        return [b.proc.mark() for b in self.backends]

    def heal(self):
        """Both frontends run and have every kite: where each test begins."""
        dead = [n for n, f in self.frontends.items() if not f.proc.alive()]
        if dead:
            since = self.marks()
            for name in dead:
                self.frontends[name].start()
            self.wait_flying(*dead, since=since)
        self.client.wait_connected(NODES)

    def transfer(self, seed):
        """Upload, download, compare; the seconds that each took."""
        data = random_bytes(seed, SIZE)
        start = time.monotonic()
        cap = self.client.upload(data)
        middle = time.monotonic()
        assert sha256(self.client.download(cap)) == sha256(data)
        took = (round(middle - start, 1), round(time.monotonic() - middle, 1))
        print(f"{SIZE / 1e6:.0f} MB up in {took[0]} s, down in {took[1]} s")
        return took


@pytest.fixture(scope="module")
def whole_world(kite, tornet, tmp_path_factory, request):
    with supervised(tmp_path_factory.mktemp("tahoe")) as sup:
        yield World(sup, tornet, request.addfinalizer)


@pytest.fixture
def world(whole_world):
    whole_world.heal()
    return whole_world


def by(*names):
    """Accepts the status of a foolscap connection by a name at one of these frontends."""
    return lambda status: re.search(rf"Connected to tcp:tahoebob\d\.({'|'.join(names)})\.example:80", status)


def test_foolscap_by_name(world):
    """The client holds foolscap connections by the nodes' names at the frontends, and the nodes see foolscap."""
    world.client.wait_connected(NODES, by("alice", "carol"))
    for tap in world.taps:
        assert tap.protocols() == {"foolscap"}


def test_10_mb(world):
    world.transfer(seed=10)


def test_a_frontend_dies_and_returns(world):
    """Alice is killed: the client fails over to carol.  Alice returns: so do the tunnels, and they carry
    everything once carol is killed in turn."""
    alice, carol = world.frontends["alice"], world.frontends["carol"]
    since = world.marks()
    alice.kill()
    for backend, mark in zip(world.backends, since, strict=True):
        backend.wait_line(LOST, "alice.example", since=mark, timeout=60)
        backend.wait_line(RETRY, "alice.example", since=mark, timeout=60)
    world.client.wait_connected(NODES, by("carol"))
    world.transfer(seed=11)

    since = world.marks()
    alice.start()
    for backend, mark in zip(world.backends, since, strict=True):
        backend.wait_line(CONNECTED, "alice.example", since=mark, timeout=120)
    world.wait_flying("alice", since=since)

    carol.kill()
    world.client.wait_connected(NODES, by("alice"))
    world.transfer(seed=12)


def test_frontends_see_exits_only(world):
    """What a frontend knows of where its tunnels come from."""
    for frontend in world.frontends.values():
        peers = frontend.tunnel_peers()
        assert len(peers) >= NODES, frontend.proc.tail()
        assert set(peers) <= world.tornet.exits
    assert {"alice.example", "carol.example"} <= set(world.tornet.asked)


def peers(address, port):
    """The addresses that have a connection with this server, as the kernel of its machine knows them."""
    def text(field):
        return socket.inet_ntoa(bytes.fromhex(field.split(":")[0])[::-1]), int(field.split(":")[1], 16)
    rows = [line.split() for line in open("/proc/thread-self/net/tcp").read().splitlines()[1:]]
    return {text(row[2])[0] for row in rows if text(row[1]) == (address, port) and row[3] == "01"}


def test_nobody_sees_a_node(world):
    """Each party of the grid says whom it sees: an exit, or nobody.  (The client, which has nothing to hide, comes
    from the address that it connects to: all of it is one machine.)"""
    exits = world.tornet.exits
    hidden = {m.address for m in world.machines}
    introducer = world.introducer.address[1:]
    wait_until(lambda: peers(*introducer) & exits, 60, "the nodes reach the introducer")
    assert peers(*introducer) <= exits | {introducer[0]}
    seen = {"introducer": peers(*introducer)}
    for name, frontend in world.frontends.items():
        log = frontend.proc.log.read_text()
        visitors = set(re.findall(r"visitor for \S+ peer=([\d.]+):", log))
        seen[f"{name}, visitors"], seen[f"{name}, tunnels"] = visitors, set(frontend.tunnel_peers())
        assert visitors & exits, "the nodes reach each other through Tor"
        assert visitors <= exits | {frontend.ip} and seen[f"{name}, tunnels"] <= exits
        assert not any(re.search(rf"\b{re.escape(address)}\b", log) for address in hidden)
    for machine, node in zip(world.machines, world.nodes, strict=True):
        with machine.inside():
            seen[f"node {machine.address}"] = peers(*node.target)
        assert seen[f"node {machine.address}"] == {"127.0.0.1"}, "its visitors come from kite"
    for party, addresses in seen.items():
        print(f"{party} sees {', '.join(sorted(addresses))}")


def test_nothing_leaves_but_to_relays(world):
    """What each machine, node and backend, has sent since it was made."""
    for machine in world.machines:
        dials = machine.log.dials()
        assert dials and dials <= world.tornet.relays


class Lone:
    """One node on a machine of its own, and a client that knows it by `name`; the backend between them is the test's."""

    def __init__(self, sup, request, number, introducer, name, port, force_foolscap):
        intro_name, intro_ip = introducer
        hosts = {intro_name: intro_ip, name: self.frontend_ip(number)}
        self.machine = Machine(NODES + number)
        request.addfinalizer(self.machine.close)
        self.introducer = Introducer(sup, sup.directory / "introducer", hosts, intro_name, intro_ip).run()
        self.node, self.client = in_parallel(
            lambda: Storage(sup, sup.directory / "node", hosts, self.machine, self.introducer.furl,
                            [f"tcp:{name}:{port}"], force_foolscap=force_foolscap),
            lambda: Client(sup, sup.directory / "client", hosts, self.introducer.furl, shares=(1, 1, 1)))
        self.node.run()
        self.tap = Tap(self.machine, self.node.target)
        request.addfinalizer(self.tap.close)

    @staticmethod
    def frontend_ip(number):
        return f"10.77.1.{2 + number}"

    def transfer(self, seed):
        data = random_bytes(seed, SIZE)
        assert sha256(self.client.download(self.client.upload(data))) == sha256(data)


def test_gbs_on_a_port_of_its_own(kite, tornet, sup, request):
    """Tahoe's HTTPS storage protocol, through Tor, to a node that was left at Tahoe's defaults."""
    ip, port, name = Lone.frontend_ip(1), 8443, "gbs.storage.example"
    lone = Lone(sup, request, 1, ("intro.gbs.example", "10.77.5.2"), name, port, force_foolscap=False)
    storage = Kite("tahoe-https", name, lone.tap.address)
    frontend = Frontend(sup, "frontend", ip, [storage], owned={port: storage}).start()
    backend = Backend(sup, "backend", [frontend.pinned("dave.example")], [storage], machine=lone.machine,
                      via_tor=tornet.arti_toml(sup.directory / "tor")).start()
    backend.wait_up(storage, "dave.example")
    frontend.wait_up(storage)
    lone.client.run()
    statuses = lone.client.wait_connected(1)
    assert not any("tcp:" in s for s in statuses), "foolscap was used"

    lone.transfer(seed=13)
    assert lone.tap.protocols() == {"https"}
    assert set(frontend.tunnel_peers()) <= tornet.exits
    assert lone.machine.log.dials() - {lone.introducer.address, ("tcp", ip, port)} <= tornet.relays


def test_through_an_onion_frontend(kite, tornet, sup, request):
    """The tunnel is an onion circuit: no exit has a part in it, and the frontend is told no address at all."""
    ip, port, name = Lone.frontend_ip(2), 80, "tahoebob.onion-frontend.example"
    lone = Lone(sup, request, 2, ("intro.onion.example", "10.77.5.3"), name, port, force_foolscap=True)
    storage = Kite("foolscap", name, lone.tap.address)
    frontend = Frontend(sup, "frontend", ip, [storage], onion=tornet.arti_toml(sup.directory / "frontend-tor")).start()
    onion = frontend.wait_onion()
    assert onion in frontend.status()["addresses"]
    backend = Backend(sup, "backend", [onion], [storage], machine=lone.machine,
                      via_tor=tornet.arti_toml(sup.directory / "tor")).start()
    backend.wait_up(storage, onion, timeout=150)
    frontend.wait_up(storage)
    lone.client.run()
    lone.client.wait_connected(1, lambda status: f"Connected to tcp:{name}:{port}" in status)

    lone.transfer(seed=14)
    assert lone.tap.protocols() == {"foolscap"}
    assert set(frontend.tunnel_peers()) == {"an"}, "an onion circuit, and no address"
    assert lone.machine.log.dials() - {lone.introducer.address, ("tcp", ip, port)} <= tornet.relays


def test_a_grid_known_by_nothing_but_its_tubs(kite, tornet, sup, request):
    """An open, storage-only frontend: no account, no secret, no address; the nodes' own keys, and visits through the
    tunnels. Three nodes on two machines, so that one backend flies two; a client that wants all three for a file."""
    domain, (intro_name, intro_ip) = "open-frontend.example", ("intro.open-frontend.example", "10.77.5.8")
    ip, ports = Lone.frontend_ip(3), (49293, 49293, 49294)
    machines = [Machine(NODES + 3), Machine(NODES + 4)]
    for machine in machines:
        request.addfinalizer(machine.close)
    homes = [machines[0], machines[1], machines[1]]
    keys = [sup.directory / f"node{n}.pem" for n in range(3)]
    tubs = in_parallel(*(lambda key=key: new_tub(key) for key in keys))
    names = [f"{tub}.{domain}" for tub in tubs]
    hosts = {intro_name: intro_ip, f"*.{domain}": ip}
    tornet.names.update({domain: ip, intro_name: intro_ip}, **{name: ip for name in names})
    introducer = Introducer(sup, sup.directory / "introducer", hosts, intro_name, intro_ip).run()
    frontend = Frontend(sup, "frontend", ip, [], tables=f'[open]\ndomain = "{domain}"\n',
                        keys={"policy": "storage-only"}).start()

    # The backends come before their nodes: what is not there yet is asked for again.
    taps, kites = [], []
    for n, key in enumerate(keys):
        key.chmod(0o600)
        taps.append(Tap(homes[n], ("127.0.0.1", ports[n])))
        request.addfinalizer(taps[-1].close)
        kites.append(Kite("foolscap", names[n], taps[-1].address, proof="tub", secret_file=key))
    backends = [Backend(sup, f"backend{m}", [frontend.pinned(domain)], flown, machine=machine, socks="%s:%d" % SOCKS_PORT,
                        via_tor=tornet.arti_toml(sup.directory / f"tor{m}")).start()
                for m, (machine, flown) in enumerate(zip(machines, (kites[:1], kites[1:]), strict=True))]

    def node(n):
        made = Storage(sup, sup.directory / f"node{n}", {}, homes[n], introducer.furl, [f"tcp:{names[n]}:80"],
                       force_foolscap=True)
        made.change("node", **{"tub.port": f"tcp:{ports[n]}:interface=127.0.0.1"})
        made.change("connections", tcp="tor")
        made.change("tor", **{"socks.port": "tcp:%s:%d" % SOCKS_PORT})
        shutil.copy(keys[n], made.dir / "private" / "node.pem")
        return made

    *nodes, client = in_parallel(
        *(lambda n=n: node(n) for n in range(3)),
        lambda: Client(sup, sup.directory / "client", hosts, introducer.furl, shares=(2, 3, 3)))
    for made in nodes:
        made.run()
    client.run()
    for storage, backend in zip(kites, (backends[0], backends[1], backends[1]), strict=True):
        frontend.wait_up(storage, timeout=150)
        backend.wait_up(storage, domain)
    client.wait_connected(3, lambda status: re.search(rf"Connected to tcp:({'|'.join(names)}):80", status))

    # A share at each node, and two of them are enough.
    data = random_bytes(15, SIZE // 10)
    cap = client.upload(data)
    shares = [len(list((made.dir / "storage" / "shares").rglob("[0-9]"))) for made in nodes]
    assert shares == [1, 1, 1]
    assert sha256(client.download(cap)) == sha256(data)
    assert [tap.protocols() for tap in taps] == 3 * [{"foolscap"}]
    assert set(frontend.tunnel_peers()) <= tornet.exits
    for machine in machines:
        dials = machine.log.dials()
        assert dials and dials <= tornet.relays, "neither node nor backend goes out but by Tor"
