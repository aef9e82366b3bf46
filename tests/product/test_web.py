"""The status page, and the page at a frontend's own name, in a real Chromium."""

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import threading

import pytest

from browser import TAB, Browser
from conftest import new_address
from island import Island
from kite import Backend, Frontend, Kite, binary
from proc import wait_until
from traffic import Certificate, HttpOrigin

PAGE = ("127.0.0.1", 7465)
HOME = "http://127.0.0.1:7465/"
WEB = '\n[web]\nlisten = "127.0.0.1:%d"\n'
EVIL = "10.77.9.66"


def web(role, status=0):
    """`kite web`: the address that it printed."""
    done = subprocess.run([binary(), "web", "--state-dir", role.state], capture_output=True, text=True, timeout=10)
    assert done.returncode == status, done.stderr
    return done.stdout.strip() if status == 0 else done.stderr


def get(path, address=PAGE, method="GET", **headers):
    connection = http.client.HTTPConnection(*address, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode(errors="replace")


@contextlib.contextmanager
def flying(sup, limits=None):
    """A frontend, a backend with a page, and a kite."""
    with HttpOrigin(Island()) as origin:
        service = Kite("http", "web.bob.example", origin.address, limits=limits)
        frontend = Frontend(sup, "frontend", new_address(), [service], ports=(80,), log_peers=True,
                            tables=WEB % 7466).start()
        backend = Backend(sup, "backend", [frontend.plain(), "plain://10.77.1.250:80"], [service])
        backend.file.write_text(backend.file.read_text() + WEB % 7465)
        backend.start().wait_up(service, frontend.ip)
        yield frontend, backend, service


@pytest.fixture
def browser(sup, tmp_path):
    made = Browser(sup, tmp_path, names=["evil.example"])
    yield made
    made.close()


def visit(frontend, service, size=300_000):
    assert get(f"/bytes/1/{size}", (frontend.ip, 80), Host=service.name)[0] == 200


def test_a_token_lets_one_browser_in_once(kite, sup):
    with flying(sup) as (frontend, backend, _):
        for path in ("/", "/status.json", "/traffic.json", "/page.js", "/nothing"):
            status, headers, text = get(path)
            assert status == 403 and "kite web" in text and "set-cookie" not in headers, path
        assert get("/enter?token=" + "0" * 64)[0] == 403 and get("/enter")[0] == 403
        path = web(backend).removeprefix(HOME.rstrip("/"))
        assert path.startswith("/enter?token=") and len(path) == len("/enter?token=") + 64
        assert get(path, method="HEAD")[0] == 403, "to look at it does not use it up"
        status, headers, _ = get(path)
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert get(path)[0] == 403, "it works once"
        mine = {"Cookie": "a=b; " + cookie.split(";")[0]}
        status, headers, text = get("/status.json", **mine)
        assert status == 200 and '"role":"backend"' in text
        for name, value in {"cache-control": "no-store", "x-content-type-options": "nosniff",
                            "referrer-policy": "no-referrer", "cross-origin-opener-policy": "same-origin",
                            "cross-origin-resource-policy": "same-origin"}.items():
            assert headers[name] == value
        policy = get("/", **mine)[1]["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        # Neither by another name, nor for another site, nor to change anything.
        assert get("/", Host="evil.example:7465", **mine)[0] == 421
        assert get("/status.json", Sec_Fetch_Site="cross-site", **mine)[0] == 403
        assert get("/status.json", Origin="http://evil.example", **mine)[0] == 403
        assert get("/", method="POST", **mine)[0] == 405
        assert get("/status.json", Cookie=cookie.split(";")[0].replace("7465", "7466"))[0] == 403
        # A backend's address, which the frontend may log, is not on its page.
        other = get(web(frontend).removeprefix("http://127.0.0.1:7466"), ("127.0.0.1", 7466))
        status, _, text = get("/status.json", ("127.0.0.1", 7466), Cookie=other[1]["set-cookie"].split(";")[0])
        assert status == 200 and '"peer":""' in text and "127.0.0.1:" not in text
        assert path not in backend.proc.text() and "token=" not in backend.proc.text()


def test_without_a_page_kite_web_says_what_to_do(kite, sup):
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", new_address(), [service], ports=(80,)).start()
    assert "give it one with --web-listen 127.0.0.1:7465" in web(frontend, status=1)


def test_a_unix_socket_will_do_and_no_file_is_lost_for_it(kite, sup):
    service = Kite("http", "web.bob.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", new_address(), [service], ports=(80,))
    place = frontend.dir / "page.sock"
    frontend.file.write_text(f'{frontend.file.read_text()}\n[web]\nlisten = "unix:{place}"\n')
    place.write_text("precious")
    frontend.spawn()
    assert frontend.proc.wait(15) == 1 and place.read_text() == "precious"
    assert "the place is given with --web-listen" in frontend.proc.text()
    place.unlink()
    frontend.start()
    assert place.stat().st_mode & 0o777 == 0o600
    path = web(frontend).removeprefix("http://localhost:7465")
    said = subprocess.run(["python3", "-c", f"""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect({str(place)!r})
s.sendall(b"GET {path} HTTP/1.1\\r\\nHost: localhost:8000\\r\\n\\r\\n")
print(s.recv(4096).decode())"""], capture_output=True, text=True, timeout=10)
    assert said.stdout.startswith("HTTP/1.1 303"), said


def test_behind_the_walls_of_tor_mode_it_answers(kite, sup, tmp_path):
    """There is no Tor network here, and the page says so; metrics do, too."""
    arti = tmp_path / "arti.toml"
    arti.write_text("")
    backend = Backend(sup, "backend", ["alice.example:443"], [Kite("http", "web.bob.example", "127.0.0.1:1")], via_tor=arti)
    backend.file.write_text(backend.file.read_text() + WEB % 7465 + '\n[metrics]\nlisten = "127.0.0.1:9464"\n')
    backend.start().wait_line("sandbox: seccomp: no datagram")
    backend.wait_line("status page at 127.0.0.1:7465")
    cookie = get(web(backend).removeprefix(HOME.rstrip("/")))[1]["set-cookie"].split(";")[0]
    status, _, text = get("/status.json", Cookie=cookie)
    assert status == 200 and json.loads(text)["tor"]["ready"] is False and json.loads(text)["sandbox"]
    assert get("/traffic.json", Cookie=cookie)[0] == 200
    status, _, text = get("/metrics", ("127.0.0.1", 9464))
    assert status == 200 and 'kite_tor_state{state="working"} 0' in text and "kite_hidden 1" in text


def test_the_page_shows_what_is_and_what_changes(kite, sup, browser):
    with flying(sup) as (frontend, backend, service):
        visit(frontend, service)
        browser.go(web(backend))
        wait_until(lambda: browser.run("return location.href") == HOME, 10, "the token is gone from the address")
        browser.wait_text("#verdict", "1 frontend is not connected")
        browser.wait_text("#way", "1 of 2 connected")
        browser.wait_text("#way", "frontends see this machine's address")
        browser.wait_text("#way", "each sees visitors, and this machine")
        browser.wait_text("#peers", "down, waiting")
        browser.wait_text("#kites", "http:web.bob.example")
        browser.wait_text("#kites", "1 in all")
        browser.wait_text("#sum", "kB to visitors")
        browser.wait_text("#sum", "at most 1 stream at a time")
        for scheme in ("light", "dark"):
            for width in (1280, 360):
                browser.window(width, scheme)
                wait_until(lambda: browser.text("#way"), 5, "it is drawn")
                browser.picture(f"backend-{scheme}-{width}")
                assert browser.overflow() <= 0, (scheme, width)
                assert browser.pale() == [], (scheme, width)
        assert browser.log("browser") == []
        asked = browser.asked()
        assert asked and all(url.startswith((HOME, "data:")) for url in asked), asked

        frontend.kill()
        browser.wait_text("#verdict", "Not reachable", 30)
        browser.wait_text("#kites", "does not fly")
        browser.wait_text("#troubles", frontend.ip)
        browser.window(1280, "light")
        browser.picture("backend-down-light-1280")
        assert browser.pale() == []
        # What was seen is there again after the most sudden end.
        wait_until(lambda: (backend.state / "backend-traffic").exists(), 20, "the traffic is kept")
        backend.kill()
        browser.wait_text("#verdict", "kite does not answer", 20)
        backend.start()
        browser.wait_text("#verdict", "Your visit is over: run kite web again", 20)
        browser.go(web(backend))
        browser.wait_text("#sum", "kB to visitors")
        backend.kill()
        (backend.state / "backend-traffic").write_bytes(b"torn")
        backend.start()
        backend.proc.wait_log("the plots of the status page begin anew", 10)
        browser.go(web(backend))
        browser.wait_text("#sum", "0 B to visitors")


def test_a_frontends_page(kite, sup, browser):
    with flying(sup, limits={"rate": "1/60"}) as (frontend, _, service):
        visit(frontend, service)
        assert get("/bytes/1/1", (frontend.ip, 80), Host=service.name)[0] == 429
        browser.go(web(frontend))
        browser.wait_text("#kites", "limit-rate 1")
        browser.wait_text("#verdict", "All is well")
        browser.wait_text("#peers", "http:web.bob.example")
        browser.wait_text("#way", "1 kite flies")
        for width, scheme in ((1280, "dark"), (360, "light")):
            browser.window(width, scheme)
            browser.picture(f"frontend-{scheme}-{width}")
            assert browser.overflow() <= 0 and browser.pale() == []
        assert browser.log("browser") == []


def test_it_can_be_used_by_keyboard_and_by_ear(kite, sup, browser):
    with flying(sup) as (_, backend, _):
        browser.go(web(backend))
        browser.wait_text("#peers", "up")
        stops = []
        for _ in range(3):
            browser.press(TAB)
            stops.append(browser.run("""const e = document.activeElement, s = getComputedStyle(e);
                return [e.id || e.className, s.outlineStyle, parseFloat(s.outlineWidth), e.getBoundingClientRect().left >= 0]"""))
        assert [name for name, *_ in stops] == ["skip", "hour", "day"]
        assert all(style == "solid" and width >= 2 and inside for _, style, width, inside in stops), stops
        browser.press(" ")
        browser.wait_text("#sum", "In the last day")
        assert browser.role("#day") == [("button", "Last day")]
        assert browser.role("main")[0][0] == "main" and browser.role("header")[0][0] == "banner"
        assert browser.role("footer")[0][0] == "contentinfo"
        assert browser.role("#verdict")[0][0] == "status"
        headings = browser.role("h1, h2")
        assert [role for role, _ in headings] == ["heading"] * 6
        assert [name for _, name in headings][:3] == ["kite backend", "The way of a visitor", "Traffic"]
        sections = browser.role("main > section")
        assert [role for role, _ in sections] == ["region"] * 5 and all(name for _, name in sections)
        assert browser.role("#peers") == [("table", "Each frontend, and how this backend is connected to it")]
        assert all(role == "columnheader" and name for role, name in browser.role("#peers thead th"))
        assert {role for role, _ in browser.role("#peers tbody th")} == {"rowheader"}
        (role, name), = browser.role("#plot")
        assert role in ("img", "image") and name.startswith("In the last day")
        browser.window(360, "light")
        assert browser.role("#peers")[0][0] == "table", "a narrow table is one, too"
        assert {role for role, _ in browser.role("#peers tbody td")} == {"cell"}


def test_what_is_put_into_the_page_cannot_run(kite, sup, browser):
    with flying(sup) as (_, backend, _):
        browser.go(web(backend))
        browser.wait_text("#peers", "up")
        browser.run("""
            window.evil = 0;
            const attempts = [
                () => { const s = document.createElement('script'); s.append('window.evil = 1'); document.head.append(s); },
                () => { document.body.setAttribute('onclick', 'window.evil = 2'); document.body.click(); },
                () => { document.body.innerHTML += '<img src=x onerror="window.evil = 3">'; },
                () => { const s = document.createElement('script'); s.src = 'http://10.77.9.66:8000/x.js'; document.head.append(s); },
                () => { new Image().src = 'http://10.77.9.66:8000/x.png'; },
            ];
            for (const attempt of attempts) try { attempt(); } catch (e) { }""")
        refused = wait_until(lambda: [e for e in browser.log("browser") if "Content Security Policy" in e["message"]], 5,
                             "the browser says what it refused")
        assert refused and browser.run("return window.evil") == 0


class Evil(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title><p>evil")

    def log_message(self, *_):
        pass


def test_other_sites_and_rebound_names_get_nothing(kite, sup, browser):
    with flying(sup) as (_, backend, _), http.server.ThreadingHTTPServer((EVIL, 8000), Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.go(web(backend))
        browser.wait_text("#peers", "up")
        browser.go("http://evil.example:7465/")
        assert "This request is for another name" in browser.text()
        browser.go(f"http://{EVIL}:8000/")
        fetched = browser.wait_for(f"fetch('{HOME}status.json', {{credentials: 'include'}}).then(r => r.text())")
        assert "Failed to fetch" in fetched
        blind = browser.wait_for(f"fetch('{HOME}status.json', {{credentials: 'include', mode: 'no-cors'}}).then(r => r.text())")
        assert blind == "" or "Failed to fetch" in blind
        loaded = browser.wait_for(f"""new Promise(done => {{ const s = document.createElement('script');
            s.src = '{HOME}page.js'; s.onload = () => done('loaded'); s.onerror = () => done('refused');
            document.head.append(s); }})""")
        assert loaded == "refused"
        framed = browser.wait_for(f"""new Promise(done => {{ const f = document.createElement('iframe');
            f.src = '{HOME}'; f.onload = () => {{ try {{ done(f.contentDocument.body.innerText) }} catch (e) {{ done('hidden') }} }};
            document.body.append(f); }})""")
        assert "web.bob.example" not in framed
        server.shutdown()


def test_a_frontends_own_name_says_what_it_is(kite, sup, browser):
    service = Kite("http", "*.alice.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", "127.0.0.1", [service], ports=(80,), keys={"name": "evil.example"},
                        tables='\n[page]\ncontact = "<b>al</b>"\n').start()
    status, headers, text = get("/", ("127.0.0.1", 80), Host="evil.example")
    assert status == 200 and "This is a kite frontend" in text and "alice.example" not in text
    assert "&#60;b&#62;al&#60;/b&#62;" in text and "<b>" not in text
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "set-cookie" not in headers
    assert get("/", ("127.0.0.1", 80), method="HEAD", Host="EVIL.example:80")[2] == ""
    for path, method in (("/other", "GET"), ("/", "POST"), ("/?x", "GET")):
        assert get(path, ("127.0.0.1", 80), method=method, Host="evil.example")[0] != 200, (path, method)
    assert get("/", ("127.0.0.1", 80), Host="other.example")[0] == 503
    browser.go("http://evil.example/")
    for width, scheme in ((1280, "light"), (360, "dark")):
        browser.window(width, scheme)
        browser.picture(f"own-{scheme}-{width}")
        assert browser.overflow() <= 0 and browser.pale() == []
        assert browser.run("return getComputedStyle(document.querySelector('main')).borderTopWidth") == "1px", "it has its style"
    assert browser.role("main")[0][0] == "main" and browser.role("h1") == [("heading", "evil.example")]
    frontend.stop()
    frontend.file.write_text(frontend.file.read_text().replace("[page]\n", "[page]\nenabled = false\n"))
    frontend.start()
    assert get("/", ("127.0.0.1", 80), Host="evil.example")[0] == 503


def test_by_tls_too_where_the_frontend_has_a_certificate(kite, sup, tmp_path):
    certificate, service = Certificate(tmp_path, "alice.example"), Kite("http", "web.bob.example", "127.0.0.1:1")
    frontend = Frontend(sup, "frontend", new_address(), [service], ports=(443,), keys={"name": "alice.example"},
                        certificates=[{"cert": certificate.file}]).start()
    context = ssl.create_default_context(cafile=certificate.file)

    def ask(host):
        with socket.create_connection((frontend.ip, 443), timeout=10) as sock, \
                context.wrap_socket(sock, server_hostname="alice.example") as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return b"".join(iter(lambda: tls.recv(4096), b"")).decode()
    assert "This is a kite frontend" in ask("alice.example")
    assert ask("other.example").startswith("HTTP/1.1 421")
