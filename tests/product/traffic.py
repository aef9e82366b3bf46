"""Visitors and origins made of plain sockets, which write down every byte.

`Stream` is one end of a connection: it sends in random pieces, half-closes, and
keeps all that it got.  `Recorder` is an origin that plays a script with each
visitor.  `HttpOrigin` serves bulk, with TLS if asked.  Nothing here knows kite.
"""

import contextlib
import datetime
import hashlib
import http.client
import http.server
import queue
import random
import re
import socket
import socketserver
import ssl
import threading
import time
import urllib.parse

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from island import VISITOR

PATIENCE = 60          # seconds that one socket operation may take
PIECES = (1, 2, 3, 5, 17, 130, 498, 1389, 1400, 4096, 16384, 65536)
MIB = 1 << 20


def random_bytes(seed, size):
    return random.Random(seed).randbytes(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Stream:
    """One end of a connection, and all that arrived at it."""

    def __init__(self, sock):
        self.sock = sock
        self.got = bytearray()
        self.ended = False                   # the other end has half-closed
        self._pushed_back = b""
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def visit(cls, address):
        return cls(socket.create_connection(address, timeout=PATIENCE, source_address=(VISITOR, 0)))

    def send(self, data, rng=None):
        """Send it all: at once, or cut into pieces of random sizes with pauses between some."""
        view = memoryview(data)
        while rng and view:
            size = rng.choice(PIECES)
            self.sock.sendall(view[:size])
            view = view[size:]
            if rng.random() < 0.1:
                time.sleep(0.002)
        self.sock.sendall(view)

    def read(self, size):
        """Exactly so many bytes more."""
        end = len(self.got) + size
        while len(self.got) < end:
            if not self._receive(end - len(self.got)):
                raise AssertionError(f"the stream ended {end - len(self.got)} bytes too early, after "
                                     f"{len(self.got)}: …{bytes(self.got[-60:])!r}")
        return bytes(self.got[end - size:])

    def read_until(self, mark, limit=65536):
        """Byte by byte to a mark, so that nothing behind it is taken."""
        start = len(self.got)
        while mark not in self.got[start:]:
            if len(self.got) - start >= limit or not self._receive(1):
                raise AssertionError(f"no {mark!r} in {bytes(self.got[start:])!r}")
        return bytes(self.got[start:])

    def read_to_end(self):
        while self._receive(65536):
            pass
        return bytes(self.got)

    def finish(self):
        """No more from here: half-close."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        self.sock.close()

    def _receive(self, most):
        try:
            data = self.sock.recv(most)
        except socket.timeout:
            raise AssertionError(f"nothing for {PATIENCE} s, after {len(self.got)} bytes: "
                                 f"…{bytes(self.got[-60:])!r}") from None
        self.got += data
        self.ended = not data
        return data

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Origin:
    """A TCP server: `serve(stream)` runs in a thread of its own for each visitor."""

    def __init__(self, machine, serve, address=("127.0.0.1", 0)):
        self.sock = machine.listen(address)
        self.serve = serve
        self.errors = []
        self.visits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self):
        return "%s:%d" % self.sock.getsockname()[:2]

    def _accept(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            self.visits += 1
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock):
        with contextlib.closing(sock):
            try:
                self.serve(Stream(sock))
            except Exception as e:           # noqa: BLE001 - reported by whoever looks at `errors`
                self.errors.append(e)

    def close(self):
        # shutdown wakes the thread in accept(); close alone would not.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Recorder(Origin):
    """An origin that plays the expected script with the next visitor and keeps the stream.

    A foolscap negotiation for a TubID that was not announced is answered as a
    foolscap node would answer it, and counted apart: kite looks at an origin
    in this way before it serves it.
    """

    UNKNOWN = b"HTTP/1.1 500 Internal Server Error: unknown TubID %s\r\n\r\n"

    def __init__(self, machine):
        super().__init__(machine, self._play)
        self._scripts, self._done = queue.Queue(), queue.Queue()
        self.tubids = set()
        self.probes = 0

    def expect(self, script, tubid=None):
        """The script of the next visitor, in place of any that an earlier test left behind."""
        self._scripts, self._done = queue.Queue(), queue.Queue()
        if tubid:
            self.tubids.add(tubid)
        self._scripts.put(script)

    def result(self):
        """The stream that the expected visitor had; raises what its script raised."""
        try:
            stream, error = self._done.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"no visitor reached the origin (visits {self.visits}, probes {self.probes}, "
                                 f"errors {self.errors})") from None
        if error:
            raise error
        return stream

    def _play(self, stream):
        probe = self._probe(stream)
        if probe is not None:
            self.probes += 1
            stream.send(self.UNKNOWN % probe)
            return
        scripts, done = self._scripts, self._done
        try:
            script = scripts.get(timeout=5)
        except queue.Empty:
            raise AssertionError("a visitor that nobody expected") from None
        try:
            script(stream)
            done.put((stream, None))
        except Exception as e:               # noqa: BLE001
            done.put((stream, e))

    def _probe(self, stream):
        """The made-up TubID that it asks for; None for a visitor.  Takes no byte from the stream."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            seen = stream.sock.recv(200, socket.MSG_PEEK)
            request = re.match(rb"GET /id/([a-z2-7]*) HTTP/1.1\r\n", seen)
            if request:
                return None if request[1].decode() in self.tubids else request[1]
            if not seen or not (b"GET /id/".startswith(seen[:8]) and b"\r\n" not in seen):
                return None
            time.sleep(0.01)
        raise AssertionError(f"a visitor stopped in its first line: {seen!r}")


class Certificate:
    """A self-signed one, made for this run."""

    def __init__(self, directory, name, *more):
        """`more` are further names, perhaps wildcards."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        cert = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
                .public_key(key.public_key()).serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=2))
                .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in (name, *more)]), critical=False)
                .sign(key, hashes.SHA256()))
        self.der = cert.public_bytes(serialization.Encoding.DER)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                              serialization.NoEncryption())
            + cert.public_bytes(serialization.Encoding.PEM))
        self.file.chmod(0o600)


class HttpOrigin:
    """HTTP for bulk, plain or with its own certificate.

    GET  /bytes/SEED/SIZE      so many random bytes
    POST /hash                 the SHA-256 of the body, and its size
    GET  /meet/N/SEED/SIZE     the same as /bytes, once N such requests are there at the same time
    POST /early/SEED/SIZE      the same as /bytes, and no more after it; only then the body is read, to its end

    `early` has the SEED, the size and the SHA-256 of such bodies; `farewells` has True for each TLS connection on which both ends
    said close_notify.
    """

    def __init__(self, machine, certificate=None):
        self.sni = []
        self.gates = {}
        self.early, self.farewells = queue.Queue(), queue.Queue()
        self._lock = threading.Lock()
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.file)
            context.sni_callback = lambda sock, name, ctx: self.sni.append(name)
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = PATIENCE

            def do_GET(self):
                parts = urllib.parse.urlparse(self.path).path.strip("/").split("/")
                if parts[0] == "meet":
                    origin.gate(int(parts[1])).wait(PATIENCE)
                    parts = parts[1:]
                self.answer(random_bytes(int(parts[1]), int(parts[2])))

            def do_POST(self):
                if self.path.startswith("/early/"):
                    return self.answer_early()
                digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
                size = left
                while left:
                    data = self.rfile.read(min(left, 1 << 18))
                    if not data:
                        return
                    digest.update(data)
                    left -= len(data)
                self.answer(f"{digest.hexdigest()} {size}".encode())

            def answer_early(self):
                _, seed, size = self.path.strip("/").split("/")
                self.answer(random_bytes(int(seed), int(size)))
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_WR)
                body = self.rfile.read()
                origin.early.put((int(seed), len(body), sha256(body)))
                self.close_connection = True

            def answer(self, body):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def finish_request(self, request, client):
                if context is None:
                    return Handler(request, client, self)
                request.settimeout(PATIENCE)
                with contextlib.suppress(OSError, ssl.SSLError), \
                        context.wrap_socket(request, server_side=True) as secure:
                    Handler(secure, client, self)
                    secure.unwrap()
                    origin.farewells.put(True)

            def handle_error(self, request, client):
                pass                             # the visitor sees what it gets

        self.server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.socket.close()
        self.server.socket = machine.listen()
        self.address = "%s:%d" % self.server.socket.getsockname()[:2]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def gate(self, size):
        with self._lock:
            return self.gates.setdefault(size, threading.Barrier(size))

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Visitor:
    """An HTTP client that dials an address and asks for a name, in Host and in SNI."""

    def __init__(self, address, name, certificate=None, patience=PATIENCE):
        self.address, self.name, self.certificate, self.patience = address, name, certificate, patience

    def ask(self, method, path, body=None, timeout=None):
        """(status, body) of one request on a connection of its own."""
        timeout = timeout or self.patience
        conn = http.client.HTTPConnection(*self.address, timeout=timeout, source_address=(VISITOR, 0))
        with contextlib.closing(conn):
            conn.connect()
            if self.certificate:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(self.certificate.file)
                conn.sock = context.wrap_socket(conn.sock, server_hostname=self.name)
                # Not merely a certificate for that name: the origin's own, from end to end.
                assert conn.sock.getpeercert(binary_form=True) == self.certificate.der
            conn.request(method, path, body=body, headers={"Host": self.name, "Connection": "close"})
            answer = conn.getresponse()
            return answer.status, answer.read()

    def get(self, path):
        status, body = self.ask("GET", path)
        assert status == 200, f"GET {path}: {status} {body[:300]!r}"
        return body

    def upload(self, seed, size):
        """Send random bytes; the origin's digest of what reached it must be ours."""
        data = random_bytes(seed, size)
        status, answer = self.ask("POST", "/hash", body=data)
        assert (status, answer.decode()) == (200, f"{sha256(data)} {size}")

    def download(self, seed, size, path="/bytes"):
        data = self.get(f"{path}/{seed}/{size}")
        assert (len(data), sha256(data)) == (size, sha256(random_bytes(seed, size)))


class Busy:
    """Threads that go on for as long as the block lasts: until `_stop` is set.  What they do not expect is an error of the block."""

    def __init__(self, work, arguments):
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._unexpected = []

        def guarded(*args):
            try:
                work(*args)
            except BaseException as e:             # noqa: BLE001 - it is raised where the block ends
                self._unexpected.append(e)
        self._threads = [threading.Thread(target=guarded, args=each) for each in arguments]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._unexpected and exc[0] is None:
            raise self._unexpected[0]


class Tap(Origin):
    """A plain relay in front of a server on the same machine: it notes how each visitor begins."""

    def __init__(self, machine, target, address=("127.0.0.1", 0)):
        self.machine, self.target = machine, target
        self.beginnings = []                 # of each visitor, the first piece that arrived
        super().__init__(machine, self._relay, address)

    def _relay(self, visitor):
        first = visitor.sock.recv(65536)
        self.beginnings.append(first)
        first = self._passed(first)
        if not first:
            return
        with Stream(self.machine.connect(self.target)) as server:
            for stream in (visitor, server):
                stream.sock.settimeout(None)             # storage connections may be silent for days
            server.send(first)
            back = threading.Thread(target=self._pump, args=(server, visitor), daemon=True)
            back.start()
            self._pump(visitor, server)
            back.join()

    def _passed(self, first):
        """What is passed on of a visitor's first piece; nothing, and it is hung up on."""
        return first

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.sock.recv(65536):
                sink.sock.sendall(data)
            sink.finish()
        except OSError:                                  # one side is gone, so the other has to go
            for stream in (source, sink):
                with contextlib.suppress(OSError):
                    stream.sock.shutdown(socket.SHUT_RDWR)

    def protocols(self):
        """Which of Tahoe's storage protocols were spoken: foolscap's GET, or TLS at once."""
        return {"foolscap" if b.startswith(b"GET /id/") else "https" if b.startswith(b"\x16\x03") else repr(b[:8])
                for b in self.beginnings if b}
