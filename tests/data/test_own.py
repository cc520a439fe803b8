"""A user's own images: labels, patients and splits of folders and tables; what is checked; what an import writes."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from app.data import load_dataset, load_unlabelled
from app.data.own import LabelSource, check_images, import_images
from app.data.own.check import contact_sheet
from app.data.own.duplicates import near_pairs, near_test_images
from app.data.own.labels import find_labels, in_order
from app.data.own.splits import draw_splits, parse_shares
from app.data.own.tables import read_table
from app.data.reading import ReadOptions
from app.data_cli import data_app
from app.errors import AppError, InputError, UsageError

RNG = np.random.default_rng(5)
SHARES = (0.7, 0.1, 0.2)
HIDDEN = ReadOptions(anonymise=True)


def picture(seed: int, side: int = 40) -> np.ndarray:
    """A gray picture that no other seed gives, uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def lesions(tmp_path) -> Path:
    """60 images of 20 patients in two folders of classes."""
    folder = tmp_path / "lesions"
    for number in range(60):
        patient = number // 3
        save(folder / ("mel" if patient % 4 == 0 else "nevus") / f"P{patient:02d}_{number}.png", picture(number))
    return folder


@pytest.fixture
def scans(tmp_path) -> Path:
    """30 images in one folder, for tables."""
    folder = tmp_path / "scans"
    for number in range(30):
        save(folder / f"{number:02d}.png", picture(number))
    return folder


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def made(folder: Path, out: Path, **options):
    labels = LabelSource(**options.pop("labels", {}))
    result = import_images(folder, out, size=28, labels=labels, **options)
    return result, load_dataset("mine", path=out)


