"""Folders of image files as they are found: what is read, how, what is left out, and that it is said."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.data import load_unlabelled
from app.data.reading import ReadOptions, Unreadable, find_images, instruments, read_raster, read_squares
from app.errors import InputError

RNG = np.random.default_rng(3)


def picture(seed: int = 0, size: int = 28) -> np.ndarray:
    """A smooth gray picture, uint8."""
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    return (255 * np.clip(0.5 + 0.4 * np.sin(5 * x + seed) * np.cos(4 * y), 0, 1)).astype(np.uint8)


def png(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def insert(data: bytes, extra: bytes) -> bytes:
    """Put a chunk behind the header of a PNG."""
    return data[:33] + extra + data[33:]


def raw_tiff(pixels: np.ndarray, photometric: int) -> bytes:
    """An uncompressed TIFF, as Pillow writes none: colours of 16 bits, or white as 0 (``photometric`` 0)."""
    planes, bits = 1 if pixels.ndim == 2 else 3, pixels.dtype.itemsize * 8
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    height, width = pixels.shape[:2]
    count, sample = 10, 3 if pixels.dtype.kind == "f" else 1
    beyond = 8 + 2 + 12 * count + 4
    depth = (258, 3, 1, bits) if planes == 1 else (258, 3, 3, beyond)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), depth, (259, 3, 1, 1), (262, 3, 1, photometric),
        (273, 4, 1, beyond + 6), (277, 3, 1, planes), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, sample),
    ]  # fmt: skip
    folder = struct.pack("<H", count) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + folder + struct.pack("<HHH", bits, bits, bits) + data


def load(folder: Path, **options):
    return load_unlabelled("scans", path=folder, options=ReadOptions(**options))


def fill(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(png(picture(i)))
    return folder


class TestWhatIsRead:
    @pytest.mark.parametrize(
        "name",
        [".ipynb_checkpoints/a.png", ".thumbnails/normal/a.png", "__MACOSX/._a.png", "@eaDir/a.png", ".a.png",
         "#recycle/a.png", "b/.cache/c/a.png", "$RECYCLE.BIN/a.png", "._a.jpg"],
    )  # fmt: skip
    def test_what_programs_hide_is_no_data(self, tmp_path, name) -> None:
        fill(tmp_path)
        hidden = tmp_path / name
        hidden.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_bytes(png(picture(9)))
        data = load(tmp_path)
        assert len(data) == 4
        assert "1 left out: 1 hidden files or folders" in data.reading.line()

    def test_linked_folders_are_read_once(self, tmp_path) -> None:
        fill(tmp_path / "scans", 3)
        fill(tmp_path / "disk2", 5)
        (tmp_path / "scans/batch2").symlink_to(tmp_path / "disk2")
        (tmp_path / "scans/again").symlink_to(tmp_path / "scans")
        (tmp_path / "scans/gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "disk2/back").symlink_to(tmp_path / "scans")
        data = load(tmp_path / "scans")
        assert len(data) == 8
        assert "2 links to folders that are read anyway" in data.reading.line()
        assert "1 links that lead nowhere" in data.reading.line()
        only = tmp_path / "only"
        only.mkdir()
        (only / "link").symlink_to(tmp_path / "disk2")
        assert len(load(only)) == 8, "and what that leads to"

    @pytest.mark.parametrize("suffix", ["tif", "tiff", "bmp", "webp", "gif", "ppm", "pgm", "jp2", "TIF", "Jpg", "tga"])
    def test_every_kind_that_pillow_reads(self, tmp_path, suffix) -> None:
        Image.fromarray(picture()).save(tmp_path / f"a.{suffix}")
        image = load(tmp_path).images[0]
        assert np.abs(image.astype(int) - picture()).max() <= 12

    def test_other_files_are_counted_by_kind(self, tmp_path) -> None:
        fill(tmp_path)
        for name in ("a.mha", "b.mha", "c.nii", "IM0001", "labels.csv", "readme.txt"):
            (tmp_path / name).write_bytes(b"x")
        line = load(tmp_path).reading.line()
        assert "4 images read (4 png); 4 left out: 2 of kind .mha, 1 of kind unknown" in line.replace("IM0001", "")
        assert "csv" not in line

    def test_a_folder_that_is_next_to_all_of_another_kind_is_refused(self, tmp_path) -> None:
        fill(tmp_path, 2)
        for i in range(18):
            (tmp_path / f"{i}.mha").write_bytes(b"x")
        with pytest.raises(InputError, match=r"holds 2 images that can be read .*18 left out: 18 of kind \.mha"):
            load(tmp_path)

    def test_names_are_bytes(self, tmp_path) -> None:
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Bef\xfcnde"))
        fill(folder)
        os.rename(os.fsencode(folder) + b"/003.png", os.fsencode(folder) + b"/R\xf6ntgen\n3.png")
        data = load(folder)
        assert len(data) == 4
        assert data.source.encode().endswith(b"/Bef%FCnde")
        (folder / "empty.png").write_bytes(b"")
        os.rename(folder / "empty.png", os.fsencode(folder) + b"/l\xe4er.png")
        with pytest.raises(InputError, match="1 of 5 images cannot be read"):
            load(folder)

    def test_the_order_is_that_of_the_bytes_and_what_is_kept_is_told_again(self, tmp_path) -> None:
        fill(tmp_path / "scans")
        (tmp_path / "scans/x.mha").write_bytes(b"")
        cache = tmp_path / "cache"
        first = load_unlabelled("scans", path=tmp_path / "scans", cache=cache)
        again = load_unlabelled("scans", path=tmp_path / "scans", cache=cache)
        assert np.array_equal(first.images, again.images)
        assert isinstance(again.images, np.memmap)
        assert first.reading.line() == again.reading.line()
        assert [file.name for file in find_images(tmp_path / "scans").files] == [f"{i:03d}.png" for i in range(4)]


class TestHowItIsRead:
    @pytest.mark.parametrize("bits", [9, 10, 12, 14, 15, 16])
    @pytest.mark.parametrize("kind", ["png", "png with sBIT", "tif", "pgm"])
    def test_deep_images_are_as_bright_as_those_of_eight_bits(self, tmp_path, bits, kind) -> None:
        for i in range(5):
            deep = np.rint(picture(i).astype(float) / 255 * (2**bits - 1)).astype(np.uint16)
            deep.flat[0] = 2**bits - 1
            suffix = kind[:3]
            Image.fromarray(deep).save(tmp_path / f"{i}.{suffix}")
            if "sBIT" in kind:
                (tmp_path / f"{i}.png").write_bytes(
                    insert((tmp_path / f"{i}.png").read_bytes(), chunk(b"sBIT", bytes([bits])))
                )
        data = load(tmp_path)
        assert (
            np.abs(data.images.astype(int) - np.stack([picture(i) for i in range(5)])).reshape(5, -1)[:, 1:].max() <= 2
        )
        assert f"5 of {bits} bits" in data.reading.line()

    def test_a_darker_image_of_the_same_instrument_stays_darker(self, tmp_path) -> None:
        for i in range(5):
            deep = np.full((28, 28), 4000 if i else 2000, np.uint16)
            Image.fromarray(deep).save(tmp_path / f"{i}.png")
        assert load(tmp_path).images[:, 0, 0].tolist() == [125, 249, 249, 249, 249]

    def test_so_do_the_darkest(self, tmp_path) -> None:
        for i, level in enumerate([4000, 4000, 4000, 4000, 2000, 1000, 500, 250]):
            Image.fromarray(np.full((28, 28), level, np.uint16)).save(tmp_path / f"{i}.png")
        assert load(tmp_path).images[:, 0, 0].tolist() == [249, 249, 249, 249, 125, 62, 31, 16]

    @pytest.mark.parametrize(
        ("filled", "made_by"),
        [
            ([12] * 4 + [11, 10, 9, 8], {8: 12, 9: 12, 10: 12, 11: 12, 12: 12}),
            ([11] * 5 + [12] * 3, {11: 12, 12: 12}),
            ([12] * 20 + [8] * 3, {8: 12, 12: 12}),
            ([16] * 4 + [12] * 2, {12: 12, 16: 16}),
            ([12] * 99 + [16], {12: 12, 16: 16}),
            ([12] * 99 + [13], {12: 12, 13: 13}),
            ([10] * 30 + [12] * 30 + [16] * 30 + [15, 9], {9: 10, 10: 10, 12: 12, 15: 16, 16: 16}),
            ([9], {9: 9}),
            ([], {}),
        ],
    )
    def test_images_tell_the_bits_of_their_instruments(self, filled, made_by) -> None:
        assert instruments(filled) == made_by

    @pytest.mark.parametrize("plain", [False, True])
    def test_a_pgm_says_itself_what_is_white(self, tmp_path, plain) -> None:
        for i, level in enumerate([4000, 2000, 1000, 250]):
            values = np.full((28, 28), level)
            body = " ".join(map(str, values.flat)).encode() if plain else values.astype(">u2").tobytes()
            (tmp_path / f"{i}.pgm").write_bytes((b"P2" if plain else b"P5") + b"\n28 28\n4095\n" + body)
        assert load(tmp_path).images[:, 0, 0].tolist() == [249, 125, 62, 16]

    @pytest.mark.parametrize(
        ("tops", "levels"),
        [
            ([200, 100, 1, 0.5], [200, 100, 1, 0]),
            ([0.8, 0.4, 0.2, 0.1], [204, 102, 51, 26]),
            ([0.8] * 19 + [200], [204] * 19 + [200]),
        ],
    )
    def test_the_range_of_floats_is_that_of_the_folder(self, tmp_path, tops, levels) -> None:
        for i, top in enumerate(tops):
            Image.fromarray(np.full((28, 28), top, np.float32)).save(tmp_path / f"{i:02d}.tif")
        assert load(tmp_path).images[:, 0, 0].tolist() == levels

    def test_floats_without_contrast_are_not_noise(self, tmp_path) -> None:
        for i, level in enumerate([-1000.1, 700.3]):
            Image.fromarray(np.full((50, 50), level, np.float32)).save(tmp_path / f"{i}.tif")
        assert (load(tmp_path).images == 0).all()

    def test_twelve_bits_beside_sixteen(self, tmp_path) -> None:
        for i in range(6):
            Image.fromarray(np.full((28, 28), 4095 if i < 2 else 65535, np.uint16)).save(tmp_path / f"{i}.png")
        data = load(tmp_path)
        assert (data.images == 255).all()
        assert "2 of 12 bits" in data.reading.line()

    def test_scaled_significant_bits_fill_all_sixteen(self, tmp_path) -> None:
        """As the PNG specification has it: samples of 12 bits scaled to 16."""
        deep = picture().astype(np.uint16) * 257
        (tmp_path / "a.png").write_bytes(insert(png(deep), chunk(b"sBIT", b"\x0c")))
        assert np.array_equal(load(tmp_path).images[0], picture())

    @pytest.mark.parametrize(("factor", "read"), [(257, True), (130, True), (16, False)])
    @pytest.mark.parametrize("kind", ["png", "tif"])
    def test_deep_colours_are_read_if_they_fill_their_bits(self, tmp_path, factor, read, kind) -> None:
        colours = np.stack([picture(i).astype(np.uint16) * factor for i in range(3)], -1)
        raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
        header = struct.pack(">IIBBBBB", 28, 28, 16, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
        (tmp_path / f"a.{kind}").write_bytes(data if kind == "png" else raw_tiff(colours, 2))
        if read:
            assert np.array_equal(load(tmp_path).images[0], (colours >> 8).astype(np.uint8))
        else:
            with pytest.raises(InputError, match=r"upper 8 alone can be read: save 8 bits"):
                load(tmp_path)

    @pytest.mark.parametrize(
        ("values", "note"),
        [
            (picture() / np.float32(255), "of values from 0 to 1"),
            (picture().astype(np.float32), "of values from 0 to 255"),
            (picture().astype(np.int32) * 8 - 1024, "scaled by their own range"),
            (picture().astype(np.float32) * 1e6, "scaled by their own range"),
            (
                np.where(picture() > 250, np.nan, picture() / np.float32(255)).astype(np.float32),
                "of values from 0 to 1",
            ),
        ],
    )
    def test_floats_and_negative_numbers_keep_their_contrast(self, tmp_path, values, note) -> None:
        Image.fromarray(values).save(tmp_path / "a.tif")
        data = load(tmp_path)
        assert note in data.reading.line()
        assert data.images.max() - data.images.min() > 180

    def test_hidden_colours_are_not_trained_on(self, tmp_path) -> None:
        colours = RNG.integers(0, 256, (28, 28, 4), dtype=np.uint8)
        colours[:, :, :3] = picture()[:, :, None]
        colours[:14, :, 3] = 0
        colours[:14, :, :3] = RNG.integers(0, 256, (14, 28, 3), dtype=np.uint8)
        colours[14:, :, 3] = 255
        Image.fromarray(colours, "RGBA").save(tmp_path / "a.png")
        data = load(tmp_path)
        assert data.channels == 1, "gray stays gray"
        assert (data.images[0, :14] == 0).all()
        assert np.array_equal(data.images[0, 14:], picture()[14:])
        assert "1 with transparency, laid on black" in data.reading.line()

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("kind", ["png", "tga", "tif", "webp"])
    def test_transparency_throughout_is_none(self, tmp_path, kind, mode) -> None:
        image = Image.fromarray(picture()).convert(mode)
        image.putalpha(Image.new("L", image.size, 0))
        options = {"lossless": True, "exact": True} if kind == "webp" else {}
        image.save(tmp_path / f"a.{kind}", **options)
        data = load(tmp_path)
        assert np.array_equal(data.images[0], picture())
        assert "1 with transparency 0 throughout, which was ignored" in data.reading.line()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "deep.tif", "colour.tif"])
    def test_orientations(self, tmp_path, kind, orientation) -> None:
        pixels = np.arange(28 * 28).reshape(28, 28) // 4
        p = pixels.astype(np.uint8)
        upright = {1: p, 2: p[:, ::-1], 3: p[::-1, ::-1], 4: p[::-1], 5: p.T, 6: p[::-1].T, 7: p[::-1, ::-1].T,
                   8: p[:, ::-1].T}[orientation]  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = {"deep.tif": p.astype(np.uint16) * 257, "colour.tif": np.stack([p, p, p], -1)}.get(kind, p)
        options = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "jpg" else {}
        Image.fromarray(stored).save(tmp_path / f"a.{kind}", exif=exif, **options)
        assert np.abs(load(tmp_path).images[0].astype(int) - upright).max() <= 3

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_white_as_zero(self, tmp_path, dtype) -> None:
        top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
        (tmp_path / "a.tif").write_bytes(raw_tiff(((255 - picture()) / 255 * top).astype(dtype), 0))
        assert np.abs(load(tmp_path).images[0].astype(int) - picture()).max() <= 1

    def test_what_is_black_is_white_as_zero_too(self, tmp_path) -> None:
        """The darkest images of an instrument of 12 bits are as dark with either sign."""
        for i, level in enumerate([4000, 4000, 2000, 500]):
            (tmp_path / f"{i}.tif").write_bytes(raw_tiff(np.full((28, 28), level, np.uint16), 0))
        assert load(tmp_path).images[:, 0, 0].tolist() == [255 - 249, 255 - 249, 255 - 125, 255 - 31]


def exif_of(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + tail


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))
BROKEN_EXIF = {
    "a negative rational": exif_of(TURNED, (0x11B, 10, 1, struct.pack("<I", 38)), tail=struct.pack("<ii", -5, 7)),
    "a rational over nothing": exif_of(TURNED, (0x11A, 5, 1, struct.pack("<I", 38)), tail=struct.pack("<II", 5, 0)),
    "a pointer out of the file": exif_of(TURNED, (0x8769, 4, 1, struct.pack("<I", 10**6))),
    "a circle": exif_of(TURNED, (0x8769, 4, 1, struct.pack("<I", 8))),
    "an unknown kind": exif_of(TURNED, (0x9999, 77, 1, b"abcd")),
    "rubbish": b"Exif\0\0" + RNG.bytes(300),
    "cut": exif_of(TURNED)[:15],
    "nothing": b"",
    "an orientation of words": exif_of((0x112, 2, 4, b"six\0")),
    "an orientation beyond all": exif_of((0x112, 3, 1, struct.pack("<HH", 99, 0))),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_broken_exif_costs_an_image_nothing(tmp_path, name, kind) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", quality=95)
    exif, data = BROKEN_EXIF[name], buffer.getvalue()
    if kind == "jpg":
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    elif kind == "png":
        data = insert(png(picture()), chunk(b"eXIf", exif[6:]))
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture()).convert("RGB").save(buffer, "WEBP", lossless=True, exif=exif or b"x")
        data = buffer.getvalue()
    (tmp_path / f"a.{kind}").write_bytes(data)
    assert len(load(tmp_path)) == 1


def text(size: int, kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "iTXt":
        info.add_itxt("report", "lorem ipsum " * (size // 12), zip=True)
    else:
        info.add_text("report", "lorem ipsum " * (size // 12), zip=kind == "zTXt")
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


SOUND_PNG = {
    "a long text": lambda: text(3_000_000, "zTXt"),
    "a long international text": lambda: text(3_000_000, "iTXt"),
    "a plain long text": lambda: text(3_000_000, "tEXt"),
    "a huge colour profile": lambda: insert(png(picture()), chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3_000_000)))),
    "a broken colour profile": lambda: insert(png(picture()), chunk(b"iCCP", b"x\0\0rubbish")),
    "a text with a wrong checksum": lambda: insert(png(picture()), chunk(b"tEXt", b"a\0b")[:-1] + b"\0"),
    "a text without its end": lambda: insert(png(picture()), chunk(b"tEXt", b"nothing")),
    "a resolution too short": lambda: insert(png(picture()), chunk(b"pHYs", b"\0")),
    "an unknown chunk": lambda: insert(png(picture()), chunk(b"prVt", RNG.bytes(99))),
    "rubbish at the end": lambda: png(picture()) + RNG.bytes(500),
}


@pytest.mark.parametrize("name", SOUND_PNG)
def test_a_sound_png_is_read_whatever_is_written_beside_its_pixels(tmp_path, name) -> None:
    (tmp_path / "a.png").write_bytes(SOUND_PNG[name]())
    data = load(tmp_path)
    assert np.array_equal(data.images[0], picture())


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in a few kilobytes."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def pages() -> bytes:
    buffer = io.BytesIO()
    first, second = Image.fromarray(picture(0)), Image.fromarray(picture(1))
    first.save(buffer, "TIFF", save_all=True, append_images=[second])
    return buffer.getvalue()


BROKEN = {
    "half": ("a.png", lambda: png(RNG.integers(0, 256, (64, 64), dtype=np.uint8))[:1500], "damaged"),
    "empty": ("a.png", lambda: b"", "empty"),
    "a web page": ("a.jpg", lambda: b"<html>403 Forbidden</html>", "not an image"),
    "a bomb": ("a.png", bomb, "over the limit"),
    "several pages": ("a.tif", pages, "holds 2 pictures"),
    "wrong pixels": ("a.png", lambda: png(picture())[:60] + bytes(40) + png(picture())[100:], "damaged"),
    "a header alone": ("a.bmp", lambda: b"BM" + bytes(20), "a.bmp"),
    "nothing but NaN": ("a.tif", lambda: tiff(np.full((8, 8), np.nan, np.float32)), "no finite values"),
}


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_files_have_their_reason(tmp_path, name) -> None:
    file, make, reason = BROKEN[name]
    (tmp_path / file).write_bytes(make())
    with pytest.raises(Unreadable) as caught:
        read_raster(tmp_path / file)
    with pytest.raises(InputError) as refused:
        load(tmp_path)
    assert reason in f"{file} {caught.value}"
    assert file in str(refused.value)
    assert refused.value.exit_code == 66
    assert "\n" not in str(refused.value)


def test_one_run_names_all_that_are_broken(tmp_path) -> None:
    fill(tmp_path, 30)
    for number in range(0, 30, 2):
        (tmp_path / f"{number:03d}.png").write_bytes(b"" if number % 4 else b"<html>")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert "15 of 30 images cannot be read" in text
    assert all(f"{number:03d}.png" in text for number in range(0, 20, 2))
    assert "and 5 more" in text


def test_a_few_broken_ones_are_left_out_and_said(tmp_path) -> None:
    fill(tmp_path, 200)
    (tmp_path / "077.png").write_bytes(b"<html>")
    (tmp_path / "078.png").write_bytes(b"")
    data = load(tmp_path)
    assert len(data) == 198
    assert "2 unreadable: 077.png (not an image, whatever its name says), 078.png (empty)" in data.reading.line()
    assert data.describe()["reading"]["unreadable"] == {
        "077.png": "not an image, whatever its name says", "078.png": "empty",
    }  # fmt: skip
    assert data.describe()["splits"] == {"all": 198}


def test_nothing_is_printed_by_libraries(tmp_path, recwarn) -> None:
    Image.fromarray(picture(0, 64)).save(tmp_path / "a.tif", compression="tiff_lzw")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-40])
    Image.new("L", (9500, 9500)).save(tmp_path / "large.png")
    with pytest.raises(InputError):
        load(tmp_path)
    assert [str(warning) for warning in recwarn.list] == []


def test_the_door_for_commands_names_each_image(tmp_path) -> None:
    fill(tmp_path / "scans/deep", 3)
    named = dict(read_squares(tmp_path / "scans", 28).items())
    assert list(named) == [f"deep/{i:03d}.png" for i in range(3)]
    assert all(np.array_equal(pixels, picture(i)) for i, pixels in enumerate(named.values()))
    [(name, pixels)] = read_squares(tmp_path / "scans/deep/001.png", 28).items()
    assert (name, pixels.shape) == ("001.png", (28, 28))
    assert np.array_equal(pixels, picture(1))


@pytest.mark.parametrize(
    ("name", "says"), [("none.png", "no such file or folder"), ("a.docx", "of a kind that is not")]
)
def test_a_file_by_itself_has_to_be_an_image(tmp_path, name, says) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(InputError, match=says):
        read_squares(tmp_path / name, 28)
