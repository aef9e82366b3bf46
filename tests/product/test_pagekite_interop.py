"""kite works with pagekite.py on the other side, whichever side that is, and with itself.

Real programs at both ends of each pair: an HTTP server, a TLS server with a
certificate of its own, a foolscap Tub.  What is moved is compared by hash at
the end where it arrived.

| pair (frontend-backend) | HTTP | foolscap | 20 at once | 50 MB each way | TLS by SNI |
|---|---|---|---|---|---|
| kite-kite               | yes | yes | yes | yes | yes |
| pagekite-kite           | yes | yes | yes | yes | not possible: see below |
| kite-pagekite           | yes | yes | yes | yes | yes |

Debian's pagekite.py frontend dies of any ClientHello, whoever its backend is,
so TLS by SNI with pagekite.py is tested with it as the backend only.

`pagekite-pagekite` is the control: the same tests without kite, to tell a
mistake of the tests or of pagekite.py from one of kite's.  It is not part of a
plain run; ask for it with KITE_TEST_CONTROL=1.
"""

import concurrent.futures
import os
import time
import types

import pytest

import foolscap_peer
from conftest import new_address, supervised
from island import Island
from kite import Kite
from pairs import BOTH_WAYS, Pair
from traffic import MIB, Certificate, HttpOrigin

PAIRS = BOTH_WAYS + (("pagekite-pagekite",) if os.environ.get("KITE_TEST_CONTROL") else ())
BULK = 50_000_000
STREAMS = 20

every_pair = pytest.mark.parametrize("lab", PAIRS, indirect=True)
where_tls_can_be = pytest.mark.parametrize("lab", [p for p in PAIRS if p.startswith("kite-")], indirect=True)


@pytest.fixture(scope="module")
def lab(request, tmp_path_factory):
    """A pair with three origins behind it."""
    directory, ip = tmp_path_factory.mktemp(request.param), new_address()
    certificate = Certificate(directory, "secure.bob.example")
    with supervised(directory) as sup, HttpOrigin(Island()) as web, HttpOrigin(Island(), certificate) as secure:
        tub = foolscap_peer.TubOrigin(sup, Island(), "tub.bob.example")
        kites = types.SimpleNamespace(
            web=Kite("http", "web.bob.example", web.address),
            secure=Kite("https", "secure.bob.example", secure.address),
            tub=Kite("foolscap", "tub.bob.example", tub.address))
        pair = Pair(request.param, sup, ip, list(vars(kites).values()))
        if request.param == "pagekite-pagekite":
            pair.wait_http(kites.web)
        yield types.SimpleNamespace(pair=pair, kites=kites, sup=sup, ip=ip, tub=tub, secure=secure,
                                    certificate=certificate)


@every_pair
def test_http(lab):
    """A small request each way, then the next one on a connection of its own."""
    visitor = lab.pair.visitor(lab.kites.web)
    visitor.download(seed=1, size=1000)
    visitor.upload(seed=2, size=1000)


@every_pair
def test_20_at_once(lab):
    """Twenty streams are open at the same time: the origin answers none before the twentieth is there."""
    visitor = lab.pair.visitor(lab.kites.web)
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        jobs = [pool.submit(visitor.download, seed, MIB, path=f"/meet/{STREAMS}") for seed in range(STREAMS)]
        for job in jobs:
            job.result()


@every_pair
def test_50_mb_each_way(lab):
    visitor = lab.pair.visitor(lab.kites.web)
    for name, move in (("up", visitor.upload), ("down", visitor.download)):
        start = time.monotonic()
        move(seed=50, size=BULK)
        print(f"{lab.pair.kind}: {BULK / 1e6:.0f} MB {name} in {time.monotonic() - start:.1f} s")


@every_pair
def test_foolscap_upgrade(lab):
    """Two real Tubs; the caller knows the other by its name at the frontend only."""
    hosts = {"tub.bob.example": lab.ip}
    foolscap_peer.exchange(lab.sup, lab.tub.furl, hosts, seed=7, size=5 * MIB)


@where_tls_can_be
def test_tls_by_sni(lab):
    """The origin's own certificate reaches the visitor: nobody between them ends the TLS."""
    visitor = lab.pair.visitor(lab.kites.secure, lab.certificate)
    visitor.download(seed=3, size=5 * MIB)
    visitor.upload(seed=4, size=5 * MIB)
    assert set(lab.secure.sni) == {"secure.bob.example"}
