"""Strangers in masses, and machines that are short of files, against the real programs.

Whoever behaves well is served all the time, memory stays under a stated figure (docs/limits.md), and in the end there is
nothing left: as many files are open as before.
"""

import concurrent.futures
import contextlib
import http.client
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from conftest import new_address, supervised
from island import Island
from kite import Backend, Frontend, Kite, binary
from proc import wait_until
from traffic import MIB, Origin, Stream, random_bytes, sha256

NAME = "web.bob.example"
SOON = 20               # a well-behaved visitor is served within this
SLOW = 10_000
STALLED = 1_000
HALF_OPEN = 8192        # MAX_WAITING in src/frontend/doorstep.rs
AWAITED = 4096          # MAX_WAITING in src/frontend/awaited.rs
BACKLOG = 1024          # of src/listen.rs
HEAD_MIB = 200          # docs/limits.md, "Memory under attack"
STALL_MIB = 200
BODY = random_bytes(7, 8 * MIB)

BEGINNINGS = (
    b"GET / HTTP/1.1\r\nHost: ",                                            # a head without an end
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",                        # a hello without an end
    b"CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite-Features: AddKites\r\n"     # a backend that never answers its challenge
    b"X-PageKite: http:%s:%s::\r\n\r\n" % (NAME.encode(), b"5" * 36),
)


@pytest.fixture(autouse=True)
def many_files():
    """This process holds the other end of all these connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = SLOW + 1000
    assert hard >= needed, f"the tests need {needed} open files, and {hard} are allowed: raise `ulimit -Hn`"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def files(role):
    return len(os.listdir(f"/proc/{role.proc.pid}/fd"))


def mib(role, what="VmRSS"):
    with open(f"/proc/{role.proc.pid}/status", encoding="ascii") as f:
        return int(re.search(rf"{what}:\s+(\d+) kB", f.read())[1]) / 1024


def same_files(role, before, what):
    """Nothing is left of the attack. (A file or two may come and go by themselves.)"""
    wait_until(lambda: abs(files(role) - before) <= 2, SOON + 10,
               lambda: f"{role.name} has {files(role)} files open, and had {before}: {what}")


def serve(stream):
    """An origin: /body is a whole, /flood has no end, /hold is an answer and then nothing."""
    request = stream.read_until(b"\r\n\r\n")
    if request.startswith(b"GET /flood"):
        # All this is one machine, whose kernel has some gigabytes for TCP in all.
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        with contextlib.suppress(OSError):
            stream.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                stream.sock.sendall(bytes(MIB))
    elif request.startswith(b"GET /hold"):
        stream.send(b"HTTP/1.1 200 OK\r\n\r\nhold")
        with contextlib.suppress(OSError):
            stream.sock.recv(1)
    else:
        stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY)


def begin(address, path, source=None):
    sock = socket.create_connection(address, SOON, source_address=source and (source, 0))
    sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    return sock


def held(address):
    """A visitor who has its answer, and stays."""
    sock = begin(address, "hold")
    sock.settimeout(SOON)
    got = b""
    while not got.endswith(b"hold"):
        more = sock.recv(4096)
        assert more, f"it was turned away: {got}"
        got += more
    return sock


def is_served(address):
    """A well-behaved visitor gets all of a body; how long that took."""
    start = time.monotonic()
    connection = http.client.HTTPConnection(*address, timeout=SOON)
    with contextlib.closing(connection):
        connection.request("GET", "/body", headers={"Host": NAME, "Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and sha256(body) == sha256(BODY), (answer.status, len(body))
    return time.monotonic() - start


def limited(role, files_allowed):
    """The role's process may have so many files open, from its start on."""
    spawn = role.sup.spawn

    def start(machine=None, level="debug", env=None):
        argv = ["prlimit", f"--nofile={files_allowed}:{files_allowed}", binary(), role.role, *role.flags()]
        role.proc = spawn(role.name, argv, machine=machine, cwd=role.dir, env={"KITE_LOG": level, **(env or {})},
                          log=role.dir / "log")
        return role.proc
    role.spawn = start
    return role


