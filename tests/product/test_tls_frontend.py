"""kite frontend with certificates: old backends come in over TLS, and kites that check certificates.

pagekite.py knows two ways.  With a certificate's name it asks in the clear (`CONNECT name:443`) and then says
hello without a server name; without any check it says hello at once, without a name either.  libpagekite names
the frontend.  A `Tap` in front of the frontend sees which it was.
"""

import contextlib
import socket
import shutil
import ssl
import subprocess
import time
import types

import pytest

from conftest import new_address, supervised
from island import Island
from kite import Backend, Frontend, Kite, run
from pagekite_peer import PagekiteBackend
from traffic import PATIENCE, Certificate, HttpOrigin, Tap, Visitor

FE = "fe.example"
HELLO = b"\x16\x03"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A frontend that holds a certificate for its name, and one for the kite that other tests end TLS for."""
    directory, ip = tmp_path_factory.mktemp("tls"), new_address()
    certificate = Certificate(directory, FE)
    with supervised(directory) as sup, HttpOrigin(Island()) as web:
        kites = {way: Kite("http", f"{way}.bob.example", web.address) for way in ("certname", "nocheck", "wrong", "local")}
        frontend = Frontend(sup, "frontend", ip, list(kites.values()), certificates=[{"cert": certificate.file}]).start()
        yield types.SimpleNamespace(sup=sup, ip=ip, kites=kites, frontend=frontend, certificate=certificate,
                                    directory=directory)


@contextlib.contextmanager
def old_backend(lab, way, *flags):
    """pagekite.py, which dials a tap in front of the frontend's port 443."""
    with Tap(Island(), (lab.ip, 443)) as tap:
        reach = [f"--frontend={tap.address}", "--new", *flags]
        backend = PagekiteBackend(lab.sup, way, None, [lab.kites[way]], reach=reach).start()
        yield backend, tap
        backend.proc.stop()


def beginnings(tap):
    """How its connections began; the pings, which are never encrypted, apart."""
    return [b for b in tap.beginnings if not b.startswith(b"HEAD /ping")]


def moves_bytes(lab, kite):
    visitor = Visitor((lab.ip, 80), kite.name)
    visitor.download(seed=1, size=300_000)
    visitor.upload(seed=2, size=300_000)


def test_pagekite_checks_our_certificate(lab):
    kite = lab.kites["certname"]
    with old_backend(lab, "certname", f"--fe_certname={FE}", f"--ca_certs={lab.certificate.file}") as (_, tap):
        lab.frontend.wait_up(kite)
        assert all(b.startswith(b"CONNECT fe.example:443 HTTP/1.") for b in beginnings(tap)) and beginnings(tap)
        moves_bytes(lab, kite)


def test_pagekite_checks_nothing(lab):
    kite = lab.kites["nocheck"]
    with old_backend(lab, "nocheck", "--fe_nocertcheck") as (_, tap):
        lab.frontend.wait_up(kite)
        assert all(b.startswith(HELLO) and FE.encode() not in b for b in beginnings(tap)) and beginnings(tap)
        moves_bytes(lab, kite)


def test_pagekite_refuses_another_certificate(lab):
    """The control: it does check, so the first test has shown something."""
    stranger = Certificate(lab.directory, "stranger.example")
    with old_backend(lab, "wrong", f"--fe_certname={FE}", f"--ca_certs={stranger.file}") as (backend, tap):
        end = time.monotonic() + 10
        while not beginnings(tap) and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        assert beginnings(tap), backend.said()
        assert f"kite up: http:{lab.kites['wrong'].name}" not in lab.frontend.proc.text()


def test_kite_checks_our_certificate(lab):
    """`host:port` without a pin, and `ca_file`.  The one name that the island can look up is localhost."""
    certificate, kite = Certificate(lab.directory, "localhost"), lab.kites["local"]
    frontend = Frontend(lab.sup, "local", "127.0.0.1", [kite], ports=(18443,),
                        certificates=[{"cert": certificate.file}]).start()
    backend = Backend(lab.sup, "local-backend", ["localhost:18443"], [kite], ca_file=certificate.file).start()
    backend.wait_up(kite, "localhost:18443")
    frontend.wait_up(kite)
    # Both prove the secret, as with a pin: had they not, the backend would say so.
    assert "does not prove" not in backend.proc.text()
    stranger = Backend(lab.sup, "local-stranger", ["localhost:18443"], [kite], ca_file=lab.certificate.file).start()
    stranger.proc.wait_log("frontend-unproven", 15)
    backend.stop()
    stranger.stop()


def test_libpagekites_way(lab):
    """TLS at once, with the frontend's name in it; then the request."""
    context = ssl.create_default_context(cafile=lab.certificate.file)
    plain = socket.create_connection((lab.ip, 443), timeout=PATIENCE)
    with context.wrap_socket(plain, server_hostname=FE) as conn:
        conn.sendall(b"CONNECT PageKite:1 HTTP/1.0\r\nX-PageKite: http:certname.bob.example:0123::0123\r\n\r\n")
        assert b"X-PageKite-SignThis: http:certname.bob.example:0123:" in conn.recv(65536)


