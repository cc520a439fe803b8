"""What a search has found, in words: a table, the options that choose the best settings, and a preset of them."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from app.config import presets
from app.jobs.trials import TrialResult, TuneRecord
from app.science.power import macro_variance


def words(settings: Mapping[str, Any]) -> str:
    """Write settings as ``network.stem=middle views.blur=0.0``."""
    return " ".join(f"{name}={_plain(value)}" for name, value in settings.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def came(result: TrialResult) -> str:
    """Say what came of a trial."""
    scores = ", ".join(f"{name} {score:.3f}" for name, score in result.scores.items())
    return f"failed, {result.failed}" if result.failed else f"{scores}; mean {result.mean:.4f}"


def lines_of(record: TuneRecord) -> Iterator[str]:
    """Yield a table, the networks without pretraining first and then rung by rung, and what it says."""
    sets = list(next(iter(record.controls)).scores)
    rows = [["epochs", *sets, "mean", "gain", "settings"]]
    same = {
        name for name, value in record.trials[0].settings.items()
        if all(trial.settings[name] == value for trial in record.trials)
    }  # fmt: skip
    for result in (*record.controls, *record.trials):
        scores = [_number(result.scores.get(name, math.nan), "{:.3f}") for name in sets]
        gain = "" if result.gain is None else _number(result.gain, "{:+.4f}")
        varied = words({name: value for name, value in result.settings.items() if name not in same})
        told = varied if not result.failed else f"{varied}: failed, {result.failed}"
        epochs = str(result.epochs or "none")
        rows.append([epochs, *scores, _number(result.mean, "{:.4f}"), gain, told])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield "Validation AUROC of linear probes; gain: of the mean, over the same network without pretraining"
    for row in rows:
        *numbers, told = row
        yield "  ".join([*(text.rjust(width) for text, width in zip(numbers, widths, strict=False)), told]).rstrip()
    yield from _verdict(record)


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def _verdict(record: TuneRecord) -> Iterator[str]:
    best = best_of(record)
    gain = math.nan if best.gain is None else best.gain
    synthetic = "SYNTHETIC images: this says nothing about medicine. " if record.synthetic else ""
    brought = f"{gain:+.4f} over its network without pretraining"
    yield f"{synthetic}Best after {best.epochs} epochs: mean {best.mean:.4f}, {brought}"
    if gain <= 0:
        yield "Pretraining of so many epochs has brought nothing on these sets, whatever the settings"
    error = standard_error(record, best)
    if not math.isnan(error):
        yield (
            f"The standard error of a mean from the drawing of validation images is about {error:.3f} (Hanley and "
            "McNeil): the best of many is partly luck"
        )
    yield " ".join(f"--set {shlex.quote(f'{name}={_plain(value)}')}" for name, value in best.settings.items())


def best_of(record: TuneRecord) -> TrialResult:
    """Return the best trial of the last rung."""
    return next(trial for trial in reversed(record.trials) if trial.settings == record.best)


def standard_error(record: TuneRecord, result: TrialResult) -> float:
    """Standard error of a trial's mean over the drawing of validation images, sets taken to be independent."""
    variances = []
    for name, score in result.scores.items():
        info = record.data[name]
        labels = info.task == "multi-label, binary-class"
        variances.append(macro_variance(score, info.class_counts["val"], info.splits["val"], labels=labels))
    return math.sqrt(sum(variances)) / len(variances)


def best_preset(record: TuneRecord, base: str, out: Path) -> str:
    """Write the best settings as a preset.

    Args:
        record: of the search.
        base: the preset that it began with; it extends that one.
        out: where the file will be: the name of another is relative to it.
    """
    if base not in presets():
        base = os.path.relpath(base, out.parent)
        base = base if base.endswith((".yaml", ".yml")) else f"./{base}"
    tree: dict[str, Any] = {"extends": base}
    for name, value in record.best.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    best, tried = best_of(record), {json.dumps(trial.settings) for trial in record.trials}
    synthetic = ", SYNTHETIC images" if record.synthetic else ""
    head = (
        f"# The best of {len(tried)} settings that `tune` tried as {record.run_id} (finished {record.finished}, commit "
        f"{record.environment['git_commit']}).\n"
        f"# Mean validation AUROC after {best.epochs} epochs, seed {record.search['seed']}: {best.mean:.4f}, "
        f"{best.gain:+.4f} over no pretraining{synthetic}.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
