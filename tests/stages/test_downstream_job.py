"""The downstream job: stopped in the middle and continued, it gives what it would have given."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.config import load_config
from app.data import write_phantoms
from app.errors import CollapseError, Interrupted
from app.jobs.job import Job
from app.jobs.run import Run
from app.stages import downstream
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.subset=24", "data.phantoms=never", "runtime.threads=1", "runtime.device=cpu", "runtime.grace_seconds=300",
    "protocols.finetune.epochs=2", "protocols.finetune.batch_size=8", "protocols.linear_probe.epochs=3",
    "protocols.linear_probe.batch_size=8", "protocols.few_shot.k=4", "protocols.few_shot.draws=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, counts={"breastmnist": (32, 16, 16)})
    return root


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)


@pytest.fixture
def make_run(tmp_path: Path, phantoms: Path):
    return lambda name: Run(FolderStore(tmp_path / name), "r", load_config("smoke", SETTINGS, data_root=str(phantoms)))


def train(run: Run, protocol: Any) -> dict[str, Any]:
    return downstream.run(run, dataset="breastmnist", init="random", protocol=protocol, seed=0)


def outcome(run: Run, record: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """The model's tensors, what the record says of the science, and the files."""
    folder = Path(run.store.uri) / "runs/r/downstream" / record["key"]
    volatile = ("timings", "finished", "files", "environment")
    files = [f"{name} {entry['sha256']}" for name, entry in sorted(record["files"].items()) if name.endswith(".csv")]
    return load_file(folder / "model.safetensors"), {k: v for k, v in record.items() if k not in volatile}, files


@pytest.mark.parametrize(
    ("protocol", "stops"), [("finetune", (1, 3, 5)), ("linear_probe", (2, 3, 8)), ("few_shot", (1, 3))]
)
def test_stopped_and_continued_equals_uninterrupted(make_run, monkeypatch, protocol, stops):
    """Stops within an epoch, at its end, and, with few shots, within a later draw."""
    whole, pieces = make_run("whole"), make_run("pieces")
    expected = outcome(whole, train(whole, protocol))
    original = Job.after_step
    for at in stops:

        def after_step(self: Job, step: int, state: Any, where: str, at: int = at) -> None:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, step, state, where)

        with monkeypatch.context() as patch:
            patch.setattr(Job, "after_step", after_step)
            with pytest.raises(Interrupted, match=f"SIGTERM: stopped at step {at} with a checkpoint"):
                train(pieces, protocol)
    tensors, record, files = outcome(pieces, train(pieces, protocol))
    assert record == expected[1]
    assert files == expected[2]
    assert tensors.keys() == expected[0].keys()
    assert all(torch.equal(tensors[name], expected[0][name]) for name in tensors)
    assert not pieces.store.exists(f"runs/r/downstream/{record['key']}/latest.json")


@pytest.mark.parametrize("protocol", ["finetune", "few_shot"])
def test_nan_ends_with_76_and_keeps_the_curves(make_run, monkeypatch, protocol):
    """In the second epoch, and of the few-shot draws in the second: what came before is told too."""
    run = make_run("a")
    original, fits = downstream.fit, []

    def fit(classifier: Any, *args: Any, **options: Any) -> Any:
        fits.append(classifier)
        check = options["check"]

        def spoil() -> None:
            check()
            if len(fits) == (1 if protocol == "finetune" else 2):
                classifier.head.weight.data[0, 0] = float("nan")

        return original(classifier, *args, **(options | {"check": spoil}))

    monkeypatch.setattr(downstream, "fit", fit)
    with pytest.raises(CollapseError, match="the loss is nan in training") as caught:
        train(run, protocol)
    assert caught.value.exit_code == 76
    folder = f"runs/r/downstream/breastmnist/random/{protocol}/s0"
    lines = [json.loads(line) for line in run.store.read(f"{folder}/curves.jsonl").splitlines()]
    assert lines[-1]["train_loss"] is None
    assert lines[-1]["epoch"] == 2
    assert lines[-1]["draw"] == len(fits) - 1
    assert lines[0]["draw"] == 0
    assert all(line["train_loss"] > 0 for line in lines[:-1])
    assert not run.store.exists(f"{folder}/record.json")
