"""The choice by measurement: what may be chosen, what is never chosen, and that it is right whatever is chosen."""

import dataclasses
import functools
import itertools

import pytest
import torch

from app.science import convolutions, kernels
from app.science.convolutions import (
    FEW,
    LIBRARY,
    ONEDNN,
    ROWS,
    TAPS,
    Convolution,
    Linear,
    Shape,
    Ways,
    backward,
    can_take,
    convolve,
    forward,
    table_of,
    use,
)
from app.science.kernels import fastest, measured_table, plain_table, shapes_of, sound_ways, ways_of
from app.science.networks import Encoder, mlp


def shape(size, precision="float32", kernel=3, stride=1):
    return Shape(kernel, stride, 8, 8, size, size, precision)


def test_every_shape_of_a_network_once():
    torch.manual_seed(0)
    network = torch.nn.Sequential(Encoder("resnet18"), mlp(512, 32, 16))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    found = shapes_of(network, torch.zeros(2, 1, 28, 28), "float32")
    assert len(found) == len(set(found)) == 7 + 3 + 2, "3x3 kernels, shortcuts and linear layers"
    assert found[0] == Shape(3, 1, 64, 64, 7, 7, "float32")
    assert found[-1] == Shape(1, 1, 32, 16, 1, 1, "float32", linear=True)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("architecture", ["resnet50", "resnext50_32x4d"])
def test_bottlenecks_and_groups(architecture):
    found = shapes_of(Encoder(architecture), torch.zeros(2, 1, 28, 28), "bfloat16")
    assert any((s.kernel, s.stride) == (1, 1) for s in found)
    assert any(s.kernel == 3 for s in found) == (architecture == "resnet50"), "those with groups have no choice"


def test_plain_is_the_library_wherever_it_is_right():
    table = plain_table(shapes_of(Encoder("resnet18"), torch.zeros(2, 1, 28, 28), "bfloat16"))
    apart = {key for key, ways in table.items() if ways != Ways(LIBRARY, LIBRARY, LIBRARY)}
    assert apart == {"3x3/1 512-512 1x1 bfloat16"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_plain_layers_never_come_to_our_own_convolution(precision, monkeypatch):
    """Linear layers neither: one with a 1x1 kernel of the same channels beside it, on maps of one pixel."""

    def ours(*_):
        raise AssertionError("not torch's own way")

    network = torch.nn.Sequential(
        Convolution(4, 8, 3, padding=1, bias=False),
        torch.nn.MaxPool2d(4),
        *([] if precision == "bfloat16" else [Convolution(8, 8, 1, bias=False)]),  # there the library is wrong
        torch.nn.Flatten(),
        mlp(8, 8, 8),
    )
    x = torch.randn(2, 4, 4, 4)
    use(network, plain_table(shapes_of(network, x, precision)))
    monkeypatch.setattr(convolutions, "convolve", ours)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        network(x)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_all_that_may_be_chosen_can_be_done(size, kernel, stride, precision):
    """The way runs, and in float32 it is right; in bfloat16 that is for the measurement to find out."""
    one = shape(size, precision, kernel, stride)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    x, weight = torch.randn(4, 8, size, size), torch.randn(8, 8, kernel, kernel)
    right = forward(x, weight, stride, LIBRARY)
    gradients = backward(right, x, weight, stride, Ways(LIBRARY, LIBRARY, LIBRARY))
    tensors = right.to(dtype), x.to(dtype), weight.to(dtype)
    passes = [("forward", right, lambda way: forward(*tensors[1:], stride, way))]
    passes += [
        (which, expected, lambda way, at=at: backward(*tensors, stride, Ways(way, way, way), (at == 0, at == 1))[at])
        for at, (which, expected) in enumerate(zip(("input", "weight"), gradients, strict=True))
    ]
    for which, expected, do in passes:
        for way in ways_of(one, which):
            error = float((do(way).float() - expected).abs().max() / expected.abs().max())
            assert error < (1e-5 if precision == "float32" else 0.2), (which, way)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 17])
def test_what_a_pass_can_take_is_right_and_all_else_is_an_error(size, kernel, stride):
    """Whatever pays: a table may come from another version. Nothing falls through to another result."""
    one, x = shape(size, "float32", kernel, stride), torch.randn(4, 8, size, size, requires_grad=True)
    weight = torch.randn(8, 8, kernel, kernel, requires_grad=True)
    right = convolve(x, weight, stride, Ways(LIBRARY, LIBRARY, LIBRARY))
    expected = dict(
        zip(Ways.__annotations__, (right, *torch.autograd.grad(right.square().sum(), (x, weight))), strict=True)
    )
    for which, way in itertools.product(
        expected, [way + by for way in (LIBRARY, FEW, ROWS, TAPS) for by in ("", ONEDNN)]
    ):
        ways = dataclasses.replace(Ways(LIBRARY, LIBRARY, LIBRARY), **{which: way})
        names = {str(one): list(dataclasses.astuple(ways))}
        if can_take(one, which, way):
            assert table_of(names) == {str(one): ways}
            out = convolve(x, weight, stride, ways)
            found = dict(zip(expected, (out, *torch.autograd.grad(out.square().sum(), (x, weight))), strict=True))
            assert (found[which] - expected[which]).norm() < 1e-5 * expected[which].norm(), (which, way)
        else:
            with pytest.raises(ValueError, match=f"{way} is no way of its pass {which}"):
                table_of(names)
            if ONEDNN not in way:
                with pytest.raises(ValueError, match=r"no ways? of this convolution's"):
                    convolve(x, weight, stride, ways).sum().backward()


