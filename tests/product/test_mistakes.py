"""The mistakes that people make, each made on purpose: kite must name it by its code, say what it is about and what to do,
and go on by itself once it is mended, where it can.

Two more need a Tor network and are in test_staying_up.py: Tor blocked (KITE-T03), and a wrong clock (KITE-T07).
"""

import contextlib
import fcntl
import http.server
import json
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time

import pytest

from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, binary, run, secret_file
from proc import wait_until

NAME = "tahoebob.alice.example"
TOLD_S = 15


def explained(code):
    """What `kite explain` says of it: an entry with all its parts."""
    done = subprocess.run([binary(), "explain", "--json", code], capture_output=True, text=True, timeout=10, check=True)
    entry = json.loads(done.stdout)
    assert entry["code"] == code and all(entry[part] for part in ("title", "cause", "subject", "remedy", "then", "example"))
    return entry


def told(proc, code, *words):
    """The line of the log with this code has these words, in this order."""
    pattern = rf"(?:WARN|ERROR) \[{code}\] " + ".*".join(["", *map(re.escape, words), ""])
    proc.wait_log(pattern, TOLD_S)
    explained(code)


def refused(code, *words, args, cwd=None, status=2):
    """kite ends with this code, these words, and the way to more."""
    said = run(*args, cwd=cwd, status=status)
    assert f"kite: [{code}] " in said and f"\n  more: kite explain {code}\n" in said, said
    for word in words:
        assert word in said, f"{word} is not in\n{said}"
    explained(code)


def test_wrong_secret(kite, sup):
    ip = new_address()
    right = Kite("http", NAME, "127.0.0.1:1", "one-secret-of-two")
    wrong = Kite("http", NAME, "127.0.0.1:1", "the-other-secret")
    frontend = Frontend(sup, "frontend", ip, [right]).start()
    backend = Backend(sup, "backend", [frontend.pinned()], [wrong]).start()
    told(backend.proc, "KITE-F14", f"http:{NAME}", ip, "the secret is wrong", "compare the secret files of both sides")
    told(backend.proc, "KITE-F13", ip, "kites-refused", "kite refused")
    told(frontend.proc, "KITE-F14", f"http:{NAME}", "signature")
    error = backend.status()["tunnels"][0]["last_error"]
    assert error.startswith("[KITE-F13] kites-refused: "), error
    # It is mended as it was said.
    backend.kites = [right]
    backend.reload()
    backend.wait_up(right, ip)


def test_wrong_pin(kite, sup):
    ip = new_address()
    service = Kite("http", NAME, "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    pin, frontend.pin = frontend.pin, "A" * 43
    backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
    told(backend.proc, "KITE-F04", ip, "frontend-unproven", f"key is sha256:{pin}", "A" * 43, "was pinned",
         "ask the frontend's operator, over another channel, for its current address")
    frontend.pin = pin
    backend.frontends = [frontend.pinned()]
    backend.reload()
    backend.wait_up(service, ip)


def test_a_name_that_is_not_in_the_domain(kite, sup):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "*.alice.example", None, "a-secret")]).start()
    stray = Kite("http", "tahoebob.alise.example", "127.0.0.1:1", "a-secret")
    backend = Backend(sup, "backend", [frontend.pinned()], [stray]).start()
    told(backend.proc, "KITE-F15", "http:tahoebob.alise.example", ip, "the frontend does not know this name",
         "correct the name, or ask the frontend's operator to allow it")
    right = Kite("http", NAME, "127.0.0.1:1", "a-secret")
    backend.kites = [right]
    backend.reload()
    backend.wait_up(right, ip)


