"""A storage-only frontend: real Tahoe passes, by foolscap and by its HTTPS protocol, and browsers get nothing.

Two storage nodes, one for each protocol, and clients of theirs that put a file there and fetch it.  Then Chromium and
curl come to all the ways in.  The kites' grants allow web pages as well, and a kite flies that has one: nobody sees it.
Taps in front of the nodes and of the web server show that nobody but Tahoe came through.
"""

import subprocess

import pytest

from browser import Browser
from conftest import new_address, supervised
from island import Island
from kite import Backend, Frontend, Kite
from tahoe import Client, Introducer, Storage, in_parallel
from traffic import HttpOrigin, Tap, random_bytes, sha256

INTRO, INTRODUCER = "intro.open.example", "10.77.5.7"
BOB, GBS, WEB = "bob.open.example", "gbs.open.example", "web.open.example"
OWN_PORT = 8443
SIZE = 300_000
PAGE = "There is no page here"


class World:
    def __init__(self, sup, undo):
        self.ip, machine = new_address(), Island()
        self.hosts = {INTRO: INTRODUCER, BOB: self.ip, GBS: self.ip}
        introducers = [Introducer(sup, sup.directory / f"introducer{n}", self.hosts, INTRO, INTRODUCER, 45001 + n).run()
                       for n in (0, 1)]

        def node(n, name, port, force):
            made = Storage(sup, sup.directory / f"node{n}", self.hosts, machine, introducers[n].furl,
                           [f"tcp:{name}:{port}"], force_foolscap=force)
            made.target = ("127.0.0.1", 49293 + n)
            made.change("node", **{"tub.port": f"tcp:{49293 + n}:interface=127.0.0.1"})
            return made

        def client(n):
            return Client(sup, sup.directory / f"client{n}", self.hosts, introducers[n].furl, shares=(1, 1, 1))

        *self.nodes, one, other = in_parallel(lambda: node(0, BOB, 80, True), lambda: node(1, GBS, OWN_PORT, False),
                                              lambda: client(0), lambda: client(1))
        self.clients = [one, other]
        for process in [*self.nodes, *self.clients]:        # by this thread: they end with the one that started them
            process.run()
        web = HttpOrigin(machine)
        undo(lambda: web.__exit__(None, None, None))
        self.taps = [Tap(machine, node.target) for node in self.nodes]
        self.web_tap = Tap(machine, tuple_of(web.address))
        for tap in [*self.taps, self.web_tap]:
            undo(tap.close)
        self.kites = [Kite("foolscap", BOB, self.taps[0].address), Kite("tahoe-https", GBS, self.taps[1].address)]
        lax = Kite("http", WEB, self.web_tap.address)
        granted = [*self.kites, lax]
        self.frontend = Frontend(sup, "frontend", self.ip, [], owned={OWN_PORT: self.kites[1]},
                                 tables=grants(sup, granted), keys={"policy": "storage-only", "name": "open.example"}).start()
        self.backend = Backend(sup, "backend", [self.frontend.pinned()], granted).start()
        for kite in self.kites:
            self.backend.wait_up(kite, self.ip)


