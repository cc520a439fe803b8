"""Everything that needs a GPU, unattended, in under eight minutes: `make gpu-check`.

Runs the tests marked `gpu`, measures pretraining by `python -m app bench` (beside its peers where they are installed),
pretrains for a while as a job does, and writes `gpu-check.json` and `gpu-check.md` into a folder. With `--device cpu`
it rehearses on tiny settings: whether everything runs, not how fast.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "28 px, stock stem": ["data.size=28", "network.stem=stock"],
    "28 px, middle stem": ["data.size=28", "network.stem=middle"],
    "28 px, cifar stem": ["data.size=28", "network.stem=cifar"],
    "64 px, stock stem": ["data.size=64", "network.stem=stock"],
}
PEERS = ("28 px, stock stem", "64 px, stock stem")  # of the cases beside which they are measured: their turns are long
TINY = ["pretrain.batch_size=8", "network.projector_hidden=64", "network.predictor_hidden=64"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "app", *arguments]


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


class Check:
    """One run of everything."""

    def __init__(self, device: str, out: Path, data: Path | None) -> None:
        self.device, self.out, self.data = device, out, data
        self.begin = time.monotonic()
        self.found: dict[str, Any] = {"device": device, "seconds": {}, "bench": {}}
        self.small = overrides(*TINY) if device == "cpu" else []
        self.images = ["--images", "512"] if device == "cpu" else ["--images", "112120"]
        self.log = (out / "log.txt").open("w")

    def step(self, name: str, words: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command; what it says goes to the log, how long it takes into the figures."""
        begin = time.monotonic()
        print(f"[{begin - self.begin:5.0f} s] {name}", flush=True)
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode()
            done = subprocess.CompletedProcess(words, 124, said, f"stopped after {timeout:.0f} s")
        self.log.write(f"=== {name}: {' '.join(words)}\n{done.stdout}\n{done.stderr}\nexit code {done.returncode}\n")
        self.log.flush()
        self.found["seconds"][name] = round(time.monotonic() - begin, 1)
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1]
            print(f"          exit code {done.returncode}: {last}", flush=True)
        return done

    def bench(self, case: str, path: Path, *words: str) -> list[str]:
        """Return the command that measures a case."""
        settings = overrides(*CASES[case], "views.blur=0.5")  # every operation that a view can take
        return command(
            "bench", "--device", self.device, "--json", str(path), *self.images, *settings, *self.small, *words
        )

    def run(self) -> int:
        """Do everything; return 0 if all of it succeeded."""
        failed = 0
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            compiling = self.compile_ahead(scratch)
            failed += self.test()
            failed += self.pretrain(scratch)
            for process in compiling:
                process.wait()
            for way in ("always", "never") if self.device == "cuda" else ("never",):
                for case in CASES:
                    failed += self.measure(case, way, scratch / "bench.json")
                    self.write()
        print("\n".join(self.table()))
        return min(failed, 1)

    def test(self) -> int:
        """Run the tests that need a GPU; return 1 if one failed."""
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
        tests = self.step("tests", [*words, "tests/science/test_on_gpu.py"])
        self.found["tests"] = tests.stdout.strip().splitlines()[-1].strip("= ")
        return int(tests.returncode != 0)

    def measure(self, case: str, way: str, path: Path) -> int:
        """Measure a case, compiled (``always``) or not (``never``); return 1 if that failed."""
        peers = ["--peers"] if case in PEERS and way == "never" and self.peers() else []
        steps = "30" if self.device == "cuda" else "1"
        words = self.bench(case, path, "--rounds", "3", "--steps", steps, *peers, *overrides(f"runtime.compile={way}"))
        if self.step(f"bench {case}, compile={way}", words).returncode:
            return 1
        name = f"{case}, {'compiled' if way == 'always' else 'not compiled'}"
        self.found["bench"][name] = json.loads(path.read_text())
        return 0

    def write(self) -> None:
        """Write what is known by now."""
        self.found["seconds"]["all"] = round(time.monotonic() - self.begin, 1)
        (self.out / "gpu-check.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.out / "gpu-check.md").write_text("\n".join(self.table()) + "\n")

    def peers(self) -> bool:
        """Say whether the peers are installed."""
        return all(importlib.util.find_spec(name) for name in ("lightly", "byol_pytorch"))

    def compile_ahead(self, scratch: Path) -> list[subprocess.Popen[bytes]]:
        """Compile all cases at once while the tests run: what is compiled is kept on disk, and not measured."""
        if self.device == "cpu":
            return []
        words = ["--rounds", "1", "--steps", "1", *overrides("runtime.compile=always")]
        # Each would start as many compilers as there are cores.
        few = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // len(CASES)))}
        return [
            subprocess.Popen(self.bench(case, scratch / f"{i}.json", *words), stdout=self.log, stderr=self.log, env=few)
            for i, case in enumerate(CASES)
        ]

    def pretrain(self, scratch: Path) -> int:
        """Pretrain as a job does, with its monitor and checkpoints; return 1 if that failed."""
        given: list[str] = []
        settings = ["pretrain.epochs=40"]
        if self.data is not None:
            given = ["--data-root", str(self.data), "--data", f"nih={self.data / 'nihcxr_unlabeled_28.npz'}"]
            settings += ["data.pretrain=nih", "network.stem=middle"]
        else:
            settings += ["data.phantoms=always"]
        if self.device == "cpu":
            settings += ["data.subset=64", "pretrain.epochs=1"]
        words = command(
            "pretrain", "--method", "byol", "--store", str(scratch / "store"), "--run-id", "gpu",
            "--device", self.device, *given, *overrides(*settings), *self.small,
        )  # fmt: skip
        if self.step("a pretraining job", words).returncode:
            return 1
        record = json.loads((scratch / "store/runs/gpu/pretrain/byol-s0/record.json").read_text())
        self.found["pretraining"] = {
            key: record[key] for key in ("timings", "metrics", "environment", "epochs", "steps")
        }
        return 0

    def table(self) -> list[str]:
        """Return the figures as Markdown."""
        where = next(iter(self.found["bench"].values()), {}).get("environment", {})
        lines = [
            f"{where.get('device')}, torch {where.get('torch')}, commit {where.get('git_commit')}; "
            f"{time.strftime('%Y-%m-%d', time.gmtime())}; {self.found['seconds']['all']:.0f} s in all.",
            "",
            f"Tests: {self.found['tests']}.",
            "",
            "| | images a second | a step, ms | peak memory, MB | over byol-pytorch | over lightly |",
            "| :-- | --: | --: | --: | --: | --: |",
        ]
        for case, figures in self.found["bench"].items():
            over = [
                f"{peer['ours_over_it']:.1f} ({peer['lowest']:.1f} to {peer['highest']:.1f})" if peer else ""
                for peer in (figures["peers"].get(name) for name in ("byol-pytorch", "lightly"))
            ]
            lines.append(
                f"| {case}, {figures['environment']['precision']}, batch {figures['settings']['batch']} | "
                f"{figures['images_per_second']:,.0f} | {1000 * figures['step_seconds']:.2f} | "
                f"{figures['peak_memory_bytes'] / 1e6:,.0f} | {over[0]} | {over[1]} |"
            )
        if job := self.found.get("pretraining"):
            timings = job["timings"]
            lines += [
                "",
                f"A job of {job['steps']} steps with its monitor: {timings['images_per_second']:,.0f} images a second.",
            ]
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--data", type=Path, default=os.environ.get("BYOL_TEST_DATA"), help="folder with real images")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sys.exit(Check(given.device, given.out, Path(given.data) if given.data else None).run())


if __name__ == "__main__":
    main()
