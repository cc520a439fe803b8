import copy
import math

import pytest
import torch
from torch import nn

from app.science.byol import BYOL, LARS, build_optimizer, parameter_groups, rank_me, regression_loss, target_std
from app.science.networks import Encoder

OPTIMIZERS = ("adam", "adamw", "sgd", "lars")


def build(encoder):
    return BYOL(encoder, projector_hidden=32, predictor_hidden=16, projection=8)


@pytest.fixture
def small_byol(tiny_encoder):
    return lambda seed=0: build(tiny_encoder(seed))


def two_views(seed=1, count=6):
    made = torch.Generator().manual_seed(seed)
    return torch.rand(2, count, 1, 28, 28, generator=made).mul(2).sub(1).unbind(0)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(model, steps, optimizer="adamw", momentum=0.9):
    chosen = build_optimizer(optimizer, [model.online, model.predictor], learning_rate=1e-3, weight_decay=1e-4)
    for step in range(steps):
        loss, _ = model(*two_views(seed=step))
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        model.update_target(momentum)
    return loss.detach()


class Factor(nn.Module):
    """Stands in for the predictor: multiplies by a number."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_loss_is_0_for_the_same_direction_whatever_the_lengths():
    x = torch.randn(5, 7, dtype=torch.float64)
    assert regression_loss(x, 3.5 * x).item() == pytest.approx(0, abs=1e-6)


def test_loss_is_4_for_opposite_directions():
    x = torch.randn(5, 7)
    assert regression_loss(x, -0.1 * x).item() == pytest.approx(4, abs=1e-6)


def test_loss_is_2_for_orthogonal_vectors_and_a_mean_over_the_batch():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0, 5.0], [3.0, 0.0], [1.0, 0.0]])
    assert regression_loss(x[:1], y[:1]).item() == pytest.approx(2)
    assert regression_loss(x, y).item() == pytest.approx((2 + 0 + 2 - math.sqrt(2)) / 3)


def test_loss_is_the_squared_distance_of_the_normalised_vectors():
    x, y = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3)).unbind(0)
    distance = (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)).square().sum(1).mean()
    torch.testing.assert_close(regression_loss(x, y), distance)


def test_loss_is_computed_in_float32_from_lower_precision():
    x = torch.randn(5, 7).bfloat16()
    assert regression_loss(x, x).dtype == torch.float32


@pytest.mark.parametrize(("factor", "total"), [(1.0, 0.0), (-1.0, 8.0)])
def test_symmetric_loss_ends_at_0_and_8(small_byol, factor, total):
    model = small_byol()
    model.online, model.target, model.predictor = nn.Identity(), nn.Identity(), Factor(factor)
    x = torch.randn(4, 8)
    loss, _ = model(x, x)
    assert loss.item() == pytest.approx(total, abs=1e-5)


def test_symmetric_loss_compares_each_view_with_the_other_one(small_byol):
    model = small_byol()
    model.online, model.target, model.predictor = nn.Identity(), nn.Identity(), nn.Identity()
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert model(x, y)[0].item() == pytest.approx(4)  # 2 and 2; each view with itself would give 0


def test_symmetric_loss_is_the_sum_of_both_directions(small_byol):
    model, (view1, view2) = small_byol(), two_views()
    twin = copy.deepcopy(model)
    loss, projection = model(view1, view2)
    target1, target2 = twin.target(view1), twin.target(view2)
    first = regression_loss(twin.predictor(twin.online(view1)), target2)
    second = regression_loss(twin.predictor(twin.online(view2)), target1)
    torch.testing.assert_close(loss, first + second)
    torch.testing.assert_close(projection, target1)
    assert not torch.allclose(first, second)


def test_each_view_has_batch_statistics_of_its_own(small_byol):
    model, (view1, view2) = small_byol(), two_views()
    model(view1, view2 * 0.1)
    for net in (model.online, model.predictor, model.target):
        counts = [v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")]
        assert counts
        assert all(count == 2 for count in counts)


@pytest.mark.parametrize("net", ["tiny", "resnet18"])
def test_a_pair_of_views_in_one_batch_gives_what_one_after_the_other_does(net, tiny_encoder):
    model = build(tiny_encoder() if net == "tiny" else Encoder()).double()
    twin = copy.deepcopy(model)
    twin.pair()
    view1, view2 = (view.double() for view in two_views())
    results = []
    for each in (model, twin):
        loss, projection = each(view1, view2 * 0.5)
        loss.backward()
        results.append((loss, projection, {name: p.grad for name, p in each.named_parameters()}, snapshot(each)))
    torch.testing.assert_close(results[1], results[0])
    for each in (model, twin):
        each.eval()
    torch.testing.assert_close(twin.online(view1), model.online(view1))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999999, 1.0])
def test_a_momentum_that_lies_on_the_device_moves_the_target_as_a_number_does(small_byol, momentum):
    model = small_byol()
    train(model, 2)
    twin = copy.deepcopy(model)
    model.update_target(momentum)
    twin.update_target(torch.tensor(momentum, dtype=torch.float64))
    torch.testing.assert_close(snapshot(twin), snapshot(model), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_that_lies_on_the_device_moves_as_a_number_does(small_byol, optimizer):
    results = []
    for rate in (1e-2, torch.tensor(1e-2)):
        model = small_byol()
        chosen = build_optimizer(optimizer, [model.online, model.predictor], learning_rate=1e-3, weight_decay=1e-4)
        for group in chosen.param_groups:
            group["lr"] = rate
        model(*two_views())[0].backward()
        chosen.step()
        results.append(snapshot(model))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)


def test_target_starts_as_a_copy_of_the_online_network(small_byol):
    model = small_byol()
    online, target = model.online.state_dict(), model.target.state_dict()
    assert online.keys() == target.keys()
    assert all(torch.equal(online[k], target[k]) and online[k] is not target[k] for k in online)
    assert {p.data_ptr() for p in model.online.parameters()}.isdisjoint(p.data_ptr() for p in model.target.parameters())


def test_no_gradient_reaches_the_target(small_byol):
    model = small_byol()
    loss, projection = model(*two_views())
    loss.backward()
    assert not projection.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    missing = [n for n, p in model.online.named_parameters() if p.grad is None or not p.grad.any()]
    # the layer before a normalisation of its own output: a bias there would get none, and there is none
    assert missing == []
    assert all(p.grad is not None for p in model.predictor.parameters())


@pytest.mark.parametrize("momentum", [0.0, 1.0, 0.99, 0.5])
def test_ema_arithmetic(small_byol, momentum):
    model = small_byol()
    torch.manual_seed(5)
    for p in model.online.parameters():
        p.data.add_(torch.randn_like(p))
    online, before = dict(model.online.named_parameters()), snapshot(model.target)
    model.update_target(momentum)
    for name, p in model.target.named_parameters():
        want = momentum * before[name].double() + (1 - momentum) * online[name].double()
        if momentum in (0.0, 1.0):
            assert torch.equal(p, want.float()), name
        else:
            torch.testing.assert_close(p.double(), want, rtol=0, atol=2e-6)
    for name, value in model.target.named_buffers():
        assert torch.equal(value, before[name])


def test_ema_of_99_leaves_99_hundredths_after_one_update_and_less_after_many(small_byol):
    model = small_byol()
    for p in model.online.parameters():
        p.data.zero_()
    for p in model.target.parameters():
        p.data.fill_(1.0)
    for _ in range(10):
        model.update_target(0.99)
    for p in model.target.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 0.99**10))


def test_ema_leaves_the_online_network_alone(small_byol):
    model = small_byol()
    before = snapshot(model.online)
    model.update_target(0.3)
    assert all(torch.equal(before[k], v) for k, v in model.online.state_dict().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_moves_every_online_parameter_and_none_of_the_target(small_byol, name):
    model = small_byol()
    optimizer = build_optimizer(name, [model.online, model.predictor], learning_rate=0.1, weight_decay=1e-4)
    ours = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ours) == len(set(ours))
    assert set(ours) == {id(p) for net in (model.online, model.predictor) for p in net.parameters()}
    before = snapshot(model)
    model(*two_views())[0].backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in after.items() if n.startswith("target."))
    still = [n for n, p in after.items() if not n.startswith("target.") and torch.equal(p, before[n])]
    assert still == []


def test_training_moves_encoder_and_target_and_their_running_statistics():
    model = build(Encoder())
    before = snapshot(model)
    train(model, 1)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    for name in ("online.0.resnet.conv1.weight", "online.0.resnet.bn1.running_mean", "predictor.0.weight"):
        assert name in moved
    for name in ("target.0.resnet.conv1.weight", "target.0.resnet.bn1.running_mean", "target.1.3.weight"):
        assert name in moved
    assert model.encoder is model.online[0]


def test_the_same_seed_gives_the_same_tensors_twice_and_another_seed_others(small_byol):
    first, second, third = (small_byol(seed) for seed in (0, 0, 1))
    losses = [train(model, 4) for model in (first, second, third)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_loss_falls_on_one_batch(small_byol):
    model = small_byol()
    optimizer = build_optimizer("adam", [model.online, model.predictor], learning_rate=1e-2, weight_decay=0)
    losses = []
    for _ in range(60):
        loss, _ = model(*two_views())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(0 <= loss <= 8 for loss in losses)


def test_target_std_of_a_constant_is_0():
    assert target_std(torch.ones(16, 8) * torch.rand(16, 1)) == pytest.approx(0, abs=1e-5)


def test_target_std_of_an_isotropic_cloud_is_1():
    cloud = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert target_std(cloud) == pytest.approx(1, abs=0.01)
    assert target_std(1000 * cloud) == pytest.approx(target_std(cloud), rel=1e-5)


def test_target_std_by_hand():
    # unit vectors (1,0), (0,1): std of (1,0) is sqrt(1/2) in both dimensions, times sqrt(2)
    assert target_std(torch.tensor([[2.0, 0.0], [0.0, 3.0]])) == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_me_of_equal_singular_values_is_their_number(rank):
    left = torch.linalg.qr(torch.randn(20, rank, generator=torch.Generator().manual_seed(0)))[0]
    right = torch.linalg.qr(torch.randn(8, rank, generator=torch.Generator().manual_seed(1)))[0]
    assert rank_me(5 * left @ right.T) == pytest.approx(rank, rel=1e-4)


def test_rank_me_by_hand():
    features = torch.zeros(4, 3)
    features[0, 0], features[1, 1] = 3.0, 1.0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(features) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_rank_me_of_nothing_is_1():
    assert rank_me(torch.zeros(6, 4)) == pytest.approx(1, abs=1e-4)


def test_biases_and_norms_neither_decay_nor_adapt():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    net[2].weight.requires_grad_(False)
    decay, rest = parameter_groups([net], 0.1)
    assert [id(p) for p in decay["params"]] == [id(net[0].weight)]
    assert decay["weight_decay"] == 0.1
    assert decay["adapt"] is True
    assert {id(p) for p in rest["params"]} == {id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[2].bias)}
    assert rest["weight_decay"] == 0
    assert rest["adapt"] is False


def test_adamw_decays_matrices_by_lr_times_decay_and_biases_not():
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = build_optimizer("adamw", [layer], learning_rate=0.1, weight_decay=0.5)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(layer.weight, weight * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, bias)


def test_sgd_has_momentum():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    optimizer = build_optimizer("sgd", [layer], learning_rate=0.1, weight_decay=0)
    for _ in range(2):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    assert layer.weight.item() == pytest.approx(-0.1 * 1 - 0.1 * 1.9)


def test_lars_steps_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    bias = nn.Parameter(torch.tensor([1.0]))
    groups = [
        {"params": [weight], "weight_decay": 0.1, "adapt": True},
        {"params": [bias], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, lr=2.0, momentum=0.5, trust=0.02)

    weight.grad, bias.grad = torch.tensor([[0.7, -0.4]]), torch.tensor([0.25])
    optimizer.step()
    # u = g + 0.1 w = (1, 0): norm 1, so it is scaled by 0.02 * 5 / 1 = 0.1
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0 - 2 * 0.1, 4.0]]))
    assert bias.item() == pytest.approx(1 - 2 * 0.25)

    weight.grad, bias.grad = torch.tensor([[-0.28, 0.6]]), torch.tensor([0.0])
    before = weight.detach().clone()
    optimizer.step()
    # u = (0, 1); velocity = 0.5 * (0.1, 0) + 0.02 * |w| * (0, 1)
    velocity = torch.tensor([[0.05, 0.02 * float(before.norm())]])
    torch.testing.assert_close(weight.detach(), before - 2 * velocity)
    assert bias.item() == pytest.approx(0.5 - 2 * 0.5 * 0.25)


def test_lars_does_not_scale_a_tensor_of_zeros_or_without_gradient():
    zero, still = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.ones(1, 2))
    unused = nn.Parameter(torch.ones(1, 2))
    optimizer = LARS([{"params": [zero, still, unused], "weight_decay": 0.0, "adapt": True}], lr=1.0)
    zero.grad, still.grad = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.tensor([[-1.0, -2.0]]))
    assert torch.equal(still.detach(), torch.ones(1, 2))
    assert torch.equal(unused.detach(), torch.ones(1, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_survives_a_round_trip(name):
    def make():
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        return layer, build_optimizer(name, [layer], learning_rate=0.1, weight_decay=0.01)

    def step(layer, optimizer, seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        layer(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()

    straight, first = make()
    for seed in range(4):
        step(straight, first, seed)
    begun, second = make()
    for seed in range(2):
        step(begun, second, seed)
    resumed, third = make()
    resumed.load_state_dict(begun.state_dict())
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    for seed in range(2, 4):
        step(resumed, third, seed)
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)
