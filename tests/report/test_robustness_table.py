"""What the report says of models under corruption: means, paired differences, and what is not theirs."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from app.jobs.records import DownstreamRecord
from app.jobs.robustness import RobustnessRecord, science_of
from app.report.collect import collect
from app.report.compare import Analysis
from app.report.robustness import robustness_table
from app.science.statistics import paired_t_difference
from app.science.strengths import STRENGTHS
from app.stages.report import run as write_report
from tests.report.test_report import ROOT, RUN, FakeRun, Page, read, small


def judge(run: FakeRun) -> dict[str, np.ndarray]:
    """Write what ``robustness`` does of each downstream job; return the AUROCs under corruption by job."""
    found = {}
    for key in [key for key in run.store.list(f"{ROOT}/downstream") if key.endswith("/record.json")]:
        record = DownstreamRecord.model_validate(json.loads(run.store.read(key)))
        rng = np.random.default_rng([len(record.method), record.seed])
        loss = {"random": 0.03, "imagenet": 0.02, "byol": 0.01, "byol_plus": 0.015}[record.method]
        steps = loss * np.arange(1, 6) + rng.normal(0, 0.002, (len(STRENGTHS), 5))
        worse = record.metrics["auroc"] - np.arange(1, 1 + len(STRENGTHS))[:, None] * steps / 2
        plain = record.plain() | {
            "kind": "robustness", "science": science_of(record, STRENGTHS),
            "auroc": dict(zip(STRENGTHS, worse.tolist(), strict=True)),
            "metrics": {"auroc": record.metrics["auroc"], "loss": float(record.metrics["auroc"] - worse.mean())},
        }  # fmt: skip
        judged = RobustnessRecord.model_validate(plain)
        run.store.write(key.replace("record.json", "robustness.json"), json.dumps(judged.plain()).encode())
        found[record.key] = worse
    return found


def row_of(run: FakeRun, method: str) -> list[str]:
    [row] = [r for r in robustness_table(Analysis(collect(run.store, RUN), resamples=10)).rows if r.head == method]
    return [f"{cell.text} {cell.note}".strip() for cell in row.cells]


def test_losses_and_their_paired_differences_are_those_of_the_records() -> None:
    run = small(protocols=("finetune",)).write()
    worse = judge(run)
    summary = write_report(run.store, RUN)
    assert summary.missing == []
    assert any(key.endswith("figures/robustness-pneumoniamnist.svg") for key in summary.keys)
    page, text = Page(read(run, "index.html")).text, read(run, "report.md")
    for said in (page, text):
        assert "What corruptions of the test images take from AUROC" in said
    clean = {key: json.loads(run.store.read(f"{ROOT}/downstream/{key}/record.json"))["metrics"]["auroc"]
             for key in worse}  # fmt: skip
    loss = {m: [clean[k] - worse[k].mean() for k in sorted(worse) if f"/{m}" in k and "plus" not in k]
            for m in ("random", "byol")}  # fmt: skip
    apart = paired_t_difference(loss["byol"], loss["random"])
    cells = row_of(run, "BYOL")
    assert float(cells[0].split(" ")[0]) == pytest.approx(np.mean(loss["byol"]), abs=5e-4)
    noise = [clean[k] - worse[k][0].mean() for k in worse if "/byol-s" in k]
    assert float(cells[1]) == pytest.approx(np.mean(noise), abs=5e-4)
    low, high = (float(end.replace("\N{MINUS SIGN}", "-")) for end in cells[7].split(" to "))
    assert float(cells[6].replace("\N{MINUS SIGN}", "-")) == pytest.approx(apart.mean, abs=5e-4)
    assert (low, high) == pytest.approx((apart.low, apart.high), abs=5e-4)
    assert high < 0, "byol loses less"
    assert row_of(run, "Random")[6:] == ["", ""]


def test_without_records_nothing_is_said_of_it() -> None:
    run = small(protocols=("finetune",), seeds=(0,)).write()
    summary = write_report(run.store, RUN)
    assert not [key for key in summary.keys if "robustness" in key]
    assert "What corruptions" not in read(run, "report.md")
    assert 'href="#robustness-section"' not in read(run, "index.html")


def test_seeds_that_were_not_judged_are_left_out_of_the_pairs() -> None:
    run = small(protocols=("finetune",)).write()
    judge(run)
    run.store.delete(f"{ROOT}/downstream/pneumoniamnist/random/finetune/s0/robustness.json")
    assert row_of(run, "BYOL")[6].endswith("n = 2")
    assert re.fullmatch(r"0\.\d+ ± 0\.\d+", row_of(run, "BYOL")[0])


def other_weights(record: dict[str, Any]) -> None:
    record["science"]["weights"] = {"model.safetensors": "3" * 64}


def other_strengths(record: dict[str, Any]) -> None:
    record["science"]["corruptions"]["noise"][0] = 0.5


def one_level_less(record: dict[str, Any]) -> None:
    record["auroc"]["blur"].pop()


def no_record(record: dict[str, Any]) -> None:
    record.clear()


@pytest.mark.parametrize("harm", [other_weights, other_strengths, one_level_less, no_record])
def test_what_is_of_another_model_or_damaged_is_named_and_costs_itself_alone(harm: Any) -> None:
    run = small(protocols=("finetune",), clinical=True).write()
    judge(run)
    key = f"{ROOT}/downstream/pneumoniamnist/byol-s0/finetune/s0/robustness.json"
    record = json.loads(run.store.read(key))
    harm(record)
    run.store.write(key, json.dumps(record).encode())
    study = collect(run.store, RUN)
    [line] = map(str, study.missing)
    assert "its robustness is" in line
    assert "run `robustness" in line
    results = study.cells["pneumoniamnist", "finetune", "byol"]
    assert [r.robustness is None for r in results] == [True, False, False]
    assert results[0].validation is not None
