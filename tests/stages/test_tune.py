"""The search over settings: what it tries, that it is judged on validation data alone, and that it can be stopped."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from app.config import load_config, load_search
from app.data import load_dataset, write_phantoms
from app.data.files import NpzReader
from app.errors import CollapseError, InputError, Interrupted, UsageError
from app.jobs.run import Run
from app.jobs.trials import TrialResult, TuneRecord
from app.science.pretraining import Trainer
from app.settings import Search
from app.stages import downstream, pretrain, trial
from app.stages.found import best_preset, lines_of
from app.stages.listing import list_store
from app.stages.tune import candidates, ranking, tune
from app.storage import FolderStore
from tests import small

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "data.phantoms=never", "data.subset=32", "study.datasets=[breastmnist,dermamnist]", "study.seeds=[0]",
    "pretrain.batch_size=16", "pretrain.warmup_epochs=0", "protocols.linear_probe.epochs=2", "runtime.threads=1",
    "runtime.device=cpu", "network.projector_hidden=16", "network.predictor_hidden=16", "network.projection=8",
]  # fmt: skip
SEARCH = Search(
    method="byol", seed=7, trials=None, rungs=(1, 2), keep=2,
    settings={"network.stem": ("stock", "middle"), "views.crop_scale": ([0.3, 0.9],)},
)  # fmt: skip
SHORT: dict[str, Any] = {"rungs": (1,), "settings": {"views.flip": (0.5,)}}  # one trial, which is the preset's own


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    small.use(monkeypatch.setattr)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets without a test split, in which whoever looks for one finds none: only ``chestmnist``, not judged, has it."""
    root = tmp_path_factory.mktemp("data")
    counts = dict.fromkeys(("chestmnist", "breastmnist", "dermamnist"), (40, 24, 16))
    for path in write_phantoms(root, counts=counts):
        if path.stem != "chestmnist":
            with np.load(path) as arrays:
                kept = {name: arrays[name] for name in arrays.files if not name.startswith("test_")}
            assert {"train_images", "val_labels"} <= kept.keys()
            np.savez_compressed(path, **kept)
    return root


class Searcher:
    """Runs `tune` in a store of its own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.store, self.data = FolderStore(folder), data

    def __call__(self, *more: str, run_id: str = "t", root: Path | None = None, **changed: Any) -> TuneRecord:
        config = load_config("smoke", [*SETTINGS, *more], data_root=str(root or self.data))
        return tune(self.store, config, SEARCH.model_copy(update=changed), run_id)


@pytest.fixture
def search(tmp_path: Path, data: Path) -> Searcher:
    return Searcher(tmp_path / "store", data)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[TuneRecord, FolderStore]:
    """One search for all who look at what it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        small.use(patch.setattr)
        torch.set_num_threads(1)
        search = Searcher(tmp_path_factory.mktemp("store"), data)
        return search(), search.store


def with_test_splits(root: Path) -> Path:
    write_phantoms(root, counts=dict.fromkeys(("chestmnist", "breastmnist", "dermamnist"), (40, 24, 16)))
    return root


# --- the test split


def test_a_search_runs_to_its_end_where_there_is_no_test_split(searched, data):
    """The arrays are not in the files: no stage, loader or summary can have asked for them."""
    record, _ = searched
    assert len(record.trials) == 5
    assert {name: set(info.splits) for name, info in record.data.items()} == {
        "breastmnist": {"train", "val"}, "dermamnist": {"train", "val"}, "chestmnist": {"all"},
    }  # fmt: skip
    with pytest.raises(InputError, match="has no array 'test_labels'"):
        load_dataset("breastmnist", path=data / "breastmnist.npz")


def test_a_test_split_that_is_there_is_never_opened(search, tmp_path, monkeypatch):
    """It is there and sound; whoever reads one byte of it ends the search. An ordinary job does."""
    with_test_splits(tmp_path)
    original = NpzReader.header

    def header(self: NpzReader, key: str) -> Any:
        if key.startswith("test_") and "chestmnist" not in str(self.path):
            raise AssertionError(f"{key} was read")
        return original(self, key)

    monkeypatch.setattr(NpzReader, "header", header)
    record = search(root=tmp_path, **SHORT)
    run = Run(search.store, "study", load_config("smoke", SETTINGS, data_root=str(tmp_path)))
    with pytest.raises(AssertionError, match="test_labels was read"):
        downstream.run(run, dataset="breastmnist", init="random", protocol="linear_probe", seed=0)
    assert record.trials


