"""A fleet whose book is in etcd: a real one, with TLS both ways, and frontends on machines of their own."""

import contextlib

from etcd import Etcd
from fleet_peer import Member, documented_metrics, unreachable
from island import Island, neighbours
from kite import Backend, Kite, secret_file
from proc import wait_until
from test_graceful import Crowd
from traffic import HttpOrigin, Visitor

SOON_S = 10            # what a fleet needs when somebody has come or gone
LEASE_S = 10           # src/fleet/etcd/keeper.rs


def reached(member, kite):
    try:
        Visitor(member.visitors, kite.name).download(1, 1000)
    except (OSError, AssertionError):
        return False
    return True


def wait_reached(members, kite, timeout=SOON_S):
    for member in members:
        wait_until(lambda: reached(member, kite), timeout, lambda: f"{kite.name} at {member.name}\n{member.proc.tail()}")


def wait_not(member, kite, timeout=SOON_S):
    wait_until(lambda: not reached(member, kite), timeout, f"{kite.name} is still at {member.name}")


@contextlib.contextmanager
def visited(members, kites):
    """Visitors of each kite at each member, none of whom fails."""
    with contextlib.ExitStack() as stack:
        crowds = [stack.enter_context(Crowd(member.visitors, kites, each=1)) for member in members]

        def more():
            """So many more, everywhere."""
            before = [crowd.served for crowd in crowds]
            wait_until(lambda: all(crowd.served > n + 20 for crowd, n in zip(crowds, before)), 30,
                       lambda: [(crowd.served, crowd.failed[:3]) for crowd in crowds])
        yield more
    assert [failed for crowd in crowds for failed in crowd.failed] == []


def test_a_fleet_and_its_etcd(kite, sup, machine):
    """What flies at one member is reached at all. Then everything happens to etcd and to the members that can."""
    with neighbours(), HttpOrigin(Island()) as web:
        solo, both, late = (Kite("http", f"{name}.b.example", web.address) for name in ("solo", "both", "late"))
        kites = [solo, both, late]
        hall = machine()
        etcd = Etcd(sup, hall.address, hall).start()
        login = {"user": "kite", "password_file": secret_file(sup.directory / "password", "pass-word")}
        a, b, c = fleet = [Member(sup, f"fe-{x}", machine(), kites, etcd, more=login).start() for x in "abc"]
        Backend(sup, "one", [b.pinned()], [solo]).start()
        Backend(sup, "two", [a.pinned(), b.pinned()], [both]).start()
        wait_reached(fleet, solo)
        wait_reached(fleet, both)
        keys = etcd.wait_keys(lambda keys: len(keys) == 7, SOON_S, "a life, three members, and three flights")
        assert {key.split("/")[1] for key in keys} == {"life", "members", "kites"}
        addresses = {m.ip for m in fleet}
        values = "".join(v for k, v in keys.items() if "/kites/" in k)
        assert not any(ip in values for ip in [*addresses, "10.77.", "10.78."]), "names only"

        said = documented_metrics(a, etcd=True)
        assert (said["kite_fleet_etcd_fresh"], said["kite_fleet_etcd_members"], said["kite_fleet_etcd_lost_total"]) == (1, 3, 0)

        # It asks for a password from now on, which the members have; and what it gave for that it forgets with each start.
        etcd.ask_who("pass-word")

        # etcd is away: whoever flies goes on, what comes waits, and is told when etcd is back.
        with visited(fleet, [solo, both]) as more:
            etcd.stop()
            c.wait_book("frozen")
            Backend(sup, "three", [c.pinned()], [late]).start().wait_up(late, c.ip)
            assert reached(c, late) and not reached(a, late)
            # Who starts meanwhile serves what flies there, knows of nobody else, and is one of them when etcd is back.
            d = Member(sup, "fe-d", machine(), kites, etcd, more=login).start()
            d.proc.wait_log("KITE-F48", SOON_S)
            own = Backend(sup, "four", [d.pinned()], [late]).start()
            own.wait_up(late, d.ip)
            assert reached(d, late) and not reached(d, solo)
            own.stop()
            more()
            etcd.start()
            wait_reached(fleet, late)
            c.wait_book("fresh")
            wait_reached([d], solo)
            d.wait_book("fresh")
            d.stop()

        # etcd is wiped: nobody is forgotten meanwhile.
        with visited(fleet, kites) as more:
            etcd.stop()
            etcd.wipe()
            etcd.start()
            etcd.wait_keys(lambda keys: len(keys) == 8, SOON_S, "all is there again")
            for member in fleet:
                member.wait_book("fresh")
            more()

        # One is killed, and one does not find etcd any more, but everybody else.
        with unreachable(b.machine, etcd.ip):
            a.kill()
            wait_reached([b, c], both)
            wait_reached([b, c], solo)
            etcd.wait_keys(lambda keys: len(keys) == 3, LEASE_S + SOON_S, "the leases of both are over")
            etcd.compact()
            wait_reached([b, c], solo)
            wait_reached([b, c], both)
        etcd.wait_keys(lambda keys: len(keys) == 6, SOON_S, "one is back")
        a.start()
        wait_reached([a], late)
        wait_reached([a], solo)

        # One is cut off from everybody.
        b.machine.unplug()
        wait_reached([a, c], both, LEASE_S + SOON_S)
        b.machine.plug()
        wait_reached(fleet, solo, LEASE_S + SOON_S)
        for member in fleet:
            member.stop()
        etcd.wait_keys(lambda keys: len(keys) == 1, 2, "who ends takes its leave")
