"""What a run was to do: its plan, and what jobs that were run by hand add to it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from app.errors import InputError
from app.jobs import keys
from app.jobs.records import DatasetInfo, DownstreamRecord, Experiment, Plan, PretrainRecord, Record
from app.report.objects import Damaged, parse
from app.storage import MissingObject, Store


def find_experiment(store: Store, run_id: str) -> Experiment:
    """Read the plan, and add the data sets of jobs that were run by hand; without a plan these are all there is.

    Raises:
        InputError: there is neither a plan nor a record, or the plan is damaged.
    """
    key = keys.experiment(run_id)
    joined = _joined(store, run_id)
    try:
        experiment = parse(Experiment, store.read(key))
    except MissingObject as error:
        if (found := _without_plan(store, run_id, joined)) is None:
            raise InputError(f"no run {run_id!r} in {store.uri}; `plan` makes one, `ls` lists them") from error
        return found
    except Damaged as error:
        raise InputError(f"{key} in {store.uri}: {error}; run `plan` again") from error
    return experiment.model_copy(update={"data": joined | dict(experiment.data)})


def _joined(store: Store, run_id: str) -> dict[str, DatasetInfo]:
    """What is known of data sets that no plan names; one that is damaged is done without."""
    found: dict[str, DatasetInfo] = {}
    for key in store.list(keys.samples(run_id)):
        if (name := keys.joined_name(run_id, key)) is None:
            continue
        with suppress(InputError, Damaged):
            info = parse(DatasetInfo, store.read(key))
            if name in found and found[name].role != info.role:
                labelled, other = sorted((found[name], info), key=lambda each: each.role)
                info = labelled.model_copy(update={"role": "both", "unlabelled": other.splits})
            found[name] = info
    return found


def _without_plan(store: Store, run_id: str, joined: Mapping[str, DatasetInfo]) -> Experiment | None:
    """Make up the plan of a run whose jobs were all run by hand: it names none; None if there is no record."""
    kinds: tuple[tuple[str, type[Record]], ...] = (
        (keys.PRETRAIN, PretrainRecord),
        (keys.DOWNSTREAM, DownstreamRecord),
    )
    records: list[Record] = []
    for kind, model in kinds:
        folder = f"{keys.run(run_id)}/{kind}"
        for job in sorted(keys.finished(folder, store.list(folder))):
            with suppress(InputError, Damaged):  # it will be named when the jobs are read
                records.append(parse(model, store.read(keys.record(f"{folder}/{job}"))))
    if not records:
        return None
    first = min(records, key=lambda record: record.finished)
    return Experiment(
        run_id=run_id,
        preset=str(first.config.get("preset", "")),
        synthetic=any(record.synthetic for record in records),
        config=first.config,
        science={},
        monitor=None,
        plan=Plan(run_id=run_id, pretrain=(), downstream=()),
        data=joined,
        created=first.finished,
    )
