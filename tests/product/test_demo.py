"""`kite demo` works as it is, anywhere: a frontend, a backend and an origin in one command, and what each sees."""

from kite import binary

VIEWS = ("visitor", "frontend", "backend", "origin")


def run(sup, *args, timeout):
    proc = sup.spawn("demo", [binary(), "demo", *args], cwd=sup.directory)
    assert proc.wait(timeout) == 0, proc.tail()
    said = proc.text().lower()
    assert not [v for v in VIEWS if v not in said], proc.tail()
    return said


def test_demo(kite, sup):
    run(sup, timeout=60)


def test_demo_via_tor(kite, sup, tornet):
    """Its frontend is on loopback, where an exit of the private network can reach it."""
    said = run(sup, "--via-tor", "--tor-config", tornet.arti_toml(sup.directory / "arti"), timeout=150)
    assert "exit" in said, said