def test_a_trial_cannot_be_given_a_run_that_reads_test_splits(search, data):
    run = Run(search.store, "t", load_config("smoke", SETTINGS, data_root=str(data)))
    with pytest.raises(AssertionError, match="must not be able to read a test split"):
        trial.run(run, method=None, seed=0, labelled=[], unlabelled=None)


@pytest.mark.parametrize("name", ["breastmnist", "copy"])
def test_a_judge_is_not_pretrained_on_as_a_whole(search, tmp_path, name):
    """Also not under another name: its test images would be among those of pretraining."""
    with_test_splits(tmp_path)
    (tmp_path / "copy.npz").write_bytes((tmp_path / "breastmnist.npz").read_bytes())
    with pytest.raises(UsageError, match=rf"data.pretrain={name}: is the file of breastmnist, .*pretrain_split=train"):
        search(f"data.pretrain={name}", root=tmp_path)


def test_a_judges_training_images_may_be_pretrained_on(search):
    """Those alone, of a file that has no test split."""
    assert search("data.pretrain=breastmnist", "data.pretrain_split=train", **SHORT).trials


# --- the score


def test_a_score_is_the_validation_auroc_of_an_ordinary_probe(search, tmp_path):
    """Of the same encoder, seed and recipe: pretrained by `pretrain`, judged by `downstream`."""
    with_test_splits(tmp_path)
    record = search(root=tmp_path, **SHORT)
    best = record.trials[0]
    [control] = record.controls
    lines = [f"{name}={json.dumps(value)}" for name, value in best.settings.items()]
    config = load_config("smoke", [*SETTINGS, *lines, "pretrain.epochs=1"], data_root=str(tmp_path))
    run = Run(search.store, "study", config)
    pretrain.run(run, method="byol", seed=7)
    for init, expected in (("byol-s7", best), ("random", control)):
        for name, score in expected.scores.items():
            judged = downstream.run(run, dataset=name, init=init, protocol="linear_probe", seed=7)
            assert judged["curves"][judged["best_epoch"] - 1]["val_auroc"] == score
        assert expected.mean == pytest.approx(np.mean(list(expected.scores.values())))
    assert best.gain == best.mean - control.mean


def test_each_network_has_its_control_and_the_better_trials_go_on(searched):
    record, store = searched
    assert [result.settings["network.stem"] for result in record.controls] == ["stock", "middle"]
    assert all(result.epochs == 0 and result.gain is None for result in record.controls)
    first, second = ([r for r in record.trials if r.epochs == epochs] for epochs in (1, 2))
    assert len(first) == 3  # two stems, and what the preset says of them and the crop
    assert [r.mean for r in first] == sorted((r.mean for r in first), reverse=True)
    assert {json.dumps(r.settings) for r in second} == {json.dumps(r.settings) for r in first[:2]}
    assert record.best == second[0].settings
    assert record.science["seed"] == 7
    assert TuneRecord.model_validate_json(store.read("runs/t/tune.json")) == record


def test_ranking_puts_what_failed_last():
    assert ranking([0.5, float("nan"), 0.7, 0.5]) == [2, 0, 3, 1]


# --- what is tried


