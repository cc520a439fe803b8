"""Whole studies by the command line, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from app.data import write_phantoms
from tests.processes import FORKED, SMALL, Launcher, Process

TINY = [
    "--preset", "smoke", "--threads", "1", "--set", "data.subset=48", "--set", "data.phantoms=never",
    "--set", "pretrain.batch_size=16", "--set", "study.protocols=[finetune,few_shot]", "--set", "pretrain.epochs=50",
    "--set", "study.datasets=[breastmnist,dermamnist]", "--set", "protocols.finetune.epochs=1",
    "--set", "protocols.few_shot.k=1", "--set", "pretrain.monitor_every=25", "--set", "runtime.kernels=plain",
]  # fmt: skip
COUNTS = {"chestmnist": (100, 20, 20), "breastmnist": (100, 40, 40), "dermamnist": (100, 40, 40)}
Study = tuple[Path, list[str], str, Callable[..., Process]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Study:
    """A finished study: its store, the options that made it, what it printed, and what starts it in another store."""
    root = tmp_path_factory.mktemp("study")
    write_phantoms(root / "data", counts=COUNTS | {"pneumoniamnist": (100, 40, 40)})
    options = [*TINY, "--data-root", str(root / "data"), "--run-id", "whole"]

    def run(store: Path, *more: str, **environment: str) -> Process:
        return launcher.start("run", "--store", str(store), *options, *more, environment={SMALL: "1"} | environment)

    done = run(root / "store", "--workers", "2")
    assert done.wait() == 0, done.text
    return root / "store", options, done.text, run


def records(store: Path, run_id: str) -> dict[str, dict]:
    folder = store / "runs" / run_id
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("record.json"))
    }


def test_a_study_gives_every_cell_and_a_report(study):
    store, _, printed, _ = study
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

    store, _, _, _ = study
    for folder, record in records(store, "whole").items():
        assert record["files"]
        for name, entry in record["files"].items():
            data = (store / "runs/whole" / folder / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])


def test_predictions_are_in_medmnists_layout(study):
    """One row per test image, one probability per class, and the metrics follow from them."""
    from sklearn.metrics import accuracy_score

    store, _, _, _ = study
    folder = store / "runs/whole/downstream/dermamnist/random/finetune/s0"
    table = pd.read_csv(folder / "predictions.csv", header=None, index_col=0)
    labels = json.loads((store / "runs/whole/samples/dermamnist_test_labels.json").read_text())["labels"]
    assert table.shape == (len(labels), 7)
    assert table.sum(axis=1).to_numpy() == pytest.approx(1.0)
    record = json.loads((folder / "record.json").read_text())
    truth = [row[0] for row in labels]
    assert accuracy_score(truth, table.to_numpy().argmax(1)) == pytest.approx(record["metrics"]["accuracy"])


def test_a_finished_study_runs_nothing_again(study):
    store, _, _, run = study
    before = {folder: record["finished"] for folder, record in records(store, "whole").items()}
    done = run(store)
    assert done.wait() == 0, done.text
    assert done.text.count("already done") == len(before)
    assert {folder: record["finished"] for folder, record in records(store, "whole").items()} == before


def test_the_random_control_and_byol_see_the_same_images(study):
    store, _, _, _ = study
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


def assert_no_worker_is_left(number: int) -> None:
    deadline = time.monotonic() + 30
    while is_group(number):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def stop(process: Process, number: signal.Signals) -> None:
    """Send a signal to a study: SIGINT as a terminal does, to its workers too."""
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_is_stopped_while_its_workers_load(study, tmp_path, number):
    """The signal comes before any job listens: 75, and neither a traceback nor a worker that stays."""
    process = study[3](tmp_path, "--workers", "2")
    process.until("whole: 2 pretrainings")  # the plan is made, and the workers are being started
    stop(process, number)
    assert process.wait() == 75, process.text
    assert "Traceback" not in process.text
    assert process.errors[-1].endswith("run the same command again")
    assert_no_worker_is_left(process.pid)


def test_workers_do_not_outlive_a_runner_that_is_killed(study, tmp_path):
    process = study[3](tmp_path, "--workers", "2", **{FORKED: "1"})
    process.until('"stage": "pretrain"', '"done"')  # it trains
    process.kill(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert_no_worker_is_left(process.pid)


@pytest.mark.parametrize(
    ("workers", "number"), [("1", signal.SIGTERM), ("2", signal.SIGTERM), ("2", signal.SIGINT)]
)  # fmt: skip
def test_a_stopped_study_continues_to_the_same_result(study, tmp_path, workers, number):
    """A signal while it pretrains: 75 and no torn job; the same command then ends with equal predictions.

    However many workers it has.
    """
    store, _, _, run = study
    process = run(tmp_path, "--workers", workers, **{FORKED: "1"})
    process.until('"stage": "pretrain"', '"done"')  # it trains
    stop(process, number)
    assert process.wait() == 75, process.text
    assert "with a checkpoint; run the same command again" in process.text
    assert "Traceback" not in process.text
    assert not (tmp_path / "runs/whole/report").exists()
    assert list(tmp_path.glob("runs/whole/pretrain/*/latest.json"))
    done = run(tmp_path)
    assert done.wait() == 0, done.text
    expected, got = records(store, "whole"), records(tmp_path, "whole")
    assert expected.keys() == got.keys()
    for folder, record in expected.items():
        assert record["metrics"] == got[folder]["metrics"], folder
        names = [name for name in record["files"] if name.endswith("predictions.csv")]
        assert names or folder.startswith("pretrain"), folder
        for name in names:
            assert got[folder]["files"][name]["sha256"] == record["files"][name]["sha256"], f"{folder}/{name}"
