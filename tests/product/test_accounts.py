"""Who may fly at a kite frontend, and how much, with pagekite.py as the backend."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import pathlib

import pytest

import dns_authority
from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, binary, secret_file
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
    assert re.search(r"(?m)^thirsty\.bob\.example; http; used \S+ of 3MB.*ENDED: its quota", listed), listed
    assert re.search(r"(?m)^steady\.bob\.example; .*; flies by 1 tunnel$", listed), listed
    assert "brief" not in listed and "expired" in listed
    everything = listed + aside + frontend.manage("list", "--json")[0] + frontend.proc.text()
    for hidden in steady.secret, thirsty.secret, brief.secret:
        assert hidden not in everything
    assert frontend.proc.text().count("kite down: http:steady") == 0

    # A name can be taken from whoever flies it, old programs too, and whatever the book allows it.
    _, aside = frontend.manage("block", steady.name)
    assert "one kite came down" in aside, aside
    assert "nothing of that name flew here" in frontend.manage("block", "no-such.bob.example")[1]
    # Who lets a kite fly, or invites to it, while it is blocked is told.
    frontend.manage("block", "*.such.bob.example")
    for name, blocked in (("no-such.bob.example",) * 2, ("one.such.bob.example", "*.such.bob.example")):
        mind = f"Mind: {blocked} is blocked at this frontend, and {name} does not fly until: kite frontend kites unblock {blocked}"
        assert mind in frontend.manage("add", name)[1]
        frontend.manage("remove", name)
        done = subprocess.run([binary(), "frontend", "invite", name, "--config", frontend.file],
                              capture_output=True, text=True, timeout=20)
        assert done.returncode == 0 and mind in done.stderr and "Mind" not in done.stdout, done.stderr
        frontend.manage("unblock", blocked)
    assert "Mind" not in frontend.manage("add", "one.such.bob.example")[1]
    frontend.manage("remove", "one.such.bob.example")
    nowhere = frontend.dir / "nowhere"
    done = subprocess.run([binary(), "frontend", "kites", "block", steady.name, "--state-dir", nowhere], capture_output=True,
                          text=True, timeout=20)
    assert done.returncode and "no state directory" in done.stderr and not nowhere.exists(), done.stderr
    frontend.wait_down(steady, timeout=SOON)
    assert Visitor(frontend.visitors, steady.name).ask("GET", "/bytes/1/10")[0] == 503
    heard(backend, r"steady.*blocked by the operator|blocked by the operator.*steady")
    assert re.search(r"(?m)^steady\.bob\.example; .*; BLOCKED$", frontend.manage("list")[0])

    # What was used is used after a crash, too, but for the last seconds; a kill leaves nothing behind that hinders.
    frontend.stop()
    used = json.loads(frontend.manage("list", "--json")[0])
    stands = {k["name"]: (k["blocked"], k["ended"], k["tunnels"]) for k in used}
    assert stands[thirsty.name] == (False, "its quota of bytes is used up", None), stands
    assert [k["used"]["bytes"] >= 3 * MIB for k in used if k["name"] == thirsty.name] == [True]
    # So is what was blocked; it is taken back where no frontend runs as well.
    assert re.fullmatch(r"steady\.bob\.example; blocked since 20\d\d-\d\d-\d\d\n", frontend.manage("blocked")[0])
    _, aside = frontend.manage("unblock", steady.name)
    assert "no frontend runs with the state directory" in aside, aside
    assert json.loads(frontend.manage("blocked", "--json")[0]) == []


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

    def kill(adding):
        """With the command that is under way."""
        os.killpg(adding.pid, signal.SIGKILL)

    def read():
        """The list; the last of the killed may take a moment to let go of the book."""
        argv = [binary(), "frontend", "kites", "list", "--json", "--config", frontend.file]
        return wait_until(lambda: subprocess.run(argv, capture_output=True).stdout, SOON, "the book can be read")

    acknowledged = add_until("first", 12, lambda adding: (frontend.kill(), kill(adding)))
    assert len(acknowledged) >= 12
    acknowledged |= add_until("second", 12, kill)
    read()
    frontend.start(level="warn,kite=info")
    acknowledged |= add_until("third", 12, kill)
    frontend.kill()
    listed = read()
    there = {k["name"] for k in json.loads(listed)}
    assert acknowledged <= there, acknowledged - there
    assert len(acknowledged) >= 36
    book = frontend.state / "kites.redb"
    assert stat.S_IMODE(book.stat().st_mode) == 0o600


PROGRAM = """#!/usr/bin/python3
import json, os, sys
word, name = sys.argv[1:]
assert word == "--auth" and "KITE_LOG" not in os.environ
with open("{log}", "a") as log:
    print(name, file=log)
