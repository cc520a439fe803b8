"""The command line: each wrong input is one clear line with the documented exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import app
from app import cli
from tests.cluster.checks import parse

TINY = [
    "--preset", "smoke", "--set", "runtime.device=cpu", "--set", "runtime.threads=1",
    "--set", "data.phantoms=never", "--set", "data.subset=64", "--set", "pretrain.epochs=1",
    "--set", "pretrain.batch_size=32", "--set", "study.methods=[byol]",
]  # fmt: skip


@pytest.fixture
def phantoms(default_phantoms: Path) -> Path:
    return default_phantoms


def errors(stderr: str) -> list[str]:
    """The lines of standard error that are not progress."""
    return [line for line in stderr.splitlines() if not line.startswith("{")]


def test_every_stage_has_help_with_an_example(call):
    code, out, _ = call("--help")
    assert code == 0
    stages = ("plan", "pretrain", "downstream", "report", "run", "views", "ls", "predict", "embed", "export")
    for stage in (*stages, "robustness", "tune", "ablate", "doctor", "clean", "compare"):
        assert f" {stage} " in out
        code, text, _ = call(stage, "--help")
        assert code == 0
        assert f"Example: python -m app {stage}" in text
    code, text, _ = call("data", "fetch", "--help")
    assert code == 0
    assert "Example: python -m app data fetch" in text


def test_examples_in_the_help_parse():
    """With their values, and all that they have to name."""
    for command in cli.app.registered_commands:
        words = str(command.epilog).removeprefix("Example: ").split()
        assert parse(tuple(words)) is None, words


HEAVY = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "boto3", "argo_workflows"}


def loaded(*args: str | Path) -> set[str]:
    """Run the command line in a fresh process, to its end, and return the packages that it imported."""
    code = (
        "import sys\nfrom app.cli import main\ntry: main()\nexcept SystemExit as stop: code = stop.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_what_plans_and_lists_loads_no_torch(phantoms, tmp_path):
    """Commands that train nothing start in a fraction of the time that torch and scikit-learn take to load."""
    place = ["--store", tmp_path / "store"]
    assert not loaded("--help") & (HEAVY | {"numpy", "yaml"})
    assert not loaded("pretrain", "--help") & (HEAVY | {"numpy", "yaml"})
    out = ["--out", tmp_path / "out", "--workflow", "w", "--run-id", "r"]
    # the power of the study comes from SciPy's quantiles
    assert not loaded("plan", *TINY, "--data-root", phantoms, *out, *place) & (HEAVY - {"scipy"})
    assert not loaded("ls", *place) & HEAVY
    assert not loaded("ls", "--run-id", "r", *place) & HEAVY
    assert not loaded("status", "--workflow", "w", "--phase", "Failed", *place) & HEAVY
    assert not loaded("data", "phantoms", "--data-root", tmp_path / "phantoms") & HEAVY


def test_the_report_loads_no_torch():
    code = "import sys, app.stages.report, app.report.page; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib" in modules
    assert not {"torch", "torchvision"} & set(modules)


WRONG = {
    "unknown command": (["pretrian"], 2, "No such command 'pretrian'"),
    "unknown option": (["ls", "--stoer", "x"], 2, "--stoer"),
    "missing option": (["pretrain", "--method", "byol"], 2, "--run-id"),
    "unknown method": (["pretrain", "--run-id", "r", "--method", "simclr"], 2, "--method simclr: unknown"),
    "unknown preset": (["plan", "--preset", "recomended"], 2, "did you mean 'recommended'"),
    "ImageNet without its stem": (
        ["plan", "--set", "study.baselines=[random,imagenet]"],
        2,
        "network.stem=middle: ImageNet weights need the stock stem; use --set network.stem=stock",
    ),
    "preset file missing": (["plan", "--preset", "none.yaml"], 2, "cannot read it"),
    "unknown key": (["plan", "--set", "pretrain.epoch=3"], 2, "did you mean 'epochs'"),
    "wrong type": (["plan", "--set", "pretrain.epochs=ten"], 2, "pretrain.epochs: input should be a valid integer"),
    "out of range": (["plan", "--set", "pretrain.learning_rate=-1"], 2, "pretrain.learning_rate"),
    "size": (["plan", "--set", "data.size=33"], 2, "28, 32, 64, 128 or 224"),
    "not an assignment": (["plan", "--set", "pretrain.epochs"], 2, "section.key=value"),
    "bad source": (["plan", "--data", "chest"], 2, "name=URI"),
    "bad yaml": (["plan", "--set", "study.seeds=[1"], 2, "not valid YAML"),
    "unknown store": (["ls", "--store", "ftp://host/x"], 2, "unknown kind of store"),
    "unknown run": (["ls", "--run-id", "nothing"], 66, "no such run"),
    "report of nothing": (["report", "--run-id", "nothing"], 66, "no such run"),
    "unknown data set": (["data", "fetch", "--dataset", "lungmnist"], 2, "lungmnist"),
    "fetch size": (["data", "fetch", "--dataset", "breastmnist", "--size", "30"], 2, "--size 30"),
    "missing source": (["pretrain", "--run-id", "r", "--method", "byol", "--data", "c=none.npz"], 66, "none.npz"),
    "source with credentials": (
        ["pretrain", "--run-id", "r", "--method", "byol", "--data", "c=https://me:hidden@host/x.npz?sig=hidden"],
        2,
        "--data …=https://…: give a path or a file:// URI",
    ),
    "unknown protocol": (
        ["downstream", "--run-id", "r", "--dataset", "d", "--init", "random", "--protocol", "probe"],
        2,
        "--protocol probe: unknown",
    ),
    "threads": (["run", "--threads", "0"], 2, "--threads"),
    "channels": (["bench", "--channels", "2"], 2, "--channels"),
    "channels of views": (["bench", "views", "--channels", "2"], 2, "2 is neither 1 nor 3"),
    "device": (["run", "--device", "gpu"], 2, "device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(call, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    args, expected, message = WRONG[name]
    code, out, err = call(*args)
    assert (code, len(errors(err))) == (expected, 1), err
    assert message in err
    assert "Traceback" not in err + out
    assert "hidden" not in err + out
    assert not any(tmp_path.rglob("*")), "a failed command left something behind"


def test_a_bug_exits_with_70(call, monkeypatch):
    monkeypatch.setattr("app.stages.listing.list_store", lambda *_: 1 / 0)
    code, _, err = call("ls")
    assert code == 70
    assert "this is a bug" in err


def in_a_callback(number: int) -> None:
    """Python ignores what is raised in one; the import system has one for each module."""

    class Held: ...

    def come(_: object) -> None:
        signal.raise_signal(number)
        for _ in range(100):  # it is handled in here
            pass

    held = Held()
    kept = weakref.ref(held, come)
    del held
    time.sleep(10)
    pytest.fail(f"lost: {kept}")


def dropped(number: int) -> None:
    """As compiled code does that clears errors."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)
    time.sleep(10)
    pytest.fail("lost")


