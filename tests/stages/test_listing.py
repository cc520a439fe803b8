"""`ls`: what a store holds and how far its jobs are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from app.errors import InputError
from app.jobs.claims import claimed
from app.jobs.records import Plan, PlannedDownstream, PlannedPretraining
from app.stages.listing import list_store
from app.storage import FolderStore
from tests.checkpoints import save_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def plan(store: FolderStore, run_id: str) -> None:
    jobs = Plan(
        run_id=run_id,
        pretrain=tuple(PlannedPretraining(key=key, args=()) for key in ("byol-s0", "byol-s1")),
        downstream=(PlannedDownstream(key="d/random/finetune/s0", needs=None, args=()),),
    )
    store.write(f"runs/{run_id}/experiment.json", json.dumps({"plan": jobs.model_dump(mode="json")}).encode())


def lines(store: FolderStore, run_id: str | None = None) -> list[str]:
    return list(list_store(store, run_id))


def test_a_store_lists_its_data_and_every_run(store: FolderStore) -> None:
    assert lines(store) == []
    plan(store, "planned")
    for key in ("data/b_28.npz", "phantoms/c_28.npz", "workflows/w.json", "runs/alone/pretrain/byol-s0/record.json"):
        store.write(key, b"{}")
    store.write("runs/planned/report/index.html", b"")
    size = len(store.read("runs/planned/experiment.json"))
    assert lines(store) == [
        "data/b_28.npz  2 B",
        "phantoms/c_28.npz  2 B",
        "runs/alone: 1 of 1 jobs done (no plan), 2 B",
        f"runs/planned: 0 of 3 jobs done, with a report, {size} B",
    ]


def test_a_run_lists_its_jobs_in_the_plans_order_then_others(store: FolderStore) -> None:
    plan(store, "r")
    store.write("runs/r/downstream/d/random/finetune/s0/record.json", b"{}")
    store.write("runs/r/downstream/d/ckpt-1/finetune/s0/record.json", b"{}")
    store.write("runs/r/downstream/d/ckpt-1/finetune/s0/model.safetensors", bytes(44_700_000))
    save_checkpoint(store, "runs/r/pretrain/byol-s1", 7, {"w": torch.ones(1)}, keep=1)
    with claimed(
        store, "runs/r/pretrain/byol_plus-s0", done=lambda: False, stopped=lambda: False, warn=print, seconds=30, wait=0
    ):
        said = lines(store, "r")
    assert said[0].startswith("runs/r: 1 of 3 jobs done, 2 beside the plan, 45 MB")
    assert said[1:5] == [
        "  missing  pretrain/byol-s0",
        "  begun    pretrain/byol-s1  (step 7 saved)",
        "  done     downstream/d/random/finetune/s0  2 B",
        "  done     downstream/d/ckpt-1/finetune/s0  45 MB",
    ]
    assert said[5].startswith("  running  pretrain/byol_plus-s0  by ")


def test_a_run_that_is_not_there_names_those_that_are(store: FolderStore) -> None:
    store.write("runs/alone/pretrain/byol-s0/claim.json", b"{}")
    with pytest.raises(InputError, match=r"has no such run; it has alone"):
        lines(store, "other")
