import io
import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from app.errors import InputError
from app.jobs.checkpoint import drop_checkpoints, dump_weights, load_checkpoint, parse_weights
from app.jobs.records import pointer, read_json, write_json
from app.storage import FolderStore
from tests.checkpoints import save_checkpoint

FOLDER = "runs/r/pretrain/byol-s0"


class Recording(FolderStore):
    """A store that remembers the order of its writes and deletions."""

    def __init__(self, root):
        super().__init__(root)
        self.log = []

    def write(self, key, data):
        super().write(key, data)
        self.log.append(("write", key))

    def create(self, key, data):
        version = super().create(key, data)
        self.log.append(("write", key))
        return version

    def replace(self, key, data, version):
        version = super().replace(key, data, version)
        self.log.append(("write", key))
        return version

    def delete(self, key):
        super().delete(key)
        self.log.append(("delete", key))


@pytest.fixture
def store(tmp_path):
    return Recording(tmp_path)


def state(step):
    return {"step": step, "w": torch.full((3,), float(step)), "curves": ["{}"], "nested": {"x": None, "y": 1.5}}


def save(store, *steps, keep=2):
    for step in steps:
        save_checkpoint(store, FOLDER, step, state(step), keep=keep)


def kept(store):
    return [entry["step"] for entry in read_json(store, f"{FOLDER}/latest.json")["checkpoints"]]


def damage(store, place, how="flip"):
    key = f"{FOLDER}/{read_json(store, f'{FOLDER}/latest.json')['checkpoints'][place]['key']}"
    path = store.local(key)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    if how == "gone":
        path.unlink()


def load(store):
    warnings = []
    return load_checkpoint(store, FOLDER, warn=warnings.append), warnings


def test_a_checkpoint_comes_back_as_it_was(store):
    save(store, 7)
    loaded, warnings = load(store)
    assert warnings == []
    assert loaded["step"] == 7
    assert torch.equal(loaded["w"], state(7)["w"])
    assert loaded["nested"] == {"x": None, "y": 1.5}


def test_no_checkpoint_is_none(store):
    assert load(store) == (None, [])


def test_the_checkpoint_is_written_before_the_pointer_and_the_old_one_dropped_after(store):
    save(store, 1, 2, keep=1)
    actions = [(what, key.rsplit("/", 1)[1].split("-")[0]) for what, key in store.log]
    assert actions == [
        ("write", "00000001"), ("write", "latest.json"),
        ("write", "00000002"), ("write", "latest.json"), ("delete", "00000001"),
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(store, keep):
    save(store, 1, 2, 3, 4, keep=keep)
    assert kept(store) == [4, 3, 2, 1][:keep]
    assert len(list(store.list(f"{FOLDER}/checkpoints"))) == keep


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(store, how):
    save(store, 10, 20)
    damage(store, 0, how)
    loaded, warnings = load(store)
    assert loaded["step"] == 10
    assert len(warnings) == 1
    assert "checkpoints/00000020-" in warnings[0]
    assert warnings[0].endswith("trying the checkpoint before it")


def test_all_damaged_is_an_error_and_never_a_fresh_start(store):
    save(store, 10, 20)
    damage(store, 0)
    damage(store, 1, "gone")
    with pytest.raises(InputError, match=r"latest.json: every checkpoint it names is damaged; --overwrite") as caught:
        load(store)
    assert caught.value.exit_code == 66


def test_a_damaged_checkpoint_does_not_crowd_out_the_undamaged_one(store):
    save(store, 10, 20)
    damage(store, 0)
    save(store, 15)  # the job went on from 10
    assert kept(store) == [15, 10]
    damage(store, 0)
    assert load(store)[0]["step"] == 10
    assert len(list(store.list(f"{FOLDER}/checkpoints"))) == 2


@pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"checkpoints": 3}', '{"checkpoints": [{"step": 1}]}'])
def test_a_damaged_pointer_is_an_input_error(store, text):
    store.write(f"{FOLDER}/latest.json", text.encode())
    with pytest.raises(InputError, match=r"latest.json: damaged") as caught:
        load(store)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_checkpoint_cannot_run_code(store, capsys):
    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    data = buffer.getvalue()
    store.write(f"{FOLDER}/checkpoints/a.pt", data)
    entry = {"step": 1} | pointer("checkpoints/a.pt", data)
    write_json(store, f"{FOLDER}/latest.json", {"version": 1, "checkpoints": [entry]})
    with pytest.raises(InputError, match="every checkpoint it names is damaged"):
        load(store)
    assert capsys.readouterr().out == ""


