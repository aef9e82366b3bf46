"""What an operator meets: flags instead of a file, errors that name their cause, exit statuses, clean ends."""

import pytest

from conftest import new_address
from island import Island
from kite import BACKEND_UP, DIAL, FRONTEND_UP, LISTENING, Backend, Frontend, Kite, binary, secret_file
from kite import run as refused
from traffic import MIB, HttpOrigin, Recorder, Stream, Visitor, random_bytes

SECRET = "not-a-secret-worth-keeping"


@pytest.fixture
def secret(tmp_path):
    return secret_file(tmp_path / "good.secret", SECRET)


def test_help(kite):
    said = refused("--help", status=0)
    assert all(word in said for word in ("frontend", "backend", "demo"))
    for role in ("frontend", "backend", "demo"):
        refused(role, "--help", status=0)
    refused("--version", status=0)


def test_usage_errors(kite, secret):
    frontend = ("--frontend", "alice.example:443")
    assert "fly" in refused("fly")
    assert "--no-such-flag" in refused("frontend", "--no-such-flag")
    assert "frontend" in refused("backend", "--secret-file", secret, "foolscap:a.b.example:127.0.0.1:1")
    assert "KITENAME" in refused("backend", "--secret-file", secret, *frontend)
    for service, wrong in (("foolscap:a.b.example", "foolscap:a.b.example"), ("gopher:a.b.example:127.0.0.1:1", "gopher"),
                           ("foolscap:a b:127.0.0.1:1", "a b"),
                           ("foolscap:a.b.example:127.0.0.1:99999", "127.0.0.1:99999"),
                           ("foolscap:a.b.example:storage.example:1", "storage.example:1")):
        said = refused("backend", "--secret-file", secret, *frontend, service)
        assert "SERVICE" in said and wrong in said
    for address, wrong in (("alice.example", "port"), ("alice.example:443#sha256:short", "pin"),
                           ("alice.example:443#md5:abc", "pin"), ("http://alice:80", "http://")):
        said = refused("backend", "--secret-file", secret, "--frontend", address, "foolscap:a.b.example:127.0.0.1:1")
        assert "--frontend" in said and wrong in said


KITES = '[[kites]]\nname = "a.b.example"\nprotocol = "foolscap"\norigin = "127.0.0.1:1"\nsecret_file = "good.secret"\n'
FRONTENDS = '[[frontends]]\naddress = "alice.example:443"\n'


@pytest.mark.parametrize("text, names", [
    (FRONTENDS + KITES + 'colour = "red"\n', ["colour"]),
    ('via_tor = true\n' + FRONTENDS + KITES, ["via_tor"]),
    (FRONTENDS + KITES.replace('"foolscap"', '"gopher"'), ["gopher"]),
    (FRONTENDS + KITES.replace('"127.0.0.1:1"', '"storage.example:1"'), ["storage.example:1"]),
    (FRONTENDS + KITES.replace("good.secret", "absent.secret"), ["absent.secret"]),
    (FRONTENDS + KITES.replace("good.secret", "open.secret"), ["open.secret"]),
    (FRONTENDS + KITES.replace("good.secret", "empty.secret"), ["empty.secret"]),
    (FRONTENDS + KITES + '[tor]\nenabled = true\nconfig = "absent.toml"\n', ["absent.toml"]),
    (FRONTENDS.replace("[[", "[[[") + KITES, []),
    (FRONTENDS, ["kites"]),
    (KITES, ["frontends"]),
])
def test_backend_configuration_errors(kite, secret, tmp_path, text, names):
    """Each names the file and what is wrong in it, before anything is dialled."""
    secret_file(tmp_path / "open.secret", SECRET).chmod(0o644)
    secret_file(tmp_path / "empty.secret", "")
    (tmp_path / "backend.toml").write_text(text)
    said = refused("backend", "--config", "backend.toml", cwd=tmp_path)
    for name in [*names, *([] if any("secret" in n or "absent" in n for n in names) else ["backend.toml"])]:
        assert name in said, said


@pytest.mark.parametrize("text, names", [
    ('listen = ["10.77.1.250:80"]\ncolour = "red"\n', ["colour"]),
    ('listen = ["alice.example:80"]\n', ["alice.example:80"]),
    ('listen = ["10.77.1.250:80"]\n[[kites]]\nname = "*.b.example"\nprotocols = ["gopher"]\nsecret_file = "good.secret"\n', ["gopher"]),
    ('listen = ["10.77.1.250:80"]\n[[kites]]\nname = "*.b.example"\nsecret_file = "open.secret"\n', ["open.secret"]),
])
def test_frontend_configuration_errors(kite, secret, tmp_path, text, names):
    secret_file(tmp_path / "open.secret", SECRET).chmod(0o644)
    (tmp_path / "frontend.toml").write_text(text)
    said = refused("frontend", "--config", "frontend.toml", cwd=tmp_path)
    for name in names:
        assert name in said, said


def test_absent_configuration(kite, tmp_path):
    assert "nowhere.toml" in refused("frontend", "--config", tmp_path / "nowhere.toml")
    assert "nowhere.toml" in refused("backend", "--config", tmp_path / "nowhere.toml")