class TestClassFolders:
    def test_patients_stay_together_and_names_stay_with_the_set(self, lesions, tmp_path) -> None:
        result, data = made(lesions, tmp_path / "a.npz", labels={"patient_regex": r"(P\d+)_.*"})
        assert data.class_names == ["mel", "nevus"]
        assert data.task == "binary-class"
        of_patient: dict[str, set[str]] = {}
        for name, split in data.splits.items():
            for place, (file, patient) in enumerate(zip(split.files, split.patients, strict=True)):
                of_patient.setdefault(patient, set()).add(name)
                number = int(file.split("_")[1].split(".")[0])
                assert patient == f"P{number // 3:02d}"
                assert data.class_names[split.labels[place, 0]] == file.split("/")[0]
                wanted = np.asarray(Image.fromarray(picture(number)).resize((28, 28), Image.Resampling.BICUBIC))
                assert np.array_equal(split.images[place], wanted)
        assert len(of_patient) == 20
        assert all(len(splits) == 1 for splits in of_patient.values())
        assert [len(data.splits[name]) for name in ("train", "val", "test")] == [42, 6, 12]
        assert [data.class_counts(name) for name in ("train", "val", "test")] == [[9, 33], [3, 3], [3, 9]]
        assert result.patients == {"train": 14, "val": 2, "test": 4}
        assert data.describe("downstream")["origin"]["source_sha256"] == data.origin.description["source_sha256"]

    def test_the_layout_is_medmnists(self, lesions, tmp_path) -> None:
        made(lesions, tmp_path / "a.npz", labels={"patient_regex": r"P\d+"})
        with np.load(tmp_path / "a.npz") as npz:
            for split in ("train", "val", "test"):
                assert npz[f"{split}_images"].dtype == np.uint8
                assert npz[f"{split}_labels"].dtype == np.int64
                assert npz[f"{split}_labels"].shape == (len(npz[f"{split}_images"]), 1)
            assert json.loads(str(npz["description"]))["task"] == "binary-class"

    def test_a_seed_names_the_draw(self, lesions, tmp_path) -> None:
        files = [
            made(lesions, tmp_path / f"{n}.npz", seed=seed, labels={"patient_regex": r"P\d+"})[1].test.files
            for n, seed in enumerate((0, 0, 1))
        ]
        assert files[0] == files[1]
        assert files[0] != files[2]

    def test_folders_of_splits(self, tmp_path) -> None:
        for number in range(30):
            split = ("train", "Validation", "test")[number % 3]
            save(tmp_path / "set" / split / ("a" if number % 2 else "b") / f"{number}.png", picture(number))
        result, data = made(tmp_path / "set", tmp_path / "a.npz")
        assert result.images == {"train": 10, "val": 10, "test": 10}
        assert all(name.startswith("Validation/") for name in data.val.files)
        with pytest.raises(UsageError, match="--split: the splits are given"):
            made(tmp_path / "set", tmp_path / "b.npz", split="70/10/20")

    def test_without_patients_it_warns_and_keeps_equal_images_together(self, lesions, tmp_path) -> None:
        for number in range(8):
            save(lesions / "nevus" / f"copy{number}.png", picture(0))
            save(lesions / "mel" / f"copy{number}.png", picture(0))
        result, data = made(lesions, tmp_path / "a.npz")
        assert "WARNING: no patients are known" in "\n".join(result.lines())
        assert result.equal == []
        copies = [name for name, split in data.splits.items() for file in split.files if "copy" in file]
        assert len(copies) == 16
        assert len(set(copies)) == 1

    def test_equal_and_near_images_across_splits_are_named(self, tmp_path) -> None:
        for number in range(30):
            split, pixels = ("train", "val", "test")[number % 3], picture(number)
            if number == 4:
                pixels = picture(0)
            if number == 5:
                pixels = np.clip(picture(3).astype(int) + RNG.integers(-4, 5, (40, 40)), 0, 255).astype(np.uint8)
            save(tmp_path / "set" / split / ("a" if number % 2 else "b") / f"{number}.png", pixels)
        result, _ = made(tmp_path / "set", tmp_path / "a.npz")
        assert {frozenset(pair) for pair in result.equal} == {frozenset({"train/b/0.png", "val/b/4.png"})}
        assert {frozenset(pair) for pair in result.near} == {frozenset({"train/a/3.png", "test/a/5.png"})}
        assert "WARNING: equal images are in different splits: train/b/0.png = val/b/4.png" in "\n".join(result.lines())

    def test_anonymised(self, lesions, tmp_path) -> None:
        (lesions / "mel/Doe_P99_5.png").write_bytes(b"")
        (lesions / "nevus").rename(lesions / "other")
        hidden = ReadOptions(max_unreadable=0.1, anonymise=True)
        result, data = made(lesions, tmp_path / "a.npz", labels={"patient_regex": r"P\d+"}, options=hidden)
        names = {hidden.shown(path.relative_to(lesions).as_posix()) for path in lesions.rglob("*.png")}
        written = {file for split in data.splits.values() for file in split.files}
        assert len(written) == 60
        assert written < names
        assert {patient.split()[0] for patient in data.train.patients} == {"patient"}
        with np.load(tmp_path / "a.npz") as npz:
            everything = " ".join(str(npz[key].tolist()) for key in npz.files if "images" not in key)
        assert "P0" not in everything
        assert "Doe" not in everything
        assert "lesions" not in everything
        assert "Doe" not in "\n".join(result.lines())

    def test_a_subset_keeps_the_names_beside_the_images(self, lesions, tmp_path) -> None:
        _, whole = made(lesions, tmp_path / "a.npz")
        some = load_dataset("mine", path=tmp_path / "a.npz", subset=10)
        for file, image in zip(some.train.files, some.train.images, strict=True):
            assert np.array_equal(whole.train.images[whole.train.files.index(file)], image)


