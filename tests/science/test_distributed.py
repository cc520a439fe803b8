"""Several processes pretrain one network as one process would; here two, on the CPU, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from app.config import load_config
from app.data import write_phantoms
from app.errors import AppError, InputError, Interrupted, UsageError
from app.jobs.run import Run
from app.science import distributed
from app.science.distributed import Ranks, joined, leading, process_count, rendezvous, torchrun_rank
from app.science.generators import generator
from app.science.networks import Encoder
from app.science.norms import GlobalBatchNorm
from app.science.pretraining import Trainer
from app.stages import pretrain
from app.stages.run import run_study
from app.storage import FolderStore
from tests.servers import free_ports

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.subset=32", "data.phantoms=never", "pretrain.epochs=3", "pretrain.batch_size=16", "runtime.threads=1",
    "runtime.device=cpu", "network.projector_hidden=32", "network.predictor_hidden=32", "network.projection=16",
    "runtime.grace_seconds=300", "pretrain.optimizer=sgd", "pretrain.learning_rate=0.01", "data.monitor=null",
    "pretrain.warmup_epochs=0", "pretrain.precision=float32",
]  # fmt: skip


@pytest.fixture(scope="session")
def words_of_followers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that all followers write to what they say.

    They are forked from one process, whose standard error it is for as long as pytest runs: this module's tests need
    not be run in one piece.
    """
    get_context("forkserver").set_forkserver_preload(["tests.science.test_distributed"])
    path, ours = tmp_path_factory.mktemp("followers") / "stderr", os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        forkserver.ensure_running()
        os.dup2(ours, 2)
        os.close(ours)
    return path


