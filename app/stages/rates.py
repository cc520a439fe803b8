"""How fast this machine is with a study's network, by a few steps of each kind."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from app.data import Unlabelled
from app.progress import Progress
from app.runtime import choose_device, prepare
from app.science.byol import build_optimizer
from app.science.finetuning import INFERENCE_PIXELS, Labelled, encode, fit, task_loss
from app.science.metrics import BINARY
from app.science.networks import Classifier, Encoder, normalise, to_float
from app.science.protocols import PROTOCOLS
from app.settings import Config
from app.stages.estimate import Rates
from app.stages.pretrain import build_trainer

PIXELS = 256 * 28 * 28  # of a batch that is timed: larger ones take as long for each image
STEPS = 2


def measure_rates(config: Config, channels: int) -> Rates:
    """Time a few steps of pretraining, of fine-tuning and of the encoder alone, on images of noise.

    Args:
        config: the settings.
        channels: of the images, 1 or 3.
    """
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    Progress("run").say("times a few steps, to tell how long all will take")
    size, wanted = config.data.size, config.pretrain.batch_size
    batch = max(2, min(wanted, PIXELS // size**2))
    images = np.random.default_rng(0).integers(0, 256, (2 * batch, size, size, channels), np.uint8)
    images = images[..., 0] if channels == 1 else images
    settings = {"batch_size": batch, "accumulate": 1, "epochs": 1000, "monitor_every": 1000, "collapse_below": 0.0}
    short = config.model_copy(
        update={
            "pretrain": config.pretrain.model_copy(update=settings),
            "runtime": config.runtime.model_copy(update={"compile": "never"}),
        }
    )
    data = Unlabelled(
        name="noise", title="noise", images=images, sha256="", source="", licence="", modality="", synthetic=True,
        size=size, channels=channels, split="all",
    )  # fmt: skip
    before = _memory(device)
    trainer = build_trainer(short, "byol_plus", 0, data, device)
    trainer.start(lambda encoder: None)
    pretrain = batch / _timed(trainer.advance, device)
    grown = (_memory(device) - before) * wanted / batch
    tensors = trainer.state()
    checkpoint = sum(value.nbytes for value in _tensors(tensors))
    encoder = sum(value.nbytes for value in trainer.model.encoder.plain_state().values())
    del trainer, tensors
    classifier = Classifier(Encoder(config.network.architecture, config.network.stem), 1).to(device)
    optimizer = build_optimizer("adamw", [classifier], learning_rate=1e-3, weight_decay=0.0)
    pixels, labels = (
        torch.tensor(images[:batch], device=device),
        torch.zeros(batch, 1, dtype=torch.int64, device=device),
    )

    def step() -> None:
        loss = task_loss(classifier(normalise(to_float(pixels))), labels, BINARY)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    train = batch / _timed(step, device)
    few = torch.tensor(images[: max(1, INFERENCE_PIXELS // size**2)], device=device)
    return Rates(
        pretrain=pretrain,
        train=train,
        encode=len(few) / _timed(lambda: encode(classifier.encoder, few), device),
        head=_head_steps(classifier, config, device),
        pretrain_memory=before + grown,
        train_memory=before + grown / 2,  # one pass with its gradient, where pretraining has two and a second network
        encoder=encoder,
        checkpoint=checkpoint,
    )


def _head_steps(classifier: Classifier, config: Config, device: str) -> float:
    """Steps a second of a linear layer on features of noise; the batches are those of few shots."""
    recipe = config.protocols.linear_probe.model_copy(update={"batch_size": 32, "epochs": 2})
    few = Labelled(
        images=torch.zeros(512, 1, 1, dtype=torch.uint8, device=device),
        labels=torch.arange(512, device=device)[:, None] % 2,
        features=torch.randn(512, classifier.head.in_features, device=device),
    )

    def train() -> None:
        fit(classifier, few, few, protocol=PROTOCOLS["linear_probe"], recipe=recipe, task=BINARY, key=("rates",))

    return recipe.epochs * 512 / recipe.batch_size / _timed(train, device)


def _timed(step: Callable[[], object], device: str) -> float:
    """Seconds of a step; the first one does not count."""
    step()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    _wait(device)
    return (time.perf_counter() - begin) / STEPS


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(device: str) -> float:
    """The most bytes so far: of the GPU's memory there, else of this process."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _tensors(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