class TestTables:
    @pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "semicolons"])
    def test_classes(self, scans, tmp_path, kind) -> None:
        rows = [
            (f"{n:02d}.png", ["no", "mild", "severe"][n % 3], f"p{n // 3}", "test" if n < 6 else "train")
            for n in range(30)
        ]
        rows = [(*row[:3], "val") if n in (6, 7, 8) else row for n, row in enumerate(rows)]
        header = ("image", "grade", "patient", "fold")
        path = tmp_path / f"labels.{'csv' if kind == 'semicolons' else kind}"
        if kind == "parquet":
            arrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
            parquet.write_table(arrow.table(columns), path)
        else:
            mark = {"csv": ",", "tsv": "\t", "semicolons": ";"}[kind]
            write(path, mark.join(header), [mark.join(row) for row in rows])
        columns = {"table": path, "patient_column": "patient", "split_column": "fold"}
        result, data = made(scans, tmp_path / "a.npz", labels=columns)
        assert data.class_names == ["mild", "no", "severe"]
        assert data.task == "multi-class"
        assert result.images == {"train": 21, "val": 3, "test": 6}
        assert data.test.files == tuple(f"{n:02d}.png" for n in range(6))
        assert [data.class_names[label] for label in data.test.labels[:, 0]] == ["no", "mild", "severe"] * 2

    def test_subgroups_stay_beside_their_images_and_are_no_labels(self, scans, tmp_path) -> None:
        sexes, scanners = [("f", "m", "NA")[n % 3] for n in range(30)], [str(n % 2 + 9) for n in range(30)]
        rows = [f"{n:02d}.png,{n % 2},{scanners[n]}.0,{sexes[n]}" for n in range(30)]
        table = write(tmp_path / "a.csv", "file,label,scanner,sex", rows)
        labels = {"table": table, "subgroup_columns": ("sex", "scanner")}
        (scans / "05.png").write_bytes(b"")
        options = ReadOptions(max_unreadable=0.1)
        result, data = made(scans, tmp_path / "a.npz", labels=labels, split="40/30/30", options=options)
        assert data.class_names == ["0", "1"]
        for split in (*data.splits.values(), *load_dataset("mine", path=tmp_path / "a.npz", subset=4).splits.values()):
            places = [int(file[:2]) for file in split.files]
            assert split.subgroups["sex"] == tuple(sexes[n].replace("NA", "") for n in places)
            assert split.subgroups["scanner"] == tuple(scanners[n] for n in places)
        [line] = [line for line in result.lines() if line.startswith("test images by sex: ")]
        counted = {group: data.test.subgroups["sex"].count(group) for group in ("", "f", "m")}
        assert line.endswith(f"{counted['']} not known, {counted['f']} f, {counted['m']} m")
        with np.load(tmp_path / "a.npz") as npz:
            arrays = dict(npz)
        assert arrays["test_subgroups"].shape == (len(data.test), 2)
        np.savez(tmp_path / "b.npz", **arrays | {"test_subgroups": arrays["test_subgroups"][1:]})
        with pytest.raises(InputError, match=r"test_subgroups holds .* import it again"):
            load_dataset("mine", path=tmp_path / "b.npz")

    def test_a_set_without_subgroups_has_no_such_arrays(self, lesions, tmp_path) -> None:
        _, data = made(lesions, tmp_path / "a.npz")
        assert dict(data.test.subgroups) == {}
        with np.load(tmp_path / "a.npz") as npz:
            assert not [key for key in npz.files if "subgroup" in key]

    def test_several_labels_and_missing_ones(self, scans, tmp_path) -> None:
        rows = [f"{n:02d},{n % 2},{(n // 2) % 2},{'' if n == 3 else 1 - n % 2}" for n in range(30)]
        table = write(tmp_path / "labels.csv", "id,edema,mass,nodule", rows)
        result, data = made(scans, tmp_path / "a.npz", labels={"table": table}, split="50/25/25")
        assert data.task == "multi-label, binary-class"
        assert data.class_names == ["edema", "mass", "nodule"]
        assert sum((split.labels == -1).sum() for split in data.splits.values()) == 1
        assert [sum(result.counts[name][label] for name in result.counts) for label in range(3)] == [15, 14, 15]

    def test_what_has_no_row_or_no_image_is_counted(self, scans, tmp_path) -> None:
        rows = [f"{n:02d}.png,{n % 2}" for n in range(5, 40)]
        result, _ = made(scans, tmp_path / "a.npz", labels={"table": write(tmp_path / "a.csv", "file,label", rows)})
        line = "\n".join(result.lines())
        assert "5 images without a row in the table" in line
        assert "10 rows without an image" in line

    def test_paths_names_and_stems_name_an_image(self, tmp_path) -> None:
        for number in range(20):
            save(tmp_path / f"set/{number // 10}/{number}.png", picture(number))
        for ways in (
            lambda n: f"{n // 10}/{n}.png",
            lambda n: f"{n}.png",
            lambda n: f"{n}",
            lambda n: f"{n // 10}/{n}",
        ):
            table = write(tmp_path / "a.csv", "file,label", [f"{ways(n)},{n % 2}" for n in range(20)])
            names = [f"{n // 10}/{n}.png" for n in range(20)]
            labels = find_labels(tmp_path / "set", names, LabelSource(table))
            assert labels.values[:, 0].tolist() == [n % 2 for n in range(20)]

    def test_numbers_are_in_the_order_of_numbers(self) -> None:
        assert in_order({"10", "9", "1"}) == ["1", "9", "10"]
        assert in_order({"b", "10", "a"}) == ["10", "a", "b"]

    def test_numbers_as_pandas_writes_them_where_some_are_missing(self, scans, tmp_path) -> None:
        """As CheXpert's table: 1.0, 0.0 and nothing."""
        cells = [f"{n % 2}.0,{('', 'NaN', 'NA', '0.0', '1.00')[n % 5]}" for n in range(30)]
        rows = [f"{n:02d},{cell}" for n, cell in enumerate(cells)]
        table = write(tmp_path / "labels.csv", "id,edema,mass", rows)
        _, data = made(scans, tmp_path / "a.npz", labels={"table": table}, split="50/25/25")
        assert data.task == "multi-label, binary-class"
        for split in data.splits.values():
            for file, values in zip(split.files, split.labels, strict=True):
                number = int(file[:2])
                assert values.tolist() == [number % 2, (-1, -1, -1, 0, 1)[number % 5]]

    @pytest.mark.parametrize("word", ["None", "NA", "null"])
    def test_a_class_may_be_called_none(self, scans, tmp_path, word) -> None:
        rows = [f"{n:02d}.png,{(word, 'mild')[n % 2]},1.0" for n in range(30)]
        table = write(tmp_path / "a.csv", "file,grade,p", rows)
        _, data = made(scans, tmp_path / "a.npz", labels={"table": table, "label_columns": ("grade",)})
        assert set(data.class_names) == {word, "mild"}

    def test_a_patient_may_not(self, scans, tmp_path) -> None:
        rows = [f"{n:02d}.png,{n % 2},{'NA' if n < 3 else n}" for n in range(30)]
        columns = {"table": write(tmp_path / "a.csv", "file,grade,p", rows), "patient_column": "p"}
        with pytest.raises(InputError, match="--patient-column: is empty for 3 images"):
            made(scans, tmp_path / "a.npz", labels=columns)

    def test_without_arrow_a_parquet_table_says_what_to_install(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"a\.parquet: pyarrow is not installed; .*\[parquet\]'"):
            read_table(tmp_path / "a.parquet")

    def test_cells_as_text(self, tmp_path) -> None:
        table = read_table(write(tmp_path / "a.csv", "\ufeffa,b", ['"x, y",NaN', "1,2.5"]))
        assert table.columns == {"a": ["x, y", "1"], "b": ["", "2.5"]}