kites = {kites}
print(json.dumps(kites.get(name, {{"error": "who is that"}})))
"""


def test_a_program_decides(kite, sup, web):
    ip = new_address()
    good, poor, strange = (Kite("http", f"{n}.bob.example", web.address) for n in ("good", "poor", "strange"))
    log, program = sup.directory / "asked", sup.directory / "who"
    kites = {good.name: {"secret": good.secret, "quota_kb": 2048, "quota_days": 7},
             poor.name: {"secret": poor.secret, "quota_kb": 0, "reason": "noquota"}}
    program.write_text(PROGRAM.format(log=log, kites=kites))
    program.chmod(0o700)
    tables = f'[[authorities]]\ndomain = "bob.example"\nprogram = "{program}"\nprotocols = ["http"]\n'
    frontend = Frontend(sup, "frontend", ip, [], tables=tables).start()
    backend = PagekiteBackend(sup, "backend", frontend, [good, poor, strange]).start()
    frontend.wait_up(good)
    heard(backend, r"quota_days=(6|7)")
    heard(backend, r"reason=noquota")
    heard(backend, r"reason=who is that")
    Visitor(frontend.visitors, good.name).download(1, 1000)
    liar = PagekiteBackend(sup, "liar", frontend, [Kite("http", good.name, web.address, "wrong")]).start()
    heard(liar, r"reason=signature")
    # kite's own backend, which proves that it knows the secret without saying it, can be judged by it as well.
    own = Kite("http", "own.bob.example", web.address)
    program.write_text(PROGRAM.format(log=log, kites={own.name: {"secret": own.secret}}))
    kites = Backend(sup, "own", [frontend.pinned()], [own]).start()
    kites.wait_up(own, ip)
    # One that fails, or takes for ever, lets nobody in.
    program.write_text("#!/bin/sh\necho nonsense\n")
    failed = PagekiteBackend(sup, "failed", frontend, [Kite("http", "new.bob.example", web.address)]).start()
    heard(failed, r"reason=overload")
    with pytest.raises(Exception):
        for seed in range(20):
            Visitor(frontend.visitors, good.name).download(seed, MIB)
    frontend.wait_down(good, timeout=SOON)
    Visitor(frontend.visitors, own.name).download(1, 1000)
    assert {good.name, poor.name, strange.name, own.name} <= set(log.read_text().split())


def test_the_dns_decides(kite, sup, web):
    ip, server = new_address(), new_address()
    dns = sup.spawn("dns", [sys.executable, pathlib.Path(dns_authority.__file__), server, 53])
    dns.wait_log("ready", 15)
    kites = {name: Kite("http", name.replace("_any_", "*"), web.address, secret)
             for name, secret in dns_authority.SECRETS.items()}
    good, poor, wild = kites["dns.bob.example"], kites["poor.bob.example"], kites["_any_.wild.example"]
    unknown = Kite("http", "unknown.bob.example", web.address)
    tables = (f'[[authorities]]\ndns = "{dns_authority.SUFFIX}"\nresolver = "{server}:53"\n'
              'protocols = ["http"]\n')
    frontend = Frontend(sup, "frontend", ip, [], tables=tables).start()
    backend = PagekiteBackend(sup, "backend", frontend, [good, poor, wild, unknown]).start()
    frontend.wait_up(good)
    frontend.wait_up(wild)
    heard(backend, r"quota_bw=4096")
    heard(backend, r"quota_conns=100")
    heard(backend, r"quota_days=(29|30)")
    heard(backend, r"ips_per_sec=5/60")
    heard(backend, r"reason=quota")
    # pagekite.py takes 255.255.255.0, "unknown user", for a yes.
    heard(backend, r"reason=unauthorized")
    Visitor(frontend.visitors, good.name).download(1, 1000)
    Visitor(frontend.visitors, "any.wild.example").download(2, 1000)
    liar = PagekiteBackend(sup, "liar", frontend, [Kite("http", good.name, web.address, "wrong")]).start()
    heard(liar, r"reason=signature")
    assert "unknown.bob.example" not in json.dumps(frontend.status())
    # Nobody there: nobody flies who does not fly already.
    dns.kill()
    late = PagekiteBackend(sup, "late", frontend, [Kite("http", "dns.bob.example", web.address, good.secret)])
    backend.proc.stop()
    frontend.wait_down(good)
    late.start()
    heard(late, r"reason=overload", timeout=20)
    assert "kite up" not in frontend.proc.text().split("kite down")[-1]
