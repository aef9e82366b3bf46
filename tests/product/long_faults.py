"""Faults that take minutes: `python -m pytest -o timeout=1800 tests/product/long_faults.py -s`. Not among the tests of every day; what it said is
recorded in docs/limits.md."""

import os
import signal
import time

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite
from pagekite_peer import PagekiteBackend
from proc import wait_until
from test_graceful import Crowd, successors
from traffic import HttpOrigin, Visitor

STOPPED_S = int(os.environ.get("KITE_STOPPED_S", "300"))
BACK_S = 90


def back_after(frontend, kite):
    """Seconds until a visitor is served again."""
    began = time.monotonic()

    def served():
        try:
            Visitor(frontend.visitors, kite.name).download(1, 1000)
        except (OSError, AssertionError):
            return False
        return True

    wait_until(served, BACK_S, f"{kite.name} does not come back", every=0.05)
    return time.monotonic() - began


def test_stopped_and_unplugged(kite, sup, machine):
    """A frontend, a backend, and a backend's cable, each stopped for as long; all at one time."""
    with HttpOrigin(Island()) as web:
        scenes = {}
        for what in ("frontend", "backend", "cable"):
            ip, hidden = new_address(), machine()
            origin = HttpOrigin(hidden)
            mine = Kite("http", f"{what}.b.example", origin.address)
            frontend = Frontend(sup, f"{what}-frontend", ip, [mine], keys={"grace": "15s"}).start()
            backend = Backend(sup, f"{what}-backend", [frontend.pinned()], [mine], machine=hidden).start()
            backend.wait_up(mine, ip)
            scenes[what] = (frontend, backend, hidden, mine)
        os.kill(scenes["frontend"][0].proc.pid, signal.SIGSTOP)
        os.kill(scenes["backend"][1].proc.pid, signal.SIGSTOP)
        scenes["cable"][2].unplug()
        time.sleep(STOPPED_S)
        for what, (frontend, backend, hidden, mine) in scenes.items():
            if what == "cable":
                hidden.plug()
            else:
                os.kill({"frontend": frontend, "backend": backend}[what].proc.pid, signal.SIGCONT)
            print(f"{what} away for {STOPPED_S} s: a visitor is served after {back_after(frontend, mine):.1f} s")
            assert backend.tunnels() == ["up"]
        for frontend, backend, _, _ in scenes.values():
            backend.stop()
            frontend.stop()


def test_an_older_backend_and_an_upgrade(kite, sup):
    """pagekite.py sees its tunnel end, and dials again when it thinks fit; its visitors wait as long as `grace` lets them."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        older = Kite("http", "old.b.example", web.address)
        frontend = Frontend(sup, "frontend", ip, [older], keys={"grace": "5m"}).start()
        PagekiteBackend(sup, "pagekite", frontend, [older]).start()
        frontend.wait_up(older, timeout=30)
        with successors(frontend), Crowd(frontend.visitors, [older], patience=300) as crowd:
            wait_until(lambda: crowd.served > 10, 30, "visits")
            since = frontend.proc.mark()
            frontend.order("upgrade")
            began = time.monotonic()
            wait_until(lambda: "kite up: http:old" in open(frontend.proc.log).read()[since:], 240, "it does not come back")
            print(f"pagekite.py was back {time.monotonic() - began:.0f} s after an upgrade")
            before = crowd.served
            wait_until(lambda: crowd.served > before + 20, 60, lambda: crowd.failed)
        assert crowd.failed == []
        print(f"{crowd.served} visits, none refused; the slowest waited {crowd.slowest:.0f} s")
