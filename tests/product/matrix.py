"""Every pair of peers, every protocol, every scene: who plays, when, and the table of what came of it.

A column is one pair (FRONTEND-BACKEND), played by threads of its own, all columns at the same time.  It has two sets of
programs with the same five kites: one plays the scenes, the other is killed, since pagekite.py takes a minute to come back.
A third set is for `https` at Debian's frontend, which dies of it.

The control, pagekite.py twice, is played whole with KITE_TEST_CONTROL=1 or KITE_UPDATE=1 only: it takes as long as all the others,
and crashes under load.  A plain run plays those of its cells for which kite is excused.

The table is kept in docs/parity.md between two marks.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import threading
import time
import traceback

import ends
from conftest import new_address, supervised
from pairs import Pair
from proc import wait_until
from traffic import Visitor

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "parity.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"

COLUMNS = {"kite-kite": "kite, kite", "kite-pagekite": "kite, pagekite.py", "pagekite-kite": "pagekite.py, kite",
           "pagekite-pagekite": "pagekite.py twice"}
CONTROL = "pagekite-pagekite"
PROTOCOLS = ("http", "https", "websocket", "raw", "foolscap")
SCENES = {"clean": "clean", "visitor_first": "half-close, visitor's", "origin_first": "half-close, origin's",
          "bulk": "50 MB", "crowd": "50 streams", "kill": "kill and reconnect"}
FAREWELL = ("https", "websocket", "foolscap")      # their ends are the protocol's own

COMES_BACK_S = 170       # pagekite.py took up to 120 s
ENDS_S = 15              # a visitor's connection, after the backend was killed
DEAD_S = 10              # for what is not expected to be answered at all

# What pagekite.py may give up by itself, and the words in which the kite at its other end says so.
GIVEN_UP = {
    ("pagekite-kite", "visitor_first"): "stream ended: .*; the frontend took no more of what the origin said",    # src/backend/stream.rs
    ("kite-pagekite", "origin_first"): "left: .*; the backend took no more of what the visitor said",             # src/frontend/visitor.rs
}

HELLO = "Debian's frontend dies of any TLS ClientHello, whoever its backend is."

NOTES = """
Who ends first is in the rows. What cannot end one direction alone says its own farewell instead: TLS (as Python has it) close_notify,
WebSocket its closing handshake, a Tub stops; both ends must have seen it. 50 MB are 25 each way. *Kill and reconnect*: the
backend is killed, visitors' connections end, it is started again; then the frontend is killed, started again, and found by the
backend. The last column is the control, as one run saw it: under load Debian's pagekite.py crashes, so it varies. After an
origin's own end 100 KB are sent to it: when it was 2 MB, pagekite.py's backend dropped some of it in some of the runs, whoever its frontend was.
Debian's pagekite.py may read the end of its own socket twice, and then takes no more of what the other side says (protocol page §7.3). A visitor's
half-close at its frontend, and an origin's at its backend, are played again, twice at most, if the kite at the other end has logged just that.
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    column: str
    protocol: str
    scene: str

    def __str__(self):
        return f"{self.column}-{self.protocol}-{self.scene}"

    @property
    def reason(self):
        """Why no kite can turn it green; None if one can."""
        frontend, backend = self.column.split("-")
        if frontend == "pagekite" and self.protocol == "https":
            return HELLO
        return None

    @property
    def given_up(self):
        """Debian's pagekite.py may lose what follows a half-close on its own side, and no peer can help it.  How kite says so."""
        return None if self.protocol in FAREWELL else GIVEN_UP.get((self.column, self.scene))

    @property
    def expected(self):
        return "no" if self.reason else "yes"


WHOLE_CONTROL = bool(os.environ.get("KITE_TEST_CONTROL") or os.environ.get("KITE_UPDATE"))
ALL_CELLS = [Cell(*what) for what in itertools.product(COLUMNS, PROTOCOLS, SCENES)]
CELLS = [cell for cell in ALL_CELLS if cell.column != CONTROL or cell.reason or WHOLE_CONTROL]


@dataclasses.dataclass
class Outcome:
    verdict: str                                   # yes or no
    seconds: float
    why: str = ""


