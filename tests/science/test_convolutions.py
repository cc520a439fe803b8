import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.science import convolutions
from app.science.convolutions import SmallMapConv2d, axis_matrices, few_products, toom_cook

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


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES)
def test_few_products_are_the_convolution_with_all_gradients(size, stride, kernel, plain):
    x, weight = drawn(size, kernel)
    ours = with_gradients(lambda x, w: few_products(x, w, stride, plain=plain), x, weight)
    theirs = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, kernel // 2), x, weight)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (16, 16)])
def test_in_float32_outputs_and_gradients_are_right_to_a_few_roundings(size, stride):
    """Against float64: within 4e-6 of the largest value, where the ordinary convolution is within 4e-6 too."""
    x, weight = drawn(size, 3, channels=(64, 48), count=32)
    exact = with_gradients(lambda x, w: F.conv2d(x, w, None, stride, 1), x, weight)
    x, weight = x.float(), weight.float()
    for convolve in (lambda x, w: few_products(x, w, stride), lambda x, w: F.conv2d(x, w, None, stride, 1)):
        for mine, right in zip(with_gradients(convolve, x, weight), exact, strict=True):
            assert float((mine.double() - right).abs().max() / right.abs().max()) < 4e-6


@pytest.mark.parametrize(
    ("size", "stride", "plain", "products"),
    # by hand: 3 taps at every pixel, less those on padding; Karatsuba's 3; F(4, 3)'s 6; F(4, 3) and F(3, 3)
    [(1, 1, False, 1), (2, 1, False, 3), (2, 1, True, 4), (4, 1, False, 6), (4, 1, True, 10), (7, 1, False, 11),
     (8, 1, False, 12), (7, 2, False, 10), (4, 2, False, 5), (2, 2, False, 2)],
)  # fmt: skip
def test_products_along_an_axis(size, stride, plain, products):
    t, g, s, _ = axis_matrices(size, 3, stride, plain, torch.float32)
    assert len(t) == len(g) == s.shape[1] == products


def test_taps_that_never_touch_data_are_not_even_read():
    assert axis_matrices(1, 3, 1, False, torch.float32)[3] == slice(1, 2)
    assert axis_matrices(2, 3, 2, False, torch.float32)[3] == slice(1, 3)


def test_toom_cook_is_winograds_filter():
    """F(2, 3), Lavin and Gray 2016, equation 5: four products."""
    t, g, s = (torch.tensor([[float(v) for v in row] for row in m]) for m in toom_cook(2, 3))
    x, w = torch.tensor([1.0, -2.0, 3.0, 5.0]), torch.tensor([2.0, 7.0, -1.0])
    assert len(t) == 4
    torch.testing.assert_close(s @ ((g @ w) * (t @ x)), torch.tensor([2 - 14 - 3.0, -4 + 21 - 5.0]))


def convolution(stride=1):
    torch.manual_seed(0)
    return SmallMapConv2d(5, 4, 3, stride=stride, padding=1, bias=False)


def test_state_dict_of_the_convolution_is_unchanged():
    assert convolution().state_dict().keys() == {"weight"}


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the maps that took the short way."""
    seen = []

    def noted(x, weight, stride, *, plain):
        seen.append((x.shape[2], plain))
        return few_products(x, weight, stride, plain=plain)

    monkeypatch.setattr(convolutions, "few_products", noted)
    return seen


def test_large_maps_take_the_ordinary_way(sizes):
    for (kernel, stride), largest in convolutions.LARGEST_MAP.items():
        layer = SmallMapConv2d(5, 4, kernel, stride=stride, padding=kernel // 2, bias=False)
        for size in (largest, largest + 1):
            layer(torch.randn(2, 5, size, size))
    assert sizes == [(8, False), (4, False), (2, False)]


def test_in_bfloat16_no_pixels_are_added_up_before_the_product(sizes):
    plain = nn.Conv2d(5, 4, 3, padding=1, bias=False)
    plain.load_state_dict(convolution().state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        for size in (1, 2, 4):
            x = torch.randn(2, 5, size, size)
            out = convolution()(x)
            assert out.dtype == torch.bfloat16
            torch.testing.assert_close(out, plain(x), rtol=0.02, atol=0.02)
    assert sizes == [(1, True), (2, True)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 8, 1), (64, 128, 1), (64, 64, 4), (128, 128, 32)])
def test_in_bfloat16_every_small_map_comes_out_as_in_float32(inputs, outputs, groups, kernel, stride):
    """Finite too: what is not written by anyone is NaN here."""
    layer = SmallMapConv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
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
