"""The commands of `python -m app data`: getting data sets, and looking through and importing one's own images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cluster.parameters import check_parameters, read_parameters
from app.errors import UsageError
from app.options import (
    Anonymise,
    Asked,
    Fitting,
    Frame,
    Limits,
    MaxUnreadable,
    Parameters,
    Seed,
    Size,
    example,
    takes_settings,
)

data_app = typer.Typer(help="Get data sets, and make them of your own images.", no_args_is_help=True)

PatientRegex = Annotated[
    str | None, typer.Option("--patient-regex", help="Finds the patient in an image's path: its first group.")
]


@data_app.command(epilog=example("data fetch --dataset breastmnist,pneumoniamnist --data-root ~/.medmnist"))
@takes_settings("preset", "overrides", "data_root")
def fetch(
    dataset: Annotated[str, typer.Option("--dataset", help="MedMNIST names, separated by commas.")] = "",
    size: Size = 28,
    store: Annotated[str | None, typer.Option("--store", help="Put the files into the data/ of this store.")] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Folder or base URL to take the files from.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing: only verify what is there.")] = False,
    parameters: Parameters = None,
    limits: Limits = None,
    *,
    asked: Asked,
) -> None:
    """Download MedMNIST files, verify their MD5, and put them into a folder or the store.

    The folder is --data-root. With --preset, all that its study needs goes into --store.
    """
    from app.progress import Progress
    from app.stages.fetch import fetch as fetch_files
    from app.stages.fetch import fetch_study
    from app.storage import open_store

    if parameters is not None:
        check_parameters(read_parameters(parameters), limits)
    names = [name.strip() for name in dataset.split(",") if name.strip()]
    if asked.preset is None and asked.overrides:
        raise UsageError("--set: sets what a preset says; give --preset NAME and --store URI, or leave it out")
    target = open_store(store, warn=Progress("store").say) if store else None
    if asked.preset is not None and target is not None:
        chosen = [f"study.datasets=[{dataset}]"] if names else []
        config = asked.config(chosen)
        if size not in (config.data.size, 28):  # 28 if nothing was said
            raise UsageError(
                f"--size {size}: the study's images have {config.data.size} px; use --set data.size={size}"
            )
        for line in fetch_study(target, config, mirror=mirror or None, offline=offline):
            print(line)
        return
    if not names or asked.preset is not None:
        raise UsageError("data fetch: give --dataset NAMES, or --preset NAME and --store URI")
    for line in fetch_files(names, size=size, store=target, root=asked.data_root, mirror=mirror, offline=offline):
        print(line)


@data_app.command(epilog=example("data phantoms --data-root phantoms"))
def phantoms(
    data_root: Annotated[Path, typer.Option("--data-root", help="Put the files into this folder.")],
    size: Size = 28,
    seed: Seed = 0,
) -> None:
    """Draw synthetic data sets in MedMNIST's layout, for trying things out."""
    from app.data import write_phantoms

    for path in write_phantoms(data_root, seed=seed, size=size):
        print(path)


@data_app.command(epilog=example("data check scans --sheet contact-sheet.png"))
def check(
    source: Annotated[Path, typer.Argument(help="Folder of images, with its subfolders, or one image.")],
    sheet: Annotated[Path, typer.Option("--sheet", help="PNG file for a contact sheet.")] = Path("contact-sheet.png"),
    patient_regex: PatientRegex = None,
    frame: Frame = None,
    fit: Fitting = "pad",
    max_unreadable: MaxUnreadable = 100,
    anonymise: Anonymise = False,
    out: Annotated[Path | None, typer.Option("--json", help="Write all that was found to this file, too.")] = None,
) -> None:
    """Look through a folder of images: how many of what kinds, sizes and depths, what is double, what is unreadable."""
    from app.data.own import check_images
    from app.data.reading import ReadOptions
    from app.jobs.run import reading_bar
    from app.progress import Progress

    with reading_bar(Progress("check")) as told:
        found = check_images(
            source,
            sheet=sheet,
            patient_regex=patient_regex,
            options=ReadOptions.asked(fit, frame, max_unreadable, anonymise),
            progress=told,
        )
    for line in found.lines():
        print(line)
    print(f"contact sheet: {sheet}")
    if out is not None:
        from app.data.files import atomic_write

        with atomic_write(out) as file:
            file.write(json.dumps(found.as_json(), indent=1).encode() + b"\n")


@data_app.command(
    name="import",
    epilog=example(r"data import lesions lesions.npz --size 64 --patient-regex '(P\d+)_' --split 70/10/20"),
)
def import_(
    source: Annotated[Path, typer.Argument(help="Folder of images: in folders of classes, or with a table.")],
    out: Annotated[Path, typer.Argument(help="The .npz to write.")],
    size: Size,
    table: Annotated[Path | None, typer.Option("--labels", help="Table of labels, CSV or Parquet.")] = None,
    label_columns: Annotated[
        str, typer.Option("--label-columns", help="Of the table, by commas. [default: rest]")
    ] = "",
    file_column: Annotated[str | None, typer.Option("--file-column", help="Names the images. [default: found]")] = None,
    patient_column: Annotated[str | None, typer.Option("--patient-column", help="Names the patients.")] = None,
    patient_regex: PatientRegex = None,
    split_column: Annotated[str | None, typer.Option("--split-column", help="Holds train, val and test.")] = None,
    subgroup_columns: Annotated[
        str, typer.Option("--subgroup-columns", help="Of the table, by commas: results are told by them, too.")
    ] = "",
    split: Annotated[
        str | None, typer.Option("--split", help="Per cent of train, val and test. [default: 70/10/20]")
    ] = None,
    seed: Seed = 0,
    frame: Frame = None,
    fit: Fitting = "pad",
    max_unreadable: MaxUnreadable = 1,
    anonymise: Anonymise = False,
) -> None:
    """Make a labelled set of a folder of images: split by patient, in MedMNIST's layout."""
    from app.data import SIZES
    from app.data.own import LabelSource, import_images
    from app.data.reading import ReadOptions
    from app.jobs.run import reading_bar
    from app.progress import Progress

    if size not in SIZES:
        raise UsageError(f"--size {size}: unknown; choose from {', '.join(map(str, SIZES))}")
    columns, groups = (
        tuple(name.strip() for name in names.split(",") if name.strip()) for names in (label_columns, subgroup_columns)
    )
    labels = LabelSource(table, columns, file_column, patient_column, patient_regex, split_column, groups)
    with reading_bar(Progress("import")) as told:
        made = import_images(
            source,
            out,
            size=size,
            labels=labels,
            split=split,
            seed=seed,
            options=ReadOptions.asked(fit, frame, max_unreadable, anonymise),
            progress=told,
        )
    for line in made.lines():
        print(line)
    print(out)
