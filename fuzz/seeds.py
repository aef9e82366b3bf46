#!/usr/bin/env python3
"""Writes the first inputs of each target to DIR/TARGET: what real programs said (tests/fixtures), and what is in the
documentation. `fuzz/run` goes on from there."""

import base64
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"
# Longer inputs make slow runs, and say nothing new.
LONGEST = 6000


def put(target, *parts):
    text = b"".join(parts)[:LONGEST]
    place = Path(sys.argv[1]) / target
    place.mkdir(parents=True, exist_ok=True)
    (place / hashlib.sha1(text).hexdigest()[:16]).write_bytes(text)


def conversations(path):
    """Of each connection: what each side said, and all pieces with their direction."""
    found = {}
    for line in path.read_text().splitlines():
        line = json.loads(line)
        if "hex" not in line:
            continue
        piece = (line.get("dir") or line.get("from") or "?", bytes.fromhex(line["hex"]))
        found.setdefault(line.get("c", 0), []).append(piece)
    for pieces in found.values():
        sides = {}
        for side, text in pieces:
            sides[side] = sides.get(side, b"") + text
        yield sides, pieces


def after_head(text):
    end = text.find(b"\r\n\r\n") + 4
    return text[:end], text[end:]


def tunnels():
    for path in sorted((FIXTURES / "pagekite").glob("*.jsonl")):
        for sides, pieces in conversations(path):
            for side in ("b2f", "f2b"):
                head, frames = after_head(sides.get(side, b""))
                for piece in (0, 7, 255):
                    put("frames", bytes([0, piece]), frames)
                    if len(frames) < 2000:
                        put("frames", bytes([1, piece]), frames)
                if side == "b2f":
                    put("handshake", b"\0", head)
                    put("visitor", b"\0", head)
                else:
                    put("handshake", b"\1", head)
            back = sides.get("f2b", b"")[:3000]
            # As if said to a backend with other kites' names.
            for options in (0, 1, 2, 12, 29):
                put("handshake", bytes([4, options, 40]), ours(back))
            for side in ("v2f", "c2s", "v2b", "c2n"):
                put("visitor", b"\0", sides.get(side, b""))
            negotiation(pieces)


def ours(answer):
    line = re.search(rb"X-PageKite-(?:SignThis|OK): ([^:]+):([^:]+):([^:\r]+)", answer)
    if not line:
        return answer
    answer = answer.replace(line[1] + b":" + line[2] + b":" + line[3], b"http:a.example:0b5a17")
    return answer


def negotiation(pieces):
    text = b"\1"
    for side, piece in pieces[:12]:
        turn = 0 if side in ("v2f", "c2s", "v2b", "c2n", "client") else 0x80
        for at in range(0, min(len(piece), 1200), 127):
            part = piece[at : at + 127]
            text += bytes([turn | len(part)]) + part
    if b"GET /id/" in text:
        put("foolscap", text)


def foolscap():
    tub = b"rznjxrmn666ovyilykucaws7ap26djwf"
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: TLS/1.0, PB/1.0\r\nConnection: Upgrade\r\n\r\n"

    def say(turn, text):
        return b"".join(
            bytes([turn | len(text[at : at + 127])]) + text[at : at + 127] for at in range(0, len(text), 127)
        )

    for host in (b"bob.alice.example", b"bob.alice.example:80", b"0x7f000001--bob.alice.example", b"carol.example"):
        request = b"GET /id/" + tub + b" HTTP/1.1\r\nHost: " + host + b"\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
        put("visitor", b"\0", request)
        for known in (b"\0", b"\1"):
            for answer in (switching, b"HTTP/1.1 500 Internal Server Error: unknown TubID\r\n\r\n"):
                put("foolscap", known, say(0, request), say(0x80, answer), say(0, b"\x16\x03\x01\0\5hello"), say(0x80, b"x"))
    for answer in (switching, b"HTTP/1.1 404 Not Found\r\nServer: TwistedWeb/22.4\r\n\r\n",
                   b"HTTP/1.1 500 Internal Server Error: unknown TubID\r\n\r\n"):
        put("visitor", b"\5", answer)


