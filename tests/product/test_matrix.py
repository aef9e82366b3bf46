"""{pagekite.py, kite} as frontend × {pagekite.py, kite} as backend × five protocols × what may happen to them.

Real programs at all ends (ends.py).  pagekite.py with pagekite.py is the control: it shows which cells no kite could turn green,
and is recorded, not asserted.  The table is printed at the end of the run and kept in docs/parity.md; KITE_UPDATE=1 writes it
anew, and a plain run compares the verdicts.  What is played when: matrix.py.
"""

import os
import warnings

import pytest

import matrix as played
from conftest import epilogues
from matrix import CELLS, COLUMNS, CONTROL, WHOLE_CONTROL, Matrix


@pytest.fixture(scope="module")
def matrix(request, tmp_path_factory, kite):
    """The columns that some selected test asks for, all of which begin now."""
    asked = {item.callspec.params["cell"].column for item in request.session.items
             if item.path == request.path and hasattr(item, "callspec")}
    running = Matrix(tmp_path_factory.mktemp("matrix"), [c for c in COLUMNS if c in asked])
    epilogues.append(lambda: ("the peers", [*played.table(running.verdicts()).splitlines(), "", *running.timings()]))
    yield running
    running.close()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(matrix, cell):
    outcome = matrix.outcome(cell)
    if cell.column == CONTROL:
        return                                     # compared with what is kept, below
    if cell.reason and outcome.verdict == "yes":
        warnings.warn(f"{cell} is green, and was not expected to be: {cell.reason}", stacklevel=1)
    assert cell.reason or outcome.verdict == "yes", outcome.why


def test_the_kept_table(matrix):
    """docs/parity.md says what was seen."""
    if set(matrix.columns) != set(COLUMNS):
        pytest.fail("it takes all columns: run tests/run product -k matrix")
    for cell in CELLS:
        matrix.outcome(cell)
    seen = matrix.verdicts()
    if not WHOLE_CONTROL:
        seen = {**{cell: verdict for cell, verdict in played.parse(played.kept()).items() if cell.column == CONTROL}, **seen}
    if os.environ.get("KITE_UPDATE"):
        played.keep(played.table(seen))
    was = played.parse(played.kept())
    changed = [f"{cell}: kept is {was.get(cell)}, seen was {seen[cell]}" for cell in CELLS if was.get(cell) != seen[cell]]
    control = [line for line in changed if line.startswith(CONTROL)]
    if control:
        warnings.warn("the control changed:\n" + "\n".join(control), stacklevel=1)
    ours = [line for line in changed if line not in control]
    assert not ours, "docs/parity.md says otherwise (KITE_UPDATE=1 writes it anew):\n" + "\n".join(ours)


def test_kite_is_excused_for_nothing_that_pagekite_can_do(matrix):
    excused = []
    for cell in CELLS:
        if cell.reason and cell.column != CONTROL:
            control = played.Cell(CONTROL, cell.protocol, cell.scene)
            if matrix.outcome(control).verdict == "yes":
                excused.append(f"{cell} is excused, and the control can do it: {cell.reason}")
    assert not excused, "\n".join(excused)
