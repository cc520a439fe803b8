"""What each setting of a preset brings: one at a time is turned back to another preset's value, over the same seeds.

The score is the validation AUROC of frozen encoders, and no test split is opened: whoever reads which settings help
goes on to choose by it, and would have chosen on the test images. Where the epoch is chosen on validation data, too,
the score is a little too good in every arm, and the difference of two arms is not; only the choice of the epoch itself
cannot be judged so, since the best of some epochs never validates worse than the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.errors import UsageError
from app.jobs import keys
from app.jobs.records import write_json
from app.jobs.run import now
from app.jobs.trials import AblationRecord, Arm, TrialRecord
from app.progress import Progress
from app.runtime import choose_device, environment
from app.science.statistics import paired_t_difference, t_interval
from app.settings import Config, Method, ProtocolName, names_of
from app.stages import trial
from app.stages.found import words
from app.stages.tune import Judges, named, open_judges, turned
from app.stages.weights import initial_weights
from app.storage import Store

FROZEN: tuple[ProtocolName, ...] = ("linear_probe", "few_shot_frozen")
JUDGED = ("network", "pretrain", "views", "views_plus", *(f"protocols.{name}" for name in FROZEN))
CHOICE = "validation data cannot judge how the epoch is chosen on them"
IDLE = "decides nothing of these trials"
STEM = "ImageNet's weights need the stock stem"


def ablate(
    store: Store,
    config: Config,
    other: Config,
    method: Method,
    *,
    against: str,
    asked: Sequence[str] = (),
    run_id: str | None = None,
) -> AblationRecord:
    """Train and judge a preset, and again with one setting turned back; what has been done is not done again.

    Args:
        store: where the ablation will live.
        config: the preset, whose data sets judge and whose seeds are trained.
        other: the settings to turn back to.
        method: of the pretraining.
        against: name of the preset that ``other`` is.
        asked: names of settings; by default all that differ and can be judged. Names with commas between them are
            turned back together.
        run_id: the ablation's name; by default the preset and 8 hex digits of the settings and data.

    Raises:
        UsageError: nothing differs, or not what was asked for, or a wrong setting or name.
        InputError: data or weights are missing or damaged, or real and synthetic data mixed.
        Interrupted: a signal came; the same command continues.
    """
    lines = switches(config, other, asked, against)
    judges = open_judges(store, config, "ablate")
    config = judges.run.config
    science = judges.science | {"method": method}
    run = named(judges.run, run_id, science, keys.ablation)
    work = _Work(replace(judges, run=run), method)
    left_out = work.idle(lines)
    if asked and left_out:
        name, why = next(iter(left_out.items()))
        raise UsageError(f"--switch {name}: {why}; leave it out")
    lines = {name: values for name, values in lines.items() if name not in left_out}
    work.progress.say(f"{len(lines) + 1} arms of {config.pretrain.epochs} epochs, {len(config.study.seeds)} seeds each")
    record = AblationRecord(
        run_id=run.run_id,
        synthetic=judges.synthetic,
        science=science,
        preset=config.preset,
        against=against,
        seeds=config.study.seeds,
        data=judges.data,
        control=work.arm({}, None),
        whole=work.arm({}, method),
        arms=tuple(work.arm(values, method) for values in lines.values()),
        left_out=left_out,
        environment=environment(choose_device(config.runtime.device)),
        finished=now(),
    )
    write_json(store, keys.ablation(run.run_id), record.model_dump(mode="json"))
    return record


def switches(config: Config, other: Config, asked: Sequence[str], against: str) -> dict[str, dict[str, Any]]:
    """Return the settings to turn back with the values that they get, by the names of those turned back together.

    Raises:
        UsageError: nothing differs, or not what was asked for, or a value does not go with the preset's others.
    """
    mine, theirs = _flat(config.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    parts = tuple(f"{part}." for part in JUDGED)
    differ = {name: theirs[name] for name in mine if name.startswith(parts) and mine[name] != theirs[name]}
    if not differ:
        raise UsageError(f"--against {against}: has the same settings as {config.preset}; name another preset")
    found = {}
    for line in asked or differ:
        names = names_of(line)
        for name in names:
            if name not in differ:
                raise UsageError(
                    f"--switch {name}: is none of those in which {config.preset} departs from {against}: "
                    f"{', '.join(differ)}"
                )
        found[line] = {name: differ[name] for name in names}
        turned(config, [*found[line].items()])  # what cannot be ends the ablation before anything is downloaded
    return found


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


class _Work:
    """An ablation at work: trains arms."""

    def __init__(self, judges: Judges, method: Method) -> None:
        self.judges, self.method = judges, method
        self.run, self.config = judges.run, judges.run.config
        self.progress = Progress("ablate", run_id=judges.run.run_id)

    def idle(self, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Return the settings that cannot be judged here, and why."""
        seed, weights = self.config.study.seeds[0], initial_weights(self.run, self.config.network.init)

        def science(config: Config) -> dict[str, Any]:
            judges = self.judges
            return trial.science_of(config, self.method, seed, judges.labelled, judges.unlabelled, weights, FROZEN)

        found, whole = {}, science(self.config)
        for line, values in lines.items():
            if any(name.startswith("protocols.") and name.endswith(".epoch") for name in values):
                found[line] = CHOICE
                continue
            config = turned(self.config, [*values.items()]).config
            if config.network.init == "imagenet" and not config.network.takes_imagenet:
                found[line] = STEM
            elif "network.init" not in values and science(config) == whole:
                found[line] = IDLE
        return found

    def arm(self, values: Mapping[str, Any], method: Method | None) -> Arm:
        """Train and judge one arm with every seed; without a method its network as it starts."""
        config = turned(self.config, [*values.items()]).config
        records = [self._trial(config, method, seed) for seed in self.config.study.seeds]
        names = {protocol: [trial.score_name(protocol, data) for data in self.judges.labelled] for protocol in FROZEN}
        arm = Arm(
            settings=values,
            runs=tuple(record.run_id for record in records),
            scores={
                protocol: tuple(sum(record.metrics.get(n, math.nan) for n in each) / len(each) for record in records)
                for protocol, each in names.items()
            },
            failed=next((record.failed for record in records if record.failed), None),
        )
        told = "; ".join(f"{protocol} {t_interval(scores).mean:.4f}" for protocol, scores in arm.scores.items())
        what = "as it is" if method else "no pretraining"
        self.progress.say(f"{words(values) or what}: {told if arm.failed is None else f'failed, {arm.failed}'}")
        return arm

    def _trial(self, config: Config, method: Method | None, seed: int) -> TrialRecord:
        return trial.run(
            replace(self.run, config=config), method=method, seed=seed, labelled=self.judges.labelled,
            unlabelled=self.judges.unlabelled, protocols=FROZEN, command="ablate",
        )  # fmt: skip


