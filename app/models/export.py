"""A trained classifier as files that need none of this package: ONNX, safetensors, preprocessing, a model card."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.data import Dataset
from app.data.files import atomic_write
from app.errors import missing_extra
from app.jobs import keys
from app.jobs.checkpoint import dump_weights
from app.models.card import model_card
from app.models.plain import Deployed, plain_state
from app.models.predict import check_scores, recorded_scores
from app.models.trained import Trained, load_encoder
from app.science import metrics
from app.storage import Store

OPSET = 18
FILES = ONNX, WEIGHTS, PREPROCESSING, CONFIG, CARD = (
    "model.onnx", keys.MODEL, "preprocessor_config.json", "config.json", "README.md",
)  # fmt: skip
BATCH = 64


def export(store: Store, folder: str, trained: Trained, data: Dataset, out: Path) -> float:
    """Write a model to ``out``, unless its ONNX form differs from the record on the study's test images.

    Args:
        store: of the study.
        folder: of the job.
        trained: its model.
        data: the data set that it was judged on, as the study saw it.
        out: the folder.

    Returns:
        By how much a probability of onnxruntime differs from the recorded one at most.

    Raises:
        UsageError: onnx, onnxscript or onnxruntime is not installed.
        InputError: predictions differ by more than 1e-4; nothing is written.
    """
    channels = data.channels
    graph = to_onnx(trained, channels)
    recorded = recorded_scores(store, folder, trained)
    off = check_scores(run_onnx(graph, data.test.images), recorded, what="ONNX's predictions", where=trained.uri)
    state = plain_state(trained)
    metadata = trained.metadata | {
        "outputs": "one logit for each class or label",
        "thresholds": json.dumps(list(trained.record.thresholds or ())),
    }
    contents = {
        ONNX: graph,
        WEIGHTS: dump_weights(state, metadata),
        PREPROCESSING: _json(preprocessing(trained, data)),
        CONFIG: _json(configuration(trained, channels)),
        CARD: model_card(
            trained, data, recorded, opset=OPSET, off=off, pretraining=about_pretraining(store, trained)
        ).encode(),
    }
    for name, content in contents.items():
        with atomic_write(out / name) as file:
            file.write(content)
    return off


def about_pretraining(store: Store, trained: Trained) -> dict[str, str] | None:
    """Return what the file of the encoder that a model began with says of itself; None if this run has no such one."""
    record = trained.record
    folder = keys.pretraining(record.run_id, record.init)
    if keys.Pretraining.parse(record.init) is None or not store.exists(keys.record(folder)):
        return None
    return load_encoder(store, folder)[1]


def need_onnx() -> None:
    """See that what writes and runs ONNX is installed.

    Raises:
        UsageError: it is not.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise missing_extra("export", library, "export")


def to_onnx(trained: Trained, channels: int) -> bytes:
    """Return an ONNX graph from uint8 ``images`` to float32 ``probabilities``, for batches of any size.

    Args:
        trained: the model.
        channels: of the images, 1 for (N, H, W) or 3 for (N, H, W, 3).

    Raises:
        UsageError: a library is not installed.
    """
    need_onnx()
    shape = (2, trained.size, trained.size, 3)[: 3 if channels == 1 else 4]
    with _quiet():
        program = torch.onnx.export(
            Deployed(trained).eval(),
            (torch.zeros(shape, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None, "the exporter returns a program"
        program.model.metadata_props.update(_about(trained))
        graph: bytes = program.model_proto.SerializeToString()
    return graph


def run_onnx(graph: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities, (N, C), that onnxruntime computes on the CPU.

    Raises:
        UsageError: onnxruntime is not installed.
    """
    need_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    parts = [
        session.run(None, {"images": np.ascontiguousarray(images[begin : begin + BATCH])})[0]
        for begin in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def preprocessing(trained: Trained, data: Dataset) -> dict[str, Any]:
    """Return what images need before the network, as Hugging Face's image processors name it.

    The ONNX graph does it itself, but for the resizing. ``fit`` is a word of our own, for images that were imported:
    they were made square by padding or cropping before they were resized, for which no such processor has a name.
    """
    fit = data.origin.fit if data.origin else None
    side = {"height": trained.size, "width": trained.size}
    return {
        "image_processor_type": "ViTImageProcessor",  # the plainest of them: resize, rescale, normalise
        **({"fit": fit} if fit else {}),
        "do_resize": True,
        "size": side,
        "resample": 3,  # Pillow's bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "trained_on_channels": data.channels,
    }


def configuration(trained: Trained, channels: int) -> dict[str, Any]:
    """Return what the network is, its classes and its thresholds."""
    record, names = trained.record, trained.class_names
    encoder = trained.classifier.encoder
    return {
        "architecture": encoder.architecture,
        "stem": encoder.stem,
        "num_classes": len(names),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": (
            "multi_label_classification" if record.task == metrics.MULTI_LABEL else "single_label_classification"
        ),
        "task": record.task,
        "thresholds": list(record.thresholds or ()),
        "image_size": trained.size,
        "onnx": {
            "opset": OPSET,
            "input": f"images: uint8, (batch, {trained.size}, {trained.size}{', 3' if channels == 3 else ''})",
            "output": f"probabilities: float32, (batch, {len(names)})",
        },
    }


def _about(trained: Trained) -> dict[str, str]:
    record = trained.record
    return {
        "classes": json.dumps(trained.class_names),
        "thresholds": json.dumps(list(record.thresholds or ())),
        "task": record.task,
        "dataset": record.dataset,
        "identity": record.identity,
        "intended_use": "research; not for clinical use",
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's advice to its own developers from the terminal."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
