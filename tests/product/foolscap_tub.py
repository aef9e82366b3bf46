"""A real foolscap Tub, as a program of its own (Twisted wants a process to itself).

    foolscap_tub.py serve LISTEN_PORT LOCATION FILE     a Tub; its FURL goes into FILE
    foolscap_tub.py exchange FURL SEED SIZE             send SIZE bytes, fetch SIZE bytes, say what came
    foolscap_tub.py crowd FURL NUMBER SIZE              the same as so many Tubs at once; none may begin before all are there
    foolscap_tub.py leave FURL                          end the connection; does the other Tub see it?
    foolscap_tub.py dismiss FURL                        have the other Tub end it; do we see it?

Each prints one line of JSON.  For `exchange` it says what arrived there, what
arrived here, and the hint by which the connection was made.
"""

import datetime
import hashlib
import json
import random
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from foolscap.api import Referenceable, Tub
from twisted.internet import defer, reactor, task

BLOCK = 1 << 20


class Visit(Referenceable):
    """One caller's: takes blocks and gives blocks."""

    def __init__(self, store):
        self.store = store
        self.taken, self.size = hashlib.sha256(), 0

    def remote_put(self, block):
        self.taken.update(block)
        self.size += len(block)

    def remote_taken(self):
        return [self.taken.hexdigest().encode(), self.size]

    def remote_fetch(self, seed, size):
        return random.Random(seed).randbytes(size)


class Store(Referenceable):
    """Has a Visit for each caller."""

    def __init__(self):
        self.waiting, self.gone = [], defer.Deferred()

    def remote_visit(self):
        return Visit(self)

    def remote_meet(self, number):
        """Fires when so many callers wait here."""
        self.waiting.append(defer.Deferred())
        mine = self.waiting[-1]
        if len(self.waiting) == number:
            waiting, self.waiting = self.waiting, []
            for one in waiting:
                one.callback(None)
        return mine

    def remote_watch(self, caller):
        """From now on: has this one gone?"""
        self.gone = defer.Deferred()
        caller.notifyOnDisconnect(self.gone.callback, True)

    def remote_gone(self):
        """Fires when the watched one has gone."""
        return self.gone

    def remote_dismiss(self, caller):
        reactor.callLater(0, caller.tracker.broker.transport.loseConnection)


def certificate():
    """For a Tub, and made faster than foolscap makes its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "caller")])
    now = datetime.datetime.now(datetime.timezone.utc)
    cert = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2)).sign(key, hashes.SHA256()))
    return (cert.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption()))


def new_tub():
    tub = Tub(certData=certificate())
    tub.startService()
    return tub


def serve(port, location, path):
    tub = Tub()
    tub.listenOn(f"tcp:{port}:interface=127.0.0.1")
    tub.setLocation(location)
    tub.startService()
    furl = tub.registerReference(Store(), "store")
    with open(path, "w") as f:
        f.write(furl)
    reactor.run()


@defer.inlineCallbacks
def move(visit, seed, size):
    """Both ways; what was sent and what arrived."""
    data = random.Random(seed).randbytes(size)
    for start in range(0, size, BLOCK):
        yield visit.callRemote("put", data[start:start + BLOCK])
    digest, count = yield visit.callRemote("taken")
    came, ours, got = hashlib.sha256(), hashlib.sha256(), 0
    for n, start in enumerate(range(0, size, BLOCK)):
        part = min(BLOCK, size - start)
        block = yield visit.callRemote("fetch", seed + n, part)
        came.update(block)
        got += len(block)
        ours.update(random.Random(seed + n).randbytes(part))
    return {"sent": [hashlib.sha256(data).hexdigest(), size], "arrived": [digest.decode(), count],
            "asked": [ours.hexdigest(), size], "came": [came.hexdigest(), got]}


@defer.inlineCallbacks
def exchange(furl, seed, size):
    tub = new_tub()
    store = yield tub.getReference(furl)
    info = store.getLocationHints() if hasattr(store, "getLocationHints") else []
    visit = yield store.callRemote("visit")
    said = yield move(visit, int(seed), int(size))
    yield tub.stopService()
    return {**said, "hints": [str(i) for i in info]}


@defer.inlineCallbacks
def crowd(furl, number, size):
    @defer.inlineCallbacks
    def one(seed):
        tub = new_tub()
        store = yield tub.getReference(furl)
        yield store.callRemote("meet", int(number))
        visit = yield store.callRemote("visit")
        said = yield move(visit, seed, int(size))
        yield tub.stopService()
        return said["sent"] == said["arrived"] and said["asked"] == said["came"]

    right = yield defer.gatherResults([one(seed) for seed in range(int(number))])
    return {"right": right.count(True), "wrong": right.count(False)}


@defer.inlineCallbacks
def leave(furl):
    ours, witness = new_tub(), new_tub()
    store = yield ours.getReference(furl)
    yield store.callRemote("watch", Referenceable())
    other = yield witness.getReference(furl)
    yield ours.stopService()
    saw = yield other.callRemote("gone")
    yield witness.stopService()
    return {"they saw it": saw}


@defer.inlineCallbacks
def dismiss(furl):
    tub, gone = new_tub(), defer.Deferred()
    store = yield tub.getReference(furl)
    store.notifyOnDisconnect(gone.callback, True)
    yield store.callRemote("dismiss", Referenceable())
    saw = yield gone
    yield tub.stopService()
    return {"we saw it": saw}


@defer.inlineCallbacks
def call(_reactor, what, *order):
    said = yield {"exchange": exchange, "crowd": crowd, "leave": leave, "dismiss": dismiss}[what](*order)
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        task.react(call, sys.argv[1:])
