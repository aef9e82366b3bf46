"""A real server and its clients for each protocol of the matrix, and the scenes that they play together.

Every class has `kite`, what stands before its server, and the scenes; `at` is where its clients dial a frontend:

    clean(at)          a small exchange each way, and an orderly end
    visitor_first(at)  the visitor ends its sending; it still gets all that it is due
    origin_first(at)   the origin ends its sending; what the visitor still sends arrives
    bulk(at)           50 MB, half of it each way
    crowd(at)          50 connections at the same time: nobody is answered before the last is there
    held(at)           opens a connection and leaves it so; the client's `Stream`

TLS as Python speaks it, WebSocket and foolscap cannot end one direction alone. There `visitor_first` and `origin_first` are
who begins the protocol's own farewell (close_notify, the closing handshake, a Tub that stops), and both ends must have seen it.
Whatever is moved is compared by hash where it arrived.
"""

import concurrent.futures
import contextlib
import itertools
import queue
import re
import socket
import ssl
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

import foolscap_peer
from island import VISITOR, Island
from kite import Kite
from proc import wait_until
from traffic import MIB, PATIENCE, Certificate, HttpOrigin, Origin, Stream, Visitor, random_bytes, sha256

SMALL = 1000
MIDDLE = 2 * MIB          # more than any buffer on the way
LATE = 100_000            # after the origin's end: more than a window of pagekite.py, less than an origin's socket takes at once
HALF = 25_000_000         # of the 50 MB
CROWD = 50
EACH = 100_000            # bytes of one in a crowd
BLOCK = MIB               # a WebSocket message

turns = itertools.count(1000)       # what is played again must not take the word of the time before


def together(number, work):
    """work(0), work(1) … at the same time; the first error is ours."""
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        for job in [pool.submit(work, i) for i in range(number)]:
            job.result()


def word_of(turn, words):
    """What the origin said of this turn, in `words`."""
    while (said := words.get(timeout=PATIENCE))[0] != turn:
        pass
    return said[1:]


def same(got, seed, size):
    assert (len(got), sha256(got)) == (size, sha256(random_bytes(seed, size))), f"{len(got)} of {size} bytes, or others"


class Http:
    """Python's http.server and http.client; for the ends, sockets that speak HTTP."""

    protocol = "http"

    def __init__(self, sup, directory):
        self.certificate = None
        self.origin = HttpOrigin(Island())
        self.kite = Kite("http", "web.bob.example", self.origin.address)

    def visitor(self, at):
        return Visitor(at, self.kite.name, self.certificate)

    def clean(self, at):
        self.visitor(at).download(seed=1, size=SMALL)
        self.visitor(at).upload(seed=2, size=SMALL)

    def visitor_first(self, at):
        with self._ask(at, "GET /bytes/3/%d" % MIDDLE) as stream:
            stream.finish()
            same(self._body(stream.read_to_end()), 3, MIDDLE)

    def origin_first(self, at):
        turn = next(turns)
        with self._ask(at, f"POST /early/{turn}/{MIDDLE}") as stream:
            same(self._body(stream.read_to_end()), turn, MIDDLE)
            stream.send(random_bytes(5, LATE))
            stream.finish()
            assert word_of(turn, self.origin.early) == (LATE, sha256(random_bytes(5, LATE)))

    def bulk(self, at):
        self.visitor(at).upload(seed=6, size=HALF)
        self.visitor(at).download(seed=7, size=HALF)

    def crowd(self, at):
        together(CROWD, lambda i: self.visitor(at).download(i, EACH, path=f"/meet/{CROWD}"))

    def held(self, at):
        stream = self._ask(at, "GET /meet/1000/1/1")
        wait_until(lambda: self.origin.gate(1000).n_waiting, 10, "the origin holds it")
        return stream

    def _ask(self, at, request):
        stream = Stream.visit(at)
        stream.send(f"{request} HTTP/1.1\r\nHost: {self.kite.name}\r\nConnection: close\r\n\r\n".encode())
        return stream

    @staticmethod
    def _body(answer):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head[:200]
        return body

    def close(self):
        self.origin.close()


