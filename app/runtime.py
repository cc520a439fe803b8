"""The machine under a job: device, threads, signals."""

from __future__ import annotations

import contextlib
import ctypes
import functools
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
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``mps`` to a device that works.

    ``auto`` never takes Apple's ``mps``, on which nothing here has been tried.

    Raises:
        UsageError: ``cuda`` or ``mps`` without a usable GPU (they never fall back), or another word.
    """
    import torch

    if name not in ("auto", "cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: unknown; choose auto, cpu, cuda or mps")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: no Apple GPU, or a torch without it; use --device cpu")
        return name
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

    keep_memory()
    torch.set_num_threads(max(1, (threads or _cores()) // processes))
    torch.set_flush_denormal(True)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # NVIDIA's word for products that repeat themselves
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # read when torch compiles for the first time


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as in malloc.h


def keep_memory() -> None:
    """Let malloc keep for the next step what this one frees.

    glibc gives large blocks back to the system at once. Each step then takes them anew, page by page: 40,000 faults and
    a tenth of a second in a step of 256 images. Other C libraries are left alone.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def _cores() -> int:
    """Threads that torch starts with, on the cores that it may use: kept, as an earlier job may have set fewer."""
    import torch

    return min(torch.get_num_threads(), cores())


def precision_on(device: str, wanted: str) -> str:
    """Resolve ``auto``: bfloat16 on a GPU or a CPU that computes in it, else float32.

    RESULTS.md, "bfloat16 beside float32", has the study of what that costs.

    Args:
        device: ``cpu`` or ``cuda``.
        wanted: ``auto``, ``float32`` or ``bfloat16``.
    """
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        computes = not set(BFLOAT16_FLAGS).isdisjoint(cpu_flags())
    return "bfloat16" if computes else "float32"


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


BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
FLAGS = ("avx2", "avx512f", *BFLOAT16_FLAGS)  # that decide how fast products of matrices are


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

    Attributes:
        came: name of the signal that was raised within ``never_lost``; None before there was one.
    """

    came: str | None = None


def stop_now(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal where nothing is to be saved: unwind, and at a Ctrl-C after it exit at once.

    Another SIGTERM says nothing new: Kubernetes sends one, and Argo one or two of its own.

    Raises:
        Stopped: always, with the signal's name.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda second, _: os._exit(128 + second))
    name = signal.Signals(number).name
    if signal.getsignal(signal.SIGALRM) is _raise_again:
        Stopped.came = name
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    raise Stopped(name)


def _raise_again(_number: int, _frame: FrameType | None) -> None:
    """Raise what a signal raised once more, unless what runs now does so because of it.

    That is a ``finally``, say, or the end of a generator that is left. A ``__del__`` cannot be told from other code.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped | GeneratorExit):
            return
        error = error.__context__
    if Stopped.came is not None:  # somebody else may send the alarm
        raise Stopped(Stopped.came)


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """Raise ``Stopped`` until it arrives here.

    Python ignores what is raised in a callback of the garbage collector or of a weak reference; the import system has
    one for each module. Compiled code that calls Python may drop it too, or make an error of its own of it, as pydantic
    does while a class is built. Most of a command's first second is such code.

    Raises:
        Stopped: a signal came, whatever became of it, if there was still something to stop.
    """
    hook, before = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    Stopped.came = None
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Stopped) else hook(lost)
    signal.signal(signal.SIGALRM, _raise_again)
    try:
        yield
    except Exception as error:
        if Stopped.came is None:
            raise
        raise Stopped(Stopped.came) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = hook


def end_with_the_parent(code: int) -> None:
    """End this process, one of ``multiprocessing``, once its parent is gone, killed perhaps."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "a process of multiprocessing has a parent"
        parent.join()
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


class StopRequest:
    """SIGTERM or SIGINT asks the loop to stop at the next step; a Ctrl-C after it ends the process at once.

    Another SIGTERM says nothing new: Kubernetes sends one, and Argo one or two of its own while a checkpoint is saved.

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
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
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
            # Who was asked to stop is unwinding now, and another SIGTERM must not cut off the release of its claim.
            leaving = self.signal is not None and number == signal.SIGTERM and previous is stop_now
            signal.signal(number, signal.SIG_IGN if leaving else previous)
