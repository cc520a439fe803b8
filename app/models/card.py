"""The card of an exported model, in Hugging Face's form: what it is, what it was judged by, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import app
from app.data import Dataset
from app.jobs import keys
from app.jobs.records import DownstreamRecord
from app.models.trained import Trained
from app.report.names import method_name, protocol_name
from app.report.table import escape
from app.science import metrics
from app.science.bootstrap import bootstrap_means
from app.science.statistics import Interval, delong_interval, percentile_interval, weighted_auroc
from app.science.thresholds import RULE

USE = "Research software; not for clinical use."
HUB_NAMES = {"auroc": "roc_auc"}
LICENCES = {"CC BY 4.0": "cc-by-4.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}


def model_card(
    trained: Trained,
    data: Dataset,
    scores: NDArray[np.float64],
    *,
    opset: int,
    off: float,
    pretraining: Mapping[str, str] | None = None,
) -> str:
    """Return the card as Markdown with a YAML header.

    Args:
        trained: the model.
        data: what it was judged on.
        scores: its recorded probabilities of the test images, (N, C).
        opset: of the ONNX graph.
        off: by how much onnxruntime's probabilities differ from the recorded ones at most.
        pretraining: what the file of the pretrained encoder says of itself; None if there is none.
    """
    record = trained.record
    area = auroc_interval(data, scores, record.task)
    own = metrics.evaluate(data.test.labels, scores, record.task)  # of several draws the record has their mean
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_header(record, data, own), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            f"# {_title(record, data)}",
            "",
            f"**{USE}**" + (" **Trained on SYNTHETIC images: its figures say nothing of medicine.**" * data.synthetic),
            "",
            *_model(trained, data, opset, off),
            *_training(record, data, pretraining or {}),
            *_judged(record.task, data, own, area),
            *_thresholds(trained, data, scores),
            *_limits(record, data),
        ]
    )


def auroc_interval(data: Dataset, scores: NDArray[np.float64], task: str) -> Interval:
    """AUROC over the test images with its 95 % interval: DeLong's if binary, else the bootstrap's.

    Where patients are known and have several images, they are what is drawn.
    """
    labels, patients = data.test.labels, data.test.patient_numbers
    if task == metrics.BINARY:
        return delong_interval(labels, scores, patients=patients)
    drawn = bootstrap_means(weighted_auroc, labels, [[scores]], patients=patients)[0]
    return percentile_interval(metrics.auroc(labels, scores, task), drawn, len(labels))


def at_threshold(labels: NDArray[np.int64], scores: NDArray[np.float64], threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of one label's scores, (N,), above a threshold; NaN where a class is absent."""
    known = labels >= 0
    labels, said = labels[known], scores[known] > threshold
    return (
        float(said[labels == 1].mean()) if (labels == 1).any() else float("nan"),
        float((~said[labels == 0]).mean()) if (labels == 0).any() else float("nan"),
    )


def _title(record: DownstreamRecord, data: Dataset) -> str:
    return f"{_text(data.title)}: {method_name(record.method)}, {protocol_name(record.protocol)}, seed {record.seed}"


def _header(record: DownstreamRecord, data: Dataset, own: dict[str, float]) -> dict[str, Any]:
    named = {HUB_NAMES.get(name, name): value for name, value in own.items() if np.isfinite(value)}
    return {
        "license": LICENCES.get(data.licence, "other"),
        **({} if data.licence in LICENCES else {"license_name": data.licence}),
        "library_name": "torchvision",
        "pipeline_tag": "image-classification",
        "tags": ["medical-imaging", "self-supervised-learning", "byol", "onnx", "not-for-clinical-use"],
        "datasets": [record.dataset],
        "metrics": list(named),
        "model-index": [
            {
                "name": record.key,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": data.title, "type": record.dataset, "split": "test"},
                        "metrics": [{"type": name, "value": round(value, 4)} for name, value in named.items()],
                    }
                ],
            }
        ],
    }


def _model(trained: Trained, data: Dataset, opset: int, off: float) -> list[str]:
    encoder, names = trained.classifier.encoder, trained.class_names
    shape = f"(batch, {trained.size}, {trained.size}{', 3' if data.channels == 3 else ''})"
    load = [f"resnet = torchvision.models.{encoder.architecture}(num_classes={len(names)})"]
    if encoder.stem != "stock":
        load.append("resnet.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)")
    if encoder.stem == "cifar":
        load.append("resnet.maxpool = torch.nn.Identity()")
    last = "torch.sigmoid(logits)" if trained.record.task == metrics.MULTI_LABEL else "torch.softmax(logits, 1)"
    return [
        "## Use",
        "",
        f"`model.onnx` (opset {opset}, any batch size) takes `images`, uint8 {shape}, 0 to 255, and returns "
        f"`probabilities`, float32 (batch, {len(names)}); rescaling and normalisation are inside. On the recorded test "
        f"images onnxruntime's probabilities differ from the recorded ones by {off:.1g} at most.",
        "",
        "```python",
        "import numpy as np, onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx")',
        f"images = np.zeros({(1, trained.size, trained.size, 3)[: 3 if data.channels == 1 else 4]}, np.uint8)",
        '[probabilities] = session.run(None, {"images": images})',
        "```",
        "",
        f"`{keys.MODEL}` is a plain torchvision state dict; `preprocessor_config.json` has the preprocessing:",
        "",
        "```python",
        "import torch, torchvision",
        "from safetensors.torch import load_file",
        "",
        *load,
        f'resnet.load_state_dict(load_file("{keys.MODEL}"))  # strict',
        f"x = torch.zeros(1, 3, {trained.size}, {trained.size})  # 0 to 255; a gray image is three equal channels",
        "logits = resnet.eval()(x / 127.5 - 1)",
        f"probabilities = {last}",
        "```",
        "",
        "Classes, in the order of the outputs: "
        + ", ".join(f"{i} {_text(name)}" for i, name in enumerate(names))
        + ".",
        "",
        *_squares(data, trained.size),
    ]