HEADER = "file,label,p,s"
ROWS = [f"{n:02d}.png,{n % 2},p{n // 3},{('train', 'val', 'test')[n // 3 % 3]}" for n in range(30)]
SOUND = "\n".join([HEADER, *ROWS])
TWO = "\n".join(["file,label", *(row[:8] for row in ROWS)])
EVAL = {"split_column": "s", "label_columns": ("label",)}
NAMES = {"subgroup_columns": ("file",), "label_columns": ("label",)}
BOTH = {"split_column": "s", "patient_column": "p"}
BAD = {
    "no such table": (None, {}, "no such file", 66),
    "another kind of table": ("a.xlsx", {}, "has to end in", 2),
    "an empty table": ("", {}, "holds no rows", 66),
    "a binary table": (b"\xff\xfe\x00file", {}, "not in UTF-8", 66),
    "a damaged Parquet": (b"PAR1....", {"suffix": "parquet"}, "damaged or no Parquet", 66),
    "ragged rows": ("file,label\n00.png,1\n01.png\n", {}, "row 3 has 1 cells", 66),
    "an open quote": ('file,label\n"00.png,1\n', {}, "not a table", 66),
    "two columns of a name": ("file,label,label\n00.png,1,1\n", {}, "two columns are called label", 66),
    "no column of files": ("name,label\nx.png,1\ny.png,0\n", {}, "no column names the images", 66),
    "an unknown column": (SOUND, {"patient_column": "patient"}, "no such column; it has", 2),
    "subgroups that are names": (
        SOUND,
        {"subgroup_columns": ("file",), "label_columns": ("label",)},
        "holds 30 (00.png, 01.png, ",
        2,
    ),
    "one subgroup": ("file,label,g\n00.png,1,a\n01.png,0,a\n", {"subgroup_columns": ("g",)}, "holds 1 (a)", 2),
    "subgroups that are not there": (SOUND, {"subgroup_columns": ("sex",)}, "no such column; it has", 2),
    "no labels": ("file\n00.png\n", {}, "has no column of labels", 2),
    "an empty label": ("file,label\n00.png,1\n01.png,\n02.png,0\n", {}, "is empty for 1 images (01.png)", 66),
    "one class": ("file,label\n00.png,1\n01.png,1\n", {}, "holds 1 alone", 66),
    "words in several columns": ("file,a,b\n00.png,1,yes\n01.png,0,no\n", {}, "column b holds no, yes", 66),
    "two rows of an image": ("file,label\n00.png,1\n00.png,0\n", {}, "rows 2 and 3 are of one image", 66),
    "a split of another name": (SOUND.replace("val", "eval"), EVAL, "holds eval; write train", 66),
    "a patient in two splits": (SOUND.replace("p1", "p0"), BOTH, "(p0: 00.png in train and 03.png in val)", 66),
    "a broken pattern": (TWO, {"patient_regex": "(P"}, "no regular expression", 2),
    "a pattern that does not fit": (TWO, {"patient_regex": "Q"}, "does not fit 30", 66),
    "both ways to a patient": (SOUND, {"patient_regex": "0", "patient_column": "p", **EVAL}, "give one", 2),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(scans, tmp_path, name) -> None:
    content, options, says, code = BAD[name]
    options = dict(options)
    path = tmp_path / (content if content == "a.xlsx" else f"a.{options.pop('suffix', 'csv')}")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AppError) as caught:
        import_images(scans, tmp_path / "out.npz", size=28, labels=LabelSource(table=path, **options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == code
    assert not (tmp_path / "out.npz").exists()


class TestSplits:
    def test_shares(self) -> None:
        assert parse_shares("70/10/20") == pytest.approx(SHARES)
        assert parse_shares("0.6/0.2/0.2") == pytest.approx((0.6, 0.2, 0.2))

    @pytest.mark.parametrize("text", ["70/30", "70/10/30", "a/b/c", "80/0/20", "", "70/10/20/0", "-10/10/100"])
    def test_wrong_shares(self, text) -> None:
        with pytest.raises(UsageError, match="--split"):
            parse_shares(text)

    def test_every_class_has_its_share_in_every_split(self) -> None:
        labels = RNG.choice(5, 3000, p=[0.6, 0.2, 0.1, 0.07, 0.03])
        groups = [f"p{n}" for n in RNG.integers(0, 900, 3000)]
        members = labels[:, None] == np.arange(5)
        splits = np.array(draw_splits(groups, members, SHARES, seed=0))
        for share, name in zip(SHARES, ("train", "val", "test"), strict=True):
            assert np.abs(members[splits == name].sum(0) / members.sum(0) - share).max() < 0.03
        assert all(len({splits[n] for n in range(3000) if groups[n] == g}) == 1 for g in set(groups[:50]))

    def test_labels_that_are_few(self) -> None:
        members = np.zeros((400, 3), bool)
        members[:200, 0] = True
        members[:10, 1] = True
        splits = np.array(draw_splits([str(n) for n in range(400)], members, SHARES, seed=3))
        assert [int(members[splits == name, 1].sum()) for name in ("train", "val", "test")] == [7, 1, 2]

    def test_a_class_of_too_few_patients(self, tmp_path) -> None:
        for number in range(30):
            save(
                tmp_path / "set" / ("rare" if number < 4 else "usual") / f"P{number // 4}_{number}.png", picture(number)
            )
        with pytest.raises(InputError, match="no image of rare is in"):
            made(tmp_path / "set", tmp_path / "a.npz", labels={"patient_regex": r"P\d+"})


class TestFolders:
    def test_loose_images(self, lesions, tmp_path) -> None:
        save(lesions / "x.png", picture(99))
        with pytest.raises(InputError, match=r"1 images lie in no class's folder \(x.png\)"):
            made(lesions, tmp_path / "a.npz")

    def test_one_class(self, tmp_path) -> None:
        save(tmp_path / "set/a/x.png", picture(0))
        with pytest.raises(InputError, match="all images are of one class, a"):
            made(tmp_path / "set", tmp_path / "a.npz")

    @pytest.mark.parametrize("option", ["patient_column", "split_column", "file_column", "label_columns"])
    def test_columns_without_a_table(self, lesions, tmp_path, option) -> None:
        """The message names an option that there is."""
        words = f"--{option.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{words}: is a column of a table"):
            made(lesions, tmp_path / "a.npz", labels={option: "p"})
        shown = get_command(data_app).get_command(None, "import")
        assert words in {name for parameter in shown.params for name in parameter.opts}

    def test_another_ending(self, lesions, tmp_path) -> None:
        with pytest.raises(UsageError, match=r"has to end in \.npz"):
            made(lesions, tmp_path / "a.zip")

    def test_a_folder_is_no_set(self, lesions) -> None:
        with pytest.raises(InputError, match=r"is a folder; make a labelled set of it by `python -m app data import"):
            load_dataset("mine", path=lesions)


class TestCheck:
    def test_what_is_there(self, tmp_path) -> None:
        folder = tmp_path / "scans"
        for number in range(20):
            save(folder / f"P{number // 2}_{number}.png", picture(number, 80))
        save(folder / "P9_copy.png", picture(3, 80))
        save(folder / "P9_deep.png", picture(30, 100).astype(np.uint16) * 16)
        save(folder / "P9_wide.png", np.repeat(picture(31, 80), 2, axis=1))
        save(folder / "P9_near.png", np.clip(picture(5, 80).astype(int) + 6, 0, 255).astype(np.uint8))
        (folder / "P9_broken.png").write_bytes(b"")
        found = check_images(
            folder, sheet=tmp_path / "sheet.png", patient_regex=r"P\d+", options=ReadOptions(max_unreadable=1)
        )
        assert found.reading.read == 24
        assert found.sides[(80, 80)] == 22
        assert found.depths == {"gray of 8 bits": 23, "gray of 16 bits": 1}
        assert found.patients == 10
        assert found.equal == [["P1_3.png", "P9_copy.png"]]
        assert found.near == [("P2_5.png", "P9_near.png")]
        lines = "\n".join(found.lines())
        assert "1 unreadable: P9_broken.png (empty)" in lines
        assert "equal images: 1: P1_3.png = P9_copy.png" in lines
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.size == (16 * 65, 2 * 65)
        options = ReadOptions(max_unreadable=1, anonymise=True)
        hidden = check_images(folder, patient_regex=r"P\d+", options=options)
        assert "P9" not in "\n".join(hidden.lines()) + json.dumps(hidden.as_json())
        assert hidden.equal == [[options.shown("P1_3.png"), options.shown("P9_copy.png")]]

    def test_a_sheet_of_twelve_bits_looks_like_one_of_eight(self, tmp_path) -> None:
        for number in range(20):
            pixels = picture(number, 100)
            save(tmp_path / f"eight/{number}.png", pixels)
            save(tmp_path / f"twelve/{number}.png", np.rint(pixels / 255 * 4095).astype(np.uint16))
        sheets = []
        for kind in ("eight", "twelve"):
            check_images(tmp_path / kind, sheet=tmp_path / f"{kind}.png")
            with Image.open(tmp_path / f"{kind}.png") as sheet:
                sheets.append(np.asarray(sheet).astype(int))
        assert np.abs(sheets[0] - sheets[1]).mean() < 2

    def test_a_sheet_of_colours(self) -> None:
        sheet = contact_sheet(RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
        assert sheet.startswith(b"\x89PNG")


SECRET = "roe"
HEADS = {
    "a loose image": ("", {}, "lie in no class's folder"),
    "a loose image of a split": ("train/", {}, "of a split lie in no class's folder"),
    "a pattern that does not fit": ("a/", {"patient_regex": "^P"}, "does not fit"),
    "a patient in two splits": ("train/a/", {"patient_regex": "roe|P"}, "in two splits"),
    "no column of files": ("a/", {"table": "file,label\nx,1\n"}, "no column names the images"),
    "no such files": ("a/", {"table": "file,label\nx,1\n", "file_column": "file"}, "names none of the images"),
    "a name of several": ("a/", {"table": "file,label\nroe_1,1\n"}, "names several images"),
    "two rows": ("a/", {"table": "file,label\na/roe_1.png,1\na/roe_1.png,0\n"}, "are of one image"),
    "an empty label": ("a/", {"table": "file,label\na/roe_1.png,\nb/roe_1.png,1\n"}, "is empty for"),
    "an empty patient": (
        "a/", {"table": "file,label,p\na/roe_1.png,0,\nb/roe_1.png,1,3\n", "patient_column": "p"}, "is empty for",
    ),
}  # fmt: skip


class TestAnonymised:
    """A name that only the user knows is nowhere in what is said, kept or raised."""

    @pytest.mark.parametrize("name", HEADS)
    def test_errors_name_nobody(self, tmp_path, name) -> None:
        top, options, says = HEADS[name]
        options, two = dict(options), "val/b/" if top.startswith("train") else "b/"
        for folder in (top, two):
            save(tmp_path / f"set/{folder}roe_1.png", picture(1))
        if "table" in options:
            head, *rows = options["table"].split()
            options["table"] = write(tmp_path / "a.csv", head, rows)
        with pytest.raises(AppError, match=says) as caught:
            import_images(tmp_path / "set", tmp_path / "a.npz", size=28, labels=LabelSource(**options), options=HIDDEN)
        assert SECRET not in str(caught.value).replace("roe|P", "")

    def test_check_names_nobody(self, tmp_path) -> None:
        save(tmp_path / "roe/roe.png", picture(1))
        with pytest.raises(InputError, match="does not fit 1 images") as caught:
            check_images(tmp_path, patient_regex="^P", options=HIDDEN)
        assert SECRET not in str(caught.value)

    def test_what_the_file_system_and_other_files_say(self, tmp_path, monkeypatch) -> None:
        for name in ("roe/a.png", "roe/b.png"):
            save(tmp_path / name, picture(len(name)))
        (tmp_path / "roe/scan.john_roe").write_bytes(b"x")
        plain = Path.read_bytes

        def refused(path: Path) -> bytes:
            if path.name == "b.png":
                raise PermissionError(errno.EACCES, "Permission denied")
            return plain(path)

        monkeypatch.setattr(Path, "read_bytes", refused)
        options = ReadOptions(max_unreadable=1, anonymise=True)
        found = check_images(tmp_path, options=options)
        said = "\n".join(found.lines()) + json.dumps(found.as_json())
        assert SECRET not in said
        assert "no permission while reading" in found.reading.unreadable[options.shown("roe/b.png")]
        assert "1 of kind unknown" in said
        assert "1 of kind .john_roe" in check_images(tmp_path, options=ReadOptions(max_unreadable=1)).lines()[0]

    @pytest.mark.parametrize("first", [False, True])
    def test_what_is_kept_of_a_folder_is_told_as_it_was_asked_for(self, tmp_path, first) -> None:
        for name in ("a.png", "b.png"):
            save(tmp_path / "scans" / name, picture(len(name)))
        (tmp_path / "scans/roe.png").write_bytes(b"")
        for anonymise in (first, not first, first):
            options = ReadOptions(max_unreadable=1, anonymise=anonymise)
            data = load_unlabelled("scans", path=tmp_path / "scans", size=28, cache=tmp_path / "cache", options=options)
            assert (SECRET in json.dumps(data.reading.as_json())) != anonymise

    def test_a_name_cannot_be_guessed(self) -> None:
        assert len({ReadOptions(anonymise=True).shown("a/roe.png") for _ in range(3)}) == 3
        assert HIDDEN.shown("a/roe.png") == HIDDEN.shown("a/roe.png")


class TestNearlyEqual:
    def test_pictures_of_one_scene_and_of_others(self) -> None:
        pictures = np.stack([picture(n, 64) for n in range(40)])
        brighter = np.clip(pictures[7].astype(int) * 9 // 10 + 10, 0, 255).astype(np.uint8)
        assert list(near_pairs(np.concatenate([pictures, brighter[None]]))) == [(7, 40)]

    def test_test_images_among_those_of_pretraining(self) -> None:
        pictures = np.stack([picture(n, 64) for n in range(40)])
        brighter = np.clip(pictures[7:9].astype(int) * 9 // 10 + 10, 0, 255).astype(np.uint8)
        tests = np.stack([*brighter, pictures[3], picture(99, 64)])
        assert near_test_images(pictures, {"a": tests, "b": tests[2:], "rgb": np.stack([tests] * 3, -1)}) == {
            "a": 2, "b": 0, "rgb": 2,
        }  # fmt: skip

    def test_equal_ones_are_not_nearly_equal_however_many_they_are(self) -> None:
        flat = np.stack([np.full((28, 28), level, np.uint8) for level in [0] * 3000 + [200]])
        assert list(near_pairs(flat)) == []

    def test_one_stands_for_those_equal_to_it(self) -> None:
        brighter = np.clip(picture(7, 64).astype(int) * 9 // 10 + 10, 0, 255).astype(np.uint8)
        assert list(near_pairs(np.stack([picture(7, 64), brighter, picture(7, 64), brighter]))) == [(0, 1)]
