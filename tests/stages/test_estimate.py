"""What a study will take: counted as its jobs count, timed on this machine, kept for the next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.config import load_config
from app.data import load_dataset, load_unlabelled, write_phantoms
from app.jobs.run import Run
from app.science import finetuning
from app.science.byol import BYOL
from app.science.networks import Encoder
from app.stages import downstream, estimate, plan
from app.stages.estimate import Rates, duration, estimate_lines, known_rates, rates_here, work_of
from app.stages.rates import measure_rates
from app.storage import FolderStore
from tests import small

SETTINGS = [
    "data.phantoms=never", "data.subset=null", "study.methods=[byol,byol_plus]", "study.baselines=[random]",
    "study.datasets=[breastmnist]", "study.seeds=[0,1]", "pretrain.epochs=3", "pretrain.batch_size=8",
    "protocols.finetune.epochs=2", "protocols.finetune.batch_size=8", "protocols.linear_probe.epochs=2",
    "protocols.linear_probe.batch_size=8", "protocols.few_shot.k=2", "protocols.few_shot.draws=3",
    "protocols.few_shot.epochs=2", "protocols.few_shot.batch_size=4", "protocols.few_shot_frozen.k=2",
    "protocols.few_shot.curve=[3]", "protocols.few_shot_frozen.curve=null",
    "runtime.threads=1", "runtime.device=cpu", "network.projector_hidden=16", "network.predictor_hidden=16",
    "network.projection=8", "runtime.keep_models=finetune",
]  # fmt: skip
RATES = Rates(
    pretrain=10, train=100, encode=1000, head=50, pretrain_memory=2e9, train_memory=1e9, encoder=45e6, checkpoint=250e6
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_phantoms(root, counts=dict.fromkeys(("chestmnist", "breastmnist"), (32, 16, 20)))
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small.use(monkeypatch.setattr)


def config(data: Path, *more: str) -> Any:
    return load_config("smoke", [*SETTINGS, *more], data_root=str(data))


def works(data: Path, *more: str) -> dict[str, estimate.Work]:
    labelled = [load_dataset("breastmnist", path=data / "breastmnist.npz")]
    unlabelled = load_unlabelled("chestmnist", path=data / "chestmnist.npz")
    return {work.name: work for work in work_of(config(data, *more), labelled, unlabelled)}


def test_pretraining_counts_as_the_trainer_does(data):
    work = works(data)["pretraining"]
    per_job = 3 * (68 // 8)
    assert (work.jobs, work.steps, work.pretrained) == (4, 4 * per_job, 4 * per_job * 8)
    assert work.resident == 68 * 28 * 28
    assert work.encoders == 4


@pytest.mark.parametrize(
    ("protocol", "curve"),
    [("finetune", None), ("linear_probe", None), ("few_shot", None), ("few_shot_frozen", None),
     ("few_shot_frozen", "protocols.few_shot_frozen.curve=[1,2]")],
)  # fmt: skip
def test_downstream_counts_what_a_job_does(data, tmp_path, monkeypatch, protocol, curve):
    """A job is run, and its steps and images are counted on the way."""
    seen = {"trained": 0, "encoded": 0}
    original, forward = finetuning.encode, Encoder.forward

    def encode(encoder: Any, images: torch.Tensor) -> torch.Tensor:
        seen["encoded"] += len(images)
        seen["trained"] -= len(images)  # its forward pass is counted below
        return original(encoder, images)

    def counted(self: Encoder, x: torch.Tensor) -> torch.Tensor:
        seen["trained"] += len(x)
        return forward(self, x)

    monkeypatch.setattr(finetuning, "encode", encode)
    monkeypatch.setattr(Encoder, "forward", counted)
    steps: list[int] = []
    advance = finetuning._Training.advance

    def counting(self: Any, at: torch.Tensor) -> None:
        steps.append(len(at))
        advance(self, at)

    monkeypatch.setattr(finetuning._Training, "advance", counting)
    more = [curve] if curve else []
    run = Run(FolderStore(tmp_path / "store"), "r", config(data, *more))
    asked: Any = protocol
    downstream.run(run, dataset="breastmnist", init="random", protocol=asked, seed=0)
    work = works(data, *more)[protocol]
    jobs = 3 * 2
    assert work.jobs == jobs
    if curve is None:  # the heads of a curve are trained side by side
        assert work.steps == jobs * len(steps)
    assert work.heads == (work.steps if protocol in ("linear_probe", "few_shot_frozen") else 0)
    assert work.trained == jobs * seen["trained"]
    assert work.encoded == jobs * seen["encoded"]
    assert work.encoders == (jobs if protocol == "finetune" else 0)


def test_lines_add_up(data):
    stages = list(works(data).values())
    lines = estimate_lines(config(data), stages, RATES)
    assert len(lines) == 1 + 4 + 1
    seconds = sum(w.pretrained / 10 + w.trained / 100 + w.encoded / 1000 + w.heads / 50 for w in stages)
    files = 4 + 6 + 2  # encoders, models of finetune, random starts of frozen protocols
    assert f"{sum(w.jobs for w in stages)} jobs" in lines[-1]
    assert f"about {duration(seconds)} one job after the other, 2.0 GB of memory at most" in lines[-1]
    assert f"{files * 45} MB of disk in the end" in lines[-1]
    assert "500 MB for the checkpoints of a job at work" in lines[0]


def test_without_rates_work_is_told_and_how_to_time_it(data):
    stages = list(works(data).values())
    assert estimate_lines(config(data), stages, None)[-1].endswith("too short to be timed")
    long = list(works(data, "pretrain.epochs=3000").values())
    assert estimate_lines(config(data), long, None)[-1].endswith("not timed on this machine: `run` does")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (120, "2.0 min"),
        (900, "15 min"),
        (7200, "2.0 h"),
        (36000, "10 h"),
        (200000, "2.3 days"),
    ],
)
def test_durations_have_two_figures(seconds, said):
    assert duration(seconds) == said


def test_rates_are_measured_once_and_kept_for_the_same_network(data):
    measured = []

    def measure(config: Any, channels: int) -> Rates:
        measured.append(channels)
        return RATES

    asked = config(data)
    assert known_rates(asked, 1) is None
    assert rates_here(asked, 1, measure) == rates_here(asked, 1, measure) == known_rates(asked, 1) == RATES
    assert measured == [1]
    assert known_rates(asked, 3) is None
    assert known_rates(config(data, "network.stem=cifar"), 1) is None
    assert known_rates(config(data, "pretrain.epochs=7", "study.seeds=[5]"), 1) == RATES


@pytest.mark.parametrize(
    ("channels", "more"),
    [(1, []), (3, ["protocols.linear_probe.batch_norm=train", "protocols.linear_probe.standardise=false"])],
)
def test_a_measurement_is_of_real_steps(data, monkeypatch, channels, more):
    forward = Encoder.forward

    def of_images(self: Encoder, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] > 1, "a head learns from features"
        return forward(self, x)

    monkeypatch.setattr(Encoder, "forward", of_images)
    rates = measure_rates(config(data, *more), channels)
    assert 0 < rates.pretrain < rates.encode
    assert rates.train > 0
    assert rates.head > 0
    assert 1e8 < rates.train_memory <= rates.pretrain_memory
    encoder = sum(value.nbytes for value in Encoder().plain_state().values())
    network = BYOL(Encoder(), projector_hidden=16, predictor_hidden=16, projection=8)
    assert rates.encoder == encoder
    assert rates.checkpoint > sum(value.nbytes for value in network.state_dict().values())


def test_a_plan_says_it_and_measures_for_run_alone(data, tmp_path, capsys):
    measured = []

    def measure(config: Any, channels: int) -> Rates:
        measured.append(channels)
        return RATES

    asked = config(data, "pretrain.epochs=300", "data.monitor=null")
    plan.plan(FolderStore(tmp_path / "a"), asked, "r")
    assert "not timed on this machine" in capsys.readouterr().err
    plan.plan(FolderStore(tmp_path / "b"), asked, "r", measure=measure)
    assert "of disk in the end" in capsys.readouterr().err
    plan.plan(FolderStore(tmp_path / "c"), asked, "r")  # what `run` has measured
    assert "of disk in the end" in capsys.readouterr().err
    plan.plan(FolderStore(tmp_path / "d"), config(data, "data.monitor=null"), "r", measure=measure)
    assert measured == [1]
