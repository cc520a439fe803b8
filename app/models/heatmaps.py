"""Where on an image a classifier saw what it predicts: Grad-CAM (Selvaraju et al. 2017), by captum."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from app.data.files import atomic_write
from app.errors import missing_extra
from app.models.plain import plain_resnet
from app.models.predict import Prediction
from app.models.trained import Trained
from app.science import metrics
from app.science.networks import normalise, to_float

LAYERS = ("layer4", "layer3", "layer2", "layer1")
SMALLEST = 4  # sides of a map that still says where
BATCH, SIDE, STRENGTH = 64, 224, 0.45


def need_captum() -> None:
    """See that what draws heat maps is installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("captum") is None:
        raise missing_extra("--heatmaps", "captum", "export")


def draw_heatmaps(prediction: Prediction, folder: Path) -> tuple[int, str]:
    """Save a picture for each image: the image, and beside it the same under the map of its predicted class.

    The map is that of the deepest layer whose maps have ``SMALLEST`` pixels a side at least: at 28 px the last map of
    the stock stem is a single pixel, which says nothing of where.

    Returns:
        How many were saved, and the layer.

    Raises:
        UsageError: captum is not installed.
    """
    need_captum()
    from captum.attr import LayerGradCam

    trained = prediction.trained
    pictures = prediction.pictures.in_channels(trained.channels)
    resnet = explained(trained)
    layer = deepest_layer(resnet, trained.size)
    maps = LayerGradCam(resnet, getattr(resnet, layer))
    targets = torch.from_numpy(shown_classes(prediction))
    width = len(str(max(0, len(targets) - 1)))
    for begin in range(0, len(targets), BATCH):
        part = slice(begin, begin + BATCH)
        images = pictures.images[part]
        x = normalise(to_float(torch.tensor(images))).expand(-1, 3, -1, -1).contiguous()
        heat = maps.attribute(x, target=targets[part], relu_attributions=True)
        for index, (image, each) in enumerate(zip(images, heat[:, 0].detach().numpy(), strict=True), begin):
            name = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in pictures.names[index])
            with atomic_write(folder / f"{index:0{width}d}_{name[-80:]}.png") as file:
                _picture(image, each).save(file, "PNG")
    return len(targets), layer


def explained(trained: Trained) -> nn.Module:
    """Return the model as torchvision's ResNet, with a logit for each class that its images can raise.

    Of a binary model the logits 0 and z become -z and z: the constant says nothing of where class 0 is seen.
    """
    resnet = plain_resnet(trained)
    if trained.record.task == metrics.BINARY:
        head = cast(nn.Linear, resnet.fc)
        with torch.no_grad():
            head.weight[0], head.bias[0] = -head.weight[1], -head.bias[1]
    return resnet


def shown_classes(prediction: Prediction) -> NDArray[np.int64]:
    """Return the number of the class that each image's map is of, (N,): the predicted one.

    Of several predicted labels it is the likeliest; where none is predicted, the likeliest of all.
    """
    scores, task = prediction.scores, prediction.trained.record.task
    decided = metrics.decide(scores, task, prediction.thresholds)
    if task != metrics.MULTI_LABEL:
        return decided[:, 0]
    likeliest: NDArray[np.int64] = (scores + decided).argmax(1)  # probabilities are 1 at most: the predicted go first
    return likeliest


def deepest_layer(resnet: nn.Module, size: int) -> str:
    """Return the name of the deepest layer whose maps of images of ``size`` pixels have ``SMALLEST`` a side."""
    sides: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:  # what it returned would go on
            sides[name] = output.shape[-1]

        return hook

    hooks = [getattr(resnet, name).register_forward_hook(note(name)) for name in LAYERS]
    with torch.no_grad():
        resnet(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return next((name for name in LAYERS if sides[name] >= SMALLEST), LAYERS[-1])


def _picture(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> Image.Image:
    """Put an image (H, W) or (H, W, 3) beside itself under a map of any size."""
    scale = max(1, SIDE // len(image))
    side = len(image) * scale
    plain = Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
    level = heat / heat.max() if heat.max() > 0 else heat
    colours = matplotlib.colormaps["inferno"](
        np.asarray(Image.fromarray(level).resize((side, side), Image.Resampling.BILINEAR)).clip(0, 1)
    )
    over = Image.fromarray(np.rint(colours[..., :3] * 255).astype(np.uint8))
    both = Image.new("RGB", (2 * side + 4, side), "white")
    both.paste(plain, (0, 0))
    both.paste(Image.blend(plain, over, STRENGTH), (side + 4, 0))
    return both
