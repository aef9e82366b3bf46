"""An open frontend and a real Tahoe node: registered by its Tub ID, and by nothing else.

A whole grid of such nodes, over Tor, is in test_tahoe_over_tor.py.
"""

import re
import shutil
import subprocess
import time

import pytest

from clocks import Clock
from conftest import new_address, supervised
from island import Island
from kite import Backend, Frontend, Kite, binary, run
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel, new_tub
from terminal import Terminal
from traffic import Tap, random_bytes, sha256

INTRO, INTRODUCER = "intro.strangers.example", "10.77.5.9"
DOMAIN = "strangers.example"
SIZE = 300_000
UNPROVEN = "KITE-F47"


class World:
    """A node that runs, and what it is called at an open frontend."""

    def __init__(self, sup, undo):
        self.sup, self.ip, self.machine = sup, new_address(), Island()
        key = sup.directory / "node.pem"
        self.tub = new_tub(key)
        self.name = f"{self.tub}.{DOMAIN}"
        hosts = {INTRO: INTRODUCER, self.name: self.ip}
        introducer = Introducer(sup, sup.directory / "introducer", hosts, INTRO, INTRODUCER, 45006).run()
        self.node, self.client = in_parallel(
            lambda: Storage(sup, sup.directory / "node", hosts, self.machine, introducer.furl, [f"tcp:{self.name}:80"],
                            force_foolscap=True),
            lambda: Client(sup, sup.directory / "client", hosts, introducer.furl, shares=(1, 1, 1)))
        self.node.change("node", **{"tub.port": "tcp:49299:interface=127.0.0.1"})
        self.key = self.node.dir / "private" / "node.pem"
        shutil.copy(key, self.key)
        self.node.run()
        self.client.run()
        self.tap = Tap(self.machine, ("127.0.0.1", 49299))
        undo(self.tap.close)

    def frontend(self, name, ip, proof="key"):
        return Frontend(self.sup, name, ip, [], keys={"policy": "storage-only"},
                        tables=f'[open]\ndomain = "{DOMAIN}"\nproof = "{proof}"\n').start()

    def kite(self, name=None, **more):
        return Kite("foolscap", name or self.name, self.tap.address, proof="tub", **more)


@pytest.fixture(scope="module")
def world(kite, tmp_path_factory, request):
    with supervised(tmp_path_factory.mktemp("strangers")) as sup:
        yield World(sup, request.addfinalizer)


def test_a_node_is_registered_by_its_tub_alone(world):
    frontend, kite = world.frontend("frontend", world.ip), world.kite(secret_file=world.key)
    backend = Backend(world.sup, "backend", [frontend.pinned()], [kite]).start()
    frontend.wait_up(kite)
    backend.wait_up(kite, world.ip)
    assert f"open: 1 of 1000 kites fly in {DOMAIN}\n" in run("status", "--state-dir", frontend.state, status=0)
    world.client.wait_connected(1, lambda status: f"Connected to tcp:{world.name}:80" in status)
    data = random_bytes(30, SIZE)
    assert sha256(world.client.download(world.client.upload(data))) == sha256(data)
    # The key signs, and is in no log.
    secret = [line for line in world.key.read_text().splitlines() if len(line) == 64]
    assert secret and not any(line in log.read_text() for line in secret for log in (frontend.proc.log, backend.proc.log))


