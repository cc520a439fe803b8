"""The README's way of a user's own images, command by command: DICOM, PNGs of every depth, broken files, a table."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import cli
from app.data.origin import DESCRIPTION
from app.exits import exit_code

pydicom = pytest.importorskip("pydicom")
DICOM = Path(pydicom.__file__).parent / "data/test_files"
KINDS = [
    "CT_small", "MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian",
    "JPEG2000", "JPGExtended", "693_J2KI", "image_dfl", "examples_palette", "SC_rgb_jpeg_dcmtk", "ExplVR_BigEnd",
]  # fmt: skip
README = (Path(__file__).parents[2] / "README.md").read_text()
CHAPTER = re.search(r"^## Your own images\n(.*?)^## ", README, re.S | re.M)[1]
SMALL = shlex.split(
    "--size 28 --preset smoke --threads 1 --set data.subset=40 --set study.methods=[byol_plus] --set pretrain.epochs=1 "
    "--set pretrain.batch_size=20 "
    "--set study.protocols=[finetune,linear_probe] --set protocols.finetune.epochs=1 --set runtime.keep_models=all"
)


def commands() -> list[list[str]]:
    """The words of each command of the chapter, in its order, behind ``python -m app``."""
    shell = "".join(re.findall(r"^```\n(.*?)^```", CHAPTER, re.S | re.M)).replace("\\\n", " ")
    names: dict[str, str] = {}
    found = []
    for line in shell.splitlines():
        words = shlex.split(line, comments=True)
        if words and (assigned := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
            names[assigned[1]] = assigned[2]
        elif words[:3] == ["python", "-m", "app"]:
            found.append([re.sub(r"\$([A-Z]+)", lambda name: names[name[1]], word) for word in words[3:]])
    return found


def picture(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a researcher has: scans of all kinds, 60 lesions of 20 patients, a table, and two new images."""
    root = tmp_path_factory.mktemp("desk")
    for folder in ("scans/dicom", "lesions/benign", "lesions/malignant", "new"):
        (root / folder).mkdir(parents=True)
    for name in KINDS:
        shutil.copy(DICOM / f"{name}.dcm", root / "scans/dicom" / name.replace("MR_small_RLE", "IM0001"))
    made = pydicom.dcmread(DICOM / "MR_small.dcm")
    made.PhotometricInterpretation, made.PatientID = "MONOCHROME1", "SECRET-4711"
    made.save_as(root / "scans/dicom/mono1.dcm")
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w") as table:
        table.write("image,finding,patient,fold\n")
        for number in range(300):
            pixels = picture(number, *rng.integers(40, 120, 2))
            deep = {0: pixels, 1: pixels.astype(np.uint16) * 16, 2: np.stack([pixels, pixels // 2, pixels], -1)}[
                number % 3
            ]
            Image.fromarray(deep).save(root / f"scans/{number:03d}.png")
            fold = ["train", "train", "val", "test"][number // 5 % 4]
            table.write(f"{number:03d}.png,{['no', 'yes'][number % 2]},p{number // 5},{fold}\n")
    broken = {7: b"", 8: b"<html>403 Forbidden</html>", 9: (root / "scans/009.png").read_bytes()[:900]}
    for number, content in broken.items():
        (root / f"scans/{number:03d}.png").write_bytes(content)
    for number in range(60):
        kind = ["benign", "malignant"][number // 3 % 2]
        pixels = np.clip(picture(1000 + number, 70, 80).astype(int) // 2 + 100 * (kind == "benign"), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"lesions/{kind}/P{number // 3:02d}_{number}.png")
    Image.fromarray(picture(5000, 90, 60)).save(root / "new/a.png")
    shutil.copy(DICOM / "CT_small.dcm", root / "new/b.dcm")
    shutil.copy(root / "scans/000.png", root / "query.png")
    return root


def test_the_chapter_has_the_whole_way():
    first = [" ".join(words[:2]) if words[0] == "data" else words[0] for words in commands()]
    assert first == [
        "data check", "data import", "data import", "plan", "run", "predict", "embed", "export", "robustness", "report",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_command_of_the_chapter_does_what_it_says(desk, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    said = {}
    for words in commands():
        if words[0] == "export":
            pytest.importorskip("onnxruntime")
        small = SMALL if words[0] in ("plan", "run") else ["--size", "28"] if words[:2] == ["data", "import"] else []
        code = exit_code(lambda asked=[*words, *small]: cli.app(asked, standalone_mode=False))
        printed = capfd.readouterr()
        assert code == 0, (words, printed.err)
        said[" ".join(words[:3])] = printed.out + printed.err
    looked = said["data check scans/"]
    for part in (
        "311 images read (297 png, 14 dcm)", "3 unreadable: 007.png (empty), 008.png (not an image", "009.png (damaged",
        "of MONOCHROME1, inverted", "with a palette of colours", "99 of 12 bits",
    ):  # fmt: skip
        assert part in looked
    assert "311 images, 60-1,024 px, resized to 28 px" in re.sub(
        r"images, \d+-", "images, 60-", said["plan --unlabelled scans/"]
    )
    assert re.search(r"patients: \d+; not known of \d+ images", looked)
    for secret in ("SECRET", "4711"):
        assert secret not in "".join(said.values())
    with Image.open(desk / "contact-sheet.png") as sheet:
        assert sheet.width == 16 * 65

    with np.load(desk / "lesions.npz") as lesions, np.load(desk / "chest.npz") as chest:
        splits = ("train", "val", "test")
        assert [len(lesions[f"{split}_images"]) for split in splits] == [42, 6, 12]
        patients = [set(lesions[f"{split}_patients"].tolist()) for split in splits]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 20
        assert lesions["class_names"].tolist() == ["benign", "malignant"]
        assert [len(chest[f"{split}_images"]) for split in splits] == [147, 75, 75]
        assert all(file.endswith(".png") for split in splits for file in chest[f"{split}_files"].tolist())
        source = json.loads(str(lesions[DESCRIPTION]))["source_sha256"]

    experiment = json.loads((desk / "runs/runs/mine/experiment.json").read_text())
    assert experiment["data"]["lesions"]["labels"] == {"0": "benign", "1": "malignant"}
    assert experiment["data"]["lesions"]["origin"]["source_sha256"] == source
    assert experiment["data"]["scans"]["reading"]["read"] == 311
    page = (desk / "runs/runs/mine/report/index.html").read_text()
    assert "malignant" in page
    assert "What corruptions of the test images take from AUROC" in page
    assert len(re.findall(r": auroc \d\.\d{3}  mean loss", said["robustness --run-id mine"])) == 4
    with (desk / "predictions.csv").open() as file:
        rows = list(csv.reader(row for row in file if not row.startswith("#")))
    assert {row[0] for row in rows[1:]} == {"a.png", "b.dcm"}
    assert (desk / "exported").is_dir()