def another_error(number: int) -> None:
    """As pydantic does: its words, and no trace of what they are about."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)
    raise ValueError("cannot build a schema")


def tidy() -> None:
    for _ in range(35):
        time.sleep(0.01)
    Path("tidied").touch()


def tidied_up(number: int) -> None:
    """What a signal ends may take its time to tidy up."""
    try:
        signal.raise_signal(number)
        pytest.fail("went on")
    finally:
        tidy()


def left(number: int) -> None:
    """A generator tidies up when it is dropped with the frame that a signal ends, where no error is being handled."""

    def tidying() -> Iterator[None]:
        try:
            yield
        finally:
            tidy()

    for _ in tidying():
        signal.raise_signal(number)
        pytest.fail("went on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("meanwhile", [in_a_callback, dropped, another_error, tidied_up, left])
def test_a_signal_is_not_lost(call, monkeypatch, tmp_path, meanwhile, number):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.stages.listing.list_store", lambda *_: meanwhile(number))
    hook, before = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    code, out, err = call("ls")
    assert (code, out, errors(err)) == (75, "", [f"error: {number.name}: stopped; run the same command again"])
    assert Path("tidied").exists() == (meanwhile in (tidied_up, left))
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == (hook, before)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_nothing_is_to_be_saved_ends_with_75(call, monkeypatch, number):
    """While a stage loads, plans or reports: here it waits for a server that never answers."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    before = signal.getsignal(number)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Timer(1.0, os.kill, (os.getpid(), number)).start()
        begin = time.monotonic()
        code, out, err = call("ls", "--store", f"s3://byol/x?endpoint=http://127.0.0.1:{silent.getsockname()[1]}")
    assert (code, out, errors(err)) == (75, "", [f"error: {number.name}: stopped; run the same command again"])
    assert 0.9 < time.monotonic() - begin < 15, "the request is not tried again, which takes 20 s"
    assert signal.getsignal(number) is before


