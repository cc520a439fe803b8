"""The pretraining loop: unlabelled images to an encoder, by BYOL or BYOL+."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.data import Unlabelled
from app.errors import CollapseError, UsageError
from app.runtime import compiles_on, machine_of, precision_on
from app.science.augment import draw, pack, two_views, unpack
from app.science.byol import BYOL, build_optimizer, load_optimizer, target_std
from app.science.convolutions import Table, names_of, table_of, use
from app.science.distributed import Ranks
from app.science.finetuning import AfterStep
from app.science.generators import batch_at, generator
from app.science.monitor import Monitor
from app.science.networks import Encoder, to_float
from app.science.replay import Replay
from app.science.schedules import ema_momentum, learning_rate
from app.settings import Augmentation, Network, Pretrain

LOGS_PER_EPOCH = 10


def train(
    trainer: Trainer, *, show: Callable[..., None] = lambda **_: None, after_step: AfterStep = lambda step, state: None
) -> None:
    """Train to the last step, as the leader of ``trainer.ranks``.

    Args:
        trainer: at any step, with its ranks.
        show: called after every step with what was measured last.
        after_step: called after every step but the last with the number of steps done and a function that
            makes the state to go on from; may raise to stop.

    Raises:
        CollapseError: the loss is not finite, or the target has collapsed.
    """
    try:
        if trainer.step == 0:
            trainer.look()  # what the encoder is worth without any of it
        while trainer.step < trainer.total_steps:
            trainer.ranks.barrier()
            show(**trainer.advance())
            if trainer.step < trainer.total_steps:
                after_step(trainer.step, trainer.state)
    finally:
        trainer.replay = None  # it and the trainer hold each other, and with them the GPU's memory


def follow(trainer: Trainer) -> None:
    """Do each step that the leader of ``trainer.ranks`` does."""
    while trainer.ranks.barrier():
        trainer.advance()


def resident(images: NDArray[np.uint8], device: str) -> Tensor:
    """Return images as a tensor on the device; those of a file that is mapped into memory are read into it."""
    if isinstance(images, np.memmap) or not images.flags.writeable:
        images = images.copy()
    return torch.from_numpy(images).to(device)


def too_few_images(count: int, name: str, settings: Pretrain) -> str:
    """Say that there are fewer images than a step takes, and which settings would do."""
    if count < 2:
        return f"{name}: has {count} image{'' if count == 1 else 's'}; pretraining needs 2 or more, better thousands"
    batch = settings.batch_size if settings.batch_size <= count else max(2, count // 2)
    accumulate = min(settings.accumulate, settings.epochs * (count // batch))
    wanted = {"pretrain.batch_size": batch, "pretrain.accumulate": accumulate}
    have = {"pretrain.batch_size": settings.batch_size, "pretrain.accumulate": settings.accumulate}
    advice = " ".join(f"--set {name}={value}" for name, value in wanted.items() if value != have[name])
    return (
        f"pretrain.batch_size={settings.batch_size} (x {settings.accumulate} accumulated): more than the {count} "
        f"images of {name}; use {advice}"
    )


class Trainer:
    """The state of a pretraining and its one move, ``advance``.

    Args:
        settings: the recipe.
        network: encoder and heads.
        augmentation: what the views are.
        data: the images.
        seed: names all random draws.
        device: ``cpu`` or ``cuda``.
        monitor: what watches it, or None.
        compile: ``always``, ``never`` or ``auto``, see ``runtime.compiles_on``.

    Raises:
        UsageError: the batch is larger than the data.
    """

    def __init__(
        self,
        settings: Pretrain,
        network: Network,
        augmentation: Augmentation,
        data: Unlabelled,
        *,
        seed: int,
        device: str,
        monitor: Monitor | None = None,
        compile: str = "never",
    ) -> None:
        self.settings, self.augmentation, self.seed, self.device = settings, augmentation, seed, device
        self.count = len(data)
        self.per_epoch = self.count // settings.batch_size  # micro-batches
        self.total_steps = settings.epochs * self.per_epoch // settings.accumulate
        if self.per_epoch == 0 or self.total_steps == 0:
            raise UsageError(too_few_images(self.count, data.name, settings))
        self.steps_per_epoch = self.per_epoch / settings.accumulate
        self.images_per_step = settings.batch_size * settings.accumulate
        self.log_every = max(1, round(self.steps_per_epoch / LOGS_PER_EPOCH))
        self.images = resident(data.images, device)
        self.monitor = monitor
        torch.manual_seed(generator("weights", seed).initial_seed())
        self.model = BYOL(
            Encoder(network.architecture, network.stem),
            projector_hidden=network.projector_hidden,
            predictor_hidden=network.predictor_hidden,
            projection=network.projection,
            predictor=network.predictor,
        ).to(device)
        self.optimizer = build_optimizer(
            settings.optimizer,
            [self.model.online, self.model.predictor],
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.precision = precision_on(device, settings.precision)
        self.ranks = Ranks()
        self.compiled = compiles_on(device, compile, self.total_steps)
        self.kernels: Table = {}
        self.began_on = machine_of(device)
        self._ddp: nn.Module = self.model
        self.replay: Replay | None = None
        self._looks: tuple[int, int, Future[dict[str, Any]]] | None = None  # step, place in the curves, what is seen
        self.step = 0
        self.seconds = 0.0
        self.last_loss = torch.zeros(())
        self.metrics: dict[str, float | None] = {}
        self.curves: list[str] = []

    def start(self, load: Callable[[Encoder], None]) -> None:
        """Begin at step 0 with the encoder as ``load`` leaves it, the target network equal to the online one."""
        load(self.model.encoder)
        self.model.target.load_state_dict(self.model.online.state_dict())

    def use_kernels(self, table: Table) -> None:
        """Do the convolutions as ``table`` says, from now on and after a stop."""
        self.kernels = table
        use(self.model, table)

    def join(self, ranks: Ranks) -> bool:
        """Train as one of ``ranks``, all of which go on from where rank 0 is.

        Returns:
            False if there is nothing to do.
        """
        ranks.spawn()
        packed = io.BytesIO()  # so that tensors of rank 0's GPU are no tensors of that GPU to the others
        if ranks.lead and ranks.world > 1:
            torch.save(self.state(), packed)
        sent = ranks.broadcast(packed.getvalue())
        if not ranks.lead:
            if sent is None:
                return False
            self.load_state(torch.load(io.BytesIO(sent), map_location="cpu", weights_only=True))
        self.ranks, self._ddp = ranks, ranks.ddp(self.model)
        alone_on_a_gpu = self.device == "cuda" and ranks.world == 1
        if alone_on_a_gpu:
            self.replay = Replay(self.train_on, self.device)
            self._prepare_to_record()
        if self.compiled and alone_on_a_gpu:
            self.model.pair()
            for part in (self.model.online, self.model.predictor, self.model.target):
                part.compile()
        elif self.compiled:
            self._ddp.compile()
        return True

    def _prepare_to_record(self) -> None:
        """Tell Adam whether its steps are recorded: a matter of this device, not of the one that saved its state."""
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = self.replay is not None

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on with equal tensors; all draws are functions of the step.

        Raises:
            CollapseError: the last loss was not finite, so that there is nothing worth going on with.
        """
        self._check_finite(self.last_loss)
        self._collect()
        return {
            "step": self.step,
            "seconds": self.seconds,
            "precision": self.precision,
            "kernels": names_of(self.kernels),
            "machine": self.began_on,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics,
            "curves": self.curves,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self._prepare_to_record()
        self.step, self.seconds = state["step"], state["seconds"]
        if not 0 <= self.step <= self.total_steps:
            raise ValueError(f"step {self.step} of {self.total_steps}")
        self.precision = state.get("precision", self.precision)  # it stays what it was, on whatever device
        if "kernels" in state:
            self.use_kernels(table_of(state["kernels"]))
        self.began_on = state.get("machine", self.began_on)
        self.metrics, self.curves = state["metrics"], state["curves"]

    def advance(self) -> dict[str, float]:
        """Do one optimizer step; now and then measure.

        Returns:
            What was measured last, to be shown beside the progress.

        Raises:
            CollapseError: the loss is not finite, or the target has collapsed.
        """
        begin = time.perf_counter()
        s = self.settings
        rate = learning_rate(
            self.step,
            peak=s.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=round(s.warmup_epochs * self.steps_per_epoch),
            cosine=s.cosine,
        )
        momentum = ema_momentum(self.step, base=s.ema_momentum, total_steps=self.total_steps, cosine=s.ema_cosine)
        micros = range(self.step * s.accumulate, (self.step + 1) * s.accumulate)
        at, parameters = map(torch.stack, zip(*map(self.batch_of, micros), strict=True))
        if self.replay is None:
            loss, projection = self.train_on(at.to(self.device), parameters.to(self.device), rate, momentum)
        else:
            numbers = torch.tensor(rate), torch.tensor(momentum, dtype=torch.float64)
            loss, projection = self.replay(at, parameters, *numbers)
        for group in self.optimizer.param_groups:
            group["lr"] = rate  # in a checkpoint it is a number
        self.step += 1
        self.last_loss = loss
        epoch_ends = self._epoch_ends()
        if self.step % self.log_every == 0 or epoch_ends:
            loss, projection = self.ranks.mean(loss), self.ranks.gather(projection)
            if self.ranks.lead:
                self._measure(float(loss), target_std(projection), rate, momentum)
        if epoch_ends:
            self.look(wait=self.device == "cpu" or self.step == self.total_steps)
        self.seconds += time.perf_counter() - begin
        return {name: value for name, value in self.metrics.items() if value is not None}

    def look(self, *, wait: bool = True) -> None:
        """Let the monitor, if there is one, measure the encoder as it is now; ``wait`` for what it sees."""
        if self.monitor is None:
            return
        self._collect()
        self._looks = (self.step, len(self.curves), self.monitor.look(self.model.encoder))
        if wait:
            self._collect()

    def batch_of(self, micro: int) -> tuple[Tensor, Tensor]:
        """Draw on the CPU what this rank needs for micro-batch number ``micro``: a function of the seed and ``micro``.

        Returns:
            Which images, int64 (B,), and the packed parameters of their views, float32 (2B, …): B first views, then B.
        """
        batch, rows = self.settings.batch_size, self.ranks.rows(self.settings.batch_size)
        at = batch_at(micro, count=self.count, batch_size=batch, seed=self.seed)
        stream = generator("views", self.seed, micro)
        parameters = draw(self.augmentation, 2 * batch, self.images.shape[1], stream, batches=2)
        return at[rows], pack(parameters).unflatten(0, (2, batch))[:, rows].flatten(0, 1)

    def train_on(
        self, at: Tensor, parameters: Tensor, rate: float | Tensor, momentum: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Do one optimizer step on what was drawn: from images to the moved target network.

        Args:
            at: which images, (micro-batches, B).
            parameters: of their views, (micro-batches, 2B, …).
            rate: learning rate.
            momentum: of the target network.

        Returns:
            Loss and target projection, (B, D), of the last micro-batch, without gradient.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        last, each = len(at) - 1, self.settings.ema_every == "micro_batch"
        for micro in range(len(at)):
            with self.ranks.no_sync(self._ddp) if micro != last else contextlib.nullcontext():
                loss, projection = self.forward(*self.views(self.images_of(at[micro]), parameters[micro]))
                self.backward(loss / len(at))
            if each:
                self.model.update_target(momentum)
        self.optimizer.step()
        if not each:
            self.model.update_target(momentum)
        return loss.detach(), projection

    def images_of(self, at: Tensor) -> Tensor:
        """Return the images at ``at`` (B,), float32 (B, C, H, W) in [0, 1]."""
        return to_float(self.images[at])

    def views(self, images: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return two views of each image as ``parameters`` (2B, …) says."""
        return two_views(self.augmentation, images, unpack(parameters))

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and target projection, (B, D), of two views."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss, projection = self._ddp(view1, view2)
        return loss, projection

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        loss.backward()

    def curves_bytes(self) -> bytes:
        """Return the curves as JSON lines, with all that the monitor has seen."""
        self._collect()
        return "".join(f"{line}\n" for line in self.curves).encode()

    def _epoch_ends(self) -> bool:
        """Say whether this step ended an epoch after which the monitor looks."""
        before, now = ((step * self.settings.accumulate) // self.per_epoch for step in (self.step - 1, self.step))
        return (now > before and now % self.settings.monitor_every == 0) or self.step == self.total_steps

    def _measure(self, loss: float, std: float, rate: float, momentum: float) -> None:
        self._check_finite(loss)
        self._log({"loss": loss, "learning_rate": rate, "ema_momentum": momentum, "target_std": std})
        if std < self.settings.collapse_below and self.step >= self.steps_per_epoch:
            raise CollapseError(
                f"pretrain: the representation has collapsed at step {self.step} (std of the target {std:.4f}, "
                f"below pretrain.collapse_below={self.settings.collapse_below}); lower pretrain.learning_rate or "
                "raise pretrain.ema_momentum"
            )

    def _check_finite(self, loss: Tensor | float) -> None:
        if not math.isfinite(value := float(loss)):
            raise CollapseError(
                f"pretrain: the loss is {value} at step {self.step}; lower pretrain.learning_rate "
                "or lengthen pretrain.warmup_epochs"
            )

    def _collect(self) -> None:
        """Log what the monitor sees where it began to look, once it has."""
        if self._looks is not None:
            step, place, seen = self._looks
            self._looks = None
            self._log(seen.result(), step, place)

    def _log(self, values: dict[str, Any], step: int | None = None, place: int | None = None) -> None:
        step = self.step if step is None else step
        line = {"step": step, "epoch": round(step / self.steps_per_epoch, 3)} | values
        self.curves.insert(len(self.curves) if place is None else place, json.dumps(line))
        shown = ("loss", "target_std", "rank_me", "knn_accuracy", "knn_auroc", "few_shot_auroc")
        self.metrics |= {name: values[name] for name in shown if name in values}
