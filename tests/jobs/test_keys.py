"""Keys and names of jobs: what is spelled is parsed, and no other module spells one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.data import find_file
from app.jobs import keys
from app.storage import check_key

ROOT = Path(__file__).resolve().parents[2]
SPELLED = re.compile(
    r"^runs/|^(data|phantoms|samples|report|encoders|pretrain|downstream|checkpoints|draws|workflows)/"
    r"|\b(record|latest|claim|experiment|status)\.json|(encoder|model|head)\.safetensors|curves\.jsonl|predictions\.csv"
    r"|_test_labels|-s$|^/s$|^-s"
)


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The parts of strings that a module spells out, but for its docstrings and what it prints as help."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.lineno, node.value


def test_no_other_module_spells_a_key():
    elsewhere = [path for path in sorted((ROOT / "app").rglob("*.py")) if path.name != "keys.py"]
    assert len(elsewhere) > 50
    spelled = [
        f"{path.relative_to(ROOT)}, line {line}: {text!r}"
        for path in elsewhere
        for line, text in strings(path)
        if SPELLED.search(text)
    ]
    assert spelled == []


@pytest.mark.parametrize(
    "job",
    [
        keys.Pretraining("byol", 0),
        keys.Pretraining("byol_plus", 12),
        keys.Downstream("pneumoniamnist", "random", "finetune", 0),
        keys.Downstream("my-s1_28", "byol_plus-s3", "few_shot_frozen", 3),
        keys.Downstream("x", "ckpt-0123456789ab", "linear_probe", 7),
    ],
)
def test_a_name_is_parsed_as_it_is_spelled(job):
    assert type(job).parse(str(job)) == job
    other = keys.Downstream if isinstance(job, keys.Pretraining) else keys.Pretraining
    assert other.parse(str(job)) is None


@pytest.mark.parametrize(
    "name", ["", "byol", "byol-s", "byol-s-1", "byol-sx", "a/byol-s0", "a/b/c/0", "a/b/s0", "a/b/c/d/s0"]
)
def test_other_names_are_no_jobs(name):
    assert keys.Pretraining.parse(name) is None
    assert keys.Downstream.parse(name) is None


def test_methods_of_initialisations():
    inits = ("random", "imagenet", "byol-s0", "byol_plus-s12", "ckpt-0123456789ab")
    assert [keys.method_of(init) for init in inits] == ["random", "imagenet", "byol", "byol_plus", "ckpt-0123456789ab"]


def test_the_layout_is_the_documented_one():
    job = keys.downstream("r", "breastmnist/random/finetune/s0")
    assert keys.record(job) == "runs/r/downstream/breastmnist/random/finetune/s0/record.json"
    assert keys.latest(keys.pretraining("r", "byol-s0")) == "runs/r/pretrain/byol-s0/latest.json"
    assert keys.checkpoint(7, "ab") == "checkpoints/00000007-ab.pt"
    assert keys.experiment("r") == "runs/r/experiment.json"
    assert keys.report("r") == "runs/r/report/index.html"
    assert (keys.dataset("breastmnist", 28), keys.phantom("x", 64)) == ("data/breastmnist_28.npz", "phantoms/x_64.npz")
    for key in (keys.sample_sheet("r", "x"), keys.test_labels("r", "x"), keys.status("r"), keys.workflow("w")):
        assert check_key(key) == key


def test_what_a_listing_says_of_jobs_and_runs():
    there = [
        "data/x_28.npz",
        keys.experiment("a"),
        keys.record(keys.pretraining("a", "byol-s0")),
        keys.latest(keys.downstream("a", "x/random/finetune/s0")),
        keys.claim(keys.downstream("b", "x/random/finetune/s1")),
        "runs/stray",
    ]
    assert keys.run_ids(there) == ["a", "b"]
    assert keys.begun("a", there) == {"pretrain/byol-s0", "downstream/x/random/finetune/s0"}
    assert keys.begun("b", there) == {"downstream/x/random/finetune/s1"}
    assert keys.finished("runs/a/pretrain", there) == {"byol-s0"}
    assert keys.finished("runs/a/downstream", there) == set()


def test_the_stores_copy_has_a_name_that_is_found_in_a_folder_too(tmp_path):
    for size in (28, 64):
        name = keys.dataset("breastmnist", size).rpartition("/")[2]
        (tmp_path / name).touch()
        assert find_file("breastmnist", size, [tmp_path]) == tmp_path / name


@pytest.mark.parametrize("store", [None, "runs", ".", "/", "/a b/c", "s3://bucket", "s3://bucket/nih/x", "file:///a"])
@pytest.mark.parametrize("job", ["pretrain/byol-s0", "downstream/d/byol-s0/finetune/s0"])
@pytest.mark.parametrize("end", ["", "/", "/model.safetensors", "/record.json"])
def test_where_a_job_is_splits_into_its_store_and_its_folder(store, job, end):
    before = "" if store is None else store if store.endswith("/") else f"{store}/"
    assert keys.job_at(f"{before}runs/r.1/{job}{end}") == (store, f"runs/r.1/{job}")


def test_options_of_a_store_stay_with_it():
    uri = "s3://bucket/x/runs/r/pretrain/byol-s0?endpoint=http://host:1&path_style=true"
    assert keys.job_at(uri) == ("s3://bucket/x?endpoint=http://host:1&path_style=true", "runs/r/pretrain/byol-s0")


@pytest.mark.parametrize(
    "uri",
    ["", "model.safetensors", "runs/r", "runs/r/pretrain", "runs/r/downstream/d/byol-s0", "runs/r/report/index.html"],
)
def test_what_names_no_job_is_none(uri):
    assert keys.job_at(uri) is None
