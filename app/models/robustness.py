"""How much AUROC trained models lose on test images that were made worse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from app.config import identity
from app.data import Dataset
from app.errors import InputError
from app.jobs import keys
from app.jobs.records import DownstreamRecord, read_downstream, read_json, to_json
from app.jobs.robustness import RobustnessRecord, science_of
from app.jobs.run import now
from app.models.predict import check_scores, own_data, recorded_scores, scores_of
from app.models.trained import Trained, has_model, load_trained
from app.progress import Progress
from app.runtime import environment
from app.science import metrics
from app.science.corruptions import corrupt
from app.science.strengths import STRENGTHS
from app.storage import Store


def judge_run(
    store: Store,
    run_id: str,
    *,
    sources: Sequence[str] = (),
    data_root: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> list[RobustnessRecord]:
    """Judge each model that a run has left, unless it was, and publish what came of it beside the job's record.

    Args:
        store: where the run is.
        run_id: its name.
        sources: ``name=URI[:task]`` each, where the study's own word on its data no longer holds.
        data_root: folder to look for data in first.
        device: where to compute.
        overwrite: judge those anew that were judged.

    Returns:
        What is known of each model, old and new.

    Raises:
        InputError: no such run, or no model; or a model or its data set is damaged, or another one.
    """
    progress = Progress("robustness", run_id=run_id)
    folder = f"{keys.run(run_id)}/{keys.DOWNSTREAM}"
    there = sorted(keys.finished(folder, store.list(folder)))
    jobs = {name: read_downstream(store, keys.downstream(run_id, name)) for name in there}
    left = [name for name, record in jobs.items() if has_model(store, keys.downstream(run_id, name), record)]
    if not left:
        raise InputError(
            f"--run-id {run_id}: no finished job in {store.uri} has left a model (runtime.keep_models says which do); "
            "`ls` lists its jobs"
        )
    if without := len(jobs) - len(left):
        progress.say(f"{without} of {len(jobs)} finished jobs have left no model, and are passed over")
    data: Dataset | None = None
    known: dict[str, Any] = {}
    judged = []
    with progress.bar(len(left)) as bar:
        for name in left:
            place, record = keys.downstream(run_id, name), jobs[name]
            found = None if overwrite else judged_before(store, place, record)
            if found is None:
                trained = load_trained(store, place)
                if data is None or known != record.science["dataset"]:
                    data, known = own_data(store, trained, sources, data_root), dict(record.science["dataset"])
                found = judge(store, place, trained, data, device)
                store.write(keys.robustness(place), to_json(found.plain()))
            judged.append(found)
            bar.advance(auroc=found.metrics["auroc"], loss=found.metrics["loss"])
    return judged


def judged_before(store: Store, folder: str, record: DownstreamRecord) -> RobustnessRecord | None:
    """Return what was published of this very model and these corruptions; None if nothing was, or it is damaged."""
    try:
        before = RobustnessRecord.model_validate(read_json(store, keys.robustness(folder)))
    except (InputError, ValidationError):  # it will be written anew
        return None
    return before if before.identity == identity(science_of(record, STRENGTHS)) else None


def judge(store: Store, folder: str, trained: Trained, data: Dataset, device: str = "cpu") -> RobustnessRecord:
    """Find the AUROC of a model on its test images as they are, and under each corruption at each strength.

    Raises:
        InputError: of the images as they are, its predictions are not the recorded ones.
    """
    begin = time.perf_counter()
    record, test = trained.record, data.test
    clean = scores_of(trained, test.images, device)
    check_scores(clean, recorded_scores(store, folder, trained), what="predictions", where=trained.uri)

    def auroc(kind: str, level: int) -> float:
        worse = corrupt(test.images, kind, level, (data.name,))
        return metrics.auroc(test.labels, scores_of(trained, worse, device), record.task)

    found = {kind: tuple(auroc(kind, level + 1) for level in range(len(s))) for kind, s in STRENGTHS.items()}
    before = metrics.auroc(test.labels, clean, record.task)
    science = science_of(record, STRENGTHS)
    return RobustnessRecord(
        run_id=record.run_id,
        key=record.key,
        method=record.method,
        seed=record.seed,
        synthetic=record.synthetic,
        identity=identity(science),
        science=science,
        config=record.config,
        environment=environment(device),
        data=record.data,
        metrics={"auroc": before, "loss": before - float(np.mean(list(found.values())))},
        timings={"seconds": time.perf_counter() - begin},
        finished=now(),
        auroc=found,
    )