def tuple_of(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def grants(sup, kites):
    """Each may carry pages, too, if the policy lets it."""
    text = '[page]\ncontact = "abuse@open.example"\n'
    for kite in kites:
        file = sup.directory / f"{kite.name}.secret"
        file.write_text(kite.secret)
        file.chmod(0o600)
        text += (f'[[kites]]\nname = "{kite.name}"\nprotocols = ["foolscap", "tahoe-https", "http", "https", "websocket"]\n'
                 f'secret_file = "{file}"\n')
    return text


@pytest.fixture(scope="module")
def world(kite, tmp_path_factory, request):
    with supervised(tmp_path_factory.mktemp("storage-only")) as sup:
        yield World(sup, request.addfinalizer)


def curl(*args):
    done = subprocess.run(["curl", "-sS", "--max-time", "20", "-o", "-", "-w", "\n%{http_code}", *args],
                          capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return done.returncode, status, body


def test_tahoe_passes_both_ways(world):
    """A file up and down over foolscap by name, and over Tahoe's HTTPS on the kite's own port."""
    for n, client in enumerate(world.clients):
        statuses = client.wait_connected(1)
        assert ("tcp:" in statuses[0]) == (n == 0), statuses
        data = random_bytes(20 + n, SIZE)
        assert sha256(client.download(client.upload(data))) == sha256(data)
    assert [tap.protocols() for tap in world.taps] == [{"foolscap"}, {"https"}]


def quiet(world):
    """What came to the web server; and to the nodes, that no Tahoe client says.

    Tahoe's foolscap asks for the upgrade, in a head that has no browser's name in it; its HTTPS client's hello offers no
    protocols, as every browser's and curl's does.
    """
    foolscap, https = (tap.beginnings for tap in world.taps)
    opening = [b for b in foolscap if b and not (b.startswith(b"GET /id/") and b"\r\nUpgrade: TLS/1.0\r\n" in b
                                                 and b"Mozilla" not in b)]
    hellos = [b for b in https if b and not (b.startswith(b"\x16\x03") and b"http/1.1" not in b)]
    return world.web_tap.beginnings, opening, hellos


def test_curl_gets_a_page_that_says_what_this_is(world):
    for name in (BOB, GBS, WEB, "nobody.open.example"):
        code, status, body = curl("--resolve", f"{name}:80:{world.ip}", f"http://{name}/")
        assert (code, status) == (0, "403") and PAGE in body and "abuse@open.example" in body
        code, status, _ = curl("-k", "--resolve", f"{name}:443:{world.ip}", f"https://{name}/")
        assert code == 35 and status == "000", "an alert"
        code, status, _ = curl("-k", "--resolve", f"{name}:{OWN_PORT}:{world.ip}", f"https://{name}:{OWN_PORT}/")
        assert code == 35 and status == "000", "an alert"
    code, status, _ = curl("-k", f"https://{world.ip}:{OWN_PORT}/")
    assert code == 35 and status == "000", "curl offers protocols, as browsers do"
    for proxy in (80, 443):
        code, status, _ = curl("-x", f"http://{world.ip}:80", "-p", f"http://{WEB}:{proxy}/")
        assert code != 0 or status == "403"
    assert quiet(world) == ([], [], [])


# No certificate is what keeps it out, but the frontend's alert.
ALERT = "ERR_SSL_PROTOCOL_ERROR"


def test_chromium_shows_nothing_from_behind_the_tunnel(world, sup, tmp_path):
    places = {name: world.ip for name in (BOB, GBS, WEB)}
    browser = Browser(sup, tmp_path, names=places, careless=True)
    world.clients[0].wait_connected(1)
    tub = (world.nodes[0].dir / "my_nodeid").read_text().strip()
    try:
        for name in (BOB, WEB):
            browser.go(f"http://{name}/")
            browser.wait_text("h1", PAGE)
            assert "abuse@open.example" in browser.text() and browser.pale() == []
            browser.go(f"http://{name}/id/{tub}")
            browser.wait_text("h1", PAGE)
        browser.picture("storage-only")
        # A page of somebody else's, which keeps its scripts from nothing. Upgrade is a header that no script may set.
        browser.go("data:text/html,<title>elsewhere</title>")
        for name in (BOB, WEB):
            browser.log("performance")
            browser.wait_for("fetch(arguments[0], {mode: 'no-cors', headers: {Upgrade: 'TLS/1.0', Connection: 'Upgrade'}})",
                             f"http://{name}/id/{tub}")
            # It was asked, and has answered: that the answer is for no other page than its own.
            assert browser.failures() == ["corp-not-same-origin"]
            said = browser.wait_for("new Promise(r => { const s = new WebSocket(arguments[0]); s.onopen = () => r('open');"
                                    " s.onclose = () => r('closed'); })", f"ws://{name}/id/{tub}")
            assert said == "closed"
        for url in (f"https://{BOB}/", f"https://{GBS}:{OWN_PORT}/", f"https://{world.ip}:{OWN_PORT}/"):
            with pytest.raises(AssertionError, match=ALERT):
                browser.go(url)
    finally:
        browser.close()
    assert quiet(world) == ([], [], [])


def test_it_says_so(world):
    assert world.frontend.status()["storage_only"] is True
    assert "storage only" in world.frontend.proc.text()
