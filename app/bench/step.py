"""How fast pretraining is, where a step's time goes, what memory it takes, how near it is to the machine's limit."""

from __future__ import annotations

import contextlib
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from app.bench.peers import build_peers
from app.bench.turns import Contender, now
from app.data import Unlabelled
from app.jobs.checkpoint import CheckpointWriter
from app.progress import Progress
from app.runtime import choose_device, environment, prepare
from app.science.convolutions import Table, names_of
from app.science.distributed import Ranks
from app.science.networks import Encoder
from app.science.pretraining import Trainer
from app.science.products import has_onednn_linear, onednn_linear
from app.settings import Config
from app.stages.pretrain import build_trainer, kernels_of
from app.storage import FolderStore

GEMM = 2048  # side of the square float32 matrices whose product is the measure of the machine
WARM_UP_STEPS = 3
PARTS = ("data", "views", "forward", "backward", "optimizer", "EMA")
NETWORK = ("forward", "backward")

P = ParamSpec("P")
T = TypeVar("T")


def bench_step(
    config: Config, *, images: int, channels: int, rounds: int, steps: int, peers: bool = False
) -> dict[str, Any]:
    """Measure pretraining on images of noise, which take as long as any others.

    Args:
        config: what to train; nothing is read from or written to a store.
        images: how many are resident.
        channels: of the images, 1 or 3.
        rounds: of turns; the figures of time are medians over them, but for the checkpoint's, of which there is one.
        steps: of a turn.
        peers: measure lightly and byol-pytorch too, a turn each in every round.

    Returns:
        Figures by name, ready for JSON.

    Raises:
        UsageError: a peer is not installed, or no GPU is there.
    """
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    data = noise(config, images, channels)
    trainer = endless_trainer(config, data, device)
    standing, size = _train_with_a_checkpoint(trainer)
    memory = peak_memory(device)  # before anybody else's network is there
    contenders = [Ours(trainer), *_plain(config, trainer, data), *(build_peers(config, data, device) if peers else [])]
    taken = take_turns(trainer, contenders, rounds, steps)
    batch = config.pretrain.batch_size * config.pretrain.accumulate
    step = statistics.median(taken.seconds["ours"])
    useful = 2 * useful_multiplications(config, channels) * batch / step
    saving = standing * step / (60 * config.runtime.checkpoint_minutes)
    parts = shares_of_the_step(taken.parts, step)
    gemm = {name: statistics.median(rates) for name, rates in taken.rates.items()}
    others = against(taken.seconds, batch)
    return {
        "environment": environment(device)
        | {"precision": trainer.precision, "compiled": trainer.compiled, "kernels": names_of(trainer.kernels)},
        "settings": {
            "size": config.data.size, "channels": channels, "images": images, "batch": batch,
            "architecture": config.network.architecture, "stem": config.network.stem, "rounds": rounds, "steps": steps,
        },
        "step_seconds": step,
        "images_per_second": batch / step,
        "parts_seconds": parts,
        "share_beside_the_network": 1 - sum(parts[part] for part in NETWORK) / (step + saving),
        "peak_memory_bytes": memory,
        "checkpoint": {"stands_still_seconds": standing, "bytes": size, "seconds_a_step": saving},
        "gemm_flops": gemm,
        "useful_flops": useful,
        "useful_share": useful / max(rate for name, rate in gemm.items() if "float32" in name),
        "plain": others.pop("plain", None),
        "peers": others,
    }  # fmt: skip


@dataclass
class Taken:
    """What was measured, round by round.

    Attributes:
        seconds: of a step, by contender.
        rates: of the machine's products, by name; see ``gemm_rates``.
        parts: seconds of each part of our step; see ``breakdown``.
    """

    seconds: dict[str, list[float]]
    rates: dict[str, list[float]]
    parts: list[dict[str, float]]


