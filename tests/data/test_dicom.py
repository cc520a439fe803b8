"""DICOM files: pydicom's own, and made ones whose pixels are known."""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from app.data import load_unlabelled
from app.data.own import LabelSource, import_images
from app.data.reading import NoImage, ReadOptions, Unreadable, find_images, read_raster, read_squares
from app.errors import InputError, UsageError

pydicom = pytest.importorskip("pydicom")
OWN = Path(pydicom.__file__).parent / "data/test_files"
RAMP = np.arange(64 * 64).reshape(64, 64)  # 0 to 4095


def write(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 12, **tags) -> Path:
    """A DICOM file of these stored values, (H, W), (H, W, 3) or (frames, H, W)."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4.55667788"
    file.Modality, file.PatientName, file.PatientID = "CR", "Doe^Jane", "SECRET-4711"
    file.PatientBirthDate = "19441224"
    colours = photometric in ("RGB", "YBR_FULL")
    file.SamplesPerPixel, file.PhotometricInterpretation = 3 if colours else 1, photometric
    if colours:
        file.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.Rows, file.Columns = pixels.shape[:2] if colours else pixels.shape[-2:]
    file.BitsAllocated, file.BitsStored = pixels.dtype.itemsize * 8, bits
    file.HighBit, file.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = pixels.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, **options):
    return read_raster(path, ReadOptions(**options))


KINDS = {
    "CT_small.dcm": ((128, 128), "scaled by their own range"),
    "MR_small.dcm": ((64, 64), "shown by their window"),
    "MR_small_RLE.dcm": ((64, 64), "shown by their window"),
    "MR_small_jp2klossless.dcm": ((64, 64), "shown by their window"),
    "MR_small_jpeg_ls_lossless.dcm": ((64, 64), "shown by their window"),
    "MR_small_bigendian.dcm": ((64, 64), "shown by their window"),
    "JPEG2000.dcm": ((1024, 256), "scaled by their own range"),
    "JPGExtended.dcm": ((1024, 256), "scaled by their own range"),
    "JPEGLSNearLossless_16.dcm": ((50, 10), "of 16 bits"),
    "693_J2KI.dcm": ((512, 512), "shown by their window"),
    "image_dfl.dcm": ((512, 512), "of 8 bits"),
    "liver_1frame.dcm": ((512, 512), "of 1 bits"),
    "examples_palette.dcm": ((350, 800, 3), "with a palette of colours"),
    "examples_jpeg2k.dcm": ((480, 640, 3), None),
    "SC_rgb_jpeg_dcmtk.dcm": ((100, 100, 3), None),
    "SC_rgb_rle_16bit.dcm": ((100, 100, 3), "colours of 16 bits"),
    "SC_rgb_rle_32bit.dcm": ((100, 100, 3), "colours of 32 bits"),
    "SC_ybr_full_422_uncompressed.dcm": ((100, 100, 3), None),
    "ExplVR_BigEnd.dcm": ((60, 80, 3), None),
    "rtdose_1frame.dcm": ((10, 10), "scaled by their own range"),
}


@pytest.mark.parametrize("name", KINDS)
def test_pydicoms_own_files(name) -> None:
    shape, rule = KINDS[name]
    raster = read(OWN / name)
    assert raster.pixels.shape == shape
    assert raster.pixels.dtype == np.uint8
    assert rule is None or rule in raster.notes
    assert raster.pixels.max() - raster.pixels.min() > 150


def test_every_coding_of_one_picture_is_one_picture() -> None:
    plain = read(OWN / "MR_small.dcm").pixels
    for coding in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "expb"):
        assert np.array_equal(read(OWN / f"MR_small_{coding}.dcm").pixels, plain), coding
    bars = read(OWN / "SC_rgb_rle.dcm").pixels.astype(int)
    for coding in ("rle_16bit", "rle_32bit", "dcmtk_+eb+cr", "jpeg_gdcm"):
        assert np.abs(read(OWN / f"SC_rgb_{coding}.dcm").pixels - bars).mean() < 2, coding


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("values", "tags", "expected", "rule"),
    [
        (RAMP, {}, RAMP / 4095, "of 12 bits"),
        (RAMP, {"WindowCenter": 1024.5, "WindowWidth": 1001}, (RAMP - 524) / 1000, "shown by their window"),
        (RAMP, {"WindowCenter": [1024.5, 9], "WindowWidth": [1001, 9]}, (RAMP - 524) / 1000, "shown by their window"),
        (
            RAMP,
            {"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
            RAMP / 2000,
            "shown by their window",
        ),
        (
            RAMP,
            {"WindowCenter": 2000, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
            1 / (1 + np.exp(-4 * (RAMP - 2000) / 800)),
            "shown by their window",
        ),
        (
            RAMP,
            {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40.5, "WindowWidth": 401},
            (2.0 * RAMP - 1000 + 160) / 400,
            "shown by their window",
        ),
        (RAMP, {"WindowCenter": 0, "WindowWidth": 0}, RAMP / 4095, "of 12 bits"),
        (RAMP, {"WindowCenter": "", "WindowWidth": ""}, RAMP / 4095, "of 12 bits"),
        (RAMP, {"WindowCenter": -9000, "WindowWidth": 10}, RAMP / 4095, "of 12 bits"),
        (
            RAMP // 8,
            {},
            (RAMP // 8 - np.percentile(RAMP // 8, 0.5)) / np.ptp(np.percentile(RAMP // 8, (0.5, 99.5))),
            "scaled by their own range",
        ),
    ],
)
def test_gray_levels(tmp_path, photometric, values, tags, expected, rule) -> None:
    """Part 3, C.11.2.1.2 and C.11.2.1.3: the formulas of the standard, computed here."""
    raster = read(write(tmp_path / "a.dcm", values.astype(np.uint16), photometric, **tags))
    expected = np.clip(expected, 0, 1) * 255
    if photometric == "MONOCHROME1":
        expected = 255 - expected
        assert "of MONOCHROME1, inverted" in raster.notes
    assert rule in raster.notes
    assert np.abs(raster.pixels - expected).max() <= 0.51


def test_a_voi_table_comes_before_the_window(tmp_path) -> None:
    table = pydicom.Dataset()
    entries = np.arange(4095, -1, -1, dtype=np.uint16)
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], entries.tobytes()
    tags = {"VOILUTSequence": [table], "WindowCenter": 5, "WindowWidth": 10}
    raster = read(write(tmp_path / "a.dcm", RAMP.astype(np.uint16), **tags))
    assert raster.notes == ("shown by their VOI LUT",)
    assert np.abs(raster.pixels - (4095 - RAMP) / 4095 * 255).max() <= 0.51


def test_a_palette(tmp_path) -> None:
    channels = {
        name: np.arange(256, dtype=np.uint16) * factor for name, factor in (("Red", 257), ("Green", 128), ("Blue", 0))
    }
    tags = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in channels}
    tags |= {f"{name}PaletteColorLookupTableData": values.tobytes() for name, values in channels.items()}
    raster = read(write(tmp_path / "a.dcm", (RAMP // 16).astype(np.uint8), "PALETTE COLOR", 8, **tags))
    expected = np.stack([channels[name][RAMP // 16] / 257 for name in channels], -1)
    assert np.abs(raster.pixels - expected).max() <= 0.51


def test_padding_is_black_and_not_counted(tmp_path) -> None:
    values = (RAMP // 8 + 100).astype(np.int16)
    values[:20] = -2000
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = write(tmp_path / f"{photometric}.dcm", values, photometric, 16, PixelPaddingValue=-2000)
        pixels = read(path).pixels
        assert (pixels[:20] == 0).all()
        assert np.ptp(pixels[21:-1]) > 240


def test_several_frames_are_refused_or_chosen(tmp_path) -> None:
    path = write(tmp_path / "a.dcm", np.stack([RAMP // 2, RAMP]).astype(np.uint16))
    with pytest.raises(Unreadable, match=r"holds 2 pictures, .* by --frame"):
        read(path)
    assert np.abs(read(path, frame=2).pixels - RAMP / 4095 * 255).max() <= 0.51
    with pytest.raises(Unreadable, match="none is number 3"):
        read(path, frame=3)


NOT_READ = {
    "MR_truncated.dcm": (Unreadable, "damaged"),
    "rtstruct.dcm": (NoImage, r"without an image \(RTSTRUCT\)"),
    "reportsi.dcm": (NoImage, r"without an image \(SR\)"),
    "badVR.dcm": (Unreadable, "header"),
    "JPEG-lossy.dcm": (Unreadable, "damaged"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_files_without_a_sound_picture(name) -> None:
    kind, says = NOT_READ[name]
    with pytest.raises(kind, match=says):
        read(OWN / name)


def test_a_damaged_file_that_one_decoder_never_comes_back_from(tmp_path) -> None:
    data = bytearray((OWN / "MR_small_jpeg_ls_lossless.dcm").read_bytes())
    rng = random.Random(224)
    for _ in range(rng.randrange(1, 12)):
        place, way = rng.randrange(0, len(data)), rng.randrange(4)
        if way == 0:
            data[place] = rng.randrange(256)
        elif way == 1:
            del data[place : place + rng.randrange(1, 60)]
        elif way == 2:
            data[place:place] = rng.randbytes(rng.randrange(1, 20))
        else:
            data[min(place, 2000)] = rng.choice([0, 255, 127, 128])
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(Unreadable, match="damaged"):
        read(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["Modality", "PatientID", "BurnedInAnnotation", "PixelPaddingValue"])
def test_an_attribute_that_cannot_be_decoded_costs_an_image_nothing_or_has_a_reason(tmp_path, name) -> None:
    path = write(tmp_path / "a.dcm", RAMP.astype(np.uint16), BurnedInAnnotation="NO", PixelPaddingValue=7)
    data = bytearray(path.read_bytes())
    tag = pydicom.tag.Tag(name)
    at = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
    data[at + 4 : at + 6] = b"C\0"  # no such kind of value
    path.write_bytes(data)
    with contextlib.suppress(Unreadable):
        assert read(path).pixels.shape == (64, 64)


def test_rubbish_is_no_dicom(tmp_path) -> None:
    for number, content in enumerate((b"x", b"<html>403</html>" * 20, bytes(128) + b"DICM" + b"\xff" * 40)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        with pytest.raises(Unreadable):
            read(path)


def test_a_folder_as_scanners_export_it(tmp_path) -> None:
    """Files without a suffix, numbers for names, an index, a report: pictures are found by what is in them."""
    for number in range(6):
        write(tmp_path / f"IM{number:05d}", RAMP.astype(np.uint16))
    write(tmp_path / "1.2.840.113619.2.5", RAMP.astype(np.uint16))
    (tmp_path / "DICOMDIR").write_bytes((OWN / "dicomdirtests/DICOMDIR").read_bytes())
    (tmp_path / "report.dcm").write_bytes((OWN / "reportsi.dcm").read_bytes())
    (tmp_path / "noise").write_bytes(b"x")
    assert len(find_images(tmp_path).files) == 8
    cache = tmp_path.parent / f"{tmp_path.name}-cache"
    for _ in ("decoded", "kept"):
        data = load_unlabelled("scans", path=tmp_path, size=64, cache=cache)
        line = data.reading.line()
        assert len(data) == 7
        for part in ("7 images read (7 dcm)", "1 indexes of DICOM media", "DICOM files without an image (SR)"):
            assert part in line
    assert np.abs(data.images[0] - RAMP / 4095 * 255).max() <= 0.51


def test_nothing_of_the_patient_is_said(tmp_path, capfd) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.dcm", RAMP.astype(np.uint16))
    broken = tmp_path / "3.dcm"
    broken.write_bytes((tmp_path / "0.dcm").read_bytes()[:-900])
    squares = read_squares(tmp_path, 28, ReadOptions(max_unreadable=0.5))
    said = squares.reading.line() + str(squares.reading.as_json()) + str(squares.seen) + "".join(capfd.readouterr())
    assert "3.dcm (damaged" in said
    for secret in ("Doe", "Jane", "SECRET", "4711", "19441224", "55667788"):
        assert secret not in said
    assert len({seen.patient for seen in squares.seen}) == 1


def test_patients_of_an_import_stay_together_and_nameless(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        patient = number // 4
        folder = tmp_path / "set" / "ab"[patient % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        write(folder / f"{number}.dcm", pixels, PatientID=f"SECRET-{patient}")
    made = import_images(tmp_path / "set", tmp_path / "set.npz", size=28, labels=LabelSource(), split="60/20/20")
    assert made.patients == {"train": 6, "val": 2, "test": 2}
    with np.load(tmp_path / "set.npz") as npz:
        patients = [set(npz[f"{split}_patients"].tolist()) for split in ("train", "val", "test")]
        assert set.union(*patients) == {f"patient {number}" for number in range(1, 11)}
        assert sum(map(len, patients)) == 10
        everything = " ".join(str(npz[key].tolist()) for key in npz.files if "images" not in key)
    for secret in ("SECRET", "Doe", "19441224", "55667788"):
        assert secret not in everything


def scans_of_patients(folder: Path, where, unknown: tuple[int, ...] = (), count: int = 40) -> Path:
    """Noise, four images a patient, each in ``where(number)``; ``unknown`` ones have no PatientID."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / where(number) / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        write(path, pixels, PatientID="" if number in unknown else f"SECRET-{number // 4}")
    return folder


@pytest.mark.parametrize("way", ["folders", "column"])
@pytest.mark.parametrize("anonymise", [False, True])
def test_a_patient_of_the_headers_in_two_splits_is_refused(tmp_path, way, anonymise) -> None:
    splits = ["train", "val", "test"] * 13 + ["train"]
    folders = way == "folders"
    folder = scans_of_patients(tmp_path / "set", lambda n: f"{splits[n]}/{'ab'[n // 4 % 2]}" if folders else "Doe")
    table = tmp_path / "labels.csv"
    table.write_text("file,label,fold\n" + "".join(f"{n}.dcm,{n // 4 % 2},{splits[n]}\n" for n in range(40)))
    labels = LabelSource() if folders else LabelSource(table, split_column="fold")
    with pytest.raises(InputError, match="10 patients are in two splits") as caught:
        import_images(folder, tmp_path / "a.npz", size=28, labels=labels, options=ReadOptions(anonymise=anonymise))
    said = str(caught.value)
    assert ("0.dcm in train" in said) != anonymise
    assert "SECRET" not in said
    assert not anonymise or "Doe" not in said


def test_an_image_without_a_patient_leaves_the_others_theirs(tmp_path) -> None:
    folder = scans_of_patients(tmp_path / "set", lambda n: "ab"[n // 4 % 2], unknown=(0, 17))
    made = import_images(folder, tmp_path / "a.npz", size=28, labels=LabelSource(), split="60/20/20")
    lines = "\n".join(made.lines())
    assert "no patients are known" not in lines
    assert "WARNING: the patient is not known of 2 images" in lines
    assert sum(made.patients.values()) == 10
    with np.load(tmp_path / "a.npz") as npz:
        patients = [npz[f"{split}_patients"].tolist() for split in ("train", "val", "test")]
    assert sum(len(set(here)) for here in patients) == 12  # each in one split, the two unknown ones by themselves
    assert {"unknown 1", "unknown 2"} < {name for here in patients for name in here}


def test_a_missing_library_is_one_line(tmp_path, monkeypatch) -> None:
    write(tmp_path / "a.dcm", RAMP.astype(np.uint16))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"DICOM files: pydicom is not installed; .*\[dicom\]'"):
        load_unlabelled("scans", path=tmp_path)


def test_a_missing_decoder_says_what_to_install(tmp_path, monkeypatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to decompress: all plugins are missing dependencies")

    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", missing)
    with pytest.raises(Unreadable, match=r"its decoder is not installed; .*\[dicom\]'"):
        read(OWN / "MR_small_jp2klossless.dcm")


def test_a_folder_of_reports_alone(tmp_path) -> None:
    (tmp_path / "a.dcm").write_bytes((OWN / "reportsi.dcm").read_bytes())
    with pytest.raises(InputError, match="holds no image that can be read"):
        load_unlabelled("scans", path=tmp_path)


def test_writing_in_the_picture_is_said(tmp_path) -> None:
    path = write(tmp_path / "a.dcm", RAMP.astype(np.uint16), BurnedInAnnotation="YES")
    assert "with writing burned into the picture" in read(path).notes


@pytest.mark.parametrize("seed", range(30))
def test_damage_ends_in_a_picture_or_a_reason(tmp_path, seed) -> None:
    rng = np.random.default_rng(seed)
    name = ["MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "examples_palette.dcm", "SC_rgb_jpeg_dcmtk.dcm"][
        seed % 5
    ]
    data = bytearray((OWN / name).read_bytes())
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(132, min(len(data), 3000))] = rng.integers(256)
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(data))
    with contextlib.suppress(Unreadable):
        assert read(path).pixels.dtype == np.uint8
