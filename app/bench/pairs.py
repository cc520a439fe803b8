"""Two ways of doing the same thing, turn by turn: what cached features save, and what more images cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch

from app.bench.step import Ours, endless_trainer, noise
from app.bench.turns import now
from app.data import Dataset
from app.errors import UsageError
from app.jobs.run import Run, load_labelled
from app.progress import Progress
from app.runtime import choose_device, prepare
from app.science.finetuning import Labelled, fit, n_outputs
from app.science.networks import Classifier, Encoder
from app.science.protocols import PROTOCOLS, Protocol
from app.settings import Config, Recipe
from app.stages.fallback import settle_data
from app.storage import Store


def bench_probe(store: Store, config: Config, *, dataset: str, rounds: int, naive_epochs: int) -> Iterator[str]:
    """Compare a linear probe on cached features with one that runs the encoder in every epoch.

    Both train and validate alike; data and network are ready when the clock starts. The second does
    ``naive_epochs`` only, since one takes as long as the other, and its time is scaled to the recipe's.

    Args:
        store: where data may be.
        config: the recipe (``protocols.linear_probe``), the network, where the data are.
        dataset: a labelled data set.
        rounds: pairs of turns.
        naive_epochs: of the second in a turn.
    """
    # Nothing but this set has to be at hand.
    study = config.study.model_copy(update={"datasets": (dataset,), "methods": ()})
    alone = config.data.model_copy(update={"monitor": None})
    config = settle_data(store, config.model_copy(update={"study": study, "data": alone}))
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    data = load_labelled(Run(store, "", config), dataset)
    recipe = config.protocols.linear_probe
    cached, naive = [], []
    for number in range(rounds):
        once = _seconds_of_fit(config, data, recipe, device, cached=True)
        short = recipe.model_copy(update={"epochs": naive_epochs})
        each = _seconds_of_fit(config, data, short, device, cached=False) * recipe.epochs / naive_epochs
        cached.append(once)
        naive.append(each)
        Progress("bench").say(f"round {number + 1} of {rounds}: {each / once:.1f}")
    yield f"{data.title}, {recipe.epochs} epochs, {len(data.train)} training and {len(data.val)} validation images"
    yield f"encoder once per image: {statistics.median(cached):.2f} s"
    yield f"encoder in every epoch: {statistics.median(naive):.2f} s ({naive_epochs} epochs, scaled)"
    yield _ratios("every epoch over once", naive, cached)


def _seconds_of_fit(config: Config, data: Dataset, recipe: Recipe, device: str, *, cached: bool) -> float:
    torch.manual_seed(0)
    encoder = Encoder(config.network.architecture, config.network.stem)
    classifier = Classifier(encoder, n_outputs(data.task, data.n_classes)).to(device)
    train, val = (Labelled.of(split.images, split.labels, device) for split in (data.train, data.val))
    protocol = PROTOCOLS["linear_probe"]
    if not cached:
        # What a probe is without a cache: a fine-tune whose encoder stays as it is.
        protocol = Protocol(frozen=False, few=False)
        encoder.requires_grad_(False).eval()
        vars(encoder)["train"] = lambda mode=True: encoder
    begin = now(device)
    fit(classifier, train, val, protocol=protocol, recipe=recipe, task=data.task, key=("bench",))
    return now(device) - begin


def bench_images(config: Config, *, few: int, many: int, channels: int, rounds: int, steps: int) -> Iterator[str]:
    """Compare a step of pretraining among many resident images with one among few.

    Args:
        config: what to train; the images are noise.
        few: the smaller number of images.
        many: the larger one.
        channels: of the images.
        rounds: pairs of turns.
        steps: of a turn.

    Raises:
        UsageError: one of the numbers is less than a batch.
    """
    if (fewest := min(few, many)) < (batch := config.pretrain.batch_size):
        raise UsageError(f"{fewest} images are fewer than a batch of {batch}; ask for more, or set pretrain.batch_size")
    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    # One network after the other: two in one cache would push each other out.
    trainer = endless_trainer(config, noise(config, few, channels), device)
    images = torch.from_numpy(noise(config, many, channels).images).to(device)
    sides = {few: trainer.images, many: images}
    seconds: dict[int, list[float]] = {few: [], many: []}
    trainer.replay = None  # what is recorded would go on reading the first images
    turn: Callable[[int], float] = Ours(trainer).turn
    turn(steps)
    for number in range(rounds):
        for count in (few, many) if number % 2 == 0 else (many, few):
            trainer.images, trainer.count = sides[count], count
            trainer.per_epoch = count // config.pretrain.batch_size
            seconds[count].append(turn(steps))
    for count, times in seconds.items():
        yield f"{count} resident images: {1000 * statistics.median(times):.1f} ms a step"
    yield _ratios("many over few", seconds[many], seconds[few])


def _ratios(what: str, ones: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return f"{what}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"


def bench_views(config: Config, *, channels: int, rounds: int, steps: int) -> Iterator[str]:
    """Compare our two views of a batch with kornia's operations of the same settings, one after the other.

    Kornia gets what it needs, three channels, and draws per sample as we do.

    Args:
        config: of the views, the size of the images and of the batch.
        channels: of the images.
        rounds: pairs of turns.
        steps: batches of a turn.
    """
    from app.bench.kornia_views import kornia_views

    device = choose_device(config.runtime.device)
    prepare(device, config.runtime.threads)
    trainer = endless_trainer(config, noise(config, config.pretrain.batch_size, channels), device)
    at, _ = trainer.batch_of(0)
    images = trainer.images_of(at.to(device))
    pipeline = kornia_views(trainer.augmentation, config.data.size)

    def theirs(micro: int) -> None:
        for _ in range(2):
            pipeline(images.expand(-1, 3, -1, -1))

    def ours(micro: int) -> None:
        _, parameters = trainer.batch_of(micro)
        trainer.views(images, parameters.to(device))

    ways: dict[str, Callable[[int], None]] = {"ours": ours, "kornia": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            ways[name](0)
            begin = now(device)
            for micro in range(steps):
                ways[name](micro)
            seconds[name].append((now(device) - begin) / steps)
    for name, times in seconds.items():
        yield f"two views of {config.pretrain.batch_size} images, {name}: {1000 * statistics.median(times):.1f} ms"
    yield _ratios("kornia over ours", seconds["kornia"], seconds["ours"])
