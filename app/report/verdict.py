"""The findings in words: what pretraining saves, where it helps and hurts, how sure that is, which model to take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from app.jobs import keys
from app.report.collect import Study
from app.report.compare import Analysis
from app.report.efficiency import Efficiency, saved_sentence
from app.report.names import method_name, number, sentence


def lead(analysis: Analysis, found: Sequence[Efficiency] = ()) -> list[str]:
    """The findings in a few sentences for people who read nothing else: labels saved first."""
    study = analysis.study
    lines = [*labels_verdict(study, found), *_comparisons(analysis)]
    if model := model_to_take(analysis):
        lines.append(model)
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
    """Where pretraining is sure to save labels, and to cost some; then each estimate with its interval."""
    if not found:
        return []
    each = [(one, method, one.needed[method]) for one in found for method in one.methods]
    saved = _places(study, [(one, m) for one, m, needed in each if needed.low > needed.labels])
    lost = _places(study, [(one, m) for one, m, needed in each if needed.high < needed.labels])
    said = f"Pretraining saves labels on {saved}." if saved else "That pretraining saves labels is settled nowhere."
    if lost:
        said += f" It costs labels on {lost}."
    return [said, *(saved_sentence(study.title(one.dataset), one, method) for one, method, _ in each)]


def _places(study: Study, settled: Sequence[tuple[Efficiency, str]]) -> str:
    methods: dict[str, list[str]] = {}
    for one, method in settled:
        names = methods.setdefault(study.title(one.dataset), [])
        if method_name(method) not in names:
            names.append(method_name(method))
    return ", ".join(f"{title} ({', '.join(names)})" for title, names in methods.items())


def _comparisons(analysis: Analysis) -> list[str]:
    """How many comparisons with the baseline came out how, and the greatest of those that are settled."""
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
    lines = [f"{len(main)} comparison{plural} with the {method_name(analysis.baseline or '')} start: {said}."]
    settled = sorted((c for c in main if c.verdict in ("better", "worse")), key=lambda c: c.difference)
    if settled and settled[-1].verdict == "better":
        lines.append(f"Largest gain. {sentence(study, settled[-1])}")
    if settled and settled[0].verdict == "worse":
        lines.append(f"Largest loss. {sentence(study, settled[0])}")
    return lines


def model_to_take(analysis: Analysis) -> str:
    """Name the encoder whose validation AUROC is the highest, over the cells that all have; "" if nothing is compared.

    First the method, by its mean over seeds, then its seed. Test images have no part in the choice.
    """
    study = analysis.study
    scores: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    for (dataset, protocol, method), results in study.cells.items():
        for r in results:
            value = r.record.validation.get("auroc", float("nan"))
            if np.isfinite(value):
                scores.setdefault((method, r.record.seed), {})[dataset, protocol] = value
    if len({method for method, _ in scores}) < 2:
        return ""
    shared = set.intersection(*(set(cells) for cells in scores.values()))
    if not shared:
        return ""
    means = {who: float(np.mean([cells[cell] for cell in sorted(shared)])) for who, cells in scores.items()}
    methods = {m: float(np.mean([v for (other, _), v in means.items() if other == m])) for m, _ in means}
    best = max(sorted(methods), key=lambda m: methods[m])
    others = ", ".join(f"{method_name(m)} {number(v)}" for m, v in sorted(methods.items()) if m != best)
    why = f"mean validation AUROC {number(methods[best])}; {others}"
    seed = max(sorted(s for m, s in means if m == best), key=lambda s: means[best, s])
    pretraining = str(keys.Pretraining(best, seed))
    if pretraining not in {run.record.key for run in study.pretraining}:
        return f"Take no encoder of this run: the {method_name(best)} start does best on validation data ({why})."
    path = f"{keys.pretraining(study.experiment.run_id, pretraining)}/{keys.ENCODER}"
    return f"Take {method_name(best)} of seed {seed}, best on validation data ({why}): {path}"
