"""What an operator sees of a kite: status as text, JSON and on the whole terminal, the start screen, `kite check`."""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.request

import pytest

import foolscap_peer
from conftest import DAVE, new_address
from island import Island
from kite import Backend, Frontend, Kite, binary, run
from proc import wait_until
from screen import COLOURS, Terminal
from test_sandbox import confined
from traffic import Tap

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "docs" / "status-schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
ALLOWED = {"$schema", "$ref", "$defs", "title", "description", "type", "format", "minimum", "maximum", "items", "properties",
           "required", "additionalProperties", "enum", "const", "oneOf", "anyOf", "default"}


def has_type(value, name):
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def validate(value, schema, at="$"):
    """JSON Schema, as far as ours goes; a word that is not known here is an error, and so is a key that it does not name."""
    if schema is True:
        return
    assert not set(schema) - ALLOWED, f"{at}: this validator does not know {set(schema) - ALLOWED}"
    if "$ref" in schema:
        validate(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], at)
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(has_type(value, name) for name in names), f"{at}: {value!r} is no {names}"
    if "enum" in schema:
        assert value in schema["enum"], f"{at}: {value!r}"
    if "const" in schema:
        assert value == schema["const"], f"{at}: {value!r}"
    if "minimum" in schema and has_type(value, "number"):
        assert value >= schema["minimum"], f"{at}: {value}"
    for word in ("oneOf", "anyOf"):
        if word in schema:
            fits = []
            for one in schema[word]:
                try:
                    validate(value, one, at)
                    fits.append(one)
                except AssertionError as e:
                    last = e
            assert len(fits) == 1 if word == "oneOf" else fits, f"{at}: {len(fits)} of {word}: {last}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        missing = set(schema.get("required", ())) - set(value)
        assert not missing, f"{at}: {missing} missing"
        if known:
            assert set(value) <= set(known), f"{at}: {set(value) - set(known)} is not in the schema"
        for key, one in value.items():
            more = schema.get("additionalProperties")
            if key in known or isinstance(more, dict):
                validate(one, known.get(key, more), f"{at}.{key}")
    if isinstance(value, list) and "items" in schema:
        for n, one in enumerate(value):
            validate(one, schema["items"], f"{at}[{n}]")


def tub_of(tub):
    return re.match(r"pb://([a-z2-7]{32})@", tub.furl)[1]


class Scene:
    """A Tub behind a kite that visits itself, in direct mode."""

    def __init__(self, sup, name="tub.bob.example", **keys):
        self.tub = foolscap_peer.TubOrigin(sup, Island(), name)
        self.kite = Kite("foolscap", name, self.tub.address, tub=tub_of(self.tub))
        self.frontend = Frontend(sup, "frontend", new_address(), [self.kite], log_peers=False).start()
        self.backend = Backend(sup, "backend", [self.frontend.pinned()], [self.kite], probe={"enabled": True}, **keys)

    def start(self):
        self.backend.start()
        self.backend.wait_up(self.kite, self.frontend.ip)
        return self

    def usual(self):
        """Where the backend's file is the usual one."""
        place = self.backend.dir / "usual"
        place.mkdir(exist_ok=True)
        (place / "backend.toml").write_text(self.backend.file.read_text())
        return place

    def probes(self):
        return self.backend.status()["kites"][0]["probes"]

    def wait_proven(self):
        wait_until(lambda: self.probes(), 20, lambda: self.backend.proc.tail())
        assert [p["outcome"] for p in self.probes()] == ["proven"], self.probes()


@pytest.fixture
def scene(kite, sup):
    return Scene(sup)


def check(backend, status, *flags):
    return run("check", "--direct", "--config", backend.file, *flags, status=status)


