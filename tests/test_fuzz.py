"""All that is read from outside, mutated: no traceback, no hang, no memory above a bound.

`make test` tries a few inputs of each kind, always the same; FUZZ=10000 tries so many, others every time:
``FUZZ=10000 python -m pytest tests/test_fuzz.py``.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import json
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.config import load_config, parse_config
from app.data import load_dataset, load_unlabelled
from app.data.reading import Unreadable, read_raster
from app.errors import AppError
from app.jobs.checkpoint import dump_weights, load_checkpoint, parse_weights
from app.jobs.claims import live_owner
from app.jobs.latest import read_latest
from app.jobs.records import read_plan, read_record
from app.jobs.run import planned_settings
from app.science.foreign import find_resnet
from app.storage import FolderStore
from app.storage.answers import explain_answer, plain

COUNT = int(os.environ.get("FUZZ", "60"))
LONG = "FUZZ" in os.environ
MORE_MEMORY = 600 * 2**20  # bytes by which the process may grow over a target's inputs
SECONDS = 20  # for one input; then all stacks are printed and the process ends

each = settings(
    max_examples=COUNT, derandomize=not LONG, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
seeds = st.integers(0, 2**32 - 1)


def most(*, afresh: bool = False) -> int:
    """Most memory that the process had, in bytes: since it began, or since it was last asked ``afresh``, on Linux."""
    if afresh:
        ctypes.CDLL(None).malloc_trim(0)  # what is freed and kept would serve the next input unseen
        Path("/proc/self/clear_refs").write_text("5")  # else what another test took would hide what is taken here
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def test_the_bound_bites() -> None:
    """Whatever the process had before."""
    for _ in range(2):
        before = most(afresh=True)
        assert np.ones(MORE_MEMORY // 16).all()
        assert most() - before > 0.9 * MORE_MEMORY / 2


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    before = most(afresh=True)
    yield
    grown = most() - before
    assert grown < MORE_MEMORY, f"{grown >> 20} MiB more"


def read(action: Callable[[], Any]) -> bool:
    """Do it; an error has to be one of ours, in one line. Returns whether there was none."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        action()
    except (Unreadable, AppError) as error:
        said = error
    else:
        return True
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert "\n" not in str(said)
    assert getattr(said, "exit_code", 66) in (2, 66)
    return False


