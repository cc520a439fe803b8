"""How the report looks: nothing clipped, nothing too small to read, nothing about what this run has not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from app.report import counts, plots, tables
from app.report.collect import collect
from app.report.compare import Analysis
from app.report.style import WIDEST, Figure
from app.report.verdict import lead
from app.science.statistics import Interval
from tests.report.runs import OWN, PROTOCOLS, written
from tests.report.test_report import DATASETS, ROOT, RUN, Page, read

# --- figures ----------------------------------------------------------------------------------------


def sizes(svg: str) -> list[float]:
    """Sizes of all text of a figure at the width that it is made for, in CSS pixels: SVG counts in points."""
    found = [float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?([\d.]+)px", svg)]
    assert found
    return [size * 96 / 72 for size in found]


def test_no_figure_is_wider_than_the_page_or_has_text_below_eleven_pixels(widest, own):
    for run in (widest, own):
        figures = [key for key in run.store.list(f"{ROOT}/report/figures") if key.endswith(".svg")]
        assert len(figures) > 5
        for key in figures:
            svg = run.store.read(key).decode()
            width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) * 96 / 72
            assert width <= WIDEST * 96 + 1, key
            assert min(sizes(svg)) >= 11, key
        page = read(run, "index.html")
        for least, most in re.findall(r'class="drawing" style="min-width:(\d+)px;max-width:(\d+)px"', page):
            smallest = 8.5 * 96 / 72 * int(least) / int(most)
            assert smallest >= 11, "on a phone a figure is scrolled, and not made smaller"


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 8, 9, 11, 14])
def test_confusion_matrices_of_any_number_of_classes_fit(classes):
    matrix = np.full((classes, classes), 1234.0)
    rows = PROTOCOLS if classes == 4 else PROTOCOLS[:1]  # each takes a row of panels of its own
    panels = [(row, method, matrix) for row in rows for method in ("a", "b", "c", "d", "the paper's BYOL+")]
    figure = counts.confusion_matrices("x", "X", [f"class {c}" for c in range(classes)], panels, PROTOCOLS)
    assert isinstance(figure, Figure)
    assert figure.width <= WIDEST * 96
    assert min(sizes(figure.svg)) >= 11
    assert figure.svg.count("the paper's BYOL+") >= 1
    assert all(figure.svg.count(f">{protocol}<") >= 1 for protocol in rows)


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("referred", [True, False])
def test_a_legend_names_what_is_drawn_and_nothing_else(published, referred):
    figure = plots.protocol_comparison(
        "x", "X", ["finetune"], ["random", "byol"],
        lambda *_: Interval(0.8, 0.7, 0.9, 3),
        lambda _, method, metric: 0.85 if published and (method, metric) == ("byol", "accuracy") else None,
        {"accuracy": 0.9} if referred else {},
        {"random": "Random", "byol": "BYOL", "finetune": "Fine-tune"},
    )  # fmt: skip
    assert figure is not None
    assert ("the paper" in figure.svg) == published
    assert ("MedMNIST v2" in figure.svg) == referred


# --- words ------------------------------------------------------------------------------------------


def test_own_data_are_beside_no_paper(own):
    page, text = Page(read(own, "index.html")), read(own, "report.md")
    for said in (page.text, text):
        assert "MedMNIST v2, Scientific Data" in said  # in the references alone
        assert "Beside the paper" not in said
        assert "The paper's" not in said
        assert "Origin and patients" not in said
        assert said.count("MedMNIST v2") == 1
        assert "Hollow" not in said
    assert not [a for _, a in page.tags if a.get("href") == "#paper" or a.get("id") == "paper"]
    assert [column.label for column in tables.results_table(Analysis(collect(own.store, RUN))).columns] == [
        "Random", "BYOL", "BYOL+",
    ]  # fmt: skip


def test_data_of_both_kinds_keep_the_columns_of_the_known_ones():
    run = written(
        datasets=OWN | {"breastmnist": DATASETS["breastmnist"]}, protocols=("finetune",), methods=("random", "byol")
    )
    text = read(run, "report.md")
    assert "## Beside the paper" in text
    assert re.search(r"\| Dataset \| Protocol \| Random \| BYOL \| MedMNIST v2 \|", text)
    assert "The paper's" in text
    assert "lesions" not in text[text.index("## Beside the paper") : text.index("## ROC")]


def judged(own, monkeypatch, **values):
    """An analysis of so many comparisons, each with its own of the values."""
    analysis = Analysis(collect(own.store, RUN))
    one = next(iter(Analysis(analysis.study).against_baseline.values()))
    fields = {
        name: getattr(one, name) for name in ("protocol", "method", "baseline", "seeds", "images", "joint", "adjusted")
    }
    own_values = {name: property(lambda self, each=each: each[int(self.dataset)]) for name, each in values.items()}
    made = type("Judged", (type(one),), own_values)
    count = len(next(iter(values.values())))
    every = {(str(i), "finetune", "byol"): made(dataset=str(i), **fields) for i in range(count)}
    monkeypatch.setattr(Analysis, "against_baseline", every)
    return analysis


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["better"], "1 comparison with the Random start: 1 better."),
        (["worse", "worse"], "2 comparisons with the Random start: 2 worse."),
        (["none"], "1 comparison with the Random start: 1 without a difference that can be told."),
        (
            ["better", "worse", "worse", "unsettled", "none", "unknown"],
            "6 comparisons with the Random start: 1 better, 2 worse, 1 not settled, "
            "2 without a difference that can be told.",
        ),
    ],
)
def test_the_findings_are_counted_in_a_sentence(own, monkeypatch, verdicts, said):
    settled = [{"better": "helps", "worse": "hurts"}[word] for word in verdicts if word in ("better", "worse")]
    lines = lead(judged(own, monkeypatch, verdict=verdicts))
    assert [line.split()[1] for line in lines[: len(settled)]] == [f"{word}." for word in settled]
    assert lines[len(settled)] == said


def test_the_findings_spell_out_the_greatest_of_what_is_settled(own, monkeypatch):
    lines = lead(judged(own, monkeypatch, verdict=["better"] * 4, difference=[0.01, 0.04, 0.02, 0.05]))
    helps = [line for line in lines if line.startswith("Pretraining helps.")]
    assert [line.split("=")[1].split()[0] for line in helps[:-1]] == ["+0.050", "+0.040", "+0.020"]
    assert helps[-1] == "Pretraining helps. 1 more: see “Differences”."