class Https(Http):
    """The same in TLS, with the origin's own certificate; `visitor` sees that it is that one."""

    protocol = "https"

    def __init__(self, sup, directory):
        self.certificate = Certificate(directory, "secure.bob.example")
        self.origin = HttpOrigin(Island(), self.certificate)
        self.kite = Kite("https", "secure.bob.example", self.origin.address)

    def clean(self, at):
        super().clean(at)
        assert set(self.origin.sni) == {self.kite.name}

    def visitor_first(self, at):
        with self._open(at) as tls:
            self._get(tls, "keep-alive")
            tls.unwrap()
            self._both_said_farewell()

    def origin_first(self, at):
        with self._open(at) as tls:
            self._get(tls, "close")
            assert tls.recv(1) == b""            # raises if the end came without the origin's farewell
            tls.unwrap()
            self._both_said_farewell()

    def held(self, at):
        return Stream(self._open(at))

    def _open(self, at):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certificate.file)
        sock = socket.create_connection(at, timeout=PATIENCE, source_address=(VISITOR, 0))
        return context.wrap_socket(sock, server_hostname=self.kite.name, suppress_ragged_eofs=False)

    def _get(self, tls, connection):
        tls.sendall(f"GET /bytes/3/{MIDDLE} HTTP/1.1\r\nHost: {self.kite.name}\r\nConnection: {connection}\r\n\r\n".encode())
        stream = Stream(tls)
        head = stream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        same(stream.read(MIDDLE), 3, MIDDLE)

    def _both_said_farewell(self):
        assert self.origin.farewells.get(timeout=PATIENCE)


