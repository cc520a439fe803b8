"""The pretraining job: unlabelled images to an encoder, by BYOL or BYOL+."""

from __future__ import annotations

import contextlib
import io
import json
import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.config import Config, Method, identity
from app.data import Dataset, Unlabelled
from app.errors import CollapseError, UsageError
from app.jobs.checkpoint import dump_weights, pack
from app.jobs.job import open_job
from app.jobs.run import Run, load_labelled, load_pretraining, monitor_name, now
from app.runtime import Progress, choose_device, compiles_on, environment, precision_on, prepare
from app.science import metrics
from app.science.augment import Augmentation, two_views
from app.science.byol import BYOL, build_optimizer, rank_me, target_std
from app.science.distributed import Ranks, joined, leading, process_count, torchrun_rank
from app.science.draws import batch_at, epoch_order, generator
from app.science.finetuning import Labelled, encode
from app.science.knn import knn_scores
from app.science.networks import Encoder, to_float
from app.science.schedules import ema_momentum, learning_rate
from app.stages.weights import Weights, describe, initial_weights
from app.storage import open_store

LOGS_PER_EPOCH = 10
WATCHING = ("monitor_every", "knn_neighbours", "knn_temperature", "collapse_below")  # never change the encoder
MONITOR_IMAGES = 5000  # of the labelled training split, enough for a steady k-NN


def run(run: Run, *, method: Method, seed: int, overwrite: bool = False) -> dict[str, Any] | None:
    """Pretrain one encoder and publish it, on all GPUs there are or with ``runtime.processes`` processes.

    In this order: a record of the same science is returned as it is; a checkpoint is continued; else the
    encoder starts from ``network.init``. Equal settings, seed, device and thread count give equal tensors,
    however often the job is stopped and continued.

    Args:
        run: the run.
        method: ``byol`` or ``byol_plus``.
        seed: names all random draws.
        overwrite: start afresh, whatever is there.

    Returns:
        The job's record; None in a process that torchrun started beside the first one.

    Raises:
        Interrupted: a signal came and the checkpoint is saved, or another process works on the job.
        CollapseError: NaN, or the target's std fell below ``pretrain.collapse_below``.
    """
    config, store = run.config, run.store
    device = choose_device(config.runtime.device)
    world = process_count(config.runtime.processes, device)
    Ranks(0, world).rows(config.pretrain.batch_size)  # a batch that cannot be shared ends every rank before they meet
    if (rank := torchrun_rank()) > 0:
        with joined(rank, world, device) as ranks:
            follow(ranks, store.address, run.run_id, config, method, seed)
        return None
    key = f"{method}-s{seed}"
    folder = run.pretrain_folder(key)
    progress = Progress("pretrain", run_id=run.run_id, job=key)
    with leading(world, device, follow, store.address, run.run_id, config, method, seed) as ranks:
        data = load_pretraining(run)
        monitor = load_labelled(run, name) if (name := monitor_name(run)) else None
        weights = initial_weights(run, config.network.init)
        science = science_of(config, method, seed, data, weights)
        with open_job(run, folder, science, progress=progress, overwrite=overwrite) as job:
            if job.record is not None:
                return job.record
            prepare(device, config.runtime.threads, world)
            trainer = Trainer(config, method, seed, data, monitor, device)
            if (state := job.restore()) is not None:
                with job.resuming():
                    trainer.load_state(state)
                progress.say(f"continues at step {trainer.step} of {trainer.total_steps}", step=trainer.step)
            else:
                trainer.start(weights)
            trainer.join(ranks)
            with progress.bar(trainer.total_steps, trainer.step) as bar:
                while trainer.step < trainer.total_steps:
                    try:
                        ranks.go()
                        bar.advance(**trainer.advance())
                        if trainer.step < trainer.total_steps:
                            job.after_step(trainer.step, trainer.state, f"step {trainer.step} of {trainer.total_steps}")
                    except CollapseError:
                        job.claim.confirm()
                        store.write(f"{folder}/curves.jsonl", trainer.curves_bytes())
                        raise
            return job.publish(*result(run, method, seed, data, science, trainer))


def follow(ranks: Ranks, address: str, run_id: str, config: Config, method: Method, seed: int) -> None:
    """Be one of the other ranks of a pretraining: do each step that rank 0 does.

    Args:
        ranks: this process among them.
        address: of the store.
        run_id: the run's name.
        config: its configuration.
        method: as rank 0's.
        seed: likewise.
    """
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads, ranks.world)
    run = Run(open_store(address), run_id, config)
    trainer = Trainer(config, method, seed, load_pretraining(run), None, device)
    if trainer.join(ranks):
        while ranks.go():
            trainer.advance()