def test_a_port_that_is_taken(kite, tmp_path, secret):
    ip = new_address()
    with Island().listen((ip, 80)):
        said = refused("frontend", "--listen", f"{ip}:80", "--domain", "*.b.example", "--secret-file", secret,
                       "--state-dir", tmp_path / "state", status=1)
    assert f"{ip}:80" in said


@pytest.mark.parametrize("by", ["file", "environment"])
def test_flags_alone(kite, sup, secret, by):
    """Both roles without any configuration file, the secret from a file or from KITE_SECRET."""
    ip, name = new_address(), "web.b.example"
    secret_flags, env = (["--secret-file", secret], {}) if by == "file" else ([], {"KITE_SECRET": SECRET})
    with HttpOrigin(Island()) as web:
        frontend = sup.spawn("frontend", [binary(), "frontend", "--listen", f"{ip}:80", "--listen", f"{ip}:443",
                                          "--domain", "*.b.example", "--protocols", "http",
                                          "--state-dir", sup.directory / "f", *secret_flags], env=env)
        frontend.wait_log(LISTENING.format(address=f"{ip}:443"), 15)
        pin = frontend.wait_log(DIAL, 15)[1]
        backend = sup.spawn("backend", [binary(), "backend", "--frontend", f"{ip}:443#sha256:{pin}",
                                        "--state-dir", sup.directory / "b", *secret_flags,
                                        f"http:{name}:{web.address}"], env=env)
        backend.wait_log(BACKEND_UP.format(protocol="http", name=name, via=ip), 15)
        frontend.wait_log(FRONTEND_UP.format(protocol="http", wire="http", name=name), 15)
        Visitor((ip, 80), name).download(seed=1, size=MIB)
        assert backend.stop() == 0
        assert frontend.stop() == 0


def test_a_wrong_pin(kite, sup):
    """A frontend with another key gets no handshake, and no kite."""
    ip = new_address()
    service = Kite("http", "web.b.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", ip, [service]).start()
    frontend.pin = "A" * 43
    backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
    backend.wait_line(r"frontend .*{via}.*: retry in", ip)
    assert "kite up" not in backend.proc.text() + frontend.proc.text()


def test_a_wrong_secret(kite, sup):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "*.b.example", None, "one-secret-of-two")]).start()
    backend = Backend(sup, "backend", [frontend.pinned()],
                      [Kite("http", "web.b.example", "127.0.0.1:1", "the-other-secret")]).start()
    backend.wait_line(r"web\.b\.example", timeout=15)
    backend.wait_line(r"(?i)refus|reject|invalid|denied", timeout=15)
    assert "kite up" not in backend.proc.text() + frontend.proc.text()


def test_addresses_stay_out_of_the_log(kite, sup, machine):
    """Without log_peers a frontend does not write down who came, visitor or backend."""
    ip, hidden = new_address(), machine()
    with HttpOrigin(hidden) as web:
        service = Kite("http", "web.b.example", web.address, limits={"rate": "1/60"})
        frontend = Frontend(sup, "frontend", ip, [service], log_peers=False).start(level="info")
        backend = Backend(sup, "backend", [frontend.pinned()], [service], machine=hidden).start()
        backend.wait_up(service, ip)
        frontend.wait_up(service)
        before = frontend.proc.mark()
        Visitor(frontend.visitors, service.name).download(seed=1, size=1000)
        Visitor(frontend.visitors, "nobody.b.example").ask("GET", "/")
        assert Visitor(frontend.visitors, service.name).ask("GET", "/")[0] == 429
        assert frontend.proc.text(before) == "", "not even that somebody came"
        assert "limit-rate 1" in refused("status", "--state-dir", frontend.state, status=0)
        backend.stop()
        frontend.stop()
    log = frontend.proc.text()
    assert "tunnel from" in log
    assert hidden.address not in log and "10.77.9." not in log


def test_an_unknown_name_is_refused_at_once(kite, sup):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "*.b.example", None)]).start()
    status, _ = Visitor(frontend.visitors, "nobody.b.example").ask("GET", "/", timeout=3)
    assert status == 503


@pytest.mark.parametrize("role", ["backend", "frontend"])
def test_sigterm_drains(kite, sup, role):
    """What is under way when the end is asked for arrives whole; then the exit status is 0."""
    ip = new_address()
    origin = Recorder(Island())
    with origin:
        service = Kite("http", "web.b.example", origin.address)
        frontend = Frontend(sup, "frontend", ip, [service]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [service]).start()
        backend.wait_up(service, ip)
        frontend.wait_up(service)
        ended = {"backend": backend, "frontend": frontend}[role]
        first, second = random_bytes(1, MIB), random_bytes(2, MIB)
        head = b"GET / HTTP/1.1\r\nHost: web.b.example\r\n\r\n"

        def serve(stream):
            stream.read(len(head))
            stream.send(first)
            stream.read(1)                       # the visitor has the first half, and kite was told to end
            stream.send(second)
            stream.finish()
            stream.read_to_end()

        origin.expect(serve)
        with Stream.visit(frontend.visitors) as visitor:
            visitor.send(head)
            visitor.read(len(first))
            ended.proc.popen.terminate()
            visitor.send(b"!")
            visitor.finish()
            visitor.read_to_end()
            origin.result()
        assert bytes(visitor.got) == first + second
        assert ended.proc.wait(15) == 0