class Websocket:
    """The Python library `websockets` at both ends."""

    protocol = "websocket"

    def __init__(self, sup, directory):
        sock = Island().listen()
        self.gate = threading.Barrier(CROWD)
        self.ends = queue.Queue()                # how each connection was closed, as the server saw it
        self.server = serve(self._serve, sock=sock, compression=None, max_size=2 * BLOCK, ping_interval=None)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.kite = Kite("websocket", "ws.bob.example", "%s:%d" % sock.getsockname()[:2])

    def _serve(self, conn):
        with contextlib.suppress(ConnectionClosed):
            for order in conn:
                match order.split():
                    case ["take", size]:
                        conn.send(sha256(self._receive(conn, int(size))))
                    case ["give", seed, size]:
                        self._send(conn, random_bytes(int(seed), int(size)))
                    case ["meet"]:
                        self.gate.wait(PATIENCE)
                    case ["leave"]:
                        conn.close(4001, "as you wish")
        self.ends.put((conn.protocol.close_code, conn.protocol.close_reason))

    @staticmethod
    def _send(conn, data):
        for start in range(0, len(data), BLOCK):
            conn.send(data[start:start + BLOCK])

    @staticmethod
    def _receive(conn, size):
        got = bytearray()
        while len(got) < size:
            got += conn.recv(PATIENCE)
        return bytes(got)

    def _open(self, at):
        sock = socket.create_connection(at, timeout=PATIENCE, source_address=(VISITOR, 0))
        return connect(f"ws://{self.kite.name}/", sock=sock, compression=None, max_size=2 * BLOCK, ping_interval=None,
                       open_timeout=PATIENCE, close_timeout=PATIENCE, proxy=None)

    def _exchange(self, conn, seed, size):
        data = random_bytes(seed, size)
        conn.send(f"take {size}")
        self._send(conn, data)
        assert conn.recv(PATIENCE) == sha256(data)
        conn.send(f"give {seed + 1} {size}")
        same(self._receive(conn, size), seed + 1, size)

    def clean(self, at):
        with self._open(at) as conn:
            self._exchange(conn, 1, SMALL)

    def visitor_first(self, at):
        with self._open(at) as conn:
            self._exchange(conn, 3, MIDDLE)
            conn.close(4000, "enough")
            assert conn.protocol.close_code == 4000, "the server's answer to the closing handshake"
        self._seen_by_the_server(4000, "enough")

    def origin_first(self, at):
        with self._open(at) as conn:
            self._exchange(conn, 5, MIDDLE)
            conn.send("leave")
            with contextlib.suppress(ConnectionClosed):
                conn.recv(PATIENCE)
            assert (conn.protocol.close_code, conn.protocol.close_reason) == (4001, "as you wish")
        self._seen_by_the_server(4001, "as you wish")

    def bulk(self, at):
        with self._open(at) as conn:
            self._exchange(conn, 7, HALF)

    def crowd(self, at):
        def one(i):
            with self._open(at) as conn:
                conn.send("meet")
                self._exchange(conn, i, EACH)
        together(CROWD, one)

    def held(self, at):
        stream = Stream.visit(at)
        stream.send((f"GET / HTTP/1.1\r\nHost: {self.kite.name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        assert stream.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        return stream

    def _seen_by_the_server(self, *end):
        """Ends of other connections may come before."""
        while self.ends.get(timeout=PATIENCE) != end:
            pass

    def close(self):
        self.server.shutdown()


class Raw:
    """A server of lines and bytes, and clients that reach it by HTTP CONNECT."""

    protocol = "raw"
    port = 2222

    def __init__(self, sup, directory):
        self.gate = threading.Barrier(CROWD)
        self.late = queue.Queue()                # the turn; what came after the origin's own end: size and hash
        self.origin = Origin(Island(), self._serve)
        self.kite = Kite("raw", "raw.bob.example", self.origin.address)

    def _serve(self, stream):
        while order := self._line(stream).split():
            match order:
                case ["take", size]:
                    stream.send(sha256(stream.read(int(size))).encode())
                case ["give", seed, size]:
                    stream.send(random_bytes(int(seed), int(size)))
                case ["all"]:
                    start = len(stream.got)
                    stream.send(sha256(stream.read_to_end()[start:]).encode())
                case ["leave", turn]:
                    stream.finish()
                    start = len(stream.got)
                    late = stream.read_to_end()[start:]
                    self.late.put((int(turn), len(late), sha256(late)))
                    return
                case ["meet"]:
                    self.gate.wait(PATIENCE)

    @staticmethod
    def _line(stream):
        start = len(stream.got)
        while not stream.got[start:].endswith(b"\n"):
            if not stream._receive(1):
                return ""
        return bytes(stream.got[start:]).decode()

    def _open(self, at):
        stream = Stream.visit(at)
        stream.send(f"CONNECT {self.kite.name}:{self.port} HTTP/1.1\r\nHost: {self.kite.name}:{self.port}\r\n\r\n".encode())
        head = stream.read_until(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.[01] 200 ", head), head
        return stream

    @staticmethod
    def _exchange(stream, seed, size):
        data = random_bytes(seed, size)
        stream.send(b"take %d\n" % size + data)
        assert stream.read(64) == sha256(data).encode()
        stream.send(b"give %d %d\n" % (seed + 1, size))
        same(stream.read(size), seed + 1, size)

    def clean(self, at):
        with self._open(at) as stream:
            self._exchange(stream, 1, SMALL)
            self._part(stream)

    @staticmethod
    def _part(stream):
        """The visitor ends, then the origin, and nothing comes between."""
        before = len(stream.got)
        stream.finish()
        assert len(stream.read_to_end()) == before

    def visitor_first(self, at):
        with self._open(at) as stream:
            stream.send(b"give 3 %d\nall\n" % MIDDLE + random_bytes(4, MIDDLE))
            stream.finish()
            got = stream.read_to_end()[-64 - MIDDLE:]
            same(got[:-64], 3, MIDDLE)
            assert got[-64:] == sha256(random_bytes(4, MIDDLE)).encode()

    def origin_first(self, at):
        turn = next(turns)
        with self._open(at) as stream:
            stream.send(b"give 5 %d\nleave %d\n" % (MIDDLE, turn))
            same(stream.read_to_end()[-MIDDLE:], 5, MIDDLE)
            stream.send(random_bytes(6, LATE))
            stream.finish()
            assert word_of(turn, self.late) == (LATE, sha256(random_bytes(6, LATE)))

    def bulk(self, at):
        with self._open(at) as stream:
            self._exchange(stream, 7, HALF)
            self._part(stream)

    def crowd(self, at):
        def one(i):
            with self._open(at) as stream:
                stream.send(b"meet\n")
                self._exchange(stream, i, EACH)
                self._part(stream)
        together(CROWD, one)

    def held(self, at):
        return self._open(at)

    def close(self):
        self.origin.close()


class Foolscap:
    """Two real Tubs; a caller is a process of its own and knows the other by its name at the frontend only."""

    protocol = "foolscap"

    def __init__(self, sup, directory):
        self.sup = sup
        self.tub = foolscap_peer.TubOrigin(sup, Island(), "tub.bob.example")
        self.kite = Kite("foolscap", "tub.bob.example", self.tub.address)

    def _call(self, at, *order):
        return foolscap_peer.call(self.sup, self.tub.furl, {self.kite.name: at[0]}, *order)

    def clean(self, at):
        self._call(at, "exchange", 1, SMALL)

    def visitor_first(self, at):
        assert self._call(at, "leave") == {"they saw it": True}

    def origin_first(self, at):
        assert self._call(at, "dismiss") == {"we saw it": True}

    def bulk(self, at):
        self._call(at, "exchange", 7, HALF)

    def crowd(self, at):
        self._call(at, "crowd", CROWD, EACH)

    def held(self, at):
        stream = Stream.visit(at)
        tubid = re.match(r"pb://(\w+)@", self.tub.furl)[1]
        stream.send((f"GET /id/{tubid} HTTP/1.1\r\nHost: {self.kite.name}\r\nUpgrade: TLS/1.0\r\n"
                     "Connection: Upgrade\r\n\r\n").encode())
        assert stream.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        return stream

    def close(self):
        pass                                     # the supervisor's


ALL = (Http, Https, Websocket, Raw, Foolscap)
