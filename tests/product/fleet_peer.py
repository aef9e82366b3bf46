"""Frontends of a fleet, each on a machine of its own."""

import contextlib
import http.client
import socket

from island import _ip
from kite import Frontend, _table
from proc import wait_until
from test_metrics import documented, labelled, samples

PORT = 4430            # where the members come in


def metrics_of(member):
    """What a member's metrics say, which it has at a socket in its directory."""
    class Connection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(member.dir / "metrics"))
    connection = Connection("localhost", timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        answer = connection.getresponse()
        assert answer.status == 200
        return samples(answer.read().decode())


def metrics_table(sup, name):
    return _table("[metrics]", listen=f"unix:{sup.directory / name / 'metrics'}")


def documented_metrics(member, etcd):
    """What the metrics say of the fleet; docs/metrics.md has each of them, with its labels, and no other."""
    found = {key: value for key, value in metrics_of(member).items() if key.startswith("kite_fleet_")}
    told = {name: labels for name, labels in documented().items() if name.startswith("kite_fleet_")
            and (etcd or not name.startswith("kite_fleet_etcd_"))}
    assert labelled(found) == told
    return found


@contextlib.contextmanager
def unreachable(machine, address):
    """Within this block the machine has no way to that address."""
    with machine.inside():
        _ip(f"route add unreachable {address}")
    try:
        yield
    finally:
        with machine.inside():
            _ip(f"route del unreachable {address}")


class Member(Frontend):
    """A frontend of a fleet that has an etcd."""

    def __init__(self, sup, name, machine, kites, etcd, keys=None, tables="", more=None):
        more = more or {}
        self.machine = machine
        fleet = _table("[fleet]", id=name, listen=f"{machine.address}:{PORT}") + _table("[fleet.etcd]", **etcd.table(**more))
        super().__init__(sup, name, machine.address, kites, keys=keys, tables=fleet + metrics_table(sup, name) + tables)

    def spawn(self, machine=None, **more):
        return super().spawn(self.machine, **more)

    def book(self):
        """How it stands with etcd: fresh or frozen."""
        return "fresh" if self.status()["fleet"]["etcd"]["fresh"] else "frozen"

    def wait_book(self, state, timeout=15):
        wait_until(lambda: self.book() == state, timeout, lambda: f"{self.name}: {self.status()['fleet']}")
