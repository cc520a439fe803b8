import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.science import convolutions
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
    convolve,
    default_ways,
    plain_ways,
    use,
)
from app.science.filters import axis_matrices, toom_cook

SIZES = [(1, 1), (2, 2), (1, 2), (2, 1), (2, 3), (3, 3), (4, 4), (7, 5), (7, 7), (8, 8), (14, 16)]
STRIDES = [1, 2]


def with_gradients(convolve, x, weight):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(x, weight)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (x, weight), factors)


def drawn(size, kernel, dtype=torch.float64, channels=(5, 4), count=3):
    made = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels[0], *size, generator=made, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], kernel, kernel, generator=made, dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), weight.to(dtype)


WAYS = [
    Ways(FEW, FEW, FEW),
    Ways(ROWS, ROWS, TAPS),
    Ways(LIBRARY, FEW, TAPS),
    Ways(FEW, LIBRARY, FEW),
    Ways(ROWS, FEW, LIBRARY),
]
BY_ONEDNN = [Ways(FEW + ONEDNN, FEW + ONEDNN, FEW + ONEDNN), Ways(ROWS + ONEDNN, ROWS + ONEDNN, TAPS + ONEDNN)]


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_every_way_is_the_convolution_with_all_gradients(size, stride, kernel, ways):
    x, weight = drawn(size, kernel)
    ours = with_gradients(lambda x, w: convolve(x, w, stride, ways), x, weight)
    theirs = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2), x, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "kernel"), [(size, 1) for size in SIZES] + [((1, 1), 3)])
@pytest.mark.parametrize("stride", STRIDES)
def test_a_single_tap_is_a_linear_layer(size, kernel, stride):
    x, weight = drawn(size, kernel)
    ours = with_gradients(lambda x, w: convolve(x, w, stride, Ways(TAPS, TAPS, TAPS)), x, weight)
    theirs = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2), x, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (16, 16)])
def test_in_float32_outputs_and_gradients_are_right_to_a_few_roundings(size, stride):
    """Against float64: within 4e-6 of the largest value, where the ordinary convolution is within 4e-6 too."""
    x, weight = drawn(size, 3, channels=(64, 48), count=32)
    exact = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, 1), x, weight)
    x, weight = x.float(), weight.float()
    for ways in [Ways(LIBRARY, LIBRARY, LIBRARY), *WAYS, *BY_ONEDNN]:
        found = with_gradients(lambda x, w, ways=ways: convolve(x, w, stride, ways), x, weight)
        for mine, right in zip(found, exact, strict=True):
            assert float((mine.double() - right).abs().max() / right.abs().max()) < 4e-6, ways


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_only_the_gradients_that_are_wanted_are_made(ways, wanted):
    x, weight = drawn((4, 4), 3)
    gradient = torch.ones(3, 4, 4, 4, dtype=x.dtype)
    both = convolutions.backward(gradient, x, weight, 1, ways)
    some = convolutions.backward(gradient, x, weight, 1, ways, wanted)
    for one, whole, asked in zip(some, both, wanted, strict=True):
        assert torch.equal(one, whole) if asked else one is None


@pytest.mark.parametrize(
    ("size", "stride", "products"),
    # by hand: 3 taps at every pixel, less those on padding; Karatsuba's 3; F(4, 3)'s 6; F(4, 3) and F(3, 3)
    [(1, 1, 1), (2, 1, 3), (4, 1, 6), (7, 1, 11), (8, 1, 12), (7, 2, 10), (4, 2, 5), (2, 2, 2)],
)
def test_products_along_an_axis(size, stride, products):
    t, g, s, _ = axis_matrices(size, 3, stride, torch.float32)
    assert len(t) == len(g) == s.shape[1] == products


def test_taps_that_never_touch_data_are_not_even_read():
    assert axis_matrices(1, 3, 1, torch.float32)[3] == slice(1, 2)
    assert axis_matrices(2, 3, 2, torch.float32)[3] == slice(1, 3)