def test_status(scene, sup):
    """What passed, by what, and that it is proven; as the schema says, and without anybody's address."""
    unproven = run("tahoe", "--config", scene.backend.file, "--via-tor", "--socks-listen", "127.0.0.1:9150", status=0)
    assert "# tub.location is not proven: no kite runs" in unproven
    scene.start().wait_proven()
    foolscap_peer.exchange(sup, scene.tub.furl, {scene.kite.name: scene.frontend.ip}, "1", 200_000)

    def left():
        return scene.backend.status()["traffic"]["open"] == 0
    wait_until(left, 15, scene.backend.status)
    for role in (scene.backend, scene.frontend):
        said = subprocess.run([binary(), "status", "--json", "--state-dir", role.state], capture_output=True, text=True)
        whole = json.loads(said.stdout)
        validate(whole, SCHEMA)
        one = whole[0]
        assert one["traffic"]["visitors"] == 2, one["traffic"]                  # our own, and the caller
        for way in ("from_visitors", "to_visitors"):
            assert 200_000 < one["traffic"][way] < 300_000, one["traffic"]
        assert sum(k["traffic"]["to_visitors"] for k in one["kites"]) == one["traffic"]["to_visitors"]
    assert scene.frontend.ip not in said.stdout.replace(scene.frontend.pinned(), "").replace(
        scene.frontend.pinned(port=80), ""), "a visitor's address, who came from there"
    text = run("status", "--state-dir", scene.backend.state, status=0)
    for wanted in ("hidden: NO", "visitors: 2,", f"foolscap:{scene.kite.name}: flies on", "speaks foolscap",
                   f"through {scene.frontend.pinned()}: proven, "):
        assert wanted in text, text
    assert one["role"] == "frontend" and "through" not in run("status", "--state-dir", scene.frontend.state, status=0)
    # The state directory is the one that the usual file names.
    assert "hidden: NO" in run("status", status=0, env={"CONFIGURATION_DIRECTORY": str(scene.usual())})
    broken = json.loads(json.dumps(whole))
    broken[0]["kites"][0]["tunnels"] = "many"
    with pytest.raises(AssertionError):
        validate(broken, SCHEMA)

    # The start screen, in the log since there is no terminal; and the lines, now that they are proven.
    scene.backend.proc.wait_log("reachable\\?", 40)
    log = scene.backend.proc.text()
    assert f"tub.location = tcp:{scene.kite.name}:80" in log
    assert "reachable?      yes" in log and "hidden?         NO" in log
    lines = run("tahoe", "--config", scene.backend.file, "--via-tor", "--socks-listen", "127.0.0.1:9150", status=0)
    assert "# tub.location is proven" in lines, lines
    other = run("tahoe", "--config", scene.backend.file, "--via-tor", "--socks-listen", "127.0.0.1:9150",
                "--public-port", "8080", status=0)
    assert "# tub.location is not proven" in other, other


def test_scores_outlive_a_restart(scene):
    """What the visits of one run found is known in the next, before its own; and a damaged file stops nobody."""
    scene.start().wait_proven()
    kept = pathlib.Path(scene.backend.state) / "backend-scores"
    wait_until(kept.exists, 10, lambda: scene.backend.proc.tail())
    assert kept.stat().st_mode & 0o777 == 0o600
    assert f"{scene.frontend.pinned()} scores 100 of 100" in run("status", "--state-dir", scene.backend.state, status=0)
    scene.backend.proc.stop()
    scene.backend.probe = {"enabled": False}
    scene.backend.write()
    scene.start()
    score = scene.backend.status()["frontends"][0]["score"]
    assert (score["standing"], score["points"]) == ("good", 100)
    assert scene.backend.status()["kites"][0]["probes"] == []
    scene.backend.proc.stop()
    kept.write_text(kept.read_text()[:-9])
    scene.start()
    scene.backend.proc.wait_log("KITE-C58", 10)
    assert scene.backend.status()["frontends"][0]["score"] is None


class Middlebox(Tap):
    """Stands at the frontend's port for visitors, and hangs up, writes a header of its own, or lets pass."""

    mode = "hang-up"

    def _passed(self, first):
        return {"hang-up": b"", "write": first.replace(b"\r\n", b"\r\nX-Seen: 1\r\n", 1), "pass": first}[self.mode]


