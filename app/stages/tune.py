"""The search over settings: trials that are judged on validation data, of which the better ones train on for longer.

Successive halving (Jamieson and Talwalkar, AISTATS 2016). A trial that goes on starts anew with the epochs of its rung:
its learning rate and EMA follow cosines over all of its epochs, and one that was continued would be at their end, or on
schedules that no study follows.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.config import difference, load_config
from app.data import Dataset, Unlabelled
from app.data.files import digest_of
from app.errors import CollapseError, UsageError
from app.jobs import keys
from app.jobs.records import DatasetInfo, read_json, write_json
from app.jobs.run import Run, check_run_id, load_labelled, load_pretraining, now, search
from app.jobs.trials import TrialRecord, TrialResult, TuneRecord
from app.progress import Progress
from app.runtime import choose_device, environment
from app.science.distributed import started_by_torchrun
from app.science.generators import epoch_order
from app.settings import Config, Method, Search, names_of
from app.stages import trial
from app.stages.fallback import settle_data
from app.stages.found import came, words
from app.stages.plan import all_synthetic, default_run_id, describe
from app.storage import Store

MOST = 100_000  # combinations that are listed
OF_THE_NETWORK = ("network.architecture", "network.stem", "network.init")  # all that matters without pretraining


@dataclass(frozen=True)
class Candidate:
    """Settings to try: their names and values, and what they make of the search's own settings."""

    settings: Mapping[str, Any]
    config: Config

    def trained_for(self, epochs: int) -> Config:
        """Return its settings for a rung."""
        return self.config.model_copy(update={"pretrain": self.config.pretrain.model_copy(update={"epochs": epochs})})


def tune(store: Store, config: Config, asked: Search, run_id: str | None = None) -> TuneRecord:
    """Search, and publish ``tune.json``; what has been tried under this name is not tried again.

    No test split can be read: the labelled sets are opened without it, here and in every job of a trial.

    Args:
        store: where the search will live.
        config: what it begins with; its data sets are the judges.
        asked: what to try.
        run_id: its name; by default the preset and 8 hex digits of the settings and data.

    Returns:
        What was found.

    Raises:
        UsageError: a wrong setting, test images in the pretraining, a seed of the study, or a name that another search
            has.
        InputError: data are missing or damaged, or real and synthetic mixed.
        Interrupted: a signal came; the same command continues.
    """
    if asked.seed in config.study.seeds:
        raise UsageError(f"search.seed: {asked.seed} is a seed of the study; take another, not to choose for its luck")
    candidates(config, asked)  # a wrong value ends the search before anything is downloaded
    judges = open_judges(store, config, "tune")
    labelled, unlabelled, config = judges.labelled, judges.unlabelled, judges.run.config
    science = judges.science | {"method": asked.method, "seed": asked.seed}
    run = named(judges.run, run_id, science, keys.tune)
    tried, work = candidates(config, asked), _Work(run, asked, labelled, unlabelled)
    controls = work.controls(tried)
    trials = work.rungs(tried, controls)
    record = TuneRecord(
        run_id=run.run_id,
        synthetic=judges.synthetic,
        science=science,
        search=asked.model_dump(mode="json"),
        data=judges.data,
        controls=tuple(controls),
        trials=tuple(trials),
        best=next(result for result in trials if result.epochs == asked.rungs[-1]).settings,
        environment=environment(choose_device(config.runtime.device)),
        finished=now(),
    )
    write_json(store, keys.tune(run.run_id), record.model_dump(mode="json"))
    return record


@dataclass(frozen=True)
class Judges:
    """What trials are judged by, and pretrained on: a run without a name, whose test splits cannot be read."""

    run: Run
    labelled: list[Dataset]
    unlabelled: Unlabelled
    synthetic: bool
    data: dict[str, DatasetInfo]

    @property
    def science(self) -> dict[str, Any]:
        """Settings, and data by checksum."""
        return {
            "config": self.run.config.science(),
            "data": {name: info.sha256 for name, info in self.data.items()},
        }