def _squares(data: Dataset, size: int) -> list[str]:
    """Say how images that are not square become so: no image processor does it."""
    ways = {"pad": "padded with black on both sides", "crop": "cut to the square in their middle"}
    fit = data.origin.fit if data.origin else None
    if fit not in ways:
        return []
    return [
        f"Images that are not square have to be {ways[fit]} first, as those that it was trained on were, and then "
        f"resized to {size} px by an antialiased bicubic filter (`fit` in `preprocessor_config.json`).",
        "",
    ]


def _text(words: str) -> str:
    """Words of somebody else, such as the name of a class, as text in Markdown, in one line."""
    return escape(" ".join(words.split()))


def _training(record: DownstreamRecord, data: Dataset, pretraining: Mapping[str, str]) -> list[str]:
    recipe = record.config.get("protocols", {}).get(record.protocol, {})
    images = _text(str(pretraining.get("pretraining_data", record.config.get("data", {}).get("pretrain"))))
    licence = _text(pretraining.get("licence", "not stated"))
    start = {
        "random": "random weights",
        "imagenet": "ImageNet weights",
    }.get(
        record.init,
        f"an encoder pretrained by {method_name(record.method)} on unlabelled images: {images}; licence: {licence}",
    )
    non_commercial = "NC" in data.licence or "NC" in licence
    if record.init.startswith("ckpt-"):
        start = f"the weights of a file whose SHA-256 begins with {record.init.removeprefix('ckpt-')}"
    counts = ", ".join(f"{name} {len(split)}" for name, split in data.splits.items())
    return [
        "## Data and training",
        "",
        f"- Data: {_text(data.title)} ({data.modality}), {data.size} px, {counts} images; licence: {data.licence}; "
        f"SHA-256 `{data.sha256}`.",
        *([f"- Imported: {_text(data.origin.say())}."] if data.origin else []),
        f"- Start: {start}.",
        *(["- NC: the limit to non-commercial use is inherited from the images."] if non_commercial else []),
        f"- Protocol: {protocol_name(record.protocol)}: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recipe.items())
        + f"; the best epoch by validation AUROC was {record.best_epoch}.",
        *([f"- Of {len(record.draws)} few-shot draws it is number {record.chosen_draw}, the one that validates best."]
          if record.draws else []),
        f"- Run `{record.run_id}`, job `{record.key}`, identity `{record.identity}`, commit "
        f"{record.environment.get('git_commit')}, {record.finished}; byol-med {app.__version__}.",
        "",
    ]  # fmt: skip


def _judged(task: str, data: Dataset, own: dict[str, float], area: Interval) -> list[str]:
    interval = f" ({area.low:.3f} to {area.high:.3f})" if area.known else ""
    by = "DeLong" if task == metrics.BINARY else "percentile bootstrap over images"
    return [
        "## Metrics",
        "",
        f"On the {len(data.test)} test images, which this model read once; 95 % interval over test images ({by}):",
        "",
        "| metric | value |",
        "| :-- | --: |",
        f"| AUROC | {area.mean:.3f}{interval} |",
        *(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in own.items() if name != "auroc"),
        "",
        "Labels are decided here by the likeliest class (multi-label: over 0.5). One seed is one model: other seeds of "
        "the same recipe differ, which the study's report shows.",
        "",
    ]


def _thresholds(trained: Trained, data: Dataset, scores: NDArray[np.float64]) -> list[str]:
    record, names = trained.record, trained.class_names
    if not record.thresholds:
        why = "None: the likeliest class wins." if record.thresholds is not None else "None was chosen."
        return ["## Thresholds", "", why, ""]
    binary = record.task == metrics.BINARY
    columns = [(names[1], scores[:, 1], data.test.labels[:, 0])] if binary else [
        (name, scores[:, index], data.test.labels[:, index]) for index, name in enumerate(names)
    ]  # fmt: skip
    rows = []
    for (name, score, labels), threshold in zip(columns, record.thresholds, strict=True):
        sensitivity, specificity = at_threshold(labels, score, threshold)
        rows.append(f"| {_text(name)} | {threshold:.4g} | {sensitivity:.3f} | {specificity:.3f} |")
    return [
        "## Thresholds",
        "",
        f"A probability above its threshold is a yes. Chosen by {RULE}; another use needs another choice.",
        "",
        "| class | threshold | sensitivity (test) | specificity (test) |",
        "| :-- | --: | --: | --: |",
        *rows,
        "",
    ]


def _limits(record: DownstreamRecord, data: Dataset) -> list[str]:
    return [
        "## Intended use and limits",
        "",
        f"- {USE} No regulator has seen it; no patient's care may depend on it.",
        f"- It knows images like those of {_text(data.title)}: another scanner, hospital, population or projection may "
        "break it, and it says nothing of that. Judge it on your own labelled images first.",
        f"- Images are {data.size} px: findings that this hides cannot be seen.",
        "- Probabilities are not calibrated. Of images of something else it still names one of its classes.",
        "",
    ]
