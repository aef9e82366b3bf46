"""The rows that want a Tor network, or a Tahoe node, of their own: `cargo bench --bench tor` starts this.

Everything lives on the island of the product tests, with their network, processes and words for kite.
"""

import contextlib
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "product"))

import island                                                        # noqa: E402
from figures import ROUNDS, Table, verdict                           # noqa: E402
from kite import Backend, Frontend, Kite, binary                     # noqa: E402
from load import Server, download, several, upload, visit            # noqa: E402
from proc import Supervisor, _die_with_parent, wait_until            # noqa: E402
from tahoe import TUB_PORT, Client, Storage, in_parallel             # noqa: E402
from tornet import TorNet                                            # noqa: E402

ALICE, BOB = "10.77.1.1", "10.77.1.3"     # frontends
HOST = ("10.77.1.2", 8000)                # what bare streams lead to
LATE_MS = 100                             # the long way, each way
WINDOW = 1000                             # most cells on the way in a circuit; Tor's own most is endless
BULK = 16_000_000
TAHOE_SIZE = 5_000_000
SETTLE = 3                                # seconds until the memory of a process is looked at
NOBODY = "pb://" + "a" * 32 + "@tcp:127.0.0.1:1/introducer"      # Tahoe wants to be told of one
QUIET = {"KITE_LOG": "info"}


class Late:
    """A bridge at the end of a long way."""

    def __init__(self, bridge, place):
        self.bridge_line = f"{place} {bridge.fingerprint()}"