@pytest.fixture
def scene(kite, sup):
    """Makes a frontend and a backend, each perhaps with few files."""
    with Origin(Island(), serve) as origin, contextlib.ExitStack() as stack:
        def make(ip=None, front_files=None, back_files=None, tables=""):
            service = Kite("http", NAME, "%s:%d" % origin.sock.getsockname())
            frontend = Frontend(sup, "frontend", ip or new_address(), [service], ports=(80,), tables=tables)
            if front_files:
                limited(frontend, front_files)
            frontend.start(level="info")
            backend = Backend(sup, "backend", [frontend.pinned(port=80)], [service], tunnels=1)
            if back_files:
                limited(backend, back_files)
            backend.start().wait_up(service, frontend.ip)
            frontend.wait_up(service)
            is_served(frontend.visitors)
            return frontend, backend
        make.stack = stack
        yield make


def steady(address, done):
    """One who reads 100 KB a second, and is no less a visitor; how much it read."""
    read = 0
    with begin(address, "flood") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        sock.settimeout(SOON)
        while not done.wait(1):
            second = 0
            while second < 100_000:
                more = len(sock.recv(100_000 - second))
                assert more, "it was broken off"
                second += more
            read += second
    return read


def closing(socks):
    for sock in socks:
        sock.close()


INVITATION = (b"POST /~:kite:~/join1 HTTP/1.1\r\nHost: join.kite\r\nContent-Type: application/json\r\n"
              b"Content-Length: 200\r\n\r\n{")
VERDICT = 20            # VERDICT_TIMEOUT, PATIENCE of an invitation, VERDICT of a fleet
TLS = 30                # TLS_TIMEOUT
ANSWER = 10             # PATIENCE of an authority's program
PROOF = 60              # PROOF_TIMEOUT, HANDSHAKE_TIMEOUT


def lasts(sock, over, more_words=b"x"):
    """How long somebody is borne who goes on with a byte each second, or with nothing, and what it is told at last."""
    start, heard = time.monotonic(), b""
    sock.settimeout(1)
    with contextlib.suppress(ConnectionError, ssl.SSLError), sock:
        while not over.is_set() and time.monotonic() < start + 2 * PROOF:
            try:
                more = sock.recv(4096)
                if not more:
                    break
                heard += more
            except TimeoutError:
                sock.sendall(more_words)
    return time.monotonic() - start, heard


def silenced(sup, mute):
    """How long a backend waits for a frontend that takes its connection and says nothing."""
    start = time.monotonic()
    kite = Kite("http", NAME, "127.0.0.1:9")
    backend = Backend(sup, "waiting", ["plain://%s:%d" % mute.getsockname()], [kite], tunnels=1).start()
    backend.proc.wait_log("gave no verdict within 60 s", 2 * PROOF)
    return time.monotonic() - start, b""


LOOKED_AT = 30                  # MAX_LOOKS, of 5 s each
QUIET = "quiet.bob.example"


def quiet(stream):
    """A node of foolscap's kind that says nothing to its visitors."""
    request = stream.read_until(b"\r\n\r\n")
    if request.startswith(b"GET /id/" + b"a" * 32):
        with contextlib.suppress(OSError):
            stream.sock.recv(1)
    else:
        stream.send(b"HTTP/1.1 500 Internal Server Error: unknown TubID %s\r\n\r\n" % request.split()[1][4:])