def open_judges(store: Store, config: Config, command: str) -> Judges:
    """Open the data sets without their test splits.

    Raises:
        UsageError: there are no sets to judge by, their test images would be pretrained on, or torchrun called.
        InputError: data are missing or damaged, or real and synthetic mixed.
    """
    if started_by_torchrun():
        raise UsageError(f"{command}: torchrun starts one pretraining; call it by itself, it takes all GPUs for each")
    if not config.study.datasets:
        raise UsageError(f"study.datasets: `{command}` needs sets to judge by; name one or more")
    config = settle_data(store, config, pretrains=True)
    draft = Run(store, "", config, splits=trial.SPLITS)
    labelled = [load_labelled(draft, name) for name in config.study.datasets]
    _refuse_test_images(draft, labelled)
    unlabelled = load_pretraining(draft)
    described = describe(labelled, unlabelled)
    data = {name: DatasetInfo.model_validate(entry) for name, entry in described.items()}
    return Judges(draft, labelled, unlabelled, all_synthetic(labelled, unlabelled), data)


def candidates(config: Config, asked: Search) -> list[Candidate]:
    """Return the combinations to try: the preset's own, then all, or so many drawn by the search's seed; none twice.

    Raises:
        UsageError: a setting is unknown or a value out of range, or there are too many.
    """
    lines = [[(line, value) for value in values] for line, values in asked.settings.items()]
    for pair in itertools.chain(*lines):  # each value, also of combinations that are not drawn
        turned(config, [pair])
    count = math.prod(map(len, lines))
    if count > MOST:
        raise UsageError(f"search.settings: {count:,} combinations are more than {MOST:,}; leave some values out")
    chosen = range(count) if asked.trials is None else sorted(epoch_order(count, "tune", asked.seed)[: asked.trials])
    every = list(itertools.product(*lines))
    plain = config.model_dump(mode="json")
    names = [name.split(".") for line in asked.settings for name in names_of(line)]
    own = Candidate({f"{section}.{key}": plain[section][key] for section, key in names}, config)
    found = [own, *(turned(config, every[int(index)]) for index in chosen)]
    return list({json.dumps(each.config.science()): each for each in reversed(found)}.values())[::-1]


def turned(config: Config, pairs: Sequence[tuple[str, Any]]) -> Candidate:
    """Return the settings with others in their place, by lines of names as ``Search.settings`` has them.

    Raises:
        UsageError: a setting is unknown, or a value out of range.
    """
    settings = dict[str, Any]()
    for line, value in pairs:
        names = names_of(line)
        settings |= zip(names, value if len(names) > 1 else [value], strict=True)
    lines = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return Candidate(settings, load_config(config.preset, lines, base=config.model_dump(mode="json")))


def ranking(means: Sequence[float]) -> list[int]:
    """Return the places of trials from the best mean to the worst; NaN is worst, equals stay in order."""
    return sorted(range(len(means)), key=lambda at: (math.isnan(means[at]), -means[at]))


