"""Who may look into a running kite, as the kernel tells it: nobody else of the same user reads its memory, and in it there is
no secret but where one is held."""

import os
import pathlib
import re
import secrets
import subprocess
import tempfile

import pytest

from kite import binary, run, secret_file
from proc import wait_until

# Of Debian's base system, so everywhere.
USER, UID, GID = "games", 5, 60


def told(pid, task=None):
    """What the kernel says of a process, or of one of its threads."""
    text = pathlib.Path(f"/proc/{pid}/{f'task/{task}/' if task else ''}status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def ids(status):
    return {int(id) for key in ("Uid", "Gid") for id in status[key].split()}


@pytest.fixture
def place():
    """A directory that others can pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="kite-privilege-") as place:
        os.chmod(place, 0o711)
        yield pathlib.Path(place)


def test_what_root_adds_beforehand_is_its_users(place):
    """Who administers a service is root.  The book and the key are made at once, and are the service's all the same."""
    (place / "state").mkdir(mode=0o700)
    os.chown(place / "state", UID, GID)
    run("frontend", "kites", "add", "--state-dir", place / "state", "carol.example", status=0)
    (place / "frontend.toml").write_text(f'listen = ["127.0.0.1:443"]\nname = "alice.example"\nstate_dir = "{place}/state"\n')
    run("frontend", "invite", "--config", place / "frontend.toml", "dave.example", status=0)
    made = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (place / "state").iterdir()}
    assert made == {"kites.redb": (UID, GID), "frontend-key.pem": (UID, GID)}


# ------------------------------------------------------------------------------------------------- memory

PEEK = """
import sys
for name in sys.argv[2:]:
    try:
        open(f"/proc/{sys.argv[1]}/{name}", "rb").read(1)
        print(name, "read")
    except PermissionError:
        print(name, "refused")
    except OSError as e:
        print(name, "read" if e.errno == 5 else e)
"""


def peek(pid, *names):
    """What another process of the same user gets to see of this one."""
    done = subprocess.run(["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "/usr/bin/python3", "-c", PEEK, str(pid),
                           *names], capture_output=True, text=True, timeout=20, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups")
BACKEND = """
[tor]
enabled = false
[[frontends]]
address = "plain://127.0.0.1:1"
[[kites]]
name = "bob.example"
protocol = "http"
origin = "127.0.0.1:1"
"""


@pytest.mark.parametrize("role", ["frontend", "backend"])
def test_nobody_reads_what_a_role_has_in_memory(sup, place, role):
    """Its environment may hold KITE_SECRET.  A program that does not mind shows that the test would see it."""
    (place / "backend.toml").write_text(BACKEND)
    words = {"frontend": ("frontend", "--listen", "127.0.0.1:0", "--domain", "bob.example"),
             "backend": ("backend", "--config", place / "backend.toml")}[role]
    (place / "state").mkdir(mode=0o700)
    os.chown(place / "state", UID, GID)
    proc = sup.spawn(role, [*AS_USER, binary(), *words, "--state-dir", place / "state"], cwd="/", env={"KITE_SECRET": "s3cret"},
                     log=place / "log")
    proc.wait_log("listening on" if role == "frontend" else "Tor is off", 15)
    other = subprocess.Popen([*AS_USER, "sleep", "60"])
    try:
        wait_until(lambda: told(other.pid)["Name"] == "sleep", 10, "it sleeps")
        assert peek(other.pid, "mem", "environ") == {"mem": "read", "environ": "read"}
    finally:
        other.kill()
        other.wait()
    pid = proc.popen.pid
    assert ids(told(pid)) == {UID, GID}
    assert peek(pid, "mem", "environ") == {"mem": "refused", "environ": "refused"}
    limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits), limits
    proc.stop()


def test_who_traces_it_from_the_start_goes_on_seeing_it(place):
    """As `kite check --leaks` has it done, without root: what a call is about lies in memory."""
    trace = place / "trace"
    trace.touch()
    (place / "state").mkdir(mode=0o700)
    for path in (trace, place / "state"):
        os.chown(path, UID, GID)
    done = subprocess.run([*AS_USER, "strace", "--output", trace, "--trace=bind", "--follow-forks", "timeout", "--foreground", "2",
                           binary(), "frontend", "--listen", "127.0.0.1:0", "--domain", "bob.example", "--state-dir", place / "state"],
                          env={**os.environ, "KITE_SECRET": "s3cret"}, capture_output=True, text=True, timeout=30)
    assert "listening on" in done.stderr, done.stderr
    assert 'inet_addr("127.0.0.1")' in trace.read_text()


def memory(pid):
    """All that a process can write to, as root reads it."""
    pieces = []
    with open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in open(f"/proc/{pid}/maps"):
            place, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            begin, end = (int(n, 16) for n in place.split("-"))
            mem.seek(begin)
            try:
                pieces.append(mem.read(end - begin))
            except OSError:
                pass              # a page of the kernel's
    return b"\n--piece--".join(pieces)


def test_no_copy_of_a_secret_is_left_over(sup, place):
    """In each form that it is read in, a text goes on behind the secret; where the secret is held, it does not.

    A freed piece of memory keeps all but its first words until something else is put there, so it would be found.
    """
    by_file, by_rc, by_program = (secrets.token_hex(32) for _ in range(3))
    # White space behind it does not count, and a large piece of memory is not soon used again.
    secret = secret_file(place / "secret", by_file + 3000 * " ")
    told = place / "told.py"
    told.write_text(f"#!/bin/sh\necho '{{\"secret\": \"{by_program}\", \"reason\": \"behind\"}}'\n")
    told.chmod(0o755)
    (place / "frontend.toml").write_text(f"""
listen = ["127.0.0.1:0"]
state_dir = "{place}/state"
[[kites]]
name = "bob.example"
protocols = ["http"]
secret_file = "{secret}"
[[authorities]]
domain = "who.example"
program = "{told}"
protocols = ["http"]
""")
    frontend = sup.spawn("frontend", [binary(), "frontend", "--config", place / "frontend.toml"], cwd="/", log=place / "log")
    port = frontend.wait_log(r"listening on 127\.0\.0\.1:(\d+)", 15)[1]
    rc = place / "backend.rc"
    rc.write_text(f"frontend = 127.0.0.1:{port}\nkitesecret = {by_rc}\nservice_on = http:eve.example:localhost:9:{by_rc} \n"
                  f"service_on = http:bob.example:localhost:9:{by_file} \n"
                  f"service_on = http:ann.who.example:localhost:9:{by_program} \n# behind\n")
    rc.chmod(0o600)
    backend = sup.spawn("backend", [binary(), "backend", "--config", rc, "--state-dir", place / "backend"], cwd="/",
                        log=place / "backend.log")
    backend.wait_log("kite up: http:ann.who.example", 15)
    backend.wait_log("kite up: http:bob.example", 15)
    held = {frontend: [by_file, by_program], backend: [by_file, by_rc, by_program]}
    for proc, texts in held.items():
        found = memory(proc.popen.pid)
        assert by_file.encode() in found, "where it is held it is found"
        for text in texts:
            # The allocator writes into the first words of what is free, so the text is looked for by halves.
            first, last = text[:20].encode(), text[-20:].encode()
            left = [piece for piece in (b":9:" + first, b"= " + first, last + b"\n", last + b" \n", last + b"  ", last + b'"')
                    if piece in found]
            assert left == [], proc.name
        proc.stop()
