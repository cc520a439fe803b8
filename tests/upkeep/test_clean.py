"""`clean`: what can go is listed and asked about; records, and jobs at work, are never touched."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch

from app.errors import InputError
from app.jobs.claims import claimed
from app.storage import FolderStore
from app.upkeep import clean
from tests.checkpoints import save_checkpoint

FEW, FINE, PROBE = (f"runs/r/downstream/d/random/{name}/s0" for name in ("few_shot", "finetune", "linear_probe"))
STOPPED = "runs/r/pretrain/byol-s0"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = FolderStore(tmp_path / "store")
    for folder in (FEW, FINE, PROBE):
        for name in ("record.json", "predictions.csv"):
            store.write(f"{folder}/{name}", b"{}")
    for folder in (FEW, FINE):
        store.write(f"{folder}/model.safetensors", bytes(1000))
    store.write(f"{PROBE}/head.safetensors", bytes(10))
    store.write("runs/r/experiment.json", b"{}")
    store.write("runs/r/encoders/random-0123456789ab.safetensors", bytes(1000))
    save_checkpoint(store, STOPPED, 7, {"w": torch.ones(1)}, keep=1)
    (tmp_path / "cache/byol-med/images").mkdir(parents=True)
    (tmp_path / "cache/byol-med/images/x.npy").write_bytes(bytes(500))
    return store


def names(store: FolderStore, *wanted: clean.What) -> list[str]:
    found, _ = clean.spare(store, "r", wanted or clean.USUAL)
    return [each.name for each in found]


def test_what_can_go_by_default_is_checkpoints_models_of_draws_and_caches(store, tmp_path):
    found = names(store)
    [checkpoint] = store.list(f"{STOPPED}/checkpoints")
    assert sorted(found[:-1]) == sorted([f"{FEW}/model.safetensors", f"{STOPPED}/latest.json", checkpoint])
    assert found[-1] == str(tmp_path / "cache/byol-med/images/x.npy")
    assert found.index(f"{STOPPED}/latest.json") < found.index(checkpoint)  # nobody is sent to a missing file
    assert names(store, "models") == [f"{FINE}/model.safetensors"]


def test_without_yes_nothing_goes_and_with_it_only_what_was_listed(store, call):
    before = set(store.list())
    code, out, _ = call("clean", "--run-id", "r", "--store", store.uri)
    assert code == 0
    assert "nothing is removed: say --yes" in out
    assert "1.0 kB" in out
    assert set(store.list()) == before
    listed = set(names(store))
    code, out, _ = call("clean", "--run-id", "r", "--store", store.uri, "--yes")
    assert code == 0
    assert before - set(store.list()) == {name for name in listed if name.startswith("runs/")}
    assert not any(name.endswith(("record.json", "predictions.csv", "experiment.json")) for name in listed)
    assert call("clean", "--run-id", "r", "--store", store.uri, "--yes")[1] == "nothing to remove\n"


def test_every_kind_together_leaves_records_heads_and_encoders(store, call):
    call("clean", "--run-id", "r", "--store", store.uri, "--yes", "--what", "checkpoints,draws,models,caches")
    assert sorted(store.list()) == sorted([
        *(f"{folder}/{name}" for folder in (FEW, FINE, PROBE) for name in ("record.json", "predictions.csv")),
        f"{PROBE}/head.safetensors", "runs/r/encoders/random-0123456789ab.safetensors", "runs/r/experiment.json",
    ])  # fmt: skip


def test_a_job_at_work_is_left_alone(store):
    with claimed(store, STOPPED, done=lambda: False, stopped=lambda: False, warn=print, seconds=30, wait=0):
        found, busy = clean.spare(store, "r", ("checkpoints",))
    assert (found, busy) == ([], ["pretrain/byol-s0"])


def test_a_job_that_begins_to_work_while_the_question_waits_is_left_alone(store, call, monkeypatch):
    before = set(store.list(STOPPED))
    with contextlib.ExitStack() as work:

        def confirm(_question: str) -> bool:
            work.enter_context(
                claimed(store, STOPPED, done=lambda: False, stopped=lambda: False, warn=print, seconds=30, wait=0)
            )
            return True

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr("typer.confirm", confirm)
        code, out, _ = call("clean", "--run-id", "r", "--store", store.uri)
    assert code == 0
    assert "left alone, at work by now: pretrain/byol-s0\n2 removed\n" in out
    assert before <= set(store.list(STOPPED))
    assert not store.exists(f"{FEW}/model.safetensors")


def test_a_run_that_is_not_there_and_a_kind_that_is_none(store, call):
    with pytest.raises(InputError, match="has no such run; it has r"):
        clean.spare(store, "other")
    code, _, err = call("clean", "--run-id", "r", "--what", "records", "--store", store.uri)
    assert code == 2
    assert "choose from checkpoints, draws, models, caches" in err