NO_MEMORY = [
    MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    OSError(12, "Cannot allocate memory"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_want_of_memory_is_no_damage(store, monkeypatch, error):
    """Nothing is passed over, and no advice given to throw sound checkpoints or weights away."""
    save(store, 10, 20)

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)):
        load(store)
    with pytest.raises(type(error)):
        parse_weights(GOOD[True], source="w.pth")


def test_dropping_takes_the_pointer_first_and_orphans_too(store):
    save(store, 1, 2)
    store.write(f"{FOLDER}/checkpoints/00000003-orphan.pt", b"")
    store.write(f"{FOLDER}/record.json", b"{}")
    store.log.clear()
    drop_checkpoints(store, FOLDER)
    assert store.log[0] == ("delete", f"{FOLDER}/latest.json")
    assert list(store.list()) == [f"{FOLDER}/record.json"]
    drop_checkpoints(store, FOLDER)


# Weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_weights_round_trip_with_metadata():
    images = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    data = dump_weights(WEIGHTS | {"conv": images}, {"stem": "stock"})
    loaded, metadata = parse_weights(data, source="x")
    assert same(loaded, WEIGHTS | {"conv": images.detach()})
    assert metadata == {"stem": "stock"}
    assert same(safetensors.torch.load(data), loaded)


def test_safetensors_without_metadata():
    assert parse_weights(safetensors.torch.save(WEIGHTS), source="x")[1] == {}


def with_header(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def test_safetensors_whose_metadata_are_null():
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": None}
    loaded, metadata = parse_weights(with_header(header), source="x")
    assert same(loaded, {"a": torch.zeros(1)})
    assert metadata == {}


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_files_of_both_formats_are_read(zipped):
    loaded, metadata = parse_weights(saved(WEIGHTS, _use_new_zipfile_serialization=zipped), source="x.pth")
    assert same(loaded, WEIGHTS)
    assert metadata == {}


@pytest.mark.parametrize("beginning", [b"PK", b"\x80\x02"])
def test_safetensors_whose_header_size_looks_like_another_format(beginning):
    size = int.from_bytes(beginning, "little")
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"x": ""}}
    header["__metadata__"]["x"] = "y" * (size - len(json.dumps(header)))
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(4)
    assert data[:2] == beginning
    assert same(parse_weights(data, source="x")[0], {"a": torch.zeros(1)})


def zip_of_nothing():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return buffer.getvalue()


GOOD = {True: saved(WEIGHTS), False: safetensors.torch.save(WEIGHTS)}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"PK", b"PK\x03\x04 and no more", b"<html>404</html>" * 20, bytes(100), b"\xff" * 100,
        b"\x80\x02\x8a\x0a", GOOD[True][:200], GOOD[True][:-30], GOOD[False][:20], GOOD[False][:-1], zip_of_nothing(),
        pickle.dumps({"a": 1}), (5).to_bytes(8, "little") + b"[1,2]", with_header(b"[" * 100_000),
        with_header(b'{"__metadata__":' * 50_000), with_header({"__metadata__": 5}),
        with_header({"__metadata__": {"x": 5}}), with_header({"__metadata__": [[["x"]]]}),
    ],
)  # fmt: skip
def test_damaged_weights_are_an_input_error_of_one_line(data):
    with pytest.raises(InputError, match=r"^w\.bin: not a readable") as caught:
        parse_weights(data, source="w.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[1, 2], {"model": [1, 2]}, {"epoch": 3}, torch.zeros(2)])
def test_other_things_than_a_state_dict_are_refused(value):
    with pytest.raises(InputError, match=r"^w\.pt: holds no plain state dict"):
        parse_weights(saved(value), source="w.pt")


def test_weights_cannot_run_code(capsys):
    with pytest.raises(InputError, match="not a readable state dict"):
        parse_weights(saved({"x": Evil()}), source="w.pt")
    assert capsys.readouterr().out == ""
