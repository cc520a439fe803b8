"""The label curve of a few-shot job: more labels and fewer, beside what the job does anyway."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from app.config import completed, difference, load_config, parse_config
from app.errors import Interrupted, UsageError
from app.jobs import keys
from app.jobs.job import Job
from app.jobs.run import Run, load_labelled
from app.science import metrics
from app.stages import downstream
from app.stages.budgets import budgets, trials
from app.storage import FolderStore

pytestmark = pytest.mark.usefixtures("small_network")
CURVE = "protocols.{}.curve=[1, 2, 4, 50, 25%, 100%]"
SETTINGS = [
    "data.phantoms=never", "runtime.threads=1", "runtime.device=cpu", "runtime.grace_seconds=300",
    *(f"protocols.{protocol}.{what}" for protocol in ("few_shot", "few_shot_frozen")
      for what in ("k=4", "draws=3", "epochs=3", "batch_size=8")),
]  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path, phantoms: Path):
    def make(name: str, *more: str) -> Run:
        return Run(FolderStore(tmp_path / name), "r", load_config("smoke", [*SETTINGS, *more], data_root=str(phantoms)))

    return make


def train(run: Run, protocol: Any) -> dict[str, Any]:
    return downstream.run(run, dataset="breastmnist", init="random", protocol=protocol, seed=0)


def scores(run: Run, record: dict[str, Any]) -> dict[str, np.ndarray]:
    folder = keys.downstream("r", record["key"])
    return safetensors.numpy.load(run.store.read(f"{folder}/{keys.LABEL_CURVE}"))


@pytest.mark.parametrize("protocol", ["few_shot", "few_shot_frozen"])
def test_a_curve_has_its_points_and_changes_nothing_else(make_run, protocol):
    plain = make_run("plain", "protocols.few_shot_frozen.curve=null")
    curved = make_run("curved", CURVE.format(protocol))
    without, record = train(plain, protocol), train(curved, protocol)
    for same in ("metrics", "validation", "draws", "confusion_matrix", "best_epoch"):
        assert record[same] == without[same]
    assert without["label_curve"] == []
    points = [(p["budget"], p["draw"], p["labels"]) for p in record["label_curve"]]
    assert points == [
        *(("1", d, 2) for d in range(3)), *(("2", d, 4) for d in range(3)), *(("25%", d, 8) for d in range(3)),
        ("100%", 0, 32),
    ]  # fmt: skip
    found, truth = scores(curved, record), load_labelled(curved, "breastmnist").test.labels
    assert {name: each.shape for name, each in found.items()} == {
        "1": (3, 16, 2), "2": (3, 16, 2), "25%": (3, 16, 2), "100%": (1, 16, 2),
    }  # fmt: skip
    for point in record["label_curve"]:
        got = metrics.auroc(truth, found[point["budget"]][point["draw"]], "binary-class")
        assert point["auroc"] == pytest.approx(got)


@pytest.mark.parametrize("protocol", ["few_shot", "few_shot_frozen"])
def test_a_curve_that_is_stopped_continues_to_the_same_result(make_run, monkeypatch, protocol):
    whole, pieces = make_run("whole", CURVE.format(protocol)), make_run("pieces", CURVE.format(protocol))
    expected = train(whole, protocol)
    original, stops = Job.after_step, [2, 4]

    def stop_in_the_curve(job: Job, step: int, state: Any, where: str) -> None:
        if "label curve" in where and stops and int(where.split()[1]) >= stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        original(job, step, state, where)

    monkeypatch.setattr(Job, "after_step", stop_in_the_curve)
    record = None
    while record is None:
        try:
            record = train(pieces, protocol)
        except Interrupted:
            assert pieces.store.exists(keys.latest(keys.downstream("r", expected["key"])))
    assert stops == []
    assert record["label_curve"] == expected["label_curve"]
    assert record["metrics"] == expected["metrics"]
    for name, each in scores(whole, expected).items():
        np.testing.assert_array_equal(scores(pieces, record)[name], each)


def test_what_a_class_is_too_small_for_is_left_out(make_run):
    run = make_run("run", CURVE.format("few_shot_frozen"))
    data, recipe = load_labelled(run, "breastmnist"), run.config.protocols.few_shot_frozen
    assert budgets(recipe, data) == ([1, 2, 4, "25%", "100%"], [50])
    drawn = list(trials(recipe, data, seed=0))
    assert [t.images.tolist() for t in trials(recipe, data, seed=0)] == [t.images.tolist() for t in drawn]
    assert len({tuple(t.images) for t in drawn if t.budget == "25%"}) == 3
    assert {len(np.unique(data.train.labels[t.images])) for t in drawn} == {2}


@pytest.mark.parametrize("budget", ["0", "101%", "x", "1.5", "-3%"])
def test_a_number_of_labels_that_is_none_is_refused(budget):
    with pytest.raises(UsageError, match=r"protocols\.few_shot_frozen\.curve"):
        load_config("smoke", [f"protocols.few_shot_frozen.curve=[{budget}]"])


def test_a_plan_older_than_the_curve_is_still_the_same_experiment():
    now = load_config("smoke", ["protocols.few_shot_frozen.curve=null"])
    old = json.loads(now.model_dump_json(exclude_defaults=True))  # nor had it the settings that are younger still
    for protocol in ("few_shot", "few_shot_frozen"):
        del old["protocols"][protocol]["curve"]
    science = parse_config(completed(old), where="old").science()
    assert science == now.science()
    assert difference({"protocols": old["protocols"]}, {"protocols": science["protocols"]}) == []
    assert completed({"protocols": 5})["protocols"] == 5, "damage is for others to name"
