"""A trial of `tune` or `ablate`: an encoder, pretrained or not, that is scored on validation data alone, frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.config import identity
from app.data import Dataset, Unlabelled
from app.errors import CollapseError, Interrupted
from app.jobs import keys
from app.jobs.job import Job, open_job
from app.jobs.run import Run, finished, now
from app.jobs.trials import TrialRecord
from app.progress import Progress
from app.runtime import choose_device, environment, prepare
from app.science.convolutions import use
from app.science.finetuning import Labelled, fit
from app.science.protocols import protocol_of
from app.settings import Config, FewShotRecipe, Method, ProtocolName, Recipe
from app.stages import pretrain
from app.stages.downstream import build_classifier, choose_images, protocol_science
from app.stages.kernel_choice import choose_kernels
from app.stages.weights import Weights, initial_weights

SPLITS = ("train", "val")  # of labelled sets, all that a trial can read
PROBES: tuple[ProtocolName, ...] = ("linear_probe",)


def run(
    run: Run,
    *,
    method: Method | None,
    seed: int,
    labelled: Sequence[Dataset],
    unlabelled: Unlabelled,
    protocols: Sequence[ProtocolName] = PROBES,
    command: str = "tune",
) -> TrialRecord:
    """Pretrain an encoder and score its linear probes, unless it has been done.

    A trial is a run of its own inside the search's, named by what decides its scores: one that two searches have in
    common is done once. When it is scored its encoder is dropped, since what a search leaves is settings.

    Args:
        run: the search's run with the trial's settings, whose jobs cannot read test splits.
        method: of the pretraining; None for a control, which has none.
        seed: of everything that is drawn.
        labelled: the sets that it is judged by, in the run's splits.
        unlabelled: the images for pretraining.
        protocols: to score it by, of a frozen encoder.
        command: whose trial it is, for the log.

    Returns:
        The trial's record; if the pretraining or a probe collapsed, it says so.

    Raises:
        Interrupted: a signal came, or another process works on the trial.
    """
    assert set(run.splits) <= set(SPLITS), "a trial must not be able to read a test split"
    run = replace(run, config=unwatched(run.config))
    weights = initial_weights(run, run.config.network.init)
    science = science_of(run.config, method, seed, labelled, unlabelled, weights, protocols)
    own = replace(run, run_id=keys.trial(run.run_id, identity(science)))
    folder = keys.run(own.run_id)
    record = finished(own.store, folder, science, overwrite=False)
    if record is None:
        failed, timings = None, dict[str, float]()
        if method is not None:
            try:
                timings = {"pretrain_seconds": _pretrain(own, method, seed)}
                weights = initial_weights(own, str(keys.Pretraining(method, seed)))
            except CollapseError as error:
                failed = str(error)
        with open_job(own, folder, science, progress=Progress(command, run_id=run.run_id), overwrite=False) as job:
            record = job.record or _judge(own, job, method, seed, labelled, weights, timings, failed, protocols)
    if method is not None:
        _drop_weights(own, keys.Pretraining(method, seed))
    return TrialRecord.model_validate(record)


def science_of(
    config: Config,
    method: Method | None,
    seed: int,
    labelled: Sequence[Dataset],
    unlabelled: Unlabelled,
    start: Weights,
    protocols: Sequence[ProtocolName] = PROBES,
) -> dict[str, Any]:
    """Return what decides a trial's scores: the encoder's science, the probes' recipes, and the sets by checksum."""
    first, *others = [
        {key: value for key, value in protocol_science(config, name).items() if key != "curve"} for name in protocols
    ]
    untrained = {"architecture": config.network.architecture, "stem": config.network.stem, "init": start.identity}
    return {
        "encoder": pretrain.science_of(config, method, seed, unlabelled, start) if method else untrained,
        "protocol": first,
        "datasets": {data.name: {"sha256": data.sha256, "size": data.size, "task": data.task} for data in labelled},
        "subset": config.data.subset,
        "seed": seed,
    } | ({"other_protocols": others} if others else {})


def unwatched(config: Config) -> Config:
    """Return the settings without the k-NN monitor, which changes nothing and takes time."""
    return config.model_copy(update={"data": config.data.model_copy(update={"monitor": None})})


