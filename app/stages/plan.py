"""The planning stage: check the inputs, name the run, list its jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from app.config import check_imagenet, difference, identity
from app.data import Dataset, Unlabelled, catalog, class_members, few_shot_draw, say_overlap, shared_test_images
from app.data.own import near_test_images
from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.records import (
    DatasetInfo,
    Experiment,
    Overlap,
    Plan,
    PlannedDownstream,
    PlannedPretraining,
    parse_json,
    to_json,
)
from app.jobs.run import (
    LONGEST_RUN_ID,
    Run,
    agreed,
    check_run_id,
    load_labelled,
    load_pretraining,
    monitor_name,
    now,
    settings_apart,
)
from app.progress import Progress
from app.science.protocols import PROTOCOLS, protocol_of
from app.settings import Config
from app.stages.estimate import WORTHWHILE, Rates, estimate_lines, known_rates, rates_here, work_of
from app.stages.fallback import settle_data
from app.stages.power import curve_lines, of_pilot, power_lines
from app.stages.samples import show_data
from app.storage import Store


def plan(
    store: Store,
    config: Config,
    run_id: str | None = None,
    *,
    overwrite: bool = False,
    strict_overlap: bool = False,
    pilot: str | None = None,
    measure: Callable[[Config, int], Rates] | None = None,
) -> Run:
    """Plan a run and publish ``experiment.json``; planning the same experiment again changes nothing.

    All data sets are loaded and checked now, so that a missing file fails before a GPU is taken.

    Args:
        store: where the run will live.
        config: its configuration.
        run_id: its name; by default the preset and 8 hex digits of the science (settings and data).
        overwrite: replace another experiment planned under the same name.
        strict_overlap: refuse to pretrain on images of a test split.
        measure: times a few steps for the estimate, if no rates of this machine are kept and the study is long.
        pilot: a finished run whose variances tell what this one will be able to settle.

    Returns:
        The planned run.

    Raises:
        InputError: data are missing or damaged, real and synthetic mixed, or overlap although they must not.
        UsageError: k is larger than a class, ImageNet's weights fit another stem, or the name is another experiment's.
    """
    once = partial(_plan_once, store, config, run_id, overwrite, strict_overlap, pilot, measure)
    while (run := once()) is None:
        Progress("plan", run_id=run_id or "").say("another plan of this run was written meanwhile; adds to that")
    return run


def _plan_once(
    store: Store,
    config: Config,
    run_id: str | None,
    overwrite: bool,
    strict_overlap: bool,
    pilot: str | None,
    measure: Callable[[Config, int], Rates] | None,
) -> Run | None:
    """Plan a run; None if somebody else has planned it since this began, whose jobs it would have lost."""
    if run_id and not overwrite:
        config = agreed(store, run_id, config)  # before anything is downloaded
    if "imagenet" in (config.network.init, *config.study.baselines):
        check_imagenet(config.network)
    config = settle_data(store, config)
    draft = Run(store, "", config)
    labelled = [load_labelled(draft, name) for name in config.study.datasets]
    unlabelled = load_pretraining(draft) if config.study.methods else None
    _say_what_there_is(config, labelled, unlabelled)
    synthetic = all_synthetic(labelled, unlabelled)
    _check_few_shot(config, labelled)
    overlap = _overlap(unlabelled, labelled, strict=strict_overlap) if unlabelled else None
    said = power_lines(config, labelled, of_pilot(store, pilot) if pilot else {})
    for line in (*said, *curve_lines(config, labelled)):
        Progress("plan").say(line)
    described = describe(labelled, unlabelled)
    science = {
        "config": config.science(),
        "data": {name: entry["sha256"] for name, entry in described.items()},
    }
    run = Run(store, check_run_id(run_id or default_run_id(config.preset, science)), config)
    key = keys.experiment(run.run_id)
    created, version = now(), None
    if store.exists(key) and not overwrite:
        found = store.read_version(key)
        version, before = found.version, parse_json(store, key, found.data)
        if not growth(run, before.get("science"), science, where=f"{store.uri}/{key}"):
            return run
        if run_id and _lacks(science, before["science"]):
            return None
        created = str(before.get("created", created))
    _tell_estimate(config, labelled, unlabelled, measure)
    if unlabelled and overlap:
        _look_for_near(unlabelled, labelled, overlap["test"])
    for data in labelled:
        show_data(run, data)
    if unlabelled and unlabelled.name not in config.study.datasets:
        show_data(run, unlabelled)
    experiment = Experiment(
        run_id=run.run_id,
        preset=config.preset,
        synthetic=synthetic,
        config=config.model_dump(mode="json"),
        science=science,
        monitor=monitor_name(run),
        plan=list_jobs(run),
        data={name: DatasetInfo.model_validate(entry) for name, entry in described.items()},
        overlap=Overlap.model_validate(overlap) if overlap else None,
        created=created,
    )
    planned = to_json(experiment.model_dump(mode="json"))
    if overwrite:
        store.write(key, planned)
        return run
    written = store.create(key, planned) if version is None else store.replace(key, planned, version)
    return None if written is None else run


def _lacks(science: Mapping[str, Any], planned: Mapping[str, Any]) -> bool:
    """Whether what was planned has methods, sets, protocols or seeds that ``science`` has not."""
    after, before = science["config"]["study"], planned["config"]["study"]
    return any(set(before[name]) - set(after[name]) for name in after)


def _tell_estimate(
    config: Config,
    labelled: list[Dataset],
    unlabelled: Unlabelled | None,
    measure: Callable[[Config, int], Rates] | None,
) -> None:
    """Say what the study will take; what is done already is counted too."""
    stages = work_of(config, labelled, unlabelled)
    channels = max([data.channels for data in labelled] + ([unlabelled.channels] if unlabelled else []), default=1)
    if measure is not None and sum(work.steps for work in stages) >= WORTHWHILE:
        rates: Rates | None = rates_here(config, channels, measure)
    else:
        rates = known_rates(config, channels)
    for line in estimate_lines(config, stages, rates):
        Progress("plan").say(line)


def growth(run: Run, planned: Any, science: Mapping[str, Any], *, where: str) -> bool:
    """Say whether a plan adds to the one before it, and what; False if it is the same.

    Raises:
        InputError: the plan before is damaged.
        UsageError: it is another experiment.
    """
    config, data = (planned.get(name) if isinstance(planned, dict) else None for name in ("config", "data"))
    sound = isinstance(config, dict) and isinstance(data, dict) and {"study", "protocols"} <= config.keys()
    if not sound:
        raise InputError(f"{where}: damaged, not a plan; delete it, or --overwrite")
    same = planned["data"].keys() & science["data"].keys()
    before, after = ({name: part["data"][name] for name in same} for part in (planned, science))
    if changes := settings_apart(planned["config"], science["config"]) + difference(before, after, "data"):
        raise UsageError(
            f"--run-id {run.run_id}: names another experiment ({'; '.join(changes[:3])}); take --run-id "
            f"{default_run_id(run.config.preset, science)}, which says what it is of, or --overwrite"
        )
    before, after = planned["config"]["study"], science["config"]["study"]
    added = [
        f"{name} {', '.join(str(value) for value in after[name] if value not in before[name])}"
        for name in after
        if set(after[name]) - set(before[name])
    ]
    if added:
        Progress("plan", run_id=run.run_id).say(f"{run.run_id} grows by {'; '.join(added)}; finished jobs stay valid")
    return bool(added)


def all_synthetic(labelled: list[Dataset], unlabelled: Unlabelled | None) -> bool:
    """Whether the data sets are phantoms; all of them or none.

    Raises:
        InputError: some are, and some are not.
    """
    kinds = {data.synthetic for data in labelled} | ({unlabelled.synthetic} if unlabelled else set())
    if len(kinds) > 1:
        raise InputError("plan: some data sets are real and some are phantoms; use one kind in one run")
    return kinds == {True}


def describe(labelled: list[Dataset], unlabelled: Unlabelled | None) -> dict[str, dict[str, Any]]:
    """Describe each data set once, by its name; one that is pretrained on and evaluated has both roles."""
    described = {data.name: data.describe("downstream") for data in labelled}
    if unlabelled is None:
        return described
    if unlabelled.name not in described:
        return described | {unlabelled.name: unlabelled.describe("pretrain")}
    described[unlabelled.name] |= {"role": "both", "unlabelled": {unlabelled.split: len(unlabelled)}}
    return described


def _overlap(unlabelled: Unlabelled, labelled: list[Dataset], *, strict: bool) -> dict[str, Any]:
    """Look for test images in the pretraining, say what there is, and return it for the plan."""
    shared = shared_test_images(unlabelled, labelled)
    titles = {data.name: data.title for data in labelled}
    told = [say_overlap(titles[name], unlabelled.title, unlabelled.split, **counts) for name, counts in shared.items()]
    for line in filter(None, told):
        if strict:
            splits = unlabelled.split == "all" and unlabelled.name in titles
            remedy = "use --set data.pretrain_split=train" if splits else f"take them out of {unlabelled.source}"
            raise InputError(f"--strict-overlap: {line.rstrip('.')}; {remedy}")
        Progress("plan").say(f"WARNING: {line} Its results cannot tell how the encoder does on images it has not seen.")
    return {"pretraining": unlabelled.name, "split": unlabelled.split, "images": len(unlabelled), "test": shared}


def _say_what_there_is(config: Config, labelled: list[Dataset], unlabelled: Unlabelled | None) -> None:
    """Say in a line for each data set what the study will see, before anything is computed."""
    progress, size = Progress("plan"), config.data.size
    if unlabelled:
        drawn = f", {len(unlabelled):,} of them drawn" if config.data.subset else ""
        known = unlabelled.reading.plan(size) if unlabelled.reading else f"{len(unlabelled):,} images of {size} px"
        progress.say(f"{unlabelled.title}: {known}{drawn if unlabelled.reading else ''}; pretrained on")
    for data in labelled:
        splits = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
        classes = f"{data.n_classes} {'labels' if data.train.labels.shape[1] > 1 else 'classes'}"
        progress.say(f"{data.title}: {splits} images of {size} px, {classes}; judged on")
        fit = data.origin.description.get("fit") if data.origin else None
        if unlabelled and unlabelled.reading and fit not in (None, config.reading.fit):
            progress.say(
                f"WARNING: {data.title} was imported with --fit {fit}, but {unlabelled.title} is read with "
                f"reading.fit={config.reading.fit}; give both the same"
            )


def _look_for_near(unlabelled: Unlabelled, labelled: list[Dataset], counts: dict[str, dict[str, Any]]) -> None:
    """Count the test images that are nearly the same as some of pretraining, and say so.

    Of own images alone: nobody else has looked through them, and it takes 0.2 ms an image.
    """
    if unlabelled.name in catalog() or unlabelled.synthetic:
        return
    progress = Progress("plan")
    if len(unlabelled) > 10_000:
        progress.say(f"looking for test images that are nearly the same as some of {len(unlabelled):,}: a moment")
    near = near_test_images(unlabelled.images, {data.name: data.test.images for data in labelled})
    for data in labelled:
        counts[data.name]["near"] = near[data.name]
        if near[data.name]:
            line = say_overlap(
                data.title, unlabelled.title, unlabelled.split, images=len(data.test), shared=0, near=near[data.name]
            )
            progress.say(f"WARNING: {line}")


def default_run_id(preset: str, science: Mapping[str, Any]) -> str:
    """Name a run by its preset and 8 hex digits of its science; what a name cannot have becomes a hyphen."""
    stem = re.sub("[^a-z0-9]+", "-", preset.lower()).strip("-")[: LONGEST_RUN_ID - 9].strip("-") or "run"
    return f"{stem}-{identity(science)[:8]}"


def list_jobs(run: Run) -> Plan:
    """List the jobs of a run: pretraining per method and seed, then data set x init x protocol x seed."""
    study = run.config.study
    trained = [keys.Pretraining(method, seed) for seed in study.seeds for method in study.methods]
    starts: list[tuple[str, int, str | None]] = [(name, seed, None) for name in study.baselines for seed in study.seeds]
    names = [(str(keys.Pretraining(method, seed)), seed) for method in study.methods for seed in study.seeds]
    starts += [(name, seed, name) for name, seed in names]
    judged = [
        (keys.Downstream(dataset, init, protocol, seed), needs)
        for init, seed, needs in starts
        for dataset in study.datasets
        for protocol in study.protocols
    ]
    of_run = ("--run-id", run.run_id)
    frozen: dict[str, bool] = {
        name: protocol_of(name, getattr(run.config.protocols, name)).frozen for name in study.protocols
    }
    return Plan(
        run_id=run.run_id,
        pretrain=tuple(
            PlannedPretraining(
                key=str(job), args=("pretrain", *of_run, "--method", job.method, "--seed", str(job.seed))
            )
            for job in trained
        ),
        downstream=tuple(
            PlannedDownstream(
                key=str(job),
                needs=needs,
                args=(
                    *("downstream", *of_run, "--dataset", job.dataset, "--init", job.init),
                    *("--protocol", job.protocol, "--seed", str(job.seed)),
                ),
                frozen=frozen[job.protocol],
            )
            for job, needs in judged
        ),
    )


def _check_few_shot(config: Config, labelled: list[Dataset]) -> None:
    """Check that every class has as many images as every few-shot protocol draws of it.

    Raises:
        UsageError: one has fewer; the message names each setting that asks for too many.
    """

    def fewest(data: Dataset) -> int:
        return min(len(members) for members in class_members(data.train.labels, data.n_classes))

    asked = {name: getattr(config.protocols, name).k for name in config.study.protocols if PROTOCOLS[name].few}
    scarcest = min(labelled, key=fewest, default=None)
    if scarcest and (too_many := [name for name, k in asked.items() if k > fewest(scarcest)]):
        k = max(asked[name] for name in too_many)
        few_shot_draw(
            scarcest.train.labels, k, 0, 0,
            class_names=scarcest.class_names, dataset=scarcest.name, protocols=too_many,
        )  # fmt: skip
