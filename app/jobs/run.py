"""What the jobs of one run share: its configuration, its keys, its inputs, and how a job starts."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.config import completed, difference, parse_config
from app.data import (
    SPLITS,
    Dataset,
    Unlabelled,
    default_roots,
    file_names,
    find_file,
    is_archive,
    load_dataset,
    load_unlabelled,
    parse_task,
)
from app.data.reading import Counted, ReadOptions
from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.records import DatasetInfo, read_json, read_record
from app.machine import cache_folder, path_of
from app.progress import Bar, Progress
from app.settings import Config
from app.storage import Store

LONGEST_RUN_ID = 63  # as of a Kubernetes label
SUBSET_SEED = 0  # subsets are part of the data: the same images for every seed of a study


@dataclass(frozen=True)
class Run:
    """One run in a store.

    Attributes:
        store: where jobs read and write.
        run_id: the run's name.
        config: its configuration.
        splits: of labelled sets, those that its jobs can read: of the others no array is opened.
    """

    store: Store
    run_id: str
    config: Config
    splits: tuple[str, ...] = SPLITS


def planned_settings(store: Store, run_id: str | None, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Return the configuration, as plain values, that a run was planned with; None if it was not planned.

    Raises:
        InputError: the plan is damaged, and not to be overwritten.
    """
    if not run_id or not store.exists(key := keys.experiment(run_id)):
        return None
    try:
        settings = read_json(store, key).get("config")
        if not isinstance(settings, dict) or not isinstance(settings.get("runtime"), dict):
            raise InputError(f"{store.uri}/{key}: damaged, has no settings; delete it and run `plan` again")
    except InputError:
        if not overwrite:
            raise
        return None
    return completed(settings)


def check_run_id(name: str) -> str:
    """Return the name of a run that is about to be made, if a key in the store and a Kubernetes name can hold it.

    Raises:
        UsageError: it cannot.
    """
    part = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    if not re.fullmatch(rf"{part}(\.{part})*", name) or len(name) > LONGEST_RUN_ID:
        raise UsageError(
            f"--run-id {name!r}: cannot be a run's name; use a-z, 0-9, '-' and '.' (these two only in between), "
            f"{LONGEST_RUN_ID} characters at most"
        )
    return name


def open_run(store: Store, run_id: str, asked: Config) -> Run:
    """Open a run for one of its jobs.

    Args:
        store: the store.
        run_id: the run's name.
        asked: the configuration that the command line describes.

    Raises:
        UsageError: the run was planned, as another experiment, or is a new one whose name cannot be a run's.
    """
    return Run(store, run_id, agreed(store, run_id, asked))


def agreed(store: Store, run_id: str, asked: Config) -> Config:
    """Return the configuration that a command asks for, completed by the run's plan if there is one.

    What the plan has decided (``data.phantoms``) stands, and where its data lie need not be said again.

    Raises:
        UsageError: the run was planned, as another experiment, or is a new one whose name cannot be a run's.
    """
    settings = planned_settings(store, run_id)
    if settings is None:
        check_run_id(run_id)
        return asked
    planned = parse_config(settings, where=f"{store.uri}/{keys.experiment(run_id)}")
    asked = grown(planned, asked)
    if asked.data.phantoms == "if_missing":  # the plan has decided
        asked = asked.model_copy(update={"data": asked.data.model_copy(update={"phantoms": planned.data.phantoms})})
    if changes := settings_apart(planned.science(), asked.science()):
        raise UsageError(
            f"--run-id {run_id}: was planned with other settings ({'; '.join(changes[:3])}); "
            f"leave --preset and --set out, take --run-id {free_run_id(store, run_id)}, or `plan --overwrite`"
        )
    return asked.model_copy(
        update={
            "sources": planned.sources | asked.sources,
            "data_root": asked.data_root or planned.data_root,
            "imagenet_weights": asked.imagenet_weights or planned.imagenet_weights,
        }
    )


def grown(planned: Config, asked: Config) -> Config:
    """Return what is asked for after what was planned: methods, data sets, protocols and seeds of both."""
    both = {
        name: tuple(dict.fromkeys((*getattr(planned.study, name), *getattr(asked.study, name))))
        for name in type(asked.study).model_fields
    }
    theirs = set(planned.study.protocols) - set(asked.study.protocols)
    recipes = asked.protocols.model_copy(update={name: getattr(planned.protocols, name) for name in theirs})
    return asked.model_copy(update={"study": asked.study.model_copy(update=both), "protocols": recipes})