def test_a_ctrl_c_after_a_signal_ends_what_does_not_unwind():
    code = (
        "import os, signal, time\n"
        "from app.runtime import stop_now\n"
        "signal.signal(signal.SIGTERM, stop_now)\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "finally:\n"
        "    print('unwinding', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('not here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "unwinding\nstill\n")


def test_cuda_without_gpu_fails(call, tmp_path, phantoms):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    args = ["--store", tmp_path, "--run-id", "r", "--data-root", phantoms]
    code, _, err = call("pretrain", "--method", "byol", *args, *TINY, "--device", "cuda")
    assert code == 2
    assert "--device cuda: no usable GPU" in err


def test_missing_data_set_says_how_to_get_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
    code, _, err = call("plan", "--store", tmp_path / "s")
    assert code == 66
    assert "data fetch --dataset pneumoniamnist" in err
    assert len(errors(err)) == 1


def test_k_larger_than_a_class_fails_when_planned(call, tmp_path, phantoms):
    args = ["--store", tmp_path / "s", "--data-root", phantoms, *TINY, "--set", "protocols.few_shot.k=60"]
    code, _, err = call("plan", *args)
    assert code == 2
    assert "k=60 is larger than class" in err
    assert not (tmp_path / "s").exists()


def test_real_and_synthetic_data_do_not_mix(call, tmp_path, phantoms):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": rng.integers(
            0, 256 if kind == "images" else 2, (80, 28, 28) if kind == "images" else (80, 1)
        )
        for split in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    np.savez(tmp_path / "own.npz", **{k: v.astype(np.uint8) for k, v in arrays.items()})
    args = ["--data-root", phantoms, "--data", f"own={tmp_path / 'own.npz'}:binary", *TINY]
    code, _, err = call("plan", "--store", tmp_path / "s", *args, "--set", "study.datasets=[own]")
    assert code == 66
    assert "some data sets are real and some are phantoms" in err


def test_the_stages_one_by_one(call, tmp_path, phantoms):
    """Plan, pretrain, downstream and report as separate commands; then the ways in which they refuse."""
    store = ["--store", str(tmp_path / "s")]
    study = ["--set", "study.datasets=[breastmnist]", "--set", "study.protocols=[linear_probe]"]
    code, out, err = call("plan", *store, "--data-root", phantoms, *TINY, *study)
    assert code == 0, err
    run_id = out.strip()
    assert run_id.startswith("smoke-")
    assert len(run_id) == len("smoke-") + 8
    here = [*store, "--run-id", run_id]
    assert call("ls", *here)[1].count("missing") == 3

    init = ["downstream", *here, "--dataset", "breastmnist", "--protocol", "linear_probe", "--init"]
    code, _, err = call(*init, "byol-s0", "--threads", "1")
    assert code == 66, "its pretraining is not done"
    assert "python -m app pretrain --method byol --seed 0" in err

    code, _, err = call(*init, "byol", "--threads", "1")
    assert code == 66, "no seed: neither a pretraining nor a file"
    assert "byol: no such file" in err

    code, out, err = call("pretrain", *here, "--method", "byol", "--threads", "1")
    assert code == 0, err
    encoder = Path(out.strip())
    assert encoder.is_file()
    code, _, err = call("pretrain", *here, "--method", "byol", "--threads", "1")
    assert code == 0
    assert "already done" in err
    for name in ("byol-s0", "random", str(encoder)):
        code, out, err = call(*init, name, "--threads", "1")
        assert code == 0, err
        assert "auroc 0." in out
    code, out, _ = call("report", *here)
    assert code == 0
    assert "SYNTHETIC" in out
    assert (tmp_path / "s/runs" / run_id / "report/index.html").is_file()

    code, _, err = call("pretrain", *here, "--method", "byol", "--set", "pretrain.epochs=7")
    assert code == 2, "the plan says otherwise"
    assert "pretrain.epochs" in err

    other = [*store, "--run-id", "other", "--data-root", phantoms, *TINY]
    code, _, err = call("downstream", *other, "--dataset", "breastmnist", "--protocol", "linear_probe",
                        "--init", encoder, "--set", "network.stem=cifar")  # fmt: skip
    assert code == 66
    assert "was trained with stem stock" in err
    code, _, err = call("downstream", *other, "--dataset", "breastmnist", "--protocol", "linear_probe",
                        "--init", encoder, "--set", "network.architecture=resnet34")  # fmt: skip
    assert code == 66

    encoder.write_bytes(encoder.read_bytes()[:-8])
    code, _, err = call(*init, "byol-s0", "--threads", "1", "--overwrite")
    assert code == 66
    assert "SHA-256" in err
    record = tmp_path / "s/runs" / run_id / "downstream/breastmnist/random/linear_probe/s0/record.json"
    changed = json.loads(record.read_text())
    changed["science"]["protocol"]["epochs"] = 99
    record.write_text(json.dumps(changed))
    code, _, err = call(*init, "random", "--threads", "1")
    assert code == 2
    assert "protocol.epochs: 99 -> 5" in err


