import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from app import runtime
from app.errors import UsageError
from app.progress import Bar, Progress
from app.runtime import StopRequest, choose_device, cpu_model, environment, git_commit, prepare

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def lines(capsys):
    out, err = capsys.readouterr()
    assert out == ""  # standard output is for results
    return [json.loads(line) for line in err.splitlines()]


# Device


@pytest.mark.parametrize(
    ("asked", "gpu", "got"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_device(monkeypatch, asked, gpu, got):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert choose_device(asked) == got


def test_cuda_without_a_gpu_fails_and_never_falls_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"^--device cuda: no usable GPU .*driver 580.*--device cpu$") as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="--device tpu: unknown"):
        choose_device("tpu")


def test_mps_is_taken_where_there_is_one_and_never_by_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (choose_device("mps"), choose_device("auto")) == ("mps", "cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device mps: no Apple GPU"):
        choose_device("mps")


def test_threads_are_set_only_when_asked_for():
    prepare("cpu", None)
    assert torch.get_num_threads() == 1
    prepare("cpu", 2)
    assert torch.get_num_threads() == 2


def test_the_environment_is_plain_and_complete(monkeypatch):
    monkeypatch.setenv("REVISION", "abc123")
    found = environment("cpu")
    assert found["git_commit"] == "abc123"
    assert found["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["python"].startswith("3.")
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found


def test_the_commit_is_gits_or_unknown(monkeypatch, tmp_path):
    monkeypatch.delenv("REVISION", raising=False)
    if (ROOT / ".git").exists():
        head = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert git_commit().removesuffix("-dirty") == head[:12]
    monkeypatch.setattr(runtime.app, "__file__", str(tmp_path / "app" / "__init__.py"))
    assert git_commit() == "unknown"
    assert cpu_model()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopRequest():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_ctrl_c_after_a_signal_ends_the_process_at_once_and_a_sigterm_does_not():
    """Argo sends SIGTERM two or three times to a job that saves its checkpoint."""
    code = (
        "import os, signal, time\n"
        "from app.runtime import StopRequest\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('not here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "still here\n"
    assert done.returncode == 128 + signal.SIGINT


def test_another_sigterm_does_not_cut_off_what_unwinds():
    code = (
        "import os, signal, time\n"
        "from app.runtime import StopRequest, stop_now\n"
        "signal.signal(signal.SIGTERM, stop_now)\n"
        "with StopRequest():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('released', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "released\n")


# Progress


def test_a_message_is_one_json_line_with_its_context(capsys):
    Progress("pretrain", run_id="r", job="byol-s0").say("continues", step=7)
    [line] = lines(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {"stage": "pretrain", "run_id": "r", "job": "byol-s0", "message": "continues", "step": 7}


def test_the_bar_speaks_first_then_every_few_seconds_and_at_the_end(capsys, clock):
    with Progress("pretrain", job="j").bar(20) as bar:
        for _ in range(20):
            bar.advance(loss=0.5)
            clock[0] += 1.0
    said = lines(capsys)
    assert [line["done"] for line in said] == [1, 6, 11, 16, 20]
    assert {line["total"] for line in said} == {20}
    assert all(line["loss"] == 0.5 and line["job"] == "j" and line["stage"] == "pretrain" for line in said)


def test_a_resumed_bar_counts_on(capsys, clock):
    with Progress("pretrain").bar(10, done=8) as bar:
        bar.advance()
        bar.advance()
    assert [line["done"] for line in lines(capsys)] == [9, 10]


def test_argos_progress_file_is_written(tmp_path, monkeypatch, capsys, clock):
    file = tmp_path / "progress"
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(file))
    seen = []
    with Progress("pretrain").bar(12) as bar:
        for _ in range(12):
            bar.advance()
            seen.append(file.read_text())
            clock[0] += 1.0
    assert seen == ["1/12\n"] * 5 + ["6/12\n"] * 5 + ["11/12\n", "12/12\n"]


def test_a_progress_file_that_cannot_be_written_does_not_end_the_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ARGO_PROGRESS_FILE", str(tmp_path / "nowhere" / "progress"))
    with Progress("pretrain").bar(1) as bar:
        bar.advance()
    assert lines(capsys)[-1]["done"] == 1


def test_a_terminal_gets_a_bar_and_no_json(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("pretrain", job="byol-s0")
    progress.say("begins", step=1)
    with progress.bar(3) as bar:
        bar.advance(loss=0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert "pretrain: begins" in err
    assert "{" not in err
    assert "1/3" in err


def bar_at(monkeypatch, clock, *, job="byol_plus-s0", stage="pretrain", total=131_100, done=0, fields=True):
    """A bar that has done a hundred steps of 0.8 s."""
    bar = Bar(Progress(stage, job=job), total, done)
    measured = {"loss": 1.2345, "target_std": 0.9123, "rank_me": 88.21, "knn_accuracy": 0.8871, "knn_auroc": 0.9512}
    for _ in range(100):
        clock[0] += 0.8
        bar.advance(**(measured if fields else {}))
    return bar


LONG = "dermamnist_reconstructed/byol_plus-s0/few_shot_frozen/s0"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize(("stage", "job"), [("pretrain", "byol_plus-s0"), ("downstream", LONG), ("bench", "")])
def test_a_bar_fits_its_terminal_with_count_and_time(monkeypatch, capsys, clock, width, stage, job):
    """Drawn by Rich on a terminal of that width: one line, with bar, count and time left, and no field cut short."""
    bar = bar_at(monkeypatch, clock, stage=stage, job=job)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="256")
    console.print(bar)
    [line] = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue()).splitlines()
    assert len(line) <= width
    assert "━" * 10 in line
    assert "100/131100 29:06:40 left" in line
    assert line.startswith(stage[:5])
    shown = line.split(" left")[1].split("  ")[1:]
    whole = ["loss 1.234", "target_std 0.9123", "rank_me 88.21", "knn_accuracy 0.8871", "knn_auroc 0.9512"]
    assert [field.strip() for field in shown] == whole[: len(shown)]
    if width == 200:
        assert (job in line, len(shown)) == (True, 5)


def test_a_bar_follows_a_terminal_that_is_made_narrower(monkeypatch, capsys, clock):
    bar = bar_at(monkeypatch, clock)
    lengths = [len(bar.layout(width)[2]) for width in (120, 100, 80)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3
    assert bar.layout(20)[1] == 0, "no room for the bar itself, and no error"


def test_the_time_left_is_of_this_process_without_its_first_step(monkeypatch, capsys, clock):
    bar = Bar(Progress("pretrain"), 50, done=40)
    assert bar.seconds_left is None
    clock[0] += 60.0  # compiles
    bar.advance()
    assert bar.seconds_left == 9 * 60
    for _ in range(4):
        clock[0] += 2.0
        bar.advance()
    assert bar.seconds_left == 5 * 2
    clock[0] += 1.0
    assert bar.seconds_left == 5 * 2 - 1, "it runs down during a step"
    for _ in range(5):
        clock[0] += 2.0
        bar.advance()
    assert bar.seconds_left == 0
    assert bar.layout(80)[2] == "50/50 in 0:01:19"


def test_lines_of_a_log_tell_the_time_left(capsys, clock):
    with Progress("pretrain").bar(20) as bar:
        for _ in range(20):
            clock[0] += 2.0
            bar.advance()
    assert [line["seconds_left"] for line in lines(capsys)] == [2.0 * left for left in (19, 16, 13, 10, 7, 4, 1, 0)]


# What is chosen by device


def test_processes_share_the_threads_of_every_job_anew():
    runtime.prepare("cpu", None)
    cores = torch.get_num_threads()
    for _ in range(2):
        runtime.prepare("cpu", 4, processes=2)
        assert torch.get_num_threads() == 2
    runtime.prepare("cpu", 1, processes=3)
    assert torch.get_num_threads() == 1
    runtime.prepare("cpu", None)
    assert torch.get_num_threads() == cores, "not what the job before left"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_of_one_step_serves_the_next():
    code = """
import resource, torch
from app.runtime import prepare
prepare("cpu", 1)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = []
for number in range(8):
    before = faults()
    for size in (5, 40, 70):  # MB
        torch.zeros(size * 250_000)
    found.append(faults() - before)
print(min(found))
"""
    plain = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    ran = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 1000, "of the 28,000 pages that these are; the first times find their places"


def test_precision_by_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    assert runtime.precision_on("cuda", "auto") == "bfloat16"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert runtime.precision_on("cuda", "auto") == "float32"
    for flags, computes in (([], "float32"), (["avx2", "avx512f"], "float32"), (["avx512_bf16"], "bfloat16")):
        monkeypatch.setattr(runtime, "cpu_flags", lambda flags=flags: flags)
        assert runtime.precision_on("cpu", "auto") == computes
        for wanted in ("float32", "bfloat16"):
            assert runtime.precision_on("cpu", wanted) == wanted


def test_compilation_by_device_and_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/usr/bin/{name}")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(runtime.sysconfig, "get_path", lambda name: str(tmp_path))
    assert runtime.compiles_on("cuda", "auto", 25_000)
    assert not runtime.compiles_on("cuda", "auto", 24_999)
    assert runtime.compiles_on("cuda", "always", 1)
    assert not runtime.compiles_on("cuda", "never", 25_000)
    assert not runtime.compiles_on("cpu", "auto", 25_000)
    assert runtime.compiles_on("cpu", "always", 1)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert not runtime.compiles_on("cuda", "auto", 25_000)
    with pytest.raises(UsageError, match="needs a C compiler"):
        runtime.compiles_on("cpu", "always", 1)
