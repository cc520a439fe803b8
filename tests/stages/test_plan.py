"""Planning: what a run is called, what it takes from a plan that is there, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.config import load_config
from app.data import load_dataset
from app.errors import UsageError
from app.jobs import keys
from app.jobs.run import Run, check_run_id
from app.options import Asked
from app.science.power import Variances
from app.stages import fallback
from app.stages.plan import default_run_id
from app.stages.power import expected, power_lines
from app.stages.samples import show_data
from app.storage import FolderStore

Call = Callable[..., tuple[int, str, str]]
SMALL = ["--set", "data.subset=64", "--set", "data.phantoms=never", "--set", "study.datasets=[breastmnist]"]


@pytest.fixture
def phantoms(default_phantoms: Path) -> Path:
    return default_phantoms


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """As everywhere, in a folder of the test's own, without the lines of progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)

    def run(*args: str | Path) -> tuple[int, str, str]:
        code, out, err = call(*args)
        return code, out, "\n".join(line for line in err.splitlines() if not line.startswith("{"))

    return run


def experiment(run_id: str, store: str = "runs") -> dict:
    return json.loads(Path(store, "runs", run_id, "experiment.json").read_text())


# --- names ------------------------------------------------------------------------------------------

NAMES = [
    "a/b",
    "a\\b",
    "../a",
    ".",
    "a b",
    "A",
    "ä",
    "a_b",
    "-a",
    "a-",
    "a.",
    "a..b",
    "a\n",
    "a\0",
    "x" * 64,
    "a:b",
    "%41",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_a_key_or_kubernetes_cannot_have_is_refused_when_it_is_made(call, phantoms, name):
    with pytest.raises(UsageError, match="cannot be a run's name"):
        check_run_id(name)
    own = ["--data", f"scans={phantoms}/chestmnist.npz"]
    for command in (
        ["plan", "--preset", "smoke", "--data-root", phantoms, *SMALL],
        ["run", "--preset", "smoke", "--data-root", phantoms, *SMALL],
        ["pretrain", "--method", "byol", *own],
        ["downstream", "--dataset", "d", "--protocol", "finetune", "--init", "random", *own],
    ):
        code, out, err = call(*command, f"--run-id={name}", "--store", "runs")
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert not Path("runs").exists()


@pytest.mark.parametrize("preset", ["smoke", "My study (2)", "ÄÖ", "x" * 99, "a_b-", "-"])
def test_a_default_name_is_one_that_can_be_made(preset):
    name = default_run_id(preset, {"a": 1})
    assert check_run_id(name) == name
    assert name != default_run_id(preset, {"a": 2})


@pytest.mark.parametrize("name", ["a/b", "../b", "A", "a-b", "", "ä"])
def test_a_data_set_whose_name_cannot_be_part_of_a_key_is_refused(call, phantoms, tmp_path, name):
    """Given by ``--set``, or by a preset, which says where it is."""
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: smoke\ndata: {{phantoms: never}}\nsources: {{{name!r}: {phantoms}/breastmnist.npz}}\n")
    for option in (f"--set=study.datasets=[{name!r}]", f"--set=data.pretrain={name!r}", f"--preset={own}"):
        code, _, err = call("plan", "--store", "runs", "--data-root", phantoms, *SMALL, option)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert "should match pattern" in err


# --- a plan that is there ---------------------------------------------------------------------------


def test_a_planned_run_is_planned_again_from_its_own_settings(call, phantoms, tmp_path):
    """Preset, settings, sources and folders are the run's: only its name has to be said."""
    np.savez(tmp_path / "scans.npz", images=np.load(phantoms / "chestmnist.npz")["train_images"], synthetic=True)
    settings = ["--preset", "smoke", *SMALL, "--set", "data.pretrain=scans", "--set", "pretrain.epochs=3"]
    places = ["--data", f"scans={tmp_path}/scans.npz", "--data-root", phantoms]
    assert call("plan", "--store", "runs", "--run-id", "r", *settings, *places)[:2] == (0, "r\n")
    first = experiment("r")
    assert call("plan", "--store", "runs", "--run-id", "r")[:2] == (0, "r\n")
    assert call("plan", "--store", "runs", "--run-id", "r", *settings)[:2] == (0, "r\n"), "the plan knows the places"
    assert experiment("r") == first
    assert call("plan", "--store", "runs", "--run-id", "r", "--overwrite")[:2] == (0, "r\n")
    again = experiment("r")
    assert {**again, "created": ""} == {**first, "created": ""}
    assert call("plan", "--store", "runs", "--run-id", "r", "--overwrite", "--preset", "smoke", *SMALL, *places)[0] == 0
    assert experiment("r")["config"]["pretrain"]["epochs"] == 2, "another preset, since it was named"


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_name_that_is_taken_is_refused_before_anything_is_fetched(call, phantoms, monkeypatch, command):
    call("plan", "--store", "runs", "--run-id", "r", "--preset", "smoke", *SMALL, "--data-root", phantoms)
    before = experiment("r")
    monkeypatch.setattr(fallback, "fetch", lambda *_, **__: pytest.fail("it downloads"))
    monkeypatch.setattr(fallback, "write_phantoms", lambda *_, **__: pytest.fail("it draws"))
    others = (
        ["--preset", "demo"],
        ["--set", "pretrain.epochs=9"],
        ["--preset", "smoke", "--set", "data.phantoms=always"],
    )
    for other in others:
        code, out, err = call(command, "--store", "runs", "--run-id", "r", *other)
        assert (code, out) == (2, ""), err
        assert "--run-id r: was planned with other settings" in err
    assert experiment("r") == before


def test_a_damaged_plan_can_be_overwritten(call, phantoms):
    options = ["plan", "--store", "runs", "--run-id", "r", "--data-root", phantoms, "--preset", "smoke", *SMALL]
    assert call(*options)[0] == 0
    whole = experiment("r")
    for damage in ("", "[]", '{"version": 1}', "{"):
        Path("runs/runs/r/experiment.json").write_text(damage)
        assert call(*options)[0] == 66
        assert call(*options, "--overwrite")[0] == 0
        assert experiment("r")["science"] == whole["science"]


# --- what to pretrain on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "derma"),
        (["pretrain.epochs=1"], "derma"),
        (["data.pretrain=chestmnist"], "chestmnist"),
        (["pretrain.epochs=1\ndata.pretrain=chestmnist\n"], "chestmnist"),
        (["\n  data.pretrain=chestmnist", "pretrain.epochs=1"], "chestmnist"),
        (["data.pretrain_split=train"], "derma"),
    ],
)
def test_one_own_source_is_pretrained_on_unless_anything_else_is_said(overrides, expected):
    asked = Asked(preset="smoke", overrides=overrides, sources=["derma=d.npz"])
    config = asked.config(asked.pretraining_source())
    assert config.data.pretrain == expected
    assert config.sources == {"derma": "d.npz"}


