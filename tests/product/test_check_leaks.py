"""`kite check --leaks`: what a user can run who has no second machine, no capture and no root.

Nor does this file need root: the island is a namespace that any user may make (`unshare -rn`, where that is
allowed), with the Tor network, the frontends and the backend on its loopback.
"""

import os
import re
import shutil
import socket
import subprocess

import pytest

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite
from traffic import HttpOrigin

SECONDS = 25                      # a cold start takes some five, on a busy machine twenty
NAME = "alice.check.example"

# A program that means well, started below strace before the backend is.  It leaks in every way that has a name.
LEAKY = """#!/bin/sh
{python} - <<'EOF'
import socket, threading
def try_(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        try:
            s.connect(address)
            s.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
        except OSError:
            pass
inet, unix = socket.AF_INET, socket.AF_UNIX
try_(inet, socket.SOCK_DGRAM, ("127.0.0.53", 53))
try_(inet, socket.SOCK_STREAM, ("192.0.2.53", 53))
try_(inet, socket.SOCK_STREAM, ("{frontend}", 443))
try_(inet, socket.SOCK_STREAM, ("192.0.2.80", 80))
try_(unix, socket.SOCK_STREAM, "{resolver}")
with socket.create_server(("0.0.0.0", 0)):
    pass
# Threads cut each other's lines in two.
threads = [threading.Thread(target=try_, args=(inet, socket.SOCK_STREAM, ("192.0.2.81", p))) for p in range(1, 9)]
[t.start() for t in threads]
[t.join() for t in threads]
EOF
exec {timeout} "$@"
"""


@pytest.fixture
def backend(kite, sup, tornet):
    """A backend that has not been started, with a frontend by name and one by number."""
    ip = new_address()
    tornet.names[NAME] = ip
    with HttpOrigin(Island()) as web:
        service = Kite("http", "web.bob.example", web.address)
        named = Frontend(sup, "named", ip, [service]).start()
        numbered = Frontend(sup, "numbered", new_address(), [service]).start()
        made = Backend(sup, "backend", [named.pinned(NAME), numbered.pinned()], [service],
                       via_tor=tornet.arti_toml(sup.directory / "tor"), socks="127.0.0.1:9157")
        made.file.write_text(made.file.read_text() + f'\n[metrics]\nlisten = "127.0.0.1:9464"\n[web]\nlisten = "unix:{made.dir}/page"\n')
        made.to = [named, numbered]
        yield made


def check(kite, backend, seconds=SECONDS, path=None, more=()):
    for program in ("strace", "timeout"):
        assert shutil.which(program), f"the tests need {program}: apt-get install strace coreutils"
    env = {**os.environ, **({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})}
    done = subprocess.run([kite, "check", "--leaks", "--config", backend.file, "--seconds", str(seconds), *more],
                          env=env, capture_output=True, text=True, timeout=seconds + 60)
    print(done.stdout, done.stderr[-3000:])
    assert not list(backend.state.glob("check.trace")), "the trace, which names guards, is left behind"
    return done


def test_a_backend_leaks_nothing(kite, backend, tornet):
    done = check(kite, backend)
    assert done.returncode == 0
    assert "kite up: http:web.bob.example" in done.stderr, "it did its work meanwhile"
    assert done.stdout.endswith("no leak\n")
    dialled = re.search(r"^Tor relays +addresses +(\d+), calls +(\d+)$", done.stdout, re.M)
    assert dialled and 1 <= int(dialled[1]) <= int(dialled[2])
    assert re.search(r"^the SOCKS port, opened +addresses +1, calls +1$", done.stdout, re.M)
    assert re.search(r"^metrics or page, opened +addresses +1, calls +1$", done.stdout, re.M)
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", done.stdout), "an address, which may be a guard's"
    for frontend in backend.to:
        assert frontend.tunnel_peers() and set(frontend.tunnel_peers()) <= tornet.exits


def test_every_leak_is_found(kite, backend, tmp_path):
    """The same judge, where a program beside the backend leaks."""
    resolver = tmp_path / "resolver"
    resolver.mkdir()
    path = tmp_path / "bin"
    path.mkdir()
    script = path / "timeout"
    ip = backend.to[1].ip
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(resolver / "s"))
        daemon.listen()
        script.write_text(LEAKY.format(python=shutil.which("python3"), frontend=ip, resolver=resolver / "s",
                                       timeout=shutil.which("timeout")))
        script.chmod(0o755)
        done = check(kite, backend, seconds=2, path=path, more=["--verbose"])
    assert done.returncode == 1
    leaks = set(re.findall(r"^LEAK: (.*) \(calls: \d+\)$", done.stdout, re.M))
    assert leaks >= {
        "AF_INET SOCK_DGRAM IPPROTO_IP: a socket that is not for TCP",
        "127.0.0.53:53: a name server",
        "192.0.2.53:53: a name server",
        f"{ip}:443: a frontend, past Tor",
        "192.0.2.80:80: neither of Tor nor the origin",
        f"the Unix socket {resolver / 's'}: a program of this machine, which may ask others",
        "0.0.0.0:0: a port of this machine that was opened",
        *(f"192.0.2.81:{port}: neither of Tor nor the origin" for port in range(1, 9)),
    }
    assert not any("10.77.0." in leak for leak in leaks), "a relay is no leak"


def test_what_proves_nothing_is_no_clean_bill(kite, backend, tmp_path):
    """Exit status 2: a backend that ends by itself, one in direct mode, and no strace."""
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    direct = Backend(backend.sup, "direct", ["plain://10.77.1.254:1"], [service])
    done = check(kite, direct)
    assert done.returncode == 2 and "does not use Tor" in done.stderr
    (tmp_path / "empty").mkdir()
    done = subprocess.run([kite, "check", "--leaks", "--config", backend.file], env={"PATH": str(tmp_path / "empty")},
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "apt-get install strace" in done.stderr
    running = backend.start()
    running.wait_tor()
    backend.file.write_text(backend.file.read_text().replace('socks_listen = "127.0.0.1:9157"', ""))
    done = check(kite, backend)
    assert done.returncode == 2 and "ended by itself" in done.stderr
    running.stop()
