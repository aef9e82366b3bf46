"""`kite backend join --via-tor`: an invitation goes through Tor, and in no other way."""

import subprocess

from conftest import ALICE
from kite import Frontend, Kite, binary
from lone import Story
from test_first_run import invite
from test_sandbox import confined

JOIN_S = 150


def test_no_leak_while_joining(kite, sup, tornet, lone_machine):
    """From a machine on which every direct dial would succeed and every name would be found."""
    hidden = lone_machine({"alice.example": ALICE})
    story = Story(hidden, tornet.relays)
    frontend = Frontend(sup, "frontend", ALICE, [Kite("http", "first.bob.example", None)],
                        keys={"name": "alice.example"},
                        onion=tornet.arti_toml(sup.directory / "frontend-tor")).start()
    public = invite(frontend, "public.bob.example")
    onion = frontend.wait_onion()
    hiding = invite(frontend, "hidden.bob.example", "--onion")
    arti = tornet.arti_toml(sup.directory / "arti")
    for name, line, via in (("public", public, "alice.example"), ("hidden", hiding, onion)):
        file = sup.directory / f"{name}.line"
        file.write_text(line)
        with story.phase(f"joining by {via}"):
            joining = sup.spawn(f"join-{name}", [
                binary(), "backend", "join", "--via-tor", "--tor-config", arti, "--invitation-file", file,
                "--origin", "127.0.0.1:1", "--to", sup.directory / name, "--state-dir", sup.directory / "state"],
                machine=hidden, log=sup.directory / f"{name}.log")
            joining.wait_log("sandbox: ", 30)
            assert confined(joining) == {("2", "1")}
            assert joining.wait(JOIN_S) == 0, joining.tail()
        assert f"{name}.bob.example may fly at {via}" in joining.text()
        assert "enabled = true" in (sup.directory / name / "backend.toml").read_text()
    listed = subprocess.run([binary(), "frontend", "invitations", "list", "--config", frontend.file],
                            capture_output=True, text=True, check=True).stdout
    assert listed.count("used") == 2, listed
    assert hidden.address not in frontend.proc.log.read_text()
    assert onion.split(":")[0] not in str(tornet.asked)
