"""What a service manager is told (systemd's Type=notify), and the secrets that it hands over (LoadCredential=)."""

import contextlib
import socket

import pytest

from conftest import new_address
from kite import Backend, Frontend, Kite, secret_file
from kite import run as refused

READY_S = 15


class Manager:
    """Listens as systemd does, at a path or an abstract name (`@…`)."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(READY_S)
        self.env = {"NOTIFY_SOCKET": address}

    def hear(self, word):
        """What was said until a message with this word came, and that one."""
        said = []
        while True:
            said.append(self._socket.recv(4096).decode())
            if word in said[-1].split("\n"):
                return said

    def silent(self):
        """Whether nothing has come that was not heard."""
        with contextlib.suppress(BlockingIOError):
            self._socket.setblocking(False)
            return not self._socket.recv(4096)
        return True

    def close(self):
        self._socket.close()


@pytest.fixture
def manager(tmp_path, request):
    """At a path, unless the test says otherwise."""
    manager = Manager(getattr(request, "param", str(tmp_path / "notify")))
    yield manager
    manager.close()


@pytest.mark.parametrize("manager", ["@kite-test"], indirect=True)
def test_a_frontend_is_ready_when_its_ports_are_open(kite, sup, manager):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "web.b.example", None)], env=manager.env).start()
    assert manager.hear("READY=1") == ["READY=1\nSTATUS=the ports are open"]
    frontend.stop()
    manager.hear("STOPPING=1")


def test_a_frontend_without_its_port_is_never_ready(kite, sup, manager):
    ip = new_address()
    with socket.create_server((ip, 80)):
        frontend = Frontend(sup, "frontend", ip, [Kite("http", "web.b.example", None)], ports=(80,))
        frontend.spawn(env=manager.env)
        assert frontend.proc.wait(READY_S) == 1
    assert manager.silent()


def test_a_backend_is_ready_when_a_frontend_has_taken_a_kite(kite, sup, manager):
    ip = new_address()
    mine = Kite("http", "web.b.example", "127.0.0.1:1")
    strict = Frontend(sup, "strict", ip, [Kite("http", "web.b.example", None, "another secret")]).start()
    backend = Backend(sup, "backend", [strict.pinned()], [mine], env=manager.env).start()
    backend.wait_line("(?i)refus|reject|invalid|denied")
    assert manager.hear("STATUS=no frontend has taken a kite yet") and manager.silent()
    manager._socket.settimeout(READY_S)

    other = Frontend(sup, "frontend", new_address(), [mine]).start()
    backend.frontends.append(other.pinned())
    backend.reload()
    backend.wait_up(mine, other.ip)
    said = manager.hear("READY=1")
    assert len(said) == 1 and "kite status" in said[0]
    backend.stop()
    manager.hear("STOPPING=1")


def test_the_way_to_the_manager_stays_open_in_the_sandbox(kite, sup, manager, tmp_path):
    """Tor cannot start here, and that is told, by a process that can make no datagram socket any more."""
    (tmp_path / "arti.toml").write_text("")
    backend = Backend(sup, "backend", ["frontend.example:443"], [Kite("foolscap", "n.b.example", "127.0.0.1:1")],
                      via_tor=tmp_path / "arti.toml", env=manager.env).start()
    backend.wait_line("sandbox: seccomp: no datagram")
    said = manager._socket.recv(4096).decode()
    assert said.startswith("STATUS=Tor: ")


def test_a_manager_who_is_not_there_is_no_matter(kite, sup, tmp_path):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "web.b.example", None)],
                        env={"NOTIFY_SOCKET": str(tmp_path / "nobody")}).start()
    assert "Type=exec" in frontend.proc.text()
    frontend.stop()


def test_a_secret_is_handed_over(kite, sup, tmp_path):
    """As systemd does it: the group's bits of the file are the mask of an access list."""
    ip = new_address()
    mine = Kite("http", "web.b.example", "127.0.0.1:1")
    handed = secret_file(tmp_path / "secrets_bob", mine.secret)
    handed.chmod(0o440)
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    frontend = Frontend(sup, "frontend", ip, [mine]).start()
    backend = Backend(sup, "backend", [frontend.pinned()], [mine], env=env)
    text = backend.file.read_text()
    named = backend.secret(mine)
    backend.file.write_text(text.replace(str(named), "credential:secrets_bob"))
    assert "credential:secrets_bob" in backend.file.read_text()
    backend.start().wait_up(mine, ip)
    backend.stop()

    assert "CREDENTIALS_DIRECTORY is not set" in refused("backend", "--config", backend.file)
    handed.chmod(0o444)
    assert "other users may read" in refused("backend", "--config", backend.file, env=env)
