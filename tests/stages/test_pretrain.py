"""The pretraining job: equal tensors whatever happens to it, and a clear end when it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from app.config import load_config
from app.data import write_phantoms
from app.errors import CollapseError, InputError, Interrupted, StorageError, UsageError
from app.jobs.run import Run
from app.science import pretraining
from app.science.convolutions import ROWS, TAPS, Ways, plain_ways
from app.science.pretraining import Trainer
from app.settings import Config
from app.stages import kernel_choice, pretrain
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.subset=64", "data.phantoms=never", "pretrain.epochs=3", "pretrain.batch_size=16", "runtime.threads=1",
    "runtime.device=cpu", "network.projector_hidden=32", "network.predictor_hidden=32", "network.projection=16",
    "runtime.grace_seconds=300",
]  # fmt: skip


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, counts=dict.fromkeys(("chestmnist", "pneumoniamnist"), (48, 16, 16)))
    return root


def settings(phantoms: Path, *overrides: str) -> Config:
    return load_config("smoke", [*SETTINGS, *overrides], data_root=str(phantoms))


@pytest.fixture(autouse=True)
def small_network(request, monkeypatch) -> None:
    """What happens to a job is looked at here, not what it learns; ``resnet`` marks where the network matters."""
    if request.node.get_closest_marker("resnet") is None:
        small.use(monkeypatch.setattr)


@pytest.fixture
def make_run(tmp_path, phantoms):
    def make(name: str, *overrides: str) -> Run:
        return Run(FolderStore(tmp_path / name), "r", settings(phantoms, *overrides))

    return make


def encoder(run: Run, key: str = "byol-s0") -> dict[str, torch.Tensor]:
    return load_file(Path(run.store.uri) / "runs/r/pretrain" / key / "encoder.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(monkeypatch, steps: int) -> None:
    """Send this process a SIGTERM in the middle of the given step of the next run."""
    original = Trainer.advance

    def advance(self: Trainer) -> dict[str, float]:
        if self.step + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "advance", advance)


def test_same_seed_same_tensors_other_seed_others(make_run):
    first, second = make_run("a"), make_run("b")
    record = pretrain.run(first, method="byol", seed=0)
    pretrain.run(second, method="byol", seed=0)
    assert equal(encoder(first), encoder(second))
    pretrain.run(second, method="byol", seed=1)
    assert not equal(encoder(first), encoder(second, "byol-s1"))
    pretrain.run(second, method="byol_plus", seed=0)
    assert not equal(encoder(first), encoder(second, "byol_plus-s0"))
    assert record["steps"] == 12
    assert record["metrics"]["knn_auroc"] is not None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_and_continued_equals_uninterrupted(make_run, monkeypatch, accumulate):
    extra = f"pretrain.accumulate={accumulate}"
    whole, pieces = make_run("whole", extra), make_run("pieces", extra)
    expected = pretrain.run(whole, method="byol_plus", seed=0)
    for step in (1, 4, 5):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted, match=f"SIGTERM: stopped at step {step} of "):
                pretrain.run(pieces, method="byol_plus", seed=0)
    record = pretrain.run(pieces, method="byol_plus", seed=0)
    assert equal(encoder(whole, "byol_plus-s0"), encoder(pieces, "byol_plus-s0"))
    assert record["metrics"] == expected["metrics"]
    curves = "runs/r/pretrain/byol_plus-s0/curves.jsonl"
    assert whole.store.read(curves) == pieces.store.read(curves)
    assert not list(pieces.store.list("runs/r/pretrain/byol_plus-s0/checkpoints")), "a finished job keeps none"


def test_a_damaged_newest_checkpoint_is_passed_over(make_run, monkeypatch, capsys):
    whole, pieces = make_run("whole"), make_run("pieces", "runtime.checkpoint_steps=2")
    pretrain.run(whole, method="byol", seed=0)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            pretrain.run(pieces, method="byol", seed=0)
    newest = Path(pieces.store.uri, max(pieces.store.list("runs/r/pretrain/byol-s0/checkpoints")))
    newest.write_bytes(newest.read_bytes()[:-1])
    pretrain.run(pieces, method="byol", seed=0)
    said = capsys.readouterr().err
    assert "trying the checkpoint before it" in said
    # The checkpoint of step 4 is left out if that of step 2 is still being written.
    assert re.search(r"continues at step [24] of 12", said)
    assert equal(encoder(whole), encoder(pieces))


def test_a_finished_job_is_not_run_again(make_run, monkeypatch):
    run = make_run("a")
    record = pretrain.run(run, method="byol", seed=0)
    monkeypatch.setattr(Trainer, "advance", lambda self: pytest.fail("it trained again"))
    assert pretrain.run(run, method="byol", seed=0) == record
    other = make_run("a", "views.flip=0.0")
    with pytest.raises(UsageError, match=r"views.flip: 0.5 -> 0.0"):
        pretrain.run(other, method="byol", seed=0)


def test_a_checkpoint_of_another_experiment_is_refused(make_run, monkeypatch):
    run = make_run("a")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            pretrain.run(run, method="byol", seed=0)
    with pytest.raises(UsageError, match="checkpoint of another experiment"):
        pretrain.run(make_run("a", "pretrain.learning_rate=0.5"), method="byol", seed=0)


def test_nan_ends_with_76_and_keeps_the_curves(make_run):
    run = make_run("a", "pretrain.learning_rate=1e30", "pretrain.optimizer=sgd")
    with pytest.raises(CollapseError, match=r"the loss is (nan|inf) at step"):
        pretrain.run(run, method="byol", seed=0)
    assert CollapseError.exit_code == 76
    assert run.store.exists("runs/r/pretrain/byol-s0/curves.jsonl")
    assert not run.store.exists("runs/r/pretrain/byol-s0/record.json")


def test_collapse_ends_with_76(make_run):
    run = make_run("a", "pretrain.collapse_below=5")
    with pytest.raises(CollapseError, match="has collapsed at step"):
        pretrain.run(run, method="byol", seed=0)
    curves = [json.loads(line) for line in run.store.read("runs/r/pretrain/byol-s0/curves.jsonl").splitlines()]
    assert min(line["loss"] for line in curves if "loss" in line) > 0


def test_a_batch_larger_than_the_data_is_refused(make_run):
    with pytest.raises(UsageError, match=r"pretrain.batch_size=65 .* more than the 64 images"):
        pretrain.run(make_run("a", "pretrain.batch_size=65"), method="byol", seed=0)


def test_a_full_disk_leaves_no_record(make_run, monkeypatch):
    run = make_run("a")
    run.store.patience.seconds = 0.2

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        pretrain.run(run, method="byol", seed=0)
    assert not run.store.exists("runs/r/pretrain/byol-s0/record.json")
    assert not [p for p in Path(run.store.uri).rglob("*") if p.is_file()]


@pytest.mark.resnet
def test_pretraining_starts_from_given_weights(make_run, tmp_path):
    donor = make_run("donor")
    pretrain.run(donor, method="byol", seed=3)
    weights = Path(donor.store.uri) / "runs/r/pretrain/byol-s3/encoder.safetensors"
    # With a learning rate this small nothing moves but BatchNorm's statistics.
    run = make_run("a", f"network.init={weights}", "pretrain.learning_rate=1e-30", "pretrain.weight_decay=0")
    pretrain.run(run, method="byol", seed=0)
    given, got = load_file(weights), encoder(run)
    assert all(torch.equal(given[k], got[k]) for k in given if "running" not in k and "num_batches" not in k)
    with pytest.raises(InputError, match="was trained with stem stock"):
        pretrain.run(make_run("b", f"network.init={weights}", "network.stem=cifar"), method="byol", seed=0)


@pytest.mark.resnet
def test_the_encoder_file_is_a_plain_resnet(make_run):
    import torchvision

    run = make_run("a")
    pretrain.run(run, method="byol", seed=0)
    resnet = torchvision.models.resnet18()
    resnet.fc = torch.nn.Identity()
    resnet.load_state_dict(encoder(run))  # strict


def test_the_encoder_file_says_what_images_it_was_trained_on(make_run):
    run = make_run("a", "pretrain.epochs=1")
    pretrain.run(run, method="byol", seed=0)
    with safe_open(Path(run.store.uri) / "runs/r/pretrain/byol-s0/encoder.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["input_size"], said["channels"]) == ("28", "1")


def test_overwrite_forgets_the_old_record_first(make_run, monkeypatch):
    """A job that was stopped while it did its work anew is not taken for the old one, done."""
    run = make_run("a")
    pretrain.run(run, method="byol", seed=0)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            pretrain.run(run, method="byol", seed=0, overwrite=True)
    assert not run.store.exists("runs/r/pretrain/byol-s0/record.json")
    assert pretrain.run(run, method="byol", seed=0)["steps"] == 12


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_monitor_looks_before_the_first_step_and_once_after_each_epoch(make_run, accumulate):
    run = make_run("a", f"pretrain.accumulate={accumulate}")
    pretrain.run(run, method="byol", seed=0)
    lines = [json.loads(line) for line in run.store.read("runs/r/pretrain/byol-s0/curves.jsonl").splitlines()]
    per_epoch = 4 / accumulate  # 64 images, batches of 16
    steps = [line["step"] for line in lines if "knn_auroc" in line]
    assert steps == [0, *sorted({-(-epoch * 4 // accumulate) for epoch in (1, 2)} | {int(3 * per_epoch)})]


def test_the_monitor_does_not_make_another_experiment(make_run):
    run = make_run("a")
    record = pretrain.run(run, method="byol", seed=0)
    assert pretrain.run(make_run("a", "data.monitor=null", "pretrain.monitor_every=2"), method="byol", seed=0) == record


@pytest.mark.slow
def test_a_compiled_pretraining_is_an_eager_one_to_rounding(make_run, monkeypatch):
    """What torch.compile captures is what runs; the code generator behind it is torch's to test."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: original(self, backend="aot_eager"))
    losses = []
    for compile_ in ("never", "always"):
        run = make_run(compile_, "pretrain.epochs=1", f"runtime.compile={compile_}")
        record = pretrain.run(run, method="byol_plus", seed=0)
        assert record is not None
        assert record["environment"]["compiled"] == (compile_ == "always")
        curves = run.store.read("runs/r/pretrain/byol_plus-s0/curves.jsonl").splitlines()
        losses.append([json.loads(line)["loss"] for line in curves if b"loss" in line])
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-4)


