"""What keeps a study from running here: one line for each thing that it needs, with what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.data import is_archive
from app.errors import AppError, InputError, StorageError, UsageError
from app.jobs import keys
from app.jobs.run import Run, monitor_name, search
from app.machine import available_memory, cache_folder, cores
from app.quantities import size_in_words
from app.runtime import choose_device, cpu_flags, cpu_model
from app.settings import Config
from app.storage import FolderStore, Store

Mark = Literal["ok", "warn", "fail"]
SHARED, MEMORY, DISK = 64 * 10**6, 2 * 10**9, 2 * 10**9  # bytes below which something is said
CLOCK = 60.0  # seconds that a store's clock may be off
EXTRAS = {
    "dicom": ("pydicom", "jpeg_ls", "pylibjpeg", "libjpeg", "openjpeg"),
    "parquet": ("pyarrow",),
    "export": ("onnx", "onnxruntime", "onnxscript", "captum"),
    "track": ("mlflow", "tensorboard"),
    "argo": ("argo_workflows",),
    "peers": ("byol_pytorch", "kornia", "lightly"),
}


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        name: of what was checked.
        mark: whether a study can run with it: ok, or with a word of warning, or not.
        said: what there is, and, unless all is well, what to do.
        error: what would end the study.
    """

    name: str
    mark: Mark
    said: str
    error: AppError | None = None

    def __str__(self) -> str:
        return f"{self.mark:<5} {self.name:<14} {self.said}"


class Doubt(Exception):
    """Something is not as it should be, but a study can run."""


Check = Callable[[], str]


def examine(open_store: Callable[[], Store], config: Config) -> Iterator[Finding]:
    """Check everything that a study with these settings needs, one after the other.

    Args:
        open_store: opens the store, or says why it cannot.
        config: the settings.
    """
    yield _find("Python", python)
    yield _find("torch", torch_version)
    yield _find("CPU", cpu)
    yield _find("threads", lambda: threads(config))
    yield _find("memory", memory)
    yield _find("GPU", lambda: gpu(config.runtime.device))
    yield _find("shared memory", shared_memory)
    yield _find("temporary", lambda: room(Path(tempfile.gettempdir()), "set TMPDIR to a folder with more"))
    yield _find("cache", cache)
    yield (found := _find("store", lambda: store_works(open_store())))
    if found.error is None:
        for name in dict.fromkeys([*config.study.datasets, *([config.data.pretrain] if config.study.methods else [])]):
            yield _find(name, lambda name=name: dataset(Run(open_store(), "", config), name))  # type: ignore[misc]
        yield _find("monitor", lambda: monitor(Run(open_store(), "", config)))
    yield _find("extras", extras)
    yield _find("Argo", argo)


def verdict(findings: list[Finding]) -> str:
    """Say whether a study can run.

    Raises:
        AppError: it cannot; of the kind of the first thing that keeps it from running.
    """
    failed = [finding for finding in findings if finding.error is not None]
    if failed:
        first = failed[0].error
        assert first is not None, "a finding that failed has an error"
        raise type(first)(
            f"doctor: a study cannot run here: {', '.join(finding.name for finding in failed)}; see above"
        )
    doubts = sum(finding.mark == "warn" for finding in findings)
    return "a study can run here" + (f", with {doubts} warning{'s' * (doubts > 1)}" if doubts else "")


def _find(name: str, check: Check) -> Finding:
    try:
        return Finding(name, "ok", check())
    except Doubt as doubt:
        return Finding(name, "warn", str(doubt))
    except AppError as error:
        return Finding(name, "fail", str(error), error)


# --- the machine


def python() -> str:
    """Python's version."""
    said = f"{platform.python_version()} on {platform.platform(terse=True)}"
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise UsageError(f"{said}; 3.11 or 3.12 is needed")
    return said


def torch_version() -> str:
    """The versions of torch and torchvision, and whether they load."""
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"cannot be loaded ({' '.join(str(error).split())[:120]}); `make`, or install it anew"
        ) from error
    return f"{torch.__version__}, torchvision {torchvision.__version__}"


def cpu() -> str:
    """The CPU's name and the instructions that decide its speed."""
    flags = cpu_flags()
    said = f"{cpu_model()}, {' '.join(flags) or 'none of avx2, avx512f'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        raise Doubt(f"{said}: several times slower than with avx2; use another node for pretraining")
    return said


def threads(config: Config) -> str:
    """Threads that torch would take against the cores that this process may use."""
    import torch

    allowed, there = cores(), os.cpu_count() or 1
    asked = config.runtime.threads or torch.get_num_threads()
    said = f"{asked} on {allowed} cores" + (f" (of {there}: affinity or cgroup)" if allowed < there else "")
    if config.runtime.threads is not None and asked > allowed:
        raise Doubt(f"{said}: more threads than cores slow each other down; use --threads {allowed}")
    return said


def memory() -> str:
    """Memory that is free, or that the cgroup still allows."""
    free = available_memory()
    if free is None:
        raise Doubt("cannot be told on this system")
    if free < MEMORY:
        raise Doubt(f"{size_in_words(free)} left; a pretraining takes about 2 GB: free some, or lower the batch_size")
    return f"{size_in_words(free)} left"