def score_name(protocol: ProtocolName, data: Dataset) -> str:
    """Return the name of a score among a trial's metrics: the set's, and behind it the protocol if not the probe."""
    return data.name if (protocol,) == PROBES else f"{data.name}/{protocol}"


def _pretrain(run: Run, method: Method, seed: int) -> float:
    """Pretrain the trial's encoder; return the seconds that it took."""
    record = pretrain.run(run, method=method, seed=seed)
    assert record is not None, "torchrun does not start trials"
    return float(record["timings"]["seconds"])


def _judge(
    run: Run,
    job: Job,
    method: Method | None,
    seed: int,
    labelled: Sequence[Dataset],
    weights: Weights,
    timings: dict[str, float],
    failed: str | None,
    protocols: Sequence[ProtocolName],
) -> dict[str, Any]:
    """Score the trial's probes and publish its record; of one that has failed, publish that."""
    begin, scores = time.perf_counter(), dict[str, float]()
    device = choose_device(run.config.runtime.device)
    prepare(device, run.config.runtime.threads)
    if failed is None:
        try:
            scores = {
                score_name(protocol, data): probe(run, job, data, weights, seed, device, protocol)
                for protocol in protocols
                for data in labelled
            }
        except CollapseError as error:
            failed = str(error)
    return job.publish(
        {},
        TrialRecord(
            run_id=run.run_id,
            key=run.run_id.rpartition("/")[2],
            method=method or weights.name,
            seed=seed,
            synthetic=any(data.synthetic for data in labelled),
            identity=identity(job.science),
            science=job.science,
            config=run.config.model_dump(mode="json"),
            environment=environment(device),
            data={data.name: {"sha256": data.sha256} | data.read_as for data in labelled},
            metrics=scores,
            timings=timings | {"probe_seconds": round(time.perf_counter() - begin, 3)},
            epochs=run.config.pretrain.epochs if method else 0,
            failed=failed,
            finished=now(),
        ),
    )


def probe(
    run: Run, job: Job, data: Dataset, weights: Weights, seed: int, device: str, protocol: ProtocolName = PROBES[0]
) -> float:
    """Return the validation AUROC of a linear layer, trained as `downstream` does, at the epoch that is kept.

    Of several draws it is the mean.

    Raises:
        CollapseError: a loss is not finite.
        Interrupted: a signal came.
    """
    recipe: Recipe = getattr(run.config.protocols, protocol)
    few = recipe if isinstance(recipe, FewShotRecipe) else None

    def go_on(*_: object) -> None:
        job.claim.check()
        if job.stop:
            raise Interrupted(f"{job.stop.signal}: stopped in a trial's probe; run the same command again to continue")

    every, val = (Labelled.of(split.images, split.labels, device) for split in (data.train, data.val))
    scores = []
    for draw in range(few.draws if few else 1):
        classifier = build_classifier(run, data, weights, seed, draw).to(device)
        kernels = choose_kernels(
            classifier, channels=data.channels, size=data.size, batch=recipe.batch_size, precision="float32",
            device=device, wanted=run.config.runtime.kernels, steps=0,
        )  # fmt: skip
        use(classifier, kernels)
        train = every.take(choose_images(data, few.k, seed, draw, protocol)) if few else every
        outcome = fit(
            classifier, train, val, protocol=protocol_of(protocol, recipe), recipe=recipe, task=data.task,
            key=(data.name, seed, draw), after_step=go_on,
        )  # fmt: skip
        auroc: float | None = outcome.curves[outcome.best_epoch - 1]["val_auroc"]
        scores.append(math.nan if auroc is None else auroc)
    return sum(scores) / len(scores)


def _drop_weights(run: Run, job: keys.Pretraining) -> None:
    """Remove what a trial's pretraining left but its curves; its record first, which names the others."""
    folder = keys.pretraining(run.run_id, str(job))
    left = [key for place in (folder, keys.samples(run.run_id)) for key in run.store.list(place)]
    for key in sorted(left, key=lambda key: key != keys.record(folder)):
        if key != f"{folder}/{keys.CURVES}":
            run.store.delete(key)