def test_a_presets_own_source_is_pretrained_on(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: smoke\ndata: {pretrain: chest}\nsources: {chest: c.npz}\n")
    asked = Asked(preset=str(own), sources=["derma=d.npz"])
    assert asked.config(asked.pretraining_source()).data.pretrain == "chest"


# --- images that are pretrained on and tested on ----------------------------------------------------


def planned(call: Call, phantoms: Path, *more: str | Path) -> tuple[int, str, str]:
    options = ["--preset", "smoke", *SMALL, "--data-root", phantoms, "--set", "data.subset=null"]
    return call("plan", "--store", "runs", "--run-id", "r", *options, *more)


def test_a_set_that_is_pretrained_on_and_evaluated_keeps_its_description(call, phantoms):
    assert planned(call, phantoms)[0] == 0
    alone = experiment("r")["data"]["breastmnist"]
    sheet = Path("runs/runs/r/samples/breastmnist.png").read_bytes()
    assert planned(call, phantoms, "--overwrite", "--set", "data.pretrain=breastmnist")[0] == 0
    plan = experiment("r")
    both = plan["data"]["breastmnist"]
    images = sum(alone["splits"].values())
    assert both == alone | {"role": "both", "unlabelled": {"all": images}}
    assert both["class_counts"]["test"]
    assert Path("runs/runs/r/samples/breastmnist.png").read_bytes() == sheet, "a row for each class"
    test = alone["splits"]["test"]
    assert plan["overlap"] == {
        "pretraining": "breastmnist", "split": "all", "images": images,
        "test": {"breastmnist": {"images": test, "shared": test, "near": None}},
    }  # fmt: skip


@pytest.fixture
def copies(phantoms: Path, tmp_path: Path) -> Path:
    """Other images, and five test images of BreastMNIST, under a name that does not tell."""
    with np.load(phantoms / "breastmnist.npz") as breast, np.load(phantoms / "pneumoniamnist.npz") as other:
        images = np.concatenate([other["train_images"][:200], breast["test_images"][3:8]])
    np.savez(tmp_path / "scans.npz", images=images, synthetic=True)
    return tmp_path / "scans.npz"


def test_shared_images_are_said_in_plan_and_on_the_terminal(call, phantoms, copies, monkeypatch, capsys):
    said = []
    monkeypatch.setattr("app.progress.Progress.say", lambda _, message, **__: said.append(message))
    assert planned(call, phantoms, "--data", f"scans={copies}", "--set", "data.pretrain=scans")[0] == 0
    [warning] = [line for line in said if "WARNING" in line]
    assert "5 of 156 test images of BreastMNIST (SYNTHETIC) are among the images of pretraining, scans" in warning
    assert experiment("r")["overlap"]["test"] == {"breastmnist": {"images": 156, "shared": 5, "near": None}}
    said.clear()
    assert planned(call, phantoms, "--data", f"scans={copies}", "--set", "data.pretrain=scans")[0] == 0
    assert warning in said, "each time that it is planned"
    said.clear()
    assert planned(call, phantoms, "--overwrite")[0] == 0
    assert [line for line in said if "WARNING" in line] == []
    assert experiment("r")["overlap"]["test"] == {"breastmnist": {"images": 156, "shared": 0, "near": None}}


def test_own_images_are_looked_through_for_similar_ones(call, tmp_path, monkeypatch):
    """--unlabelled and --labelled name and size everything, and one line says what will happen before anything does."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 200, (6, 6), dtype=np.uint8)) for _ in range(60)]
    pictures = np.stack([np.asarray(each.resize((28, 28), Image.Resampling.BICUBIC)) for each in coarse])
    splits = {
        f"{name}_images": pictures[begin : begin + 20] for name, begin in (("train", 0), ("val", 20), ("test", 40))
    }
    labels = {f"{name}_labels": np.arange(20)[:, None] % 2 for name in ("train", "val", "test")}
    np.savez(tmp_path / "My lesions.npz", **splits, **labels)
    (tmp_path / "scans").mkdir()
    for number, pixels in enumerate([*pictures[:30], pictures[41], pictures[42] + 9, pictures[43] // 2 + 40]):
        Image.fromarray(pixels).resize((84, 84), Image.Resampling.NEAREST).save(tmp_path / f"scans/{number:02d}.png")
    said = []
    monkeypatch.setattr("app.progress.Progress.say", lambda _, message, **__: said.append(message))
    own = ["--unlabelled", "scans/", "--labelled", "My lesions.npz", "--size", "28", "--preset", "smoke"]
    code, _, errors = call("plan", "--run-id", "r", "--set", "data.subset=null", *own)
    assert (code, errors) == (0, "")
    plan = experiment("r")
    assert (plan["config"]["study"]["datasets"], plan["config"]["data"]["pretrain"]) == (["my_lesions"], "scans")
    assert plan["monitor"] == "my_lesions"
    assert "scans: 33 images, 84 px, resized to 28 px; pretrained on" in said
    assert "my_lesions: 20 train, 20 val, 20 test images of 28 px, 2 classes; judged on" in said
    found = plan["overlap"]["test"]["my_lesions"]
    assert (found["images"], found["shared"] + found["near"]) == (20, 3)
    assert any("WARNING" in line and "nearly the same" in line for line in said)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_two_ways_of_making_squares_in_one_study_are_said(call, tmp_path, monkeypatch, fit):
    rng = np.random.default_rng(1)
    for number in range(40):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(folder / f"{number}.png")
    assert call("data", "import", "set", "lesions.npz", "--size", "28", "--fit", "crop")[0] == 0
    said = []
    monkeypatch.setattr("app.progress.Progress.say", lambda _, message, **__: said.append(message))
    own = ["--unlabelled", "set", "--labelled", "lesions.npz", "--size", "28", "--preset", "smoke", "--run-id", "r"]
    assert call("plan", *own, "--set", f"reading.fit={fit}")[0] == 0
    warned = [line for line in said if "lesions was imported with --fit crop, but set is read with" in line]
    assert len(warned) == (fit == "pad")


def test_a_run_grows_by_another_own_set(call, tmp_path):
    """What its encoders were watched by stays: that would make another experiment of it."""
    rng = np.random.default_rng(2)
    for name in ("first", "second"):
        arrays = {f"{split}_images": rng.integers(0, 256, (20, 28, 28), np.uint8) for split in ("train", "val", "test")}
        labels = {f"{split}_labels": np.arange(20)[:, None] % 2 for split in ("train", "val", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
    np.savez(tmp_path / "scans.npz", images=rng.integers(0, 256, (30, 28, 28), np.uint8))
    own = ["--unlabelled", "scans.npz", "--labelled", "first.npz", "--preset", "smoke", "--set", "data.subset=null"]
    assert call("plan", "--run-id", "r", *own)[0] == 0
    code, _, err = call("plan", "--run-id", "r", "--labelled", "second.npz")
    assert code == 0, err
    plan = experiment("r")
    assert plan["config"]["study"]["datasets"] == ["first", "second"]
    assert (plan["monitor"], plan["config"]["data"]["pretrain"]) == ("first", "scans")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_strict_overlap_refuses(call, phantoms, copies, command):
    options = ["--store", "runs", "--run-id", "r", "--preset", "smoke", *SMALL, "--data-root", phantoms]
    options += ["--set", "data.subset=null", "--strict-overlap"]
    for own, remedy in (
        (["--set", "data.pretrain=scans", "--data", f"scans={copies}"], f"take them out of {copies}"),
        (["--set", "data.pretrain=breastmnist"], "use --set data.pretrain_split=train"),
    ):
        code, out, err = call(command, *options, *own)
        assert (code, out, len(err.splitlines())) == (66, "", 1), err
        assert "--strict-overlap: " in err
        assert err.endswith(remedy)
        assert not Path("runs/runs").exists()
    assert call("plan", *options, "--set", "data.pretrain=breastmnist", "--set", "data.pretrain_split=train")[0] == 0
    assert experiment("r")["data"]["breastmnist"]["unlabelled"] == {"train": 400}


# --- few shots of a small class ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocols", "ks", "named"),
    [
        ("[few_shot]", {"few_shot": 500}, ["few_shot"]),
        ("[few_shot_frozen]", {"few_shot_frozen": 500}, ["few_shot_frozen"]),
        ("[few_shot,few_shot_frozen]", {"few_shot": 1, "few_shot_frozen": 400}, ["few_shot_frozen"]),
        ("[few_shot_frozen,few_shot]", {"few_shot": 300, "few_shot_frozen": 500}, ["few_shot_frozen", "few_shot"]),
    ],
)
def test_the_hint_for_too_many_shots_is_enough(call, phantoms, protocols, ks, named):
    """It names each setting that asks for too many, and a value that fits every data set."""
    options = ["plan", "--store", "runs", "--preset", "smoke", "--data-root", phantoms, "--set", "data.phantoms=never"]
    options += ["--set", f"study.protocols={protocols}", "--set", "study.datasets=[pneumoniamnist,breastmnist]"]
    for protocol, k in ks.items():
        options += ["--set", f"protocols.{protocol}.k={k}"]
    code, out, err = call(*options)
    assert (code, out) == (2, ""), err
    assert f"k={max(ks.values())} is larger than class" in err
    hint = re.findall(r"--set protocols\.(\w+)\.k=(\d+)", err)
    assert [protocol for protocol, _ in hint] == named
    fitting = [f"--set=protocols.{protocol}.k={k}" for protocol, k in hint]
    assert call(*options, *fitting)[0] == 0
    more = [f"--set=protocols.{protocol}.k={int(k) + 1}" for protocol, k in hint]
    assert call(*options, *more)[0] == 2


# --- what a study will be able to tell --------------------------------------------------------------


def test_what_can_be_settled_is_said_for_each_test_set(call, phantoms, monkeypatch):
    said = []
    monkeypatch.setattr("app.progress.Progress.say", lambda _, message, **__: said.append(message))
    more = ["--set", "study.datasets=[breastmnist,pneumoniamnist]"]
    assert planned(call, phantoms, *more, "--set", "study.seeds=[0,1,2]")[0] == 0
    lines = [line for line in said if "settled" in line]
    assert lines[0].startswith("BreastMNIST (SYNTHETIC), 156 test images, 3 seeds: differences in AUROC under 0.")
    limits = [float(re.search(r"under ([\d.]+) cannot be expected to be settled", line)[1]) for line in lines]
    assert [line.rsplit(": ", 1)[1] for line in lines[:2]] == ["finetune, linear_probe", "few_shot, few_shot_frozen"]
    for line in lines:  # random, and each of BYOL and BYOL+ against it and each other: by 2 sets and 4 protocols
        found = re.search(r"settled, ([\d.]+) is .* for (\d+) comparisons: ([\d.]+)", line)
        alone, count, corrected = found.groups()
        assert count == "24"
        assert float(corrected) > 1.5 * float(alone), "three seeds ask for much more"
    assert 0.05 < limits[0] < 0.09
    assert max(limits[:2]) > min(limits[2:]), "more test images tell smaller differences apart"
    said.clear()
    assert planned(call, phantoms, "--overwrite", "--set", "study.seeds=[0]")[0] == 0
    assert [line for line in said if "one seed cannot say how another would end" in line]


def test_points_of_the_label_curve_without_labels_are_named(call, phantoms, monkeypatch):
    said = []
    monkeypatch.setattr("app.progress.Progress.say", lambda _, message, **__: said.append(message))
    assert planned(call, phantoms, "--set", "protocols.few_shot_frozen.curve=[1,900,5000]")[0] == 0
    [line] = [line for line in said if "label curve" in line]
    assert line == (
        "BreastMNIST (SYNTHETIC), few_shot_frozen: the label curve leaves out k = 900, 5000, "
        "more than a class has images"
    )


def test_whose_the_test_images_are_joins_the_run_without_a_name(tmp_path):
    """The report needs patients for its intervals; the plan says that its own estimate does without."""
    splits = {}
    for split in ("train", "val", "test"):
        splits |= {
            f"{split}_images": np.zeros((12, 28, 28), np.uint8),
            f"{split}_labels": np.arange(12)[:, None] // 3 % 2,
            f"{split}_files": np.array([f"{n}.png" for n in range(12)]),
            f"{split}_patients": np.array([f"Doe {n // 3}" if split == "test" else f"{split} {n}" for n in range(12)]),
            f"{split}_subgroups": np.array([["f", "m"][n // 6] for n in range(12)])[:, None],
        }
    told = {"description": np.array(json.dumps({"task": "binary-class"})), "class_names": np.array(["no", "yes"])}
    told["subgroup_names"] = np.array(["sex"])
    np.savez(tmp_path / "own.npz", **splits, **told)
    data = load_dataset("own", path=tmp_path / "own.npz")
    run = Run(FolderStore(tmp_path / "runs"), "r", load_config("smoke"))
    show_data(run, data)
    kept = run.store.read(keys.test_labels("r", "own"))
    assert json.loads(kept)["patients"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert json.loads(kept)["subgroups"] == {"sex": ["f"] * 6 + ["m"] * 6}
    assert b"Doe" not in kept
    assert "patients" not in json.loads(run.store.read(keys.val_labels("r", "own"))), "one image each"
    config = load_config("smoke", ["study.seeds=[0,1,2]"])
    [*lines] = power_lines(config, [data], {})
    assert all("12 test images of 4 patients, 3 seeds" in line for line in lines)
    assert all(line.endswith("so expect to tell less") for line in lines)
    pilot = {("own", protocol): Variances(1e-4, 1e-4) for protocol in config.study.protocols}
    assert not any("independent" in line for line in power_lines(config, [data], pilot))


def test_the_order_of_two_labels_is_all_the_same_to_the_power(tmp_path):
    rare, common = np.arange(60) % 30 == 0, np.arange(60) % 2 == 0
    found = []
    for name, columns in (("one", (rare, common)), ("other", (common, rare))):
        labels = np.stack(columns, axis=1).astype(np.int64)
        arrays = {f"{split}_labels": labels for split in ("train", "val", "test")}
        arrays |= {f"{split}_images": np.zeros((60, 28, 28), np.uint8) for split in ("train", "val", "test")}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        found.append(expected(load_dataset(name, path=tmp_path / f"{name}.npz", task="multi-label"), None))
    assert found[0].common == pytest.approx(found[1].common)


def test_a_pilot_that_is_not_there_is_named(call, phantoms):
    code, _, err = planned(call, phantoms, "--pilot", "none")
    assert code == 66
    assert "no run 'none'" in err
