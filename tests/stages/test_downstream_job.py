"""The downstream job: stopped in the middle and continued, it gives what it would have given."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from app.bench.step import noise
from app.config import load_config
from app.errors import CollapseError, InputError, Interrupted, UsageError
from app.jobs import keys
from app.jobs.checkpoint import load_checkpoint
from app.jobs.job import Job
from app.jobs.run import Run, load_labelled
from app.models.trained import load_trained
from app.report.collect import parse_predictions
from app.science import finetuning, metrics
from app.science.finetuning import Labelled, predict, probabilities
from app.science.pretraining import Trainer
from app.stages import downstream
from app.stages import run as study
from app.stages.plan import plan as planned
from app.stages.weights import initial_weights
from app.storage import FolderStore
from tests.checkpoints import save_checkpoint

pytestmark = pytest.mark.usefixtures("small_network")
SETTINGS = [
    "data.subset=24", "data.phantoms=never", "runtime.threads=1", "runtime.device=cpu", "runtime.grace_seconds=300",
    "protocols.finetune.epochs=2", "protocols.finetune.batch_size=8", "protocols.linear_probe.epochs=3",
    "protocols.linear_probe.batch_size=8", "protocols.few_shot.k=4", "protocols.few_shot.draws=3",
    "runtime.keep_models=all",
]  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path, phantoms: Path):
    return lambda name: Run(FolderStore(tmp_path / name), "r", load_config("smoke", SETTINGS, data_root=str(phantoms)))


def train(run: Run, protocol: Any) -> dict[str, Any]:
    return downstream.run(run, dataset="breastmnist", init="random", protocol=protocol, seed=0)


def test_the_control_has_the_very_weights_that_byol_began_from(make_run):
    """Of each seed, its BatchNorm's statistics too, and other ones of another seed."""
    run = make_run("a")
    config, states = run.config, []
    for seed in (0, 1):
        trainer = Trainer(
            config.pretrain, config.network, config.augmentation("byol"), noise(config, 64, 1), seed=seed, device="cpu"
        )
        control = downstream.build_encoder(run, initial_weights(run, "random"), seed).plain_state()
        for network in (trainer.model.online[0], trainer.model.target[0]):
            began = network.plain_state()
            assert began.keys() == control.keys()
            assert all(torch.equal(began[name], value) for name, value in control.items())
        states.append(control)
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def outcome(run: Run, record: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """The model's tensors, what the record says of the science, and the files."""
    volatile = ("timings", "finished", "files", "environment")
    files = [f"{name} {entry['sha256']}" for name, entry in sorted(record["files"].items()) if name.endswith(".csv")]
    classifier = load_trained(run.store, f"runs/r/downstream/{record['key']}").classifier
    return classifier.plain_state(), {k: v for k, v in record.items() if k not in volatile}, files


@pytest.mark.parametrize(
    ("protocol", "stops"), [("finetune", (1, 3, 5)), ("linear_probe", (2, 3, 8)), ("few_shot", (1, 3))]
)
def test_stopped_and_continued_equals_uninterrupted(make_run, monkeypatch, protocol, stops):
    """Stops within an epoch, at its end, and, with few shots, within a later draw."""
    whole, pieces = make_run("whole"), make_run("pieces")
    expected = outcome(whole, train(whole, protocol))
    original = Job.after_step
    for at in stops:

        def after_step(self: Job, step: int, state: Any, where: str, at: int = at) -> None:
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, step, state, where)

        with monkeypatch.context() as patch:
            patch.setattr(Job, "after_step", after_step)
            with pytest.raises(Interrupted, match=f"SIGTERM: stopped at step {at} with a checkpoint"):
                train(pieces, protocol)
    tensors, record, files = outcome(pieces, train(pieces, protocol))
    assert record == expected[1]
    assert files == expected[2]
    assert tensors.keys() == expected[0].keys()
    assert all(torch.equal(tensors[name], expected[0][name]) for name in tensors)
    assert not pieces.store.exists(f"runs/r/downstream/{record['key']}/latest.json")


def test_a_probe_that_moves_batch_norm_keeps_its_whole_model(tmp_path, phantoms):
    """The encoder that it started from has other running statistics, and would give other scores."""
    probe = [f"protocols.linear_probe.{line}" for line in ("batch_norm=train", "standardise=false", "epoch=last")]
    run = Run(FolderStore(tmp_path), "r", load_config("smoke", [*SETTINGS, *probe], data_root=str(phantoms)))
    record = train(run, "linear_probe")
    assert record["encoder"] is None
    assert record["best_epoch"] == 3
    folder = f"runs/r/downstream/{record['key']}"
    images = load_labelled(run, "breastmnist").test
    scores = predict(load_trained(run.store, folder).classifier, Labelled.of(images.images, images.labels, "cpu"))
    kept = parse_predictions(run.store.read(f"{folder}/{keys.PREDICTIONS}"))
    assert kept == pytest.approx(probabilities(scores, record["task"]), abs=1e-5)


