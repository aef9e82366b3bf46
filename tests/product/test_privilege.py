"""Rights that are given up, as the kernel tells it of the running process: root's, once the ports are open; and who may look into
it: nobody else of the same user reads its memory, and in it there is no secret but where one is held."""

import base64
import os
import pathlib
import re
import secrets
import subprocess
import tempfile

import pytest

from kite import binary, run, secret_file
from proc import wait_until
from tahoe import new_tub

# Of Debian's base system, so everywhere.
USER, UID, GID = "games", 5, 60
NOTHING = "0" * 16


def told(pid, task=None):
    """What the kernel says of a process, or of one of its threads."""
    text = pathlib.Path(f"/proc/{pid}/{f'task/{task}/' if task else ''}status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def threads(pid):
    return [told(pid, task) for task in os.listdir(f"/proc/{pid}/task")]


def ids(status):
    return {int(id) for key in ("Uid", "Gid") for id in status[key].split()}


@pytest.fixture
def place():
    """A directory that others can pass through, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="kite-privilege-") as place:
        os.chmod(place, 0o711)
        yield pathlib.Path(place)


@pytest.fixture
def frontend(sup, place):
    """`kite frontend` with a kite and more flags, as root; its state directory is below `place`."""
    def start(*flags, state=place / "state", env=None, wrapper=(), port=0):
        secret = secret_file(place / "secret", "s3cret")
        argv = [*wrapper, binary(), "frontend", "--listen", f"127.0.0.1:{port}", "--domain", "bob.example", "--secret-file", secret,
                "--state-dir", state, *flags]
        proc = sup.spawn("frontend", argv, cwd="/", env=env or {}, log=place / "log")
        proc.wait_log(r"listening on 127\.0\.0\.1:(\d+)", 15)
        return proc
    return start


def test_root_is_given_up_once_the_ports_are_open(frontend, place):
    """Port 80 is open; from then on no thread has anything of root's left, nor its groups, nor a way back."""
    proc = frontend("--user", USER, port=80)
    pid = proc.popen.pid
    wait_until(lambda: len(threads(pid)) > 1, 10, "the runtime has threads")
    for status in threads(pid):
        assert ids(status) == {UID, GID} and "0" not in status["Groups"].split(), status
        assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {NOTHING}, status
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), status
    assert {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in [place / "state", *(place / "state").iterdir()]} == {(UID, 0)}
    assert f"from now on this is {USER} ({UID}:{GID})" in proc.text() and "KITE-C57" not in proc.text()
    # And nobody but root and that user is answered.
    subprocess.run([binary(), "status", "--state-dir", place / "state"], timeout=10, capture_output=True, check=True)
    proc.stop()


def test_whose_state_directory_it_is_that_one_it_becomes(frontend, place):
    (place / "state").mkdir(mode=0o700)
    os.chown(place / "state", UID, GID)
    proc = frontend()
    assert ids(told(proc.popen.pid)) == {UID, GID}
    proc.stop()


def test_without_anybody_to_become_root_keeps_no_capability_and_says_so(frontend, place):
    proc = frontend()
    for status in threads(proc.popen.pid):
        assert ids(status) == {0} and status["CapEff"] == status["CapPrm"] == status["CapBnd"] == NOTHING
    assert proc.text().count("KITE-C57") == 1
    proc.stop()
    # Who asks for it is not told.
    proc = frontend("--user", "root")
    assert "KITE-C57" not in proc.text()
    proc.stop()


def test_a_service_lets_go_of_the_right_to_its_ports(frontend, place):
    """As the unit starts it: an ordinary user with one capability."""
    (place / "secret").write_text("s3cret")
    os.chown(place / "secret", UID, GID)
    (place / "state").mkdir(mode=0o700)
    os.chown(place / "state", UID, GID)
    given = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--inh-caps=+net_bind_service",
             "--ambient-caps=+net_bind_service")
    proc = frontend(wrapper=given, port=80)
    for status in threads(proc.popen.pid):
        assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Amb")} == {NOTHING}, status
    assert "capabilities" not in proc.text()
    proc.stop()