class Matrix:
    """Plays the columns that are asked for; `outcome` waits for a cell."""

    def __init__(self, directory, columns):
        self._outcomes, self._news, self.columns = {}, threading.Condition(), columns
        self._threads = [threading.Thread(target=self._guard, args=(name, directory / name), daemon=True, name=name)
                         for name in columns]
        for thread in self._threads:
            thread.start()

    def outcome(self, cell, timeout=280):
        with self._news:
            assert self._news.wait_for(lambda: cell in self._outcomes, timeout), f"nobody played {cell}"
            return self._outcomes[cell]

    def close(self):
        for thread in self._threads:
            thread.join(60)

    def verdicts(self):
        return {cell: outcome.verdict for cell, outcome in self._outcomes.items()}

    def timings(self):
        """Seconds that each cell took.  (Cells of a column overlap in part, and columns do.)"""
        for column, scene in itertools.product(self.columns, SCENES):
            cells = [Cell(column, protocol, scene) for protocol in PROTOCOLS]
            spent = "".join(f"  {cell.protocol} {self._outcomes[cell].seconds:5.1f}" for cell in cells if cell in self._outcomes)
            yield f"{column:18} {scene:14}{spent}"

    # ------------------------------------------------------------- the players

    def _guard(self, column, directory):
        """A column whose programs do not come up is red throughout."""
        try:
            self._play(column, directory)
        except BaseException:                      # noqa: BLE001 - it is the outcome
            why = traceback.format_exc()
            for cell in CELLS:
                if cell.column == column:
                    self._put(cell, Outcome("no", 0, why), keep=True)

    def _put(self, cell, outcome, keep=False):
        with self._news:
            if not (keep and cell in self._outcomes):
                self._outcomes[cell] = outcome
            self._news.notify_all()

    def _play(self, column, directory):
        directory.mkdir(parents=True, exist_ok=True)
        with supervised(directory) as sup:
            troupe = [end(sup, directory) for end in ends.ALL]
            doomed = [end for end in troupe if Cell(column, end.protocol, "clean").reason]
            sound = [end for end in troupe if end not in doomed and Cell(column, end.protocol, "clean") in CELLS]
            parts = []
            if sound:
                parts.append(threading.Thread(target=self._mortal, args=(column, directory / "mortal", sound)))
            if doomed:
                parts.append(threading.Thread(target=self._doomed, args=(column, directory / "doomed", doomed)))
            for part in parts:
                part.start()
            try:
                if column == CONTROL:
                    self._one_by_one(column, sup, sound)
                else:
                    self._quickly(column, sup, sound)
            finally:
                for part in parts:
                    part.join()
                for end in troupe:
                    end.close()

    def _quickly(self, column, sup, troupe):
        """What needs little is played by all protocols at the same time."""
        pair = start(column, sup, troupe)
        calm(pair)
        small = [threading.Thread(target=self._scenes, args=(column, sup, pair, end, ("clean", "visitor_first", "origin_first")))
                 for end in troupe]
        for thread in small:
            thread.start()
        for thread in small:
            thread.join()
        for scene, end in itertools.product(("crowd", "bulk"), troupe):
            self._scenes(column, sup, pair, end, (scene,))

    def _one_by_one(self, column, sup, troupe):
        """Each scene finds programs that live, whatever the last one did to them."""
        pair = None
        for scene, end in itertools.product([scene for scene in SCENES if scene != "kill"], troupe):
            pair = alive(column, sup, pair, troupe)
            self._scenes(column, sup, pair, end, (scene,))

    def _scenes(self, column, sup, pair, end, scenes, limit=None):
        for scene in scenes:
            cell = Cell(column, end.protocol, scene)

            def play():
                return getattr(end, scene)(pair.visitors)
            self._try(cell, sup, (lambda: again(play, pair, end, cell.given_up)) if cell.given_up else play, limit)

    def _try(self, cell, sup, work, limit=None):
        """The outcome of a cell is how `work` ends, or that it does not within `limit` seconds."""
        began, said = time.monotonic(), []

        def run():
            try:
                work()
                said.append(None)
            except BaseException:                  # noqa: BLE001 - it is the outcome
                said.append(traceback.format_exc())
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(limit)
        why = said[0] if said else f"no end within {limit} s"
        outcome = Outcome("no" if why else "yes", time.monotonic() - began)
        if why:
            outcome.why = "\n".join([why, *(tail for _, tail in sup.tails())])
        self._put(cell, outcome)

    def _doomed(self, column, directory, troupe):
        """Programs that are expected to be gone after the first of these."""
        try:
            with supervised(directory) as sup:
                pair = start(column, sup, troupe)
                for end in troupe:
                    self._scenes(column, sup, pair, end, [s for s in SCENES if s != "kill"], DEAD_S)
                    self._put(Cell(column, end.protocol, "kill"), Outcome("no", 0, "there was nothing to reconnect"))
        except BaseException:                      # noqa: BLE001
            for end in troupe:
                for scene in SCENES:
                    self._put(Cell(column, end.protocol, scene), Outcome("no", 0, traceback.format_exc()), keep=True)

    def _mortal(self, column, directory, troupe):
        """The backend is killed and started again; then the frontend is, and the backend has to find it."""
        why, began = {end: "" for end in troupe}, time.monotonic()
        try:
            with supervised(directory) as sup:
                pair = start(column, sup, troupe)

                def each(work):
                    threads = [threading.Thread(target=note, args=(end, work)) for end in troupe]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()

                def note(end, work):
                    try:
                        work(end)
                    except BaseException:          # noqa: BLE001
                        why[end] += traceback.format_exc() + "\n".join(tail for _, tail in sup.tails())

                def hold(end):
                    held[end] = end.held(pair.visitors)

                def ended(end):
                    held[end].sock.settimeout(ENDS_S)
                    try:
                        while held[end].sock.recv(4096):
                            pass
                    except TimeoutError:
                        raise AssertionError(f"its connection still stands {ENDS_S} s after the backend's death") from None
                    except OSError:
                        pass                       # a reset is an end

                held = {}
                each(hold)
                pair.backend.proc.kill()
                each(ended)
                pair.backend.start()
                comes_back(pair, troupe)
                each(lambda end: end.clean(pair.visitors))
                pair.frontend.proc.kill()
                pair.frontend.start()
                comes_back(pair, troupe)
                each(lambda end: end.clean(pair.visitors))
        except BaseException:                      # noqa: BLE001
            for end in troupe:
                why[end] += traceback.format_exc()
        for end in troupe:
            self._put(Cell(column, end.protocol, "kill"),
                      Outcome("no" if why[end] else "yes", time.monotonic() - began, why[end]))


