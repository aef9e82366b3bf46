"""Several frontends of one domain, each on a machine of its own: whichever a visitor comes to, it reaches its kite.

Each machine is a network namespace behind a cable, so that one can be killed, cut off, or upgraded, while visitors come to the
others.  The members get to know each other as docs/fleet.md says.
"""

import contextlib
import time

import pytest

from fleet_peer import documented_metrics, metrics_table
from island import Island, neighbours
from kite import Backend, Frontend, Kite, READY_S
from pagekite_peer import PagekiteBackend
from proc import wait_until
from tahoe import Client, Introducer, Storage, in_parallel
from test_graceful import TAKEN, Crowd, successors
from traffic import HttpOrigin, Tap, Visitor, random_bytes, sha256

INNER = 4430
FADE = 15               # of src/fleet/link.rs
ENTRY = r'the others write it down as: (id = "\w+"), (address = "\S+"), (pin = "\S+")'
WEB, OLD = "web.f.example", "old.f.example"
INTRO, INTRODUCER, BOB = "intro.f.example", "10.77.5.9", "bob.f.example"


class Member(Frontend):
    """A frontend on a machine of its own, in a fleet."""

    def __init__(self, sup, name, machine, kites, keys=None):
        self.machine = machine
        super().__init__(sup, name, machine.address, kites, keys=keys,
                         tables=f'{metrics_table(sup, name)}[fleet]\nid = "{name}"\nlisten = "{machine.address}:{INNER}"\n')

    def spawn(self, level="debug", env=None):
        return super().spawn(machine=self.machine, level=level, env=env)

    def entry(self):
        """What the others are to write down, as its log has it after a first start."""
        self.start()
        found = self.proc.wait_log(ENTRY, READY_S)
        self.stop()
        return "\n[[fleet.members]]\n" + "\n".join(found.groups()) + f'\npublic = "{self.pinned()}"\n'

    def linked(self):
        return [m["id"] for m in self.status()["fleet"]["members"] if m["told"] and m["heard"]]

    def knows(self, other):
        return next(m["kites"] for m in self.status()["fleet"]["members"] if m["id"] == other.name)


@pytest.fixture(autouse=True)
def cables():
    with neighbours():
        yield


def fleet(sup, machine, kites, **keys):
    """Three members that are linked."""
    members = [Member(sup, name, machine(), kites, keys) for name in "abc"]
    entries = "".join(member.entry() for member in members)
    for member in members:
        member.file.write_text(member.file.read_text() + entries)
        member.start()
    for member in members:
        wait_until(lambda m=member: len(m.linked()) == 2, READY_S, lambda m=member: f"{m.linked()}\n{m.proc.tail()}", every=0.2)
    return members


def known(members, at, kites):
    for member in members:
        if member is not at:
            wait_until(lambda m=member: m.knows(at) == kites, READY_S, lambda m=member: m.proc.tail(), every=0.1)


def served_again(member, name, within):
    """How long it takes until a visitor is served there."""
    began = time.monotonic()

    def served():
        try:
            Visitor(member.visitors, name).download(1, 2000)
            return True
        except (OSError, AssertionError):
            return False
    wait_until(served, within, lambda: member.proc.tail())
    return time.monotonic() - began


def test_an_older_backend_is_found_wherever_it_lands(kite, sup, machine):
    """pagekite.py at one member, kite at another, a visitor of each at each of the three."""
    with HttpOrigin(Island()) as web:
        mine, old = Kite("http", WEB, web.address), Kite("http", OLD, web.address)
        a, b, c = members = fleet(sup, machine, [mine, old])
        PagekiteBackend(sup, "old", a, [old], rawheaders=True).start()
        Backend(sup, "backend", [c.pinned()], [mine]).start()
        known(members, a, 1)
        known(members, c, 1)
        for n, member in enumerate(members):
            for name in (WEB, OLD):
                Visitor(member.visitors, name).download(10 + n, 300_000)
                Visitor(member.visitors, name).upload(20 + n, 300_000)
        passed = [m.status()["fleet"] for m in members]
        assert [p["passed_on"] for p in passed] == [2, 4, 2] and [p["brought"] for p in passed] == [4, 0, 4]
        said = documented_metrics(a, etcd=False)
        assert said['kite_fleet_link{member="b",direction="told"}'] == said['kite_fleet_kites{member="c"}'] == 1
        assert said['kite_fleet_visitors_total{direction="passed_on"}'] == 2
        assert said['kite_fleet_visitors_total{direction="brought"}'] == 4
        assert Visitor(b.visitors, "nobody.f.example").ask("GET", "/")[0] == 503
        for member in members:
            said = member.proc.text()
            assert "panicked" not in said and "FleetStranger" not in said
            member.stop()


def test_a_member_that_is_not_known_is_told_so_once(kite, sup, machine):
    """By its key: it is turned away only after the handshake. What it says of itself in the list is compared, too."""
    a, b = members = [Member(sup, name, machine(), [Kite("http", WEB, None)]) for name in "ab"]
    entries = [member.entry() for member in members]
    a.file.write_text(a.file.read_text() + "".join(entries))
    pin_of = [entry.split("pin = ")[1].split()[0] for entry in entries]
    b.file.write_text(b.file.read_text() + entries[1].replace(pin_of[1], pin_of[0]))
    b.start()
    b.proc.wait_log(r"KITE-F53.*another key for b", READY_S)
    a.start()
    a.proc.wait_log(r"KITE-F50.*b at \S+ turns this member away; see that it knows a by the key sha256:", READY_S)
    time.sleep(5)
    said = a.proc.text()
    assert said.count("turns this member away") == 1 and "b at" in said
    assert "hears what flies here" not in said
    assert a.status()["fleet"]["members"][0]["told"] is False
    # Known, it is told everything.
    b.stop()
    b.file.write_text(b.file.read_text().split("[[fleet.members]]")[0] + "".join(entries))
    b.start()
    a.proc.wait_log("b at \\S+ hears what flies here", READY_S)
    for member in members:
        member.stop()