@pytest.mark.parametrize("protocol", ["finetune", "few_shot"])
def test_nan_ends_with_76_and_keeps_the_curves(make_run, monkeypatch, protocol):
    """In the second epoch, and of the few-shot draws in the second: what came before is told too."""
    run = make_run("a")
    original, fits = downstream.fit, []

    def fit(classifier: Any, *args: Any, **options: Any) -> Any:
        fits.append(classifier)
        check = options["check"]

        def spoil() -> None:
            check()
            if len(fits) == (1 if protocol == "finetune" else 2):
                classifier.head.weight.data[0, 0] = float("nan")

        return original(classifier, *args, **(options | {"check": spoil}))

    monkeypatch.setattr(downstream, "fit", fit)
    with pytest.raises(CollapseError, match="the loss is nan in training") as caught:
        train(run, protocol)
    assert caught.value.exit_code == 76
    folder = f"runs/r/downstream/breastmnist/random/{protocol}/s0"
    lines = [json.loads(line) for line in run.store.read(f"{folder}/curves.jsonl").splitlines()]
    assert lines[-1]["train_loss"] is None
    assert lines[-1]["epoch"] == 2
    assert lines[-1]["draw"] == len(fits) - 1
    assert lines[0]["draw"] == 0
    assert all(line["train_loss"] > 0 for line in lines[:-1])
    assert not run.store.exists(f"{folder}/record.json")


@pytest.mark.parametrize("protocol", ["linear_probe", "few_shot_frozen"])
def test_a_frozen_encoder_sees_every_set_once(make_run, monkeypatch, protocol):
    """Validation and test images once for all draws, the few of each draw when it comes, all for the label curve."""
    run, seen = make_run("a"), []
    original = finetuning.encode

    def encode(encoder: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return original(encoder, images)

    monkeypatch.setattr(finetuning, "encode", encode)
    record = train(run, protocol)
    draws, few = len(record["draws"]), 2 * run.config.protocols.few_shot_frozen.k
    assert sorted(seen) == sorted([16, 16, *[few] * draws, 24])
    # and these are the scores of the saved head on the encoder that it names, run anew
    folder = Path(run.store.uri) / "runs/r/downstream" / record["key"]
    models = [name for name in record["files"] if name.endswith("safetensors") and name != keys.LABEL_CURVE]
    assert models == ["head.safetensors"]
    assert load_file(folder / "head.safetensors").keys() == {"fc.weight", "fc.bias"}
    classifier = load_trained(run.store, f"runs/r/downstream/{record['key']}").classifier
    test = load_labelled(run, "breastmnist").test
    scores = probabilities(predict(classifier, Labelled.of(test.images, test.labels, "cpu")), "binary-class")
    saved = [[float(cell) for cell in line.split(",")[1:]] for line in (folder / "predictions.csv").open()]
    assert torch.equal(torch.tensor(saved, dtype=torch.float64), torch.from_numpy(scores))


def stopped(make_run: Any, name: str, protocol: str, at: int) -> Run:
    """A run whose job was stopped after a step, with its checkpoint."""
    run, original = make_run(name), Job.after_step

    def after_step(self: Job, step: int, state: Any, where: str) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, state, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "after_step", after_step)
        with pytest.raises(Interrupted):
            train(run, protocol)
    return run


@pytest.mark.parametrize("protocol", ["finetune", "few_shot"])
def test_an_overwriting_job_that_is_stopped_goes_on_without_the_option(make_run, capsys, protocol):
    """What its message says to do continues it; with the option it would begin anew."""
    run = make_run("a")
    before = train(run, protocol)
    original = Job.after_step
    with pytest.MonkeyPatch.context() as patch:

        def after_step(self: Job, step: int, state: Any, where: str) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, step, state, where)

        patch.setattr(Job, "after_step", after_step)
        with pytest.raises(Interrupted) as caught:
            downstream.run(run, dataset="breastmnist", init="random", protocol=protocol, seed=0, overwrite=True)
    assert str(caught.value).endswith("run the same command again to continue, without --overwrite")
    capsys.readouterr()
    again = train(run, protocol)
    assert "continues at epoch" in capsys.readouterr().err
    assert again["metrics"] == before["metrics"]


