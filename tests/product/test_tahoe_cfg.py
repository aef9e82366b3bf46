"""`kite check --node` and `kite tahoe`, with nodes that Tahoe itself has made, and that run.

What kite calls a leak is seen as one: a port that answers from outside, a dial
on the cable.  What it writes is read by Python's parser, and the node starts
with it and goes out through the SOCKS port only.
"""

import configparser
import contextlib
import random
import shutil
import socket
import threading

import pytest

from kite import Backend, Kite, run
from proc import wait_until
from tahoe import START_S, TAHOE, create

NAMES = ["tahoebob.alice.example", "tahoebob.carol.example"]
PORT = 49293
SOCKS = ("127.0.0.1", 9150)
TUB = "a" * 32
INTRO = f"pb://{TUB}@tcp:intro.cfg.example:45001/introducer"

WRITTEN = {
    ("node", "reveal-IP-address"): "true",
    ("node", "tub.port"): f"tcp:{PORT}:interface=127.0.0.1",
    ("node", "tub.location"): ",".join(f"tcp:{name}:80" for name in NAMES),
    ("connections", "tcp"): "tor",
    ("tor", "socks.port"): "tcp:%s:%d" % SOCKS,
}
FOOLSCAP = {("storage", "force_foolscap"): "true", ("client", "force_foolscap"): "true"}


@pytest.fixture
def backend(kite, sup):
    """A backend's file, without its secrets: `kite tahoe` and `kite check` have no use for them."""
    kites = [Kite("foolscap", name, f"127.0.0.1:{PORT}") for name in NAMES]
    made = Backend(sup, "backend", ["plain://10.77.1.254:80"], kites, socks="%s:%d" % SOCKS, via_tor="arti.toml")
    for secret in made.dir.glob("*.secret"):
        secret.unlink()
    return made.file


def read(node):
    config = configparser.ConfigParser(strict=False)
    config.read(node / "tahoe.cfg")
    return config


