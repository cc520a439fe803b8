"""Predictions of a trained classifier: probabilities, and a class at the threshold that its training chose."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.config import completed, load_config, parse_config
from app.data import SPLITS, Dataset, load_dataset, stratified_subset
from app.data.files import atomic_write
from app.errors import InputError, UsageError
from app.jobs import keys
from app.jobs.records import read_verified
from app.jobs.run import SUBSET_SEED, Run, load_labelled
from app.models.inputs import Pictures
from app.models.trained import Trained
from app.progress import Progress
from app.report.collect import parse_predictions
from app.science import metrics
from app.science.finetuning import Labelled, predict, probabilities
from app.science.thresholds import RULE
from app.storage import Store

Scores = NDArray[np.float64]
TOLERANCE = 1e-4  # by how much a probability may differ from the recorded one


@dataclass(frozen=True)
class Prediction:
    """What a model says of some images.

    Attributes:
        trained: the model.
        pictures: the images.
        scores: probabilities, (N, C); those of a multi-label task do not sum to 1.
        thresholds: what a probability has to exceed; none where the likeliest class wins.
        chosen_by: how the thresholds were chosen, in words.
    """

    trained: Trained
    pictures: Pictures
    scores: Scores
    thresholds: list[float]
    chosen_by: str

    def classes(self) -> list[list[str]]:
        """Return the predicted class of each image, or all its predicted labels."""
        names, task = self.trained.class_names, self.trained.record.task
        decided = metrics.decide(self.scores, task, self.thresholds)
        if task == metrics.MULTI_LABEL:
            return [[names[index] for index in np.flatnonzero(row)] for row in decided]
        return [[names[int(index)]] for index in decided[:, 0]]


def predict_pictures(trained: Trained, pictures: Pictures, device: str = "cpu") -> Prediction:
    """Predict what is on the images, in as many channels as the model was trained on.

    Args:
        trained: the model.
        pictures: of the model's size.
        device: where to compute.
    """
    images = pictures.in_channels(trained.channels).images
    scores = scores_of(trained, images, device)
    record = trained.record
    if record.thresholds is not None:
        thresholds, chosen_by = list(record.thresholds), RULE if record.thresholds else "the likeliest class wins"
    else:
        single = record.task in (metrics.BINARY, metrics.MULTI_LABEL)
        thresholds = [0.5] * (1 if record.task == metrics.BINARY else len(record.labels)) if single else []
        chosen_by = "none was chosen: the model is older than thresholds" if single else "the likeliest class wins"
    return Prediction(trained, pictures, scores, thresholds, chosen_by)


def scores_of(trained: Trained, images: NDArray[np.uint8], device: str = "cpu") -> Scores:
    """Return the probabilities, (N, C), that a model gives uint8 images (N, H, W) or (N, H, W, 3)."""
    labels = np.zeros((len(images), 1), np.int64)  # nobody asks for them
    classifier = trained.classifier.to(device)
    return probabilities(predict(classifier, Labelled.of(images, labels, device)), trained.record.task)


# --- the study's own test images


def recorded_scores(store: Store, folder: str, trained: Trained) -> Scores:
    """Return the predictions that the job recorded, (N, C)."""
    entry = trained.record.files.get(keys.PREDICTIONS)
    if entry is None:
        raise InputError(f"{trained.uri}: its record names no predictions; run the job again")
    return parse_predictions(read_verified(store, f"{folder}/{keys.PREDICTIONS}", entry.model_dump()))


def own_data(store: Store, trained: Trained, sources: Sequence[str] = (), data_root: str | None = None) -> Dataset:
    """Load the data set that a model was trained and judged on, as the study saw it.

    Args:
        store: of the study.
        trained: the model.
        sources: ``name=URI[:task]`` each, where the study's own word no longer holds.
        data_root: folder to look in first.

    Raises:
        InputError: it is not there, or is another file.
    """
    record = trained.record
    config = parse_config(completed(record.config), where=f"{trained.uri}: its record")
    asked = load_config("recommended", sources=sources, data_root=data_root)
    config = config.model_copy(
        update={"sources": config.sources | asked.sources, "data_root": asked.data_root or config.data_root}
    )
    data = load_labelled(Run(store, record.run_id, config), record.dataset)
    if data.sha256 != record.data[record.dataset]["sha256"]:
        raise InputError(
            f"{data.source}: is not the {record.dataset} that {trained.uri} was trained on; give that file by "
            f"--data {record.dataset}=FILE"
        )
    return data


def own_test_pictures(data: Dataset) -> Pictures:
    """Return the test images of a data set as the study saw them: of a subset, the subset."""
    names = list(data.test.files) or [f"test/{index}" for index in range(len(data.test))]
    return Pictures(data.source, names, data.test.images, {}, data.sha256, "test", as_judged=True)


def is_own_test(trained: Trained, pictures: Pictures) -> bool:
    """Say whether the images are those of the file and split that the study judged the model on."""
    known = trained.record.data.get(trained.record.dataset, {}).get("sha256")
    return pictures.sha256 is not None and pictures.sha256 == known and pictures.split == "test"


def check_own_test(store: Store, folder: str, prediction: Prediction) -> None:
    """Compare predictions of the study's own test images with the recorded ones.

    Raises:
        InputError: they differ by more than ``TOLERANCE``.
    """
    trained, scores = prediction.trained, prediction.scores
    science = trained.record.science["dataset"]
    if science["subset"] is not None and not prediction.pictures.as_judged:  # the file is whole
        whole = load_dataset(
            trained.record.dataset, path=Path(prediction.pictures.source), size=trained.size, task=trained.record.task
        )
        scores = scores[
            stratified_subset(whole.test.labels, science["subset"], seed=SUBSET_SEED, stream=SPLITS.index("test"))
        ]
    check_scores(scores, recorded_scores(store, folder, trained), what="predictions", where=trained.uri)
    Progress("predict").say(f"the study's own test images: {len(scores)} predictions equal to the recorded ones")


def check_scores(scores: NDArray[Any], recorded: Scores, *, what: str, where: str) -> float:
    """Return by how much scores differ from the recorded ones at most.

    Raises:
        InputError: it is more than ``TOLERANCE``.
    """
    if scores.shape != recorded.shape:
        raise InputError(f"{where}: {what} of shape {scores.shape} for recorded ones of {recorded.shape}")
    off = float(np.abs(scores - recorded).max())
    if not off <= TOLERANCE:
        worst = int(np.abs(scores - recorded).max(axis=1).argmax())
        raise InputError(
            f"{where}: {what} differ from the recorded ones by {off:.2g} (image {worst} most), more than "
            f"{TOLERANCE:g}: its weights, or this machine's arithmetic, are not the record's; run the job again with "
            "--overwrite"
        )
    return off


# --- files


def write_predictions(prediction: Prediction, out: Path) -> None:
    """Write predictions as CSV or JSON, by the suffix of ``out``.

    Raises:
        UsageError: another suffix.
    """
    with atomic_write(out) as file:
        file.write(writer_for(out)(prediction).encode())


def writer_for(out: Path) -> Callable[[Prediction], str]:
    """Return what writes predictions into a file of this suffix.

    Raises:
        UsageError: nothing does.
    """
    writers = {".csv": predictions_csv, ".json": predictions_json}
    if out.suffix.lower() not in writers:
        raise UsageError(f"--out {out}: predictions are .csv or .json; give it such a name")
    return writers[out.suffix.lower()]


def predictions_csv(prediction: Prediction) -> str:
    """Return a header and a row for each image: file, a probability for each class, predicted, threshold."""
    rows = io.StringIO()
    write = csv.writer(rows, lineterminator="\n").writerow
    write(["file", *(f"p({name})" for name in prediction.trained.class_names), "predicted", "threshold"])
    threshold = ";".join(f"{value:.6g}" for value in prediction.thresholds) or "likeliest"
    for name, scores, classes in zip(prediction.pictures.names, prediction.scores, prediction.classes(), strict=True):
        write([name, *(f"{score:.6f}" for score in scores), ";".join(classes), threshold])
    return rows.getvalue()


def predictions_json(prediction: Prediction) -> str:
    """Return the model, its thresholds and the predictions as JSON."""
    trained, task = prediction.trained, prediction.trained.record.task
    names = trained.class_names
    if task == metrics.BINARY:
        thresholds = {names[1]: prediction.thresholds[0]}
    else:
        thresholds = dict(zip(names, prediction.thresholds, strict=False))
    several = task == metrics.MULTI_LABEL
    value = {
        "model": trained.uri,
        "identity": trained.record.identity,
        "dataset": trained.record.dataset,
        "synthetic": trained.record.synthetic,
        "task": task,
        "classes": names,
        "thresholds": thresholds,
        "thresholds_chosen_by": prediction.chosen_by,
        "intended_use": "research; not for clinical use",
        "source": prediction.pictures.source,
        "unreadable": prediction.pictures.unreadable,
        "predictions": [
            {
                "file": name,
                "probabilities": {c: round(float(score), 6) for c, score in zip(names, scores, strict=True)},
                "predicted": classes if several else classes[0],
            }
            for name, scores, classes in zip(
                prediction.pictures.names, prediction.scores, prediction.classes(), strict=True
            )
        ],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
