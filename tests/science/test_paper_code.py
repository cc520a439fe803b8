"""The quirks of the paper's public code, each beside what that code says, written out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from app.config import load_config
from app.data import Unlabelled
from app.science.augment import IMAGENET_MEAN, IMAGENET_STD, apply, draw, two_views, visible
from app.science.byol import BYOL
from app.science.finetuning import Labelled, fit, predict, task_loss
from app.science.generators import batches, generator
from app.science.heads import fit_heads
from app.science.metrics import BINARY
from app.science.networks import Classifier, normalise, to_float
from app.science.pretraining import Trainer
from app.science.protocols import PROTOCOLS, protocol_of
from app.settings import Augmentation
from tests import small

VIEWS = load_config("recommended", ["views.blur=0.5"]).augmentation("byol_plus")
STILL = {
    "crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0,
    "contrast": 0.0, "brightness": 0.0, "cutout": 0.0,
}  # fmt: skip
RECIPE = load_config("paper-code", ["protocols.linear_probe.epochs=3", "protocols.linear_probe.batch_size=8"])
PROBE = RECIPE.protocols.linear_probe


def views_of(**changed):
    return Augmentation(**VIEWS.model_dump() | changed)


def images(count=6, channels=1):
    return torch.rand(count, channels, 28, 28, generator=torch.Generator().manual_seed(1))


def labelled(count=24, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 28, 28)).astype(np.uint8)
    return Labelled.of(pixels, (np.arange(count) % 2)[:, None], "cpu")


# Views


def test_jitter_and_blur_are_switched_for_the_batch():
    once = views_of(jitter_and_blur="per_batch")
    seen = set()
    for step in range(80):
        drawn = draw(once, 16, 28, generator("t", step), batches=2)
        for name, off in (("sigma", 0.0), ("jitter_contrast", 1.0)):
            on = (drawn[name] != off).view(2, 8)
            assert bool((on == on[:, :1]).all()), "all images of a view, or none"
            assert len(set(drawn[name].tolist())) > 2 or not on.any(), "how strongly is each image's own"
            seen.add((name, *on[:, 0].tolist()))
    assert len(seen) == 8, "each view of a batch has its own switch"
    assert len(set(draw(once, 16, 28, generator("t", 0))["left"].tolist())) > 2


def test_all_of_byol_plus_is_drawn_once_for_the_batch():
    drawn = draw(views_of(drawn="per_batch"), 16, 28, generator("t", 0), batches=2)
    for name, values in drawn.items():
        assert values.shape == (16,), name
        assert [len(set(part.tolist())) for part in values.view(2, 8)] == [1, 1], name
    assert drawn["left"][0] != drawn["left"][8]


@pytest.mark.parametrize("channels", [1, 3])
def test_views_normalised_twice(channels):
    twice = views_of(**STILL | {"contrast": 1.0}, contrast_range=(1.3, 1.3), normalise="twice")
    x = images(channels=channels)
    want = TF.normalize(x.expand(-1, 3, -1, -1), [0.5] * 3, [0.5] * 3)  # the data set's
    want = TF.normalize(TF.adjust_contrast(want, 1.3), IMAGENET_MEAN, IMAGENET_STD)
    views = apply(twice, x, draw(twice, len(x), 28, generator("t", 0)))
    torch.testing.assert_close(views, want, atol=1e-5, rtol=1e-5)
    plain = apply(views_of(**STILL, normalise="twice"), x, draw(twice, len(x), 28, generator("t", 0)))
    torch.testing.assert_close(visible(twice, plain), x.expand(-1, 3, -1, -1), atol=1e-5, rtol=1e-5)


def test_the_cutout_takes_channels_and_rows():
    cut = views_of(**STILL | {"cutout": 1.0}, cutout_side=(0.16, 0.16), cutout_shape="channels_and_rows",
                   drawn="per_batch")  # fmt: skip
    x, touched = images(channels=3), 0
    for step in range(60):
        drawn = draw(cut, len(x), 28, generator("t", step))
        upper, left = int(drawn["hole_top"][0]), int(drawn["hole_left"][0])
        want = x.clone()
        want[:, upper : upper + 4, left : left + 4] = 0.5  # 0 between -1 and 1
        torch.testing.assert_close(apply(cut, x, drawn), normalise(want), atol=1e-6, rtol=0)
        touched += upper < 3
    assert 0 < touched < 20, "most squares lie beyond the last channel"
    assert apply(cut, x[:, :1], drawn).shape == x.shape, "of a gray image the channels are not treated alike"


def test_byol_has_nothing_of_byol_plus_and_byol_plus_no_blur():
    code, text = load_config("paper-code"), load_config("paper-text")
    byol, plus = code.augmentation("byol"), code.augmentation("byol_plus")
    assert (byol.drawn, byol.blur, byol.cutout, byol.jitter_and_blur) == ("per_image", 0.1, 0.0, "per_batch")
    assert (plus.drawn, plus.blur, plus.cutout, plus.normalise) == ("per_batch", 0.0, 1.0, "twice")
    assert text.augmentation("byol_plus").blur == text.views.blur == 0.2


def test_the_defaults_draw_and_apply_as_ever():
    """In how many equal parts the rows come changes nothing unless something is drawn per batch."""
    x = images()
    first, second = (draw(VIEWS, 12, 28, generator("t", 0), batches=parts) for parts in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert two_views(VIEWS, x, first)[0].shape == x.shape


# Pretraining


def test_the_linear_predictor_is_one_layer(tiny_encoder):
    made = BYOL(tiny_encoder(), projector_hidden=8, predictor_hidden=16, projection=4, predictor="linear")
    literal = nn.Linear(4, 4, 4096)  # the third argument is the bias
    assert {k: v.shape for k, v in made.predictor.state_dict().items()} == {
        k: v.shape for k, v in literal.state_dict().items()
    }
    literal.load_state_dict(made.predictor.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(made.predictor(x), literal(x))


def trainer(*changed):
    config = load_config("paper-code", [
        "pretrain.batch_size=4", "pretrain.accumulate=3", "pretrain.epochs=2", "pretrain.ema_momentum=0.9",
        "network.projector_hidden=8", "network.projection=4", *changed,
    ])  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    data = Unlabelled("noise", "noise", pixels, "", "", "", "", True, 28, 1, "all")
    return Trainer(config.pretrain, config.network, config.augmentation("byol"), data, seed=0, device="cpu")


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def test_the_target_moves_with_every_micro_batch_before_the_step(monkeypatch):
    small.use(monkeypatch.setattr)
    made = trainer()
    start = weights(made.model.online)
    made.advance()
    moved = weights(made.model.online)
    assert any(not torch.equal(a, b) for a, b in zip(start, moved, strict=True))
    torch.testing.assert_close(weights(made.model.target), start)  # it moved towards where it was
    made.advance()
    want = start
    for _ in range(3):
        want = [0.9 * target + 0.1 * online for target, online in zip(want, moved, strict=True)]
    torch.testing.assert_close(weights(made.model.target), want)
    after = trainer("pretrain.ema_every=step")
    after.advance()
    want = [0.9 * a + 0.1 * b for a, b in zip(start, weights(after.model.online), strict=True)]
    torch.testing.assert_close(weights(after.model.target), want)


# Downstream


def test_a_probe_behind_batch_norm_in_training_mode(tiny_encoder):
    train, val = labelled(), labelled(12, 1)
    made = Classifier(tiny_encoder(), 1)
    literal = copy.deepcopy(made)
    outcome = fit(made, train, val, protocol=protocol_of("linear_probe", PROBE), recipe=PROBE, task=BINARY, key=("t",))
    literal.encoder.requires_grad_(False)
    optimizer = torch.optim.Adam(literal.head.parameters(), lr=PROBE.learning_rate)
    literal.train()
    for epoch in (1, 2, 3):
        for at in batches(24, 8, ("t", epoch)):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(
                literal(normalise(to_float(train.images[at]))), train.labels[at].float()
            )
            loss.backward()
            optimizer.step()
    for (name, value), want in zip(made.state_dict().items(), literal.state_dict().values(), strict=True):
        torch.testing.assert_close(value, want, atol=1e-5, rtol=1e-4, msg=name)
    assert outcome.best_epoch == 3
    assert protocol_of("finetune", RECIPE.protocols.finetune) == PROTOCOLS["finetune"]
    assert protocol_of("linear_probe", load_config("recommended").protocols.linear_probe) == PROTOCOLS["linear_probe"]


@pytest.mark.parametrize("again", [False, True])
def test_the_last_epoch_is_kept_and_heads_side_by_side_agree(tiny_encoder, again):
    """Also with a second batch in every step, of which both see the same."""
    chosen = PROBE.model_copy(update={"batch_norm": "eval", "learning_rate": 0.5, "epochs": 8, "second_batch": again})
    train, val = labelled(), labelled(12, 1)
    made = Classifier(tiny_encoder(), 1)
    best, head = copy.deepcopy(made), copy.deepcopy(made.head)
    last = fit(made, train, val, protocol=PROTOCOLS["linear_probe"], recipe=chosen, task=BINARY, key=("t",))
    plain = chosen.model_copy(update={"epoch": "best"})
    other = fit(best, train, val, protocol=PROTOCOLS["linear_probe"], recipe=plain, task=BINARY, key=("t",))
    assert last.curves == other.curves
    assert last.best_epoch == 8 != other.best_epoch
    seen = task_loss(predict(made, val), val.labels, BINARY).item()
    assert seen == pytest.approx(last.curves[-1]["val_loss"], rel=1e-4)
    few = train.encoded(made.encoder), val.encoded(made.encoder)
    many = fit_heads([head], [few[0]], few[1], recipe=chosen, task=BINARY, keys=[("t",)])
    assert many.best_epochs == [8]
    torch.testing.assert_close(many.weight[0], made.head.weight, atol=1e-3, rtol=1e-3)


def test_a_second_batch_is_the_first_of_another_order():
    alone, both = list(batches(10, 4, ("t", 1))), list(batches(10, 4, ("t", 1), again=True))
    assert [len(at) for at in both] == [8, 8, 4]
    for at, joined in zip(alone, both, strict=True):
        assert torch.equal(joined[: len(at)], at)
        assert len(set(joined[len(at) :].tolist())) == len(at), "drawn without replacement"
    assert len({tuple(joined[:4].tolist()) for joined in both} | {tuple(joined[4:].tolist()) for joined in both}) == 6
