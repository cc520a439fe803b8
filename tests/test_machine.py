"""Machines that lack a home, cores, memory, semaphores or signs."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app import cli, machine
from app.errors import MACHINE_ERRORS, InputError, StorageError, UsageError
from app.jobs.job import Job
from app.machine import as_text, cache_folder, cores, enough_memory, home, out_of_memory, path_of
from app.stages import run as stages_run

ROOT = Path(__file__).resolve().parents[1]


def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: str, **files: str) -> None:
    """Pretend that this process is in the cgroups ``mine``; ``files`` are below /sys/fs/cgroup, ``__`` a slash."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    real = Path.read_text
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(
        Path, "read_text", lambda p, *a, **k: mine if str(p) == "/proc/self/cgroup" else real(p, *a, **k)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("mine", "files", "expected"),
    [
        ("", {}, 16),
        ("0::/\n", {"cpu_max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "350000 100000\n"}, 3),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "400000 100000\n"}, 4),
        ("0::/gone\n", {"cpu_max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/j\n0::/\n", {"cpu,cpuacct__j__cpu_cfs_quota_us": "300000",
                                     "cpu,cpuacct__j__cpu_cfs_period_us": "100000"}, 3),
        ("4:cpu:/j\n", {"cpu__j__cpu_cfs_quota_us": "-1", "cpu__j__cpu_cfs_period_us": "100000"}, 16),
        ("0::/\n", {"cpu_max": "rubbish\n"}, 16),
        ("0::/\n", {"cpu_max": "9900000 100000\n"}, 16),
    ],
)  # fmt: skip
def test_cores_are_those_of_affinity_and_cgroup(tmp_path, monkeypatch, mine, files, expected) -> None:
    cgroups(tmp_path, monkeypatch, mine, **files)
    assert cores() == expected


def test_nobody_asks_for_the_cores_of_the_whole_node() -> None:
    """The doctor sets the two side by side."""
    asking = {path.name for path in (ROOT / "app").rglob("*.py") if "cpu_count()" in path.read_text()}
    assert asking == {"machine.py", "doctor.py"}


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home(homeless) -> None:
    assert home() is None
    folder = cache_folder("x")
    assert folder is not None
    assert os.access(folder, os.W_OK)
    assert path_of("/a/b") == Path("/a/b")
    with pytest.raises(UsageError, match=r"~/b: no home folder is known; set HOME"):
        path_of("~/b")
    machine.keep_library_caches_writable()
    assert os.access(os.environ["MPLCONFIGDIR"], os.W_OK)
    assert os.access(os.environ["TORCHINDUCTOR_CACHE_DIR"], os.W_OK)


def test_nobody_asks_for_a_home_that_may_not_be_there() -> None:
    places = ("Path.home(", "expanduser(", "expandvars(")
    asking = {p.name for p in (ROOT / "app").rglob("*.py") if any(place in p.read_text() for place in places)}
    assert asking == {"machine.py"}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, number) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    real = Path.mkdir

    def mkdir(path, *args, **options):
        if str(tmp_path / "home") in str(path):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    folder = cache_folder("images")
    assert folder is not None
    assert "home" not in folder.parts
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    assert cache_folder("images") is None


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:30] or "MemoryError")
def test_a_want_of_memory_names_the_setting(error) -> None:
    assert out_of_memory(error)
    expected = r"out of memory; lower pretrain\.batch_size, or give the job more"
    with pytest.raises(UsageError, match=expected) as caught, enough_memory("pretrain.batch_size"):
        raise error
    assert ("GPU" in str(caught.value)) == ("CU" in str(error))


def test_really_too_much() -> None:
    with pytest.raises(UsageError, match="out of memory"), enough_memory("x"):
        torch.empty(2**55)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory"), KeyError("x")]
)
def test_a_mistake_is_not_a_want_of_memory(error) -> None:
    with pytest.raises(type(error)), enough_memory("x"):
        raise error


