"""How fast images are imported, beside the loop over Pillow that one writes oneself."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from app.data.own import LabelSource, import_images
from app.machine import cores
from app.progress import Progress


def bench_import(*, count: int, side: int, size: int, rounds: int) -> Iterator[str]:
    """Import made PNGs, in turns with a plain loop on one core, and yield the lines to print.

    Each turn is a process of its own, whose memory at most is read at its end. The import is the whole of it: reading,
    checks for equal and similar images, splits, the ``.npz``. The loop reads, resizes and stacks alone.

    Args:
        count: of the images.
        side: of the pictures, in pixels.
        size: that they are resized to.
        rounds: turns of each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        progress = Progress("bench")
        progress.say(f"drawing {count} pictures of {side} px")
        _draw(folder, count, side)
        ways: dict[str, Callable[[Path, int], None]] = {"import": _import, "a plain loop": _loop}
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                taken[way].append(_apart(ways[way], folder, size))
        for way, turns in taken.items():
            seconds, memory = statistics.median(turn[0] for turn in turns), max(turn[1] for turn in turns)
            yield f"{way}: {count / seconds:.0f} images a second, {memory:.2f} GB at most"
        ratios = [loop[0] / ours[0] for ours, loop in zip(taken["import"], taken["a plain loop"], strict=True)]
        low, high = min(ratios), max(ratios)
        yield f"import over a plain loop: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}), on {cores()} cores"


def _apart(way: Callable[[Path, int], None], folder: Path, size: int) -> tuple[float, float]:
    """Run a way in a process of its own; return its seconds and the memory that it took at most, in GB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (way, folder, size))


def _timed(way: Callable[[Path, int], None], folder: Path, size: int) -> tuple[float, float]:
    begin = time.perf_counter()
    way(folder, size)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _import(folder: Path, size: int) -> None:
    import_images(folder, folder.parent / "out.npz", size=size, labels=LabelSource())


def _loop(folder: Path, size: int) -> None:
    images = []
    for file in sorted(folder.rglob("*.png")):
        with Image.open(file) as image:
            images.append(np.asarray(image.convert("L").resize((size, size), Image.Resampling.BICUBIC)))
    np.stack(images)


def _draw(folder: Path, count: int, side: int) -> None:
    """Draw pictures as smooth and as grainy as X-rays, in two classes."""
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)

    def draw(number: int) -> None:
        rng = np.random.default_rng(number)
        smooth = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 3, (side, side))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number:06d}.png", compress_level=1)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(draw, range(count)))
