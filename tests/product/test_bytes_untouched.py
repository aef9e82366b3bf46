"""Not a byte is changed, added or lost on the way, in either direction.

Recorded foolscap and TLS flights and random streams go through each pair, cut
into random pieces by both ends; both ends write down all they get, and that
must be what the other end sent.  Ends are checked too: each direction is
half-closed in turn, and what was sent before an end arrives before it.

pagekite.py's backend rewrites HTTP heads unless told not to (`rawheaders`, set
here); its frontend cannot take a TLS ClientHello.  Kites with a public port of
their own exist in kite only.  So not every pair can play every flight.
"""

import random
import threading

import pytest

from conftest import new_address, supervised
from flights import Flight
from island import Island, Machine
from kite import Kite
from pairs import BOTH_WAYS, Pair
from traffic import MIB, Recorder, Stream, random_bytes

TOR = "kite-tor-kite"
FOOLSCAP = ("foolscap-client-to-node", "foolscap-losing-hint-server-says-duplicate",
            "foolscap-losing-hint-client-gives-up", "foolscap-idle-keepalive-5s", "foolscap-unknown-tubid")
GBS = ("gbs-first-version-request", "gbs-client-to-node-calls")
SNI = ("tls-by-sni",)
OWN_PORT = 8443
SEEDS = (1, 2, 3)


class Lab:
    """One pair and, behind each of its kites, a recorder."""

    def __init__(self, kind, request, sup):
        self.sup, self.kind = sup, kind
        machine = Island()
        if kind == TOR:
            machine = Machine(200)
            request.addfinalizer(machine.close)
        self.origins = {}
        kites = []
        for protocol, names in (("foolscap", sorted({Flight(n).host for n in FOOLSCAP})),
                                ("http", ["random.bob.example"]),
                                ("https", [Flight(n).host for n in SNI]),
                                ("tahoe-https", ["gbs.bob.example"])):
            for name in names:
                origin = self.origins[name] = Recorder(machine)
                request.addfinalizer(origin.close)
                kites.append(Kite(protocol, name, origin.address))
        if kind == "pagekite-kite":              # what its frontend cannot tell apart
            kites = [k for k in kites if k.wire == "http"]
        owned = {}
        if kind in ("kite-kite", TOR):
            owned[OWN_PORT] = kites[-1]
        self.pair = Pair(kind, sup, new_address(), kites, owned, machine, rawheaders=True,
                         tornet=request.getfixturevalue("tornet") if kind == TOR else None)

    def converse(self, name, visit, serve, tubid=None, port=None):
        """Run both scripts, each at its end of one stream; the two ends."""
        origin = self.origins[name]
        origin.expect(serve, tubid)
        with Stream.visit((self.pair.visitors[0], port or self.pair.visitors[1])) as visitor:
            visit(visitor)
            return visitor, origin.result()


@pytest.fixture(scope="module")
def lab(request, tmp_path_factory):
    with supervised(tmp_path_factory.mktemp(f"bytes-{request.param}")) as sup:
        yield Lab(request.param, request, sup)


def through(*kinds):
    return pytest.mark.parametrize("lab", kinds, indirect=True)


def replay(lab, name, seed, host=None, port=None):
    flight = Flight(name)
    visitor, origin = lab.converse(
        host or flight.host,
        lambda s: flight.play("c2s", s, random.Random(seed)),
        lambda s: flight.play("s2c", s, random.Random(-seed)),
        tubid=flight.tubid, port=port)
    assert bytes(origin.got) == flight.sent("c2s")
    assert bytes(visitor.got) == flight.sent("s2c")
    assert visitor.ended and origin.ended


@through(*BOTH_WAYS, TOR)
@pytest.mark.parametrize("name", FOOLSCAP)
def test_foolscap_flights(lab, name):
    for seed in SEEDS:
        replay(lab, name, seed)


@through("kite-kite", "kite-pagekite", TOR)
@pytest.mark.parametrize("name", SNI)
def test_tls_flights(lab, name):
    for seed in SEEDS:
        replay(lab, name, seed)


@through("kite-kite", TOR)
@pytest.mark.parametrize("name", GBS)
def test_gbs_flights_on_a_port_of_its_own(lab, name):
    """Nothing in these bytes names the kite: the port does."""
    for seed in SEEDS:
        replay(lab, name, seed, host="gbs.bob.example", port=OWN_PORT)


HEAD = b"POST /anything HTTP/1.1\r\nhOST:   Random.Bob.Example\r\nX-Odd:\ttabs and  blanks \r\n\r\n"


def both_at_once(sending, reading):
    """Run a sender beside a reader, as a real peer would; its error is ours."""
    errors = []

    def run():
        try:
            sending()
        except Exception as e:               # noqa: BLE001
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    reading()
    thread.join(60)
    assert not errors, errors[0]


def talk(order, first, end, head, ours, theirs, seed):
    """The script of one end: send `ours`, get `theirs`, half-close in the order that is tried.

    `first` is whether this end may speak before it is spoken to.
    """
    def run(s):
        def sending():
            s.send(ours[head if first else 0:], random.Random(seed))

        def ending():
            sending()
            s.finish()

        if first:
            s.send(ours[:head])
        else:
            s.read(head)
        if order == f"{end} ends first":
            ending()
            s.read_to_end()
        elif order.endswith("ends first"):
            s.read_to_end()                          # all of it, and only then a word
            ending()
        elif order == "each ends when done":
            both_at_once(ending, s.read_to_end)
        else:
            both_at_once(sending, lambda: s.read(len(theirs) - (0 if first else head)))
            s.finish()
            s.read_to_end()
    return run


def random_streams(lab, order):
    for seed in SEEDS:
        rng = random.Random(seed)
        up = HEAD + random_bytes(seed, rng.randrange(MIB, 2 * MIB))
        down = random_bytes(~seed, rng.randrange(MIB, 2 * MIB))
        visitor, origin = lab.converse(
            "random.bob.example",
            talk(order, True, "visitor", len(HEAD), up, down, seed),
            talk(order, False, "origin", len(HEAD), down, up, ~seed))
        assert bytes(origin.got) == up
        assert bytes(visitor.got) == down


@through(*BOTH_WAYS, TOR)
@pytest.mark.parametrize("order", ["both at once", "visitor ends first"])
def test_random_streams(lab, order):
    """A megabyte or two of noise each way at once, behind a head of odd spelling; then the ends."""
    random_streams(lab, order)


@through("kite-kite", TOR)
@pytest.mark.parametrize("order", ["origin ends first", "each ends when done"])
def test_random_streams_after_the_origin_ended(lab, order):
    """The origin's end does not cut off what the visitor still sends.

    A pair of pagekite.py alone loses these bytes, so it is asked of kite alone.
    """
    random_streams(lab, order)