def visitors():
    for text in (
        b"GET / HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n",
        b"POST /a?b HTTP/1.1\r\nHost: bob.alice.example:8080\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT bob.alice.example:22 HTTP/1.1\r\nHost: bob.alice.example:22\r\n\r\n",
        b"GET http://bob.alice.example/ HTTP/1.1\r\nHost: bob.alice.example\r\n\r\n",
        b"GET /chat HTTP/1.1\r\nHost: x.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HEAD /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n",
        b"GET /~:PageKite:~/v0.8 HTTP/1.1\nHost: x.example\n\n",
    ):
        put("visitor", b"\0", text)
    xmpp = b"<?xml version='1.0'?><stream:stream to='bob.alice.example' xmlns='jabber:client' version='1.0'>"
    name = b"bob.alice.example"
    packet = b"\0" + b"\xff\5" + bytes([len(name)]) + name + struct.pack(">H", 25565) + b"\2"
    minecraft = bytes([len(packet)]) + packet
    for which in (b"\0", b"\3"):
        put("visitor", which, xmpp)
    for which in (b"\0", b"\4"):
        put("visitor", which, minecraft)
    v2 = b"\r\n\r\n\0\r\nQUIT\n"
    for text in (
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n",
        b"PROXY UNKNOWN ffff::1\r\n",
        v2 + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 7, 192, 0, 2, 1]) + struct.pack(">HH", 4711, 80),
        v2 + b"\x21\x21\0\x27" + bytes(32) + struct.pack(">HH", 4711, 80) + b"\x02\0\x00",
        v2 + b"\x20\0\0\0",
    ):
        put("visitor", b"\1", text)
    for path in sorted((FIXTURES / "tahoe").glob("*.jsonl")):
        for sides, pieces in conversations(path):
            for text in sides.values():
                if text[:1] == b"\x16":
                    put("visitor", b"\0", text[:1200])
                    put("visitor", b"\2", text[:1200])
                elif text[:3] in (b"GET", b"HEA", b"POS"):
                    put("visitor", b"\0", text[:2000])
                elif text[:1] == b"\5":
                    put("answers", b"\3", text[:300])
            negotiation(pieces)
    capture = (FIXTURES / "capture.pcap").read_bytes()
    for at in [m.start() for m in re.finditer(rb"\x16\x03[\x00-\x04].{2}\x01", capture, re.S)][:4]:
        put("visitor", b"\2", capture[at : at + 700])


def joins():
    body = b'{"token":"abc","kite":"bob.alice.example","secret":"0011"}'
    put("handshake", b"\2", b"POST /~:kite:~/join1 HTTP/1.1\r\nHost: join.kite\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    put("handshake", b"\2", body)
    for body in (b'{"joined":{"protocols":["foolscap"]}}', b'{"refused":"used"}'):
        put("handshake", b"\3", b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.kite.join1+json\r\nContent-Length: %d\r\n\r\n"
            % len(body), body)


def words():
    pin = "sha256:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443"
    for text in (
        "bob.alice.example", "*.alice.example.", "unknown", "raw-22", "ssh", "tahoe-https-8443", "finger",
        f"alice.example:443#{pin}", onion, f"{onion}#{pin}", "plain://alice.example:80", "alice.example:443#ca",
        "alice.example:443#name:a.example,b.example", "[2001:db8::1]:443", "192.0.2.1:443",
        "127.0.0.1:49293", "[::1]:80", "unix:/run/tahoe", "192.0.2.1:80",
        "tcp:49293:interface=127.0.0.1", "tcp6:80:interface=\\:\\:1", "unix:/x", "onion:80", "49293", "tcp:port=1",
        "tcp:bob.alice.example:80", "tor:abc.onion:80", "tcp:[fe80::1%eth0]:80", "i2p:x:1", "bob.example:80",
    ):
        put("words", text.encode())
    for frontend in (f"alice.example:443#{pin}", onion):
        text = bytes(range(48)) + b"bob.alice.example\0" + frontend.encode()
        for size in (4, 8):
            line = base64.urlsafe_b64encode(text + hashlib.sha256(text).digest()[:size]).rstrip(b"=")
            put("words", b"kite-invite1:" + line)


def files():
    for path in sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md"]:
        for kind, text in re.findall(r"```(\w+)\n(.*?)```", path.read_text(), re.S):
            if kind == "toml":
                # Without the files that it names.
                text = "\n".join(line for line in text.splitlines() if "file" not in line)
                put("files", b"\2", text.encode())
                put("files", b"\3", text.encode())
            elif kind in ("ini", "cfg"):
                put("files", b"\1", text.encode())
    for path in sorted(ROOT.glob("packaging/examples/*")) + sorted(ROOT.glob("packaging/deb/*")):
        if path.suffix == ".toml":
            text = re.sub(r"(?m)^# ?(?=[a-z\[])", "", path.read_text())
            text = "\n".join(line for line in text.splitlines() if "file" not in line)
            put("files", b"\2", text.encode())
            put("files", b"\3", text.encode())
    for name, constant in re.findall(r"const (\w+): &str = \"(.*?)\";", (ROOT / "src/tahoe/tests.rs").read_text(), re.S):
        put("files", b"\1", constant.lstrip("\\\n").encode())
    tests = (ROOT / "src/rc/tests.rs").read_text()
    for text in re.findall(r"\"((?:[^\"\\]|\\.)*)\"", tests, re.S):
        text = re.sub(r"\\\n\s*", "", text).replace("\\n", "\n").replace('\\"', '"')
        if "=" in text:
            put("files", b"\0", text.encode())


def answers():
    def labels(name):
        return b"".join(bytes([len(l)]) + l for l in name.encode().split(b".")) + b"\0"

    asked = labels("b.f.s.http.ok.test.auth.example")
    question = asked + struct.pack(">HH", 1, 1)
    alias = labels("nodays-a-3c.x.1e.64.rest.example")
    a = struct.pack(">HHIH", 1, 1, 60, 4) + bytes([0, 0, 1, 0])
    cname = struct.pack(">HHIH", 5, 1, 60, len(alias)) + alias
    for flags, records in (
        (0x8180, [b"\xc0\x0c" + a]),
        (0x8180, [b"\xc0\x0c" + cname, alias + a]),
        (0x8180, [b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, 2) + b"\xc0\x0c"]),
        (0x8183, []),
        (0x8380, []),
    ):
        put("answers", b"\0", struct.pack(">HHHHHH", 7, flags, 1, len(records), 0, 0), question, *records)
    put("answers", b"\1", b"http:bob.alice.example:0b5a17:t1234:abcdef")
    put("answers", b"\1", b"http:*.alice.example:0b5a17:t1234:abcdef")
    for text in (
        b"\5\1\0" + b"\5\1\0\3\x0bexample.com\0\x50GET /",
        b"\5\2\0\2" + b"\1\4user\4pass" + b"\5\1\0\1\x7f\0\0\1\0\x50",
        b"\5\1\0" + b"\5\1\0\4" + bytes(16) + b"\0\x50",
        b"\5\1\0" + b"\5\2\0\1\x7f\0\0\1\0\x50",
        b"\4\1\0\x50\x7f\0\0\1\0",
    ):
        put("answers", b"\3", text)
    for text in (b'{"secret": "s", "quota_kb": 100, "quota_days": 3, "ips_per_sec-ips": 5, "ips_per_sec-secs": 60}',
                 b'{"error": "no such kite"}', b'{"secret": "s", "quota_kb": 1e300}'):
        put("answers", b"\4", text)
    for pem in sys.argv[2:]:
        der = base64.b64decode("".join(l for l in Path(pem).read_text().splitlines() if not l.startswith("-----")))
        put("answers", b"\2", der)