def test_an_origin_that_is_down(kite, sup):
    """Nothing is mended here but by the node's own start, which test_origin_safety.py has."""
    ip = new_address()
    service = Kite("foolscap", NAME, "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
    told(backend.proc, "KITE-B01", NAME, "nothing listens at the origin 127.0.0.1:1", "check that the server runs",
         "visitors are refused until then")
    backend.wait_up(service, ip)


def test_a_port_that_is_taken(kite, tmp_path):
    ip, secret = new_address(), secret_file(tmp_path / "secret", "not-worth-keeping")
    taken = f"{ip}:80"
    with Island().listen((ip, 80)):
        refused("KITE-C21", taken, "another program uses this port", "choose another port", "given with --listen", status=1,
                args=("frontend", "--listen", taken, "--domain", "*.b.example", "--secret-file", secret,
                      "--state-dir", tmp_path / "state"))


class Nothing(http.server.BaseHTTPRequestHandler):
    """A web server that has no page of any name, as Tahoe's has none for a foolscap client."""

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


def test_a_web_interface_as_origin(kite, tmp_path):
    """Tahoe's own is in test_origin_safety.py."""
    secret = secret_file(tmp_path / "secret", "not-worth-keeping")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        origin = "%s:%d" % web.server_address
        refused("KITE-B04", NAME, origin, "is a web server", "Give the port from tub.port in tahoe.cfg",
                args=("backend", "--frontend", "plain://10.77.1.250:80", "--secret-file", secret,
                      "--state-dir", tmp_path / "state", f"foolscap:{NAME}:{origin}"))
        web.shutdown()


@pytest.mark.parametrize("code, args, words", [
    ("KITE-C02", ("backend", "--config", "nowhere.toml"), ["nowhere.toml", "there is no such file", "--config"]),
    ("KITE-C03", ("backend", "--config", "unknown.toml"), ["unknown.toml", "colour", "docs/reference.md lists the keys"]),
    ("KITE-C04", ("backend", "--config", "absent.toml"), ["absent.secret", "there is no such file", "chmod 600"]),
    ("KITE-C05", ("backend", "--config", "open.toml"), ["open.secret", "mode 644", "chmod 600"]),
    ("KITE-C06", ("backend", "--frontend", "a.example:1", "--secret-file", "good", "http:a b:127.0.0.1:1"), ["'a b'", "DNS name"]),
    ("KITE-C08", ("backend", "--frontend", "a.example", "http:b.example:127.0.0.1:1"), ["--frontend", "a.example:443"]),
    ("KITE-C09", ("backend", "--frontend", "a.example:1", "--secret-file", "good", "http:b.example:192.0.2.1:1"),
     ["192.0.2.1:1", "allow_origin"]),
    ("KITE-C11", ("backend", "--secret-file", "good", "http:b.example:127.0.0.1:1"), ["frontends", "add --frontend"]),
    ("KITE-C13", ("backend", "--tor-config", "arti.toml", "--frontend", "a.example:1", "http:b.example:127.0.0.1:1"),
     ["Tor is off", "--via-tor"]),
    ("KITE-C24", ("status", "--state-dir", "nowhere"), ["nowhere", "--state-dir"]),
])
def test_other_mistakes(kite, tmp_path, code, args, words):
    secret_file(tmp_path / "good", "not-worth-keeping")
    secret_file(tmp_path / "open.secret", "not-worth-keeping").chmod(0o644)
    table = '[[frontends]]\naddress = "a.example:443"\n[[kites]]\nname = "b.example"\norigin = "127.0.0.1:1"\n'
    (tmp_path / "unknown.toml").write_text(table + 'colour = "red"\n')
    (tmp_path / "absent.toml").write_text(table + 'secret_file = "absent.secret"\n')
    (tmp_path / "open.toml").write_text(table + 'secret_file = "open.secret"\n')
    refused(code, *words, args=args, cwd=tmp_path, status=1 if code == "KITE-C24" else 2)


def test_an_unknown_flag_is_explained_too(kite):
    said = run("backend", "--via-to", status=2)
    assert "--via-tor" in said and "[KITE-C01]" in said and "more: kite explain KITE-C01" in said
    assert "KITE-" not in run("--help", status=0) + run("--version", status=0)


def test_explain(kite, tmp_path):
    listed = run("explain", "--list", status=0).splitlines()
    assert len(listed) > 80 and all(re.fullmatch(r"KITE-[TFBC]\d\d  \S.*", line) for line in listed)
    entry = explained("KITE-F14")
    for spelling in ("KITE-F14", "kite-f14", "f14"):
        said = run("explain", spelling, status=0)
        assert all(entry[part] in said for part in ("title", "cause", "subject", "remedy", "example"))
    said = run("explain", "F99", status=2)
    assert "[KITE-C01]" in said and "the nearest is KITE-F" in said and "--list" in said


def test_who_sees_what(kite, tmp_path):
    """No secret is read: there is none."""
    (tmp_path / "backend.toml").write_text(
        '[tor]\nenabled = true\n[[frontends]]\naddress = "alice.example:443"\n'
        f'[[kites]]\nname = "{NAME}"\norigin = "127.0.0.1:1"\nsecret_file = "absent"\n')
    said = run("explain", "--config", "backend.toml", cwd=tmp_path, status=0)
    frontend, rest = said.split("frontend alice.example:443")[1].split("\n\n", 1)
    assert "sees not  this machine's address" in frontend and NAME in frontend
    assert "the guard" in rest and "Not protected" in rest and "--socks-listen" in rest
    flags = ("--frontend", "alice.example:443", f"foolscap:{NAME}:127.0.0.1:1")
    said = run("explain", "backend", *flags, status=0)
    assert "- Tor is off: every frontend" in said
    sight = json.loads(run("explain", "--json", "backend", "--via-tor", *flags, status=0))
    assert sight["role"] == "backend" and {"who", "sees", "never"} == set(sight["parties"][0])
    (tmp_path / "frontend.toml").write_text('listen = ["0.0.0.0:443"]\nlog_peers = true\n')
    said = run("explain", "--config", "frontend.toml", cwd=tmp_path, status=0)
    assert "as this frontend is configured" in said and "log_peers is on" in said


def events(proc):
    """What standard output has of a kite with `--progress json`; its log is elsewhere."""
    return [json.loads(line) for line in proc.text().splitlines() if line.startswith('{"event":')]


def test_progress_for_programs(kite, sup):
    ip = new_address()
    service = Kite("http", NAME, "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service])
    address = f"plain://{ip}:80"
    backend = Backend(sup, "backend", [address], [service], env={"KITE_PROGRESS": "json"}).start()
    wait_until(lambda: any(e["state"] == "waiting" and e["code"] == "KITE-F01" for e in events(backend.proc)), TOLD_S,
               backend.proc.tail)
    frontend.start()
    backend.wait_up(service, ip)
    up = wait_until(lambda: [e for e in events(backend.proc) if e["state"] == "up" and e["kites"]], TOLD_S, backend.proc.tail)[0]
    assert up == {"event": "tunnel", "frontend": address, "tunnel": 1, "state": "up", "kites": [f"http:{NAME}"],
                  "code": None, "error": None}
    said = run("backend", env={"KITE_PROGRESS": "json"}, status=2)
    last = json.loads(said.splitlines()[0])
    assert last["event"] == "error" and last["code"] == "KITE-C11" and "no configuration" in last["text"]


def test_progress_on_a_terminal(kite, tmp_path):
    """A frontend that is not there is shown as it is dialled, without a colour, and log lines stand by themselves."""
    secret = secret_file(tmp_path / "secret", "not-worth-keeping")
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    address = f"plain://{new_address()}:80"
    done = subprocess.Popen([binary(), "backend", "--frontend", address, "--secret-file", secret,
                             "--state-dir", tmp_path / "state", f"http:{NAME}:127.0.0.1:1"],
                            stdout=far, stderr=far, stdin=far, env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"})
    os.close(far)
    said, end = b"", time.monotonic() + TOLD_S
    while f"{address}: [KITE-F01]".encode() not in said and time.monotonic() < end:
        said += os.read(near, 65536)
    done.terminate()
    with contextlib.suppress(OSError):           # that is how a terminal ends
        while more := os.read(near, 65536):
            said += more
    assert done.wait(10) == 0
    os.close(near)
    shown = said.decode(errors="replace")
    assert f"{address}: [KITE-F01] frontend-unreachable" in shown and f"frontend {address}: frontend-unreachable" in shown, shown
    assert not re.search(r"\x1b\[[0-9;]*m", shown.replace("\x1b[0m", "")), shown
    for line in re.split(r"[\r\n]+", shown):
        assert "WARN" not in line or re.match(r"(\x1b\[\w*)*\d{4}-\d\d-\d\dT", line), line
