"""From nothing to a working kite: the questions of a first run on a real terminal, and invitations."""

import base64
import configparser
import functools
import http.server
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import threading

import pytest

import foolscap_peer
from conftest import new_address
from island import Island
from kite import Frontend, Kite, binary, secret_file
from kite import run as refused
from proc import wait_until
from tahoe import create
from terminal import Terminal
from traffic import HttpOrigin, Visitor

SIZE = 200_000
LINE = r"kite-invite1:[A-Za-z0-9_-]+"


@pytest.fixture
def terminal(tmp_path):
    """Starts kite on a terminal, with an empty home."""
    made = []

    def start(*args, **env):
        env = {"HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path / "conf"),
               "XDG_STATE_HOME": str(tmp_path / "state"), **env}
        made.append(Terminal([binary(), *args], env=env, cwd=tmp_path))
        return made[-1]

    yield start
    for t in made:
        t.close()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def tree(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def invite(frontend, name, *args):
    """The one line, which is all of standard output."""
    done = subprocess.run([binary(), "frontend", "invite", name, *map(str, args), "--config", frontend.file],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert re.fullmatch(LINE, line) and line not in done.stderr
    return line


def join(tmp_path, line, *args, status=0, to="conf"):
    """`kite backend join` where no terminal is; what it said."""
    file = tmp_path / "invitation"
    file.write_text(line + "\n")
    return refused("backend", "join", "--invitation-file", file, "--to", tmp_path / to, *args, status=status,
                   env={"KITE_STATE_DIR": str(tmp_path / "state")})


def test_from_nothing_to_a_working_node(kite, sup, terminal, tmp_path):
    """The frontend's questions, an invitation, the backend's questions, and a storage client that gets through."""
    ip, name = new_address(), "tub.bob.example"
    tub = foolscap_peer.TubOrigin(sup, Island(), name, port=8080)
    conf = tmp_path / "conf"
    front = terminal("frontend")
    front.answer(r"Under which name", "*.bob.example")
    front.expect(r"without '\*'")
    front.answer(r"Under which name", ip)
    front.answer(r"On which ports", "http")
    front.expect("'http' is no port")
    with Island().listen(("0.0.0.0", 8444)):
        front.answer(r"On which ports", "8444")
        front.expect("another program uses this port")
    front.answer(r"On which ports", "8443, 8080")
    front.answer(r"Where are its key", str(tmp_path / "front-state"))
    front.answer(r"onion service", "n")
    front.expect(r'listen = \["0\.0\.0\.0:8443", "0\.0\.0\.0:8080"\]')
    assert not conf.exists()
    front.answer(r"Write it", "y")
    front.answer(r"Whom to invite first", name)
    line = front.expect(LINE)[0]
    front.expect("Hand it to the node's operator")
    front.answer(r"Start it now", "y")
    front.expect(r"listening on 0\.0\.0\.0:8443")
    assert mode(conf) == 0o700 and mode(conf / "frontend.toml") == 0o600

    back = terminal("backend")
    back.answer(r"The invitation", line[:-3])
    back.expect("damaged")
    back.answer(r"The invitation", line)
    back.expect(f"lets you fly {name} at {ip}:8443")
    back.answer(r"Go through Tor", "n")
    back.expect("sees this machine's address")
    with HttpOrigin(Island()) as web:
        back.answer(r"node's directory, or the address", web.address)
        back.expect("must never be public|does not answer as a foolscap port")
        if "Take it all the same" in back.screen or "does not answer" in back.screen:
            back.answer(r"Take it all the same", "n")
    back.answer(r"node's directory, or the address", tub.address)
    back.expect("answers as a foolscap port")
    back.expect(rf'origin = "{tub.address}"')
    assert not (conf / "backend.toml").exists()
    back.answer(r"Write it", "y")
    back.expect("may fly at")
    back.answer(r"Start it now", "y")
    back.expect(rf"kite up: foolscap:{name}")
    secret = next(conf.glob(f"{name}-*.secret"))
    assert mode(secret) == 0o600 and re.fullmatch(r"[0-9a-f]{64}\n", secret.read_text())
    foolscap_peer.exchange(sup, tub.furl, {name: ip}, seed=1, size=SIZE)
    assert secret.read_text().strip() not in front.screen + back.screen
    # The second start asks nothing.
    back.key(b"\x03")
    assert back.end() == 0
    again = terminal("backend")
    again.expect(f"the configuration is {conf}/backend.toml")
    again.expect(rf"kite up: foolscap:{name}")
    again.key(b"\x03")
    assert again.end() == 0


@pytest.mark.parametrize("wanted", ["y", "n"], ids=["put-in", "left"])
def test_the_offer_of_the_nodes_lines(kite, terminal, tmp_path, wanted):
    """The node in the usual place is found, and its tahoe.cfg gets the lines if that is wanted, and not before."""
    node = tmp_path / ".tahoe"
    create("create-node", "--nickname=bob", "--webport=none", "--port=tcp:49293:interface=127.0.0.1",
           "--location=tcp:bob.example:49293", node)
    file = node / "tahoe.cfg"
    before, name = file.read_text(), "tub.bob.example"
    back = terminal("backend")
    back.answer(r"The invitation", "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443")
    back.answer(r"Is it an open frontend", "")
    back.answer(r"The kite's name", name)
    back.answer(r"given you a secret", "y")
    back.answer_hidden(r"paste it", "s3cret-of-bobs")
    back.expect("all connections go through Tor")
    back.expect(re.escape(f"1: the node in {node}"))
    back.answer(r"Which node\?", "")
    back.answer(r"Take it all the same", "y")
    back.answer(r"Write it", "y")
    back.expect("needs these lines")
    back.expect(rf"tub\.location = tcp:{name}:80")
    back.expect("kite check says so")
    assert file.read_text() == before
    back.answer(r"Put them in", wanted)
    if wanted == "y":
        kept = back.expect(r"The old file is (\S+)\.\n")[1]
        assert pathlib.Path(kept).read_text() == before
        back.expect("Restart the node")
        config = configparser.ConfigParser()
        config.read(file)
        assert config["node"]["tub.location"] == f"tcp:{name}:80" and config["connections"]["tcp"] == "tor"
        socks = re.search(r'socks_listen = "127\.0\.0\.1:(\d+)"', (tmp_path / "conf" / "backend.toml").read_text())[1]
        assert config["tor"]["socks.port"] == f"tcp:127.0.0.1:{socks}"
    else:
        back.expect(re.escape(f"Later: kite tahoe --write {node}"))
        assert file.read_text() == before and not list(node.glob("tahoe.cfg?*"))
    back.answer(r"Start it now", "n")
    assert back.end() == 0
    assert "s3cret" not in back.screen and mode(tmp_path / "conf" / f"{name}.secret") == 0o600


def test_who_manages_a_frontend_as_root_leaves_its_files_to_its_user(kite, tmp_path):
    """The service does not run; what is made in its state directory is its user's."""
    state, user = tmp_path / "state", 65534
    state.mkdir(mode=0o700)
    assert os.getuid() == 0, "this test gives files away; run it as root"
    os.chown(state, user, user)
    file = tmp_path / "frontend.toml"
    file.write_text(f'name = "alice.example"\nlisten = ["127.0.0.1:8443"]\nstate_dir = "{state}"\n')
    refused("frontend", "kites", "add", "bob.alice.example", "--config", file, status=0)
    said = refused("frontend", "invite", "carol.alice.example", "--config", file, status=0)
    assert "Mind:" not in said
    made = {p.name: (p.stat().st_uid, p.stat().st_gid, mode(p)) for p in state.iterdir()}
    assert made == {name: (user, user, 0o600) for name in ("kites.redb", "frontend-key.pem")}
    said = refused("frontend", "invite", "*.bob.example", "--config", file, status=0)
    assert "Mind: *.bob.example is not one name" in said and re.search(LINE, said)


@pytest.mark.parametrize("leave", [b"\x03", b"\x04"], ids=["ctrl-c", "end"])
def test_who_leaves_has_written_nothing(kite, terminal, tmp_path, leave):
    for role, answers in (("backend", ["2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:443",
                                       "bob.alice.example"]),
                          ("frontend", ["alice.example", "8443"])):
        for number in range(len(answers) + 1):
            asking = terminal(role)
            for answer in answers[:number]:
                asking.expect(r"[:?.)\]] $")
                asking.type(answer)
            asking.expect(r"[:?.)\]] $")
            asking.key(leave)
            assert asking.end() in (2, -signal.SIGINT)
    assert tree(tmp_path) == []


def test_nobody_to_ask(kite, tmp_path):
    """Without a terminal it is an error, which says what to do."""
    for role in "backend", "frontend":
        said = refused(role, env={"CONFIGURATION_DIRECTORY": str(tmp_path / "conf")})
        assert f"{tmp_path}/conf/{role}.toml" in said and "--config" in said and "terminal" in said
    assert tree(tmp_path) == []


def web_server(directory):
    """One as they are: it knows no tubs.  Its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return "127.0.0.1:%d" % server.server_port


def test_invitations(kite, sup, tmp_path):
    """Made while the frontend runs and while it does not; taken up, twice, by another, late, taken back."""
    ip = new_address()
    with HttpOrigin(Island()) as web:
        frontend = Frontend(sup, "frontend", ip, [Kite("http", "first.bob.example", web.address)])
        at_rest = invite(frontend, "rest.bob.example", "--protocols", "http")
        frontend.start()
        line = invite(frontend, "web.bob.example", "--protocols", "http", "--quota", "1GB", "--require-proof")
        how = ["--direct", "--origin", web.address]
        # What the kite is for is said here, not there.
        assert "--protocol" in join(tmp_path, line, *how, status=2)
        how += ["--protocol", "http"]
        said = join(tmp_path, line, *how)
        assert f"web.bob.example may fly at {frontend.pinned()}" in said and "Start it: kite backend --config" in said
        conf = tmp_path / "conf"
        file, = conf.glob("backend.toml")
        secret, = conf.glob("*.secret")
        assert mode(conf) == 0o700 and mode(secret) == mode(file) == 0o600

        # What would make a node's web interface public is refused before the invitation is used up.
        other = invite(frontend, "node.bob.example", "--protocols", "foolscap,http")
        said = join(tmp_path, other, "--direct", "--origin", web_server(tmp_path), to="node", status=2)
        assert "is a web server" in said and "was not used" in said, said
        assert list((tmp_path / "node").iterdir()) == []
        join(tmp_path, other, *how, to="node")

        # A comment of the operator's stays, and the second kite stands beside the first.
        file.write_text("# my own words\n" + file.read_text() + "# the end")
        file.chmod(0o640)
        assert "backend.toml" in join(tmp_path, line, *how, status=2), "it is in the file already"
        # A frontend that is asked for all kites would hear of the new one, which may be another's.
        open_file = tmp_path / "open" / "backend.toml"
        open_file.parent.mkdir(mode=0o700)
        secret_file(open_file.parent / secret.name, secret.read_text().strip())
        open_file.write_text(re.sub(r"(?m)^kites = .*\n", "", file.read_text()).replace("443#", "444#"))
        said = join(tmp_path, at_rest, *how, to="open", status=2)
        assert "is asked for all of them" in said and "rest.bob.example" in said, said

        # Who gives --via-tor at each start has not written it down: silence is no leave to dial directly.
        silent = tmp_path / "silent"
        silent.mkdir(mode=0o700)
        secret_file(silent / secret.name, secret.read_text().strip())
        assert "\n[tor]\nenabled = false\n" in file.read_text()
        (silent / "backend.toml").write_text(file.read_text().replace("[tor]\nenabled = false\n", ""))
        said = join(tmp_path, at_rest, "--origin", web.address, "--protocol", "http", to="silent", status=2)
        assert "--via-tor" in said and "--direct" in said, said
        join(tmp_path, at_rest, "--origin", web.address, "--protocol", "http")
        text = file.read_text()
        assert "# my own words" in text and "# the end\n" in text and mode(file) == 0o640
        backend = sup.spawn("backend", [binary(), "backend", "--config", file],
                            env={"KITE_STATE_DIR": str(tmp_path / "state")}, log=tmp_path / "backend.log")
        for name in "web.bob.example", "rest.bob.example":
            backend.wait_log(f"kite up: http:{name}", 15)
            Visitor(frontend.visitors, name).download(1, 1000)

        # Each kite has a secret of its own, which stands in the backend's file and in the frontend's book, and nowhere else.
        texts = [path.read_text().strip() for path in conf.glob("*.secret")]
        assert len(set(texts)) == 2
        said = [json.dumps(frontend.status()), *frontend.manage("list", "--json"), backend.text(), frontend.proc.text()]
        for text in texts:
            forms = text.encode(), text.encode().hex().encode(), base64.b64encode(text.encode()), base64.urlsafe_b64encode(text.encode())
            holders = {path.name for path in tmp_path.rglob("*")
                       if path.is_file() and any(form.rstrip(b"=") in path.read_bytes() for form in forms)}
            assert {name.split("-")[0] for name in holders} <= {"kites.redb", "web.bob.example", "rest.bob.example"}, holders
            assert "kites.redb" in holders and not any(text in words for words in said)
            for proc in backend, frontend.proc:
                assert text.encode() not in pathlib.Path(f"/proc/{proc.popen.pid}/cmdline").read_bytes()

        # The same again is answered as before; with another secret it is refused, and changes nothing.
        again = tmp_path / "again"
        again.mkdir(mode=0o700)
        secret_file(again / secret.name, secret.read_text().strip())
        join(tmp_path, line, *how, to="again")
        said = join(tmp_path, line, *how, to="stranger", status=2)
        assert "used already" in said and tree(tmp_path / "stranger") == []
        Visitor(frontend.visitors, "web.bob.example").download(2, 1000)

        late = invite(frontend, "late.bob.example")
        manage = [binary(), "frontend", "invitations"]
        subprocess.run([*manage, "revoke", "late.bob.example", "--config", frontend.file], check=True)
        assert "taken the invitation back" in join(tmp_path, late, *how, to="late", status=2)
        listed = subprocess.run([*manage, "list", "--json", "--config", frontend.file], check=True, capture_output=True)
        assert {i["name"].split(".")[0]: i["state"] for i in json.loads(listed.stdout)} == {
            "node": "used", "web": "used", "rest": "used", "late": "revoked"}

        frontend.manage("remove", "web.bob.example")
        frontend.wait_down(Kite("http", "web.bob.example", None))
        said = join(tmp_path, line, *how, to="again2", status=2)
        everything = frontend.proc.log.read_text() + backend.text() + said + listed.stdout.decode()
        for hidden in line, at_rest, late, line[-40:], secret.read_text().strip():
            assert hidden not in everything
        backend.stop()


def test_mistakes_with_invitations(kite, sup, tmp_path):
    ip = new_address()
    frontend = Frontend(sup, "frontend", ip, [Kite("http", "first.bob.example", None)])
    line = invite(frontend, "web.bob.example")
    how = ["--direct", "--origin", "127.0.0.1:1"]
    # A secret in the process list is not used, and not repeated.
    said = refused("backend", "join", line, *how)
    assert "process list" in said and "--invitation-file" in said and line not in said
    assert "damaged" in join(tmp_path, line[:-1], *how, status=2)
    assert "does not begin with" in join(tmp_path, "hello", *how, status=2)
    assert "--via-tor" in join(tmp_path, line, "--origin", "127.0.0.1:1", status=2)
    assert "--node" in join(tmp_path, line, "--direct", status=2)
    # Nobody is there: nothing was used, nothing is left.
    assert "was not used" in join(tmp_path, line, *how, status=1)
    assert tree(tmp_path / "conf") == []
    # Where nothing says how the frontend is called.
    unnamed = tmp_path / "unnamed.toml"
    unnamed.write_text(f'listen = ["0.0.0.0:443"]\nstate_dir = "{tmp_path}/unnamed"\n')
    assert "set name" in refused("frontend", "invite", "web.bob.example", "--config", unnamed)
    assert "--expires" in refused("frontend", "invite", "x.bob.example", "--expires", "1y", "--config", frontend.file)
    said = refused("frontend", "invite", "web.bob.example", "--config", frontend.file)
    assert "invitations revoke web.bob.example" in said
