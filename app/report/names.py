"""Words and numbers as the report shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from app.report.collect import Study
from app.report.compare import Comparison
from app.science.statistics import Interval

PROTOCOL_NAMES = {
    "finetune": "Fine-tune",
    "linear_probe": "Linear probe",
    "few_shot": "Few-shot",
    "few_shot_frozen": "Few-shot (frozen)",
}
METHOD_NAMES = {"random": "Random", "imagenet": "ImageNet", "byol": "BYOL", "byol_plus": "BYOL+"}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
}
READINGS = {
    "better": "better",
    "worse": "worse",
    "unsettled": "not settled",
    "none": "not told apart",
    "unknown": "no interval",
}
VERDICTS = {
    "better": "an improvement",
    "worse": "worse",
    "unsettled": "not settled: not after Holm's correction for all comparisons",
    "none": "no difference can be told",
    "unknown": "nothing can be said without an interval",
}
MARKS = {"better": "▲", "worse": "▼", "unsettled": "◇", "none": "=", "unknown": "?"}
NOT_DONE = "—"
MINUS = "\N{MINUS SIGN}"


def method_name(method: str) -> str:
    """Display name of a method."""
    if method.startswith("ckpt-"):
        return f"Checkpoint {method.removeprefix('ckpt-')[:8]}"
    return METHOD_NAMES.get(method, method)


def protocol_name(protocol: str) -> str:
    """Display name of a protocol."""
    return PROTOCOL_NAMES.get(protocol, protocol)


def display_names(study: Study) -> dict[str, str]:
    """Display names of every method and protocol of a study."""
    methods = {*study.methods, *(run.record.method for run in study.pretraining), *METHOD_NAMES}
    protocols = {p for d in study.datasets for p in study.protocols(d)}
    return {m: method_name(m) for m in methods} | {p: protocol_name(p) for p in protocols} | PROTOCOL_NAMES


def listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals; "n/a" for None and NaN."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Three decimals with a sign (a real minus); "n/a" for NaN."""
    return "n/a" if not math.isfinite(value) else f"{value:+.3f}".replace("-", MINUS)


def mean_and_half_width(interval: Interval) -> str:
    """``0.917 ± 0.012``; the mean alone where there is no interval."""
    return f"{number(interval.mean)} ± {number(interval.half_width)}" if interval.known else number(interval.mean)


def span(interval: Interval | None) -> str:
    """Both ends with their signs; a dash where there is no interval."""
    known = interval is not None and interval.known
    return f"{signed(interval.low)} to {signed(interval.high)}" if known and interval else NOT_DONE


def p_value(p: float) -> str:
    """Three decimals, two significant digits below 0.001; a dash where there is no test."""
    return NOT_DONE if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def reading(c: Comparison) -> str:
    """What a comparison allows to say, in words."""
    if c.verdict == "unsettled" and not c.seeds.known:
        return "not settled: one seed cannot say how another would end"
    if c.verdict == "unsettled" and c.joint is None:
        return "not settled: without predictions other test images are an open question"
    return VERDICTS[c.verdict]


def sentence(study: Study, c: Comparison) -> str:
    """A comparison as a sentence for people."""
    intervals = []
    if c.joint is not None and c.joint.known:
        intervals.append(f"95 % interval over seeds, draws and test images {span(c.joint)}")
    elif c.images is not None and c.images.known:
        intervals.append(f"95 % interval over test images {span(c.images)}")
    elif c.seeds.known:
        intervals.append(f"95 % interval over {c.seeds.n} seeds {span(c.seeds)}")
    return (
        f"On {study.title(c.dataset)}, {protocol_name(c.protocol).lower()}: "
        f"{method_name(c.method)} {MINUS} {method_name(c.baseline)} = {signed(c.difference)} AUROC"
        f"{' (' + '; '.join(intervals) + ')' if intervals else ''}: {reading(c)}."
    )
