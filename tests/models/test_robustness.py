"""Models of a run under corruption: judged once, as they are in the store, with a record beside each."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from app.errors import InputError
from app.jobs.records import read_downstream
from app.models import robustness
from app.models.robustness import judge_run
from app.models.trained import load_trained
from app.science.corruptions import corrupt
from app.science.metrics import auroc
from app.science.networks import normalise, to_float
from app.science.strengths import STRENGTHS
from app.storage import FolderStore

JOBS = [("binary_gray", "finetune"), ("multi_class_rgb", "linear_probe"), ("multi_label_gray", "few_shot")]


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """A run whose model, head and chosen draw are judged, with all that was there before."""
    for job in JOBS:
        made.job(*job)
    before = {key: made.store.read(key) for key in made.store.list("runs")}
    return judge_run(made.store, "r"), before


@pytest.fixture
def copy(made, done, tmp_path):
    """A store of its own with the run and its judgements."""
    shutil.copytree(made.store.uri, tmp_path / "store")
    return FolderStore(tmp_path / "store")


def test_every_model_is_judged_by_its_own_forward_pass(made, done):
    found, before = done
    assert [one.key for one in found] == [f"{dataset}/random/{protocol}/s0" for dataset, protocol in JOBS]
    assert {key: made.store.read(key) for key in before} == before
    for one in found:
        folder = f"runs/r/downstream/{one.key}"
        assert json.loads(made.store.read(f"{folder}/robustness.json")) == one.plain()
        trained, record = load_trained(made.store, folder), read_downstream(made.store, folder)
        with np.load(made.files[record.dataset]) as arrays:
            images, labels = arrays["test_images"], arrays["test_labels"]
        assert one.science["job"] == record.identity
        assert one.metrics["auroc"] == pytest.approx(auroc(labels, _scores(trained, images), record.task))
        assert {kind: len(values) for kind, values in one.auroc.items()} == dict.fromkeys(STRENGTHS, 5)
        worse = corrupt(images, "noise", 5, (record.dataset,))
        assert one.auroc["noise"][4] == pytest.approx(auroc(labels, _scores(trained, worse), record.task))
        assert one.metrics["loss"] == pytest.approx(one.metrics["auroc"] - np.mean(list(one.auroc.values())))


def _scores(trained, images):
    with torch.no_grad():
        logits = trained.classifier(normalise(to_float(torch.from_numpy(images)))).double()
    if trained.record.task == "multi-class":
        return logits.softmax(1).numpy()
    p = logits.sigmoid().numpy()
    return np.hstack([1 - p, p]) if p.shape[1] == 1 else p


def test_who_was_judged_is_not_judged_again_unless_something_changed(copy, done, call, monkeypatch):
    calls = []
    judge = robustness.judge
    monkeypatch.setattr(robustness, "judge", lambda *args: calls.append(args[1]) or judge(*args))
    code, out, err = call("robustness", "--run-id", "r", "--store", copy.uri, "--device", "cpu")
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines()] == [one.key for one in done[0]]
    assert calls == []
    again = judge_run(copy, "r", overwrite=True)
    assert [one.auroc for one in again] == [one.auroc for one in done[0]], "draws repeat themselves"
    assert len(calls) == len(JOBS)
    monkeypatch.setitem(STRENGTHS, "noise", (0.01, 0.02, 0.03, 0.04, 0.05))
    judge_run(copy, "r")
    assert len(calls) == 2 * len(JOBS)


def test_a_damaged_record_is_written_anew(copy, done):
    first = done[0][0]
    key = f"runs/r/downstream/{first.key}/robustness.json"
    for data in (b"no JSON", b"{}", b'{"kind": "robustness"}'):
        copy.write(key, data)
        assert judge_run(copy, "r")[0].auroc == first.auroc
        assert json.loads(copy.read(key))["identity"] == first.identity


def test_jobs_without_a_model_are_counted_and_passed_over(copy, capsys):
    copy.delete("runs/r/downstream/binary_gray/random/finetune/s0/model.safetensors")
    assert [one.key.split("/")[0] for one in judge_run(copy, "r")] == ["multi_class_rgb", "multi_label_gray"]
    assert "1 of 3 finished jobs have left no model" in capsys.readouterr().err


def test_a_run_without_models_or_of_other_data_is_refused_in_a_line(copy, call, made):
    code, _, err = call("robustness", "--run-id", "nothing", "--store", copy.uri, "--device", "cpu")
    assert code == 66
    assert "--run-id nothing: no finished job" in err
    other = f"binary_gray={made.files['multi_class_gray']}:multi-class"
    with pytest.raises(InputError, match="is not the binary_gray that"):
        judge_run(copy, "r", sources=[other], overwrite=True)
