"""The recorded flights of flights/, as scripts for both ends of a replay."""

import json
import pathlib
import re

HERE = pathlib.Path(__file__).parent / "flights"


class Flight:
    def __init__(self, name):
        self.name = name
        self.steps = []                      # (direction, bytes), bytes None at the end of a direction
        for line in (HERE / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            self.steps.append((row["dir"], None if row.get("eof") else bytes.fromhex(row["hex"])))

    def sent(self, direction):
        return b"".join(data for d, data in self.steps if d == direction and data is not None)

    @property
    def host(self):
        """The name in its first flight; None where nothing names the kite."""
        if host := re.search(rb"\r\nHost: ([^\r]+)", self.sent("c2s")[:200]):
            return host[1].decode()
        if sni := re.search(rb"\x00\x00..\x00.\x00\x00.([a-z0-9.-]+\.[a-z]+)", self.sent("c2s")[:600], re.S):
            return sni[1].decode()
        return None

    @property
    def tubid(self):
        m = re.match(rb"GET /id/([a-z2-7]{32}) ", self.sent("c2s"))
        return m and m[1].decode()

    def play(self, me, stream, rng):
        """Play one end ("c2s" sends as the client, "s2c" as the server) on a stream.

        What the other end is to say is awaited before the next of our own lines
        leaves, as in the recording; whether it is the same bytes is the test's
        business, which compares what the stream has got.
        """
        for direction, data in self.steps:
            if data is None:
                stream.finish() if direction == me else stream.read_to_end()
            elif direction == me:
                stream.send(data, rng)
            else:
                stream.read(len(data))
        if me == "c2s" and ("c2s", None) not in self.steps:
            stream.finish()                  # the recording was cut short: the client hangs up
        stream.read_to_end()
