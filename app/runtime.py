"""The machine under a job: device, threads, signals, progress."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import app
from app.errors import StorageError, UsageError
from app.machine import cores

SIGNALS = (signal.SIGTERM, signal.SIGINT)
COMPILED_STEPS = 25_000  # that pay for compiling: on an H200 it takes 50 to 70 s and saves 2.4 to 3 ms a step


def choose_device(name: str) -> str:
    """Resolve ``auto``, ``cpu`` or ``cuda`` to a device that works.

    Raises:
        UsageError: ``cuda`` without a usable GPU (it never falls back), or another word.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: unknown; choose auto, cpu or cuda")
    with warnings.catch_warnings():  # torch's words on an old driver; the line below says it
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            f"--device cuda: no usable GPU (torch {torch.__version__} needs an NVIDIA GPU and driver 580 or newer); "
            "check nvidia-smi, or use --device cpu"
        )
    return "cuda" if available and name != "cpu" else "cpu"


def prepare(device: str, threads: int | None, processes: int = 1) -> None:
    """Set thread count and numerics: denormals count as 0; on the GPU, TF32 and convolutions that repeat themselves.

    With the same thread count the CPU repeats itself bit for bit; so does a GPU of the same kind, without cuDNN's
    choice of convolutions by their time (which gains nothing, measured on an H200) and those whose sums have no order
    (6 %).

    Args:
        device: ``cpu`` or ``cuda``.
        threads: intra-op threads; None: as many as torch found cores.
        processes: that share them.
    """
    import torch

    torch.set_num_threads(max(1, (threads or _cores()) // processes))
    torch.set_flush_denormal(True)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # NVIDIA's word for products that repeat themselves
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # read when torch compiles for the first time


@functools.cache
def _cores() -> int:
    """Threads that torch starts with, on the cores that it may use: kept, as an earlier job may have set fewer."""
    import torch

    return min(torch.get_num_threads(), cores())


def precision_on(device: str, wanted: str) -> str:
    """Resolve ``auto``: bfloat16 on a GPU that computes in it, float32 on a CPU, where it costs no accuracy.

    Args:
        device: ``cpu`` or ``cuda``.
        wanted: ``auto``, ``float32`` or ``bfloat16``.
    """
    import torch

    if wanted != "auto":
        return wanted
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def compiles_on(device: str, wanted: str, steps: int) -> bool:
    """Resolve ``auto``: compile on a GPU what pays for it, where Triton can (a C compiler and Python's headers).

    Args:
        device: ``cpu`` or ``cuda``.
        wanted: ``auto``, ``always`` or ``never``.
        steps: of the whole training.

    Raises:
        UsageError: ``always`` without a compiler.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "cc", "clang"]
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    there = any(shutil.which(name) for name in names) and headers.exists()
    if wanted == "always" and not there:
        raise UsageError(f"runtime.compile=always: needs a C compiler and {headers}; install both, or say auto")
    return wanted == "always" or (wanted == "auto" and device == "cuda" and there and steps >= COMPILED_STEPS)


def environment(device: str) -> dict[str, Any]:
    """Describe where a job runs: versions, commit, device, CPU, threads. Recorded, never compared."""
    import numpy
    import torch
    import torchvision

    return {
        "app": app.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str:
    """Return the commit of the code: ``$REVISION`` (set in the image), else git's, else ``unknown``."""
    if revision := os.environ.get("REVISION"):
        return revision
    root = Path(app.__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # no git here, or a checkout of another owner: worth no more than a blank


FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that decide how fast products of matrices are


def cpu_model() -> str:
    """Return the CPU's name as the system gives it, with the number of its model: some clouds' names say little."""
    about = _cpuinfo()
    name = about.get("model name", platform.processor() or platform.machine())
    return f"{name}, model {about['model']}" if "model" in about else name


def machine_of(device: str) -> str:
    """Return what decides how results are rounded: the GPU's name, or the CPU's."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def cpu_flags() -> list[str]:
    """Return the CPU's instructions that matter to speed, as Linux names them."""
    return sorted(set(FLAGS) & set(_cpuinfo().get("flags", "").split()))


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


class Stopped(BaseException):
    """A signal came where no loop listens for it: while loading, planning, reporting.

    No Exception, because libraries catch those: to botocore any in the midst of a request is a connection that
    failed, and would be tried again.
    """


def stop_now(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal where nothing is to be saved: unwind, and at a second signal exit at once.

    Raises:
        Stopped: always, with the signal's name.
    """
    for each in SIGNALS:
        signal.signal(each, lambda second, _: os._exit(128 + second))
    raise Stopped(signal.Signals(number).name)


def end_with_the_parent(code: int) -> None:
    """End this process, one of ``multiprocessing``, once its parent is gone, killed perhaps."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "a process of multiprocessing has a parent"
        parent.join()
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


class StopRequest:
    """SIGTERM or SIGINT asks the loop to stop at the next step; a second one ends the process at once.

    Args:
        grace: seconds from the signal after which the process ends in any case, with the exit code of a
            storage error: what is still to be saved then cannot be. None waits for ever.
        on_signal: called with ``grace`` when the signal comes.
    """

    signals: tuple[signal.Signals, ...] = SIGNALS  # fewer in the workers of a runner, which passes signals on

    def __init__(self, grace: float | None = None, on_signal: Callable[[float], None] | None = None) -> None:
        self.signal: str | None = None
        self.at = 0.0
        self.grace = grace
        self._on_signal = on_signal
        self._previous: dict[int, Any] = {}
        self._ended = threading.Event()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def left(self) -> float:
        """Seconds of the grace period that are left; infinite without one, or without a signal."""
        return math.inf if self.signal is None or self.grace is None else self.at + self.grace - time.monotonic()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.at = time.monotonic()
        self.signal = signal.Signals(number).name
        if self._on_signal is not None and self.grace is not None:
            self._on_signal(self.grace)

    def _watch(self) -> None:
        # The signal's handler cannot wake this thread: it may have interrupted the holder of the very lock.
        while not self._ended.wait(0.2):
            if self.left <= 0:
                late = f"error: {self.signal}: not done after {self.grace:g} s of grace; run the same command again"
                print(late, file=sys.stderr, flush=True)
                os._exit(StorageError.exit_code)

    def __enter__(self) -> StopRequest:
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._receive)
        if self.grace is not None:
            threading.Thread(target=self._watch, name="grace", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for number, previous in self._previous.items():
            signal.signal(number, previous)


class Progress:
    """What a long job says while it works: a bar on a terminal, JSON lines otherwise.

    Both go to standard error, so that standard output holds results alone. Where Argo names a progress
    file, ``done/total`` is written there too.

    Args:
        stage: the word in front.
        **context: fields of every JSON line, such as ``run_id`` and ``job``.
    """

    every_seconds = 5.0
    bars = True  # False in the workers of a runner, whose bars would overwrite each other

    def __init__(self, stage: str, **context: Any) -> None:
        self.stage, self.context = stage, context
        self._file = os.environ.get("ARGO_PROGRESS_FILE")

    def say(self, message: str, **fields: Any) -> None:
        """Print one message at once."""
        if sys.stderr.isatty():
            with contextlib.suppress(BrokenPipeError):  # nobody reads on, which does not concern the job
                print(f"{self.stage}: {message}", file=sys.stderr, flush=True)
        else:
            self._line(message=message, **fields)

    def _line(self, **fields: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": stamp, "stage": self.stage} | self.context | fields
        with contextlib.suppress(BrokenPipeError):  # nobody reads on, which does not concern the job
            print(json.dumps(line), file=sys.stderr, flush=True)

    def write_progress_file(self, done: int, total: int) -> None:
        """Write ``done/total`` to Argo's progress file, if there is one."""
        if self._file:
            with contextlib.suppress(OSError):  # what watches the job must not end it
                Path(self._file).write_text(f"{done}/{total}\n")

    @contextlib.contextmanager
    def bar(self, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar of ``total`` steps of which ``done`` are done."""
        bar = Bar(self, total, done)
        try:
            yield bar
        finally:
            bar.close()


class Bar:
    """One running bar; see ``Progress.bar``. On a terminal it draws itself anew four times a second."""

    shortest, longest = 10, 40  # columns of the bar itself

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress, self._total, self._start, self._done = progress, total, done, done
        self._begin = self._now = time.monotonic()
        self._first = 0.0  # when the first step was done: it takes longer than others, and is not counted if it can be
        self._said = -math.inf
        self._fields: list[str] = []
        self._live: Any = None
        if sys.stderr.isatty() and Progress.bars:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()

    def advance(self, **fields: float) -> None:
        """One step is done; ``fields`` are shown beside it."""
        self._done += 1
        self._now = time.monotonic()
        if self._done == self._start + 1:
            self._first = self._now
        self._fields = [f"{key} {value:#.4g}" for key, value in fields.items()]
        if self._now - self._said >= self._progress.every_seconds or self._done >= self._total:
            self._said = self._now
            self._progress.write_progress_file(self._done, self._total)
            if not sys.stderr.isatty():
                left = self.seconds_left
                known = {} if left is None else {"seconds_left": round(left)}
                self._progress._line(done=self._done, total=self._total, **known, **fields)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all steps are done, as long as those since the start took; None before there was one."""
        steps = self._done - self._start
        if steps == 0:
            return None
        pace = (self._now - self._first) / (steps - 1) if steps > 1 else self._now - self._begin
        return max(0.0, (self._total - self._done) * pace - (time.monotonic() - self._now))

    def layout(self, width: int) -> tuple[str, int, str]:
        """Return what fits into ``width`` columns: the name, the columns of the bar, and what stands behind it.

        The count and the time left come first, then the name, cut in its middle if need be, a bar, and as many of
        the fields as there is room for.
        """
        left = self.seconds_left
        if self._done >= self._total:
            behind = f"{self._done}/{self._total} in {_clock(time.monotonic() - self._begin)}"
        else:
            behind = f"{self._done}/{self._total} {'-:--:--' if left is None else _clock(left)} left"
        name = f"{self._progress.stage} {self._progress.context.get('job', '')}".strip()
        name = _cut(name, max(8, width - len(behind) - self.shortest - 2))
        room = width - len(name) - len(behind) - 2
        for field in self._fields:
            if len(field) + 2 > room - self.shortest:
                break
            behind += f"  {field}"
            room -= len(field) + 2
        return name, max(0, min(self.longest, room)), behind

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draw the bar for as wide a terminal as there is just now."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        name, columns, behind = self.layout(options.max_width)
        line = Table.grid(padding=(0, 1))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_row(name, ProgressBar(self._total, self._done, columns) if columns else "", behind)
        yield line

    def close(self) -> None:
        """Leave the bar as it is on the terminal."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cut(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns, by an ellipsis for its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
