"""Frontends of a fleet, each on a machine of its own."""

import contextlib

from island import _ip
from kite import Frontend, _table
from proc import wait_until

PORT = 4430            # where the members come in


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
        super().__init__(sup, name, machine.address, kites, keys=keys, tables=fleet + tables)

    def spawn(self, machine=None, **more):
        return super().spawn(self.machine, **more)

    def book(self):
        """How it stands with etcd: fresh or frozen."""
        return "fresh" if self.status()["fleet"]["etcd"]["fresh"] else "frozen"

    def wait_book(self, state, timeout=15):
        wait_until(lambda: self.book() == state, timeout, lambda: f"{self.name}: {self.status()['fleet']}")
