import functools

import pytest
import torch
import torchvision
from torch import nn

from app.errors import InputError, UsageError
from app.science.convolutions import Convolution
from app.science.networks import ARCHITECTURES, Classifier, Encoder, mlp, normalise, to_float


@functools.cache
def encoder(stem="stock"):
    torch.manual_seed(0)
    return Encoder("resnet18", stem).eval()


@pytest.mark.parametrize("stem", ["stock", "middle", "cifar"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_convolution_but_the_first_is_ours(architecture, stem):
    """It chooses the way by the map's size; the first one sees whole images."""
    with torch.device("meta"):
        made = Encoder(architecture, stem)
    others = {name for name, module in made.named_modules() if type(module) is nn.Conv2d}
    assert others <= {"resnet.conv1"}
    assert sum(type(module) is Convolution for module in made.modules()) >= 19


def test_maps_of_a_gray_image_are_channels_last_throughout():
    """A tensor in the other order makes every operation after it many times slower, and nothing else tells."""
    orders = {}

    def look(name, out):
        orders[name] = out.is_contiguous(memory_format=torch.channels_last)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, out, name=name: look(name, out))
        for name, module in encoder().resnet.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.MaxPool2d)
    ]
    with torch.no_grad():
        encoder()(torch.rand(2, 1, 28, 28))
    for handle in handles:
        handle.remove()
    assert len(orders) == 21
    assert all(orders.values()), orders


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_can_be_built(architecture):
    with torch.device("meta"):
        made = Encoder(architecture, "middle")
    assert made.features == (512 if architecture in ("resnet18", "resnet34") else 2048)


@pytest.mark.parametrize("pixels", [28, 64])
def test_stock_encoder_is_torchvisions_resnet(pixels):
    reference = torchvision.models.resnet18(weights=None)
    reference.fc = nn.Identity()
    reference.load_state_dict(encoder().plain_state())
    x = torch.rand(3, 3, pixels, pixels) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(encoder()(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "pixels", "side"),
    [("stock", 28, 1), ("middle", 28, 2), ("cifar", 28, 4), ("stock", 64, 2), ("middle", 64, 4)],
)
def test_side_of_the_last_map(stem, pixels, side):
    seen = []
    handle = encoder(stem).resnet.layer4.register_forward_hook(lambda *_: seen.append(_[2].shape))
    with torch.no_grad():
        features = encoder(stem)(torch.zeros(1, 1, pixels, pixels))
    handle.remove()
    assert seen == [(1, 512, side, side)]
    assert features.shape == (1, 512)


def test_a_gray_image_counts_as_three_equal_channels():
    torch.manual_seed(0)
    net = Encoder("resnet18", "stock").double()
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64) * 2 - 1
    gray, rgb = net(x), net(x.expand(4, 3, 28, 28))
    torch.testing.assert_close(gray, rgb, rtol=1e-9, atol=1e-9)
    weight = net.resnet.conv1.weight
    of_gray, of_rgb = (torch.autograd.grad(out.square().sum(), weight)[0] for out in (gray, rgb))
    torch.testing.assert_close(of_gray, of_rgb, rtol=1e-6, atol=1e-9)


def test_plain_state_round_trip_ignores_the_classifier_and_copies():
    torch.manual_seed(1)
    other = Encoder("resnet18")
    other.load_plain_state(encoder().plain_state() | {"fc.weight": torch.zeros(9, 512)}, source="x")
    for name, value in other.plain_state().items():
        assert torch.equal(value, encoder().plain_state()[name])
        assert value.data_ptr() != encoder().plain_state()[name].data_ptr()


def test_weights_without_batch_counters_load_as_torchvisions_older_files_lack_them():
    state = {k: v for k, v in encoder().plain_state().items() if not k.endswith("num_batches_tracked")}
    other = Encoder("resnet18")
    other.load_plain_state(state, source="resnet18.pth")
    assert torch.equal(other.resnet.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def broken(state, kind):
    if kind == "missing":
        state.pop("layer1.0.conv1.weight")
    elif kind == "unknown":
        state["extra.weight"] = torch.zeros(1)
    elif kind == "prefixed":
        return {f"module.{k}": v for k, v in state.items()}
    elif kind == "counterless and missing":
        return {k: v for k, v in state.items() if "num_batches" not in k and k != "bn1.weight"}
    return state


@pytest.mark.parametrize("kind", ["missing", "unknown", "prefixed", "counterless and missing"])
def test_another_state_dict_is_rejected_and_nothing_is_loaded(kind):
    torch.manual_seed(2)
    other = Encoder("resnet18")
    before = other.resnet.conv1.weight.clone()
    with pytest.raises(InputError, match=r"^w\.pth: not a resnet18 with the stock stem") as caught:
        other.load_plain_state(broken(encoder().plain_state(), kind), source="w.pth")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 66
    assert torch.equal(other.resnet.conv1.weight, before)


def test_weights_of_another_stem_or_depth_are_rejected_by_name():
    with pytest.raises(InputError, match=r"stock stem \(conv1.weight differs, 1 in all\).*network.stem"):
        Encoder("resnet18").load_plain_state(encoder("middle").plain_state(), source="w")
    with torch.device("meta"):
        deeper = Encoder("resnet34").plain_state()
    with pytest.raises(InputError, match="not a resnet18"):
        Encoder("resnet18").load_plain_state(deeper, source="w")


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match=r"network\.architecture: unknown 'vgg16'"):
        Encoder("vgg16")
    with pytest.raises(UsageError, match=r"network\.stem: unknown 'big'"):
        Encoder("resnet18", "big")


def test_classifier_is_a_torchvision_resnet_whose_fc_is_the_head():
    torch.manual_seed(3)
    classifier = Classifier(Encoder("resnet18"), 5).eval()
    reference = torchvision.models.resnet18(weights=None, num_classes=5)
    reference.load_state_dict(classifier.plain_state())
    x = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


def test_heads_are_linear_batchnorm_relu_linear():
    head = mlp(7, 11, 3)
    kinds = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear)
    assert len(head) == len(kinds)
    assert all(isinstance(layer, kind) for layer, kind in zip(head, kinds, strict=True))
    assert head[0].weight.shape == (11, 7)
    assert head[0].bias is None
    assert head[3].weight.shape == (3, 11)
    assert head[3].bias is not None


def test_normalisation_maps_0_half_1_to_minus_1_0_1():
    assert normalise(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]


def test_to_float_of_gray_and_rgb():
    gray = to_float(torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8))
    assert gray.shape == (1, 1, 2, 2)
    torch.testing.assert_close(gray, torch.tensor([[[[0.0, 1.0], [0.2, 0.4]]]]))
    rgb = torch.arange(24, dtype=torch.uint8).reshape(2, 2, 2, 3)
    made = to_float(rgb)
    assert made.shape == (2, 3, 2, 2)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made[1, 2, 0, 1] * 255, torch.tensor(17.0))  # pixel (0, 1) of image 1, blue
