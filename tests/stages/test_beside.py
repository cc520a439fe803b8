"""Small things that people stumble over: names with colons, presets by path, one image, a damaged copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.config import load_config
from app.data import find_file, write_phantoms
from app.errors import InputError, UsageError
from app.jobs.run import Run, load_labelled, parse_source
from app.science.pretraining import too_few_images
from app.storage import FolderStore


@pytest.mark.parametrize("name", ["scans_10:30", "a:b:c", "10:30.npz", "x:binary", "file:name"])
def test_a_path_that_exists_is_taken_as_it_is(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for given in (name, f"./{name}", str(tmp_path / name)):
        path, task = parse_source(given)
        assert (path.resolve(), task) == (tmp_path / name, None)
    path, task = parse_source(f"{name}:multi-label")
    assert (path, task) == (Path(name), "multi-label, binary-class")


def test_other_colons_are_tasks(tmp_path) -> None:
    assert parse_source("a.npz:binary") == (Path("a.npz"), "binary-class")
    with pytest.raises(UsageError, match="unknown task '30'"):
        parse_source("scans_10:30")


@pytest.mark.parametrize("name", ["my.yml", "my.yaml", "folder/my.conf"])
def test_a_preset_is_a_file_by_its_name_or_its_path(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (path.parent / "base.yml").write_text("extends: smoke\npretrain: {epochs: 7}\n")
    path.write_text("extends: base.yml\npretrain: {warmup_epochs: 1.0}\n")
    config = load_config(f"./{name}")
    assert (config.pretrain.epochs, config.pretrain.warmup_epochs) == (7, 1.0)
    with pytest.raises(UsageError, match=r"none\.yml: cannot read it"):
        load_config("none.yml")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 31])
@pytest.mark.parametrize("batch", [2, 3, 4, 64])
@pytest.mark.parametrize("accumulate", [1, 4, 16])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_advice_for_few_images_works(count, batch, accumulate, epochs) -> None:
    """And it touches nothing that is not in the way: a batch of 4 fits 10 images, 16 of them do not."""
    recipe = load_config("smoke").pretrain.model_copy(
        update={"batch_size": batch, "accumulate": accumulate, "epochs": epochs}
    )
    if epochs * (count // batch) // accumulate >= 1:
        return  # nobody asks for advice
    line = too_few_images(count, "mine", recipe)
    advice = dict(word.removeprefix("pretrain.").split("=") for word in line.split("; use ")[1].split() if "=" in word)
    advised = type(recipe).model_validate(recipe.model_dump() | {name: int(value) for name, value in advice.items()})
    assert advised.epochs * (count // advised.batch_size) // advised.accumulate >= 1
    assert 2 <= advised.batch_size <= batch
    assert advised.accumulate <= accumulate
    assert ("batch_size" in advice) == (batch > count)


@pytest.mark.parametrize(("count", "said"), [(0, "has 0 images"), (1, "has 1 image;")])
def test_one_image_is_too_few(count, said) -> None:
    line = too_few_images(count, "mine", load_config("smoke").pretrain)
    assert said in line
    assert "pretraining needs 2 or more" in line


def test_a_sound_copy_is_taken_where_the_first_is_truncated(tmp_path, capsys) -> None:
    (sound,) = write_phantoms(tmp_path / "sound", counts={"breastmnist": (20, 10, 10)})
    (tmp_path / "data").mkdir()
    damaged = tmp_path / "data/breastmnist.npz"
    damaged.write_bytes(sound.read_bytes()[:5000])
    assert find_file("breastmnist", 28, [tmp_path / "data", tmp_path / "sound"]) == sound
    store = FolderStore(tmp_path / "store")
    config = load_config("smoke", data_root=str(tmp_path / "data"))
    with pytest.raises(InputError, match="truncated, damaged or no"):
        load_labelled(Run(store, "r", config), "breastmnist")
    store.write("data/breastmnist_28.npz", sound.read_bytes())
    capsys.readouterr()
    assert len(load_labelled(Run(store, "r", config), "breastmnist").train) == 20
    assert "the store's copy is taken" in json.loads(capsys.readouterr().err.splitlines()[0])["message"]


def test_names_that_are_not_utf8_pass_through_the_settings(tmp_path) -> None:
    import os

    odd = os.fsdecode(os.fsencode(tmp_path) + b"/Bef\xfcnde")
    os.mkdir(odd)
    np.savez(f"{odd}/a.npz", x=1)
    config = load_config("smoke", sources=[f"scans={odd}/a.npz:binary"], data_root=odd)
    json.dumps(config.model_dump(mode="json")).encode()
    path, task = parse_source(config.sources["scans"])
    assert path.exists()
    assert task == "binary-class"
