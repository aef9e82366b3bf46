"""A fleet of five with 2,000 kites and a real etcd, to which everything happens that can:
`python -m pytest -o timeout=1800 tests/product/long_fleet.py -s`. Not among the tests of every day: it takes some minutes.
What it said is recorded in docs/fleet.md.
"""

import contextlib
import os
import random
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from etcd import Etcd
from fleet_peer import Member
from island import Island, neighbours
from kite import Backend, Kite
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel
from test_graceful import TAKEN, process_gone
from traffic import Busy, HttpOrigin, Visitor, random_bytes, sha256

MEMBERS = 5
KITES = int(os.environ.get("KITE_FLEET_KITES", "2000"))
BACKENDS = 40                  # fifty kites fit into the request for a tunnel, which may have 64 lines
WALKERS = 3                    # visitors at a time, at each member
FORGOTTEN_S = 30               # src/fleet/etcd/mirror.rs
SKIP = int(os.environ.get("KITE_FLEET_SKIP", "0"))          # so many of what happens to it
FILL_S = 180
CALM_S = 15
ETCD_AWAY_S = 60
DOMAIN = "fleet.example"
INTRO, INTRODUCER, NODE = f"intro.{DOMAIN}", "10.77.5.11", f"node.{DOMAIN}"
SIZE = 500_000


