"""A store with finished jobs on labelled sets of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.config import load_config
from app.jobs.run import Run
from app.stages import downstream
from app.storage import FolderStore

TASKS = ("binary", "multi-class", "multi-label", "ordinal")
SETS = [f"{task.replace('-', '_')}_{colours}" for task in TASKS[:3] for colours in ("gray", "rgb")]
COUNTS = {"train": 24, "val": 16, "test": 20}


def write_set(path: Path, task: str, channels: int, seed: int = 0) -> None:
    """Noise whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for split, count in COUNTS.items():
        if task == "multi-label":
            labels = (rng.random((count, 3)) < 0.4).astype(np.int64)
            labels[:4] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]]
            level = labels @ [20, 40, 80]
        else:
            labels = (np.arange(count) % (2 if task == "binary" else 3))[:, None]
            level = labels[:, 0] * 60
        shape = (count, 28, 28, 3)[: 3 if channels == 1 else 4]
        noise = rng.integers(0, 90, shape)
        arrays[f"{split}_images"] = (noise + level.reshape(-1, *[1] * (len(shape) - 1))).clip(0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)


@dataclass
class Made:
    """The store, the files of the sets, and how to run another job."""

    store: FolderStore
    files: dict[str, Path]
    settings: list[str]

    def run(self, *overrides: str) -> Run:
        sources = [f"{name}={path}:{name.rpartition('_')[0].replace('_', '-')}" for name, path in self.files.items()]
        return Run(self.store, "r", load_config("smoke", [*self.settings, *overrides], sources=sources))

    def train(self, dataset: str, protocol: Any = "finetune", *overrides: str, seed: int = 0) -> dict[str, Any]:
        run = self.run(*overrides)
        return downstream.run(run, dataset=dataset, init="random", protocol=protocol, seed=seed)

    def job(self, dataset: str, protocol: str = "finetune", seed: int = 0) -> str:
        """The folder of a job, which is run first if nobody has asked for it before."""
        folder = f"runs/r/downstream/{dataset}/random/{protocol}/s{seed}"
        if not self.store.exists(f"{folder}/record.json"):
            self.train(dataset, protocol, seed=seed)
        return folder
