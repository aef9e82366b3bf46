"""kite frontend gets its certificates from a real authority: Pebble, by the makers of Let's Encrypt.

Pebble issues for 15 s here, so that renewals happen while the test watches, and refuses one nonce in twenty, as
it does by default.  Names are answered by its own little DNS server: they all lead to the frontend, but one.
"""

import json
import shutil
import socket
import ssl
import stat
import types
import urllib.request

import pytest

from conftest import new_address, supervised
from kite import Frontend, Kite, run
from proc import reachable, wait_until
from traffic import PATIENCE, Certificate

DIRECTORY = "https://localhost:14000/dir"
LIFE = 15


def program(name):
    path = shutil.which(name)
    if not path:
        raise RuntimeError("the tests need Pebble, a certificate authority for tests: apt-get install pebble")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    directory, ip = tmp_path_factory.mktemp("acme"), new_address()
    own = Certificate(directory, "localhost")
    config = directory / "pebble.json"
    config.write_text(json.dumps({"pebble": {
        "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
        "certificate": str(own.file), "privateKey": str(own.file), "httpPort": 80, "tlsPort": 443,
        "certificateValidityPeriod": LIFE}}))
    with supervised(directory) as sup:
        sup.spawn("dns", [program("pebble-challtestsrv"), "-defaultIPv4", ip, "-defaultIPv6", "", "-dns01", "127.0.0.1:8053",
                          "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055"])
        wait_until(lambda: reachable(("127.0.0.1", 8055)), 10, "the DNS server")
        body = json.dumps({"host": "elsewhere.example", "addresses": ["10.77.1.250"]}).encode()
        urllib.request.urlopen("http://127.0.0.1:8055/add-a", body).close()
        sup.spawn("pebble", [program("pebble"), "-config", config, "-dnsserver", "127.0.0.1:8053"],
                  env={"PEBBLE_VA_NOSLEEP": "1"})
        wait_until(lambda: reachable(("127.0.0.1", 14000)), 10, "Pebble")
        context = ssl.create_default_context(cafile=own.file)
        root = directory / "root.pem"
        root.write_bytes(urllib.request.urlopen("https://localhost:15000/roots/0", context=context).read())
        yield types.SimpleNamespace(sup=sup, ip=ip, directory=directory, own=own, root=root)


def frontend(lab, name, names, ports=(80, 443), **more):
    acme = {"names": names, "accept_terms": True, "directory": DIRECTORY, "ca_file": lab.own.file, **more}
    kite = Kite("http", "web.fe.example", "127.0.0.1:1")
    return Frontend(lab.sup, name, lab.ip, [kite], ports=ports, acme=acme).start()


def shown(lab, name, port=443):
    """The certificate that a visitor is shown for a name; it has checked it."""
    context = ssl.create_default_context(cafile=lab.root)
    with socket.create_connection((lab.ip, port), timeout=PATIENCE) as plain, \
            context.wrap_socket(plain, server_hostname=name) as conn:
        return conn.getpeercert(binary_form=True)


def test_a_certificate_is_got_and_renewed_in_time(lab):
    """By a hello on port 443 (TLS-ALPN-01)."""
    front = frontend(lab, "by-tls", ["fe.example"])
    got = front.proc.wait_log(r"certificate \S+fe\.example\.pem: fe\.example", 30)
    first = shown(lab, "fe.example")
    kept = front.state / "acme"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in kept.iterdir()}
    assert modes == {"account.json": 0o600, "fe.example.pem": 0o600}, got
    account = (kept / "account.json").read_text()
    wait_until(lambda: shown(lab, "fe.example") != first, LIFE, front.proc.tail, every=0.3)
    assert (kept / "account.json").read_text() == account
    # A restart begins with what is there.
    front.stop()
    front.start()
    assert shown(lab, "fe.example")
    front.stop()
    # An account that is spoiled is said so, and another is made: there is nothing to lose with it.
    (kept / "account.json").write_text(account[:20])
    front.start()
    front.proc.wait_log(r"WARN \[KITE-\w+\] \S+account\.json: .*a new account is made", LIFE)
    before = shown(lab, "fe.example")
    wait_until(lambda: shown(lab, "fe.example") != before, LIFE, front.proc.tail, every=0.3)
    assert json.loads((kept / "account.json").read_text()) != json.loads(account)
    front.stop()


def test_a_certificate_is_got_by_http(lab):
    """By a path on port 80 (HTTP-01), where nothing else may be in its way; and for two names."""
    front = frontend(lab, "by-http", ["fe.example", "other.example"], ports=(80,))
    for name in ("fe.example", "other.example"):
        front.proc.wait_log(rf"certificate \S+/{name}\.pem: {name}", 30)
        assert shown(lab, name, 80)
    # Only while the authority is looking, and only what it asked for.
    with socket.create_connection((lab.ip, 80), timeout=PATIENCE) as conn:
        conn.sendall(b"GET /.well-known/acme-challenge/guess HTTP/1.1\r\nHost: fe.example\r\n\r\n")
        assert conn.recv(4096).startswith(b"HTTP/1.1 503 ")
    front.stop()


def test_a_name_that_leads_elsewhere(lab):
    """Its refusal is said with a remedy, and costs nobody else anything."""
    front = frontend(lab, "elsewhere", ["elsewhere.example", "fe.example"])
    front.proc.wait_log(r"ERROR .*no certificate for elsewhere\.example from \S+/dir: the authority found no proof.*\(DNS\).*"
                        r"next attempt in \d+ min", 60)
    front.proc.wait_log(r"certificate \S+/fe\.example\.pem: fe\.example", 30)
    assert shown(lab, "fe.example")
    front.stop()


def test_an_authority_that_is_not_there(lab):
    front = frontend(lab, "nobody", ["fe.example"], directory="https://localhost:14001/dir")
    front.proc.wait_log(r"ERROR .*no certificate for fe\.example from \S+/dir: it refused the connection; next attempt in \d+ min", 30)
    front.stop()


def test_the_terms_must_be_accepted(lab, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    secret.chmod(0o600)
    for lines, said in [('names = ["fe.example"]', "accept_terms = true"),
                        ('names = []\naccept_terms = true', "there is no name"),
                        ('names = ["*.fe.example"]\naccept_terms = true', "list each name"),
                        ('names = ["fe.example"]\naccept_terms = true\ndirectory = "http://x"', "no https URL")]:
        file = tmp_path / "frontend.toml"
        file.write_text(f'listen = ["127.0.0.1:18445"]\nstate_dir = "{tmp_path}/state"\n'
                        f'[[kites]]\nname = "a.example"\nsecret_file = "secret"\n[acme]\n{lines}\n')
        assert said in run("frontend", "--config", file)