def test_what_root_adds_beforehand_is_its_users(frontend, place):
    """Who administers a service is root.  The book and the key are made at once, and are the service's all the same."""
    (place / "state").mkdir(mode=0o700)
    os.chown(place / "state", UID, GID)
    run("frontend", "kites", "add", "--state-dir", place / "state", "carol.example", status=0)
    (place / "frontend.toml").write_text(f'listen = ["127.0.0.1:443"]\nname = "alice.example"\nstate_dir = "{place}/state"\n')
    run("frontend", "invite", "--config", place / "frontend.toml", "dave.example", status=0)
    made = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in (place / "state").iterdir()}
    assert made == {"kites.redb": (UID, GID), "frontend-key.pem": (UID, GID)}
    proc = frontend()
    assert ids(told(proc.popen.pid)) == {UID, GID}
    proc.stop()


@pytest.mark.parametrize("flags, mine, why", [
    (["--user", "nobody-at-all"], None, "no such user or group"),
    (["--user", f"{USER}:no-group"], None, "no such user or group"),
    (["--user", USER], 0, "chown -R games:"),
    (["--user", USER], 4711, f"belongs to 4711"),
])
def test_whom_it_cannot_become_is_said(place, flags, mine, why):
    """And nothing is begun: the key that backends pin is not made as root's by mistake."""
    state = place / "state"
    if mine is not None:
        state.mkdir(mode=0o700)
        os.chown(state, mine, mine)
    said = run("frontend", "--listen", "127.0.0.1:0", "--domain", "bob.example", "--state-dir", state, *flags,
               env={"KITE_SECRET": "s3cret"}, status=2)
    assert "KITE-C53" in said and why in said
    assert not state.exists() or not list(state.iterdir())


def test_only_root_becomes_another(place):
    own = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", binary(), "frontend", "--listen", "127.0.0.1:0",
           "--domain", "bob.example", "--state-dir", place / "state", "--user", "root"]
    done = subprocess.run(own, capture_output=True, text=True, timeout=20, env={**os.environ, "KITE_SECRET": "s3cret"})
    assert done.returncode == 2 and "only root can become another user" in done.stderr


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


def test_no_copy_of_a_nodes_key_is_left_over(sup, place):
    """A node's own key is looked at for each tunnel, and stays in memory as the text that it was read as, and nowhere else: not
    as the base64 of one line that it was decoded from, nor as what that says."""
    directory = place / "private"
    directory.mkdir(0o700)
    tub = new_tub(directory / "node.pem")
    lines = (directory / "node.pem").read_text().split("-----BEGIN PRIVATE KEY-----\n")[1].split("\n-----END")[0].split("\n")
    # Behind modulus and public exponent stands what is secret; a number in use is kept from its other end on.
    decoded = base64.b64decode("".join(lines))[300:]
    (place / "frontend.toml").write_text(f'listen = ["127.0.0.1:0"]\nstate_dir = "{place}/state"\n[open]\ndomain = "alice.example"\n')
    frontend = sup.spawn("frontend", [binary(), "frontend", "--config", place / "frontend.toml"], cwd="/", log=place / "log")
    port = frontend.wait_log(r"listening on 127\.0\.0\.1:(\d+)", 15)[1]
    (place / "backend.toml").write_text(f"""
state_dir = "{place}/backend"
[[frontends]]
address = "{frontend.wait_log(r"(127.0.0.1:" + port + r"#sha256:[A-Za-z0-9_-]+)", 15)[1]}"
[[kites]]
name = "{tub}.alice.example"
origin = "127.0.0.1:9"
proof = "tub"
secret_file = "{directory}/node.pem"
""")
    backend = sup.spawn("backend", [binary(), "backend", "--config", place / "backend.toml"], cwd="/", log=place / "backend.log")
    # It has been heard, and has signed; nobody is at home. Then it is handed the key once more.
    backend.wait_log("did not come to the tub", 15)
    run("reload", "--config", place / "backend.toml", status=0)
    found = memory(backend.popen.pid)
    assert "\n".join(lines[12:14]).encode() in found, "where it is held it is found"
    joined = "".join(lines)
    assert [n for n in range(440, len(joined) - 40, 40) if joined[n:n + 40].encode() in found and n % 64 > 24] == []
    assert [n for n in range(0, len(decoded) - 24, 24) if decoded[n:n + 24] in found] == []