def test_a_member_that_dies_and_one_that_is_cut_off_are_left(kite, sup, machine):
    """The kite is at two members. One is killed, then started anew; then its cable is cut, and mended."""
    with HttpOrigin(Island()) as web:
        mine = Kite("http", WEB, web.address)
        a, b, c = members = fleet(sup, machine, [mine])
        backend = Backend(sup, "backend", [b.pinned(), c.pinned()], [mine]).start()
        known(members, b, 1)
        known(members, c, 1)
        Visitor(a.visitors, WEB).download(1, 2000)
        b.kill()
        killed = time.monotonic()
        took = served_again(a, WEB, 10)
        with Crowd(a.visitors, [mine]) as crowd:
            wait_until(lambda: crowd.served > 50, 20, lambda: f"only {crowd.served}")
        assert crowd.failed == []
        # What flew at the one that is gone is remembered for a while, and then no more.
        assert a.knows(b) == 1 and time.monotonic() < killed + FADE
        wait_until(lambda: a.knows(b) == 0, FADE + 15, lambda: a.proc.tail(), every=0.2)
        b.start()
        wait_until(lambda: b.knows(c) == 1 and a.linked() == ["b", "c"], READY_S, lambda: a.proc.tail(), every=0.2)
        b.wait_up(mine)
        known(members, b, 1)
        since = a.proc.mark()
        # It has the newest tunnel, so visitors are offered to it first.
        b.machine.mute()
        try:
            took_too = served_again(a, WEB, 15)
            # Nobody waits for it any more once its link has ended.
            a.proc.wait_log("the link from b has ended", 20, since)
            slowest = max(served_again(a, WEB, 15) for _ in range(5))
        finally:
            b.machine.unmute()
        wait_until(lambda: a.linked() == ["b", "c"], 30, lambda: a.proc.tail(), every=0.2)
        print(f"after a member was killed the next visitor was served within {took:.1f} s; after one was cut off, "
              f"{took_too:.1f} s, and later {slowest:.1f} s")
        assert backend.proc.alive()


def test_a_rolling_upgrade_under_load(kite, sup, machine):
    """Each member is replaced in place, one after the other, while visitors come to all of them."""
    with HttpOrigin(Island()) as web:
        mine = Kite("http", WEB, web.address)
        members = fleet(sup, machine, [mine], drain="5m", grace="60s")
        a, b, _ = members
        Backend(sup, "backend", [b.pinned()], [mine], tunnels=2).start()
        known(members, b, 1)
        with contextlib.ExitStack() as stack:
            for member in members:
                stack.enter_context(successors(member))
            crowds = [stack.enter_context(Crowd(member.visitors, [mine])) for member in members]
            for member in members:
                before = [crowd.served for crowd in crowds]
                since = member.proc.mark()
                assert "a new frontend has taken over" in member.order("upgrade")
                member.proc.wait_log(TAKEN, READY_S, since)
                wait_until(lambda: all(c.served > n + 30 for c, n in zip(crowds, before)), 60,
                           lambda: f"{[c.served for c in crowds]} after {before}\n{member.proc.tail()}")
            wait_until(lambda: a.linked() == ["b", "c"] and a.knows(b) == 1, READY_S, lambda: a.proc.tail(), every=0.2)
        assert [crowd.failed for crowd in crowds] == [[], [], []]
        print(f"{sum(c.served for c in crowds)} visits through three upgrades, none refused; the slowest took "
              f"{max(c.slowest for c in crowds):.1f} s")


def test_tahoe_through_a_member_that_does_not_fly_the_kite(kite, sup, machine):
    """A real node at one member, a real client whose way leads to another."""
    members = fleet(sup, machine, [Kite("foolscap", BOB, "127.0.0.1:1", secret="fleet's secret")])
    a, _, c = members
    hosts = {INTRO: INTRODUCER, BOB: a.ip}
    introducer = Introducer(sup, sup.directory / "introducer", hosts, INTRO, INTRODUCER).run()
    node, client = in_parallel(
        lambda: Storage(sup, sup.directory / "node", hosts, Island(), introducer.furl, [f"tcp:{BOB}:80"], force_foolscap=True),
        lambda: Client(sup, sup.directory / "client", hosts, introducer.furl, shares=(1, 1, 1)))
    node.run()
    client.run()
    with contextlib.closing(Tap(Island(), node.target)) as tap:
        bob = Kite("foolscap", BOB, tap.address, secret="fleet's secret")
        Backend(sup, "backend", [c.pinned()], [bob]).start()
        known(members, c, 1)
        client.wait_connected(1)
        data = random_bytes(7, 300_000)
        assert sha256(client.download(client.upload(data))) == sha256(data)
        assert tap.protocols() == {"foolscap"}
    assert a.status()["fleet"]["passed_on"] >= 1 and c.status()["fleet"]["brought"] >= 1
