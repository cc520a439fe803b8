"""`doctor`: each thing that keeps a study from running has its line, its remedy and its code."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from app import cli
from app.config import load_config
from app.data import write_phantoms
from app.errors import InputError, StorageError, UsageError, missing_extra
from app.storage import FolderStore, Versioned
from app.upkeep import doctor
from app.upkeep.doctor import Doubt, Finding, examine, verdict

ASKED = ["study.datasets=[breastmnist]", "data.pretrain=chestmnist", "data.phantoms=never", "runtime.device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_phantoms(root, counts=dict.fromkeys(("breastmnist", "chestmnist"), (32, 16, 16)))
    return root


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ARGO_SERVER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def found(store: Any, data: Path | None, *more: str) -> dict[str, Finding]:
    config = load_config("smoke", [*ASKED, *more], data_root=str(data) if data else None)
    return {finding.name: finding for finding in examine(lambda: store, config)}


def test_where_all_is_well_the_command_says_so_and_ends_with_0(data, tmp_path, monkeypatch, capsys):
    words = [word for line in ASKED for word in ("--set", line)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["app", "doctor", "--preset", "smoke", "--store", str(tmp_path / "s"), "--data-root", str(data), *words],
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert stop.value.code == 0, out
    assert "a study can run here" in out.splitlines()[-1]
    for name in ("Python", "torch", "CPU", "threads", "memory", "GPU", "shared memory", "store", "breastmnist", "Argo"):
        assert f" {name} " in out
    assert list(FolderStore(tmp_path / "s").list()) == []  # nothing stays of the trial


def test_a_missing_set_fails_with_66_and_a_phantom_to_be_is_a_warning(data, tmp_path):
    store = FolderStore(tmp_path)
    one = found(store, data, "study.datasets=[dermamnist]")["dermamnist"]
    assert one.mark == "fail"
    assert "data fetch --dataset dermamnist" in one.said
    with pytest.raises(InputError, match="a study cannot run here: dermamnist"):
        verdict(list(found(store, data, "study.datasets=[dermamnist]").values()))
    assert found(store, None, "data.phantoms=if_missing", "study.datasets=[organamnist]")["organamnist"].mark == "warn"


def test_a_truncated_file_fails(data, tmp_path):
    shutil.copytree(data, tmp_path / "d")
    whole = (tmp_path / "d/breastmnist.npz").read_bytes()
    (tmp_path / "d/breastmnist.npz").write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in found(FolderStore(tmp_path / "s"), tmp_path / "d")["breastmnist"].said


class Careless(FolderStore):
    """Writes whatever the condition says."""

    def create(self, key: str, data: bytes) -> str | None:
        self.write(key, data)
        return "1"


class Forgetful(FolderStore):
    def read_version(self, key: str, *, exact_age: bool = False) -> Versioned:
        return dataclasses.replace(super().read_version(key, exact_age=exact_age), data=b"other")


class Late(FolderStore):
    def read_version(self, key: str, *, exact_age: bool = False) -> Versioned:
        return dataclasses.replace(super().read_version(key, exact_age=exact_age), age=-300.0)


@pytest.mark.parametrize(
    ("kind", "raised", "said"),
    [
        (Careless, UsageError, "conditional_writes=off"),
        (Forgetful, StorageError, "not what was written"),
        (Late, Doubt, "its clock is -300 s off"),
    ],
)
def test_a_store_that_breaks_its_word_is_found_out(tmp_path, kind, raised, said):
    with pytest.raises(raised, match=said):
        doctor.store_works(kind(tmp_path))
    assert list(FolderStore(tmp_path).list()) == []


def test_a_store_that_breaks_its_word_is_found_out_on_a_full_disk_too(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    with pytest.raises(UsageError, match="conditional_writes=off"):
        doctor.store_works(Careless(tmp_path))
    with pytest.raises(Doubt, match="100 MB free; choose another --store"):
        doctor.store_works(FolderStore(tmp_path))


def test_what_is_advised_to_install_can_be_installed(monkeypatch):
    """Extras that pyproject.toml has, from a clone: the package is in no registry."""
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert doctor.EXTRAS.keys() <= project["optional-dependencies"].keys()
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    advice = [doctor.extras(), str(missing_extra("x", "y", "export"))]
    assert [re.findall("pip install '(.*?)\\[.*' in a clone", line) for line in advice] == [["."], ["."]]


def test_a_store_that_cannot_be_opened_leaves_the_data_out(data):
    def refuse() -> Any:
        raise StorageError("s3://x: no answer; check the endpoint")

    names = [finding.name for finding in examine(refuse, load_config("smoke", ASKED, data_root=str(data)))]
    assert "breastmnist" not in names
    assert "Argo" in names


def test_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no usable GPU"):
        doctor.gpu("cuda")
    monkeypatch.setattr(doctor, "_driver", lambda: "470.1")
    with pytest.raises(Doubt, match=r"driver 470\.1, but torch .* the CPU would be used"):
        doctor.gpu("auto")
    assert doctor.gpu("cpu") == "cpu: no GPU is used"
    monkeypatch.setattr(doctor, "available_memory", lambda: 10**9)
    with pytest.raises(Doubt, match=r"1\.0 GB left"):
        doctor.memory()
    monkeypatch.setattr(doctor, "cpu_flags", list)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    with pytest.raises(Doubt, match="several times slower"):
        doctor.cpu()
    monkeypatch.setattr(doctor, "cores", lambda: 2)
    with pytest.raises(Doubt, match="use --threads 2"):
        doctor.threads(load_config("smoke", ["runtime.threads=16"]))
    monkeypatch.setattr(doctor, "cache_folder", lambda name: None)
    with pytest.raises(Doubt, match="XDG_CACHE_HOME"):
        doctor.cache()


def test_room(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    with pytest.raises(Doubt, match=r"100 MB free; make room"):
        doctor.room(tmp_path / "not" / "yet", "make room")
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"cannot be written; make room"):
        doctor.room(tmp_path, "make room")


def test_shared_memory(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(total=64 * 10**6))
    with pytest.raises(Doubt, match=r"--shm-size 1g"):
        doctor.shared_memory()


def test_argo_is_asked_only_where_it_is_named(monkeypatch):
    assert "studies run on this machine" in doctor.argo()
    pytest.importorskip("argo_workflows")
    monkeypatch.setenv("ARGO_SERVER", "http://127.0.0.1:9")
    with pytest.raises(Doubt, match="no Argo server answers"):
        doctor.argo()


def test_the_verdict_is_of_the_first_failure():
    fine, odd = Finding("a", "ok", "."), Finding("b", "warn", ".")
    bad = [Finding("c", "fail", ".", StorageError("x")), Finding("d", "fail", ".", UsageError("y"))]
    assert verdict([fine]) == "a study can run here"
    assert verdict([fine, odd]) == "a study can run here, with 1 warning"
    with pytest.raises(StorageError, match="cannot run here: c, d"):
        verdict([fine, odd, *bad])
