"""Measurements run, count right, say what they measured, and leave nothing behind; nothing here is timed."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from app import cli
from app.bench.checkpoint import Turn, _ratio, _summary, bench_checkpoint
from app.bench.pairs import bench_images, bench_probe, bench_views
from app.bench.peers import build_peers
from app.bench.reading import bench_import
from app.bench.step import (
    PARTS,
    bench_step,
    breakdown,
    convolution_multiplications,
    endless_trainer,
    noise,
    table,
    useful_multiplications,
)
from app.config import load_config
from app.data import write_phantoms
from app.errors import UsageError
from app.runtime import precision_on
from app.storage import FolderStore
from tests import small

CORES = len(os.sched_getaffinity(0))
SETTINGS = [
    "data.subset=32",
    "data.phantoms=never",
    "pretrain.batch_size=16",
    "runtime.threads=1",
    "runtime.device=cpu",
]


def test_turns_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)
    names = ("chestmnist", "pneumoniamnist", "breastmnist", "dermamnist")
    write_phantoms(tmp_path / "data", counts=dict.fromkeys(names, (32, 16, 16)))
    config = load_config("smoke", SETTINGS, data_root=str(tmp_path / "data"))
    store = FolderStore(tmp_path / "store")
    lines = list(bench_checkpoint(store, config, every=0.5, rounds=2, server=os.getpid()))
    assert [line.split(":")[0] for line in lines] == [
        "without checkpoints", "with checkpoints", "training time, with over without",
        "CPU time of this process, with over without", "checkpoint", "CPU time of the storage server, apart",
        f"training time, with over without, had the server not shared our {CORES} busy cores",
    ]  # fmt: skip
    assert float(re.findall(r"\d\.\d{4}", lines[2])[0]) > 0.3
    assert float(re.findall(r"([\d.]+) MB", lines[4])[0]) > 0.5
    assert list(store.list()) == []


def test_the_ratio_is_of_the_time_a_step_takes() -> None:
    plain, saved = Turn(100, 10.0, 20.0, 0.0), Turn(98, 10.1, 20.5, 1.5)
    assert _ratio(saved, plain) == pytest.approx((10.1 / 98) / 0.1)
    text = "\n".join(_summary([plain], [saved], 5_000_000, True))
    assert "with over without: 1.0306" in text
    assert "1.50 s a checkpoint" in text
    alone = ((10.1 - 1.5 / CORES) / 98) / 0.1  # what training would have taken with the cores to itself
    assert text.endswith(f"busy cores: {alone:.4f}")


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)
    names = ("chestmnist", "pneumoniamnist", "breastmnist", "dermamnist")
    write_phantoms(tmp_path / "data", counts=dict.fromkeys(names, (32, 16, 16)))
    config = load_config("smoke", SETTINGS, data_root=str(tmp_path / "data"))
    with pytest.raises(UsageError, match="--server-pid 999999999: there is no such process"):
        list(bench_checkpoint(FolderStore(tmp_path / "s"), config, every=0.1, rounds=1, server=999_999_999))


# Pretraining


def touching(convolution: nn.Conv2d, size: int) -> int:
    """Multiplications that touch data, counted one by one: ones where the image is, zeros in the padding."""
    ones = torch.ones(1, convolution.in_channels, size, size)
    taps = F.unfold(ones, convolution.kernel_size, padding=convolution.padding, stride=convolution.stride)
    return int(taps.sum()) * convolution.out_channels


@pytest.mark.parametrize(
    ("convolution", "size"),
    [(nn.Conv2d(3, 64, 7, 2, 3), 28), (nn.Conv2d(5, 7, 3, 1, 1), 4), (nn.Conv2d(5, 7, 3, 2, 1), 7),
     (nn.Conv2d(5, 7, 3, 1, 1), 1), (nn.Conv2d(5, 7, 1, 2), 7)],
)  # fmt: skip
def test_multiplications_that_touch_data(convolution: nn.Conv2d, size: int) -> None:
    assert convolution_multiplications(convolution, size, size) == touching(convolution, size)


def test_useful_multiplications_are_three_passes_online_and_one_of_the_target() -> None:
    config = load_config("recommended", ["network.stem=stock"])
    # 17,859,584 of a gray image in the encoder, by hand: 28 px become maps of 14, 7, 7, 4, 2 and 1
    maps = {(7, 64, 64, 3, 1): 4, (7, 64, 128, 3, 2): 1, (7, 64, 128, 1, 2): 1, (4, 128, 128, 3, 1): 3,
            (4, 128, 256, 3, 2): 1, (4, 128, 256, 1, 2): 1, (2, 256, 256, 3, 1): 3, (2, 256, 512, 3, 2): 1,
            (2, 256, 512, 1, 2): 1, (1, 512, 512, 3, 1): 3}  # fmt: skip
    encoder = touching(nn.Conv2d(1, 64, 7, 2, 3), 28) + sum(
        count * touching(nn.Conv2d(i, o, k, s, k // 2), size) for (size, i, o, k, s), count in maps.items()
    )
    assert encoder == 17_859_584
    projector, predictor = 512 * 4096 + 4096 * 256, 256 * 4096 + 4096 * 256
    assert useful_multiplications(config, 1) == 2 * (3 * (encoder + projector + predictor) + encoder + projector)
    linear = load_config("recommended", ["network.stem=stock", "network.predictor=linear"])
    assert useful_multiplications(linear, 1) == 2 * (3 * (encoder + projector + 256 * 256) + encoder + projector)
    colour = useful_multiplications(config, 3) - useful_multiplications(config, 1)
    assert colour == 2 * 4 * 2 * touching(nn.Conv2d(1, 64, 7, 2, 3), 28)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch):
    small.use(monkeypatch.setattr)
    return load_config("smoke", SETTINGS)


def test_a_step_is_the_sum_of_its_parts(settings) -> None:
    figures = bench_step(settings, images=40, channels=1, rounds=2, steps=2)
    parts = figures["parts_seconds"]
    assert list(parts) == [*PARTS, "other"]
    assert sum(parts.values()) == pytest.approx(figures["step_seconds"])
    assert all(seconds >= 0 for seconds in parts.values())
    assert 0 < figures["share_beside_the_network"] < 1
    assert figures["images_per_second"] == pytest.approx(16 / figures["step_seconds"])
    rates = figures["gemm_flops"]
    assert set(rates) == {"float32", "float32 by oneDNN", "bfloat16"}
    best = max(rates["float32"], rates["float32 by oneDNN"])
    assert figures["useful_share"] == pytest.approx(figures["useful_flops"] / best)
    assert figures["plain"]["lowest"] <= figures["plain"]["ours_over_it"] <= figures["plain"]["highest"]
    assert figures["peak_memory_bytes"] > 1e8
    assert figures["checkpoint"]["bytes"] > 1e5
    json.dumps(figures)
    lines = "\n".join(table(figures))
    assert f"28 px, 1 channels, batch 16, 40 images, {precision_on('cpu', 'auto')}" in lines
    assert re.search(r"all but forward and backward +\d+\.\d%", lines)


def test_measuring_the_parts_leaves_the_trainer_as_it_was(settings) -> None:
    trainer = endless_trainer(settings, noise(settings, 40, 1), "cpu")
    names = set(vars(trainer)), set(vars(trainer.model)), set(vars(trainer.optimizer))
    found = breakdown(trainer, 2)
    assert trainer.step == 2
    assert min(found[part] for part in PARTS) > 0
    assert (set(vars(trainer)), set(vars(trainer.model)), set(vars(trainer.optimizer))) == names


@pytest.mark.parametrize("missing", ["byol_pytorch", "lightly.loss"])
def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "lightly.loss":
        pytest.importorskip("byol_pytorch")
    monkeypatch.setitem(sys.modules, missing, None)
    config = load_config("smoke", SETTINGS)
    with pytest.raises(UsageError, match=r"install them by pip install '\.\[peers\]'"):
        build_peers(config, noise(config, 40, 1), "cpu")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("network.projector_hidden=99", "projector_hidden = predictor_hidden"),
        ("pretrain.accumulate=2", "do not accumulate"),
    ],
)
def test_what_the_peers_cannot_have(settings, setting: str, words: str) -> None:
    config = load_config("smoke", [*SETTINGS, setting])
    with pytest.raises(UsageError, match=words):
        build_peers(config, noise(config, 40, 1), "cpu")


@pytest.mark.slow
def test_peers_take_turns() -> None:
    pytest.importorskip("byol_pytorch")
    pytest.importorskip("lightly")
    figures = bench_step(load_config("smoke", SETTINGS), images=200, channels=1, rounds=1, steps=1, peers=True)
    assert set(figures["peers"]) == {"byol-pytorch", "lightly"}
    for peer in figures["peers"].values():
        assert peer["ours_over_it"] == pytest.approx(figures["images_per_second"] / peer["images_per_second"])


# Pairs


def test_more_images(settings) -> None:
    lines = list(bench_images(settings, few=32, many=64, channels=3, rounds=2, steps=1))
    assert [line.split(":")[0] for line in lines] == ["32 resident images", "64 resident images", "many over few"]


def test_fewer_images_than_a_batch_are_refused(settings) -> None:
    for few, many in ((1, 64), (64, 1)):
        with pytest.raises(UsageError, match="1 images are fewer than a batch of"):
            list(bench_images(settings, few=few, many=many, channels=1, rounds=1, steps=1))


def test_views(settings) -> None:
    lines = list(bench_views(settings, channels=1, rounds=2, steps=1))
    assert [line.split(":")[0] for line in lines] == [
        "two views of 16 images, ours", "two views of 16 images, kornia", "kornia over ours",
    ]  # fmt: skip


def test_a_probe_with_and_without_a_cache(settings, tmp_path: Path) -> None:
    write_phantoms(tmp_path, counts={"pneumoniamnist": (32, 16, 16), "chestmnist": (32, 16, 16)})
    config = load_config("smoke", SETTINGS, data_root=str(tmp_path))
    lines = list(bench_probe(FolderStore(tmp_path / "s"), config, dataset="pneumoniamnist", rounds=2, naive_epochs=1))
    assert "5 epochs, 32 training and 16 validation images" in lines[0]
    assert lines[-1].startswith("every epoch over once: ")


# The command line


def test_bench_writes_its_figures(settings, tmp_path: Path) -> None:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(
        cli.app,
        ["bench", "--preset", "smoke", *words, "--images", "40", "--rounds", "1", "--steps", "1", "--json", str(out)],
    )
    assert result.exit_code == 0, result.output
    assert "images a second" in result.output
    assert json.loads(out.read_text())["settings"]["images"] == 40


def test_an_import_takes_turns_with_a_plain_loop(capfd: pytest.CaptureFixture[str]) -> None:
    lines = list(bench_import(count=40, side=32, size=28, rounds=1))
    assert [line.split(":")[0] for line in lines] == ["import", "a plain loop", "import over a plain loop"]
    assert all(re.search(r"\d+ images a second, \d\.\d\d GB at most", line) for line in lines[:2])
    assert "drawing 40 pictures of 32 px" in capfd.readouterr().err
