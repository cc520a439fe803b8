"""Getting data sets: verified MedMNIST files into a folder, or into the store, where jobs read them."""

from __future__ import annotations

from collections.abc import Iterator

from app.data import SIZES, catalog, default_roots, file_name, find_file, known, licence_of
from app.data import fetch as download
from app.data.files import digest_of
from app.errors import InputError, UsageError
from app.jobs import keys
from app.machine import path_of
from app.progress import Progress
from app.settings import Config
from app.stages.fallback import settle_data
from app.storage import Store, sha256


def fetch(
    names: list[str], *, size: int, store: Store | None, root: str | None, mirror: str | None, offline: bool
) -> Iterator[str]:
    """Download and verify MedMNIST files; yield a line for each, with its licence.

    Args:
        names: MedMNIST names such as ``breastmnist``.
        size: 28, 32, 64, 128 or 224 pixels.
        store: also publish the files under ``data/`` here.
        root: folder for the files; by default the first place where they are looked for.
        mirror: folder or base URL to take the files from.
        offline: download nothing.

    Raises:
        UsageError: unknown name or size.
        InputError: wrong checksum, or absent offline.
        StorageError: unreachable.
    """
    if size not in SIZES:
        raise UsageError(f"--size {size}: unknown; choose from {', '.join(map(str, SIZES))}")
    folder = next(iter(default_roots(path_of(root) if root else None)), None)
    if folder is None:
        raise UsageError("data fetch: no home folder is known; give a folder by --data-root")
    progress = Progress("fetch")
    for name in names:
        [path] = download([name], root=folder, size=size, mirror=mirror, offline=offline)
        place = str(path)
        if store is not None:
            key = keys.dataset(name, size)
            if not _holds(store, key, digest_of(path)):
                store.write(key, path.read_bytes())
            place = f"{store.uri}/{key}"
        progress.say(f"{name}: verified")
        yield f"{place}  ({known(name).licence})"


def _holds(store: Store, key: str, digest: str) -> bool:
    """Whether the store has this very file under ``key``, and not a rotten or another one."""
    try:
        return sha256(store.read(key)) == digest
    except InputError:  # there is none, or it is damaged
        return False


def fetch_study(store: Store, config: Config, *, mirror: str | None, offline: bool) -> Iterator[str]:
    """Put every data set that a study names, and the store lacks, into the store; yield a line for each.

    A file that is found where data sets are looked for (``data_root`` first) is taken from there; what is missing is
    downloaded into the first of these folders. Where ``data.phantoms`` allows it, phantoms stand in for what cannot be
    had.

    Args:
        store: where jobs will look for the files.
        config: the study's configuration.
        mirror: folder or base URL to take the files from.
        offline: download nothing.

    Raises:
        UsageError: a name that is neither MedMNIST's nor found anywhere.
        InputError: wrong checksum, or absent offline.
        StorageError: unreachable.
    """
    if settle_data(store, config, mirror=mirror, offline=offline).data.phantoms == "always":
        yield f"{store.uri}/{keys.PHANTOMS}  (synthetic)"
        return
    size = config.data.size
    named = [config.data.pretrain, *config.study.datasets, *([config.data.monitor] if config.data.monitor else [])]
    for name in dict.fromkeys(named):
        key = keys.dataset(name, size)
        if name in config.sources or store.exists(key):
            yield f"{config.sources.get(name) or f'{store.uri}/{key}'}  (there already)"
            continue
        roots = default_roots(path_of(config.data_root) if config.data_root else None)
        file = find_file(name, size, roots)
        if file is not None and (name not in catalog() or file.name != file_name(known(name), size)):
            store.write(key, file.read_bytes())
            yield f"{store.uri}/{key}  ({licence_of(name, synthetic=False)}; copied from {file}, not verified)"
        else:
            root = str(file.parent) if file else config.data_root
            yield from fetch([name], size=size, store=store, root=root, mirror=mirror, offline=offline)
