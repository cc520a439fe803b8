"""The commands that take a trained model away, or try it: predict, embed, export, robustness, knn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options import (
    Anonymise,
    Asked,
    Fitting,
    Frame,
    MaxUnreadable,
    StoreUri,
    example,
    takes_settings,
)

models_app = typer.Typer()

MODEL = "first/downstream/breastmnist/byol-s0/finetune/s0"
Model = Annotated[
    str, typer.Option("--model", help=f"A finished job, such as runs/{MODEL}; behind its store, or in --store.")
]
Source = Annotated[Path, typer.Argument(help="An image, a folder of images, or an .npz in MedMNIST's layout.")]
Split = Annotated[str, typer.Option("--split", help="Which images of an .npz: train, val or test.")]
DATA = ("sources", "data_root", "device", "threads")


@models_app.command(epilog=example(f"predict --model runs/{MODEL} new/ --out new.csv"))
@takes_settings(*DATA)
def predict(
    model: Model,
    source: Annotated[
        Path | None,
        typer.Argument(help="An image, a folder, or an .npz in MedMNIST's layout. [default: the study's test images]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write .csv or .json. [default: CSV, printed]")] = None,
    heatmaps: Annotated[
        Path | None, typer.Option("--heatmaps", help="Folder for a picture of where each image shows its class.")
    ] = None,
    split: Split = "test",
    fit: Fitting = "",
    frame: Frame = None,
    max_unreadable: MaxUnreadable = 1,
    anonymise: Anonymise = False,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Predict what is on images: probabilities, and a class at the threshold that validation data chose.

    Where the images are the study's own test images, the predictions have to be the recorded ones, to 1e-4.
    """
    from app.data.reading import ReadOptions
    from app.models.heatmaps import draw_heatmaps, need_captum
    from app.models.inputs import read_pictures
    from app.models.predict import (
        check_own_test,
        is_own_test,
        own_data,
        own_test_pictures,
        predict_pictures,
        predictions_csv,
        write_predictions,
        writer_for,
    )
    from app.models.trained import find_job, load_trained, reading_of
    from app.progress import Progress
    from app.runtime import choose_device, prepare

    if out is not None:
        writer_for(out)
    if heatmaps is not None:
        need_captum()
    device = choose_device(asked.device or "auto")
    prepare(device, asked.threads)
    opened, folder = find_job(model, store)
    trained = load_trained(opened, folder)
    own_fit, levels = reading_of(opened, folder)
    options = ReadOptions.asked(fit or own_fit, frame, max_unreadable, anonymise, levels)
    if source is None:
        pictures = own_test_pictures(own_data(opened, trained, asked.sources or [], asked.data_root))
    else:
        pictures = read_pictures(source, size=trained.size, split=split, options=options)
    prediction = predict_pictures(trained, pictures, device)
    if is_own_test(trained, pictures):
        check_own_test(opened, folder, prediction)
    if out is None:
        print(predictions_csv(prediction), end="")
    else:
        write_predictions(prediction, out)
        print(out)
    if heatmaps is not None:
        count, layer = draw_heatmaps(prediction, heatmaps)
        Progress("predict").say(f"{count} heat maps of {layer} in {heatmaps}")