@pytest.mark.parametrize("names", [["-servername", FE], ["-noservername"]])
def test_openssl_agrees(lab, names):
    done = subprocess.run(
        ["openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", lab.certificate.file,
         "-verify_hostname", FE, "-connect", f"{lab.ip}:443", *names],
        input=b"HEAD /ping HTTP/1.1\r\nHost: ping.pagekite\r\n\r\n", capture_output=True, timeout=20)
    assert done.stdout.startswith(b"HTTP/1.1 503 Unavailable\r\nX-PageKite-UUID: "), done.stderr


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory):
    """A frontend that ends TLS: for a kite that asked, and for whatever pagekite.py flies."""
    directory, ip = tmp_path_factory.mktemp("endpoints"), new_address()
    certificate = Certificate(directory, "ends.example", "*.ends.example")
    with supervised(directory) as sup, HttpOrigin(Island()) as web:
        kites = types.SimpleNamespace(
            asked=Kite("http", "asked.ends.example", web.address, tls="frontend"),
            silent=Kite("http", "silent.ends.example", web.address),
            old=Kite("http", "old.ends.example", web.address))
        frontend = Frontend(sup, "frontend", ip, list(vars(kites).values()), certificates=[
            {"cert": certificate.file, "endpoints": True, "redirect": True}]).start()
        backend = Backend(sup, "backend", [frontend.pinned()], [kites.asked, kites.silent]).start()
        old = PagekiteBackend(sup, "old", frontend, [kites.old]).start()
        for kite in vars(kites).values():
            frontend.wait_up(kite, timeout=30)
        yield types.SimpleNamespace(ip=ip, kites=kites, frontend=frontend, backend=backend, old=old,
                                    certificate=certificate, directory=directory)


@pytest.mark.parametrize("which", ["asked", "old"])
def test_tls_is_ended(endpoints, which):
    """A browser's way to a kite without TLS; pagekite.py's backend is told that it was so."""
    kite = getattr(endpoints.kites, which)
    visitor = Visitor((endpoints.ip, 443), kite.name, endpoints.certificate)
    visitor.download(seed=1, size=2_000_000)
    visitor.upload(seed=2, size=2_000_000)


def test_both_sides_say_that_tls_ends_here(endpoints):
    assert "http:asked.ends.example: its visitors' TLS is ended here" in endpoints.frontend.proc.text()
    assert "http:silent.ends.example: its visitors' TLS" not in endpoints.frontend.proc.text()
    assert "http:asked.ends.example: " in endpoints.backend.proc.text()
    assert "ends its visitors' TLS" in endpoints.backend.proc.text()


def test_a_kite_that_did_not_ask_is_not_opened(endpoints):
    """Whatever the operator has for old backends."""
    visitor = Visitor((endpoints.ip, 443), endpoints.kites.silent.name, endpoints.certificate)
    with pytest.raises(ssl.SSLError, match="(?i)access.denied"):
        visitor.ask("GET", "/bytes/1/10")
    assert Visitor((endpoints.ip, 80), endpoints.kites.silent.name).ask("GET", "/bytes/1/10")[0] == 200


@pytest.mark.parametrize("which", ["asked", "old"])
def test_http_is_sent_to_https(endpoints, which):
    name = getattr(endpoints.kites, which).name
    with socket.create_connection((endpoints.ip, 80), timeout=PATIENCE) as conn:
        conn.sendall(f"GET /a?b HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        answer = conn.recv(4096)
    assert answer.startswith(b"HTTP/1.1 308 ") and f"\r\nLocation: https://{name}/a?b\r\n".encode() in answer


def test_a_new_certificate_is_taken_and_a_broken_one_is_not(lab):
    """As certbot puts it there: a running frontend is told nothing."""
    for name in ("one", "two"):
        (lab.directory / name).mkdir()
    old, new = (Certificate(lab.directory / name, "renewed.example") for name in ("one", "two"))
    file = lab.directory / "renewed.pem"

    def put(source):
        shutil.copy(source, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)

    put(old.file)
    ip = new_address()
    frontend = Frontend(lab.sup, "renewing", ip, [lab.kites["local"]], ports=(443,), certificates=[{"cert": file}]).start()

    def shown():
        pem = ssl.get_server_certificate((ip, 443))
        return ssl.PEM_cert_to_DER_cert(pem)

    assert shown() == old.der
    file.write_text("half a certifi")
    frontend.proc.wait_log(r"ERROR .*renewed\.pem: it holds no certificate.*stays in use", 20)
    assert shown() == old.der
    put(new.file)
    frontend.proc.wait_log(r"renewed\.pem: taken anew", 10)
    assert shown() == new.der
    assert frontend.proc.text().count("stays in use") == 1
    frontend.stop()


def test_bad_certificates_are_refused_at_the_start(lab, tmp_path):
    ours, theirs = Certificate(tmp_path, "a.example"), Certificate(tmp_path, "b.example")
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    secret.chmod(0o600)
    garbage, public = tmp_path / "garbage.pem", tmp_path / "public.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    shutil.copy(ours.file, public)
    public.chmod(0o644)
    for cert, key, said in [
        (garbage, ours.file, "it holds no certificate that can be read; give a PEM file with the whole chain"),
        (ours.file, garbage, "others may read or change it"),
        (ours.file, theirs.file, "the key is not this certificate's"),
        (public, public, "run chmod 640"),
        (tmp_path / "none.pem", ours.file, "none.pem"),
    ]:
        file = tmp_path / "frontend.toml"
        file.write_text(f'listen = ["127.0.0.1:18444"]\nstate_dir = "{tmp_path}/state"\n'
                        f'[[kites]]\nname = "a.example"\nsecret_file = "secret"\n'
                        f'[[certificates]]\ncert = "{cert}"\nkey = "{key}"\n')
        assert said in run("frontend", "--config", file)
