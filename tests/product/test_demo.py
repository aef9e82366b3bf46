"""`kite demo` works as it is, anywhere: both roles and a storage node in one command, and what each of them saw."""

import re

from kite import binary


def views(sup, *args, timeout):
    """What it printed of each party's view, by party."""
    proc = sup.spawn("demo", [binary(), "demo", *args], cwd=sup.directory)
    assert proc.wait(timeout) == 0, proc.tail()
    said = proc.text()
    found = {who: view for who, view in re.findall(r"^  the (\w+)\n((?:    .*\n)+)", said, re.M)}
    assert set(found) == {"frontend", "visitor", "node"}, proc.tail()
    assert re.search(r"bytes from the visitor\s+[1-9]\d*, as many as were sent", found["node"])
    assert re.search(r"ciphertext\s+[1-9]\d* bytes", found["frontend"])
    assert re.search(r"tub [a-z2-7]{32}", found["visitor"])
    return found


def test_demo(kite, sup):
    assert re.search(r"backend's address\s+127\.0\.0\.1:\d+", views(sup, timeout=60)["frontend"])


def test_demo_via_tor(kite, sup, tornet):
    """Its frontend is an onion service then, and has no address to show."""
    seen = views(sup, "--via-tor", "--tor-config", tornet.arti_toml(sup.directory / "arti"), timeout=150)
    assert "onion" in seen["frontend"] and not re.search(r"\d+\.\d+\.\d+\.\d+", seen["frontend"])