class Walkers(Busy):
    """Visitors without a pause at each member that is not said to be away, each time of another kite."""

    def __init__(self, members, kites):
        self.members, self.kites = members, kites
        self.away, self.visits = set(), []
        super().__init__(self._walk, [(n, w) for n in range(len(members)) for w in range(WALKERS)])

    def _walk(self, member, walker):
        rng = random.Random(member * 100 + walker)
        while not self._stop.is_set():
            if member in self.away:
                time.sleep(0.05)
                continue
            kite, began = rng.choice(self.kites), time.monotonic()
            try:
                Visitor(self.members[member].visitors, kite.name).download(1, 2000)
                failed = None
            except (OSError, AssertionError) as e:
                failed = f"{kite.name} at {self.members[member].name}: {e!r}"
                if member in self.away:
                    continue
            with self._lock:
                self.visits.append((began, time.monotonic() - began, failed))
            time.sleep(0.01)

    @contextlib.contextmanager
    def phase(self, what, may_fail_for=0):
        """Says what became of the visits in it; none that began later than so many seconds may have failed."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        time.sleep(0.2)
        with self._lock:
            visits = [v for v in self.visits if start <= v[0] < end]
        failed = [v for v in visits if v[2]]
        times = sorted(took for _, took, why in visits if not why)
        last = max((began - start for began, _, _ in failed), default=0)
        print(f"{what}: {len(visits)} visits in {end - start:.0f} s, {len(failed)} failed"
              + (f", the last one {last:.1f} s after the beginning" if failed else "")
              + f"; {statistics.median(times) * 1e3:.0f} ms in the middle, {times[int(len(times) * .99)] * 1e3:.0f} ms at 99 %, "
                f"{times[-1]:.1f} s at most", flush=True)
        late = [v for v in failed if v[0] - start >= may_fail_for]
        assert not late, late[:5]


def seconds_until(condition, timeout, what, every=0.1):
    began = time.monotonic()
    wait_until(condition, timeout, what, every=every)
    return time.monotonic() - began


def flights(etcd):
    """How many stand there."""
    if not etcd.proc.alive():
        return 0
    return etcd.ctl("get", "kite/kites/", "--prefix", "--keys-only").count("kite/kites/")


def memory(proc):
    with open(f"/proc/{proc.pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))


class Grid:
    """A storage node behind the fleet, and a client that finds it at a member where it does not fly."""

    def __init__(self, sup, at):
        hosts = {INTRO: INTRODUCER, NODE: at.ip}
        introducer = Introducer(sup, sup.directory / "introducer", hosts, INTRO, INTRODUCER, 45011).run()
        node, self.client = in_parallel(
            lambda: Storage(sup, sup.directory / "node", hosts, Island(), introducer.furl, [f"tcp:{NODE}:80"], force_foolscap=True),
            lambda: Client(sup, sup.directory / "client", hosts, introducer.furl, shares=(1, 1, 1)))
        node.change("node", **{"tub.port": "tcp:49311:interface=127.0.0.1"})
        node.run()
        self.client.run()
        self.target, self.seed = "127.0.0.1:49311", 0

    def can(self, what):
        """Does a transfer go well? (Tahoe believes in a connection until it breaks.)"""
        try:
            self.transfer(what)
        except AssertionError:
            return False
        return True

    def transfer(self, what):
        """A file up and down again."""
        self.client.wait_connected(1)
        self.seed += 1
        data, began = random_bytes(self.seed, SIZE), time.monotonic()
        assert sha256(self.client.download(self.client.upload(data))) == sha256(data)
        print(f"  Tahoe, {what}: {SIZE // 1000} kB up and down in {time.monotonic() - began:.1f} s", flush=True)


def test_a_fleet_of_five(kite, sup, machine):
    with neighbours(), HttpOrigin(Island()) as web:
        hall = machine()
        etcd = Etcd(sup, hall.address, hall).start()
        all_kites = Kite("http", f"*.{DOMAIN}", web.address)
        node = Kite("foolscap", NODE, "127.0.0.1:49311")
        members = [Member(sup, f"fe-{n}", machine(), [all_kites, node], etcd, keys={"grace": "15s", "drain": "30s"})
                   for n in range(MEMBERS)]
        for member in members:
            member.start(level="info")
        kites = [Kite("http", f"k{n}.{DOMAIN}", web.address, all_kites.secret) for n in range(KITES)]
        homes = lambda n: (n % MEMBERS, (n + 1) % MEMBERS)
        began = time.monotonic()
        for n in range(BACKENDS):
            Backend(sup, f"backend-{n}", [members[home].pinned() for home in homes(n)], kites[n::BACKENDS]).start()
        grid = Grid(sup, members[3])
        Backend(sup, "node-backend", [members[0].pinned(), members[1].pinned()], [node]).start()
        seconds_until(lambda: flights(etcd) == 2 * KITES + 2, FILL_S, lambda: f"all fly: {flights(etcd)} of {2 * KITES + 2}", 0.5)
        print(f"\n{KITES} kites at two of {MEMBERS} members each stand in etcd {time.monotonic() - began:.0f} s after the first backend's start")
        with Walkers(members, kites) as walkers:
            with walkers.phase("calm"):
                time.sleep(CALM_S)
            grid.transfer("by a member that does not fly it")
            print("  memory, MB: members " + ", ".join(f"{memory(m.proc):.0f}" for m in members) + f"; etcd {memory(etcd.proc):.0f}")
            late = Kite("http", f"late.{DOMAIN}", web.address, all_kites.secret)
            later = Backend(sup, "late", [members[2].pinned()], [late])
            for what in (kill, cut_off, lambda *scene: etcd_away(*scene, late, later), etcd_wiped, upgrade)[SKIP:]:
                what(walkers, members, etcd, grid)
        for member in members:
            assert "panicked" not in member.proc.log.read_text()


def everywhere(walkers, its, members, left):
    """Seconds until each of these kites was reached at another member than the one that is away."""
    began, rng, waiting = time.monotonic(), random.Random(1), list(its)
    while waiting:
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda kite: reached(members[rng.choice(left)], kite), waiting)
            waiting = [kite for kite, was in zip(waiting, found) if not was]
        assert time.monotonic() - began < 60, f"{len(waiting)} kites are not reached: {waiting[0].name}"
    return time.monotonic() - began


def kill(walkers, members, etcd, grid):
    gone = 0
    left = [n for n in range(MEMBERS) if n != gone]
    its = [k for n in range(BACKENDS) if gone in (n % MEMBERS, (n + 1) % MEMBERS) for k in walkers.kites[n::BACKENDS]]
    with walkers.phase("a member killed", may_fail_for=5):
        walkers.away.add(gone)
        members[gone].kill()
        took = everywhere(walkers, its, members, left)
        print(f"  each of its {len(its)} kites was reached at another member within {took:.1f} s", flush=True)
        grid.transfer("with one of its node's two members dead")
        was = 2 * KITES + 2 - len(its) - 1
        took = seconds_until(lambda: flights(etcd) == was, 30, lambda: f"its lease ends: {flights(etcd)}")
        print(f"  its lease had ended {took:.1f} s after that", flush=True)
    with walkers.phase("it is back"):
        members[gone].start(level="info")
        took = seconds_until(lambda: flights(etcd) == 2 * KITES + 2, 60, lambda: f"all are back: {flights(etcd)}")
        print(f"  all flew there again {took:.1f} s after its start", flush=True)
        walkers.away.clear()
        time.sleep(3)


def cut_off(walkers, members, etcd, grid):
    gone = 1
    with walkers.phase("a member cut off from everybody", may_fail_for=15):
        walkers.away.add(gone)
        members[gone].machine.unplug()
        began = time.monotonic()
        took = seconds_until(lambda: grid.can("with one of its node's two members cut off"), 90, "Tahoe goes another way", every=1)
        print(f"  Tahoe had seen that its connection was dead {took:.0f} s after the cut", flush=True)
        time.sleep(max(0, FORGOTTEN_S - (time.monotonic() - began)))
    with walkers.phase("the cable is in again"):
        members[gone].machine.plug()
        took = seconds_until(lambda: flights(etcd) == 2 * KITES + 2, 90, lambda: f"all are back: {flights(etcd)}")
        print(f"  all flew there again after {took:.1f} s", flush=True)
        walkers.away.clear()
        time.sleep(3)


def etcd_away(walkers, members, etcd, grid, late, later):
    with walkers.phase(f"etcd stopped for {ETCD_AWAY_S} s"):
        began = time.monotonic()
        etcd.stop()
        later.start().wait_up(late, members[2].ip)
        grid.transfer("without etcd")
        time.sleep(max(0, ETCD_AWAY_S - (time.monotonic() - began)))
    with walkers.phase("etcd is back"):
        etcd.start()
        took = seconds_until(lambda: reached(members[4], late), 30, "what came meanwhile is reached everywhere")
        print(f"  what came meanwhile was reached at another member {took:.1f} s after etcd's start", flush=True)
        time.sleep(5)


def reached(member, kite):
    try:
        Visitor(member.visitors, kite.name).download(1, 100)
    except (OSError, AssertionError):
        return False
    return True


def etcd_wiped(walkers, members, etcd, grid):
    was = flights(etcd)
    with walkers.phase("etcd stopped, wiped and started"):
        etcd.stop()
        etcd.wipe()
        etcd.start()
        took = seconds_until(lambda: flights(etcd) == was, 60, lambda: f"all stand there again: {flights(etcd)}")
        print(f"  all {was} flights stood in the empty etcd {took:.1f} s after its start", flush=True)
        grid.transfer("with a new etcd")
        time.sleep(FORGOTTEN_S + 5)


def upgrade(walkers, members, etcd, grid):
    successors, was = [], flights(etcd)
    try:
        with walkers.phase("each member upgraded in its turn"):
            for member in members:
                since = member.proc.mark()
                assert "a new frontend has taken over" in member.order("upgrade")
                successors.append(int(member.proc.wait_log(TAKEN, 60, since)[1]))
                wait_until(lambda: member.proc.popen.poll() is not None, 60, "the one before ends")
                wait_until(lambda: flights(etcd) == was, 60, lambda: f"all fly again: {flights(etcd)}", every=0.3)
            grid.transfer("with all members new")
            time.sleep(5)
    finally:
        for pid in successors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in successors:
            wait_until(lambda pid=pid: process_gone(pid), 60, f"process {pid} has not ended")
