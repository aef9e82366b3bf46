"""What README.md and docs/ tell a reader to type is typed (book.py), in a world like the reader's, without Tor.

The pages whose world needs Tor are in test_newcomer.py. A page with commands that has no world here or there is an
error, and so is a block that is not run without a reason.
"""

import re
import subprocess

import pytest

import foolscap_peer
from book import ROOT, World, blocks, commands, kite_lines, pages
from conftest import ALICE
from island import VISITOR, Island
from kite import Frontend, Kite, binary
from traffic import HttpOrigin

HOSTS = {"alice.example": ALICE, **{f"{who}.alice.example": ALICE for who in ("tahoebob", "bob", "dave", "web")}}
PEOPLE = {"alice": ALICE, "node": "127.0.0.1", "visitor": VISITOR}
SECRET = "0c1e4cbb2a3f4d7788a5"              # of the rc files in the book

WITH_TOR = {"README.md", "docs/quick-start-node.md"}        # test_newcomer.py
NOT_RUN = 9                                  # no more blocks than this are left to a reader's trust


def world(sup, **replace):
    return World(sup, PEOPLE, HOSTS, replace)


def the_frontend(sup):
    world(sup).run("docs/quick-start-frontend.md")


def operations(sup):
    """After the page that makes its frontend."""
    place = world(sup)
    place.run("docs/quick-start-frontend.md")
    place.run("docs/operations.md")


def from_pagekite(sup):
    tub = foolscap_peer.TubOrigin(sup, Island(), "tahoebob.alice.example")
    fly(sup, "http", "tahoebob.alice.example", "docs/from-pagekite.md", {"49293": tub.address.rsplit(":", 1)[1]})


def freedombox(sup):
    with HttpOrigin(Island()) as web:
        port = web.address.rsplit(":", 1)[1]
        fly(sup, "http", "bob.alice.example", "docs/freedombox.md", {"localhost:80:": f"localhost:{port}:"},
            extra=("https", "raw"))


def fly(sup, protocol, name, page, replace, extra=()):
    """The page's backend has a frontend that knows the secret of its files."""
    kites = [Kite(p, name, None, SECRET) for p in (protocol, *extra)]
    frontend = Frontend(sup, "frontend", ALICE, kites).start()
    world(sup, **replace).run(page)
    frontend.wait_up(kites[0])


def troubleshooting(sup):
    world(sup).run("docs/troubleshooting.md")


WORLDS = {
    "docs/troubleshooting.md": troubleshooting,
    "docs/quick-start-frontend.md": the_frontend,
    "docs/operations.md": operations,
    "docs/from-pagekite.md": from_pagekite,
    "docs/freedombox.md": freedombox,
}


@pytest.mark.parametrize("page", WORLDS)
def test_the_page_says_what_happens(kite, sup, page):
    WORLDS[page](sup)


def test_every_block_has_a_world():
    without = {b.where for page in pages() for b in commands(page)
               if b.reason is None and page not in WORLDS and page not in WITH_TOR}
    assert not without, f"nobody runs these blocks: {without}"
    for page in [*WORLDS, *WITH_TOR]:
        assert any(b.reason is None for b in commands(page)), f"{page} has a world and no commands"


def test_a_command_is_in_a_block_that_says_so():
    """What looks like commands is marked as such; else nobody would run it."""
    for page in pages():
        for block in blocks(page):
            lines = block.text.splitlines()
            looks = any(re.match(r"\$ |(sudo |apt-get |cargo |kite |tahoe )", line) for line in lines)
            assert not looks or block.language in ("console", "sh"), f"{block.where}: its language must be console or sh"


def test_what_is_not_run_is_said_and_parses(kite):
    left = [b for page in pages() for b in blocks(page) if b.reason is not None]
    for block in left:
        print(f"not run: {block.where}: {block.reason}")
        assert len(block.reason) > 20 and block.language in ("console", "sh"), block.where
        for command, _ in block.steps():
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=10)
            assert done.returncode == 0, f"{block.where}: {command}\n{done.stderr}"
        for words in kite_lines(block):
            # With --help behind it clap says nothing of values, but of commands and flags that are not there.
            done = subprocess.run([binary(), *words, "--help"], capture_output=True, text=True, timeout=10)
            assert done.returncode == 0, f"{block.where}: kite {' '.join(words)}\n{done.stderr}"
    assert len(left) <= NOT_RUN, f"{len(left)} blocks are not run"


def test_a_page_that_does_not_tell_the_truth_is_seen(kite, sup, tmp_path):
    place = world(sup)
    machine = place.machines["node"]
    said = "kite up: foolscap:a.example via 127.0.0.1:443\nthe end\n"
    place.compare("here", ["kite up: foolscap:a.example via …", "the end"], said, machine)
    place.compare("here", ["…", "the end"], said, machine)
    for wrong in (["kite up: http:a.example via …", "the end"], ["the end"], ["kite up: foolscap:a.example via …"],
                  ["the end", "…"]):
        with pytest.raises(AssertionError):
            place.compare("here", wrong, said, machine)
    assert ROOT.joinpath("README.md").exists()
