import math

import kornia
import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from app.bench.kornia_views import kornia_views
from app.config import load_config
from app.data.phantoms import make_phantoms
from app.science.augment import (
    LUMINANCE,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply,
    blur_matrix,
    crop_matrix,
    draw,
    hole,
    luminance,
    pack,
    two_views,
    unpack,
    warp,
)
from app.science.generators import generator
from app.science.networks import to_float
from app.settings import Augmentation

NOTHING = Augmentation(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, jitter_brightness=0.0, jitter_contrast=0.0,
    jitter_saturation=0.0, jitter_hue=0.0, grayscale=0.0, blur=0.0, blur_sigma=(0.1, 1.0), blur_radius=1,
    contrast=0.0, contrast_range=(1.0, 1.0), brightness=0.0, brightness_range=(1.0, 1.0), cutout=0.0,
    cutout_side=(0.0, 0.0),
)  # fmt: skip
FULL = Augmentation(
    crop_scale=(0.2, 0.8), crop_ratio=(0.75, 4 / 3), flip=0.5, jitter=0.8, jitter_brightness=0.4, jitter_contrast=0.4,
    jitter_saturation=0.4, jitter_hue=0.1, grayscale=0.2, blur=0.5, blur_sigma=(0.1, 2.0), blur_radius=2,
    contrast=0.5, contrast_range=(0.6, 1.4), brightness=0.5, brightness_range=(0.6, 1.4), cutout=0.5,
    cutout_side=(0.1, 0.4),
)  # fmt: skip


def change(augmentation, **fields):
    return Augmentation(**augmentation.model_dump() | fields)