def result(
    run: Run, method: Method, seed: int, data: Unlabelled, science: dict[str, Any], trainer: Trainer
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files and the record of a finished pretraining."""
    config = run.config
    metadata = describe(
        config,
        synthetic=data.synthetic,
        method=method,
        seed=str(seed),
        pretraining_data=f"{data.title}, {len(data)} images",
        licence=data.licence,
    )
    files = {
        "encoder.safetensors": dump_weights(trainer.model.encoder.plain_state(), metadata),
        "curves.jsonl": trainer.curves_bytes(),
    }
    return files, {
        "version": 1,
        "kind": "pretrain",
        "run_id": run.run_id,
        "key": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "synthetic": data.synthetic,
        "identity": identity(science),
        "science": science,
        "config": config.model_dump(mode="json"),
        "environment": environment(trainer.device)
        | {"precision": trainer.precision, "compiled": trainer.compile, "processes": trainer.ranks.world},
        "data": {data.name: {"sha256": data.sha256, "images": len(data)}},
        "metrics": trainer.metrics,
        "timings": {
            "seconds": round(trainer.seconds, 3),
            "images_per_second": round(trainer.total_steps * trainer.images_per_step / trainer.seconds, 1),
        },
        "steps": trainer.total_steps,
        "epochs": config.pretrain.epochs,
        "finished": now(),
    }


def science_of(config: Config, method: str, seed: int, data: Unlabelled, weights: Weights) -> dict[str, Any]:
    """Return what decides the encoder: the settings this method reads, the seed, and the data by checksum."""
    tree = config.science()
    views = tree["views"] | (tree["views_plus"] if method == "byol_plus" else {})
    return {
        "method": method,
        "seed": seed,
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "split": config.data.pretrain_split,
            "size": data.size,
            "subset": config.data.subset,
        },
        "network": tree["network"] | {"init": weights.identity},
        "pretrain": {name: value for name, value in tree["pretrain"].items() if name not in WATCHING},
        "views": views,
    }


def augmentation_of(config: Config, method: str) -> Augmentation:
    """Return the views of a method: the shared operations, and for BYOL+ its three more."""
    plus = config.views_plus.model_dump() if method == "byol_plus" else {}
    return Augmentation(**config.views.model_dump(), **plus)


def resident(images: NDArray[np.uint8], device: str) -> Tensor:
    """Return images as a tensor on the device; those of a file that is mapped into memory are read into it."""
    if isinstance(images, np.memmap) or not images.flags.writeable:
        images = images.copy()
    return torch.from_numpy(images).to(device)


class Trainer:
    """The state of a pretraining and its one move, ``advance``.

    Args:
        config: the run's configuration.
        method: ``byol`` or ``byol_plus``.
        seed: names all random draws.
        data: the images.
        monitor: a labelled set for the k-NN monitor, or None.
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: the batch is larger than the data.
    """

    def __init__(
        self, config: Config, method: str, seed: int, data: Unlabelled, monitor: Dataset | None, device: str
    ) -> None:
        settings = config.pretrain
        self.settings, self.seed, self.device = settings, seed, device
        self.augmentation = augmentation_of(config, method)
        self.count = len(data)
        self.per_epoch = self.count // settings.batch_size  # micro-batches
        self.total_steps = settings.epochs * self.per_epoch // settings.accumulate
        if self.per_epoch == 0 or self.total_steps == 0:
            raise UsageError(
                f"pretrain.batch_size={settings.batch_size} (x {settings.accumulate} accumulated): more than the "
                f"{self.count} images of {data.name}; use --set pretrain.batch_size={self.count // 2} or less"
            )
        self.steps_per_epoch = self.per_epoch / settings.accumulate
        self.images_per_step = settings.batch_size * settings.accumulate
        self.log_every = max(1, round(self.steps_per_epoch / LOGS_PER_EPOCH))
        self.images = resident(data.images, device)
        self.monitor = Monitor(monitor, config, device) if monitor else None
        torch.manual_seed(generator("weights", seed).initial_seed())
        network = config.network
        self.model = BYOL(
            Encoder(network.architecture, network.stem),
            projector_hidden=network.projector_hidden,
            predictor_hidden=network.predictor_hidden,
            projection=network.projection,
        ).to(device)
        self.optimizer = build_optimizer(
            settings.optimizer,
            [self.model.online, self.model.predictor],
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.precision = precision_on(device, settings.precision)
        self.ranks = Ranks()
        self.compile = compiles_on(device, config.runtime.compile)
        self._together: nn.Module = self.model
        self.step = 0
        self.seconds = 0.0
        self.last_loss = torch.zeros(())
        self.metrics: dict[str, float | None] = {}
        self.curves: list[str] = []

    def start(self, weights: Weights) -> None:
        """Begin at step 0, the target network equal to the online one."""
        weights.load_into(self.model.encoder)
        self.model.target.load_state_dict(self.model.online.state_dict())

    def join(self, ranks: Ranks) -> bool:
        """Train as one of ``ranks``, all of which go on from where rank 0 is.

        Returns:
            False if there is nothing to do.
        """
        ranks.summon()
        # Packed, so that tensors of rank 0's GPU are no tensors of that GPU to the others.
        packed = ranks.tell(bytes(pack(self.state())) if ranks.lead and ranks.world > 1 else None)
        if not ranks.lead:
            if packed is None:
                return False
            self.load_state(torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True))
        self.ranks, self._together = ranks, ranks.together(self.model)
        if self.compile:
            self._together.compile()
        return True

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on with equal tensors; all draws are functions of the step.

        Raises:
            CollapseError: the last loss was not finite, so that there is nothing worth going on with.
        """
        self._check_finite(self.last_loss)
        return {
            "step": self.step,
            "seconds": self.seconds,
            "precision": self.precision,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics,
            "curves": self.curves,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.precision = state.get("precision", self.precision)  # it stays what it was, on whatever device
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
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        micros = range(self.step * s.accumulate, (self.step + 1) * s.accumulate)
        for micro in micros:
            with self.ranks.alone(self._together) if micro != micros[-1] else contextlib.nullcontext():
                loss, projection = self.forward(*self.views(self.images_of(micro), micro))
                self.backward(loss / s.accumulate)
        self.optimizer.step()
        self.model.update_target(momentum)
        self.step += 1
        self.last_loss = loss.detach()
        epoch_ends = self._epoch_ends()
        if self.step % self.log_every == 0 or epoch_ends:
            loss, projection = self.ranks.mean(loss.detach()), self.ranks.gather(projection)
            if self.ranks.lead:
                self._measure(float(loss), target_std(projection), rate, momentum)
        if self.monitor and epoch_ends:
            self._log(self.monitor.measure(self.model.encoder))
        self.seconds += time.perf_counter() - begin
        return {name: value for name, value in self.metrics.items() if value is not None}

    def images_of(self, micro: int) -> Tensor:
        """Return this rank's images of micro-batch number ``micro``, float32 (B, C, H, W) in [0, 1]."""
        s = self.settings
        at = batch_at(micro, count=self.count, batch_size=s.batch_size, seed=self.seed)[self.ranks.rows(s.batch_size)]
        return to_float(self.images[at.to(self.device)])

    def views(self, images: Tensor, micro: int) -> tuple[Tensor, Tensor]:
        """Return two views of each of this rank's images of micro-batch number ``micro``."""
        batch = self.settings.batch_size
        first = self.ranks.rows(batch).start
        return two_views(self.augmentation, images, generator("views", self.seed, micro), batch=batch, first=first)

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and target projection, (B, D), of two views."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss, projection = self._together(view1, view2)
        return loss, projection

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``."""
        loss.backward()

    def curves_bytes(self) -> bytes:
        """Return the curves as JSON lines."""
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

    def _log(self, values: dict[str, Any]) -> None:
        line = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 3)} | values
        self.curves.append(json.dumps(line))
        shown = ("loss", "target_std", "rank_me", "knn_accuracy", "knn_auroc")
        self.metrics |= {name: values[name] for name in shown if name in values}


class Monitor:
    """Watches the encoder by k-NN on a labelled set: its training split votes on its validation split."""

    def __init__(self, dataset: Dataset, config: Config, device: str) -> None:
        self.dataset, self.settings = dataset, config.pretrain
        train, val = dataset.train, dataset.val
        some = np.sort(epoch_order(len(train), "monitor").numpy()[:MONITOR_IMAGES])
        self.train = Labelled.of(train.images[some], train.labels[some], device)
        self.val = Labelled.of(val.images, val.labels, device)

    def measure(self, encoder: Encoder) -> dict[str, Any]:
        """Return accuracy and AUROC of the k-NN, and RankMe of the validation features."""
        bank, queries = encode(encoder, self.train.images), encode(encoder, self.val.images)
        multi_label = self.dataset.task == metrics.MULTI_LABEL
        scores = knn_scores(
            bank,
            self.train.labels if multi_label else self.train.labels[:, 0],
            queries,
            n_classes=self.dataset.n_classes,
            neighbours=self.settings.knn_neighbours,
            temperature=self.settings.knn_temperature,
        )
        found = metrics.evaluate(self.val.labels.cpu().numpy(), scores, self.dataset.task)
        return {
            "knn_accuracy": found["accuracy"],
            "knn_auroc": None if math.isnan(found["auroc"]) else found["auroc"],
            "knn_dataset": self.dataset.name,
            "rank_me": rank_me(queries),
        }