def looked_at(sup, over):
    """How many of two visitors are moved when the tunnel of both falls silent: one has been there for too long."""
    def visit():
        sock = socket.create_connection(frontend.visitors, SOON)
        sock.sendall(b"GET /id/%s HTTP/1.1\r\nHost: %s\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
                     % (b"a" * 32, QUIET.encode()))
        return sock

    with Origin(Island(), quiet) as node, contextlib.ExitStack() as stack:
        mine = Kite("foolscap", QUIET, "%s:%d" % node.sock.getsockname())
        frontend = Frontend(sup, "looking", new_address(), [mine], ports=(80,))
        text, name = frontend.file.read_text(), f'name = "{QUIET}"\n'
        frontend.file.write_text(text.replace(name, name + "backends = 2\n"))
        frontend.start()
        first, second = (Backend(sup, who, [frontend.pinned(port=80)], [mine], tunnels=1) for who in ("first", "second"))
        first.start().wait_up(mine, frontend.ip)
        stack.enter_context(visit())
        over.wait(LOOKED_AT - 12)
        stack.enter_context(visit())
        over.wait(1)
        second.start().wait_up(mine, frontend.ip)
        over.wait(LOOKED_AT + 3 - (LOOKED_AT - 12) - 1)
        os.kill(first.proc.pid, signal.SIGSTOP)
        try:
            over.wait(14)
        finally:
            os.kill(first.proc.pid, signal.SIGCONT)
        return frontend.proc.text().count("is moved to another tunnel")


def unanswered(sup):
    """How long a backend waits for the verdict of a frontend whose authority is a program that says nothing."""
    program = sup.directory / "says-nothing"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    frontend = Frontend(sup, "asking", new_address(), [], ports=(80,),
                        tables=f'[[authorities]]\ndomain = "bob.example"\nprogram = "{program}"\nprotocols = ["http"]\n').start()
    start = time.monotonic()
    kite = Kite("http", NAME, "127.0.0.1:9")
    Backend(sup, "judged", [frontend.pinned(port=80)], [kite], tunnels=1).start()
    frontend.proc.wait_log("kite refused: http:" + NAME, 2 * PROOF)
    return time.monotonic() - start, b""


def hello():
    """What a TLS client says first to a frontend's own name."""
    context, out = ssl._create_unverified_context(), ssl.MemoryBIO()
    context.set_alpn_protocols(["x-pagekite/1"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


ELSEWHERE, INNER = "elsewhere.bob.example", 4430
ENTRY = r'the others write it down as: (id = "\w+"), (address = "\S+"), (pin = "\S+")'


def offered(sup, over):
    """How long a member of a fleet is waited for that was offered a visitor, and says nothing to it."""
    mine, entries = Kite("http", ELSEWHERE, "127.0.0.1:9"), ""
    members = [Frontend(sup, name, new_address(), [mine], ports=(80,)) for name in ("offering", "silent")]
    for member in members:
        head = f'\n[fleet]\nid = "{member.name}"\nlisten = "{member.ip}:{INNER}"\n'
        member.file.write_text(member.file.read_text() + head)
        member.start()
        entries += "\n[[fleet.members]]\n" + "\n".join(member.proc.wait_log(ENTRY, SOON).groups()) + "\n"
        member.stop()
    offering, silent = members
    key, certificate = silent.state / "fleet-key.pem", silent.dir / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-key", key, "-subj", "/CN=silent", "-out", certificate], check=True)
    offering.file.write_text(offering.file.read_text() + entries)
    offering.start()

    def tls(server, purpose):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(certificate, key)
        context.set_alpn_protocols([f"x-kite-fleet-{purpose}/1"])
        return context

    def take(stream):
        with contextlib.suppress(OSError), tls(True, "visit").wrap_socket(stream.sock, server_side=True) as sock:
            while sock.recv(4096):
                pass

    with Origin(Island(), take, (silent.ip, INNER)), socket.create_connection((offering.ip, INNER)) as plain, \
            tls(False, "link").wrap_socket(plain) as link, contextlib.ExitStack() as stack:
        link.sendall(b"kite-fleet 1 silent boot\n+ http %s s1 1 - 0\n=\n" % ELSEWHERE.encode())
        ended = threading.Event()
        stack.callback(ended.set)

        def beat():
            while not ended.wait(2):
                link.sendall(b".\n")
        threading.Thread(target=beat).start()
        wait_until(lambda: offering.status()["fleet"]["members"][0]["kites"] == 1, SOON, lambda: offering.proc.tail())
        start = time.monotonic()
        with socket.create_connection(offering.visitors, SOON) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % ELSEWHERE.encode())
            sock.settimeout(1)
            while not over.is_set() and time.monotonic() < start + 2 * PROOF:
                with contextlib.suppress(TimeoutError):
                    return time.monotonic() - start, sock.recv(4096)
        return 0, b""


def queue(address):
    """How many connections the kernel keeps of a port until they are accepted."""
    shown = subprocess.run(["ss", "-Hltn", "src", "%s:%d" % address], capture_output=True, text=True, check=True)
    return int(shown.stdout.split()[2])


@pytest.fixture(scope="module", autouse=True)
def too_slow(kite, tmp_path_factory):
    """Begun with the first test of this file, and looked at in its last: they take a minute."""
    with supervised(tmp_path_factory.mktemp("too-slow")) as sup, Island().listen((new_address(), 0)) as mute, \
            concurrent.futures.ThreadPoolExecutor(16) as pool:
        frontend = Frontend(sup, "frontend", new_address(), [Kite("http", NAME, "127.0.0.1:9")], ports=(80,)).start()

        over = threading.Event()

        def begun(words, wrap=lambda sock: sock, more_words=b"x"):
            sock = wrap(socket.create_connection(frontend.visitors, SOON))
            sock.sendall(words)
            return pool.submit(lasts, sock, over, more_words)

        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["x-pagekite/1"])
        yield {
            "visitor": begun(BEGINNINGS[0]),
            "invitation": begun(INVITATION, context.wrap_socket),
            "backend": begun(BEGINNINGS[2] + b"7000\r\n"),
            "TLS client": begun(hello(), more_words=b""),
            "frontend": pool.submit(silenced, sup, mute),
            "authority": pool.submit(unanswered, sup),
            "member": pool.submit(offered, sup, over),
            "looked at": pool.submit(looked_at, sup, over),
        }
        # Where other tests were asked for, nobody waits.
        over.set()
        assert not sup.stop_all()


