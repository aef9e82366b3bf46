"""Fixtures of the product tests: the island, the Tor network, processes, and what is printed when one fails."""

import contextlib
import itertools

import pytest

import island
import pagekite_peer
from kite import binary
from lone import LoneMachine
from proc import Supervisor
from tornet import TorNet

# Before anything else, while this process has one thread.  From here on
# neither it nor a child can reach the world.
island.enter()

# Frontends that only the exits of the Tor networks can find by name.
ALICE, CAROL, DAVE = "10.77.1.1", "10.77.1.2", "10.77.1.3"
EXIT_NAMES = {"alice.example": ALICE, "carol.example": CAROL, "dave.example": DAVE}


def pytest_report_header(config):
    return ["island: 10.77.0.0/16 on loopback, no way out"]


@pytest.fixture(scope="session", autouse=True)
def peers():
    """A missing peer is an error that says how to install it."""
    pagekite_peer.binary()


@pytest.fixture(scope="session")
def kite(peers):
    """The program under test."""
    return binary()


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


_supervisors = []          # the living ones, for the report of a failure


@contextlib.contextmanager
def supervised(directory):
    """Processes that end with the block; one that had to be killed is an error."""
    sup = Supervisor(directory)
    _supervisors.append(sup)
    try:
        yield sup
    finally:
        stubborn = sup.stop_all()
        _supervisors.remove(sup)
    assert not stubborn, f"had to be killed: {stubborn}"


@pytest.fixture
def sup(tmp_path):
    """Processes that end with the test."""
    with supervised(tmp_path) as s:
        yield s


_machines = itertools.count(1)


@pytest.fixture
def machine():
    """Makes hidden machines, each behind a cable of its own that is listened to."""
    made = []

    def make():
        made.append(island.Machine(next(_machines)))
        return made[-1]

    yield make
    for m in made:
        m.close()


@pytest.fixture
def lone_machine(tmp_path):
    """Makes machines that are alone with a world that answers everything; given the names that it knows."""
    made = []

    def make(names):
        made.append(LoneMachine(100 + next(_machines), names, tmp_path))
        return made[-1]

    yield make
    for m in made:
        m.close()


_addresses = itertools.count(10)


def new_address():
    """An address for a frontend, never used before."""
    return f"10.77.1.{next(_addresses)}"


@pytest.fixture(scope="session")
def tornet(work):
    """The private Tor network, one for the whole run."""
    net = TorNet(work / "tor", "10.77.0", EXIT_NAMES)
    _supervisors.append(net.sup)
    yield net.start()
    _supervisors.remove(net.sup)
    net.stop()


epilogues = []             # functions that give a title, and lines, for the end of the run


def pytest_terminal_summary(terminalreporter):
    for epilogue in epilogues:
        title, lines = epilogue()
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for sup in _supervisors:
            for name, tail in sup.tails():
                if not name.startswith(("auth", "relay", "exit")):       # Tor's own say little, at length
                    report.sections.append((f"log of {name}", tail))