@pytest.mark.parametrize(
    "one", [shape(7), Shape(3, 2, 64, 128, 7, 5, "bfloat16"), Linear(5, 6).shape_of(torch.ones(1, 5))]
)
def test_a_shape_is_known_by_its_name(one):
    assert Shape.of(str(one)) == one


@pytest.mark.parametrize("name", ["", "3x3/1", "3x2/1 4-4 4x4 float32", "3x3/1 4-4 4x4 float32 ", "linear 4 float32"])
def test_no_other_name_is_a_shape(name):
    with pytest.raises(ValueError, match="no shape of a convolution"):
        table_of({name: ["few", "few", "few"]})


def test_onednn_beside_torchs_own_product_in_float32_alone():
    assert ROWS + ONEDNN in ways_of(shape(2), "forward")
    assert FEW + ONEDNN not in ways_of(shape(7), "forward")
    assert not [way for way in ways_of(shape(2, "bfloat16"), "forward") if ONEDNN in way]
    assert ROWS not in ways_of(shape(2), "weight")
    assert TAPS not in ways_of(shape(2), "forward")
    assert LIBRARY not in ways_of(shape(1, "bfloat16"), "forward")


RIGHT = torch.arange(6.0)


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(kernels, "time", made)
    return made


def slow(clock):
    clock.now += 1.0
    return RIGHT.clone()


def slower(clock):
    clock.now += 1.2
    return RIGHT.clone()


def wrong(clock):
    return RIGHT + 1e-3


def broken(clock):
    return RIGHT / 0


def impossible(clock):
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize(
    ("ways", "usual", "expected"),
    [
        ({"a": slow, "b": slower}, "b", "a"),
        ({"a": slow, "b": slow}, "b", "b"),  # no gain that is worth it
        ({"a": wrong, "b": slow}, "b", "b"),
        ({"a": broken, "b": slow}, "b", "b"),
        ({"a": impossible, "b": slow}, "b", "b"),
        ({"a": slow, "b": wrong}, "b", "a"),  # the usual way is wrong here
        ({"a": slow}, "b", "a"),  # or cannot be taken
        ({"a": wrong}, "b", "b"),  # nothing can be trusted: as if nothing had been measured
    ],
)
def test_the_fastest_that_is_right(ways, usual, expected, clock):
    ways = {name: functools.partial(do, clock) for name, do in ways.items()}
    assert fastest(sound_ways(ways, right=RIGHT, rounding=1e-5), usual=usual) == expected


@pytest.mark.parametrize("words", ["DefaultCPUAllocator: can't allocate memory", "could not create a memory object"])
def test_a_want_of_memory_is_not_taken_for_a_wrong_way(words):
    """Or it would decide for all jobs to come."""

    def hungry():
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words):
        sound_ways({"a": hungry, "b": RIGHT.clone}, right=RIGHT, rounding=1e-5)


def test_memory_that_nobody_wrote_is_not_right():
    """Whatever lay there before."""
    right = torch.zeros(1 << 16)

    def unwritten():
        out = torch.empty(1 << 16)
        out[::2] = 0
        return out

    assert list(sound_ways({"a": unwritten, "b": right.clone}, right=right, rounding=1e-5)) == ["b"]


@pytest.mark.parametrize(("together", "expected"), [(2.0, Ways(LIBRARY, LIBRARY, LIBRARY)), (4.0, Ways(FEW, FEW, FEW))])
def test_three_fast_passes_need_not_make_a_fast_whole(together, expected, clock, monkeypatch):
    """Each pass alone is fastest by the library; what the three cost together is ``together`` against 3."""

    def one(x, weight, stride, way):
        clock.now += 0.0 if way == LIBRARY else 1.0
        return forward(x, weight, stride, way)

    def others(gradient, x, weight, stride, ways, wanted=(True, True)):
        if all(wanted):
            clock.now += together if ways.input == LIBRARY else 2.0
        else:
            clock.now += 0.1 if ways.input == LIBRARY else 1.0
        return backward(gradient, x, weight, stride, ways, wanted)

    monkeypatch.setattr(kernels, "forward", one)
    monkeypatch.setattr(kernels, "backward", others)
    assert kernels.measured_ways(shape(4), 2) == expected


def smoothed(network):
    """Put softplus in place of each ReLU: a unit within rounding of a kink goes one way or the other by chance."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())
    return network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_measured_network_computes_what_a_plain_one_does(precision, monkeypatch):
    """To what the rule lets each layer be off by, added up over the layers, whichever ways are the fastest."""
    monkeypatch.setattr(kernels, "ROUNDS", (1, 1))
    torch.manual_seed(0)
    network, x = smoothed(Encoder("resnet18").train()), torch.rand(16, 1, 28, 28)
    layers = sum(isinstance(module, Convolution) for module in network.modules())
    shapes = shapes_of(network, x[:2], precision)
    found = {}
    for name, table in (("plain", plain_table(shapes)), ("measured", measured_table(shapes, 16))):
        use(network, table)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            features = network(x)
        features.float().square().sum().backward()
        found[name] = [features.detach().float(), *[p.grad.clone() for p in network.parameters()]]
    for mine, other in zip(found["measured"], found["plain"], strict=True):
        assert float((mine - other).norm() / other.norm()) < layers * kernels.ROUNDING[precision]