def images(count=6, channels=3, size=28, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def many(augmentation, count=4000, size=28):
    return draw(augmentation, count, size, generator("many", 0))


def views_of(augmentation, images, generator):
    return two_views(augmentation, images, draw(augmentation, 2 * len(images), images.shape[-1], generator))


# Draws


def test_draws_survive_packing():
    draws = many(FULL, 32)
    unpacked = unpack(pack(draws))
    assert unpacked.keys() == draws.keys()
    for name, values in draws.items():
        assert unpacked[name].dtype == values.dtype, name
        assert torch.equal(unpacked[name], values), name


def test_every_random_parameter_differs_between_samples():
    draws = many(FULL, 256)
    for name, values in draws.items():
        assert values.shape == (256,), name
        distinct = len(values.unique())
        assert distinct == 2 if values.dtype == torch.bool else distinct > 5, name
    # and independently: no two rows agree in all of the continuous ones
    rows = torch.stack([draws[n] for n in ("jitter_brightness", "jitter_contrast", "jitter_saturation", "hue")], 1)
    jittered = rows[rows[:, 0] != 1]
    assert len(jittered.unique(dim=0)) == len(jittered)


def test_each_image_of_a_batch_gets_a_view_of_its_own():
    same = images(1).expand(16, -1, -1, -1)
    views, others = views_of(FULL, same, generator("v"))
    flat = torch.cat([views, others]).flatten(1)
    assert len(flat.unique(dim=0)) == 32


def test_the_same_generator_gives_the_same_views_and_another_others():
    first, second = (views_of(FULL, images(), generator("v", 1)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    third = views_of(FULL, images(), generator("v", 2))
    assert not torch.equal(first[0], third[0])


@pytest.mark.parametrize(
    ("scale", "ratio", "size"),
    [((0.08, 1.0), (0.75, 4 / 3), 28), ((0.3, 1.0), (0.5, 2.0), 64), ((0.9, 1.0), (0.75, 4 / 3), 28)],
)
def test_crop_boxes_are_distributed_as_torchvisions(scale, ratio, size):
    augmentation = change(NOTHING, crop_scale=scale, crop_ratio=ratio)
    ours = many(augmentation, size=size)
    torch.manual_seed(0)
    picture = torch.zeros(1, size, size)
    theirs = torch.tensor([RandomResizedCrop.get_params(picture, list(scale), list(ratio)) for _ in range(4000)])
    for column, name in enumerate(("top", "left", "height", "width")):
        p = stats.ks_2samp(ours[name].numpy(), theirs[:, column].numpy()).pvalue
        assert p > 0.01, name
    # and jointly: the area, and the box's place in what room there is
    areas = stats.ks_2samp((ours["height"] * ours["width"]).numpy(), theirs[:, 2:].prod(1).numpy())
    assert areas.pvalue > 0.01


def test_crop_boxes_lie_inside_the_image():
    draws = many(change(NOTHING, crop_scale=(0.01, 1.0), crop_ratio=(0.2, 5.0)), 20000)
    for start, length in (("top", "height"), ("left", "width")):
        assert draws[start].min() >= 0
        assert draws[length].min() >= 1
        assert (draws[start] + draws[length]).max() <= 28
        assert torch.equal(draws[start], draws[start].round())
        assert torch.equal(draws[length], draws[length].round())


def test_an_impossible_box_falls_back_to_the_whole_image():
    draws = many(change(NOTHING, crop_scale=(1.0, 1.0), crop_ratio=(2.0, 3.0)), 10)
    assert draws["width"].tolist() == draws["height"].tolist() == [28.0] * 10
    assert draws["top"].tolist() == draws["left"].tolist() == [0.0] * 10


@pytest.mark.parametrize(
    ("name", "probability", "neutral"),
    [
        ("flip", 0.5, False), ("gray", 0.2, False), ("hue", 0.8, 0.0), ("jitter_brightness", 0.8, 1.0),
        ("sigma", 0.5, 0.0), ("contrast", 0.5, 1.0), ("brightness", 0.5, 1.0), ("hole_side", 0.5, 0.0),
    ],
)  # fmt: skip
def test_operations_happen_as_often_as_asked_for(name, probability, neutral):
    happened = int((many(FULL)[name] != neutral).sum())
    assert stats.binomtest(happened, 4000, probability).pvalue > 0.001


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("jitter_brightness", 0.6, 1.4), ("jitter_contrast", 0.6, 1.4), ("jitter_saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1), ("sigma", 0.1, 2.0), ("contrast", 0.6, 1.4), ("brightness", 0.6, 1.4),
    ],
)  # fmt: skip
def test_factors_are_uniform_over_their_range(name, low, high):
    values = many(FULL)[name]
    drawn = values[values != (0.0 if name in ("hue", "sigma") else 1.0)].double().numpy()
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_strong_jitter_has_no_negative_factors():
    assert many(change(FULL, jitter_brightness=1.5))["jitter_brightness"].min() >= 0


def test_cutout_sides_and_places():
    draws = many(change(FULL, cutout=1.0))
    assert draws["hole_side"].min() == round(0.1 * 28)
    assert draws["hole_side"].max() == round(0.4 * 28)
    for start in ("hole_top", "hole_left"):
        room = 28 - draws["hole_side"]
        assert (draws[start] <= room).all()
        assert (draws[start] == room).any()
        assert (draws[start] == 0).any()


def test_byol_and_byol_plus_share_the_draws_they_have_in_common():
    config = load_config("recommended")
    plain, plus = (many(config.augmentation(method), 50) for method in ("byol", "byol_plus"))
    extra = {"contrast", "brightness", "hole_side", "hole_top", "hole_left"}
    for name in plain.keys() - extra:
        assert torch.equal(plain[name], plus[name]), name
    assert not torch.equal(plain["hole_side"], plus["hole_side"])


# Geometry and blur


def test_crop_matrix_is_torchs_bilinear_interpolation_of_the_box():
    size = 28
    draws = many(change(NOTHING, crop_scale=(0.02, 1.0), crop_ratio=(0.5, 2.0)), 40)
    top, left, height, width = (draws[n].double() for n in ("top", "left", "height", "width"))
    x = images(40).double()
    got = warp(x, crop_matrix(top, height, size), crop_matrix(left, width, size))
    for i in range(40):
        y, z, h, w = int(top[i]), int(left[i]), int(height[i]), int(width[i])
        box = x[i : i + 1, :, y : y + h, z : z + w]
        want = F.interpolate(box, size=(size, size), mode="bilinear", align_corners=False)
        torch.testing.assert_close(got[i : i + 1], want, rtol=0, atol=1e-12)


def test_crop_matrix_in_float32_is_as_good_as_torchs():
    start, length = torch.tensor([3.0, 0.0, 27.0, 10.0]), torch.tensor([11.0, 28.0, 1.0, 18.0])
    matrix = crop_matrix(start, length, 28)
    torch.testing.assert_close(matrix.sum(2), torch.ones(4, 28))
    assert torch.equal(matrix[1], torch.eye(28))
    assert torch.equal(matrix[2, :, 27], torch.ones(28))


def test_flip_mirrors_the_crop():
    draws = many(change(NOTHING, crop_scale=(0.3, 0.9), flip=1.0), 6)
    x = images()
    flipped = apply(NOTHING, x, draws)
    straight = apply(NOTHING, x, draws | {"flip": torch.zeros(6, dtype=torch.bool)})
    torch.testing.assert_close(flipped, straight.flip(3), rtol=0, atol=1e-6)
    assert not torch.allclose(flipped, straight)


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_blur_is_kornias_with_reflected_borders(radius):
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 0.8, 1.7])
    matrix = blur_matrix(sigma, radius, 28)
    side = 2 * radius + 1
    want = kornia.filters.gaussian_blur2d(images(), (side, side), sigma[:, None].expand(-1, 2), border_type="reflect")
    torch.testing.assert_close(warp(images(), matrix, matrix), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(matrix.sum(2), torch.ones(6, 28))


def test_no_sigma_is_no_blur():
    assert torch.equal(blur_matrix(torch.zeros(2), 3, 28), torch.eye(28).expand(2, 28, 28))


# Colour

FACTORS = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.2, 1.8])