HOME_PATHS = {
    "store": ["ls", "--store=~/runs"],
    "apart": ["ls", "--store", "~/runs"],
    "plan": ["plan", "--store=~/runs", "--data-root=~/phantoms", "--out=~/out"],
    "preset": ["plan", "--store=~/runs", "--preset=~/own.yaml", "--data-root=~/phantoms"],
    "own data": ["plan", "--store=~/runs", "--data=scans=~/scans.npz", "--set", "data.pretrain=scans"],
    "phantoms": ["data", "phantoms", "--data-root=~/drawn"],
    "picture": ["views", "--store=~/runs", "--data-root=~/phantoms", "--out=~/views.png"],
    "mirror": ["data", "fetch", "--dataset=breastmnist", "--mirror=~/phantoms", "--data-root=~/got"],
}  # fmt: skip


@pytest.mark.parametrize("name", HOME_PATHS)
def test_a_tilde_is_the_home_folder_in_every_option(call, phantoms, tmp_path, monkeypatch, name):
    """Neither is a folder called ~ made, nor one looked for."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
    monkeypatch.chdir(work)
    (home / "phantoms").symlink_to(phantoms)
    np.savez(home / "scans.npz", images=np.zeros((80, 28, 28), np.uint8), synthetic=True)
    (home / "own.yaml").write_text("extends: smoke\ndata: {subset: 64, phantoms: never}\n")
    args = HOME_PATHS[name]
    options = TINY if args[0] in ("plan", "views") and name != "preset" else []
    more = ["--data-root", phantoms] if name == "own data" else []
    code, out, err = call(*args, *options, *more)
    if name == "mirror":
        assert (code, f"{home}/phantoms/breastmnist.npz" in err) == (66, True), "a phantom is not MedMNIST's file"
    else:
        assert code == 0, err
    assert "~" not in out
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["ls", "--store=~nobody-here/runs"],
        ["pretrain", "--run-id=r", "--method=byol", "--data=c=~nobody-here/c.npz"],
        ["plan", "--preset=smoke", "--set=data.phantoms=never", "--data-root=~nobody-here"],
        ["downstream", "--run-id=r", "--dataset=breastmnist", "--protocol=finetune", "--init=~nobody-here/w.pt"],
    ],
)
def test_the_home_of_nobody_is_said_to_be_unknown(call, phantoms, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDMNIST_ROOT", str(phantoms if "downstream" in args else tmp_path))
    code, _, err = call(*args)
    assert (code, len(errors(err))) == (2, 1), err
    assert "~nobody-here" in err


def test_the_version_is_the_packages(call):
    assert call("--version")[:2] == (0, f"byol-med {app.__version__}\n")


def test_the_console_script_is_the_command_line_and_completes_words():
    """By Typer's own completion, as a shell calls it."""
    scripts = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["byol-med"].partition(":")
    code = f"import sys; sys.argv = ['byol-med']; from {module} import {name}; {name}()"
    shell = {"_BYOL_MED_COMPLETE": "complete_bash", "COMP_WORDS": "byol-med pre", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | shell, capture_output=True, text=True)
    assert done.stdout.split() == ["pretrain", "predict"], done.stderr
