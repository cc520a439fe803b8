"""A job of a planned run whose record is there: asked about before any data are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config import load_config
from app.data import write_phantoms
from app.jobs.run import Run
from app.science.protocols import PROTOCOLS
from app.stages import downstream, pretrain
from app.stages.plan import plan
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.phantoms=never", "data.subset=24", "data.monitor=null", "study.methods=[byol]",
    "study.datasets=[breastmnist]", "study.seeds=[0]", "pretrain.epochs=1", "pretrain.batch_size=8",
    *(f"protocols.{name}.epochs=1" for name in PROTOCOLS),
    "protocols.few_shot.k=2", "protocols.few_shot.curve=[1]", "runtime.threads=1", "runtime.device=cpu",
    "network.projector_hidden=16", "network.predictor_hidden=16", "network.projection=8",
]  # fmt: skip


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    small.use(monkeypatch.setattr)
    write_phantoms(tmp_path / "data", counts=dict.fromkeys(("chestmnist", "breastmnist"), (32, 16, 16)))
    return plan(FolderStore(tmp_path / "store"), load_config("smoke", SETTINGS, data_root=str(tmp_path / "data")), "r")


def judge(run: Run, protocol: Any = "linear_probe", **options: Any) -> dict[str, Any]:
    return downstream.run(run, dataset="breastmnist", init="byol-s0", protocol=protocol, seed=0, **options)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that are loaded from now on."""
    read: list[str] = []
    for stage, name in ((pretrain, "load_pretraining"), (pretrain, "load_labelled"), (downstream, "load_labelled")):
        original = getattr(stage, name)
        spy = lambda *args, name=name, original=original: (read.append(name), original(*args))[1]  # noqa: E731
        monkeypatch.setattr(stage, name, spy)
    return read


def test_a_job_that_is_done_reads_no_data(planned, unread, capsys):
    """Of whatever kind: pretraining, and each protocol, with and without a label curve."""
    assert planned.config.protocols.few_shot_frozen.curve

    def run_all() -> list[dict[str, Any]]:
        return [pretrain.run(planned, method="byol", seed=0), *(judge(planned, name) for name in PROTOCOLS)]

    first = run_all()
    assert unread == ["load_pretraining", *len(PROTOCOLS) * ["load_labelled"]]
    unread.clear()
    capsys.readouterr()
    assert run_all() == first
    assert unread == []
    assert capsys.readouterr().err.count("already done") == 1 + len(PROTOCOLS)
    judge(planned, overwrite=True)
    assert unread == ["load_labelled"], "but one that is to be done again does"


def test_without_a_plan_the_data_are_asked(planned, unread):
    pretrain.run(planned, method="byol", seed=0)
    record = judge(planned)
    planned.store.delete("runs/r/experiment.json")
    unread.clear()
    assert judge(planned) == record
    assert unread == ["load_labelled"]


def test_leftovers_of_an_owner_that_died_are_dropped(planned):
    pretrain.run(planned, method="byol", seed=0)
    planned.store.write("runs/r/pretrain/byol-s0/checkpoints/00000001-ab.pt", b"x")
    pretrain.run(planned, method="byol", seed=0)
    assert list(planned.store.list("runs/r/pretrain/byol-s0/checkpoints")) == []