@models_app.command(epilog=example("embed --model runs/first/pretrain/byol-s0 scans/ --out features.npz"))
@takes_settings("device", "threads")
def embed(
    model: Annotated[
        str, typer.Option("--model", help="A pretraining, such as runs/RUN/pretrain/byol-s0, or a trained classifier.")
    ],
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="Write file names and features: .npz, .csv or .parquet.")],
    neighbours: Annotated[
        Path | None, typer.Option("--neighbours", help="An image, or a folder: show what is nearest to it.")
    ] = None,
    sheet: Annotated[Path, typer.Option("--sheet", help="PNG file for the neighbours.")] = Path("neighbours.png"),
    count: Annotated[int, typer.Option("--count", min=1, help="Neighbours to show.")] = 8,
    split: Split = "train",
    fit: Fitting = "",
    frame: Frame = None,
    max_unreadable: MaxUnreadable = 1,
    anonymise: Anonymise = False,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Compute the features of images by an encoder; with --neighbours draw the images nearest to others.

    Nearest is what has the largest cosine of its features with the query's.
    """
    from app.data.files import atomic_write
    from app.data.reading import ReadOptions
    from app.models.embed import embed_pictures, neighbour_sheet, write_features, writer_for
    from app.models.inputs import read_pictures
    from app.models.trained import encoder_channels, encoder_size, find_job, load_encoder, reading_of
    from app.runtime import choose_device, prepare

    writer_for(out)
    device = choose_device(asked.device or "auto")
    prepare(device, asked.threads)
    opened, folder = find_job(model, store)
    encoder, metadata = load_encoder(opened, folder)
    own_fit, levels = reading_of(opened, folder)
    options = ReadOptions.asked(fit or own_fit, frame, max_unreadable, anonymise, levels)
    size, channels = encoder_size(metadata), encoder_channels(metadata)
    name = f"{opened.uri}/{folder}"
    pictures = read_pictures(source, size=size, split=split, options=options)
    found = embed_pictures(encoder, pictures, model=name, channels=channels, device=device)
    write_features(found, out)
    print(out)
    if neighbours is not None:
        asked_for = read_pictures(neighbours, size=size, split=split, options=options)
        queries = embed_pictures(encoder, asked_for, model=name, channels=channels, device=device)
        with atomic_write(sheet) as file:
            file.write(neighbour_sheet(queries, found, count))
        print(sheet)


@models_app.command(epilog=example(f"export --model runs/{MODEL} exported/"))
@takes_settings("sources", "data_root", "threads")
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Write a trained model as ONNX, safetensors, preprocessing and a model card, for use without this package.

    onnxruntime has to give the recorded predictions of the study's test images, to 1e-4; else nothing is written.
    """
    from app.models.export import FILES, need_onnx
    from app.models.export import export as write
    from app.models.predict import own_data
    from app.models.trained import find_job, load_trained
    from app.progress import Progress
    from app.runtime import prepare

    need_onnx()
    prepare("cpu", asked.threads)
    opened, folder = find_job(model, store)
    trained = load_trained(opened, folder)
    data = own_data(opened, trained, asked.sources or [], asked.data_root)
    off = write(opened, folder, trained, data, out)
    Progress("export").say(f"onnxruntime: {len(data.test)} predictions within {off:.1g} of the recorded ones")
    for name in FILES:
        print(out / name)


@models_app.command(epilog=example("robustness --run-id nih --store runs"))
@takes_settings(*DATA)
def robustness(
    run_id: Annotated[str, typer.Option("--run-id", help="Name of the run.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Judge models anew that were judged.")] = False,
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Judge a run's models on test images under noise, blur, low contrast, brightness and low resolution.

    Each at five strengths: 26 passes over the test images for a model. `report` shows what came of it.
    """
    from app.models.robustness import judge_run
    from app.runtime import choose_device, prepare
    from app.storage import open_store

    device = choose_device(asked.device or "auto")
    prepare(device, asked.threads)
    judged = judge_run(
        open_store(store), run_id, sources=asked.sources or [], data_root=asked.data_root, device=device,
        overwrite=overwrite,
    )  # fmt: skip
    for found in judged:
        auroc, loss = (found.metrics[name] for name in ("auroc", "loss"))
        print(f"{found.key}: auroc {auroc:.3f}  mean loss {loss:.3f}")


@models_app.command(epilog=example("knn --preset cifar10-byol --model runs/cifar/pretrain/byol-s0 --dataset cifar10"))
@takes_settings("preset", "overrides", *DATA)
def knn(
    model: Annotated[str, typer.Option("--model", help="A pretraining, such as runs/RUN/pretrain/byol-s0.")],
    dataset: Annotated[str, typer.Option("--dataset", help="A labelled set.")],
    store: StoreUri = "runs",
    *,
    asked: Asked,
) -> None:
    """Let a set's training and validation images vote on its test images: a figure to compare with published ones.

    How many vote, and how, say pretrain.knn_neighbours and pretrain.knn_temperature.
    """
    from app.models.knn import vote

    for line in vote(asked.config(), model=model, dataset=dataset, store=store):
        print(line)