def test_a_pretraining_goes_on_in_the_precision_that_it_began_in(make_run, monkeypatch):
    """On another kind of device ``auto`` would be another."""
    run = make_run("half")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        patch.setattr(pretraining, "precision_on", lambda device, wanted: "bfloat16")
        with pytest.raises(Interrupted):
            pretrain.run(run, method="byol", seed=0)
    record = pretrain.run(run, method="byol", seed=0)
    assert record is not None
    assert record["environment"]["precision"] == "bfloat16"
    assert record["science"]["pretrain"]["precision"] == "auto"


def test_a_pretraining_goes_on_with_the_kernels_that_it_began_with(make_run, monkeypatch, capsys):
    """Whatever another measurement would choose; on another machine it says so."""

    def measured(shapes, batch):
        return {str(shape): plain_ways(shape) for shape in shapes}

    def unlike(shapes, batch):
        return {str(shape): Ways(ROWS, ROWS, TAPS) if shape.kernel == 3 else plain_ways(shape) for shape in shapes}

    monkeypatch.setattr(kernel_choice, "WORTHWHILE", 1)
    monkeypatch.setattr(kernel_choice, "cache_folder", lambda name: None)
    monkeypatch.setattr(kernel_choice, "measured_table", unlike)
    whole, pieces, plain = make_run("whole"), make_run("pieces"), make_run("plain", "runtime.kernels=plain")
    expected = pretrain.run(whole, method="byol", seed=0)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            pretrain.run(pieces, method="byol", seed=0)
    monkeypatch.setattr(kernel_choice, "measured_table", measured)
    monkeypatch.setattr(pretrain, "machine_of", lambda device: "another CPU")
    record = pretrain.run(pieces, method="byol", seed=0)
    assert "began on another machine" in capsys.readouterr().err
    assert equal(encoder(whole), encoder(pieces))
    assert record is not None
    assert expected is not None
    assert record["environment"]["kernels"] == expected["environment"]["kernels"]
    assert set(map(tuple, record["environment"]["kernels"].values())) >= {("rows", "rows", "taps")}
    pretrain.run(plain, method="byol", seed=0)
    assert not equal(encoder(whole), encoder(plain)), "the ways were taken"
