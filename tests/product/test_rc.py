"""pagekite.py's own files, as they are: what an operator has today works with kite, on both sides.

The files are shown to pagekite.py first, which must find in them what kite does.
"""

import subprocess

import foolscap_peer
import pagekite_peer
from conftest import ALICE
from kite import LISTENING, READY_S, Kite, RcBackend, binary, run, secret_file
from traffic import MIB, HttpOrigin, Visitor

NAME = "tahoebob.alice.example"
SECRET = "0c1e4cbb2a3f4d7788a5"

BACKEND = """\
###[ Current settings for pagekite.py v1.5.2.201011. ]#########
#
## NOTE: This file may be rewritten/reordered by pagekite.py.

##[ Default kite and account details ]##
kitename   = {name}
kitesecret = {secret}

##[ Custom front-end and dynamic DNS settings ]##
frontend = alice.example:80
# dyndns = pagekite.net OR

##[ Back-ends and local services ]##
service_on  = http:@kitename                  : localhost:{port}    : @kitesecret
service_off = http:old.alice.example          : localhost:3456      : @kitesecret
# No service_cfg: pagekite.py would tell the origin of its visitors, and so does kite.

##[ Proxy-chain settings ]##
proxy = tor:127.0.0.1:9050

##[ Miscellaneous settings ]##
new
nullui
keepalive = 60
END
What follows is no part of it.
"""

FRONTEND = """\
isfrontend
host     = {ip}
ports    = 80
protos   = http, https, raw
rawports = virtual
domain   = *:*.alice.example:{secret}
"""


def settings(path):
    """What pagekite.py makes of a file, or of a directory's files."""
    option = "optdir" if path.is_dir() else "optfile"
    done = subprocess.run([pagekite_peer.binary(), "--clean", f"--{option}={path}", "--settings"],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    return {"".join(line.split()) for line in lines}


def test_a_tahoe_operators_file_through_tor(kite, sup, machine, tornet):
    """Foolscap both ways; nothing leaves but to relays; a reload takes the file; an import is the same as the file."""
    hidden = machine()
    tub, web = foolscap_peer.TubOrigin(sup, hidden, NAME), HttpOrigin(hidden)
    port = tub.address.rsplit(":", 1)[1]
    frontend_rc = secret_file(sup.directory / "frontend.rc", FRONTEND.format(ip=ALICE, secret=SECRET))
    assert {f"host={ALICE}", "ports=80", f"domain=http:*.alice.example:{SECRET}"} <= settings(frontend_rc)
    frontend = sup.spawn("frontend", [binary(), "frontend", "--config", frontend_rc, "--state-dir", sup.directory / "f"])
    frontend.wait_log(LISTENING.format(address=f"{ALICE}:80"), READY_S)

    backend = RcBackend(sup, "backend", BACKEND.format(name=NAME, secret=SECRET, port=port), machine=hidden,
                        via_tor=tornet.arti_toml(sup.directory / "arti"))
    assert {f"kitename={NAME}", "frontend=alice.example:80", "proxy=tor:127.0.0.1:9050", "keepalive=60",
            f"service_on=http:@kitename:localhost:{port}:@kitesecret",
            } <= settings(backend.file)
    assert "pagekite.rc:19: this line asks for Tor" in run("backend", "--config", backend.file)

    with web:
        backend.start()
        backend.wait_up(Kite("http", NAME, tub.address), "alice.example")
        said = backend.proc.text()
        assert "pagekite.rc:24: keepalive: " in said and SECRET not in said
        foolscap_peer.exchange(sup, tub.furl, {NAME: ALICE}, seed=1, size=MIB)

        since = backend.proc.mark()
        backend.rc = backend.rc.replace("END", f"service_on = http:web.alice.example:{web.address}:{SECRET}\nEND")
        assert "kite http:web.alice.example: added\n" in backend.reload()
        backend.wait_up(Kite("http", "web.alice.example", web.address), "alice.example", since=since)
        Visitor((ALICE, 80), "web.alice.example").download(seed=2, size=MIB)

        new = backend.dir / "new"
        told = run("import", backend.file, "--to", new, status=0)
        assert SECRET not in told + (new / "backend.toml").read_text()
        backend.write = lambda: None
        backend.file = new / "backend.toml"
        assert "nothing has changed\n" in backend.reload()
        assert "it is there already" in run("import", backend.dir / "pagekite.rc", "--to", new)

    backend.stop()
    assert hidden.log.dials() <= tornet.relays


def test_debians_directory(kite, tmp_path):
    """/etc/pagekite.d as the package leaves it says that it is not filled in; filled in, it is a backend."""
    directory = tmp_path / "pagekite.d"
    directory.mkdir()
    account = directory / "10_account.rc"
    secret_file(account, f"kitename = {NAME}\nkitesecret = {SECRET}\n\n# Delete this line!\nabort_not_configured")
    secret_file(directory / "20_frontends.rc", "defaults")
    secret_file(directory / "80_httpd.rc", "service_on = http:@kitename : localhost:80 : @kitesecret")
    assert "10_account.rc:5: the file says that it has not been filled in yet" in run("import", directory)
    secret_file(account, account.read_text().replace("abort_not_configured", ""))
    assert "service_on=http:@kitename:localhost:80:@kitesecret" in settings(directory)
    said = run("import", directory, "--to", tmp_path / "new", status=0)
    assert "20_frontends.rc:1: defaults: " in said and SECRET not in said
    assert (tmp_path / "new" / f"{NAME}.secret").read_text() == SECRET + "\n"