def lines_of(record: AblationRecord) -> Iterator[str]:
    """Yield a table: the preset's scores, and what it loses by each setting that is turned back."""
    sets, seeds = [name for name, info in record.data.items() if "val" in info.splits], len(record.seeds)
    if record.synthetic:
        yield "SYNTHETIC images: this says nothing about medicine"
    yield (
        f"Validation AUROC of frozen encoders, mean over {', '.join(sets)}; below it what each setting brings: "
        f"{record.preset} less itself with that one as in {record.against}, paired over {seeds} "
        f"seed{'' if seeds == 1 else 's'}, 95 % t-interval"
    )
    protocols = list(record.whole.scores)
    rows = [[*protocols, "turned back"]]
    rows.append([*(f"{t_interval(record.whole.scores[p]).mean:.4f}" for p in protocols), f"nothing: {record.preset}"])
    for arm, told in [(record.control, "pretraining itself"), *((arm, words(arm.settings)) for arm in record.arms)]:
        effects = [_effect(record.whole.scores[p], arm.scores[p]) for p in protocols]
        rows.append([*effects, told if arm.failed is None else f"{told}: failed, {arm.failed}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        *numbers, told = row
        yield "  ".join([*(text.rjust(width) for text, width in zip(numbers, widths, strict=False)), told])
    for name, why in record.left_out.items():
        yield f"not judged: {name} ({why})"
    if seeds < 2:
        yield "One seed says nothing about the next: there is no interval"
    else:
        count = len(protocols) * (len(record.arms) + 1)
        yield f"{count} intervals, not corrected for their number: one in twenty leaves out 0 by chance"


def _effect(whole: Sequence[float], arm: Sequence[float]) -> str:
    found = paired_t_difference(whole, arm)
    if math.isnan(found.mean):
        return "-"
    interval = f" [{found.low:+.4f}, {found.high:+.4f}]" if found.known else ""
    return f"{found.mean:+.4f}{interval}"
