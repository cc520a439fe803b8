"""`data fetch` and the fallback of a plan: files come from where they are said to be, and hints name lasting places."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from app.config import load_config
from app.data import PHANTOM_COUNTS, catalog, download, write_phantoms
from app.errors import InputError, UsageError
from app.jobs.run import Run, search
from app.stages.fallback import settle_data
from app.stages.fetch import fetch, fetch_study
from app.storage import FolderStore

NAMES = sorted(PHANTOM_COUNTS)
FEW = dict.fromkeys(PHANTOM_COUNTS, (20, 20, 20))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    write_phantoms(root, counts=FEW)
    return root


@pytest.fixture(autouse=True)
def published(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let phantoms be what MedMNIST publishes, at a host that cannot be reached; home is empty, and few are drawn."""
    sets = {
        name: dataclasses.replace(
            one,
            urls={28: f"http://127.0.0.1:1/{name}.npz"},
            md5={28: hashlib.md5((files / f"{name}.npz").read_bytes()).hexdigest()},
        )
        for name, one in catalog().items()
        if name in PHANTOM_COUNTS
    }
    monkeypatch.setattr(download, "known", sets.__getitem__)
    monkeypatch.setattr("app.data.phantoms.PHANTOM_COUNTS", FEW)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)


def copy(files: Path, place: Path, names: list[str] = NAMES) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(files / f"{name}.npz", place)
    return place


@pytest.mark.parametrize("phantoms", ["never", "if_missing"])
@pytest.mark.parametrize("place", ["data root", "MEDMNIST_ROOT", "home", "mirror"])
def test_every_file_of_a_study_comes_from_where_it_is(files, tmp_path, monkeypatch, place, phantoms):
    root, mirror, offline = None, None, True
    if place == "data root":
        root = str(copy(files, tmp_path / "root"))
        monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "empty"))
    elif place == "MEDMNIST_ROOT":
        monkeypatch.setenv("MEDMNIST_ROOT", str(copy(files, tmp_path / "root")))
    elif place == "home":
        copy(files, tmp_path / "home/.medmnist")
        monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "empty"))
    else:
        root, mirror, offline = str(tmp_path / "root"), str(copy(files, tmp_path / "mirror")), False
    store = FolderStore(tmp_path / "store")
    config = load_config("smoke", [f"data.phantoms={phantoms}"], data_root=root)
    said = list(fetch_study(store, config, mirror=mirror, offline=offline))
    assert [line.split("  ")[0] for line in said] == [
        f"{store.uri}/data/{name}_28.npz" for name in ("chestmnist", *config.study.datasets)
    ]
    for name in NAMES:
        assert store.read(f"data/{name}_28.npz") == (files / f"{name}.npz").read_bytes()
    assert not (tmp_path / "empty").exists()
    assert (tmp_path / "home").exists() == (place == "home")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda data: b"", half, flip])
def test_what_is_said_to_be_verified_is_and_a_damaged_copy_is_mended(files, tmp_path, damage, monkeypatch):
    store, root = FolderStore(tmp_path / "store"), copy(files, tmp_path / "root")
    sound = (root / "breastmnist.npz").read_bytes()
    store.write("data/breastmnist_28.npz", damage(sound))
    options = {"size": 28, "store": store, "root": str(root), "mirror": None, "offline": True}
    list(fetch(["breastmnist"], **options))
    assert store.read("data/breastmnist_28.npz") == sound
    monkeypatch.setattr(store, "write", lambda *_: pytest.fail("a sound copy is written again"))
    list(fetch(["breastmnist"], **options))


def test_a_set_of_ones_own_in_the_data_root_is_copied(files, tmp_path):
    root = copy(files, tmp_path / "root")
    (root / "dermamnist.npz").rename(root / "dermamnist_reconstructed.npz")
    store = FolderStore(tmp_path / "store")
    config = load_config(
        "recommended", ["study.datasets=[breastmnist,dermamnist_reconstructed]"], data_root=str(root)
    )  # fmt: skip
    said = list(fetch_study(store, config, mirror=None, offline=True))
    assert f"copied from {root}/dermamnist_reconstructed.npz, not verified" in said[2]
    assert store.exists("data/dermamnist_reconstructed_28.npz")


def test_another_file_under_a_published_name_is_refused(files, tmp_path):
    root = copy(files, tmp_path / "root")
    shutil.copy(root / "breastmnist.npz", root / "pneumoniamnist.npz")
    store = FolderStore(tmp_path / "store")
    with pytest.raises(InputError, match=r"pneumoniamnist\.npz: is another file"):
        list(fetch_study(store, load_config("recommended", data_root=str(root)), mirror=None, offline=True))
    assert not store.exists("data/pneumoniamnist_28.npz")


@pytest.mark.parametrize("root", [None, "root"])
def test_a_hint_names_a_folder_that_stays_and_is_looked_into(files, tmp_path, capsys, root):
    """Whoever does what the hint says, file by file, ends with the real data."""
    store = FolderStore(tmp_path / "store")
    config = load_config("smoke", data_root=root and str(tmp_path / root))
    for _ in ("chestmnist", *config.study.datasets):
        settled = settle_data(store, config)
        assert settled.data.phantoms == "always"
        said = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
        [place] = re.findall(r"place the file at (\S+) by hand", " ".join(said))
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files / Path(place).name, place)
        assert search(Run(store, "", load_config("recommended", data_root=config.data_root)), Path(place).stem)
    assert settle_data(store, config).data.phantoms == "never"


def test_a_study_that_pretrains_nothing_needs_no_images_for_it(files, tmp_path):
    config = load_config("smoke", ["study.methods=[]"], data_root=str(tmp_path))
    for name in config.study.datasets:
        shutil.copy(files / f"{name}.npz", tmp_path)
    assert settle_data(FolderStore(tmp_path / "store"), config, offline=True).data.phantoms == "never"
    both = load_config("smoke", data_root=str(tmp_path))
    assert settle_data(FolderStore(tmp_path / "store"), both, offline=True).data.phantoms == "always"


def test_offline_nothing_is_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "_download", lambda *_: pytest.fail("it downloads"))
    store = FolderStore(tmp_path / "store")
    said = list(fetch_study(store, load_config("smoke"), mirror=None, offline=True))
    assert said == [f"{store.uri}/phantoms  (synthetic)"]


def test_without_any_folder_one_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("app.data.datasets.home", lambda: None)
    with pytest.raises(UsageError, match="give a folder by --data-root"):
        list(fetch_study(FolderStore(tmp_path / "store"), load_config("recommended"), mirror=None, offline=True))
