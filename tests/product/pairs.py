"""A frontend and a backend, each kite or pagekite.py, set up with the same kites.

A pair is named FRONTEND-BACKEND.  `kite-tor-kite` has the tunnel in Tor.
"""

from conftest import DAVE
from island import Island
from kite import Backend, Frontend
from pagekite_peer import PagekiteBackend, PagekiteFrontend
from proc import wait_until
from traffic import Visitor

BOTH_WAYS = ("kite-kite", "pagekite-kite", "kite-pagekite")


class Pair:
    """`visitors` is where visitors dial; `owned` maps a public port to the kite it belongs to, `more` are other ports."""

    def __init__(self, kind, sup, ip, kites, owned=None, machine=None, tornet=None, rawheaders=False, more=()):
        self.kind, self.kites, owned = kind, kites, owned or {}
        ports, old_ports = (80, 443, *more), (80, *more)
        machine = machine or Island()
        if kind == "pagekite-pagekite":
            self.frontend = PagekiteFrontend(sup, "frontend", ip, kites, old_ports).start()
            self.backend = PagekiteBackend(sup, "backend", self.frontend, kites, machine, rawheaders).start()
        elif kind == "kite-pagekite":
            wire = [k.as_wire() for k in kites]
            self.frontend = Frontend(sup, "frontend", ip, wire, owned, ports).start()
            self.backend = PagekiteBackend(sup, "backend", self.frontend, wire, machine, rawheaders).start()
            for kite in wire:
                self.frontend.wait_up(kite, timeout=60)
        elif kind == "pagekite-kite":
            self.frontend = PagekiteFrontend(sup, "frontend", ip, kites, old_ports).start()
            self.backend = Backend(sup, "backend", [self.frontend.plain()], kites, machine=machine,
                                   tunnels=2).start()
            for kite in kites:
                self.backend.wait_up(kite, ip)
        elif kind == "kite-kite":
            self.frontend = Frontend(sup, "frontend", ip, kites, owned, ports).start()
            self.backend = Backend(sup, "backend", [self.frontend.pinned()], kites, machine=machine,
                                   tunnels=2).start()
            for kite in kites:
                self.backend.wait_up(kite, ip)
                self.frontend.wait_up(kite)
        elif kind == "kite-tor-kite":
            self.frontend = Frontend(sup, "frontend", DAVE, kites, owned).start()
            self.backend = Backend(sup, "backend", [self.frontend.pinned("dave.example")], kites, machine=machine,
                                   via_tor=tornet.arti_toml(sup.directory / "backend-tor")).start()
            for kite in kites:
                self.backend.wait_up(kite, "dave.example")
                self.frontend.wait_up(kite)
        else:
            raise ValueError(kind)

    @property
    def visitors(self):
        return self.frontend.visitors

    def visitor(self, kite, certificate=None):
        return Visitor(self.visitors, kite.name, certificate)

    def wait_http(self, kite, timeout=60):
        """For pagekite.py on both sides, which has no log line to wait for."""
        def answered():
            try:
                return self.visitor(kite).ask("GET", "/bytes/1/10")[0] == 200
            except OSError:
                return False
        wait_until(answered, timeout, f"{kite.name} answers through {self.kind}", every=0.3)
