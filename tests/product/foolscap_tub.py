"""A real foolscap Tub, as a program of its own (Twisted wants a process to itself).

    foolscap_tub.py serve LISTEN_PORT LOCATION FILE     a Tub; its FURL goes into FILE
    foolscap_tub.py call FURL SEED SIZE                 send SIZE bytes, fetch SIZE bytes, say what came

`call` prints one line of JSON: what arrived there, what arrived here, and the
hint by which the connection was made.
"""

import hashlib
import json
import random
import sys

from foolscap.api import Referenceable, Tub
from twisted.internet import defer, reactor, task

BLOCK = 1 << 20


class Store(Referenceable):
    """Takes blocks and gives blocks."""

    def __init__(self):
        self.taken, self.size = hashlib.sha256(), 0

    def remote_put(self, block):
        self.taken.update(block)
        self.size += len(block)

    def remote_taken(self):
        digest, size = self.taken.hexdigest(), self.size
        self.taken, self.size = hashlib.sha256(), 0
        return [digest.encode(), size]

    def remote_fetch(self, seed, size):
        return random.Random(seed).randbytes(size)


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
def call(_reactor, furl, seed, size):
    seed, size = int(seed), int(size)
    tub = Tub()
    tub.startService()
    store = yield tub.getReference(furl)
    info = store.getLocationHints() if hasattr(store, "getLocationHints") else []
    data = random.Random(seed).randbytes(size)
    for start in range(0, size, BLOCK):
        yield store.callRemote("put", data[start:start + BLOCK])
    digest, count = yield store.callRemote("taken")
    came = hashlib.sha256()
    got = 0
    for n, start in enumerate(range(0, size, BLOCK)):
        block = yield store.callRemote("fetch", seed + n, min(BLOCK, size - start))
        came.update(block)
        got += len(block)
    ours = hashlib.sha256()
    for n, start in enumerate(range(0, size, BLOCK)):
        ours.update(random.Random(seed + n).randbytes(min(BLOCK, size - start)))
    yield tub.stopService()
    print(json.dumps({
        "sent": [hashlib.sha256(data).hexdigest(), size], "arrived": [digest.decode(), count],
        "asked": [ours.hexdigest(), size], "came": [came.hexdigest(), got], "hints": [str(i) for i in info]}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        task.react(call, sys.argv[2:])