def mutate(data: bytes, seed: int) -> bytes:
    """Change bytes as damage and malice do: flips, numbers at the ends of their range, cuts, repeats, pieces moved."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice([0, 1, 9, 10, 13, 32, 34, 45, 92, 127, 128, 255])
        elif kind == 2:
            width = rng.choice([2, 4, 8])
            value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, len(out), len(out) * 1000])
            out[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(["little", "big"]))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.choice([1, 2, 4, 8, 100])]
        elif kind == 5:
            out[at:at] = out[at : at + rng.choice([1, 4, 64])] * rng.choice([1, 2, 50])
        elif kind == 6:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 64]))
        else:
            other = rng.randrange(len(out))
            out[at : at + 16] = out[other : other + 16]
    return bytes(out)


def rearrange(value: Any, seed: int) -> Any:
    """Change a JSON value: drop, retype, nest, and blow up parts of it."""
    rng = random.Random(seed)
    strange = [None, True, -1, 0, 10**400, 1e308, "", "x" * 10_000, "\x00", "\ud800", "../..", [], {}, [[]], {"": {}},
               [None] * 50, "<script>alert(1)</script>", "1", 1.5, "NaN"]  # fmt: skip

    def walk(part: Any, chance: float) -> Any:
        if rng.random() < chance:
            return rng.choice(strange)
        if isinstance(part, dict):
            kept = {key: walk(item, chance) for key, item in part.items() if rng.random() > chance / 2}
            return kept | ({rng.choice(["extra", "", "a" * 300, "__class__"]): 1} if rng.random() < chance else {})
        if isinstance(part, list):
            return [walk(item, chance) for item in part] * (2 if rng.random() < chance else 1)
        return part

    return walk(value, rng.choice([0.02, 0.1, 0.4]))


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.arange(6)[:, None] % 2
LABELLED = npz(**{f"{s}_images": IMAGES for s in ("train", "val", "test")},
               **{f"{s}_labels": LABELS for s in ("train", "val", "test")})  # fmt: skip
PICTURES = {"png": {}, "jpg": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}, "tif": {"compression": "tiff_lzw"}, "bmp": {},
            "gif": {}, "webp": {}, "pgm": {}, "tga": {}, "jp2": {}, "pcx": {}}  # fmt: skip


def encoded(kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    names = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM", "jp2": "JPEG2000"}
    Image.fromarray(IMAGES[0]).save(buffer, names.get(kind, kind.upper()), **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@each
@given(seeds)
def test_labelled_arrays(place: Path, seed: int) -> None:
    path = place / "own.npz"
    path.write_bytes(mutate(LABELLED, seed))
    read(lambda: load_dataset("own", path=path))


@each
@given(seeds)
def test_arrays_of_any_shape_and_kind(place: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = ["u1", "i1", "i8", "u8", ">i4", "f2", "f4", "f8", "c16", "?", "S3", "U2", "M8[s]", "V4"]

    def array() -> np.ndarray:
        shape = tuple(rng.choice([0, 1, 2, 3, 6, 28], rng.integers(0, 5)))
        made = np.frombuffer(rng.bytes(int(np.prod(shape)) * 16), np.uint8)
        dtype = np.dtype(kinds[rng.integers(len(kinds))])
        return made[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    arrays = {f"{s}_images": IMAGES for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": LABELS for s in ("train", "val", "test")}
    for name in list(arrays):
        if rng.random() < 0.3:
            arrays[name] = array()
    path = place / "arrays.npz"
    path.write_bytes(npz(**arrays, images=array()))
    read(lambda: load_dataset("own", path=path, task=[None, "binary", "multi-label", "ordinal"][rng.integers(4)]))
    read(lambda: load_unlabelled("own", path=path))


@each
@given(seeds)
def test_unlabelled_arrays(place: Path, seed: int) -> None:
    path = place / "unlabelled.npz"
    path.write_bytes(mutate(npz(images=IMAGES), seed))
    read(lambda: load_unlabelled("own", path=path))


@pytest.mark.parametrize("kind", PICTURES)
@settings(each, max_examples=max(10, COUNT // 4))
@given(seeds)
def test_images(place: Path, kind: str, seed: int) -> None:
    path = place / f"image.{kind}"
    path.write_bytes(mutate(encoded(kind, PICTURES[kind]), seed))
    read(lambda: read_raster(path))


@each
@given(seeds)
def test_png_with_right_checksums(place: Path, seed: int) -> None:
    """Damage that the checksums hide: chunks of any name and content, mended."""
    rng = random.Random(seed)
    header = struct.pack(">IIBBBBB", *rng.choices([0, 1, 7, 28, 2**16, 2**31 - 1], k=2), rng.choice([1, 2, 8, 16, 3]),
                         rng.choice([0, 2, 3, 4, 6, 1]), 0, 0, rng.randrange(3))  # fmt: skip
    names = [b"PLTE", b"tRNS", b"sBIT", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"acTL", b"fcTL", b"IDAT"]
    chunks = [(b"IHDR", header), *((rng.choice(names), rng.randbytes(rng.choice([0, 1, 4, 26, 99]))) for _ in range(4)),
              (b"IDAT", zlib.compress(rng.randbytes(900))), (b"IEND", b"")]  # fmt: skip
    data = b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )  # fmt: skip
    path = place / "made.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    read(lambda: read_raster(path))


PRESET = b"extends: smoke\nstudy: {methods: [byol], seeds: [0, 1]}\npretrain:\n  epochs: 2\n  learning_rate: 1e-3\n"


@each
@given(seeds)
def test_presets(place: Path, seed: int) -> None:
    path = place / "own.yaml"
    path.write_bytes(mutate(PRESET, seed))
    read(lambda: load_config(str(path)))


@each
@given(st.text(max_size=40), st.text(max_size=40), seeds)
def test_options(key: str, value: str, seed: int) -> None:
    keys = ["pretrain.epochs", "study.seeds", "views.blur_sigma", "data", "runtime.threads", key]
    rng = random.Random(seed)
    read(lambda: load_config("smoke", [f"{rng.choice(keys)}={value}"]))
    read(lambda: load_config("smoke", sources=[f"own={value}"], data_root=key))


@pytest.fixture(scope="module")
def experiment() -> dict[str, Any]:
    config = load_config("smoke").model_dump(mode="json")
    jobs = {"version": 1, "run_id": "r", "pretrain": [{"key": "byol-s0", "args": ["pretrain", "--seed", "0"]}],
            "downstream": [{"key": "a/random/finetune/s0", "needs": None, "args": ["downstream"]}]}  # fmt: skip
    return {"version": 1, "run_id": "r", "config": config, "science": {}, "plan": jobs, "data": {}, "created": "now"}


@each
@given(seeds)
def test_plans(place: Path, experiment: dict[str, Any], seed: int) -> None:
    store = FolderStore(place / "store")
    store.write("runs/r/experiment.json", json.dumps(rearrange(experiment, seed)).encode())
    read(lambda: parse_config(planned_settings(store, "r") or {}, where="the plan"))
    read(lambda: read_plan(store, "r"))
    store.write("runs/r/experiment.json", mutate(json.dumps(experiment).encode(), seed))
    read(lambda: parse_config(planned_settings(store, "r") or {}, where="the plan"))
    read(lambda: read_plan(store, "r"))


RECORD = {"version": 1, "kind": "pretrain", "key": "byol-s0", "identity": "ab", "science": {"seed": 0},
          "metrics": {"loss": 1.0}, "files": {"encoder.safetensors": {"size": 3, "sha256": "ab"}}}  # fmt: skip
POINTER = {
    "version": 1,
    "generation": 1,
    "checkpoints": [{"step": 3, "key": "checkpoints/a.pt", "size": 3, "sha256": "ab"}],
}
OWNER = {"host": "h", "pid": 1, "boot": "b", "space": "s", "started": "1", "nonce": "n"}
CLAIM = {"version": 1, "generation": 1, "owner": OWNER, "beat": 1, "expires_after_seconds": 30}


@pytest.mark.parametrize(
    ("name", "value", "reader"),
    [
        ("record.json", RECORD, read_record),
        ("latest.json", POINTER, read_latest),
        ("latest.json", POINTER, lambda store, folder: load_checkpoint(store, folder, warn=lambda line: None)),
        ("claim.json", CLAIM, live_owner),
    ],
    ids=["record", "pointer", "checkpoints", "claim"],
)
@each
@given(seeds)
def test_records_pointers_and_claims(place: Path, name: str, value: Any, reader: Callable[..., Any], seed: int) -> None:
    store = FolderStore(place / "jobs")
    for data in (json.dumps(rearrange(value, seed)).encode(), mutate(json.dumps(value).encode(), seed)):
        store.write(f"job/{name}", data)
        read(lambda: reader(store, "job"))


STATE = {"conv1.weight": torch.zeros(2, 2), "fc.bias": torch.ones(3)}
SAFETENSORS = dump_weights(STATE, {"stem": "stock", "architecture": "resnet18"})


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE, "epoch": 3}, buffer)
    return buffer.getvalue()


TORCH = torch_file()


@pytest.mark.parametrize("data", [SAFETENSORS, TORCH], ids=["safetensors", "torch"])
@each
@given(seeds)
def test_weights(data: bytes, seed: int) -> None:
    def load() -> None:
        state, _ = parse_weights(mutate(data, seed), source="file")
        find_resnet(state, "resnet18", "stock", source="file")

    read(load)


@each
@given(seeds)
def test_headers_of_safetensors(seed: int) -> None:
    size = int.from_bytes(SAFETENSORS[:8], "little")
    header = rearrange(json.loads(SAFETENSORS[8 : 8 + size]), seed)
    text = json.dumps(header).encode()
    read(lambda: parse_weights(len(text).to_bytes(8, "little") + text + SAFETENSORS[8 + size :], source="file"))


@each
@given(st.text(max_size=300), st.integers(0, 999), st.text(max_size=30))
def test_what_servers_say(message: str, status: int, code: str) -> None:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert "\n" not in str(explain_answer(answer, "s3://b", "s3://b/k"))
    assert plain(message).isprintable()
