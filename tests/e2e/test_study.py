"""Whole studies by the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from app.data import write_phantoms

TINY = [
    "--preset", "smoke", "--threads", "1", "--set", "data.subset=48", "--set", "data.phantoms=never",
    "--set", "pretrain.batch_size=16", "--set", "study.protocols=[finetune,few_shot]", "--set", "pretrain.epochs=3",
    "--set", "study.datasets=[breastmnist,dermamnist]", "--set", "protocols.finetune.epochs=1",
    "--set", "protocols.few_shot.k=1",
]  # fmt: skip


def app(*args: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, args)], capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str | Path], str]:
    """A finished study: its store, the options that made it, and what it printed."""
    root = tmp_path_factory.mktemp("study")
    write_phantoms(root / "data")
    options = [*TINY, "--data-root", root / "data", "--run-id", "whole"]
    done = app("run", "--store", root / "store", "--workers", "2", *options)
    assert done.returncode == 0, done.stderr
    return root / "store", options, done.stdout


def records(store: Path, run_id: str) -> dict[str, dict]:
    folder = store / "runs" / run_id
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("record.json"))
    }


def test_a_study_gives_every_cell_and_a_report(study):
    store, _, printed = study
    found = records(store, "whole")
    assert len(found) == 2 + 3 * 2 * 2
    report = store / "runs/whole/report"
    assert "SYNTHETIC" in printed
    assert str(report / "index.html") in printed
    page = (report / "index.html").read_text()
    assert "SYNTHETIC" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "SYNTHETIC" in (report / "report.md").read_text()


def test_records_name_files_by_their_checksums(study):
    import hashlib

    store, _, _ = study
    for folder, record in records(store, "whole").items():
        assert record["files"]
        for name, entry in record["files"].items():
            data = (store / "runs/whole" / folder / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])


def test_predictions_are_in_medmnists_layout(study):
    """One row per test image, one probability per class, and the metrics follow from them."""
    from sklearn.metrics import accuracy_score

    store, _, _ = study
    folder = store / "runs/whole/downstream/dermamnist/random/finetune/s0"
    table = pd.read_csv(folder / "predictions.csv", header=None, index_col=0)
    labels = json.loads((store / "runs/whole/samples/dermamnist_test_labels.json").read_text())["labels"]
    assert table.shape == (len(labels), 7)
    assert table.sum(axis=1).to_numpy() == pytest.approx(1.0)
    record = json.loads((folder / "record.json").read_text())
    truth = [row[0] for row in labels]
    assert accuracy_score(truth, table.to_numpy().argmax(1)) == pytest.approx(record["metrics"]["accuracy"])


def test_a_finished_study_runs_nothing_again(study):
    store, options, _ = study
    before = {folder: record["finished"] for folder, record in records(store, "whole").items()}
    done = app("run", "--store", store, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already done") == len(before)
    assert {folder: record["finished"] for folder, record in records(store, "whole").items()} == before


def test_the_random_control_and_byol_see_the_same_images(study):
    store, _, _ = study
    found = records(store, "whole")
    draws = {
        init: [draw["indices"] for draw in found[f"downstream/breastmnist/{init}/few_shot/s0"]["draws"]]
        for init in ("random", "byol-s0", "byol_plus-s0")
    }
    assert draws["random"] == draws["byol-s0"] == draws["byol_plus-s0"]
    assert draws["random"][0] != draws["random"][1]


def is_group(number: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_study_is_stopped_while_its_workers_load(study, tmp_path):
    """The signal comes before any job listens: 75, and neither a traceback nor a worker that stays."""
    _, options, _ = study
    command = [sys.executable, "-m", "app", "run", "--store", str(tmp_path), *map(str, options), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    line = ""
    while "downstream jobs" not in line:  # the plan is made, and the workers are being started
        line = process.stderr.readline()
        assert line, "it ended"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if not line.startswith("{")][-1].endswith("run the same command again")
    deadline = time.monotonic() + 10
    while is_group(process.pid):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)


def test_workers_do_not_outlive_a_runner_that_is_killed(study, tmp_path):
    _, options, _ = study
    command = [sys.executable, "-m", "app", "run", "--store", str(tmp_path), *map(str, options), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    line = ""
    while not ('"stage": "pretrain"' in line and '"done"' in line):  # it trains
        line = process.stderr.readline()
        assert line, "it ended"
    process.kill()
    process.communicate(timeout=60)  # the workers, too, close their end
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_group(process.pid):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("workers", "number"), [("1", signal.SIGTERM), ("2", signal.SIGTERM), ("2", signal.SIGINT)]
)  # fmt: skip
def test_a_stopped_study_continues_to_the_same_result(study, tmp_path, workers, number):
    """A signal while it pretrains: 75 and no torn job; the same command then ends with equal predictions."""
    store, options, _ = study
    command = [sys.executable, "-m", "app", "run", "--store", str(tmp_path), *map(str, options), "--workers", workers]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    line = ""
    while not ('"stage": "pretrain"' in line and '"done"' in line):  # it trains
        assert time.monotonic() < deadline
        line = process.stderr.readline()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the workers too
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "with a checkpoint; run the same command again" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs/whole/report").exists()
    assert list(tmp_path.glob("runs/whole/pretrain/*/latest.json"))
    done = app("run", "--store", tmp_path, *options, "--workers", workers)
    assert done.returncode == 0, done.stderr
    expected, got = records(store, "whole"), records(tmp_path, "whole")
    assert expected.keys() == got.keys()
    for folder, record in expected.items():
        assert record["metrics"] == got[folder]["metrics"], folder