def test_toom_cook_is_winograds_filter():
    """F(2, 3), Lavin and Gray 2016, equation 5: four products."""
    t, g, s = (torch.tensor([[float(v) for v in row] for row in m]) for m in toom_cook(2, 3))
    x, w = torch.tensor([1.0, -2.0, 3.0, 5.0]), torch.tensor([2.0, 7.0, -1.0])
    assert len(t) == 4
    torch.testing.assert_close(s @ ((g @ w) * (t @ x)), torch.tensor([2 - 14 - 3.0, -4 + 21 - 5.0]))


def convolution(stride=1):
    torch.manual_seed(0)
    return Convolution(5, 4, 3, stride=stride, padding=1, bias=False)


def test_state_dict_of_the_convolution_is_unchanged():
    assert convolution().state_dict().keys() == {"weight"}


def shape(size, precision="float32", kernel=3, stride=1):
    return Shape(kernel, stride, 5, 4, size, size, precision)


def test_what_was_not_measured_goes_by_the_size_of_the_map():
    for (kernel, stride), largest in convolutions.LARGEST_MAP.items():
        assert default_ways(shape(largest, "float32", kernel, stride)) == Ways(FEW, FEW, FEW)
        assert default_ways(shape(largest + 1, "float32", kernel, stride)) == Ways(LIBRARY, LIBRARY, LIBRARY)
    assert default_ways(shape(2, "bfloat16")) == Ways(ROWS, ROWS, TAPS)
    assert default_ways(shape(4, "bfloat16")) == Ways(LIBRARY, LIBRARY, LIBRARY)


@pytest.mark.parametrize(("kernel", "stride"), itertools.product([1, 3], STRIDES))
@pytest.mark.parametrize("ways", [default_ways, plain_ways])
def test_maps_of_one_pixel_never_go_to_the_library_in_bfloat16(ways, kernel, stride):
    assert LIBRARY not in vars(ways(shape(1, "bfloat16", kernel, stride))).values()


def test_the_table_decides(monkeypatch):
    seen = []

    def noted(x, weight, stride, ways):
        seen.append(ways)
        return convolve(x, weight, stride, ways)

    monkeypatch.setattr(convolutions, "convolve", noted)
    layer, x = convolution(), torch.randn(2, 5, 4, 4)
    right = layer(x)
    ways = Ways(ROWS, LIBRARY, TAPS)
    use(nn.Sequential(layer), {str(layer.shape_of(x)): ways})
    torch.testing.assert_close(layer(x), right)
    layer(torch.randn(2, 5, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 5, 2, 2))
    assert seen == [Ways(FEW, FEW, FEW), ways, Ways(FEW, FEW, FEW), Ways(ROWS, ROWS, TAPS)]
    use(layer, {str(layer.shape_of(x)): Ways(LIBRARY, LIBRARY, LIBRARY)})
    layer(x)
    assert len(seen) == 4, "the library's own operator, without ours around it"


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_may_go_to_onednn(bias):
    torch.manual_seed(0)
    layer, plain, x = Linear(6, 5, bias), nn.Linear(6, 5, bias), torch.randn(4, 6)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    use(layer, {str(layer.shape_of(x)): Ways(TAPS + ONEDNN, TAPS, TAPS + ONEDNN)})
    for one in (layer, plain):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer(x), plain(x))
    for mine, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 8, 1), (64, 128, 1), (64, 64, 4), (128, 128, 32)])
def test_in_bfloat16_every_small_map_comes_out_as_in_float32(inputs, outputs, groups, kernel, stride):
    """Finite too: what is not written by anyone is NaN here."""
    layer = Convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight.shape, generator=made).bfloat16().float()
    for size in range(1, 9):
        x = torch.randn(4, inputs, size, size, generator=made).bfloat16().float()

        def ours(x, w):
            with torch.autocast("cpu", torch.bfloat16):
                return torch.func.functional_call(layer, {"weight": w}, (x,))

        right = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2, 1, groups), x, weight)
        poison = [torch.full_like(tensor, torch.nan, dtype=torch.bfloat16) for tensor in right for _ in range(4)]
        del poison  # the memory that the next results are likely to get
        for name, mine, other in zip(
            ("output", "of x", "of the weight"), with_gradients(ours, x, weight), right, strict=True
        ):
            assert bool(mine.isfinite().all()), (name, size)
            assert float((mine.float() - other).abs().max() / other.abs().max()) < 0.02, (name, size)
