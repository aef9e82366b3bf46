"""The walls around a backend in Tor mode, seen from outside, and tried from inside by a child that lives within them.

The child is a "pluggable transport", since nothing else can be started there: Python, which asks the kernel for
all that kite must not have and writes down the answers.  That the whole product works behind the walls is shown
by all other tests, which run behind them, too.
"""

import errno
import json
import pathlib
import signal
import subprocess

import pytest

from kite import Backend, Kite
from proc import wait_until

PYTHON = "/usr/bin/python3"
NUMBERS = {                               # of calls for which Python has no word: x86_64, aarch64
    "ptrace": (101, 117), "io_uring_setup": (425, 425), "bpf": (321, 280), "init_module": (175, 105),
    "request_key": (249, 218), "unshare": (272, 97), "mount": (165, 40), "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270), "open_by_handle_at": (304, 265), "perf_event_open": (298, 241),
    "clone3": (435, 435)}
ABSENT = {"clone3"}

PROBE = """
import ctypes, json, mmap, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
said = {}
def ask(name, f):
    try:
        f()
        said[name] = 0
    except OSError as e:
        said[name] = e.errno
def call(number):
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
for name, (intel, arm) in NUMBERS.items():
    ask(name, lambda: call(intel if platform.machine() == "x86_64" else arm))
ask("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
ask("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
ask("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
ask("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
ask("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
ask("high half of an argument", lambda: call_socket())
ask("a port of its choice", lambda: socket.create_server(("127.0.0.1", 9150)))
ask("file elsewhere", lambda: open("/etc/resolv.conf"))
ask("another program", lambda: os.execv("/bin/true", ["true"]))
ask("kill another", lambda: os.kill(1, 0))
ask("tcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
ask("any free port", lambda: socket.create_server(("127.0.0.1", 0)))
if platform.machine() == "x86_64":
    # getpid as a 32-bit program asks for it: mov eax, 20; int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3")
    child = os.fork()
    if not child:
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        os._exit(0)
    said["32-bit call"] = -os.WTERMSIG(os.waitpid(child, 0)[1])
place = os.environ["TOR_PT_STATE_LOCATION"]
ask("its own file", lambda: open(place + "/probe.new", "w").write(json.dumps(said)))
os.rename(place + "/probe.new", place + "/probe.json")
""".replace("NUMBERS.items()", f"{NUMBERS}.items()").replace("call_socket()", """\
libc.syscall(41 if platform.machine() == "x86_64" else 198, ctypes.c_long(2), ctypes.c_long((1 << 32) | 2), 0) < 0 \\
    and (_ for _ in ()).throw(OSError(ctypes.get_errno(), ""))""")


def confined(proc):
    """(Seccomp, NoNewPrivs) of each of its threads."""
    found = set()
    for task in pathlib.Path(f"/proc/{proc.popen.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        found.add((status["Seccomp"], status["NoNewPrivs"]))
    return found


@pytest.fixture
def backend(kite, sup):
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    return lambda **more: Backend(sup, "backend", ["plain://10.77.1.254:1"], [service], **more)


def test_a_backend_and_its_child_are_confined(backend, sup, tornet):
    toml = tornet.arti_toml(sup.directory / "tor")
    toml.write_text(toml.read_text() + f"""
[bridges]
enabled = true
bridges = ["probe 10.77.1.254:1 0011223344556677889900112233445566778899"]
[[bridges.transports]]
protocols = ["probe"]
path = "{PYTHON}"
arguments = ["-I", "-c", {json.dumps(PROBE)}]
run_on_startup = true
""")
    probe = backend(via_tor=toml).start()
    state = sup.directory / "tor"
    found = []
    wait_until(lambda: found.extend(state.rglob("probe.json")) or found, 30, "the child has asked")
    said = json.loads(found[0].read_text())
    open_ = {name for name, code in said.items() if code == 0}
    assert open_ == {"tcp", "any free port"}, said
    for name in NUMBERS:
        assert said[name] == (errno.ENOSYS if name in ABSENT else errno.EPERM), (name, said)
    assert said.pop("32-bit call", -signal.SIGSYS) == -signal.SIGSYS
    assert all(said[name] in (errno.EPERM, errno.EACCES) for name in said.keys() - ABSENT - open_), said
    assert confined(probe.proc) == {("2", "1")}
    assert f"no program can be started but {PYTHON}" in probe.proc.text()
    probe.stop()


def test_log_and_status_say_what_was_taken_away(kite, backend, sup, tornet):
    """Once each, on a kernel that has it all; and a backend without Tor has no walls."""
    walls = backend(via_tor=tornet.arti_toml(sup.directory / "tor")).start()
    walls.wait_line("Tor ready", timeout=90)
    assert confined(walls.proc) == {("2", "1")}
    for line in ("sandbox: Landlock (ABI ", "sandbox: seccomp: no datagram"):
        assert walls.proc.text().count(line) == 1, line
    told = subprocess.run([kite, "status", "--state-dir", walls.state], capture_output=True, text=True, timeout=20)
    assert "sandbox: Landlock (ABI " in told.stdout and "sandbox: seccomp: no datagram" in told.stdout, told
    walls.stop()
    walls = backend().start()
    walls.wait_line("Tor is off", timeout=10)
    assert confined(walls.proc) == {("0", "0")}
    assert "sandbox" not in walls.proc.text()