def each(operation, x, factors):
    return torch.stack([operation(image, float(factor)) for image, factor in zip(x, factors, strict=True)])


def test_brightness_equals_torchvision():
    want = each(TF.adjust_brightness, images(), FACTORS)
    torch.testing.assert_close(adjust_brightness(images(), FACTORS), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_equals_kornia_and_torchvision(channels):
    x = images(channels=channels)
    got = adjust_contrast(x, FACTORS)
    kornias = kornia.enhance.adjust_contrast_with_mean_subtraction(x, FACTORS)
    torch.testing.assert_close(got, kornias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, each(TF.adjust_contrast, x, FACTORS), rtol=0, atol=1e-3)  # .2989 for .299


def test_saturation_equals_kornia_and_torchvision():
    got = adjust_saturation(images(), FACTORS)
    kornias = kornia.enhance.adjust_saturation_with_gray_subtraction(images(), FACTORS)
    torch.testing.assert_close(got, kornias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, each(TF.adjust_saturation, images(), FACTORS), rtol=0, atol=1e-3)


def test_hue_equals_torchvision():
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.05, 0.3, 0.5])
    got = adjust_hue(images(), turns)
    torch.testing.assert_close(got, each(TF.adjust_hue, images(), turns), rtol=0, atol=1e-4)
    torch.testing.assert_close(got[2], images()[2], rtol=0, atol=1e-5)


def test_a_third_of_a_turn_makes_red_green():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    green = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(adjust_hue(red, torch.tensor([1 / 3])), green, rtol=0, atol=1e-5)


def test_luminance_is_that_of_kornia_and_leaves_gray_alone():
    torch.testing.assert_close(luminance(images()), kornia.color.rgb_to_grayscale(images()))
    gray = images(channels=1)
    assert luminance(gray) is gray
    assert sum(LUMINANCE) == pytest.approx(1)


def test_hole_is_the_square_it_says():
    mask = hole(torch.tensor([2.0, 0.0]), torch.tensor([5.0, 0.0]), torch.tensor([3.0, 0.0]), 10)
    want = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
    want[0, 0, 2:5, 5:8] = True
    assert torch.equal(mask, want)


# Views