def test_a_few_questions_are_enough(world, tmp_path):
    """Nobody hands anything to anybody: the node's directory and the frontend's address make a kite that flies."""
    frontend = world.frontend("asked", new_address())
    wait_until((world.node.dir / "my_nodeid").exists, 30, "the node has begun")
    asked = Terminal([binary(), "backend"], cwd=tmp_path, env={
        "HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path / "conf"), "XDG_STATE_HOME": str(tmp_path / "state")})
    try:
        asked.answer(r"The invitation", frontend.pinned())
        asked.answer(r"Is it an open frontend", "y")
        asked.answer(r"The domain", DOMAIN)
        asked.answer(r"Go through Tor", "n")
        asked.answer(r"The node's directory", str(world.node.dir))
        asked.expect("answers as a foolscap port")
        asked.answer(r"Write it", "y")
        asked.expect(re.escape(f"The kite is {world.name}."))
        asked.answer(r"Start it now", "y")
        asked.expect(re.escape(f"kite up: foolscap:{world.name}"))
        asked.key(b"\x03")
        assert asked.end() == 0
    finally:
        asked.close()
    assert [path.name for path in (tmp_path / "conf").iterdir()] == ["backend.toml"]
    assert (tmp_path / "conf/backend.toml").stat().st_mode & 0o077 == 0


def test_a_relayed_handshake_is_refused(world):
    """Whoever can reach the node relays the frontend's visit to it; the handshake is genuine, and not enough."""
    frontend, relay = world.frontend("strict", new_address()), world.kite()
    backend = Backend(world.sup, "relay", [frontend.pinned()], [relay]).start()
    backend.proc.wait_log(re.escape(UNPROVEN) + ".*wants a proof by the tub's key", 20)
    # With another tub's key it does not even start under this name.
    other = world.sup.directory / "other.pem"
    new_tub(other)
    other.chmod(0o600)
    thief = Backend(world.sup, "thief", [frontend.pinned()], [world.kite(secret_file=other)])
    done = subprocess.run([binary(), "backend", *thief.flags()], capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and "the key of another tub" in done.stderr
    # And with a name of its own it is the wrong node that answers.
    liar = world.kite(f"{new_tub(world.sup.directory / 'third.pem')}.{DOMAIN}",
                      secret_file=world.sup.directory / "third.pem")
    (world.sup.directory / "third.pem").chmod(0o600)
    backend = Backend(world.sup, "liar", [frontend.pinned()], [liar]).start()
    backend.proc.wait_log(re.escape(UNPROVEN) + ".*did not come to the tub", 20)
    assert "kite up" not in frontend.proc.text()


def test_where_the_nodes_answer_is_enough_the_owner_takes_its_name_back(world):
    """The weakness that `proof = "node"` has, and its end."""
    frontend, relay = world.frontend("lax", new_address(), proof="node"), world.kite()
    squatter = Backend(world.sup, "squatter", [frontend.pinned()], [relay]).start()
    frontend.wait_up(relay)
    mark = frontend.proc.mark()
    owner = Backend(world.sup, "owner", [frontend.pinned()], [world.kite(secret_file=world.key)]).start()
    frontend.wait_down(relay, since=mark)
    frontend.wait_up(relay, since=mark)
    squatter.proc.wait_log("another tunnel flies this kite", 20)
    assert owner.tunnels() == ["up"]


LINGER = 300            # of src/frontend/register.rs


def test_a_tunnel_that_flies_nothing_stands_for_a_while(kite, sup):
    """Its node is not there. By the frontend's clock, which is fast, since it takes five minutes."""
    fast, key = 40, sup.directory / "node.pem"
    tub = new_tub(key)
    key.chmod(0o600)
    absent = Kite("foolscap", f"{tub}.{DOMAIN}", "127.0.0.1:9", proof="tub", secret_file=key)
    frontend = Frontend(sup, "frontend", new_address(), [], tables=f'[open]\ndomain = "{DOMAIN}"\n',
                        env=Clock(fast=fast).environment(sup.directory / "fast")).start()
    backend = Backend(sup, "backend", [frontend.pinned()], [absent], tunnels=1).start()
    backend.proc.wait_log("did not come to the tub", 20)
    began = time.monotonic()
    frontend.proc.wait_log("tunnel from .* ended: .*none of its kites may fly", LINGER / fast + 20)
    took = (time.monotonic() - began) * fast
    assert LINGER - 60 < took < LINGER + 200, took
