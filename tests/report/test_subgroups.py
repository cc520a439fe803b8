"""Results within groups of the test images: whose images, which interval, and when there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.report.collect import collect
from app.report.compare import Analysis
from app.report.subgroups import fewest, subgroups_table
from app.report.table import Row
from app.science.metrics import BINARY, MULTI_CLASS, MULTI_LABEL, auroc
from app.science.statistics import delong_interval, image_covariance, mixed_interval, shared_covariance
from app.stages.report import run as write_report
from tests.report.test_report import DATASETS, RUN, FakeRun, Page, read, small


def grouped(run: FakeRun, patients: bool = False) -> dict[str, np.ndarray]:
    """Write a group for each image of each set: most are women's, a few men's, two nobody's."""
    cells = {}
    for name in run.datasets:
        y = run.labels(name)
        place = np.random.default_rng(3).permutation(len(y))
        sex = np.where(place % 5 == 0, "m", "f")
        sex[:2] = ""
        known: dict[str, Any] = {"labels": y.tolist(), "subgroups": {"sex": sex.tolist()}}
        if patients:
            known["patients"] = (np.arange(len(y)) // 3).tolist()
        run.put(f"samples/{name}_test_labels.json", known)
        cells[name] = sex
    return cells


def rows_of(run: FakeRun) -> list[Row]:
    return list(subgroups_table(Analysis(collect(run.store, RUN), resamples=10)).rows)


@pytest.mark.parametrize("patients", [False, True])
def test_of_one_seed_each_groups_interval_is_that_of_its_own_images(patients: bool) -> None:
    run = small(seeds=(0,), methods=("random", "byol"), protocols=("finetune",), shrink=4).write()
    sex = grouped(run, patients)["pneumoniamnist"]
    y, scores = run.labels("pneumoniamnist"), run.scores("pneumoniamnist", "byol", "finetune", 0, 0)
    rows = rows_of(run)
    assert [row.head for row in rows] == ["all", "sex: f", "sex: m", "sex: not known"]
    for row, members in zip(rows[:3], (sex != "?", sex == "f", sex == "m"), strict=True):
        whose = np.arange(len(y))[members] // 3 if patients else None
        expected = delong_interval(y[members], scores[members], patients=whose)
        counts = [cell.text for cell in row.cells[:3]]
        assert counts == [str(n) for n in (members.sum(), (y[members] == 1).sum(), (y[members] == 0).sum())]
        text = f"{expected.mean:.2f} [{expected.low:.2f}, {expected.high:.2f}]"
        assert row.cells[4].text == (text if min(fewest(y[members], 2, BINARY, whose)) >= 10 else text.split(" ")[0])
    assert "[" in rows[1].cells[4].text


def test_a_group_of_few_has_no_interval_and_says_so() -> None:
    run = small(protocols=("finetune", "few_shot")).write()
    sex = grouped(run)["pneumoniamnist"]
    y = run.labels("pneumoniamnist")[:, 0]
    assert 0 < (y[sex == "m"] == 0).sum() < 10
    summary = write_report(run.store, RUN)
    assert summary.missing == []
    women, men, nobody = rows_of(run)[1:4]
    assert all("[" in cell.text for cell in women.cells[3:])
    assert "few" in [cell.note for cell in men.cells[1:3]]
    assert not [cell.text for cell in (*men.cells, *nobody.cells) if "[" in cell.text]
    assert [cell.text for cell in nobody.cells[3:]] == ["n/a"] * 3, "two images of one class have no curve"
    for said in (Page(read(run, "index.html")).text, read(run, "report.md")):
        assert "Test AUROC within groups of the test images" in said
        assert "few: fewer than 10 positives or negatives" in said


def test_means_are_over_draws_and_seeds_for_every_task() -> None:
    datasets = {"dermamnist_reconstructed": DATASETS["dermamnist_reconstructed"]}
    datasets["labelled"] = {
        "title": "Labelled", "modality": "", "task": MULTI_LABEL, "labels": ("a", "b", "c"), "test": (40, 40, 40),
        "licence": "",
    }  # fmt: skip
    run = FakeRun(datasets=datasets, methods=("random", "byol"), protocols=("few_shot",), draws=2, shrink=6).write()
    cells = grouped(run)
    for name, sex in cells.items():
        y, task = run.labels(name), datasets[name]["task"]
        each = [
            auroc(y[sex == "f"], run.scores(name, "byol", "few_shot", seed, draw)[sex == "f"], task)
            for seed in (0, 1, 2)
            for draw in (0, 1)
        ]
        title = datasets[name]["title"]
        [row] = [r for r in rows_of(run) if r.group.startswith(title) and r.head == "sex: f"]
        assert row.cells[4].text.split(" ")[0] == f"{np.mean(each):.2f}"
    analysis, y = Analysis(collect(run.store, RUN), resamples=10), run.labels("labelled")
    areas, own = analysis.by_seed(y, analysis.results("labelled", "few_shot", "byol"))
    all_of_them = mixed_interval(areas, shared_covariance(image_covariance(y, own)))
    [row] = [r for r in rows_of(run) if r.group.startswith("Labelled") and r.head == "all"]
    assert row.cells[4].text == f"{all_of_them.mean:.2f} [{all_of_them.low:.2f}, {min(1, all_of_them.high):.2f}]"


def test_positives_and_negatives_are_those_of_the_class_that_has_fewest() -> None:
    y = np.array([[0]] * 5 + [[1]] * 3 + [[2]] * 9)
    assert fewest(y, 3, MULTI_CLASS) == (3, 14)
    assert fewest(y[:8], 2, BINARY) == (3, 5)
    assert fewest(y[:8], 2, BINARY, np.array([0] * 5 + [1, 1, 2])) == (2, 1)
    several = np.array([[1, 0], [1, 0], [1, 1], [0, -1], [1, 0]])
    assert fewest(several, 2, MULTI_LABEL) == (4, 1)


def test_sets_without_groups_and_damaged_groups() -> None:
    run = small(protocols=("finetune",)).write()
    assert rows_of(run) == []
    y = run.labels("pneumoniamnist")
    for harm in ({"sex": ["f"]}, {"sex": 7}, ["f"] * len(y), "f"):
        run.put("samples/pneumoniamnist_test_labels.json", {"labels": y.tolist(), "subgroups": harm})
        study = collect(run.store, RUN)
        assert [missing.reason.split(" ")[0] for missing in study.missing] == ["damaged"], harm
