"""Faults of a backend behind Tor (those of others are in test_faults.py)."""

import re
import time

from conftest import DAVE
from island import Island
from kite import Frontend, Kite
from test_faults import SmallBackend
from traffic import MIB, HttpOrigin, Visitor


def test_a_full_disk_at_a_hidden_backend(kite, sup, tornet):
    """Arti has no room for what it learns: kites fly on, and come back to a frontend that was away. From the start on there is no
    way to Tor, and it says why; nobody is dialled in another way."""
    with HttpOrigin(Island()) as web:
        mine = Kite("http", "web.dave.example", web.address)
        frontend = Frontend(sup, "frontend", DAVE, [mine]).start()
        arti = tornet.arti_toml(sup.directory / "arti")
        backend = SmallBackend(sup, "backend", [frontend.pinned("dave.example")], [mine], via_tor=arti)
        arti.write_text(arti.read_text().replace(f'"{arti.parent}/arti/', f'"{backend.state}/arti/'))
        backend.start()
        backend.wait_up(mine, "dave.example")
        backend.fill()
        since = backend.proc.mark()
        frontend.kill()
        backend.wait_line("lost after", since=since, timeout=60)
        frontend.start()
        backend.wait_up(mine, "dave.example", since)
        Visitor(frontend.visitors, mine.name).download(1, 300_000)
        backend.stop()
        assert set(frontend.tunnel_peers()) <= tornet.exits

        before = len(frontend.tunnel_peers())
        (backend.dir / "kept" / "ballast").write_bytes(bytes(3 * MIB - 65536))
        backend.spawn()
        assert backend.proc.wait(60) == 1
        said = backend.proc.text()
        assert re.search(r"\[KITE-T12\] Tor cannot start: .*disk is full.*; check the state directory's disk, permissions and free space", said), said
        time.sleep(1)
        assert len(frontend.tunnel_peers()) == before
        # Room is made, and that is all it takes.
        (backend.dir / "kept" / "ballast").unlink()
        backend.spawn()
        backend.wait_up(mine, "dave.example")
        backend.stop()
        assert set(frontend.tunnel_peers()) <= tornet.exits