@pytest.fixture(scope="module", autouse=True)
def forked_followers(words_of_followers: Path) -> Iterator[None]:
    """Followers are forked from a process that has imported torch, and not each from nothing: seconds of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "get_context", lambda method: get_context("forkserver"))
        yield


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, counts={"chestmnist": (32, 16, 16)})
    return root


@pytest.fixture
def make_run(tmp_path, phantoms):
    def make(name: str, *overrides: str) -> Run:
        config = load_config("smoke", [*SETTINGS, *overrides], data_root=str(phantoms))
        return Run(FolderStore(tmp_path / name), "r", config)

    return make


def folder(store: Path, method: str) -> Path:
    return store / f"runs/r/pretrain/{method}-s0"


def encoder(store: Path, method: str = "byol") -> dict[str, torch.Tensor]:
    return load_file(folder(store, method) / "encoder.safetensors")


def losses(store: Path, method: str = "byol") -> list[float]:
    return [json.loads(line)["loss"] for line in (folder(store, method) / "curves.jsonl").read_text().splitlines()]


def assert_alike(ours: Path, theirs: Path) -> None:
    """The first step's loss agrees to 1e-5, the second's to 2 %.

    Later ones need not: a unit of the network that stands within rounding of its kink goes one way or the other, in one
    process as in two, and in a batch this small five steps turn that into another second digit.
    """
    assert losses(ours)[0] == pytest.approx(losses(theirs)[0], rel=1e-5)
    assert losses(ours)[1] == pytest.approx(losses(theirs)[1], rel=0.02)
    assert losses(ours)[0] != pytest.approx(losses(ours)[1], rel=1e-3)


def work_of_batch_norm(rank: int, port: int, place: Path, dims: int) -> None:
    """Rank ``rank`` of two: its rows of a batch through a shared BatchNorm, and what comes out and back."""
    torch.set_num_threads(1)
    shared, x, factors = batch_norm(dims)
    shared.__class__ = GlobalBatchNorm
    with joined(rank, 2, "cpu", rendezvous(2, 1, port)) as ranks:
        rows = ranks.rows(len(x))
        mine = x[rows].requires_grad_()
        out = shared(mine)
        (out * factors[rows]).sum().backward()
        torch.save([out.detach(), mine.grad, shared.weight.grad, shared.state_dict()], place / f"{rank}.pt")


def batch_norm(dims: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape = (6, 3) if dims == 1 else (6, 3, 4, 4)
    norm = nn.BatchNorm1d(3) if dims == 1 else nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    return norm.double(), torch.randn(shape, dtype=torch.float64) * 3 + 100, torch.randn(shape, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
def test_batch_norm_has_the_statistics_and_gradients_of_the_whole_batch(tmp_path, dims):
    norm, x, factors = batch_norm(dims)
    x.requires_grad_()
    out = norm(x)
    (out * factors).sum().backward()
    place = rendezvous(2, 0, 0)
    mp.start_processes(work_of_batch_norm, (place.port, tmp_path, dims), nprocs=2, start_method="forkserver")
    outs, grads, weights, states = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.cat(outs), out.detach(), **close)
    torch.testing.assert_close(torch.cat(grads), x.grad, **close)
    torch.testing.assert_close(sum(weights), norm.weight.grad, **close)
    for state in states:
        assert state.keys() == norm.state_dict().keys()
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(state[name], value, **close)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "accumulate"), [("byol", 1), ("byol_plus", 2)])
def test_two_processes_do_the_step_of_one(make_run, method, accumulate):
    """The loss agrees to 1e-5, and so do the way that a step of SGD goes, but for units at their kinks: to 2 %."""
    step = [f"pretrain.accumulate={accumulate}", f"data.subset={16 * accumulate}", "pretrain.epochs=1"]
    one, two = make_run("one", *step), make_run("two", *step, "runtime.processes=2")
    pretrain.run(one, method=method, seed=0)
    record = pretrain.run(two, method=method, seed=0)
    assert (record["steps"], record["environment"]["processes"]) == (1, 2)
    assert losses(Path(two.store.uri), method) == pytest.approx(losses(Path(one.store.uri), method), rel=1e-5)
    torch.manual_seed(generator("weights", 0).initial_seed())
    start = Encoder().plain_state()
    mine, other = encoder(Path(two.store.uri), method), encoder(Path(one.store.uri), method)
    assert mine.keys() == other.keys() == start.keys()
    weights = [name for name, value in start.items() if value.is_floating_point() and "running" not in name]
    moved = torch.cat([(other[name] - start[name]).flatten() for name in weights])
    apart = torch.cat([(mine[name] - other[name]).flatten() for name in weights])
    assert moved.norm() > 0.01
    assert apart.norm() / moved.norm() < 0.02
    for name in start:
        if "running" in name:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_stopped_and_continued_are_two_uninterrupted(make_run, monkeypatch):
    whole, pieces = (make_run(name, "runtime.processes=2") for name in ("whole", "pieces"))
    pretrain.run(whole, method="byol", seed=0)
    original = Trainer.advance

    def advance(self: Trainer) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(Interrupted, match="stopped at step 3 of 6"):
            pretrain.run(pieces, method="byol", seed=0)
    pretrain.run(pieces, method="byol", seed=0)
    mine, other = encoder(Path(pieces.store.uri)), encoder(Path(whole.store.uri))
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_too_and_a_finished_job_ends_them(make_run, tmp_path, phantoms, launcher):
    one = make_run("one")
    pretrain.run(one, method="byol", seed=0)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "app", "pretrain",
        "--run-id", "r", "--method", "byol", "--store", str(tmp_path / "two"), "--preset", "smoke",
        "--data-root", str(phantoms), *settings,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoder.safetensors") == 1, "rank 0 alone speaks"
    assert_alike(tmp_path / "two", Path(one.store.uri))
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}  # as torchrun says
    again = [
        launcher.start(*command[command.index("pretrain") :], environment=where | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(120) for process in again] == [0, 0], [process.text for process in again]
    assert "already done" in again[0].text
    assert [process.text.count("encoder.safetensors") for process in again] == [1, 0]


def dies(ranks: Ranks, error: AppError) -> None:
    raise error


def lead_those_who_die(error: AppError) -> None:
    with leading(2, "cpu", dies, error) as ranks:
        ranks.spawn()
        ranks.gather(torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("error", [InputError("no such thing"), AppError("no such thing")], ids=["66", "70"])
def test_a_rank_that_dies_ends_the_job_with_its_code(words_of_followers, error):
    os.truncate(words_of_followers, 0)
    said = rf"one of 2 processes has ended \({error.exit_code}\); its own lines say why"
    with pytest.raises(AppError, match=said) as ended:
        lead_those_who_die(error)
    assert type(ended.value) is type(error)
    assert words_of_followers.read_text() == "error: rank 1: no such thing\n"


def last_dies(ranks: Ranks, error: AppError | None) -> None:
    if ranks.rank < ranks.world - 1:
        ranks.gather(torch.zeros(1))
    elif error is None:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise error


def lead_three_whose_last_dies(error: AppError | None) -> None:
    with leading(3, "cpu", last_dies, error) as ranks:
        ranks.spawn()
        ranks.gather(torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code"), [(InputError("no such thing"), 66), (None, -9)], ids=["66", "killed"])
def test_of_several_ranks_that_end_the_one_that_failed_by_itself_is_named(error, code):
    """Rank 2 fails; rank 1 dies of its absence, with 1, and has the lower number."""
    with pytest.raises(AppError, match=rf"one of 3 processes has ended \({code}\)") as ended:
        lead_three_whose_last_dies(error)
    assert type(ended.value) is type(error or AppError(""))


def follow_without_memory(ranks: Ranks, *args: Any) -> None:
    """Be the follower of a pretraining whose first step finds no memory."""

    def advance(self: Trainer) -> dict[str, float]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    Trainer.advance = advance
    pretrain.follow(ranks, *args)


@pytest.mark.slow
def test_a_follower_without_memory_ends_the_job_as_rank_0_would(make_run, monkeypatch, words_of_followers):
    os.truncate(words_of_followers, 0)
    run = make_run("two", "runtime.processes=2")
    monkeypatch.setattr(pretrain, "follow", follow_without_memory)
    with pytest.raises(UsageError, match=r"one of 2 processes has ended \(2\)"):
        pretrain.run(run, method="byol", seed=0)
    said = words_of_followers.read_text()
    assert "error: rank 1: out of memory; lower pretrain.batch_size, or give the job more" in said
    assert "Traceback" not in said
    assert not run.store.exists("runs/r/pretrain/byol-s0/record.json")


def waits(ranks: Ranks) -> None:
    ranks.broadcast()
    ranks.barrier()


def lead_and_fail_alone() -> None:
    with leading(2, "cpu", waits) as ranks:
        ranks.spawn()
        ranks.broadcast("go")
        raise RuntimeError("out of memory")


@pytest.mark.slow
def test_rank_0_is_not_taken_for_another_when_it_fails_itself():
    with pytest.raises(RuntimeError, match="out of memory"):
        lead_and_fail_alone()


def test_rows_are_equal_shares_in_order():
    assert [Ranks(rank, 3).rows(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(UsageError, match=r"batch_size=16: cannot be shared by 3 processes; use .*batch_size=15"):
        Ranks(0, 3).rows(16)


def test_one_process_alone_is_left_alone():
    model, value = nn.Linear(2, 2), torch.ones(3)
    ranks = Ranks()
    assert ranks.ddp(model) is model
    assert ranks.gather(value) is value
    assert ranks.broadcast("x") == "x"
    assert ranks.barrier()
    assert not ranks.barrier(False)


def test_one_process_on_each_gpu(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 4)
    assert process_count(None, "cuda") == 4
    assert process_count(2, "cuda") == 2
    assert process_count(None, "cpu") == 1
    assert process_count(3, "cpu") == 3
    with pytest.raises(UsageError, match=r"runtime.processes=5: there are 4 GPUs"):
        process_count(5, "cuda")


def test_torchruns_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert torchrun_rank() == 0
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert torchrun_rank() == 3
    assert process_count(None, "cpu") == 4
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 8)
    assert process_count(None, "cuda") == 1, "torchrun's word, whatever there is"


def test_a_study_is_not_for_torchrun(make_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run = make_run("study")
    with pytest.raises(UsageError, match="torchrun starts one pretraining"):
        run_study(run.store, run.config)