def settings_apart(planned: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """List the settings that make two plans different experiments, as ``difference`` does.

    A plan may grow: what it studies does not count, nor does the recipe of a protocol that it did not have.
    """

    def kept(science: Mapping[str, Any]) -> dict[str, Any]:
        recipes = {name: value for name, value in science["protocols"].items() if name in planned["study"]["protocols"]}
        return {name: value for name, value in science.items() if name != "study"} | {"protocols": recipes}

    return difference(kept(planned), kept(asked))


def free_run_id(store: Store, run_id: str) -> str:
    """Return a name like ``run_id`` that no run has yet."""
    number = 2
    while store.exists(keys.experiment(name := f"{run_id[: LONGEST_RUN_ID - 4]}-{number}")):
        number += 1
    return name


def finished(store: Store, folder: str, science: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return a job's record if the job is done, None if it is to be run.

    Raises:
        UsageError: the record is of another experiment; the message shows the difference.
    """
    key = keys.record(folder)
    if overwrite or not store.exists(key):
        return None
    record = read_record(store, folder)
    changes = difference(record["science"], science)
    if changes:
        raise UsageError(
            f"{store.uri}/{key}: holds the result of another experiment ({'; '.join(changes[:3])}); "
            "choose another --run-id, or --overwrite"
        )
    return record


def planned_data(run: Run, name: str) -> DatasetInfo | None:
    """Return what the run's plan says of a data set; None if there is no plan, or it does not name the set."""
    key = keys.experiment(run.run_id)
    if not run.store.exists(key):
        return None
    described = read_json(run.store, key).get("data")
    entry = described.get(name) if isinstance(described, dict) else None
    try:
        return None if entry is None else DatasetInfo.model_validate(entry)
    except ValidationError as error:
        raise InputError(f"{run.store.uri}/{key}: damaged, data.{name}; delete it and run `plan` again") from error


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def load_labelled(run: Run, name: str) -> Dataset:
    """Load the run's splits of a labelled data set in its size and subset."""
    path, task = _locate(run, name)
    data = run.config.data
    loaded = load_dataset(
        name, path=path, size=data.size, task=task, subset=data.subset, seed=SUBSET_SEED, cache=cache_folder("images"),
        splits=run.splits,
    )  # fmt: skip
    for note in loaded.notes:
        Progress("data", run_id=run.run_id).say(f"{name}: {note}")
    return loaded


def load_pretraining(run: Run) -> Unlabelled:
    """Load the images for pretraining in the run's size and subset."""
    data = run.config.data
    path, _ = _locate(run, data.pretrain)
    progress = Progress("data", run_id=run.run_id)
    with reading_bar(progress) as told:
        loaded = load_unlabelled(
            data.pretrain, path=path, size=data.size, split=data.pretrain_split, subset=data.subset, seed=SUBSET_SEED,
            cache=cache_folder("images"), options=ReadOptions(**run.config.reading.model_dump()), progress=told,
        )  # fmt: skip
    if loaded.reading is not None:
        progress.say(f"{data.pretrain}: {loaded.reading.line()}")
    return loaded


@contextlib.contextmanager
def reading_bar(progress: Progress) -> Iterator[Counted]:
    """Show a bar from the moment on that it is known how many files there are."""
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def told(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress.bar(total)))
            bars[0].advance()

        yield told


def monitor_name(run: Run) -> str | None:
    """Name of the labelled set that the k-NN monitor reads, or None.

    ``data.monitor`` is optional: where its file cannot be found, pretraining goes on without it.
    """
    name = run.config.data.monitor
    return name if name is not None and search(run, name) is not None else None


def _locate(run: Run, name: str) -> tuple[Path, str | None]:
    found = search(run, name)
    if found is None:
        places = ", ".join(str(root) for root in _roots(run))
        raise InputError(
            f"{name}: no file {file_names(name, run.config.data.size)[0]} in {places} or the store's data/; "
            f"run `python -m app data fetch --dataset {name} --size {run.config.data.size}`, or give --data {name}=FILE"
        )
    return found


def search(run: Run, name: str) -> tuple[Path, str | None] | None:
    """Find the file of a data set, and its task if one was given; None if there is no such file.

    First ``--data``, then the folders of ``data.default_roots``, then, or if that file is damaged, the store's
    ``data/``. A run on phantoms reads the store's ``phantoms/`` instead.
    """
    if name in run.config.sources:
        return parse_source(run.config.sources[name])
    size = run.config.data.size
    if run.config.data.phantoms == "always":
        key = keys.phantom(name, size)
        return (run.store.local(key), None) if run.store.exists(key) else None
    path = find_file(name, size, _roots(run))
    if (path is None or not is_archive(path)) and run.store.exists(key := keys.dataset(name, size)):
        if path is not None:
            Progress("data", run_id=run.run_id).say(f"{path}: truncated or damaged; the store's copy is taken")
        path = run.store.local(key)
    return None if path is None else (path, None)


def _roots(run: Run) -> list[Path]:
    root = run.config.data_root
    return default_roots(path_of(root) if root else None)


def parse_source(source: str) -> tuple[Path, str | None]:
    """Split ``URI[:task]`` into a local path and MedMNIST's name of the task, if given.

    Raises:
        UsageError: a URI that is no file.
    """
    uri, separator, word = source.rpartition(":")
    task = None
    if "://" not in source and path_of(source).exists():
        uri = source  # a colon of its name, scans_10:30
    elif separator and "/" not in word and not word.startswith("\\"):
        task = parse_task(word)
    else:
        uri = source
    if "://" in uri and not uri.startswith("file://"):
        # the rest may hold credentials, or a signature
        raise UsageError(f"--data …={uri.partition('://')[0]}://…: give a path or a file:// URI")
    return path_of(uri), task