def take_turns(trainer: Trainer, contenders: list[Contender], rounds: int, steps: int) -> Taken:
    """Let all take turns of ``steps`` steps, in ``rounds`` rounds; each goes first, in the middle and last."""
    taken = Taken({each.name: [] for each in contenders}, {name: [] for name in products(trainer.device)}, [])
    progress = Progress("bench")
    for number in range(rounds):
        for name, rate in gemm_rates(trainer.device).items():
            taken.rates[name].append(rate)
        for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
            # Our settings repeat themselves bit for bit; others get the fastest there are.
            ours = isinstance(contender, Ours)
            with contextlib.nullcontext() if ours else torch.backends.cudnn.flags(enabled=True, benchmark=True):
                taken.seconds[contender.name].append(contender.turn(steps))
        taken.parts.append(breakdown(trainer, steps))
        progress.say(f"round {number + 1} of {rounds}: {1000 * taken.seconds['ours'][-1]:.0f} ms a step")
    return taken


def shares_of_the_step(parts: list[dict[str, float]], step: float) -> dict[str, float]:
    """Return the seconds of each part of a step that takes ``step``, which is their sum.

    Each share is the median over the rounds; what medians of shares lack or exceed is shared out evenly.
    """
    shares = {part: statistics.median(p[part] / sum(p.values()) for p in parts) for part in parts[0]}
    return {part: step * share / sum(shares.values()) for part, share in shares.items()}


