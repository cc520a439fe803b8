"""How far it is from a pretraining's ``run`` to its first step, for somebody who reads it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import app
from app.config import load_config
from app.data import write_phantoms
from app.jobs.run import Run
from app.science.byol import BYOL
from app.stages import pretrain
from app.storage import FolderStore
from tests import small

PACKAGE = Path(app.__file__).parent
SETTINGS = [
    "data.subset=32", "data.phantoms=never", "pretrain.batch_size=16", "runtime.threads=1", "runtime.device=cpu",
]  # fmt: skip


class Arrived(BaseException):
    """The target network is about to move for the first time."""


def place(frame: FrameType | None) -> tuple[str, str] | None:
    """File and function of the nearest frame of the package: libraries call back."""
    while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    if frame is None:
        return None
    return str(Path(frame.f_code.co_filename).relative_to(PACKAGE)), frame.f_code.co_qualname


def test_the_first_step_is_twelve_files_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is the functions that are running when the first step is taken; it enters the files that they call.

    What these call in turn (how a store writes, how a file of images is read, how a convolution is computed) is behind
    names that need not be looked up to follow the path. All files any function of which runs are about three times as
    many.
    """
    small.use(monkeypatch.setattr)
    write_phantoms(tmp_path / "data", counts={"chestmnist": (32, 16, 16), "pneumoniamnist": (32, 16, 16)})
    run = Run(FolderStore(tmp_path / "store"), "r", load_config("smoke", SETTINGS, data_root=str(tmp_path / "data")))
    calls: set[tuple[tuple[str, str], str]] = set()
    path: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and PACKAGE in Path(frame.f_code.co_filename).parents:
            caller, called = place(frame.f_back), place(frame)
            if caller is not None and called is not None:
                calls.add((caller, called[0]))

    def arrive(*_: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if (here := place(frame)) is not None and here not in path:
                path.append(here)
            frame = frame.f_back
        raise Arrived

    monkeypatch.setattr(BYOL, "update_target", arrive)
    sys.setprofile(note)
    try:
        with pytest.raises(Arrived):
            pretrain.run(run, method="byol_plus", seed=0)
    finally:
        sys.setprofile(None)
    assert [name for _, name in path] == ["Trainer.train_on", "Trainer.advance", "train", "run"]
    assert {file for file, _ in path} == {"science/pretraining.py", "stages/pretrain.py"}
    entered = {file for file, _ in path} | {called for caller, called in calls if caller in path}
    assert len(entered) <= 12, sorted(entered)