def test_all_combinations_are_tried_and_the_presets_own_first():
    base = load_config("smoke")
    asked = SEARCH.model_copy(
        update={"settings": {"network.stem": ("stock", "middle"), "views.blur, views.flip": ([0.0, 0.5], [0.5, 0.0])}}
    )
    found = [each.settings for each in candidates(base, asked)]
    assert found == [
        {"network.stem": "stock", "views.blur": 0.5, "views.flip": 0.5},
        {"network.stem": "stock", "views.blur": 0.0, "views.flip": 0.5},
        {"network.stem": "stock", "views.blur": 0.5, "views.flip": 0.0},
        {"network.stem": "middle", "views.blur": 0.0, "views.flip": 0.5},
        {"network.stem": "middle", "views.blur": 0.5, "views.flip": 0.0},
    ]
    assert [each.config.views.blur for each in candidates(base, asked)] == [0.5, 0.0, 0.5, 0.0, 0.5]
    drawn = asked.model_copy(update={"trials": 2})
    few = [each.settings for each in candidates(base, drawn)]
    assert few[0] == found[0]
    assert len(few) == 3
    assert all(settings in found for settings in few)
    other = candidates(base, drawn.model_copy(update={"seed": 8}))
    assert few != [each.settings for each in other], "another seed draws others"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"views.blurr": (0.5,)}}, "unknown key 'blurr'; did you mean 'blur'"),
        ({"settings": {"views.blur": (0.5, 2.0)}, "trials": 1}, "views.blur: input should be less than or equal to 1"),
        ({"seed": 0}, "search.seed: 0 is a seed of the study"),
    ],
)
def test_what_cannot_be_tried_is_said_before_anything_is(search, changed, message):
    with pytest.raises(UsageError, match=message):
        search(**changed)
    assert list(search.store.list()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: smoke", "has no section search; give a file that has, see studies/tune-28.yaml"),
        ("rungs: [5, 5]", "rungs: each rung takes more epochs"),
        ("keep: 1", "keep: input should be greater than or equal to 2"),
        ("settings: {data.size: [28]}", "data.size is not one of network, pretrain, views or views_plus"),
        ("settings: {pretrain.epochs: [5]}", "pretrain.epochs is what the rungs say"),
        ("settings: {'views.blur, views.flip': [0.5]}", "need a list of 2 values, not 0.5"),
        ("settings: {views.blur: [0.5], 'views.blur, views.flip': [[0.5, 0.5]]}", "views.blur is there twice"),
        ("settings: {}", "settings: dictionary should have at least 1 item"),
        ("trails: 3", "unknown key trails; did you mean 'trials'"),
    ],
)
def test_a_wrong_search_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    whole = {"method": "byol", "seed": 1, "trials": None, "rungs": [1], "keep": 2, "settings": {"views.blur": [0.5]}}
    tree = yaml.safe_load(text)
    path.write_text(yaml.safe_dump(tree if "extends" in tree else {"extends": "smoke", "search": whole | tree}))
    with pytest.raises(UsageError, match=message):
        load_search(str(path))


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: smoke\nsearch: {method: byol}\n")
    with pytest.raises(UsageError, match=r"mine.yaml: search: seed is missing; see studies/tune-28.yaml"):
        load_search(str(path))
    assert load_config(str(path)).preset == "mine"  # to a study it is a preset like others


# --- stopped, repeated, grown


def test_a_search_that_was_stopped_goes_on_and_ends_the_same(search, searched, monkeypatch):
    expected, _ = searched
    original, steps = Trainer.advance, [0]

    def advance(self: Trainer) -> dict[str, float]:
        steps[0] += 1
        if steps[0] == 3:  # of the second trial the first
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(Interrupted, match="SIGTERM: stopped at step 1 of 2"):
            search(rungs=(1,))
    assert not search.store.exists("runs/t/tune.json")
    search.store.patience._deadline = None  # the signal's process would have ended
    record = search(rungs=(1,))

    def told(found: TuneRecord) -> list[Any]:
        results = (*found.controls, *found.trials)
        return [(r.run, r.settings, r.scores, r.gain) for r in results if r.epochs < 2]

    assert told(record) == told(expected)


def test_what_has_been_tried_is_not_tried_again(search, monkeypatch):
    first = search(**SHORT)
    trained = []
    original = pretrain.run
    monkeypatch.setattr(pretrain, "run", lambda run, **o: (trained.append(run.run_id), original(run, **o))[1])
    assert search(**SHORT).trials == first.trials
    assert trained == []
    grown = search(rungs=(1, 2), settings={"views.blur": (0.0, 0.5)})
    assert [r.epochs for r in grown.trials] == [1, 1, 2]
    assert set(trained) == {r.run for r in grown.trials} - {r.run for r in first.trials}
    assert len(trained) == 2
    with pytest.raises(UsageError, match=r"--run-id t: began from other settings \(config.views.flip: 0.5 -> 0"):
        search("views.flip=0.0", **SHORT)


def test_encoders_of_trials_are_dropped_and_their_curves_stay(searched):
    record, store = searched
    keys = list(store.list("runs/t"))
    assert not [key for key in keys if key.endswith((".safetensors", ".pt", ".png"))]
    for result in record.trials:
        assert {key for key in keys if key.startswith(f"runs/{result.run}/") and not key.endswith("claim.json")} == {
            f"runs/{result.run}/record.json", f"runs/{result.run}/pretrain/byol-s7/curves.jsonl",
        }  # fmt: skip


def test_a_trial_that_collapses_is_last_and_the_search_goes_on(search, monkeypatch):
    original = pretrain.run

    def collapsing(run: Run, **options: Any) -> Any:
        if run.config.network.stem == "middle":
            raise CollapseError("pretrain: the target's std fell")
        return original(run, **options)

    monkeypatch.setattr(pretrain, "run", collapsing)
    record = search(rungs=(1,))
    assert [result.failed for result in record.trials] == [None, None, "pretrain: the target's std fell"]
    assert "failed, pretrain: the target's std fell" in "\n".join(lines_of(record))
    with pytest.raises(CollapseError, match="no trial of 1 epochs could be judged; the first: failed, pretrain: the"):
        search("network.stem=middle", run_id="u", settings={"network.stem": ("middle",)}, rungs=(1,))


