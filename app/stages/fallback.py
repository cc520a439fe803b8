"""What a study runs on where data sets are missing: a download if it can be had, else phantoms; never a mixture."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.data import PHANTOM_COUNTS, default_roots, fetch, write_phantoms
from app.errors import InputError, StorageError, UsageError
from app.jobs import keys
from app.jobs.run import Run, search
from app.machine import path_of
from app.progress import Progress
from app.settings import Config
from app.storage import Store


def settle_data(
    store: Store, config: Config, *, pretrains: bool = False, mirror: str | None = None, offline: bool = False
) -> Config:
    """Decide ``data.phantoms: if_missing``, once, when the run is planned.

    Files that are missing are downloaded into the store (5 s to connect, one try). If that fails, all the
    study's data sets are phantoms, drawn into the store.

    Args:
        store: the run's store.
        config: the configuration as asked for.
        pretrains: ``data.pretrain`` is needed even where ``study.methods`` is empty.
        mirror: folder or base URL to take the files from.
        offline: download nothing.

    Returns:
        The configuration with ``data.phantoms`` ``never`` or ``always``.

    Raises:
        UsageError: there are no phantoms of a data set.
    """
    names = [*([config.data.pretrain] if pretrains or config.study.methods else []), *config.study.datasets]
    progress = Progress("plan")
    choice = config.data.phantoms
    if choice == "if_missing":
        missing = [name for name in names if search(Run(store, "", _decide(config, "never")), name) is None]
        if missing and (offline or not _download(store, missing, config, mirror, progress)):
            choice = "always"
        else:
            choice = "never"
    if choice == "always":
        _paint(store, names, config.data.size)
        progress.say("runs on phantoms: SYNTHETIC images, whose results say nothing about medicine")
    return _decide(config, choice)


def _decide(config: Config, choice: str) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"phantoms": choice})})


def _download(store: Store, names: list[str], config: Config, mirror: str | None, progress: Progress) -> bool:
    size = config.data.size
    progress.say(f"no file for {', '.join(names)}; trying to download (5 s to connect)")
    # The files pass through a folder that is gone afterwards; what a user brings belongs where it is looked for.
    places = default_roots(path_of(config.data_root) if config.data_root else None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = fetch(
                names, root=Path(folder), size=size, mirror=mirror, connect_timeout=5.0, retries=0,
                by_hand=next(iter(places), Path("DATA_ROOT")),
            )  # fmt: skip
        except (StorageError, InputError, UsageError) as error:
            progress.say(str(error))
            return False
        for name, path in zip(names, paths, strict=True):
            store.write(keys.dataset(name, size), path.read_bytes())
    return True


def _paint(store: Store, names: list[str], size: int) -> None:
    if unknown := sorted(set(names) - PHANTOM_COUNTS.keys()):
        raise UsageError(
            f"data.phantoms: there are no phantoms of {', '.join(unknown)}, only of {', '.join(PHANTOM_COUNTS)}; "
            "give the files by --data or --data-root"
        )
    if all(store.exists(keys.phantom(name, size)) for name in PHANTOM_COUNTS):
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, path in zip(PHANTOM_COUNTS, write_phantoms(Path(folder), size=size), strict=True):
            store.write(keys.phantom(name, size), path.read_bytes())
