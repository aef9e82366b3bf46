"""Real foolscap Tubs on both ends: what a Tahoe storage node and its client are made of."""

import itertools
import json
import pathlib
import sys

import names
from island import free_port
from proc import wait_until

PROGRAM = pathlib.Path(__file__).with_name("foolscap_tub.py")
CALL_S = 120
_calls = itertools.count(1)


class TubOrigin:
    """A Tub on a machine's loopback, known by a name and a port elsewhere."""

    def __init__(self, sup, machine, name, port=80):
        number = free_port()
        self.address = f"127.0.0.1:{number}"
        file = sup.directory / f"{name}.furl"
        self.proc = sup.spawn(f"tub-{name}", [sys.executable, PROGRAM, "serve", number, f"tcp:{name}:{port}", file],
                              machine=machine)
        wait_until(lambda: file.exists() and file.read_text(), 15, lambda: self.proc.tail())
        self.furl = file.read_text()


def call(sup, furl, hosts, what, *order):
    """Let a new process do something with the Tub at furl (see foolscap_tub.py); what it said."""
    name = "-".join(["caller", what, *map(str, order), str(next(_calls))])
    proc = sup.spawn(name, [sys.executable, PROGRAM, what, furl, *order], env=names.environment(hosts))
    assert proc.wait(CALL_S) == 0, proc.tail()
    said = json.loads(proc.text().splitlines()[-1])
    if what == "exchange":
        assert said["arrived"] == said["sent"]
        assert said["came"] == said["asked"]
    if what == "crowd":
        assert said == {"right": int(order[0]), "wrong": 0}
    return said


def exchange(sup, furl, hosts, seed, size):
    """Move random bytes both ways between a new Tub and the one at furl; both ends must agree."""
    return call(sup, furl, hosts, "exchange", seed, size)