def test_a_frontend_that_does_not_do_is_marked_wherever_it_stands(scene):
    """First its visitors are lost, then they come with a header too much, and then all is well again."""
    middlebox = Middlebox(Island(), scene.frontend.visitors, (scene.frontend.ip, 8081))
    scene.backend.probe = {"enabled": True, "public_port": 8081}
    scene.backend.write()
    web = "127.0.0.1:9488"
    scene.backend.file.write_text(f'{scene.backend.file.read_text()}\n[metrics]\nlisten = "{web}"\n')
    at = scene.frontend.pinned()

    def visited():
        """By another run, whose first visit it is."""
        scene.start()
        wait_until(scene.probes, 20, lambda: scene.backend.proc.tail())
        whole = scene.backend.status()
        status = whole.pop("exit status")
        validate([whole], SCHEMA)
        return whole["frontends"][0]["score"], run("status", "--state-dir", scene.backend.state, status=status)

    def measured(name):
        page = urllib.request.urlopen(f"http://{web}/metrics", timeout=10).read().decode()
        return float(re.search(rf'^{name}{{frontend="{re.escape(at)}"}} (\S+)$', page, re.M)[1])

    score, _ = visited()
    assert (score["standing"], score["points"]) == ("good", 0), "one visit condemns nobody"
    scene.backend.proc.wait_log("a visitor of our own did not come through; making another tunnel", 10)
    scene.backend.stop()
    score, text = visited()
    assert (score["standing"], score["points"]) == ("poor", 0) and f"{at} scores 0 of 100, POOR" in text
    scene.backend.proc.wait_log(rf"WARN \[KITE-F56\] {re.escape(at)} does poorly", 5)
    assert (measured("kite_frontend_score"), measured("kite_frontend_astray")) == (0, 0)
    scene.backend.stop()

    middlebox.mode = "write"
    score, text = visited()
    assert score["standing"] == "astray" and score["astray"] == [f"foolscap:{scene.kite.name}"]
    assert f"leads ASTRAY: foolscap:{scene.kite.name}" in text, text
    scene.backend.proc.wait_log(rf"WARN \[KITE-F57\] {re.escape(at)} leads visitors astray", 5)
    assert measured("kite_frontend_astray") == 1
    lines = run("tahoe", "--config", scene.backend.file, "--via-tor", "--socks-listen", "127.0.0.1:9150", status=0)
    assert "# tub.location is not proven" in lines
    terminal = Terminal([binary(), "status", "--watch", "--state-dir", str(scene.backend.state)], {**os.environ, "TERM": "xterm-256color"})
    try:
        terminal.wait("score", "q leaves")
    finally:
        terminal.close()
    scene.backend.stop()

    middlebox.mode = "pass"
    score, text = visited()
    assert score["standing"] == "poor" and 0 < score["points"] < 75 and score["astray"] == [] and "ASTRAY" not in text
    assert 0 < measured("kite_frontend_score") < 0.75 and measured("kite_frontend_astray") == 0


def test_watch(scene):
    scene.start().wait_proven()
    argv = [binary(), "status", "--watch", "--state-dir", str(scene.backend.state)]
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color"}
    terminal = Terminal(argv, env)
    try:
        terminal.wait("hidden: NO", scene.frontend.ip, f"foolscap:{scene.kite.name}", "proven", "from visitors", "q leaves")
        assert COLOURS.search(terminal.raw)
        terminal.resize(30, 100)
        terminal.proc.send_signal(signal.SIGWINCH)
        terminal.read(1)
        terminal.press(b"q")
        assert terminal.ended() == (0, True), terminal.shown
        assert b"\x1b[?1049l" in terminal.raw, "the screen of before is back"
    finally:
        terminal.close()
    for leave in (lambda t: t.press(b"\x03"), lambda t: t.proc.send_signal(signal.SIGTERM)):
        terminal = Terminal(argv, env | {"NO_COLOR": "1"})
        try:
            terminal.wait("hidden: NO")
            leave(terminal)
            assert terminal.ended() == (0, True), terminal.shown
            assert not COLOURS.search(terminal.raw)
        finally:
            terminal.close()
    assert "terminal" in run("status", "--watch", "--state-dir", scene.backend.state, status=2)