def described(views):
    """Numbers that say what a view looks like, one per view: shades, edges along both axes, sides, colour."""
    views = views.round(decimals=3)  # where one clips to 1, the other may reach 0.99999
    gray = views.mean(1)
    return {
        "mean": gray.mean((1, 2)),
        "spread": gray.flatten(1).std(1),
        "darkest": gray.flatten(1).amin(1),
        "brightest": gray.flatten(1).amax(1),
        "vertical edges": (gray[:, :, 1:] - gray[:, :, :-1]).abs().mean((1, 2)),
        "horizontal edges": (gray[:, 1:] - gray[:, :-1]).abs().mean((1, 2)),
        "left and right": gray[:, :, :14].mean((1, 2)) - gray[:, :, 14:].mean((1, 2)),
    } | ({"colour": views.std(1).mean((1, 2))} if views.shape[1] == 3 else {})


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_distributed_as_kornias(channels):
    """Jittered always, in our order: kornia takes its four operations in a random one, and would clip elsewhere."""
    like = change(FULL, crop_scale=(0.3, 1.0), jitter=1.0, contrast=0.0, brightness=0.0, cutout=0.0)
    shapes = make_phantoms("dermamnist", (800, 20, 20), seed=0)["train_images"]
    x = to_float(torch.from_numpy(shapes))
    x = x[:, :1] if channels == 1 else x
    pipeline = kornia_views(like, 28)
    strengths = (like.jitter_brightness, like.jitter_contrast, like.jitter_saturation, like.jitter_hue)
    pipeline[2] = torch.nn.Sequential(
        *(kornia.augmentation.ColorJitter(*(s * (i == j) for j, s in enumerate(strengths)), p=1.0) for i in range(4))
    )
    torch.manual_seed(0)
    theirs = described(pipeline(x.expand(-1, 3, -1, -1))[:, :channels] * 2 - 1)
    ours = described(torch.cat(views_of(like, x, generator("kornia"))))
    for name, values in theirs.items():
        assert stats.ks_2samp(ours[name], values).pvalue > 1e-3, name
    # and the comparison would see a difference: smaller crops, stronger blur, no jitter
    for fields in ({"crop_scale": (0.08, 1.0)}, {"blur": 1.0, "blur_sigma": (1.0, 2.0)}, {"jitter": 0.0}):
        others = described(torch.cat(views_of(change(like, **fields), x, generator("kornia"))))
        assert min(stats.ks_2samp(others[name], values).pvalue for name, values in theirs.items()) < 1e-3, fields


def test_no_operation_leaves_the_normalised_image():
    x = images()
    view1, view2 = views_of(NOTHING, x, generator("v"))
    torch.testing.assert_close(view1, x * 2 - 1)
    assert torch.equal(view1, view2)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_shape_and_range(channels):
    wild = change(FULL, jitter=1.0, jitter_brightness=0.9, jitter_contrast=0.9, jitter_hue=0.5, contrast=1.0)
    for view in views_of(wild, images(64, channels), generator("range")):
        assert view.shape == (64, channels, 28, 28)
        assert view.dtype == torch.float32
        assert view.isfinite().all()
        assert view.min() >= -1
        assert view.max() <= 1
        assert view.min() < -0.9
        assert view.max() > 0.9


@pytest.mark.parametrize("augmentation", [FULL, change(FULL, jitter=1.0, grayscale=1.0, jitter_hue=0.5)])
def test_a_view_depends_on_its_own_image_and_draws_alone(augmentation):
    x, draws = images(8), many(augmentation, 8)
    together = apply(augmentation, x, draws)
    for i in range(8):
        alone = apply(augmentation, x[i : i + 1], {name: value[i : i + 1] for name, value in draws.items()})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-5)


def test_both_views_are_of_the_same_image():
    shades = torch.linspace(0.1, 0.9, 9)[:, None, None, None].expand(9, 1, 28, 28)
    crops = change(NOTHING, crop_scale=(0.2, 0.9), flip=0.5)
    for view in views_of(crops, shades, generator("v")):
        torch.testing.assert_close(view, shades * 2 - 1)


