"""The commands of `python -m app bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options import Asked, Seed, StoreUri, example, takes_settings

bench_app = typer.Typer(invoke_without_command=True)


def gray_or_rgb(channels: int) -> int:
    """Return ``channels``.

    Raises:
        BadParameter: no images have so many.
    """
    if channels not in (1, 3):
        raise typer.BadParameter(f"{channels} is neither 1 nor 3.")
    return channels


Channels = Annotated[int, typer.Option("--channels", callback=gray_or_rgb, help="Of the images: 1 or 3.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Figures are medians over them.")]
Studies = Annotated[int, typer.Option("--studies", min=1, help="Simulated studies of each kind.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of a turn.")]
MACHINE = ("preset", "overrides", "device", "threads")
DATA = (*MACHINE, "sources", "data_root")


@bench_app.callback()
@takes_settings(*MACHINE)
def bench(
    context: typer.Context,
    peers: Annotated[bool, typer.Option("--peers", help="Measure lightly and byol-pytorch too, in turns.")] = False,
    images: Annotated[int, typer.Option("--images", min=2, help="Resident images, of noise.")] = 112_120,
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
    *,
    asked: Asked,
) -> None:
    """Measure pretraining: images a second, where a step's time goes, memory, the share of what the machine can do."""
    if context.invoked_subcommand is not None:
        return
    from app.bench.step import bench_step, table, write_json

    figures = bench_step(asked.config(), images=images, channels=channels, rounds=rounds, steps=steps, peers=peers)
    for line in table(figures):
        print(line)
    if out is not None:
        write_json(figures, out)


@bench_app.command(name="probe", epilog=example("bench probe --data-root ~/.medmnist"))
@takes_settings(*DATA)
def bench_probe(
    dataset: Annotated[str, typer.Option("--dataset", help="A labelled data set.")] = "pneumoniamnist",
    rounds: Rounds = 5,
    naive_epochs: Annotated[int, typer.Option("--epochs", min=1, help="With the encoder in each; scaled.")] = 2,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Compare a linear probe on cached features with one that runs the encoder in every epoch."""
    from app.bench.pairs import bench_probe as measure
    from app.storage import open_store

    for line in measure(open_store(store), asked.config(), dataset=dataset, rounds=rounds, naive_epochs=naive_epochs):
        print(line)


@bench_app.command(name="images", epilog=example("bench images --few 10000 --many 100000"))
@takes_settings(*MACHINE)
def bench_images(
    few: Annotated[int, typer.Option("--few", min=2)] = 10_000,
    many: Annotated[int, typer.Option("--many", min=2)] = 100_000,
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    *,
    asked: Asked,
) -> None:
    """Compare a step of pretraining among many resident images with one among few."""
    from app.bench.pairs import bench_images as measure

    for line in measure(asked.config(), few=few, many=many, channels=channels, rounds=rounds, steps=steps):
        print(line)


@bench_app.command(name="views", epilog=example("bench views --channels 3"))
@takes_settings(*MACHINE)
def bench_views(
    channels: Channels = 1,
    rounds: Rounds = 5,
    steps: Steps = 8,
    *,
    asked: Asked,
) -> None:
    """Compare the views with kornia's operations of the same settings."""
    from app.bench.pairs import bench_views as measure

    for line in measure(asked.config(), channels=channels, rounds=rounds, steps=steps):
        print(line)


@bench_app.command(name="import", epilog=example("bench import --count 20000 --side 512"))
def bench_import(
    count: Annotated[int, typer.Option("--count", min=10, help="Of the pictures.")] = 2_000,
    side: Annotated[int, typer.Option("--side", min=8, help="Of the pictures, in pixels.")] = 512,
    size: Annotated[int, typer.Option("--size", min=8, help="That they are resized to.")] = 64,
    rounds: Rounds = 3,
) -> None:
    """Compare the import of own images with a plain loop over Pillow on one core."""
    from app.bench.reading import bench_import as measure

    for line in measure(count=count, side=side, size=size, rounds=rounds):
        print(line)


@bench_app.command(epilog=example("bench checkpoint --preset demo --store s3://bucket/prefix --every 60"))
@takes_settings(*DATA)
def checkpoint(
    store: StoreUri = "runs",
    every: Annotated[float, typer.Option("--every", min=1.0, help="Seconds from one checkpoint to the next.")] = 60.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Pairs of turns, without and with.")] = 4,
    server: Annotated[int | None, typer.Option("--server-pid", help="Show this process's CPU time apart.")] = None,
    *,
    asked: Asked,
) -> None:
    """Compare training with a checkpoint every so often with training without, in turns."""
    from app.bench.checkpoint import bench_checkpoint
    from app.storage import open_store

    for line in bench_checkpoint(open_store(store), asked.config(), every=every, rounds=rounds, server=server):
        print(line)


@bench_app.command(name="coverage", epilog=example("bench coverage --studies 1000"))
def bench_coverage(
    studies: Studies = 1000,
    seed: Seed = 0,
) -> None:
    """Simulate studies whose truth is known, and count how often each kind of interval holds it."""
    from app.bench.coverage import bench_coverage as measure

    for line in measure(studies=studies, seed=seed):
        print(line, flush=True)


@bench_app.command(name="detectable", epilog=example("bench detectable --studies 1000"))
def bench_detectable(
    studies: Studies = 1000,
    seed: Seed = 0,
) -> None:
    """Simulate studies with the difference that `plan` foresees, and count how many settle it."""
    from app.bench.detectable import bench_detectable as measure

    for line in measure(studies=studies, seed=seed):
        print(line, flush=True)