def test_start_screen(scene):
    """On a terminal the answers to the five questions stand together, whatever bars were there before."""
    terminal = Terminal([binary(), "backend", "--config", str(scene.backend.file)])
    try:
        terminal.wait("hidden?         NO", "reachable?      yes", "tahoe.cfg", timeout=60)
        lines = terminal.shown.replace("\r", "").splitlines()
        first = next(i for i, line in enumerate(lines) if line.endswith("1 kite, 1 frontend"))
        questions = [line.split("?")[0].split()[0] for line in lines[first + 1:first + 9] if line.startswith("  ")
                     and not line.startswith("    ")]
        assert questions == ["hidden", "reachable", "by", "through", "encrypted", "tahoe.cfg"], lines[first:]
        assert f"{scene.kite.name}: proven by a visit to {scene.frontend.ip}:" in terminal.shown
        assert f"tub.location = tcp:{scene.kite.name}:" in terminal.shown
        terminal.proc.send_signal(signal.SIGTERM)
        assert terminal.ended()[0] == 0, terminal.shown
    finally:
        terminal.close()


def test_check(scene, sup):
    """First no kite runs, then one does; then one thing after the other is wrong."""
    said = run("check", "--config", scene.backend.file, status=2)
    assert "nobody has said whether Tor is used" in said and "nothing was dialled" in said, said
    assert "tunnel from" not in scene.frontend.proc.text()
    said = check(scene.backend, 0)
    assert "All is well" in said and re.search(r"visitor +ok .*comes to this node", said), said
    scene.start()
    said = check(scene.backend, 0)
    assert "a kite runs" in said and "All is well" in said, said
    report = json.loads(subprocess.run([binary(), "check", "--config", scene.backend.file, "--json"], capture_output=True).stdout)
    assert report["exit_status"] == 0
    assert [row["what"] for row in report["rows"]] == ["config", "secrets", "origin", "tor", "frontend", "kite", "visitor"]
    scene.backend.stop()

    secret = scene.kite.secret
    scene.kite.secret = "of somebody else"
    scene.backend.write()
    said = check(scene.backend, 1)
    assert re.search(r"kite +FAILED .*the secret is wrong", said), said
    assert re.search(r"visitor +not checked", said), said
    scene.kite.secret = secret

    pinned, pin = scene.backend.frontends, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    scene.backend.frontends = [f"{scene.frontend.ip}:443#sha256:{pin}"]
    scene.backend.write()
    said = check(scene.backend, 1)
    assert re.search(r"frontend +FAILED .*frontend-unproven", said), said
    assert re.search(r"kite +not checked", said), said
    scene.backend.frontends = pinned

    scene.backend.write()
    (scene.backend.dir / "wrong.toml").write_text("nonsense")
    said = run("check", "--config", scene.backend.dir / "wrong.toml", status=1)
    assert re.search(r"config +FAILED", said) and re.search(r"visitor +not checked", said), said
    scene.tub.proc.stop()
    said = check(scene.backend, 1)
    assert re.search(r"origin +FAILED .*nothing listens", said) and re.search(r"visitor +FAILED", said), said


def test_probe_through_tor(kite, sup, machine, tornet):
    """The visitor goes through an exit to the kite's public name; nothing else leaves the machine."""
    hidden = machine()
    tub = foolscap_peer.TubOrigin(sup, hidden, "dave.example")
    service = Kite("foolscap", "dave.example", tub.address, tub=tub_of(tub))
    frontend = Frontend(sup, "frontend", DAVE, [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned("dave.example")], [service], machine=hidden, tunnels=1,
                      via_tor=tornet.arti_toml(sup.directory / "arti"), probe={"enabled": True, "public_port": 80})
    backend.start()
    backend.wait_up(service, "dave.example")
    wait_until(lambda: backend.status()["kites"][0]["probes"], 90, lambda: backend.proc.tail())
    assert [p["outcome"] for p in backend.status()["kites"][0]["probes"]] == ["proven"], backend.status()
    backend.proc.wait_log("hidden\\?         yes: it goes out through Tor", 60)
    asking = sup.spawn("check", [binary(), "check", "--config", backend.file], machine=hidden)
    assert asking.wait(60) == 0, asking.tail()
    assert "All is well" in asking.text()
    # Where no kite runs the check goes out itself: through Tor, and within the walls of a backend.
    backend.stop()
    asking = sup.spawn("check-alone", [binary(), "check", "--config", backend.file], machine=hidden)
    asking.wait_log(r"secrets +ok", 30)
    assert confined(asking) == {("2", "1")}
    assert asking.wait(120) == 0, asking.tail()
    assert "it has started" in asking.text() and "All is well" in asking.text()
    assert hidden.log.dials() <= tornet.relays