class Hidden:
    """The hidden machine of hidden.rs: bare streams, and a backend for each kite."""

    def __init__(self, scene, name, arti, kites):
        directory = scene.dir / name
        backends = [Backend(scene.sup, f"{name}-{k.name}", [scene.frontend.pinned()], [k], via_tor=arti,
                            tunnels=tunnels) for k, tunnels in kites]
        log = open(scene.dir / f"{name}.log", "wb")
        self.popen = subprocess.Popen(
            [os.environ["KITE_BENCH"], "hidden", arti, directory, HOST[0], str(HOST[1]), *(b.file for b in backends)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=_die_with_parent)
        assert self.popen.stdout.readline() == "ready\n", f"see {log.name}"
        for k, tunnels in kites:
            said = "" if tunnels == 1 else f", by {tunnels} tunnels now"
            scene.frontend.proc.wait_log(rf"kite up: {k.wire}:{re.escape(k.name)}{said}", 90)

    def ask(self, *words):
        print(*words, file=self.popen.stdin, flush=True)
        return [float(word) for word in self.popen.stdout.readline().split()]


class Scene:
    """What rows share, made when first asked for."""

    def __init__(self, directory, undo):
        self.dir, self.undo = directory, undo
        self.sup = Supervisor(directory)
        undo.callback(self.sup.stop_all)
        self.origin = Server(("127.0.0.1", 0))
        self.host = Server(HOST)
        self.place = "%s:%d" % self.origin.address
        self.kites = [(Kite("http", f"{name}.kite.test", self.place), tunnels)
                      for name, tunnels in (("one", 1), ("two", 2), ("near", 1))]
        self.frontend = Frontend(self.sup, "frontend", ALICE, [k for k, _ in self.kites]).start(level="info")
        self._made = {}

    def once(self, make):
        if make not in self._made:
            self._made[make] = make()
        return self._made[make]

    @property
    def net(self):
        return self.once(self._make_net)

    def _make_net(self):
        net = TorNet(self.dir / "tor", "10.77.0", {}, bridges=("bridge",),
                     params=f"cc_cwnd_max={WINDOW} cc_ss_max={WINDOW}")
        self.undo.callback(net.stop)
        return net.start()

    @property
    def near(self):
        """A hidden machine beside its guard, with one tunnel."""
        return self.once(self._make_near)

    def _make_near(self):
        return Hidden(self, "near", self.net.arti_toml(self.dir / "near-arti"), self.kites[2:])

    @property
    def far(self):
        """A hidden machine far from its bridge; a kite with one tunnel, and a kite with two."""
        return self.once(self._make_far)

    def _make_far(self):
        bridge = self.net.bridges[0]
        _, ip, port = bridge.entrance
        relay = subprocess.Popen([os.environ["KITE_BENCH"], "delay", f"{ip}:{port}", str(LATE_MS), "0"],
                                 stdout=subprocess.PIPE, text=True, preexec_fn=_die_with_parent)
        self.undo.callback(relay.kill)
        late = Late(bridge, relay.stdout.readline().strip())
        return Hidden(self, "far", self.net.arti_toml(self.dir / "far-arti", bridge=late), self.kites[:2])


def cpu_of(pid):
    """CPU seconds of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle():
    """Seconds that the cores have been idle, all together."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def stream(scene):
    """One stream through kite, beside a bare stream of the same Arti."""
    hidden, to, name = scene.near, scene.frontend.visitors, scene.kites[2][0].name
    speed, cpu = Table("MB/s"), Table("CPU s/GB")
    ways = [("down", "bare", lambda: hidden.ask("send", 1, BULK)[0]),
            ("down", "kite", lambda: download(to, name, BULK)),
            ("up", "bare", lambda: hidden.ask("take", 1, BULK)[0]),
            ("up", "kite", lambda: upload(to, name, BULK))]
    for _, _, transfer in ways:                  # circuits learn their windows
        transfer()
    parties = {"hidden side": hidden.popen.pid, "frontend": scene.frontend.proc.pid}
    for _ in range(ROUNDS):
        for what, route, transfer in ways:
            before = {party: cpu_of(pid) for party, pid in parties.items()}
            speed.add(what, route, BULK / transfer() / 1e6)
            for party, pid in parties.items():
                cpu.add(f"{what}, {party}", route, (cpu_of(pid) - before[party]) / BULK * 1e9)
    speed.print()
    cpu.print()
    for what in ("down", "up"):
        speed.ratio(what, "kite", "bare", least=0.95)


def circuits(scene):
    """Two tunnels on two circuits, beside one, where the window of a circuit is the limit."""
    hidden, to, (one, two) = scene.far, scene.frontend.visitors, [k.name for k, _ in scene.kites[:2]]
    visitors, size = 4, 1_500_000
    total = visitors * size
    speed, free = Table("MB/s"), Table("")
    ways = [(what, route, transfer) for what, ask, visit_ in (("down", "send", download), ("up", "take", upload))
            for route, transfer in (
                ("bare, one circuit", lambda ask=ask: hidden.ask(ask, 1, total)[0]),
                ("bare, two circuits", lambda ask=ask: hidden.ask(ask, 2, total // 2)[0]),
                ("kite, one tunnel", lambda v=visit_: several(visitors, v, to, one, size)),
                ("kite, two tunnels", lambda v=visit_: several(visitors, v, to, two, size)))]
    for _, _, transfer in ways:
        transfer()
    rtt = statistics.median(hidden.ask("echo", 10))
    for _ in range(ROUNDS):
        for what, route, transfer in ways:
            before = idle()
            took = transfer()
            free.add(f"{what}: share idle", route, (idle() - before) / took / os.cpu_count())
            speed.add(what, route, total / took / 1e6)
    speed.print()
    free.print()
    print(f"  a circuit's window of {WINDOW} cells, over {rtt * 1000:.0f} ms: "
          f"{WINDOW * 498 / rtt / 1e6:.2f} MB/s at most")
    for what in ("down", "up"):
        speed.ratio(what, "kite, one tunnel", "bare, one circuit", least=0.95)
        speed.ratio(what, "bare, two circuits", "bare, one circuit")
        speed.ratio(what, "kite, two tunnels", "kite, one tunnel", least=1.7)


def first_byte(scene):
    """From a visitor's dial to the first byte, beside the round trip of an open stream and the origin's own time."""
    def knock(address, name):
        began = time.monotonic()
        with visit(address, name, "/down/1") as conn:
            conn.recv(1)
            return time.monotonic() - began

    for hidden, kite, way in ((scene.near, scene.kites[2][0], "near"), (scene.far, scene.kites[0][0], "far")):
        table = Table("ms")
        knock(scene.frontend.visitors, kite.name)
        for _ in range(ROUNDS):
            table.add(way, "round trip", statistics.median(hidden.ask("echo", 10)) * 1e3)
            table.add(way, "origin", statistics.median(knock(scene.origin.address, "x") for _ in range(10)) * 1e3)
            table.add(way, "first byte", statistics.median(
                knock(scene.frontend.visitors, kite.name) for _ in range(10)) * 1e3)
        table.print()
        verdict(f"{way}: first byte / (round trip + origin)",
                table.of(way, "first byte") / (table.of(way, "round trip") + table.of(way, "origin")), most=1)


def tahoe(scene):
    """5 MB to a Tahoe node and back: behind kite, beside the same node reached directly."""
    node = Storage(scene.sup, scene.dir / "node", {}, None, NOBODY, ["tcp:127.0.0.1:%d" % TUB_PORT], force_foolscap=True)
    node.run()
    furl = wait_until(lambda: _read(node.dir / "private" / "storage.furl"), 30, node.proc.tail)
    kites = {route: Kite("foolscap", f"{route.split()[-1].lower()}.tahoe.test", "%s:%d" % node.target)
             for route in ("kite, plain", "kite, pinned", "kite, Tor")}
    frontend = Frontend(scene.sup, "tahoe-frontend", BOB, list(kites.values())).start(level="info")
    places = {"direct": "%s:%d" % node.target}
    for route, kite in kites.items():
        arti = scene.net.arti_toml(scene.dir / "tahoe-arti") if route == "kite, Tor" else None
        address = frontend.plain() if route == "kite, plain" else frontend.pinned()
        Backend(scene.sup, kite.name, [address], [kite], via_tor=arti, env=QUIET).start().wait_up(kite, BOB)
        places[route] = f"{kite.name}:80"
    makers = [lambda port=port, place=place: _tahoe_client(scene, node, furl, place, port)
              for port, place in enumerate(places.values(), 45100)]
    clients = dict(zip(places, in_parallel(*makers), strict=True))
    for client in clients.values():
        client.run()
    for client in clients.values():
        client.wait_connected(1)
    table = Table("s")
    for turn in range(ROUNDS + 1):
        for route, client in clients.items():
            data = os.urandom(TAHOE_SIZE)
            began = time.monotonic()
            cap = client.upload(data)
            middle = time.monotonic()
            assert client.download(cap) == data
            if turn:                             # the first is for all that is done once
                table.add("up", route, middle - began)
                table.add("down", route, time.monotonic() - middle)
    table.print()
    for route in kites:
        for what in ("up", "down"):
            # Tor has no goal: a node that is reached directly has no three relays before it.
            table.ratio(what, route, "direct", **({} if route == "kite, Tor" else {"most": 1.5}))


def _tahoe_client(scene, node, furl, place, port):
    """A client that knows the node by one address, and needs no introducer."""
    client = Client(scene.sup, scene.dir / f"client-{port}", {"*.tahoe.test": BOB}, NOBODY, port, shares=(1, 1, 1))
    key = _read(node.dir / "node.pubkey").removeprefix("pub-")
    furl = re.sub(r"@[^/]*/", f"@tcp:{place}/", furl)
    (client.dir / "private" / "servers.yaml").write_text(
        f"storage:\n  {key}:\n    ann:\n      nickname: node\n      anonymous-storage-FURL: {furl}\n")
    return client


def _read(path):
    return path.read_text().strip() if path.exists() else ""


def start(scene):
    """From the start of the process to the first kite in the air; what it then has of memory; its size."""
    table, memory = Table("s"), Table("MB")
    kite = scene.kites[2][0]
    frontend = Frontend(scene.sup, "start-frontend", BOB, [kite])
    for turn in range(ROUNDS):
        frontend.start(level="info")
        for route, arti in (("direct", None), ("Tor, cold", True), ("Tor, warm", True)):
            name = f"start-{turn}-{route[:3]}"
            if arti:
                arti = scene.net.arti_toml(scene.dir / f"start-arti-{turn}")
            backend = Backend(scene.sup, name, [frontend.pinned()], [kite], via_tor=arti, env=QUIET)
            began = time.time()
            backend.start().wait_up(kite, BOB)
            table.add("first kite", route, _said_at(backend.proc, "kite up") - began)
            if arti:
                table.add("Tor ready", route, _said_at(backend.proc, "Tor ready") - began)
                backend.wait_line(r"\(tunnel 2\): connected", timeout=90)
            time.sleep(SETTLE)
            _weigh(memory, f"backend, {route}", backend.proc.pid)
            if not arti:
                _weigh(memory, "frontend, direct", frontend.proc.pid)
            backend.stop()
        frontend.stop()
    table.print()
    memory.print()
    verdict("MB of the program", os.path.getsize(binary()) / 1e6)
    verdict("seconds to the first kite, direct", table.of("first kite", "direct"))
    verdict("seconds to the first kite, Tor, warm", table.of("first kite", "Tor, warm"))
    for route, most in (("backend, Tor, cold", 40), ("backend, Tor, warm", 40), ("backend, direct", 6),
                        ("frontend, direct", 6)):
        verdict(f"MB resident: {route}", memory.of("resident", route), most=most)
    print("  resident = anonymous (its own) + file (pages of the program that are mapped, which others may share)")


def _said_at(proc, words):
    """When a line was logged, by its own time."""
    stamp = re.search(rf"^(\S+Z) .*{words}", proc.text(), re.M)[1]
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def _weigh(table, route, pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    for what, field in (("resident", "VmRSS"), ("anonymous", "RssAnon"), ("file", "RssFile")):
        table.add(what, route, int(re.search(rf"{field}:\s+(\d+)", status)[1]) * 1024 / 1e6)


ROWS = {"stream": stream, "circuits": circuits, "first-byte": first_byte, "tahoe": tahoe, "start": start}


def main(names):
    unknown = [n for n in names if n not in ROWS]
    if unknown:
        sys.exit(f"no row is called {unknown[0]}; there are {', '.join(ROWS)}")
    island.enter()
    print(f"{ROUNDS} interleaved rounds, {os.cpu_count()} cores; median (least to most)")
    with contextlib.ExitStack() as undo:
        scene = Scene(pathlib.Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="kite-bench-"))), undo)
        for name in names or ROWS:
            print(f"\n## {name}: {ROWS[name].__doc__}", flush=True)
            ROWS[name](scene)


if __name__ == "__main__":
    main(sys.argv[1:])