@pytest.mark.parametrize(
    "error",
    [*NO_MEMORY, RuntimeError("CUDA error: an illegal memory access was encountered")],
    ids=lambda e: str(e)[:30],
)
def test_a_good_checkpoint_is_never_called_bad(error) -> None:
    job = Job.__new__(Job)
    with pytest.raises(type(error)), job.resuming():
        raise error


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "± ▲ é ❄"),
        ("latin-1", "± ^ é ?"),
        ("ascii", "+- ^ ? ?"),
        ("cp1252", "± ^ é ?"),
        ("koi8-r", "+- ^ ? ?"),
    ],
)
def test_signs_that_a_terminal_lacks_are_replaced(encoding, expected) -> None:
    code = "from app.machine import speak_plainly; speak_plainly(); print('± ▲ é ❄', end='')"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert shown.stdout.decode(encoding) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_file_names_are_printed_as_the_bytes_they_are(encoding) -> None:
    code = (
        "from app.machine import speak_plainly; speak_plainly(); import os; print(os.fsdecode(b'R\\xf6ntgen'), end='')"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert shown.stdout == b"R\xf6ntgen"


def test_a_warning_of_a_library_is_one_line() -> None:
    code = (
        "from app.machine import speak_plainly; speak_plainly(); import warnings, logging\n"
        "warnings.warn('two\\nlines'); logging.getLogger('urllib3').warning('chatter')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stderr
    assert said == b"warning: two lines\n"


def test_a_name_that_is_not_utf8_becomes_an_address_of_the_same_file(tmp_path) -> None:
    odd = os.fsencode(tmp_path) + b"/Bef\xfcnde 1"
    os.mkdir(odd)
    text = as_text(os.fsdecode(odd))
    assert text.encode().startswith(b"file:///")
    assert os.fsencode(path_of(text)) == odd
    assert as_text("/a/ä") == "/a/ä"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 69, "/a: the disk is full"),
        (OSError(errno.EMFILE, "Too many open files", "/a"), 2, "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "/a: no permission"),
        (RuntimeError("can't start new thread"), 2, "ulimit -u"),
        (MemoryError(), 2, "out of memory; lower pretrain.batch_size"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 70, "this is a bug"),
        (ValueError("x"), 70, "this is a bug"),
        (InputError("a: b; c"), 66, "a: b; c"),
        (StorageError("a: b; c"), 69, "a: b; c"),
    ],
)
def test_what_the_machine_does_is_no_bug_of_ours(monkeypatch, capsys, error, code, said) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert (len(lines) == 1) == (code != 70)


def test_every_error_of_the_machine_has_a_remedy() -> None:
    from app.errors import os_error

    for number in MACHINE_ERRORS:
        text = str(os_error(OSError(number, os.strerror(number)), Path("/a")))
        assert text.startswith("/a: ")
        assert "; " in text


def test_a_reader_that_leaves_early_is_no_error() -> None:
    shown = subprocess.run(
        f"{sys.executable} -m app --help | head -1; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert b"Traceback" not in shown.stderr
    assert shown.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_the_output_is_said(tmp_path) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "app", "data", "phantoms", "--data-root", str(tmp_path)], cwd=ROOT, stdout=full,
            stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert ended.returncode == 69
    assert b"the disk is full" in ended.stderr
    assert b"Exception ignored" not in ended.stderr


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSYS, "Function not implemented"), OSError(errno.EROFS, "Read-only file system"),
              ImportError("This platform lacks a functioning sem_open"), NotImplementedError()]
)  # fmt: skip
def test_a_machine_without_semaphores_is_noticed(monkeypatch, error) -> None:
    def fail(*_: object) -> None:
        raise error

    assert stages_run._cannot_fork() is None
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "BoundedSemaphore", fail)
    assert stages_run._cannot_fork() == str(error)


def test_streams_of_others_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    machine.speak_plainly()
    print("±")
    assert sys.stdout.getvalue() == "±\n"
