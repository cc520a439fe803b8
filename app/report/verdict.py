"""The findings in words: what pretraining saves, where it helps and hurts, how sure that is, which model to take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from app.jobs import keys
from app.jobs.records import DownstreamRecord
from app.report.collect import Result, Study
from app.report.compare import Analysis
from app.report.efficiency import Efficiency, count, saved_sentence
from app.report.names import listed, method_name, number, sentence
from app.science.protocols import PROTOCOLS

SHOWN = 3  # settled comparisons of a kind that the findings spell out


def lead(analysis: Analysis, found: Sequence[Efficiency] = ()) -> list[str]:
    """The findings in a few sentences for people who read nothing else: labels saved first, if that is settled."""
    study = analysis.study
    labels, comparisons = labels_verdict(study, found), _comparisons(analysis)
    sure = any(any(one.settled(method)) for one in found for method in one.methods)
    lines = labels + comparisons if sure else comparisons + labels
    lines += models_to_take(analysis)
    lines += [
        f"Beware. {shared} What BYOL and BYOL+ gain there is no evidence for images that they have not seen."
        for shared in study.overlaps.values()
    ]
    if study.missing:
        things = "1 thing is" if len(study.missing) == 1 else f"{len(study.missing)} things are"
        lines.append(f"{things} missing: see “Missing”.")
    if study.experiment.synthetic:
        lines.append("These are phantom images: the figures say nothing about medicine.")
    return lines


def labels_verdict(study: Study, found: Sequence[Efficiency]) -> list[str]:
    """Where pretraining is sure to save labels, and to cost some; then what each protocol's own k saves."""
    if not found:
        return []
    each = [(one, method, one.settled(method)) for one in found for method in one.methods]
    saved = _places(study, [(one, method, better) for one, method, (better, _) in each])
    lost = _places(study, [(one, method, worse) for one, method, (_, worse) in each])
    said = f"Pretraining saves labels on {saved}." if saved else "That pretraining saves labels is settled nowhere."
    if lost:
        said += f" It costs labels on {lost}."
    return [said, *(saved_sentence(study.title(one.dataset), one, method) for one, method, _ in each)]


def _places(study: Study, settled: Sequence[tuple[Efficiency, str, Sequence[float]]]) -> str:
    """Say on which sets, by which methods, and with which numbers of labels; by any protocol."""
    places: dict[str, dict[str, set[float]]] = {}
    for one, method, labels in settled:
        if labels:
            places.setdefault(study.title(one.dataset), {}).setdefault(method_name(method), set()).update(labels)
    return "; on ".join(
        f"{title}: {', '.join(f'{name} with {listed(map(count, sorted(n)))} labels' for name, n in by.items())}"
        for title, by in places.items()
    )


def _comparisons(analysis: Analysis) -> list[str]:
    """The comparisons with the baseline that are settled, the greatest first, and how many came out how."""
    study, main = analysis.study, list(analysis.against_baseline.values())
    if not study.cells:
        return ["No downstream job has finished yet, so there is nothing to compare."]
    if not main:
        return ["There is no pair of a method and a control (random or ImageNet start) to compare yet."]
    count: Counter[str] = Counter(c.verdict for c in main)
    told = {
        "better": count["better"],
        "worse": count["worse"],
        "not settled": count["unsettled"],
        "without a difference that can be told": count["none"] + count["unknown"],
    }
    said = ", ".join(f"{number} {words}" for words, number in told.items() if number)
    plural = "s" if len(main) > 1 else ""
    lines = []
    for word, verdict in (("Pretraining helps.", "better"), ("Pretraining hurts.", "worse")):
        settled = sorted((c for c in main if c.verdict == verdict), key=lambda c: -abs(c.difference))
        lines += [f"{word} {sentence(study, comparison)}" for comparison in settled[:SHOWN]]
        if len(settled) > SHOWN:
            lines.append(f"{word} {len(settled) - SHOWN} more: see “Differences”.")
    return [*lines, f"{len(main)} comparison{plural} with the {method_name(analysis.baseline or '')} start: {said}."]


@dataclass(frozen=True)
class _Choice:
    """The best method on validation data, the best of its starts, and how all methods did, in words.

    ``init`` is a pretraining's name, or that of a control; None where no start of the method has all cells.
    """

    method: str
    init: str | None
    why: str


def models_to_take(analysis: Analysis) -> list[str]:
    """Name the encoder whose validation AUROC is the highest; nothing if nothing is compared.

    There are two sentences where one method is best with few labels (the few-shot protocols) and another with all.
    """
    few, full, both = (_best(analysis, protocols) for protocols in (_protocols(True), _protocols(False), PROTOCOLS))
    if few and full and few.method != full.method:
        return [_advice(analysis, "With few labels take", few), _advice(analysis, "With all labels take", full)]
    return [_advice(analysis, "Take", both)] if both else []


def _protocols(few: bool) -> set[str]:
    return {name for name, protocol in PROTOCOLS.items() if protocol.few == few}


def _best(analysis: Analysis, protocols: Collection[str]) -> _Choice | None:
    """Choose by validation AUROC: first the method, then its start; None unless two methods have a cell in common.

    In each cell of ``protocols`` methods are compared over the seeds that all of them have.  Test images have no part
    in it.
    """
    study = analysis.study
    jobs = {
        (dataset, protocol): {m: _validated(study.cells.get((dataset, protocol, m), ())) for m in study.methods}
        for dataset in study.datasets
        for protocol in study.protocols(dataset)
        if protocol in protocols
    }
    methods = sorted({m for by in jobs.values() for m, found in by.items() if found})
    scores: list[dict[str, dict[str, float]]] = []  # by cell, method and start
    for by in jobs.values():
        seeds = set.intersection(*({record.seed for record in by[m]} for m in methods)) if methods else set()
        if seeds:
            scores.append({m: _by_init(r for r in by[m] if r.seed in seeds) for m in methods})
    if len(methods) < 2 or not scores:
        return None
    means = {m: float(np.mean([np.mean(list(cell[m].values())) for cell in scores])) for m in methods}
    best = max(methods, key=lambda m: means[m])
    whole = set.intersection(*(set(cell[best]) for cell in scores))
    init = max(sorted(whole), key=lambda i: np.mean([cell[best][i] for cell in scores]), default=None)
    others = ", ".join(f"{method_name(m)} {number(means[m])}" for m in methods if m != best)
    cells = f"{len(scores)} cell{'s' if len(scores) > 1 else ''}"
    return _Choice(best, init, f"mean validation AUROC {number(means[best])} over {cells}; {others}")


def _validated(results: Sequence[Result]) -> list[DownstreamRecord]:
    return [r.record for r in results if np.isfinite(r.record.validation.get("auroc", np.nan))]


def _by_init(records: Iterable[DownstreamRecord]) -> dict[str, float]:
    """Mean validation AUROC of each start, by its name."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record.init, []).append(record.validation["auroc"])
    return {init: float(np.mean(values)) for init, values in found.items()}


def _advice(analysis: Analysis, take: str, best: _Choice) -> str:
    study, name = analysis.study, method_name(best.method)
    if best.init is None:
        why = "but none of its encoders has them all"
        return f"{take} none yet: {name} does best on validation data ({best.why}), {why}."
    pretraining = next((run.record for run in study.pretraining if run.record.key == best.init), None)
    if pretraining is None:
        return f"{take} no encoder of this run: the {name} start does best on validation data ({best.why})."
    path = f"{keys.pretraining(study.experiment.run_id, pretraining.key)}/{keys.ENCODER}"
    return f"{take} {name} of seed {pretraining.seed}, best on validation data ({best.why}): {path}"
