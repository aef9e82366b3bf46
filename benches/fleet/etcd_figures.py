#!/usr/bin/env python3
"""What a fleet costs its etcd: `python3 benches/fleet/etcd_figures.py [KEYS]`, with Debian's etcd-server; a few minutes.

Keys and values are as kite writes them, over the same interface. The figures are in docs/fleet.md.
"""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

KEYS = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
MEMBERS = 200
BATCH = 128
WATCHERS = (1, 10, 50)
EVENTS = 20_000
PORT = 23791
READY_S = 30


def b64(text):
    return base64.b64encode(text.encode()).decode()


class Conn:
    """A connection to etcd, as kite has it: HTTP/1.1, one question after the other."""

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 26)
        return self

    async def ask(self, path, body, stream=False):
        data = json.dumps(body).encode()
        self.writer.write(b"POST %s HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                          % (path.encode(), len(data)) + data)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        if stream:
            return None
        if b"content-length:" in head.lower():
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            return json.loads(await self.reader.readexactly(size))
        whole = b""
        while True:
            piece = await self.chunk()
            if not piece:
                return json.loads(whole)
            whole += piece

    async def chunk(self):
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]


class Etcd:
    def __init__(self, directory):
        url = f"http://127.0.0.1:{PORT}"
        path = shutil.which("etcd")
        if not path:
            sys.exit("there is no etcd: apt-get install etcd-server")
        self.log = open(os.path.join(directory, "log"), "wb")
        self.data = os.path.join(directory, "data")
        self.proc = subprocess.Popen(
            [path, "--data-dir", self.data, "--listen-client-urls", url, "--advertise-client-urls", url,
             "--listen-peer-urls", f"http://127.0.0.1:{PORT + 1}"], stdout=self.log, stderr=self.log)

    async def ready(self):
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                conn = await Conn().open()
                await conn.ask("/v3/kv/range", {"key": b64("x")})
                return conn
            except (OSError, AssertionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
        sys.exit("etcd does not answer")

    def resident(self):
        with open(f"/proc/{self.proc.pid}/status") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("VmRSS"))

    def cpu(self):
        with open(f"/proc/{self.proc.pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def disk(self):
        return os.path.getsize(os.path.join(self.data, "member", "snap", "db"))

    def end(self):
        self.proc.send_signal(signal.SIGTERM)
        self.proc.wait(20)


def put(i, lease, again=0):
    """A kite as it stands there: a name of 27 letters, a session of 32."""
    key = f"kite/kites/http/k{i:07}.storage.alice.example/fe-{i % MEMBERS}/{i:032x}"
    value = {"since": 1795755600000 + i + again, "backend": f"{i:016x}"}
    return {"requestPut": {"key": b64(key), "value": b64(json.dumps(value, separators=(",", ":"))), "lease": str(lease)}}


async def fill(conn, leases, first, last, again=0):
    for at in range(first, last, BATCH):
        changes = [put(i, leases[i % MEMBERS], again) for i in range(at, min(at + BATCH, last))]
        await conn.ask("/v3/kv/txn", {"success": changes})


async def watch(ready):
    """Counts what is told, to the end."""
    conn = await Conn().open()
    await conn.ask("/v3/watch", {"create_request": {"key": b64("kite/"), "range_end": b64("kite0"), "fragment": True}}, True)
    await conn.chunk()
    ready.release()
    seen = 0
    while seen < EVENTS:
        seen += (await conn.chunk()).count(b'{"kv":')


async def main():
    with tempfile.TemporaryDirectory() as directory:
        etcd = Etcd(directory)
        try:
            await figures(etcd)
        finally:
            etcd.end()


async def figures(etcd):
    conn = await etcd.ready()
    disk, memory = etcd.disk(), etcd.resident()
    leases = [(await conn.ask("/v3/lease/grant", {"TTL": "3600"}))["ID"] for _ in range(MEMBERS)]

    began, cpu = time.monotonic(), etcd.cpu()
    await fill(conn, leases, 0, KEYS)
    took = time.monotonic() - began
    print(f"{KEYS} keys under {MEMBERS} leases, {BATCH} to a transaction, one after the other: {KEYS / took:.0f} keys/s, "
          f"{(etcd.cpu() - cpu) / KEYS * 1e6:.0f} us of etcd's CPU each")
    print(f"on disk {(etcd.disk() - disk) / KEYS:.0f} bytes a key, in etcd's memory {(etcd.resident() - memory) / KEYS:.0f}")

    began, cpu, key, size = time.monotonic(), etcd.cpu(), b64("kite/"), 0
    while True:
        page = await conn.ask("/v3/kv/range", {"key": key, "range_end": b64("kite0"), "limit": "1000"})
        size += len(page["kvs"])
        if not page.get("more"):
            break
        key = base64.b64encode(base64.b64decode(page["kvs"][-1]["key"]) + b"\0").decode()
    took = time.monotonic() - began
    print(f"all read in pages of 1,000: {size / took:.0f} keys/s, {(etcd.cpu() - cpu) / size * 1e6:.0f} us of etcd's CPU each "
          "(the reader here is Python's)")

    began, cpu, beats = time.monotonic(), etcd.cpu(), 5000
    conns = [await Conn().open() for _ in range(20)]

    async def beat(conn, lease):
        for _ in range(beats // len(conns)):
            await conn.ask("/v3/lease/keepalive", {"ID": lease})

    await asyncio.gather(*(beat(c, lease) for c, lease in zip(conns, leases)))
    print(f"lives of leases prolonged: {beats / (time.monotonic() - began):.0f}/s, "
          f"{(etcd.cpu() - cpu) / beats * 1e6:.0f} us of etcd's CPU each")

    for number in WATCHERS:
        ready = asyncio.Semaphore(0)
        watchers = [asyncio.create_task(watch(ready)) for _ in range(number)]
        for _ in watchers:
            await ready.acquire()
        began, cpu = time.monotonic(), etcd.cpu()
        for at in range(0, EVENTS, 16):
            await conn.ask("/v3/kv/txn", {"success": [put(i, leases[i % MEMBERS], number) for i in range(at, min(at + 16, EVENTS))]})
        await asyncio.gather(*watchers)
        took, told = time.monotonic() - began, EVENTS * number
        print(f"{EVENTS} changes, 16 to a transaction, told to {number} watchers: {told / took:.0f} notices/s, "
              f"{(etcd.cpu() - cpu) / told * 1e6:.1f} us of etcd's CPU each; on disk now {(etcd.disk() - disk) / KEYS:.0f} bytes a key")

    ready = asyncio.Semaphore(0)
    its = KEYS // MEMBERS
    began = time.monotonic()
    await conn.ask("/v3/lease/revoke", {"ID": leases[0]})
    print(f"a lease with {its} keys ended in {(time.monotonic() - began) * 1e3:.0f} ms")


asyncio.run(main())
