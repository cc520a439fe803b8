"""Damaged inputs of every kind: each ends a command with its exit code and one line that says what is wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from app import cli
from app.config import identity, load_config
from app.data import write_phantoms
from app.jobs.checkpoint import dump_weights
from app.jobs.records import publish
from app.jobs.run import load_pretraining, open_run, planned_settings
from app.science.networks import Encoder
from app.stages.pretrain import science_of
from app.stages.weights import initial_weights
from app.storage import FolderStore, S3Store, open_store, sha256
from tests import small
from tests.checkpoints import save_checkpoint
from tests.servers import Weed

TINY = [
    "--preset", "smoke", "--set", "runtime.device=cpu", "--set", "runtime.threads=1", "--set", "data.phantoms=never",
    "--set", "data.subset=null", "--set", "pretrain.batch_size=16", "--set", "study.methods=[byol]",
    "--set", "study.datasets=[breastmnist]", "--set", "study.protocols=[linear_probe]",
    "--set", "network.projector_hidden=16", "--set", "network.predictor_hidden=16", "--set", "network.projection=8",
]  # fmt: skip
JOB = "runs/r/pretrain/byol-s0"


@dataclass
class Place:
    """A planned run with a finished pretraining, all of whose files a test may damage.

    Attributes:
        root: the folder of everything.
    """

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def rewrite(self, path: Path, data: bytes) -> Path:
        """Write a file anew; the originals are hard links to what other tests share."""
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def change(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        self.rewrite(path, change(path.read_bytes()))

    def npz(self, name: str = "breastmnist", drop: tuple[str, ...] = (), **arrays: Any) -> None:
        path = self.data / f"{name}.npz"
        with np.load(path) as old:
            new = {key: old[key] for key in old.files if key not in drop} | arrays
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **new)
        self.rewrite(path, buffer.getvalue())

    def json(self, key: str, change: Callable[[dict[str, Any]], Any]) -> None:
        path = self.store / key
        value = json.loads(path.read_text())
        changed = change(value)
        self.rewrite(path, json.dumps(value if changed is None else changed).encode())

    def begun(self, state: Any = None, *, steps: tuple[int, ...] = (3, 6)) -> list[Path]:
        """Turn the finished pretraining into one that has checkpoints; return their files, newest first."""
        science = json.loads((self.store / JOB / "record.json").read_text())["science"]
        shutil.rmtree(self.store / JOB)
        store = FolderStore(self.store)
        for step in steps:
            whole = {"identity": identity(science), "science": science} if state is None else state
            save_checkpoint(store, JOB, step, whole, keep=2)
        entries = json.loads((self.store / JOB / "latest.json").read_text())["checkpoints"]
        return [self.store / JOB / entry["key"] for entry in entries]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    names = ("chestmnist", "pneumoniamnist", "breastmnist")
    write_phantoms(root / "data", counts=dict.fromkeys(names, (32, 16, 16)))
    with pytest.MonkeyPatch.context() as patch:
        small.use(patch.setattr)
        patch.setattr(
            sys,
            "argv",
            ["app", "plan", "--store", f"{root}/store", "--run-id", "r", "--data-root", f"{root}/data", *TINY],
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        store = FolderStore(root / "store")
        run = open_run(store, "r", load_config("smoke", base=planned_settings(store, "r")))
        weights = initial_weights(run, "random")
        science = science_of(run.config, "byol", 0, load_pretraining(run), weights)
        files = {"encoder.safetensors": dump_weights(Encoder().plain_state(), {"architecture": "resnet18"})}
        publish(store, JOB, files, {"version": 1, "science": science, "identity": identity(science), "key": "byol-s0"})
    return root


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    small.use(monkeypatch.setattr)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
    shutil.copytree(original, tmp_path / "place", copy_function=os.link)
    # The plan names the folder of the original's data: these tests have their own.
    made = Place(tmp_path / "place")
    made.json("runs/r/experiment.json", lambda e: e["config"].update(data_root=str(made.data)))
    return made


@pytest.fixture
def call(call):
    def run(*args: str) -> tuple[int, str]:
        code, _, err = call(*args)
        return code, err

    return run


def plan(place: Place, *more: str) -> list[str]:
    return ["plan", "--store", f"{place.root}/other", "--data-root", str(place.data), *TINY, *more]


def plan_again(place: Place) -> list[str]:
    return ["plan", "--store", str(place.store), "--run-id", "r", "--data-root", str(place.data), *TINY]


def pretrain(place: Place, *more: str) -> list[str]:
    return ["pretrain", "--store", str(place.store), "--run-id", "r", "--method", "byol", *more]


def downstream(place: Place, init: str = "byol-s0") -> list[str]:
    options = ["--run-id", "r", "--dataset", "breastmnist", "--protocol", "linear_probe", "--init", init]
    return ["downstream", "--store", str(place.store), *options]


def ls(place: Place) -> list[str]:
    return ["ls", "--store", str(place.store), "--run-id", "r"]


def report(place: Place) -> list[str]:
    return ["report", "--store", str(place.store), "--run-id", "r"]


def with_preset(place: Place, text: str | bytes) -> list[str]:
    path = place.rewrite(place.root / "own.yaml", text if isinstance(text, bytes) else text.encode())
    return ["plan", "--store", f"{place.root}/other", "--preset", str(path)]


def with_weights(place: Place, data: bytes, name: str = "w.safetensors") -> list[str]:
    return downstream(place, str(place.rewrite(place.root / name, data)))


def own(place: Place, labels: Any, images: Any = None, task: str = "") -> list[str]:
    """A plan with an own labelled set of these labels in all splits."""
    labels = np.asarray(labels)
    images = np.zeros((len(labels), 28, 28), np.uint8) if images is None else images
    arrays = {f"{split}_labels": labels for split in ("train", "val", "test")}
    arrays |= {f"{split}_images": images for split in ("train", "val", "test")}
    np.savez(place.root / "own.npz", **arrays)
    return plan(place, "--data", f"own={place.root}/own.npz{task}", "--set", "study.datasets=[own]")


def unlabelled(place: Place, **arrays: Any) -> list[str]:
    np.savez(place.root / "scans.npz", **arrays)
    return plan(place, "--data", f"scans={place.root}/scans.npz", "--set", "data.pretrain=scans")


def folder_of(place: Place, **files: bytes) -> list[str]:
    (place.root / "scans").mkdir()
    for name, data in files.items():
        (place.root / "scans" / name.replace("_", ".")).write_bytes(data)
    return plan(place, "--data", f"scans={place.root}/scans", "--set", "data.pretrain=scans")


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/must-never-exist",))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def after(damage: Any, command: list[str]) -> list[str]:
    """The command, once the damage is done."""
    del damage
    return command


def damaged_npz(place: Place, change: Callable[[bytes], bytes]) -> list[str]:
    return after(place.change(place.data / "breastmnist.npz", change), plan(place))


def changed_npz(place: Place, **arrays: Any) -> list[str]:
    return after(place.npz(**arrays), plan(place))


def experiment(place: Place, change: Callable[[bytes], bytes], command: Callable[[Place], list[str]]) -> list[str]:
    return after(place.change(place.store / "runs/r/experiment.json", change), command(place))


def planned(place: Place, change: Callable[[Any], Any], command: Callable[[Place], list[str]]) -> list[str]:
    return after(place.json("runs/r/experiment.json", change), command(place))


def record(place: Place, change: Callable[[bytes], bytes], command: Callable[[Place], list[str]]) -> list[str]:
    return after(place.change(place.store / JOB / "record.json", change), command(place))


def recorded(place: Place, change: Callable[[Any], Any], command: Callable[[Place], list[str]]) -> list[str]:
    return after(place.json(f"{JOB}/record.json", change), command(place))


def encoder(place: Place, change: Callable[[bytes], bytes]) -> list[str]:
    return after(place.change(place.store / JOB / "encoder.safetensors", change), downstream(place))


def checkpoints(place: Place, change: Callable[[bytes], bytes]) -> list[str]:
    return after([place.change(path, change) for path in place.begun()], pretrain(place))


def latest(place: Place, data: bytes) -> list[str]:
    place.begun()
    return after(place.rewrite(place.store / JOB / "latest.json", data), pretrain(place))


def entry_with(place: Place, **changes: Any) -> list[str]:
    place.begun(steps=(3,))
    return after(
        place.json(f"{JOB}/latest.json", lambda value: value["checkpoints"][0].update(changes)), pretrain(place)
    )


def claim(place: Place, data: bytes) -> list[str]:
    place.begun()
    return after(place.rewrite(place.store / JOB / "claim.json", data), pretrain(place))


def unfit(place: Place, **state: Any) -> list[str]:
    science = json.loads((place.store / JOB / "record.json").read_text())["science"]
    place.begun({"identity": identity(science), "science": science} | state)
    return pretrain(place)


def swapped(tree: dict[str, Any], *path: str, value: Any) -> None:
    for name in path[:-1]:
        tree = tree[name]
    tree[path[-1]] = value


GRAY = np.zeros((32, 28, 28), np.uint8)
PLAIN = {"a": torch.zeros(2)}

# name: (what to do and run, exit code, part of the message)
CASES: dict[str, tuple[Callable[[Place], list[str]], int, str]] = {
    # data sets
    "npz: empty": (lambda p: damaged_npz(p, lambda _: b""), 66, "truncated, damaged or no .npz"),
    "npz: a web page": (lambda p: damaged_npz(p, lambda _: b"<html>404</html>"), 66, "truncated, damaged or no .npz"),
    "npz: half": (lambda p: damaged_npz(p, half), 66, "truncated, damaged or no .npz"),
    "npz: one bit": (lambda p: damaged_npz(p, flip), 66, "truncated, damaged or no .npz"),
    "npz: no labels": (lambda p: changed_npz(p, drop=("train_labels",)), 66, "has no array 'train_labels'"),
    "npz: no test images": (lambda p: changed_npz(p, drop=("test_images",)), 66, "has no array 'test_images'"),
    "npz: pickled labels": (
        lambda p: changed_npz(p, train_labels=np.array([[None]] * 32, object)), 66, "pickled Python objects",
    ),
    "npz: float images": (lambda p: changed_npz(p, train_images=GRAY / 2.0), 66, "save it as uint8"),
    "npz: flat images": (lambda p: changed_npz(p, train_images=GRAY[:, 0]), 66, "save it as (N, H, W)"),
    "npz: another size": (lambda p: changed_npz(p, val_images=GRAY[:16, :20, :20]), 66, "is 20x20, but size 28"),
    "npz: more images than labels": (lambda p: changed_npz(p, val_images=GRAY), 66, "they must match one to one"),
    "npz: unknown class": (lambda p: changed_npz(p, test_labels=np.full((16, 1), 7)), 66, "test_labels holds 7"),
    "npz: negative class": (lambda p: changed_npz(p, val_labels=np.full((16, 1), -1)), 66, "val_labels holds -1"),
    "npz: empty split": (
        lambda p: changed_npz(p, val_images=GRAY[:0], val_labels=np.zeros((0, 1), int)), 66, "val_images is empty",
    ),
    "npz: colour in a gray set": (
        lambda p: changed_npz(p, **{f"{s}_images": np.zeros((n, 28, 28, 3), np.uint8)
                                    for s, n in (("train", 32), ("val", 16), ("test", 16))}),
        66, "has 3-channel images",
    ),
    "npz: splits differ": (
        lambda p: changed_npz(p, val_images=np.zeros((16, 28, 28, 3), np.uint8)), 66, "differs from",
    ),
    "npz: labels are no numbers": (lambda p: changed_npz(p, val_labels=np.full((16, 1), 0.5)), 66, "as whole numbers"),
    "npz: labels in a cube": (
        lambda p: changed_npz(p, val_labels=np.zeros((16, 1, 1), int)), 66, "save it as (N,) or (N, L)",
    ),
    "own: gone": (
        lambda p: plan(p, "--data", "own=/nowhere/own.npz", "--set", "study.datasets=[own]"), 66, "no such file",
    ),
    "own: no task to tell": (lambda p: own(p, [[0], [5], [9]] * 8), 66, "cannot be told from train_labels"),
    "own: one class": (lambda p: own(p, [[0]] * 24, task=":multi-class"), 66, "has a single class"),
    "own: unknown task": (lambda p: own(p, [[0], [1]] * 8, task=":ternary"), 2, "ternary"),
    "own: elsewhere": (
        lambda p: plan(p, "--data", "own=http://x/own.npz", "--set", "study.datasets=[own]"), 2, "file:// URI",
    ),
    "unlabelled: no images": (lambda p: unlabelled(p, scans=GRAY), 66, "has no 'images' or 'train_images'"),
    "unlabelled: float": (lambda p: unlabelled(p, images=GRAY / 2.0), 66, "save it as uint8"),
    "unlabelled: none": (lambda p: unlabelled(p, images=GRAY[:0]), 66, "images is empty"),
    "folder: empty": (lambda p: folder_of(p), 66, "scans"),
    "folder: text as PNG": (lambda p: folder_of(p, a_png=b"hello"), 66, "a.png"),
    "folder: half a PNG": (lambda p: folder_of(p, a_png=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), 66, "a.png"),
    # configuration
    "preset: not YAML": (lambda p: with_preset(p, "study: [1"), 2, "not valid YAML"),
    "preset: a key twice": (lambda p: with_preset(p, "extends: smoke\nextends: demo\n"), 2, "appears twice"),
    "preset: empty": (lambda p: with_preset(p, ""), 2, "not a mapping"),
    "preset: a list": (lambda p: with_preset(p, "- a\n"), 2, "not a mapping"),
    "preset: not text": (lambda p: with_preset(p, b"\xff\xfe\x00\x01"), 2, "not text"),
    "preset: unknown key": (
        lambda p: with_preset(p, "extends: smoke\npretrain: {epoch: 3}\n"), 2, "did you mean 'epochs'",
    ),
    "preset: wrong kind": (
        lambda p: with_preset(p, "extends: smoke\npretrain: {epochs: many}\n"), 2, "pretrain.epochs",
    ),
    "preset: not a number": (
        lambda p: with_preset(p, "extends: smoke\npretrain: {learning_rate: .nan}\n"), 2, "pretrain.learning_rate",
    ),
    "preset: out of range": (lambda p: with_preset(p, "extends: smoke\nviews: {flip: 1.5}\n"), 2, "views.flip"),
    "preset: a range backwards": (
        lambda p: with_preset(p, "extends: smoke\nviews: {blur_sigma: [2.0, 1.0]}\n"), 2, "blur_sigma",
    ),
    "preset: no seeds": (lambda p: with_preset(p, "extends: smoke\nstudy: {seeds: []}\n"), 2, "study.seeds"),
    "preset: extends nothing known": (lambda p: with_preset(p, "extends: smok\n"), 2, "did you mean 'smoke'"),
    "preset: a section missing": (lambda p: with_preset(p, "study: {}\n"), 2, "is missing"),
    # the plan
    "plan: not JSON": (lambda p: experiment(p, half, pretrain), 66, "experiment.json: damaged, not JSON"),
    "plan: empty": (lambda p: experiment(p, lambda _: b"", ls), 66, "experiment.json: damaged, not JSON"),
    "plan: bytes": (lambda p: experiment(p, lambda _: b"\xff\xfe", downstream), 66, "experiment.json: damaged"),
    "plan: a list": (lambda p: experiment(p, lambda _: b"[]", pretrain), 66, "not a JSON object"),
    "plan: without settings": (lambda p: planned(p, lambda e: {"version": 1}, pretrain), 66, "has no settings"),
    "plan: a setting of another kind": (
        lambda p: planned(p, lambda e: swapped(e, "config", "pretrain", "epochs", value="x"), pretrain), 2,
        "pretrain.epochs",
    ),
    "plan: an unknown setting": (
        lambda p: planned(p, lambda e: swapped(e, "config", "pretrain", "epoch", value=1), pretrain), 2,
        "unknown key pretrain.epoch",
    ),
    "plan: without jobs": (lambda p: planned(p, lambda e: e.pop("plan") and None, ls), 66, "has no plan"),
    "plan: report of a damaged one": (lambda p: experiment(p, half, report), 66, "experiment.json"),
    "plan: planned again, without science": (
        lambda p: planned(p, lambda e: e.pop("science") and None, plan_again), 66, "not a plan",
    ),
    "plan: planned again, other data": (
        lambda p: after(p.npz(train_images=GRAY), plan_again(p)), 2, "names another experiment",
    ),
    # records and encoders
    "record: half": (lambda p: record(p, half, pretrain), 66, "record.json: damaged, not JSON"),
    "record: empty object": (lambda p: record(p, lambda _: b"{}", pretrain), 66, "record.json: damaged, not a record"),
    "record: files of no kind": (
        lambda p: recorded(p, lambda r: r.update(files=[1]), pretrain), 66, "record.json: damaged, not a record",
    ),
    "record: another experiment": (
        lambda p: recorded(p, lambda r: swapped(r, "science", "seed", value=9), pretrain), 2, "seed: 9 -> 0",
    ),
    "needs: record half": (lambda p: record(p, half, downstream), 66, "record.json: damaged, not JSON"),
    "needs: record without files": (
        lambda p: recorded(p, lambda r: r.pop("files") and None, downstream), 66, "record.json: damaged, not a record",
    ),
    "needs: record names no encoder": (
        lambda p: recorded(p, lambda r: r.update(files={}), downstream), 66, "names no encoder",
    ),
    "needs: not done": (
        lambda p: after((p.store / JOB / "record.json").unlink(), downstream(p)), 66, "no finished pretraining",
    ),
    "encoder: gone": (
        lambda p: after((p.store / JOB / "encoder.safetensors").unlink(), downstream(p)), 66, "there is no such object",
    ),
    "encoder: half": (lambda p: encoder(p, half), 66, "its SHA-256 is not the recorded one"),
    "encoder: one bit": (lambda p: encoder(p, flip), 66, "its SHA-256 is not the recorded one"),
    "encoder: empty": (lambda p: encoder(p, lambda _: b""), 66, "its SHA-256 is not the recorded one"),
    # files of weights
    "weights: gone": (lambda p: downstream(p, "/nowhere/w.pt"), 66, "no such file or object"),
    "weights: gone from here": (lambda p: downstream(p, "./w.pt"), 66, "no such file or object"),
    "weights: gone from above": (lambda p: downstream(p, "../../w.pt"), 66, "no such file or object"),
    "weights: gone from home": (lambda p: downstream(p, "~/nowhere/w.pt"), 66, "no such file or object"),
    "weights: gone, by its URI": (lambda p: downstream(p, "file:///nowhere/w.pt"), 66, "no such file or object"),
    "weights: inside a file": (lambda p: downstream(p, f"{p.data}/breastmnist.npz/w.pt"), 66, "no such file or object"),
    "weights: no key of the store": (lambda p: downstream(p, "a/b.pt"), 66, "no such file or object"),
    "weights: a folder": (lambda p: downstream(p, str(p.root)), 66, "is a folder, but a file is needed"),
    "weights: empty": (lambda p: with_weights(p, b""), 66, "not a readable safetensors file"),
    "weights: a web page": (lambda p: with_weights(p, b"<html>" * 99), 66, "not a readable safetensors file"),
    "weights: half": (
        lambda p: with_weights(p, half(safetensors.torch.save(PLAIN))), 66, "not a readable safetensors file",
    ),
    "weights: half a torch file": (lambda p: with_weights(p, half(saved(PLAIN))), 66, "not a readable state dict"),
    "weights: a pickle with code": (lambda p: with_weights(p, saved({"a": Evil()})), 66, "not a readable state dict"),
    "weights: a bare pickle": (lambda p: with_weights(p, pickle.dumps(Evil())), 66, "not a readable"),
    "weights: a list": (lambda p: with_weights(p, saved([1, 2])), 66, "holds no plain state dict"),
    "weights: another network": (
        lambda p: with_weights(p, safetensors.torch.save(PLAIN)), 66, "not a resnet18 with the stock stem",
    ),
    "weights: another stem": (
        lambda p: with_weights(p, safetensors.torch.save(PLAIN, {"stem": "cifar"})), 66, "was trained with stem cifar",
    ),
    # checkpoints and claims
    "checkpoints: all half": (lambda p: checkpoints(p, half), 66, "every checkpoint it names is damaged"),
    "checkpoints: all one bit": (lambda p: checkpoints(p, flip), 66, "every checkpoint it names is damaged"),
    "checkpoints: all gone": (
        lambda p: after([path.unlink() for path in p.begun()], pretrain(p)), 66, "every checkpoint it names is damaged",
    ),
    "checkpoints: code": (
        lambda p: after(p.begun({"a": Evil()}), pretrain(p)), 66, "every checkpoint it names is damaged",
    ),
    "checkpoints: a list": (lambda p: after(p.begun([1]), pretrain(p)), 66, "every checkpoint it names is damaged"),
    "checkpoint: of another experiment": (
        lambda p: after(p.begun({"identity": "0", "science": {"seed": 9}}), pretrain(p)), 2,
        "checkpoint of another experiment",
    ),
    "checkpoint: says nothing of itself": (
        lambda p: after(p.begun({"step": 1}), pretrain(p)), 2, "checkpoint of another experiment",
    ),
    "checkpoint: lacks the model": (lambda p: unfit(p), 66, "does not fit this version"),
    "checkpoint: another model": (lambda p: unfit(p, model={"x": torch.zeros(1)}), 66, "does not fit this version"),
    "pointer: not JSON": (lambda p: latest(p, b"{"), 66, "latest.json: damaged, not JSON"),
    "pointer: a list": (lambda p: latest(p, b"[]"), 66, "latest.json: damaged"),
    "pointer: names none": (lambda p: latest(p, b"{}"), 66, "latest.json: damaged, not a list of checkpoints"),
    "pointer: a step that is none": (lambda p: entry_with(p, step="three"), 66, "latest.json: damaged"),
    "pointer: a generation that is none": (
        lambda p: latest(p, b'{"version": 1, "generation": "x", "checkpoints": []}'), 66, "latest.json: damaged",
    ),
    "pointer: leads out of the store": (
        lambda p: entry_with(p, key="../../../../../../etc/passwd"), 2, "not a plain relative path",
    ),
    "claim: not JSON": (lambda p: claim(p, b"mine"), 66, "claim.json: damaged, not a claim"),
    "claim: names nobody": (
        lambda p: claim(p, b'{"generation": 1, "owner": {"pid": 3}, "expires_after_seconds": 30}'), 66,
        "claim.json: damaged, not a claim",
    ),
    # names from outside
    "name: leaves the store": (
        lambda p: ["ls", "--store", str(p.store), "--run-id", "../../etc"], 66, "has no such run",
    ),
    "name: leaves the store, to write": (
        lambda p: ["pretrain", "--store", str(p.store), "--run-id", "../x", "--method", "byol"], 2,
        "not a plain relative path",
    ),
    "name: empty": (
        lambda p: ["pretrain", "--store", str(p.store), "--run-id", "", "--method", "byol"], 2,
        "cannot be a run's name",
    ),
    "name: a line break": (
        lambda p: ["report", "--store", str(p.store), "--run-id", "a\nb"], 66, "--run-id a b: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_damage_is_one_line_with_its_exit_code(place: Place, call, name: str) -> None:
    make, expected, message = CASES[name]
    args = make(place)
    code, err = call(*args)
    errors = [line for line in err.splitlines() if not line.startswith("{")]
    assert code == expected, err
    assert len(errors) == 1, err
    assert message in errors[0]
    assert errors[0].startswith("error: ")
    assert re.search(r"; |did you mean|should|must|give", errors[0]), "what to do about it, or what is wanted instead"
    assert "Traceback" not in err
    assert not Path("/tmp/must-never-exist").exists()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


def rot(store: S3Store, key: str) -> None:
    """Change an object behind its checksum's back."""
    data = store.read(key)
    store._client.put_object(
        Bucket=store.bucket, Key=store.prefix + key, Body=flip(data), Metadata={"sha256": sha256(data)}
    )


@pytest.mark.s3
@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("runs/r/experiment.json", pretrain),
        ("runs/r/experiment.json", ls),
        ("runs/r/experiment.json", report),
        (f"{JOB}/record.json", pretrain),
        (f"{JOB}/encoder.safetensors", downstream),
    ],
)
def test_rotten_objects(place: Place, call, s3_environment: Weed, key: str, command: Any) -> None:
    uri = f"s3://{s3_environment.bucket}/{secrets.token_hex(4)}"
    store = open_store(uri)
    assert isinstance(store, S3Store)
    for each in FolderStore(place.store).list():
        store.write(each, (place.store / each).read_bytes())
    rot(store, key)
    code, err = call(*[uri if word == str(place.store) else word for word in command(place)])
    assert code == 66, err
    assert f"{key}: damaged, its SHA-256" in err
    assert "Traceback" not in err