def outside(hidden, port):
    """Does it answer who comes from another machine?"""
    try:
        socket.create_connection((hidden.address, port), timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def socks_recorder(hidden):
    """A SOCKS port that writes down whom it is asked for, and connects to nobody."""
    asked = []

    def serve(listener):
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            with conn, contextlib.suppress(OSError):
                conn.settimeout(10)
                conn.recv(3)
                conn.sendall(b"\5\0")
                request = conn.recv(300)
                asked.append(request[5:-2].decode(errors="replace") if request[3] == 3 else request)
                conn.sendall(b"\5\4\0\1\0\0\0\0\0\0")

    with hidden.listen(SOCKS) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def start(sup, node, hidden, name):
    """The node, once it has written what it announces (introducers write theirs elsewhere)."""
    furl = node / "private" / ("storage.furl" if (node / "tahoe-client.tac").exists() else "introducer.furl")
    furl.unlink(missing_ok=True)
    proc = sup.spawn(name, [TAHOE, "run", "--allow-stdin-close", node], machine=hidden)
    wait_until(lambda: furl.exists() and furl.read_text().strip() or not proc.alive(), START_S, proc.tail)
    assert proc.alive(), proc.tail()
    return proc, furl.read_text().strip()


@pytest.mark.parametrize("command, named", [
    (["create-node", "--hostname=my.home.example"],
     ["leak: tub.port listens on all", "leak: the node connects directly", "broken: clients use Tahoe's HTTPS"]),
    (["create-node", "--port=tcp:5000", "--location=AUTO"],
     ["leak: tub.port listens on all", "leak: AUTO announces", "leak: the node connects directly"]),
    (["create-node", "--hide-ip", "--port=tcp:5000:interface=127.0.0.1", "--location=tcp:a.example:80"],
     ["broken: with reveal-IP-address = false", "broken: through a SOCKS port"]),
    (["create-node", f"--port=tcp:{PORT}:interface=127.0.0.1", "--webport=3456", f"--location=tcp:{NAMES[0]}:80"],
     ["leak: the web interface listens on all", "leak: the node connects directly"]),
    (["create-introducer", "--port=tcp:5000", "--location=tcp:192.0.2.7:5000"],
     ["leak: tub.port listens on all", "leak: 'tcp:192.0.2.7:5000' announces a number"]),
])
def test_every_kind_of_node_is_mended(backend, tmp_path, command, named):
    node = tmp_path / "node"
    create(*command, node)
    before = (node / "tahoe.cfg").read_text()
    said = run("check", "--node", node, status=1)
    for finding in named:
        assert finding in said, f"{finding}\n{said}"
    assert (node / "tahoe.cfg").read_text() == before, "a check changes nothing"

    run("tahoe", "--config", backend, "--write", node, status=0)
    assert (node / "tahoe.cfg.kite-backup-1").read_text() == before
    for said in (run("check", "--node", node, "--config", backend, status=0), run("check", "--node", node, status=0)):
        assert "no leak" in said
    config = read(node)
    expected = WRITTEN | (FOOLSCAP if "create-node" in command else {})
    assert {key: config.get(*key) for key in expected} == expected
    assert "interface=127.0.0.1" in (config.get("node", "web.port") or "interface=127.0.0.1")
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert comments == [line for line in (node / "tahoe.cfg").read_text().splitlines() if line.startswith("#")]

    after = (node / "tahoe.cfg").read_text()
    assert "nothing was changed" in run("tahoe", "--config", backend, "--write", node, status=0)
    assert (node / "tahoe.cfg").read_text() == after and not (node / "tahoe.cfg.kite-backup-2").exists()


def _odd_file(rng):
    """Lines that Python takes in its own way: indented, continued, twice, with colons, empty, with CR."""
    keys = ["tub.port", "TUB.Location", "web.port", "tcp", "socks.port", "force_foolscap", "nickname", "x", "launch"]
    values = ["tor", "true", "no", "?", "a b", "", "5000", "tcp:1"]
    lines = []
    for _ in range(rng.randrange(2, 25)):
        indent = " " * rng.choice([0, 0, 0, 2, 4])
        lines.append(rng.choice([
            lambda: f"{indent}[{rng.choice(['node', 'tor', 'connections', 'storage', 'client', 'other'])}]",
            lambda: f"{indent}{rng.choice(keys)}{rng.choice([' = ', '=', ': ', ' :'])}{rng.choice(values)}",
            lambda: f"{indent}# a comment", lambda: f"{indent}; another = one", lambda: "", lambda: indent + "a = b = c",
        ])())
    end = rng.choice(["\n", "\n", "\r\n"])
    return end.join(["[node]", *lines]) + rng.choice(["", end])


def test_every_other_option_stays(backend, tmp_path):
    """After a write Python reads the lines of kite, and everything else as before."""
    create("create-introducer", "--port=tcp:1", "--location=tcp:a.example:1", tmp_path / "node")
    (tmp_path / "node" / "tahoe-introducer.tac").rename(tmp_path / "node" / "tahoe-client.tac")
    file, rng = tmp_path / "node" / "tahoe.cfg", random.Random(7)
    expected = {(section, key.lower()): value for (section, key), value in (WRITTEN | FOOLSCAP).items()}
    mended = {("node", "timeout.keepalive"), ("node", "timeout.disconnect"), ("node", "web.port"), ("tor", "launch")}

    def options():
        config = configparser.ConfigParser(strict=False)
        with open(file, newline="") as f:                # as Tahoe does: its line ends are line feeds
            config.read_string(f.read())
        return {(s, o): config.get(s, o) for s in config.sections() for o in config.options(s)}

    def others(read):
        return {option: value for option, value in read.items() if option not in {*expected, *mended}}

    for _ in range(300):
        text = _odd_file(rng)
        file.write_bytes(text.encode())
        before = options()
        run("tahoe", "--config", backend, "--write", tmp_path / "node", status=0)
        after = options()
        assert {option: after.get(option) for option in expected} == expected, text
        assert others(after) == others(before), text


def test_the_printed_lines_are_those_that_are_written(backend, tmp_path):
    config = configparser.ConfigParser(strict=False)
    config.read_string(run("tahoe", "--config", backend, status=0))
    expected = WRITTEN | FOOLSCAP
    assert {key: config.get(*key) for key in expected} == expected
    said = run("tahoe", "--config", backend, "--public-port", 8080, "--public-port", f"{NAMES[1]}=9090", status=0)
    assert f"tcp:{NAMES[0]}:8080,tcp:{NAMES[1]}:9090" in said
    assert "create-node" in run("tahoe", "--config", backend, "--write", tmp_path, status=2)
    assert "create-node" in run("check", "--node", tmp_path, status=2)
    assert "there is no kite to fly" in run("check", status=1)


def test_a_mended_node_runs_and_announces_the_kites_only(backend, sup, machine):
    """Before: its port answers from outside, and it announces where it is.  After: neither, and all that it
    wants it asks of the SOCKS port."""
    hidden, node = machine(), sup.directory / "node"
    create("create-node", f"--introducer={INTRO}", "--webport=none", "--port=tcp:5000", "--location=AUTO", node)
    proc, furl = start(sup, node, hidden, "before")
    assert hidden.address in furl
    wait_until(lambda: outside(hidden, 5000), START_S, proc.tail)
    proc.stop()

    run("tahoe", "--config", backend, "--write", node, status=0)
    since = hidden.log.mark()
    with socks_recorder(hidden) as asked:
        proc, furl = start(sup, node, hidden, "after")
        wait_until(lambda: asked, START_S, proc.tail)
        assert furl.split("@")[1].split("/")[0].split(",") == [f"tcp:{name}:80" for name in NAMES]
        wait_until(lambda: _answers(hidden, PORT), START_S, proc.tail)
        assert not outside(hidden, PORT) and not outside(hidden, 5000)
        assert set(asked) == {"intro.cfg.example"}
        assert hidden.log.dials(since) == set()
        proc.stop()


def _answers(hidden, port):
    with contextlib.suppress(OSError):
        hidden.connect(("127.0.0.1", port)).close()
        return True


REFUSED = [
    ("reveal-IP-address = true", "reveal-IP-address = false"),
    ("reveal-IP-address = true", "reveal-IP-address = perhaps"),
    ("tub.port = ", "tub.port =\n#"),
    ("tub.port = ", "tub.port = tcp:0\n#"),
    ("tub.port = ", "tub.port = disabled\n#"),
    ("tub.location = ", "tub.location = disabled\n#"),
    ("tub.location = ", "tub.location = tor:tahoebob.alice.example:80\nnickname = x\n[storage]\nforce_foolscap = no\n[node]\n#"),
    ("tcp = tor", "tcp = tor  # through kite"),
    ("tcp = tor", "tcp =\n  tor"),
    ("socks.port = tcp:127.0.0.1:9150", "socks.port = 9150"),
    ("[tor]", "[tor]\nenabled = false"),
]


def test_what_is_said_not_to_start_does_not(backend, sup, machine):
    """Where kite says that Tahoe refuses a file, Tahoe does."""
    hidden, nodes = machine(), []
    create("create-node", "--webport=none", "--port=tcp:5000", "--location=AUTO", sup.directory / "node")
    run("tahoe", "--config", backend, "--write", sup.directory / "node", status=0)
    for i, (old, new) in enumerate(REFUSED):
        node = shutil.copytree(sup.directory / "node", sup.directory / f"node{i}")
        text = (node / "tahoe.cfg").read_text()
        assert text.count(old) == 1, old
        if "tor:" in new:                                # what is no onion needs foolscap
            text = text.replace("force_foolscap = true", "force_foolscap = off")
        (node / "tahoe.cfg").write_text(text.replace(old, new))
        said = run("check", "--node", node, status=1)
        assert "broken: " in said and ("does not start" in said or "disabled" in new), said
        nodes.append(sup.spawn(f"node{i}", [TAHOE, "run", "--allow-stdin-close", node], machine=hidden))
    for proc, (_, new) in zip(nodes, REFUSED, strict=True):
        assert proc.wait(2 * START_S) != 0, f"{new}\n{proc.tail()}"
        assert "client running" not in proc.text(), proc.tail()


def test_what_tor_does_not_cover_is_named(backend, sup, machine):
    """Two settings that go out directly in spite of `tcp = tor`, seen on the cable and named by the check."""
    hidden, node = machine(), sup.directory / "node"
    create("create-node", "--webport=none", "--port=tcp:5000", "--location=AUTO", node)
    run("tahoe", "--config", backend, "--write", node, status=0)
    (node / "private" / "servers.yaml").write_text(f"""\
storage:
  v0-4uazse3xb6uu5qpkb7tel2bm6bpea4jhuigdhqcuvvse7hugtsia:
    ann:
      nickname: direct
      anonymous-storage-FURL: pb://{TUB}@tcp:10.77.5.8:45008/storage
    connections:
      tcp: tcp
""")
    cfg = (node / "tahoe.cfg").read_text()
    (node / "tahoe.cfg").write_text(
        cfg.replace("#log_gatherer.furl =", f"log_gatherer.furl = pb://{TUB}@tcp:10.77.5.9:45009/gatherer"))
    said = run("check", "--node", node, "--config", backend, status=1)
    assert "servers.yaml:7: leak: the node connects to this server directly" in said
    assert "leak: the node connects to the log gatherer directly" in said
    proc, _ = start(sup, node, hidden, "leaky")
    leaks = {("tcp", "10.77.5.8", 45008), ("tcp", "10.77.5.9", 45009)}
    wait_until(lambda: hidden.log.dials() >= leaks, START_S, lambda: f"{hidden.log.dials()}\n{proc.tail()}")
    proc.stop()

    # The file is mended; the static server is the operator's to change.
    said = run("tahoe", "--config", backend, "--write", node, status=1)
    assert "servers.yaml:7" in said and "log_gatherer" not in read(node)["node"]