def tub():
    pem = (ROOT / "src/fuzzing/node.pem").read_text()
    put("tub", b"\0", pem.encode())
    certificate, key = re.findall(r"-----BEGIN.*?-----END[^\n]*\n", pem, re.S)
    put("tub", b"\0", key.encode(), certificate.encode())
    der = base64.b64decode("".join(certificate.splitlines()[1:-1]))
    for scheme in (b"\x08\x04", b"\x08\x05", b"\x04\x03", b"\x08\x07", b"\x04\x01"):
        put("tub", b"\1", scheme, bytes(256))
        put("tub", b"\2", scheme, der)


def fleet():
    tests = (ROOT / "src/fleet/etcd/wire/tests.rs").read_text()
    header = re.search(r'const HEADER: &str = r#"(.*?)"#;', tests).group(1)
    for text in re.findall(r'recorded\(\s*r?#?"(.*?)"#?,?\s*\)', tests, re.S):
        text = text.replace("\\\"", '"').replace("\\n", "\n").replace("HEADER", header).encode()
        for which in range(7):
            put("fleet", bytes([3, which]), text)
        put("fleet", bytes([2, 7]), text, b"\n")
    for line in ("+ http-80 a.example s1 1 - 0", "+ raw *.example s 7 b 1", "- http x.example s", "=", "."):
        put("fleet", b"\1", line.encode())
    for key, value in (
        ("members/fe-1", '{"address":"10.0.0.1:4430","pin":"sha256:' + "A" * 43 + '","public":"alice.example:443"}'),
        ("kites/fe-1/http/bob.alice.example/s1", '{"since":7,"backend":"b","several":true}'),
        ("kites/http/bob.alice.example/s1", '{"since":7}'),
    ):
        put("fleet", b"\4", key.encode(), b"\n", value.encode())
    fields = b"".join(struct.pack(">BH", kind, len(v)) + v for kind, v in (
        (0xE0, b"http:bob.alice.example"), (0xE1, b"\1"), (0xE2, b"\3"), (0xE3, b"bob.alice.example")))
    places = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HH", 4000, 443)
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    put("fleet", b"\0", signature + b"\x21\x11" + struct.pack(">H", len(places + fields)), places, fields, b"GET / HTTP/1.1\r\n")


for source in (tunnels, foolscap, visitors, joins, words, files, answers, tub, fleet):
    source()