def test_ten_thousand_slow_visitors(scene):
    frontend, _ = scene(ip="127.0.0.1")
    before, base, slow, times = files(frontend), mib(frontend), [], []
    for n in range(SLOW):
        sock = socket.create_connection(frontend.visitors, SOON, source_address=(f"127.0.0.{2 + n % 20}", 0))
        sock.sendall(BEGINNINGS[n % len(BEGINNINGS)])
        slow.append(sock)
        if n % 1000 == 999:
            times.append(is_served(frontend.visitors))
    assert files(frontend) <= before + HALF_OPEN + 8
    assert queue(frontend.visitors) == BACKLOG
    for sock in slow:
        with contextlib.suppress(OSError):
            sock.sendall(b"x")
    times.append(is_served(frontend.visitors))
    most = mib(frontend, "VmHWM") - base
    closing(slow)
    same_files(frontend, before, "slow visitors")
    times.append(is_served(frontend.visitors))
    print(f"{SLOW} slow visitors: {most:.0f} MiB more at most, {mib(frontend) - base:.0f} MiB more afterwards; "
          f"8 MiB were served in {max(times):.1f} s at most")
    assert most < HEAD_MIB, f"{most:.0f} MiB"


def test_a_thousand_stalled_readers(scene):
    frontend, backend = scene()
    roles = (frontend, backend)
    before, base, stalled = [files(r) for r in roles], [mib(r) for r in roles], []
    done = threading.Event()
    slow = scene.stack.enter_context(concurrent.futures.ThreadPoolExecutor()).submit(steady, frontend.visitors, done)
    scene.stack.callback(done.set)
    time.sleep(3)
    for _ in range(STALLED):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(SOON)
        sock.connect(frontend.visitors)
        sock.sendall(f"GET /flood HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        stalled.append(sock)
    times = [is_served(frontend.visitors) for _ in range(3)]
    most = [mib(r, "VmHWM") - b for r, b in zip(roles, base)]
    done.set()
    read = slow.result(SOON)
    closing(stalled)
    for role, number in zip(roles, before):
        same_files(role, number, "stalled readers")
    times.append(is_served(frontend.visitors))
    print(f"{STALLED} stalled readers in one tunnel: {most[0]:.0f} MiB more at the frontend, {most[1]:.0f} MiB at the "
          f"backend; 8 MiB were served in {max(times):.1f} s at most; one who is slow read {read // 1024} KB")
    assert max(most) < STALL_MIB, most


def test_few_files(scene):
    """Each side takes as many visitors as half of its files allow, and keeps the rest for itself."""
    frontend, backend = scene(front_files=300)
    assert "[KITE-C54]" in frontend.proc.text() and " 150 connections at a time" in frontend.proc.text()
    before = files(frontend)
    slow = []
    for _ in range(400):
        slow.append(socket.create_connection(frontend.visitors, SOON))
        slow[-1].sendall(b"GET")
    is_served(frontend.visitors)
    closing(slow)
    same_files(frontend, before, "slow visitors")
    # As many as there may be, besides the tunnel. One more waits, and is served when one has left.
    full = [held(frontend.visitors) for _ in range(149)]
    waiting = begin(frontend.visitors, "hold")
    waiting.settimeout(1)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    assert frontend.status()["role"] == "frontend", "it still answers its owner"
    full.pop().close()
    waiting.settimeout(SOON)
    assert waiting.recv(4)
    closing([*full, waiting])
    same_files(frontend, before, "held visitors")
    is_served(frontend.visitors)
    frontend.stop()
    backend.stop()


def test_few_files_at_the_backend(scene):
    frontend, backend = scene(back_files=300)
    assert "[KITE-C54]" in backend.proc.text()
    before = files(backend)
    full = [held(frontend.visitors) for _ in range(150)]
    refused = begin(frontend.visitors, "body")
    refused.settimeout(SOON)
    assert refused.recv(12) == b"HTTP/1.1 503"
    closing([*full, refused])
    same_files(backend, before, "held visitors")
    wait_until(lambda: _served(frontend), SOON, "it serves again")
    assert len(backend.tunnels()) == 1, "the tunnel stood all the time"


def _served(frontend):
    try:
        return is_served(frontend.visitors)
    except AssertionError:
        return None


def allow(role, number):
    subprocess.run(["prlimit", "--pid", str(role.proc.pid), f"--nofile={number}:"], check=True)


def test_no_files_at_all(scene):
    """What is promised is not there after all. Both sides live through it, and say so once."""
    frontend, backend = scene()
    mark = frontend.proc.mark()
    allow(frontend, files(frontend))
    waiting = [begin(frontend.visitors, "hold") for _ in range(5)]
    frontend.proc.wait_log(r"\[KITE-C41\] cannot accept a connection", SOON, mark)
    time.sleep(1)
    assert len(re.findall("KITE-C41", frontend.proc.text(mark))) == 1, "a shortage of files fills no disk"
    allow(frontend, 4096)
    for sock in waiting:
        sock.settimeout(SOON)
        assert sock.recv(4)
    closing(waiting)
    is_served(frontend.visitors)

    allow(backend, files(backend))
    refused = begin(frontend.visitors, "body")
    refused.settimeout(SOON)
    assert refused.recv(12) == b"HTTP/1.1 503"
    refused.close()
    allow(backend, 4096)
    wait_until(lambda: _served(frontend), SOON, "it serves again")
    assert len(backend.tunnels()) == 1


def test_only_so_many_wait_for_who_is_not_back(kite, sup):
    """More are told at once. Whoever waits is served when the kite is back."""
    with Origin(Island(), serve) as origin:
        service = Kite("http", NAME, "%s:%d" % origin.sock.getsockname())
        frontend = Frontend(sup, "frontend", "127.0.0.1", [service], ports=(80,), keys={"grace": "10m"}).start()
        waiting = [begin(frontend.visitors, "hold") for _ in range(AWAITED)]
        wait_until(lambda: frontend.proc.text().count("a visitor waits for") == AWAITED, SOON, "all of them wait")
        more = begin(frontend.visitors, "hold")
        more.settimeout(SOON)
        assert more.recv(12) == b"HTTP/1.1 503"
        # Who has left makes room, although it is not known whether it only says no more.
        for sock in waiting[1:-1]:
            sock.close()
        more.close()
        more = wait_until(lambda: _waits(frontend), 30, "somebody else may wait")
        backend = Backend(sup, "backend", [frontend.pinned(port=80)], [service], tunnels=2).start()
        backend.wait_up(service, frontend.ip)
        for sock in (waiting[0], waiting[-1], more):
            sock.settimeout(SOON)
            assert sock.recv(12) == b"HTTP/1.1 200"
        closing([waiting[0], waiting[-1], more])


def _waits(frontend):
    """A visitor who is not told at once that nobody is there."""
    sock = begin(frontend.visitors, "hold")
    sock.settimeout(0.5)
    try:
        told = sock.recv(12)
    except TimeoutError:
        return sock
    assert told == b"HTTP/1.1 503"
    sock.close()
    return None


METRICS, PAGE = ("127.0.0.1", 9474), ("127.0.0.1", 7475)
DOORS = '\n[metrics]\nlisten = "%s:%d"\n[web]\nlisten = "%s:%d"\n' % (*METRICS, *PAGE)


def says(address, text):
    """What a door answers to this; nothing if it closes."""
    with socket.create_connection(address, SOON) as sock, contextlib.suppress(OSError):
        sock.settimeout(SOON)
        with contextlib.suppress(OSError):
            sock.sendall(text)
        return sock.recv(12)
    return b""


def test_the_doors_of_this_machine(scene):
    frontend, _ = scene(tables=DOORS)
    before, base = files(frontend), mib(frontend)
    host = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9474\r\n"
    assert says(METRICS, host + b"\r\n") == b"HTTP/1.1 200"
    for huge in (b"X: " + b"x" * 100_000, b"X: x\r\n" * 1000, b"x" * MIB):
        for door in (METRICS, PAGE):
            answer = says(door, host + huge + b"\r\n\r\n")
            assert answer in (b"", b"HTTP/1.1 431", b"HTTP/1.1 400"), answer
    # More than a door takes at a time, all silent or slow.
    slow = [socket.create_connection(door, SOON) for door in (METRICS, PAGE) for _ in range(40)]
    for n, sock in enumerate(slow):
        if n % 2:
            sock.sendall(b"GET /")
    # At the control socket, too, one says nothing, and one more than there may be.
    control = str(frontend.state / "frontend.sock")
    silent, loud = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    silent.connect(control)
    loud.connect(control)
    shouting = threading.Thread(target=lambda: _shout(loud))
    shouting.start()
    assert frontend.status()["role"] == "frontend", "after those who are slow"
    shouting.join(SOON)
    start = time.monotonic()
    assert says(METRICS, host + b"\r\n") == b"HTTP/1.1 200"
    assert says(PAGE, b"GET / HTTP/1.1\r\nHost: 127.0.0.1:7475\r\n\r\n")
    print(f"behind 40 slow ones: {time.monotonic() - start:.1f} s")
    closing([*slow, silent, loud])
    same_files(frontend, before, "at its doors")
    is_served(frontend.visitors)
    assert mib(frontend, "VmHWM") - base < 64


def _shout(sock):
    with contextlib.suppress(OSError):
        sock.sendall(b"reload\n" + bytes(16 * MIB))


def test_whoever_takes_too_long_is_let_go(too_slow):
    """However many bytes come, each a second after the other."""
    for who, bound, told in (("visitor", VERDICT, b""), ("invitation", VERDICT, b"HTTP/1.0 503"),
                             ("backend", PROOF, b"HTTP/1.1 200"), ("frontend", PROOF, b""),
                             ("member", VERDICT, b"HTTP/1.1 503"), ("TLS client", TLS, b"\x16"), ("authority", ANSWER, b"")):
        lasted, heard = too_slow[who].result(3 * PROOF)
        assert bound - 1 <= lasted <= bound + 20, f"{who}: {lasted:.0f} s"
        assert heard.startswith(told), f"{who}: {heard}"
    assert too_slow["looked at"].result(3 * PROOF) == 1
