"""How the test's own visitors find their hosts: there is no name server for them on the island.

Python programs that start with `environment(...)` load shim/sitecustomize.py,
which answers for these names and refuses all others.
"""

import pathlib

SHIM = pathlib.Path(__file__).parent / "shim"


def environment(hosts):
    """`hosts` maps names, or patterns like *.alice.example, to addresses."""
    return {"PYTHONPATH": str(SHIM), "KITE_TEST_HOSTS": ",".join(f"{n}={ip}" for n, ip in hosts.items())}
