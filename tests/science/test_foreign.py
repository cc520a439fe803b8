"""Weights as other programs save them: found by prefix or order, or refused with what differs."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from app.errors import InputError
from app.jobs.checkpoint import parse_weights
from app.science.foreign import find_resnet


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def prefixed(prefix: str) -> Callable[[nn.Module], Any]:
    return lambda net: {f"{prefix}{key}": value for key, value in net.state_dict().items()}


def without_fc(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}


def sequential(net: nn.Module) -> nn.Module:
    """As lightly's tutorials make a backbone."""
    return nn.Sequential(*list(net.children())[:-1])


def moco(net: nn.Module) -> Any:
    other = torchvision.models.resnet18().state_dict()
    pair = {f"module.encoder_k.{key}": value for key, value in other.items()} | prefixed("module.encoder_q.")(net)
    return {"epoch": 3, "arch": "resnet18", "state_dict": pair, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}


SAVED: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "plain": (lambda net: net.state_dict(), None),
    "without its classifier": (without_fc, None),
    "older than torch 0.4.1": (lambda net: {k: v for k, v in net.state_dict().items() if "batches" not in k}, None),
    "DataParallel": (prefixed("module."), "'module.'"),
    "Lightning": (lambda net: {"state_dict": prefixed("backbone.")(net), "epoch": 1}, "'state_dict.backbone.'"),
    "torch.compile": (prefixed("_orig_mod."), "wrapper"),
    "torch.compile in DDP": (prefixed("module._orig_mod."), "'module.'"),
    "parts compiled": (lambda net: {k.replace("layer2.", "layer2._orig_mod."): v for k, v in net.state_dict().items()},
                       "wrapper"),
    "a name of somebody's own": (prefixed("net.feature_extractor.cnn."), "'net.feature_extractor.cnn.'"),
    "model": (lambda net: {"model": net.state_dict(), "optimizer": {}}, "'model.'"),
    "MoCo": (moco, "'state_dict.module.encoder_q.'"),
    "BYOL with target": (lambda net: prefixed("online_network.")(net) | prefixed("target_network.")(net), "'online_n"),
    "lightly's backbone": (lambda net: sequential(net).state_dict(), "order"),
    "lightly's module": (lambda net: {f"backbone.{k}": v for k, v in sequential(net).state_dict().items()}, "order"),
    "lightly's checkpoint": (
        lambda net: {"state_dict": {f"backbone.{k}": v for k, v in sequential(net).state_dict().items()}
                     | {"projection_head.layers.0.weight": torch.ones(8, 512)}}, "order",
    ),
    "a projector beside it": (lambda net: without_fc(net) | {"projector.0.weight": torch.ones(8, 512)}, "1 tensors"),
    "half precision": (lambda net: {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
                       None),
}  # fmt: skip


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", SAVED)
def test_a_right_network_is_found_however_it_was_saved(resnet, name) -> None:
    make, said = SAVED[name]
    state, _ = parse_weights(saved(make(resnet)), source="file.pth")
    found, note = find_resnet(state, "resnet18", "stock", source="file.pth")
    expected = without_fc(resnet)
    assert {key for key in expected if "batches" not in key} <= found.keys()
    for key, value in expected.items():
        if key in found:
            assert torch.allclose(found[key].to(value.dtype), value, atol=1e-3), key
    if said is None:
        assert note is None
    else:
        assert said in (note or "")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a deeper one": (lambda: torchvision.models.resnet34().state_dict(), "--set network.architecture=resnet34"),
    "a deeper one, wrapped": (lambda: prefixed("module.")(torchvision.models.resnet50()), "architecture=resnet50"),
    "two of them": (
        lambda: prefixed("left.")(torchvision.models.resnet18()) | prefixed("right.")(torchvision.models.resnet18()),
        "holds several resnet18, under 'left.', 'right.'",
    ),
    "another stem": (
        lambda: torchvision.models.resnet18().state_dict() | {"conv1.weight": torch.ones(64, 3, 3, 3)},
        "network.stem=cifar (or middle)",
    ),
    "gray": (
        lambda: torchvision.models.resnet18().state_dict() | {"conv1.weight": torch.ones(64, 1, 7, 7)},
        "'conv1.weight' is 64x1x7x7, where 64x3x7x7 is needed",
    ),
    "one missing": (
        lambda: {k: v for k, v in torchvision.models.resnet18().state_dict().items() if k != "layer3.0.bn1.weight"},
        "'layer3.0.bn1.weight' is missing",
    ),
    "one too many": (
        lambda: torchvision.models.resnet18().state_dict() | {"layer4.2.conv1.weight": torch.ones(1)},
        "'layer4.2.conv1.weight' is unknown",
    ),
    "a vision transformer": (
        lambda: {"cls_token": torch.ones(1), "pos_embed": torch.ones(1), "blocks.0.norm1.weight": torch.ones(1)},
        "its names are others ('cls_token', 'pos_embed', 'blocks.0.norm1.weight', 3 in all)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_one_is_refused_with_what_differs(name) -> None:
    make, said = REFUSED[name]
    state, _ = parse_weights(saved(make()), source="file.pth")
    with pytest.raises(InputError) as caught:
        find_resnet(state, "resnet18", "stock", source="file.pth")
    text = str(caught.value)
    assert said in text
    assert text.startswith("file.pth: ")
    assert "\n" not in text


def test_the_advice_works() -> None:
    state = torchvision.models.resnet34().state_dict()
    assert find_resnet(state, "resnet34", "stock", source="x")[1] is None


def test_other_objects_in_the_file_are_named() -> None:
    for value in ({"args": argparse.Namespace(lr=1), "state_dict": {}}, torchvision.models.resnet18()):
        with pytest.raises(InputError, match=r"never loaded \(.*save model\.state_dict\(\) alone") as caught:
            parse_weights(saved(value), source="file.pth")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_file_that_holds_itself() -> None:
    tree: dict[str, Any] = {"a": {"b": 1}}
    tree["self"] = tree
    with pytest.raises(InputError, match="holds no plain state dict"):
        parse_weights(saved(tree), source="file.pth")