def again(play, pair, end, given_up):
    """Plays, and again where pagekite.py gave up by itself, as kite's log says: twice more at most."""
    ours = pair.backend.proc if pair.kind.endswith("-kite") else pair.frontend.proc
    for left in (2, 1, 0):
        since = ours.mark()
        try:
            return play()
        except (AssertionError, OSError):
            if not left or not said(ours, f"{re.escape(end.kite.name)}.* {given_up}", since):
                raise


def said(proc, pattern, since):
    """True if that is in the log, or soon will be."""
    with contextlib.suppress(AssertionError):
        return bool(proc.wait_log(pattern, ENDS_S, since))
    return False


def start(column, sup, troupe):
    """A frontend and a backend for these kites, which fly when this returns."""
    pair = Pair(column, sup, new_address(), [end.kite for end in troupe])
    if column == CONTROL:                          # which has no log line to wait for
        comes_back(pair, troupe)
    return pair


def alive(column, sup, pair, troupe):
    """The pair, or another in its place if the last scene was too much for it."""
    with contextlib.suppress(AssertionError):
        if pair:
            comes_back(pair, troupe, timeout=10)
            return pair
    return start(column, sup, troupe)


def comes_back(pair, troupe, timeout=COMES_BACK_S):
    """The backend's kites fly: one of them answers, and all are registered together."""
    asked = {end.protocol: end for end in troupe}.get("http")
    if asked is None:
        return time.sleep(5)

    def answered():
        try:
            return Visitor(pair.visitors, asked.kite.name).ask("GET", "/bytes/1/10", timeout=5)[0] == 200
        except (OSError, AssertionError):
            return False
    wait_until(answered, timeout, f"{asked.kite.name} answers through {pair.kind}", every=0.3)


def calm(pair):
    """Debian's frontend drops a tunnel that sends PING, as kite's does after 10 s of silence; from then on it sends
    none there.  Wait for that, so that no scene is cut off by it."""
    if pair.kind == "pagekite-kite":
        pair.backend.wait_line(r"lost", timeout=30)
        pair.backend.wait_up(pair.kites[0], pair.frontend.ip, since=pair.backend.proc.text().index("lost"))


# ------------------------------------------------------------------- the table

def table(verdicts):
    """What is kept: a row for each protocol and scene, a column for each pair (frontend, then backend)."""
    reasons = list(dict.fromkeys(cell.reason for cell in CELLS if cell.reason))
    lines = ["| | frontend, backend: | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for protocol, (scene, words) in itertools.product(PROTOCOLS, SCENES.items()):
        if protocol in FAREWELL:
            words = words.replace("half-close", "farewell")
        row = []
        for column in COLUMNS:
            cell = Cell(column, protocol, scene)
            verdict = verdicts.get(cell, "?")
            row.append(f"{verdict} ({reasons.index(cell.reason) + 1})" if cell.reason and verdict == "no" else verdict)
        lines.append(f"| {protocol} | {words} | " + " | ".join(row) + " |")
    lines += ["", *(f"({n}) {reason}" for n, reason in enumerate(reasons, 1)), "", NOTES.strip()]
    return "\n".join(lines) + "\n"


def parse(text):
    """The verdicts in a table."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 2 + len(COLUMNS) or cells[0] not in PROTOCOLS:
            continue
        words = cells[1].replace("farewell", "half-close")
        scene = next((scene for scene, name in SCENES.items() if name == words), None)
        for column, verdict in zip(COLUMNS, cells[2:]):
            found[Cell(column, cells[0], scene)] = re.sub(r" .*", "", verdict)
    return found


def kept():
    page = PAGE.read_text()
    return page.split(BEGIN)[1].split(END)[0]


def keep(text):
    page = PAGE.read_text()
    PAGE.write_text(page.split(BEGIN)[0] + BEGIN + text + END + page.split(END)[1])