def test_a_study_that_overwrites_goes_on_without_the_option(make_run, monkeypatch):
    """All results go before the first job: none of before is taken for one of the new ones."""
    run = make_run("a")
    folders = [keys.pretraining("r", "byol-s0"), keys.downstream("r", "breastmnist/random/finetune/s0")]
    settings = [*SETTINGS, "study.datasets=[breastmnist]", "study.methods=[byol]", "study.protocols=[finetune]"]
    config = load_config("smoke", [*settings, "data.pretrain=breastmnist"], data_root=run.config.data_root)
    planned(run.store, config, "r")
    for folder in folders:
        run.store.write(keys.record(folder), b"{}")
    seen = []

    def job(_run: Run, args: Any, overwrite: bool) -> None:
        assert [run.store.exists(keys.record(folder)) for folder in folders] == [False, False]
        assert not overwrite
        seen.append(args)
        if len(seen) == 2:
            raise Interrupted("SIGTERM: stopped; run the same command again")

    monkeypatch.setattr(study, "run_job", job)
    with pytest.raises(Interrupted, match=r"run the same command again, without --overwrite$"):
        study.run_study(run.store, config, "r", overwrite=True)
    assert len(seen) == 2


def refusal(run: Run, protocol: str) -> list[str]:
    """What a job says that refuses its input; nothing of one that is done."""
    try:
        train(run, protocol)
    except InputError as error:
        return [str(error)]
    return []


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a checkpoint's state can be spoilt: the path of every part of it; of a long list or dict of the first."""
    yield path
    if isinstance(value, dict):
        named = list(value.items()) if len(value) < 12 else list(value.items())[:1]
    else:
        named = list(enumerate(value))[:1] if isinstance(value, list) else []
    for name, part in named:
        yield from places(part, (*path, name))


@pytest.mark.parametrize(("protocol", "at"), [("finetune", 4), ("few_shot", 3), ("linear_probe", 5)])
def test_a_checkpoint_that_does_not_fit_is_a_wrong_input(make_run, protocol, at):
    """Whatever is missing in it or of another kind: 66 and how to start afresh, or it did not matter."""
    run = stopped(make_run, "a", protocol, at)
    folder = f"runs/r/downstream/breastmnist/random/{protocol}/s0"
    state = load_checkpoint(run.store, folder, warn=print)
    assert state is not None
    said, others = [], itertools.cycle([None, "x", -7])
    for path in list(places({name: state[name] for name in ("fit", "outcomes", "seconds")}))[1:]:
        for spoilt in ("gone", next(others)):
            changed = copy.deepcopy(state)
            part = changed
            for name in path[:-1]:
                part = part[name]
            if spoilt == "gone":
                del part[path[-1]]
            else:
                part[path[-1]] = torch.ones(3, 3, 3) if isinstance(part[path[-1]], torch.Tensor) else spoilt
            run.store.delete(f"{folder}/latest.json")
            run.store.delete(f"{folder}/record.json")
            save_checkpoint(run.store, folder, 4, changed, keep=1)
            said += refusal(run, protocol)
    assert len(said) > 15
    for message in said:
        assert re.search(r"does not fit this version of the program \(.+\); --overwrite starts afresh", message)


@pytest.mark.parametrize("protocol", ["finetune", "few_shot", "linear_probe", "few_shot_frozen"])
def test_a_single_training_image_trains_a_head_or_is_refused(make_run, protocol):
    run = make_run("a")
    settings = [*SETTINGS, "data.subset=1", "protocols.few_shot.k=1", "protocols.few_shot_frozen.k=1"]
    run = Run(run.store, "r", load_config("smoke", settings, data_root=run.config.data_root))
    if protocol == "linear_probe":
        assert train(run, protocol)["metrics"]["accuracy"] >= 0
        return
    with pytest.raises(UsageError, match=r"breastmnist.* (has a single training image|no training images)"):
        train(run, protocol)


def test_a_job_leaves_validation_scores_errors_and_where_features_lie(make_run):
    run = make_run("a")
    study_of = run.config.study.model_copy(update={"datasets": ("breastmnist",), "methods": ()})
    planned(run.store, run.config.model_copy(update={"study": study_of}), "r")
    record = train(run, "linear_probe")
    folder = Path(run.store.uri) / "runs/r/downstream" / record["key"]
    data = load_labelled(run, "breastmnist")
    labels = json.loads((folder.parents[4] / "samples/breastmnist_val_labels.json").read_text())["labels"]
    assert labels == data.val.labels.tolist()
    scores = parse_predictions((folder / "val_predictions.csv").read_bytes())
    assert metrics.evaluate(data.val.labels, scores, data.task) == pytest.approx(record["validation"])
    places = [line.split(",") for line in (folder / "embedding.csv").read_text().splitlines()]
    assert len(places) == len(data.val)
    assert all(len(place) == 2 and float(place[0]) < 1e3 for place in places)
    test_scores = parse_predictions((folder / "predictions.csv").read_bytes())
    for error in record["errors"]:
        assert data.test.labels[error["image"], 0] == error["truth"] != error["predicted"]
        assert test_scores[error["image"]].max() == pytest.approx(error["probability"])
    sure = [error["probability"] for error in record["errors"]]
    assert sure == sorted(sure, reverse=True)
    with Image.open(folder / "errors.png") as picture:
        assert picture.size == (len(sure) * 84 + (len(sure) - 1) * 3, 84)
