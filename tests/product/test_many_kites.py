"""More kites than a handshake asks for, at a real pagekite.py: kite asks for the rest within the tunnel (AddKites).

pagekite.py has no bound for the lines of a head or of a frame, and took 1,000 in one; but it ends the whole tunnel when it
refuses all that a frame asks for.  kite asks for 32 at a time (`MAX_ASKED`).
"""

import pytest

from conftest import new_address, supervised
from island import Island
from kite import Backend, Kite
from pagekite_peer import PagekiteFrontend
from traffic import Origin, Visitor

AT_ONCE = 32
SECRET = "s3cret-for-tests"


def web(stream):
    stream.read_until(b"\r\n\r\n")
    stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")


@pytest.fixture
def lab(tmp_path, kite):
    """Kites of one origin and one secret, and how to fly them: `known` are those that the frontend has."""
    with supervised(tmp_path) as sup, Origin(Island(), web) as origin:
        frontends = []

        def fly(n, known):
            kites = [Kite("http", f"k{i}.alice.example", origin.address, SECRET) for i in range(n)]
            frontend = PagekiteFrontend(sup, "frontend", new_address(), [k for i, k in enumerate(kites) if known(i)])
            frontends.append(frontend.start())
            backend = Backend(sup, "backend", [frontend.plain()], kites, tunnels=1)
            return frontend, backend.start(), kites
        yield fly


def reached(frontend, kite):
    return Visitor(frontend.visitors, kite.name).ask("GET", "/")[0] == 200


def test_two_hundred_kites_fly_in_one_tunnel(lab):
    frontend, backend, kites = lab(200, known=lambda i: True)
    backend.wait_up(kites[-1], frontend.ip)
    assert all(reached(frontend, kites[i]) for i in (0, AT_ONCE - 1, AT_ONCE, 199))
    tunnels = backend.status()["tunnels"]
    assert len(tunnels) == 1 and len(tunnels[0]["kites"]) == 200


def test_a_question_that_is_refused_as_a_whole_costs_a_tunnel_and_not_the_others(lab):
    """Or two, if the end of the first came before the answer."""
    strange = range(AT_ONCE, 2 * AT_ONCE)
    frontend, backend, kites = lab(3 * AT_ONCE, known=lambda i: i not in strange)
    backend.wait_up(kites[-1], frontend.ip)
    assert all(reached(frontend, kites[i]) for i in (0, AT_ONCE - 1, 2 * AT_ONCE, 3 * AT_ONCE - 1))
    backend.wait_line(r"kite refused: http:k40.alice.example via")
    assert len(backend.status()["tunnels"][0]["kites"]) == 2 * AT_ONCE
    assert backend.proc.text().count("KITE-F25") in (1, 2), "so often was the tunnel lost"
