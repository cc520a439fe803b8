import json
import math

import pytest

from app.errors import InputError
from app.jobs.records import FewShotDraw, publish, read_json, read_plan, read_verified
from app.storage import FolderStore, MissingObject, sha256

FOLDER = "runs/r/pretrain/byol-s0"


class Recording(FolderStore):
    """A store that remembers the order of its writes."""

    def __init__(self, root):
        super().__init__(root)
        self.log = []

    def write(self, key, data):
        super().write(key, data)
        self.log.append(key)

    def create(self, key, data):
        self.log.append(key)
        return super().create(key, data)


@pytest.fixture
def store(tmp_path):
    return Recording(tmp_path)


def test_the_record_is_published_last_and_names_its_files(store):
    record = publish(store, FOLDER, {"a.bin": b"abc", "draws/0/b.csv": b""}, {"version": 1, "key": "k"})
    assert store.log[-1] == f"{FOLDER}/record.json"
    assert record["files"] == {
        "a.bin": {"size": 3, "sha256": sha256(b"abc")},
        "draws/0/b.csv": {"size": 0, "sha256": sha256(b"")},
    }
    assert read_json(store, f"{FOLDER}/record.json") == record
    assert read_verified(store, f"{FOLDER}/a.bin", record["files"]["a.bin"]) == b"abc"


@pytest.mark.parametrize("now", [b"abd", b"ab", b"abcd"])
def test_what_was_not_published_is_not_read(store, now):
    record = publish(store, FOLDER, {"a.bin": b"abc"}, {})
    store.write(f"{FOLDER}/a.bin", now)
    with pytest.raises(InputError, match=r"a.bin: damaged, its SHA-256 is not the recorded one"):
        read_verified(store, f"{FOLDER}/a.bin", record["files"]["a.bin"])


def test_json_that_is_none(store):
    store.write("x.json", b'{"a": ')
    with pytest.raises(InputError, match=r"x.json: damaged, not JSON"):
        read_json(store, "x.json")
    store.write("y.json", b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"y.json: damaged, not JSON"):
        read_json(store, "y.json")
    with pytest.raises(MissingObject):
        read_json(store, "z.json")


def test_what_has_no_number_is_null_and_read_as_none():
    """JSON knows no NaN: written as null, and NaN again for whoever reads it."""
    draw = FewShotDraw(draw=0, indices=[3, 1], metrics={"auroc": math.nan, "accuracy": 0.5}, best_epoch=1)
    plain = draw.model_dump(mode="json")
    assert plain["metrics"] == {"auroc": None, "accuracy": 0.5}
    again = FewShotDraw.model_validate(json.loads(json.dumps(plain)))
    assert math.isnan(again.metrics["auroc"])
    assert again.indices == (3, 1)


def test_a_plan_that_is_none(store):
    store.write("runs/r/experiment.json", b'{"plan": {"pretrain": []}}')
    with pytest.raises(InputError, match=r"runs/r/experiment.json: damaged, has no plan"):
        read_plan(store, "r")
    with pytest.raises(MissingObject):
        read_plan(store, "other")
