"""The fault matrix: each row has its exit code, one line, and a remedy; README's exit codes are the matrix's."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from app.errors import AppError
from tests.faults import MEANINGS, ROWS, Fault
from tests.stages.test_damaged_inputs import CASES

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.area}: {row.cause}")
def test_a_cause_has_its_code_its_line_and_its_remedy(row: Fault) -> None:
    error = row.make()
    assert isinstance(error, AppError), "not an error of ours"
    text = str(error)
    assert error.exit_code == row.code
    assert "\n" not in text
    assert len(text) < 500
    cause, _, remedy = text.rpartition("; ")
    assert row.says.lower() in cause.lower()
    assert row.remedy.lower() in text.lower()
    assert remedy, "what to do"
    assert ("again" in remedy) or row.code != 69, "what may pass is to be tried again"


def test_no_row_is_there_twice() -> None:
    assert [name for name, count in Counter((r.area, r.cause) for r in ROWS).items() if count > 1] == []


def test_there_are_two_hundred_rows() -> None:
    assert len(ROWS) + len(CASES) >= 200


def test_remedies_that_are_tried_are_tried_by_tests_that_are_there() -> None:
    for place in {row.tried for row in ROWS if row.tried}:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


def test_every_code_of_the_matrix_is_in_the_readme_and_the_other_way_round() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("### Exit codes") :]
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", table, flags=re.M))
    assert {int(code): meaning for code, meaning in rows.items()} == MEANINGS
    used = {row.code for row in ROWS} | {code for _, code, _ in CASES.values()}
    assert used == {2, 66, 69}
    assert {kind.exit_code for kind in _kinds(AppError)} | {0} == MEANINGS.keys()


def _kinds(kind: type[AppError]) -> set[type[AppError]]:
    return {kind}.union(*(_kinds(child) for child in kind.__subclasses__()))
