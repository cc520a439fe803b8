"""Two runs beside each other: the right differences, intervals only where they mean something."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.report.collect import collect
from app.report.two_runs import TwoRuns, beside, files_of, pairs_table, text_of
from app.science import metrics
from app.storage import FolderStore
from app.upkeep.compare import compare_runs
from tests.report.test_report import DATASETS, RUN, FakeRun, Page, the_script_alone

ONE = {"breastmnist": DATASETS["breastmnist"]}


class Sharper(FakeRun):
    """Its classes lie further apart, whatever the method."""

    def scores(self, *args: Any) -> NDArray[np.float64]:
        scores = super().scores(*args)
        p = 1 / (1 + np.exp(-(np.log(scores[:, 1] / scores[:, 0]) + 1.5 * (2 * self.labels(args[0])[:, 0] - 1))))
        return np.stack([1 - p, p], axis=1)


def two(first: FakeRun, second: FakeRun) -> TwoRuns:
    return beside(collect(first.store, RUN), collect(second.store, RUN), resamples=200)


def fake(kind: type[FakeRun] = FakeRun, **options: Any) -> FakeRun:
    return kind(**({"datasets": ONE, "methods": ("random", "byol"), "protocols": ("finetune", "few_shot")} | options))


def test_a_better_run_is_told_apart_and_its_difference_is_the_means():
    first, second = fake().write(), fake(Sharper).write()
    found = two(first, second)
    assert len(found.pairs) == 4
    for pair in found.pairs:
        name, protocol, method = pair.key
        y = first.labels(name)
        draws = range(3) if protocol == "few_shot" else range(1)
        means = [
            np.mean([
                metrics.auroc(y, run.scores(name, method, protocol, seed, draw), metrics.BINARY)
                for seed in first.seeds for draw in draws
            ])
            for run in (first, second)
        ]  # fmt: skip
        c = pair.comparison
        assert c.difference == pytest.approx(means[1] - means[0])
        assert (pair.first.mean, pair.second.mean) == (pytest.approx(means[0]), pytest.approx(means[1]))
        assert c.images is not None
        assert c.images.low <= c.difference <= c.images.high
        assert c.images.low > 0
        assert c.verdict in ("better", "unsettled")
        back = next(p for p in two(second, first).pairs if p.key == pair.key).comparison
        assert back.difference == pytest.approx(-c.difference)
        assert back.images is not None
        assert back.images.low == pytest.approx(-c.images.high)


def test_a_run_against_itself_differs_by_nothing():
    run = fake().write()
    for pair in two(run, run).pairs:
        assert pair.comparison.difference == 0
        assert pair.comparison.verdict in ("none", "unknown")


@pytest.mark.parametrize("what", ["labels", "file"])
def test_other_test_images_have_no_interval_over_images(what):
    first, second = fake().write(), fake().write()
    if what == "labels":
        second.put("samples/breastmnist_test_labels.json", {"labels": second.labels("breastmnist")[::-1].tolist()})
    else:
        experiment = collect(second.store, RUN).experiment.model_dump(mode="json")
        experiment["data"]["breastmnist"]["sha256"] = "9" * 64
        second.put("experiment.json", experiment)
    found = two(first, second)
    assert all(pair.comparison.images is None and not pair.same_images for pair in found.pairs)
    assert "other images" in text_of(found)
    assert ("data breastmnist: another file" in found.apart) == (what == "file")


def test_seeds_of_one_run_alone_do_not_count_for_the_difference():
    first, second = fake(seeds=(0, 1, 2)).write(), fake(seeds=(1, 2, 3)).write()
    for pair in two(first, second).pairs:
        assert (pair.first.n, pair.second.n, pair.comparison.seeds.n) == (3, 3, 2)
        assert pair.comparison.difference == 0  # the same seeds are the same models


def test_cells_and_settings_of_one_run_alone_are_named():
    first, second = fake().write(), fake(methods=("random",), protocols=("finetune",)).write()
    found = two(first, second)
    assert [pair.key for pair in found.pairs] == [("breastmnist", "finetune", "random")]
    assert found.alone == [
        f"BreastMNIST, Fine-tune, BYOL: in {RUN} alone",
        f"BreastMNIST, Few-shot, Random: in {RUN} alone",
        f"BreastMNIST, Few-shot, BYOL: in {RUN} alone",
    ]
    assert found.apart == ['study.methods: ["random", "byol"] -> ["random"]']


def test_the_page_the_markdown_and_the_csv_say_the_same():
    found = two(fake(synthetic=True).write(), fake(Sharper).write())
    files = files_of(found)
    page, rows = Page(files["index.html"]), list(csv.DictReader(io.StringIO(files["comparison.csv"])))
    assert "SYNTHETIC" in page.text
    assert "SYNTHETIC" in files["comparison.md"]
    assert not {"link", "iframe"} & {tag for tag, _ in page.tags}
    assert the_script_alone(files["index.html"])
    assert len(rows) == len(found.pairs) == len(pairs_table(found).rows)
    for row, pair in zip(rows, found.pairs, strict=True):
        assert float(row["difference"]) == pytest.approx(pair.comparison.difference)
        assert row["verdict"] == pair.comparison.verdict
    for cell in (cell for row in pairs_table(found).rows for cell in row.cells):
        assert cell.text.strip() in page.text
        assert cell.text.strip() in files["comparison.md"]


def test_names_cannot_become_markup():
    evil = {"breastmnist": DATASETS["breastmnist"] | {"title": "<script>alert(1)</script>|x"}}
    found = two(fake(datasets=evil).write(), fake(datasets=evil).write())
    files = files_of(found)
    assert the_script_alone(files["index.html"])
    assert "<script" not in files["comparison.md"]


def test_the_files_are_written_and_the_terminal_has_the_table(tmp_path):
    store = FolderStore(tmp_path / "store")
    fake(store=store, protocols=("finetune",)).write()
    said = list(compare_runs(store, RUN, store, RUN, tmp_path / "out"))
    assert "BreastMNIST" in said[0]
    assert said[-1] == f"comparison: {tmp_path}/out/index.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.csv", "comparison.md", "index.html",
    ]  # fmt: skip
