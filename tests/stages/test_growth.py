"""A run grows: more seeds, sets, protocols and methods under one name; jobs that were run by hand join its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.config import load_config
from app.data import write_phantoms
from app.errors import InputError, UsageError
from app.jobs.run import Run, open_run
from app.report.collect import collect
from app.stages import downstream, pretrain
from app.stages import plan as plan_stage
from app.stages.plan import plan
from app.stages.report import run as report
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.phantoms=never", "data.subset=24", "data.monitor=null", "study.methods=[]", "study.baselines=[random]",
    "study.datasets=[breastmnist]", "study.protocols=[linear_probe]", "study.seeds=[0]", "pretrain.epochs=1",
    "pretrain.batch_size=8", "protocols.linear_probe.epochs=1", "protocols.few_shot_frozen.epochs=1",
    "runtime.threads=1", "runtime.device=cpu", "network.projector_hidden=16", "network.predictor_hidden=16",
    "network.projection=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_phantoms(root, counts=dict.fromkeys(("chestmnist", "breastmnist", "pneumoniamnist"), (32, 16, 16)))
    return root


@pytest.fixture
def study(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    small.use(monkeypatch.setattr)
    store = FolderStore(tmp_path / "store")

    def planned(*more: str, run_id: str | None = "r", **options: Any) -> Run:
        return plan(store, load_config("smoke", [*SETTINGS, *more], data_root=str(data)), run_id, **options)

    return planned


def judge(run: Run, **options: Any) -> dict[str, Any]:
    asked = {"dataset": "breastmnist", "init": "random", "protocol": "linear_probe", "seed": 0} | options
    return downstream.run(run, **asked)


def jobs(run: Run) -> list[str]:
    experiment = json.loads(run.store.read("runs/r/experiment.json"))
    return [job["key"] for job in (*experiment["plan"]["pretrain"], *experiment["plan"]["downstream"])]


@pytest.mark.parametrize("during", ["settle_data", "load_labelled", "_tell_estimate"])
def test_of_two_plans_at_once_none_is_lost(study, monkeypatch, during):
    """The other is written after this one has begun: before it reads what there is, or after."""
    study()
    original, calls = getattr(plan_stage, during), []

    def meanwhile(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            study("study.seeds=[3]")
        return original(*args, **options)

    monkeypatch.setattr(plan_stage, during, meanwhile)
    run = study("study.seeds=[4]")
    assert {job.rsplit("/s", 1)[1] for job in jobs(run)} == {"0", "3", "4"}
    assert set(run.config.study.seeds) == {0, 3, 4}


@pytest.mark.parametrize(
    ("more", "added"),
    [
        (["study.seeds=[1]"], {"breastmnist/random/linear_probe/s1"}),
        (["study.datasets=[pneumoniamnist]"], {"pneumoniamnist/random/linear_probe/s0"}),
        (["study.protocols=[finetune]"], {"breastmnist/random/finetune/s0"}),
        (["study.methods=[byol]"], {"byol-s0", "breastmnist/byol-s0/linear_probe/s0"}),
        # the recipe of a protocol that is new may be whatever is asked for
        (["study.protocols=[few_shot_frozen]", "protocols.few_shot_frozen.k=2"],
         {"breastmnist/random/few_shot_frozen/s0"}),
    ],
    ids=["seed", "data set", "protocol", "method", "protocol with its k"],
)  # fmt: skip
def test_a_plan_grows_and_finished_jobs_stay_valid(study, capsys, more, added):
    run = study()
    first, before, created = judge(run), jobs(run), json.loads(run.store.read("runs/r/experiment.json"))["created"]
    grown = study(*more)
    assert set(jobs(grown)) == set(before) | added
    assert f"r grows by {more[0].split('.')[1].split('=')[0]}" in capsys.readouterr().err
    assert json.loads(run.store.read("runs/r/experiment.json"))["created"] == created
    assert judge(grown) == first
    assert "already done" in capsys.readouterr().err
    again = study()  # what was asked for first is part of it
    assert jobs(again) == jobs(grown)
    assert "grows" not in capsys.readouterr().err
    study_of_it = collect(run.store, "r")
    assert {str(thing).split(":")[0] for thing in study_of_it.missing} == {
        f"{'pretrain' if name == 'byol-s0' else 'downstream'} {name}" for name in added
    }


@pytest.mark.parametrize("change", ["pretrain.epochs=2", "protocols.linear_probe.epochs=2", "data.subset=20"])
def test_another_experiment_is_told_which_name_to_take(study, change):
    run = study()
    study(run_id="r-2")
    with pytest.raises(UsageError, match=r"was planned with other settings \(.*\); .* take --run-id r-3, or"):
        study(change)
    with pytest.raises(UsageError, match="take --run-id r-3"):
        open_run(run.store, "r", load_config("smoke", [*SETTINGS, change]))


def test_another_file_of_a_set_is_no_growth(study, tmp_path):
    study()
    write_phantoms(tmp_path / "d", counts=dict.fromkeys(("breastmnist", "chestmnist"), (40, 16, 16)), seed=5)
    config = load_config("smoke", [*SETTINGS, "study.seeds=[1]"], data_root=str(tmp_path / "d"))
    with pytest.raises(
        UsageError, match=r"names another experiment \(data\.breastmnist: .*take --run-id smoke-[0-9a-f]{8}"
    ):
        plan(FolderStore(tmp_path / "store"), config, "r")


# --- by hand


def test_jobs_by_hand_join_the_report_of_a_plan(study):
    run = study()
    judge(run)
    judge(run, dataset="pneumoniamnist", protocol="few_shot_frozen", seed=7)
    found = collect(run.store, "r")
    assert [result.record.seed for result in found.cells["pneumoniamnist", "few_shot_frozen", "random"]] == [7]
    assert found.test_labels["pneumoniamnist"].shape == (16, 1)
    assert found.title("pneumoniamnist") == "PneumoniaMNIST (SYNTHETIC)"
    assert "pneumoniamnist" in found.samples
    summary = report(run.store, "r")
    assert summary.missing == []
    assert "PneumoniaMNIST (SYNTHETIC)" in run.store.read("runs/r/report/report.md").decode()


def test_a_run_without_a_plan_has_a_report_of_its_jobs(study, data, tmp_path):
    study(run_id="other")
    run = Run(FolderStore(tmp_path / "alone"), "mine", load_config("smoke", SETTINGS, data_root=str(data)))
    pretrain.run(run, method="byol", seed=0)
    for init in ("random", "byol-s0"):
        judge(run, init=init)
    found = collect(run.store, "mine")
    assert {key[2] for key in found.cells} == {"random", "byol"}
    assert len(found.pretraining) == 1
    assert {name: info.role for name, info in found.experiment.data.items()} == {
        "breastmnist": "downstream", "chestmnist": "pretrain",
    }  # fmt: skip
    summary = report(run.store, "mine")
    assert summary.missing == []
    assert "BYOL" in summary.table_text
    with pytest.raises(InputError, match="no such run; it has mine"):
        report(run.store, "yours")


def test_one_set_in_both_roles_is_described_once(study, data, tmp_path):
    settings = [*SETTINGS, "data.pretrain=breastmnist", "data.pretrain_split=train"]
    run = Run(FolderStore(tmp_path / "alone"), "mine", load_config("smoke", settings, data_root=str(data)))
    pretrain.run(run, method="byol", seed=0)
    judge(run, init="byol-s0")
    [info] = collect(run.store, "mine").experiment.data.values()
    assert (info.role, info.unlabelled) == ("both", {"train": 24})
    assert info.labels == {"0": "malignant", "1": "normal, benign"}
