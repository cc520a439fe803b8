"""A finished job for every kind of labelled set, by a small network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from app.storage import FolderStore
from tests import small
from tests.models.made import SETS, Made, write_set

Call = Callable[..., tuple[int, str, str]]


# Not of the package: pytest would keep the small network to the end of the session, for the tests of other folders too.
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("made")
    files = {name: root / f"{name}.npz" for name in SETS}
    for index, (name, path) in enumerate(files.items()):
        write_set(path, name.rpartition("_")[0].replace("_", "-"), 3 if name.endswith("rgb") else 1, seed=index)
    settings = [
        "data.subset=null", "data.phantoms=never", "runtime.threads=1", "runtime.device=cpu",
        "runtime.keep_models=all", "protocols.finetune.batch_size=8", "protocols.linear_probe.batch_size=8",
        "protocols.few_shot.k=2",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        small.use(patch.setattr)
        yield Made(FolderStore(root / "store"), files, settings)