def test_colour_operations_do_nothing_to_a_gray_image():
    coloured = change(NOTHING, jitter=1.0, jitter_saturation=0.9, jitter_hue=0.5, grayscale=1.0)
    x = images(channels=1)
    torch.testing.assert_close(views_of(coloured, x, generator("v"))[0], x * 2 - 1, rtol=0, atol=1e-6)
    rgb = images()
    assert not torch.allclose(views_of(coloured, rgb, generator("v"))[0], rgb * 2 - 1, atol=0.01)


def test_a_gray_image_and_its_three_equal_channels_have_the_same_views():
    gray, draws = images(channels=1), many(FULL, 6)
    one = apply(FULL, gray, draws)
    three = apply(FULL, gray.expand(-1, 3, -1, -1), draws)
    torch.testing.assert_close(three, one.expand(-1, 3, -1, -1), rtol=0, atol=1e-4)


def test_grayscale_makes_three_equal_channels_of_luminance():
    x = images()
    view, _ = views_of(change(NOTHING, grayscale=1.0), x, generator("v"))
    torch.testing.assert_close(view, (luminance(x) * 2 - 1).expand_as(x))


def test_byol_has_no_cutout_and_byol_plus_has_a_mid_gray_square():
    config = load_config("recommended", ["views_plus.cutout=1.0", "views.blur=0.0"])
    x = images(32) * 0.2 + 0.7  # nothing in it is mid-gray, and no crop, colour or blur makes a flat square

    def flat(method):
        augmentation = config.augmentation(method)
        draws = draw(augmentation, 32, 28, generator("v"))
        return (apply(augmentation, x, draws) == 0).all(1, keepdim=True), draws

    assert not flat("byol")[0].any()
    holes, draws = flat("byol_plus")
    assert torch.equal(holes, hole(draws["hole_top"], draws["hole_left"], draws["hole_side"], 28))
    assert holes.flatten(1).sum(1).tolist() == draws["hole_side"].square().tolist()
    assert holes.any((1, 2, 3)).all()


def test_byol_plus_adds_contrast_brightness_and_cutout_and_nothing_else():
    config = load_config("recommended")
    plain, plus = (config.augmentation(method).model_dump() for method in ("byol", "byol_plus"))
    assert {name for name in plain if plain[name] != plus[name]} == {"contrast", "brightness", "cutout"}
    assert plain["contrast"] == plain["brightness"] == plain["cutout"] == 0


@pytest.mark.parametrize("name", ["contrast", "brightness"])
def test_byol_plus_operations_have_their_factors(name):
    augmentation = change(NOTHING, **{name: 1.0, f"{name}_range": (0.5, 0.9)})
    x, draws = images(), many(augmentation, 6)
    operation = {"contrast": adjust_contrast, "brightness": adjust_brightness}[name]
    torch.testing.assert_close(apply(augmentation, x, draws), operation(x, draws[name]) * 2 - 1)


def test_jitter_is_brightness_then_contrast_then_saturation_then_hue():
    augmentation = change(
        NOTHING, jitter=1.0, jitter_brightness=0.5, jitter_contrast=0.5, jitter_saturation=0.5, jitter_hue=0.2
    )
    x, d = images(), many(augmentation, 6)
    want = adjust_contrast(adjust_brightness(x, d["jitter_brightness"]), d["jitter_contrast"])
    want = adjust_hue(adjust_saturation(want, d["jitter_saturation"]), d["hue"])
    torch.testing.assert_close(apply(augmentation, x, d), want * 2 - 1)


def test_blur_of_a_view_is_in_pixels_of_the_view():
    augmentation = change(NOTHING, blur=1.0, blur_sigma=(1.0, 1.0), blur_radius=1)
    x = torch.zeros(1, 1, 28, 28)
    x[0, 0, 14, 14] = 1
    view = apply(augmentation, x, many(augmentation, 1)) / 2 + 0.5
    centre = 1 / (1 + 2 * math.exp(-0.5))
    assert view[0, 0, 14, 14].item() == pytest.approx(centre**2, rel=1e-5)
    assert view[0, 0, 14, 16].item() == pytest.approx(0, abs=1e-6)