# --- what is said of it


def test_ls_tells_a_search(searched, tmp_path):
    _, store = searched
    [line] = list_store(store, None)
    assert re.fullmatch(r"runs/t: a search, 7 trials done, [\d.]+ \w+", line), line
    store = FolderStore(tmp_path)
    store.write("runs/u/trials/abc/record.json", b"{}")
    assert "runs/u: a search or ablation, 1 trial done, not at its end, " in next(list_store(store, "u"))


def result(epochs: int, mean: float, gain: float | None = None, **settings: Any) -> TrialResult:
    return TrialResult(
        run="t/trials/a", settings=settings, epochs=epochs, scores={"breastmnist": mean}, mean=mean, gain=gain
    )


def test_the_table_says_whether_pretraining_helped(searched):
    record, _ = searched
    better = record.model_copy(
        update={
            "controls": (result(0, 0.8, **{"network.stem": "stock"}),),
            "trials": (
                result(5, 0.9, 0.1, **{"network.stem": "stock", "views.crop_scale": [0.3, 0.9]}),
                result(5, 0.85, 0.05, **{"network.stem": "stock", "views.crop_scale": [0.3, 1.0]}),
            ),
            "best": {"network.stem": "stock", "views.crop_scale": [0.3, 0.9]},
        }
    )
    said = list(lines_of(better))
    assert said[1:5] == [
        "epochs  breastmnist    mean     gain  settings",
        "  none        0.800  0.8000",
        "     5        0.900  0.9000  +0.1000  views.crop_scale=[0.3, 0.9]",
        "     5        0.850  0.8500  +0.0500  views.crop_scale=[0.3, 1.0]",
    ]
    assert said[5].startswith("SYNTHETIC")
    assert "Best after 5 epochs: mean 0.9000, +0.1000 over its network without pretraining" in said[5]
    assert said[-1] == "--set network.stem=stock --set 'views.crop_scale=[0.3, 0.9]'"
    assert "has brought nothing" not in "\n".join(said)
    worse = better.model_copy(update={"trials": (result(5, 0.7, -0.1, **better.best),)})
    assert "Pretraining of so many epochs has brought nothing on these sets" in "\n".join(lines_of(worse))


def test_the_command_writes_a_preset_that_extends_the_searchs(call, tmp_path, data):
    path = tmp_path / "mine.yaml"
    asked = SEARCH.model_copy(update=SHORT | {"settings": {"views.crop_scale": ([0.3, 0.9],)}}).model_dump(mode="json")
    path.write_text(yaml.safe_dump({"extends": "smoke", "views": {"flip": 0.0}, "search": asked}))
    options = [word for line in SETTINGS for word in ("--set", line)]
    code, out, err = call(
        "tune", "--preset", path, "--store", tmp_path / "store", "--run-id", "t", "--data-root", data, *options,
        "--out", tmp_path / "out" / "best.yaml",
    )  # fmt: skip
    assert code == 0, err
    record = TuneRecord.model_validate_json((tmp_path / "store/runs/t/tune.json").read_bytes())
    best = load_config(str(tmp_path / "out" / "best.yaml"))
    assert list(best.views.crop_scale) == record.best["views.crop_scale"]
    assert best.views.flip == 0.0
    assert best.pretrain.epochs == load_config("smoke").pretrain.epochs
    assert out.splitlines()[-1] == str(tmp_path / "out" / "best.yaml")
    text = (tmp_path / "out" / "best.yaml").read_text()
    assert "seed 7" in text
    assert "SYNTHETIC" in text
    assert best_preset(record, "recommended", tmp_path / "x.yaml").splitlines()[2] == "extends: recommended"


def test_the_search_that_ships_is_sound():
    path = str(ROOT / "studies/tune-28.yaml")
    asked, config = load_search(path), load_config(path)
    tried = candidates(config, asked)
    assert 26 <= len(tried) <= 27
    assert asked.seed not in config.study.seeds
    assert len(candidates(config, asked.model_copy(update={"trials": None}))) in (288, 289)
    assert {each.config.network.stem for each in tried} == {"stock", "middle"}
    assert all(each.config.views.jitter_brightness == each.config.views.jitter_contrast for each in tried)
