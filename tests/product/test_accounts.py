"""Who may fly at a kite frontend, and how much, with pagekite.py as the backend."""

import json
import re
import stat
import subprocess
import sys

import pytest

from conftest import new_address
from island import Island
from kite import Frontend, Kite, binary, secret_file
from pagekite_peer import PagekiteBackend
from proc import wait_until
from traffic import HttpOrigin, MIB, Visitor

PROMPT = 15            # seconds within which pagekite.py has its verdict
SOON = 10              # and within which a kite comes down


@pytest.fixture
def web():
    with HttpOrigin(Island()) as origin:
        yield origin


def heard(backend, pattern, timeout=PROMPT):
    """What pagekite.py wrote into its log."""
    log = backend.sup.directory / f"{backend.name}-pagekite.log"
    return wait_until(lambda: log.exists() and re.search(pattern, log.read_text(errors="replace")), timeout,
                      lambda: f"{backend.name} wrote /{pattern}/\n{backend.said()[-3000:]}")


def test_a_day_of_a_frontend(kite, sup, web):
    """One backend, pagekite.py, with kites of the file and of the book: the message of the day, a quota that is used up, a
    kite that is removed in flight, one that has expired, and a wrong secret.  Nothing of it touches the first kite."""
    ip = new_address()
    (sup.directory / "motd").write_text("Mind the gap\n")
    steady = Kite("http", "steady.bob.example", web.address)
    old = Kite("http", "old.bob.example", web.address, expires="2020-01-31")
    thirsty = Kite("http", "thirsty.bob.example", web.address)
    brief = Kite("http", "brief.bob.example", web.address)
    frontend = Frontend(sup, "frontend", ip, [steady, old], keys={"motd_file": sup.directory / "motd"})
    # The first is added before the frontend runs, the second while it does.
    secret = secret_file(sup.directory / "thirsty.secret", thirsty.secret)
    frontend.manage("add", thirsty.name, "--protocols", "http", "--quota", "3MB", "--secret-file", secret)
    frontend.start()
    made, aside = frontend.manage("add", brief.name, "--protocols", "http")
    brief.secret = made.strip()
    assert len(brief.secret) == 64 and brief.secret not in aside
    liar = Kite("http", "steady.bob.example", web.address, "wrong")

    backend = PagekiteBackend(sup, "backend", frontend, [steady, old, thirsty, brief]).start()
    for flying in steady, thirsty, brief:
        frontend.wait_up(flying)
    heard(backend, r"motd=Mind the gap")
    heard(backend, r"quota_bw=3072")
    heard(backend, r"err=Rejected.*reason=nodays.*domain=old\.bob|domain=old\.bob.*reason=nodays")
    other = PagekiteBackend(sup, "other", frontend, [liar]).start()
    heard(other, r"err=Rejected.*signature|signature.*err=Rejected")

    visitor = Visitor(frontend.visitors, thirsty.name)
    with pytest.raises(Exception):
        for seed in range(20):
            visitor.download(seed, MIB)
    frontend.wait_down(thirsty, timeout=SOON)
    assert Visitor(frontend.visitors, thirsty.name).ask("GET", "/bytes/1/10")[0] == 503
    heard(backend, r"reason=noquota")
    Visitor(frontend.visitors, brief.name).download(1, 1000)
    frontend.manage("remove", brief.name)
    frontend.wait_down(brief, timeout=SOON)
    heard(backend, r"reason=unauthorized.*brief|brief.*reason=unauthorized")
    Visitor(frontend.visitors, steady.name).download(2, MIB)

    listed, _ = frontend.manage("list")
    assert re.search(r"(?m)^thirsty\.bob\.example; http; used \S+ of 3MB.*DOWN: its quota", listed), listed
    assert "brief" not in listed and "expired" in listed
    everything = listed + aside + frontend.manage("list", "--json")[0] + frontend.proc.text()
    for hidden in steady.secret, thirsty.secret, brief.secret:
        assert hidden not in everything
    assert frontend.proc.text().count("kite down: http:steady") == 0

    # What was used is used after a crash, too, but for the last seconds; a kill leaves nothing behind that hinders.
    frontend.stop()
    used = json.loads(frontend.manage("list", "--json")[0])
    assert [k["used"]["bytes"] >= 3 * MIB for k in used if k["name"] == thirsty.name] == [True]


def test_nothing_acknowledged_is_lost(kite, sup):
    """kill -9 in the middle of adds: of the frontend, and of the command where no frontend runs."""
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "a.b.example", None)]).start(level="warn,kite=info")

    def add_until(name, number, end):
        """Adds kites one after the other, and ends it after some; the names that were acknowledged."""
        loop = ("import subprocess, sys\n"
                "for i in range(1000):\n"
                f"    name = f'{name}{{i}}.b.example'\n"
                "    done = subprocess.run([*sys.argv[1:], 'add', name], capture_output=True)\n"
                "    if done.returncode: sys.exit(done.stderr.decode())\n"
                "    print(name, flush=True)\n")
        argv = [sys.executable, "-c", loop, binary(), "frontend", "kites", "--config", frontend.file]
        with subprocess.Popen([*map(str, argv)], stdout=subprocess.PIPE, text=True, start_new_session=True) as adding:
            names = [adding.stdout.readline().strip() for _ in range(number)]
            end(adding)
            names += adding.stdout.read().split()
        return set(filter(None, names))

    acknowledged = add_until("first", 12, lambda adding: (frontend.kill(), adding.kill()))
    assert len(acknowledged) >= 12
    acknowledged |= add_until("second", 12, lambda adding: adding.kill())
    frontend.start(level="warn,kite=info")
    acknowledged |= add_until("third", 12, lambda adding: adding.kill())
    frontend.kill()
    there = {k["name"] for k in json.loads(frontend.manage("list", "--json")[0])}
    assert acknowledged <= there, acknowledged - there
    assert len(acknowledged) >= 36
    book = frontend.state / "kites.redb"
    assert stat.S_IMODE(book.stat().st_mode) == 0o600