def against(seconds: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    """Compare all others with ours, round by round: images a second, and the ratios' median and range."""
    ours = seconds["ours"]
    ratios = {
        name: [other / own for other, own in zip(times, ours, strict=True)]
        for name, times in seconds.items()
        if name != "ours"
    }
    return {
        name: {
            "images_per_second": batch / statistics.median(seconds[name]),
            "ours_over_it": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
        }
        for name, found in ratios.items()
    }


def table(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that show what ``bench_step`` returned."""
    settings, where = figures["settings"], figures["environment"]
    yield (
        f"{settings['architecture']}, {settings['stem']} stem, {settings['size']} px, {settings['channels']} channels, "
        f"batch {settings['batch']}, {settings['images']} images, {where['precision']}"
    )
    on = f"{where['cpu']}, {where['threads']} threads" if where["device"] == "cpu" else where["device"]
    yield f"{on}, torch {where['torch']}, commit {where['git_commit']}; medians of {settings['rounds']} rounds"
    yield ""
    yield f"{'images a second':<34}{figures['images_per_second']:>10.1f}"
    yield f"{'a step, ms':<34}{1000 * figures['step_seconds']:>10.1f}"
    total = figures["step_seconds"]
    for part, seconds in figures["parts_seconds"].items():
        yield f"{'  ' + part:<34}{1000 * seconds:>10.2f}{seconds / total:>8.1%}"
    yield f"{'all but forward and backward':<44}{figures['share_beside_the_network']:>8.1%}"
    yield f"{'peak memory, MB':<34}{figures['peak_memory_bytes'] / 1e6:>10.0f}"
    saved = figures["checkpoint"]
    standing = f"{saved['bytes'] / 1e6:.0f} MB, training stands still for {1000 * saved['stands_still_seconds']:.0f} ms"
    yield f"{'a checkpoint':<34}{standing:>10}"
    for name, rate in figures["gemm_flops"].items():
        yield f"{f'product of {GEMM}² matrices, {name}, GFLOP/s':<46}{rate / 1e9:>6.0f}"
    yield f"{'useful multiplications and additions, GFLOP/s':<46}{figures['useful_flops'] / 1e9:>6.1f}"
    yield f"{'  share of the best product in float32':<44}{figures['useful_share']:>8.2f}"
    others = ({"plain": figures["plain"]} if figures["plain"] else {}) | figures["peers"]
    for name, peer in others.items():
        yield (
            f"{f'images a second over {name}':<44}{peer['ours_over_it']:>8.2f}"
            f"   ({peer['lowest']:.2f} to {peer['highest']:.2f}; {peer['images_per_second']:.1f} images a second)"
        )
    if where["kernels"]:
        yield f"{'convolutions':<34}{'forward':<18}{'of the input':<18}of the weight"
    for shape, (forward, of_input, of_weight) in where["kernels"].items():
        yield f"  {shape:<32}{forward:<18}{of_input:<18}{of_weight}"


def noise(config: Config, count: int, channels: int) -> Unlabelled:
    """Return ``count`` images of noise in the size that ``config`` asks for."""
    size = config.data.size
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Unlabelled("noise", "noise", images, "", "", "", "", True, size, channels, "all")


def endless_trainer(config: Config, data: Unlabelled, device: str) -> Trainer:
    """Return a trainer whose schedules do not end and that judges nothing on the way: only its time is of interest."""
    settings = config.pretrain.model_copy(update={"epochs": 10**6, "collapse_below": 0.0})
    trainer = build_trainer(config.model_copy(update={"pretrain": settings}), "byol", 0, data, device)
    trainer.use_kernels(kernels_of(trainer, config, data))
    trainer.join(Ranks())
    return trainer


def useful_multiplications(config: Config, channels: int) -> int:
    """Return the multiplications of a step that touch data, per image: a measure of the work, not its lower bound.

    A convolution counts its taps that touch data, not those on padding: along an axis, the pairs of an output and
    a tap inside the image; over both axes their product, times input and output channels. A linear layer counts
    its weights. The online network (encoder, projector, predictor) counts three times, for the forward pass and
    the two products of the backward pass, the target (encoder, projector) once, and both for two views:
    ``2 * (3 * (e + j + r) + e + j)``. A gray image has one channel. BatchNorm, pooling and ReLU count nothing.

    Args:
        config: size of the images, and the network.
        channels: of the images.
    """
    network, size = config.network, config.data.size
    encoder = Encoder(network.architecture, network.stem).eval()
    found = {}

    def count(convolution: nn.Conv2d, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        found[convolution] = convolution_multiplications(convolution, inputs[0].shape[2], inputs[0].shape[3])

    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        encoder(torch.zeros(1, 1, size, size))
    first = encoder.resnet.conv1
    e: int = sum(found.values()) + convolution_multiplications(first, size, size) // first.in_channels * channels
    j = encoder.features * network.projector_hidden + network.projector_hidden * network.projection
    hidden = network.predictor_hidden
    r = network.projection**2 if network.predictor == "linear" else 2 * network.projection * hidden
    return 2 * (3 * (e + j + r) + e + j)


def convolution_multiplications(convolution: nn.Conv2d, height: int, width: int) -> int:
    """Return the multiplications of one image of ``height`` x ``width`` that touch data."""
    pairs = 1
    for axis, size in enumerate((height, width)):
        kernel, stride, padding = (
            convolution.kernel_size[axis],
            convolution.stride[axis],
            int(convolution.padding[axis]),
        )
        outputs = (size + 2 * padding - kernel) // stride + 1
        pairs *= sum(0 <= o * stride - padding + tap < size for o in range(outputs) for tap in range(kernel))
    return pairs * convolution.in_channels * convolution.out_channels // convolution.groups


def products(device: str) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Return the products that the machine is measured by: in float32 by each library, and in bfloat16."""
    found: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"float32": torch.mm}
    if device == "cpu" and has_onednn_linear():
        found["float32 by oneDNN"] = onednn_linear
    return found | {"bfloat16": torch.mm}


def gemm_rates(device: str, repeats: int = 5) -> dict[str, float]:
    """Return the rates of products of square matrices, in multiplications and additions a second."""
    a, b = (torch.randn(GEMM, GEMM, device=device) for _ in range(2))
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32 on a GPU
    rates = {}
    for name, product in products(device).items():
        one, other = (a.bfloat16(), b.bfloat16()) if name == "bfloat16" else (a, b)
        times = []
        for _ in range(repeats + 1):
            begin = now(device)
            product(one, other)
            times.append(now(device) - begin)
        rates[name] = 2 * GEMM**3 / statistics.median(times[1:])
    torch.set_float32_matmul_precision(precision)
    return rates


class Ours:
    """Our trainer, as a ``Contender``, with its own kernels or those of ``table``."""

    def __init__(self, trainer: Trainer, name: str = "ours", table: Table | None = None) -> None:
        self.trainer, self.name, self.table = trainer, name, trainer.kernels if table is None else table

    def turn(self, steps: int) -> float:
        """Do ``steps`` steps after one that does not count; return seconds a step."""
        own = self.trainer.kernels
        self.trainer.use_kernels(self.table)
        self.trainer.advance()
        begin = now(self.trainer.device)
        for _ in range(steps):
            self.trainer.advance()
        seconds = (now(self.trainer.device) - begin) / steps
        self.trainer.use_kernels(own)
        return seconds


def _plain(config: Config, trainer: Trainer, data: Unlabelled) -> list[Contender]:
    """Return the trainer with torch's own convolutions, where there is a choice."""
    if trainer.device != "cpu" or config.runtime.kernels != "auto":
        return []
    plain = config.model_copy(update={"runtime": config.runtime.model_copy(update={"kernels": "plain"})})
    return [Ours(trainer, "plain", kernels_of(trainer, plain, data))]


def breakdown(trainer: Trainer, steps: int) -> dict[str, float]:
    """Return the seconds a step that each part takes, over ``steps`` steps; ``other`` is what is left.

    On a GPU parts are launched and waited for one by one, and take longer than in a replayed step.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    device = trainer.device

    def timed(part: str, function: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            begin = now(device)
            result = function(*args, **kwargs)
            spent[part] += now(device) - begin
            return result

        return call

    with (
        replaced(trainer, "replay", None),
        replaced(trainer, "images_of", timed("data", trainer.images_of)),
        replaced(trainer, "views", timed("views", trainer.views)),
        replaced(trainer, "forward", timed("forward", trainer.forward)),
        replaced(trainer, "backward", timed("backward", trainer.backward)),
        replaced(trainer.optimizer, "zero_grad", timed("optimizer", trainer.optimizer.zero_grad)),
        replaced(trainer.optimizer, "step", timed("optimizer", trainer.optimizer.step)),
        replaced(trainer.model, "update_target", timed("EMA", trainer.model.update_target)),
    ):
        begin = now(device)
        for _ in range(steps):
            trainer.advance()
        total = now(device) - begin
    return {part: seconds / steps for part, seconds in (spent | {"other": total - sum(spent.values())}).items()}


@contextlib.contextmanager
def replaced(thing: object, name: str, value: object) -> Iterator[None]:
    """Let ``thing`` have another method ``name`` meanwhile."""
    had, before = name in vars(thing), vars(thing).get(name)
    vars(thing)[name] = value
    try:
        yield
    finally:
        if had:
            vars(thing)[name] = before
        else:
            del vars(thing)[name]


def _train_with_a_checkpoint(trainer: Trainer) -> tuple[float, int]:
    """Train while a checkpoint is written; return the seconds that training stood still, and the checkpoint's bytes."""
    for _ in range(WARM_UP_STEPS):
        trainer.advance()
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(FolderStore(Path(folder)), "bench", keep=1, generation=0)
        begin = now(trainer.device)
        writer.submit(trainer.step, trainer.state())
        seconds = now(trainer.device) - begin
        while writer.busy:
            trainer.advance()
        writer.flush()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.pt"))
    return seconds, size


def peak_memory(device: str) -> int:
    """Return the most bytes that were in use: of the GPU, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_json(figures: dict[str, Any], path: Path) -> None:
    """Write the figures to a file."""
    path.write_text(json.dumps(figures, indent=1) + "\n")