class _Work:
    """A search at work: runs trials and says what came of them."""

    def __init__(self, run: Run, asked: Search, labelled: list[Dataset], unlabelled: Unlabelled) -> None:
        self.run, self.asked, self.labelled, self.unlabelled = run, asked, labelled, unlabelled
        self.progress = Progress("tune", run_id=run.run_id)

    def controls(self, tried: Sequence[Candidate]) -> list[TrialResult]:
        """Score each network of the search as it starts, and from random weights, without pretraining."""
        starts: dict[tuple[str, str, str], None] = {}
        for each in tried:
            network = each.config.network
            starts |= dict.fromkeys((network.architecture, network.stem, init) for init in (network.init, "random"))
        results = []
        for values in starts:
            pairs = list(zip(OF_THE_NETWORK, values, strict=True))
            result = self._result(turned(self.run.config, pairs), None)
            results.append(result)
            self._say(f"control {len(results)} of {len(starts)}", result)
        return results

    def rungs(self, tried: Sequence[Candidate], controls: Sequence[TrialResult]) -> list[TrialResult]:
        """Train and judge all candidates, then the better ones for longer, and so on; each rung's best come first."""
        found, counts = list[TrialResult](), [len(tried)]
        while len(counts) < len(self.asked.rungs):
            counts.append(math.ceil(counts[-1] / self.asked.keep))
        plan = ", then ".join(
            f"{n} trials of {epochs} epochs" for n, epochs in zip(counts, self.asked.rungs, strict=True)
        )
        self.progress.say(f"{plan}; {len(self.unlabelled):,} images an epoch")
        for rung, epochs in enumerate(self.asked.rungs, 1):
            results = []
            for each in tried:
                results.append(self._result(each, epochs, control_of(each, controls)))
                self._say(f"rung {rung} of {len(self.asked.rungs)}, trial {len(results)} of {len(tried)}", results[-1])
            order = ranking([result.mean for result in results])
            found += [results[at] for at in order]
            tried = [tried[at] for at in order[: math.ceil(len(order) / self.asked.keep)] if not results[at].failed]
            if not tried:
                raise CollapseError(f"tune: no trial of {epochs} epochs could be judged; the first: {came(results[0])}")
        return found

    def _result(self, each: Candidate, epochs: int | None, control: TrialResult | None = None) -> TrialResult:
        method: Method | None = None if epochs is None else self.asked.method
        config = each.config if epochs is None else each.trained_for(epochs)
        record: TrialRecord = trial.run(
            replace(self.run, config=config),
            method=method,
            seed=self.asked.seed,
            labelled=self.labelled,
            unlabelled=self.unlabelled,
        )
        scores = [record.metrics.get(data.name, math.nan) for data in self.labelled]
        mean = sum(scores) / len(scores)
        return TrialResult(
            run=record.run_id,
            settings=each.settings,
            epochs=record.epochs,
            scores=record.metrics,
            mean=mean,
            gain=None if control is None else mean - control.mean,
            failed=record.failed,
        )

    def _say(self, where: str, result: TrialResult) -> None:
        self.progress.say(f"{where}: {words(result.settings)}: {came(result)}")


def control_of(each: Candidate, controls: Sequence[TrialResult]) -> TrialResult:
    """Return the control of a candidate: its network from its own start, without pretraining."""
    network = each.config.network
    wanted = dict(zip(OF_THE_NETWORK, (network.architecture, network.stem, network.init), strict=True))
    return next(result for result in controls if result.settings == wanted)


def _refuse_test_images(run: Run, labelled: Sequence[Dataset]) -> None:
    """See that the file of a set that judges is not pretrained on as a whole, test images included.

    Raises:
        UsageError: it would be.
    """
    place = search(run, run.config.data.pretrain)
    if run.config.data.pretrain_split != "all" or place is None or not place[0].is_file():
        return
    digest = digest_of(place[0])
    for data in labelled:
        if data.sha256 == digest:
            raise UsageError(
                f"data.pretrain={run.config.data.pretrain}: is the file of {data.name}, whose test images "
                "a search must not see; use --set data.pretrain_split=train"
            )


def named(run: Run, run_id: str | None, science: Mapping[str, Any], key: Callable[[str], str]) -> Run:
    """Return the run under its name; see that this is free, or that of a search or ablation from the same settings.

    Args:
        run: without a name.
        run_id: its name; by default the preset and 8 hex digits of ``science``.
        science: what it begins with.
        key: of what will be published.

    Raises:
        UsageError: it is another's.
    """
    run_id = check_run_id(run_id or default_run_id(run.config.preset, science))
    for what, other in (("study", keys.experiment), ("search", keys.tune), ("ablation", keys.ablation)):
        if other is not key and run.store.exists(other(run_id)):
            raise UsageError(f"--run-id {run_id}: is a {what}; take another name")
    before = key(run_id)
    if run.store.exists(before) and (changes := difference(read_json(run.store, before).get("science"), science)):
        raise UsageError(f"--run-id {run_id}: began from other settings ({'; '.join(changes[:3])}); take another name")
    return replace(run, run_id=run_id)