def gpu(asked: str) -> str:
    """The GPU that would be used, and the driver."""
    import torch

    device = choose_device(asked)
    driver = _driver()
    if device == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        said = f"{', '.join(names)}, driver {driver or 'unknown'}, {size_in_words(free)} of {size_in_words(total)} free"
        if free < 0.2 * total:
            raise Doubt(f"{said}: another process has it; see nvidia-smi")
        return said
    if driver is not None and asked == "auto":
        raise Doubt(
            f"driver {driver}, but torch {torch.__version__} finds no usable GPU: the CPU would be used; "
            "update the driver (580 or newer), or install the torch that fits it"
        )
    return f"{device}: no GPU is used"


def _driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def shared_memory() -> str:
    """Room in /dev/shm, which several workers and GPUs need."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        raise Doubt("there is no /dev/shm: `--workers` stays at one job at a time")
    total = shutil.disk_usage(folder).total
    if total <= SHARED:
        raise Doubt(
            f"{size_in_words(total)}: too little for several GPUs; docker run --shm-size 1g, or an emptyDir in memory"
        )
    return size_in_words(total)


def room(folder: Path, remedy: str) -> str:
    """Free room where a folder is, or would be."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; {remedy}") from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: cannot be written; {remedy}")
    if free < DISK:
        raise Doubt(f"{folder}: {size_in_words(free)} free; {remedy}")
    return f"{folder}: {size_in_words(free)} free"


def cache() -> str:
    """The user's folder for what can be made anew."""
    if (folder := cache_folder("images")) is None:
        raise Doubt("no folder for caches can be written: images are decoded, and kernels measured, in every job; "
                    "set XDG_CACHE_HOME")  # fmt: skip
    return room(folder.parent, "set XDG_CACHE_HOME to a folder with more")


# --- the store and the data


def store_works(store: Store) -> str:
    """Write, read, write under a condition, and compare the clocks; then look at the room, of which little may do."""
    key = keys.probe(secrets.token_hex(8))
    try:
        first = store.create(key, b"1")
        if first is None or store.create(key, b"2") is not None:
            raise UsageError(f"{store.uri}: does not keep the condition of a write; add conditional_writes=off, where "
                             "no job ever runs twice at once")  # fmt: skip
        if store.replace(key, b"3", first) is None or store.replace(key, b"4", first) is not None:
            raise UsageError(f"{store.uri}: does not keep the condition of a replacement; add conditional_writes=off")
        found = store.read_version(key, exact_age=True)
        if found.data != b"3":
            raise StorageError(f"{store.uri}: what is read is not what was written; check what lies in between")
        if abs(found.age) > CLOCK:
            raise Doubt(f"{store.uri}: its clock is {found.age:+.0f} s off this machine's; set both by NTP")
    finally:
        store.delete(key)
    if isinstance(store, FolderStore):
        room(store.root, "choose another --store")
    return f"{store.uri}: reads, writes, keeps conditions"


def dataset(run: Run, name: str) -> str:
    """Where a data set is."""
    found, size = search(run, name), run.config.data.size
    if found is None:
        if run.config.data.phantoms in ("if_missing", "always"):
            hint = f"`data fetch --dataset {name} --size {size}`"
            raise Doubt(f"no file: it would be downloaded, or else a SYNTHETIC phantom; {hint}")
        raise InputError(
            f"no file; `python -m app data fetch --dataset {name} --size {size}`, or give --data {name}=FILE"
        )
    path, _ = found
    if not path.exists():
        raise InputError(f"{path}: no such file; check --data")
    if path.is_file() and not is_archive(path):
        raise InputError(f"{path}: truncated or damaged; fetch it again")
    return str(path)


def monitor(run: Run) -> str:
    """The labelled set that pretraining is watched by."""
    if run.config.data.monitor is None:
        return "none is asked for"
    name = monitor_name(run)
    if name is None:
        raise Doubt(f"no file of {run.config.data.monitor}: pretraining goes on without its k-NN monitor")
    return name


# --- beside


def extras() -> str:
    """Which optional libraries are installed."""
    there = [extra for extra, names in EXTRAS.items() if all(importlib.util.find_spec(name) for name in names)]
    missing = [extra for extra in EXTRAS if extra not in there]
    said = f"{', '.join(there) or 'none'} installed"
    return said + (f"; pip install '.[{','.join(missing)}]' in a clone for the others" if missing else "")


def argo() -> str:
    """Whether a cluster can be talked to; a study on one machine needs none."""
    from app.cluster.argo import ArgoServer, server_url

    if not os.environ.get("ARGO_SERVER"):
        return "no ARGO_SERVER: studies run on this machine (`run`)"
    try:
        server = ArgoServer(server_url(None), os.environ.get("ARGO_NAMESPACE") or "argo")
        return f"{server.url}: {server.version()}"
    except AppError as error:
        raise Doubt(str(error)) from error
