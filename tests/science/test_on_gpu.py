"""What only a GPU can show: the recorded step, resuming, NCCL. `make gpu-check` runs these there."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from app.config import load_config
from app.data import Unlabelled
from app.data.datasets import Split
from app.data.phantoms import make_phantoms
from app.runtime import prepare
from app.science.distributed import Ranks, joined
from app.science.finetuning import encode
from app.science.monitor import Monitor
from app.science.pretraining import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

SETTINGS = [
    "pretrain.batch_size=64", "pretrain.epochs=8", "pretrain.warmup_epochs=0.5", "pretrain.learning_rate=3e-4",
    "network.stem=stock", "views.crop_scale=[0.3,1.0]", "views.blur=0.5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def numerics():
    prepare("cuda", None)


def trainer(
    *overrides: str,
    device: str = "cuda",
    compile: str = "never",
    replayed: bool = True,
    monitor=None,
    channels: int = 1,
) -> Trainer:
    config = load_config("recommended", [*SETTINGS, *overrides])
    shape = (256, config.data.size, config.data.size, channels)[: 4 if channels == 3 else 3]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = Unlabelled("noise", "noise", images, "", "", "", "", True, config.data.size, channels, "all")
    made = Trainer(
        config.pretrain, config.network, config.augmentation("byol_plus"), data, seed=0, device=device, monitor=monitor,
        compile=compile,
    )  # fmt: skip
    made.start(lambda encoder: None)
    made.join(Ranks())
    if not replayed:
        made.replay = None
    return made


def losses(trainer: Trainer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        trainer.advance()
        found.append(float(trainer.last_loss))
    return found


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in trainer.model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert a.keys() == b.keys()
    assert different == []


@pytest.mark.parametrize(
    ("precision", "optimizer", "accumulate", "channels"),
    [("bfloat16", "adamw", 1, 1), ("float32", "adam", 2, 3), ("bfloat16", "sgd", 1, 3), ("float32", "lars", 1, 1)],
)
def test_a_replayed_step_does_what_the_step_does(precision, optimizer, accumulate, channels):
    overrides = (
        f"pretrain.precision={precision}",
        f"pretrain.optimizer={optimizer}",
        f"pretrain.accumulate={accumulate}",
    )
    replayed, launched = (trainer(*overrides, channels=channels) for _ in range(2))
    plain = trainer(*overrides, channels=channels, replayed=False)
    launched.replay.warm_up = 100  # it is not recorded in this test
    expected = losses(launched, 10)
    assert losses(replayed, 10) == expected
    assert_equal(tensors(replayed), tensors(launched))
    # Without a graph the rates are numbers, and the target network moves by another formula.
    assert losses(plain, 10) == pytest.approx(expected, rel=0.01)


def test_a_step_on_the_gpu_does_what_it_does_on_the_cpu():
    overrides = ("pretrain.precision=float32",)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert losses(trainer(*overrides), 2) == pytest.approx(losses(trainer(*overrides, device="cpu"), 2), rel=1e-3)
    finally:
        torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("compile", ["never", "always"])
def test_a_compiled_or_recorded_step_learns_the_same(compile):
    plain = losses(trainer(replayed=False), 12)
    assert losses(trainer(compile=compile), 12) == pytest.approx(plain, rel=0.03)


@pytest.mark.parametrize(("stem", "compile"), [("stock", "never"), ("cifar", "never"), ("stock", "always")])
def test_two_trainings_give_equal_tensors_and_so_does_one_that_is_continued(stem, compile):
    overrides = (f"network.stem={stem}",)
    first, second = (trainer(*overrides, compile=compile) for _ in range(2))
    assert losses(first, 16) == losses(second, 16)
    assert_equal(tensors(first), tensors(second))
    stopped = trainer(*overrides, compile=compile)
    losses(stopped, 7)
    continued = trainer(*overrides, compile=compile)
    continued.load_state(saved_and_loaded(stopped.state()))
    losses(continued, 9)
    assert_equal(tensors(continued), tensors(first))


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def test_a_checkpoint_of_the_gpu_goes_on_on_the_cpu_and_back():
    overrides = ("pretrain.precision=float32",)
    there = trainer(*overrides)
    losses(there, 5)
    here = trainer(*overrides, device="cpu")
    here.load_state(saved_and_loaded(there.state()))
    after = losses(here, 1)
    back = trainer(*overrides)
    back.load_state(saved_and_loaded(there.state()))
    assert losses(back, 1) == pytest.approx(after, rel=0.02)
    back.load_state(saved_and_loaded(here.state()))
    assert np.isfinite(losses(back, 5)).all()


def test_the_monitor_sees_the_encoder_as_it_was_when_it_began_to_look():
    arrays = make_phantoms("pneumoniamnist", (64, 32, 32))
    splits = {
        split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
        for split in ("train", "val")
    }
    made = SimpleNamespace(**splits, task="binary-class", n_classes=2, class_names=["no", "yes"], name="phantom")
    config = load_config("recommended", [*SETTINGS, "protocols.few_shot_frozen.k=2"])
    monitor = Monitor(made, config.pretrain, config.protocols.few_shot_frozen, "cuda")
    watched, blind = trainer(monitor=monitor), trainer()
    losses(watched, 8)
    losses(blind, 8)
    assert_equal(tensors(watched), tensors(blind))
    watched.state()
    seen = [line for line in watched.curves if "knn_auroc" in line]
    assert len(seen) == 2


def test_nccl_with_one_rank_gives_what_no_ranks_give(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    alone = trainer("pretrain.precision=float32", replayed=False)
    expected = losses(alone, 4)

    class One(Ranks):
        """A world of one that goes every way of a larger one."""

        def ddp(self, model):
            self.world = 2
            try:
                return super().ddp(model)
            finally:
                self.world = 1

    with joined(0, 1, "cuda"):
        shared = trainer("pretrain.precision=float32", replayed=False)
        shared._ddp = One().ddp(shared.model)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in shared.model.modules())
        assert dist.get_backend() != "gloo"
        assert losses(shared, 4) == pytest.approx(expected, rel=1e-3)
        features = encode(shared.model.encoder, shared.images[:8])
    assert torch.isfinite(features).all()
