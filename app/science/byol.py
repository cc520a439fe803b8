"""Bootstrap Your Own Latent (Grill et al. 2020): networks, loss, EMA, optimizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.science.convolutions import Linear
from app.science.networks import Encoder, mlp
from app.science.norms import PairedBatchNorm
from app.settings import OptimizerName, PredictorName


def regression_loss(prediction: Tensor, projection: Tensor) -> Tensor:
    """Squared distance of the L2-normalised vectors, mean over the batch: ``2 - 2 cos`` (equation 2).

    Args:
        prediction: online prediction, (B, D).
        projection: target projection, (B, D).

    Returns:
        A scalar between 0 (same direction) and 4 (opposite).
    """
    prediction, projection = F.normalize(prediction.float(), dim=-1), F.normalize(projection.float(), dim=-1)
    return (2 - 2 * (prediction * projection).sum(-1)).mean()


class BYOL(nn.Module):
    """Online network (encoder, projector, predictor) and its EMA target (encoder, projector).

    The target stays in training mode: its BatchNorm uses batch statistics, as the online network's does.

    Args:
        encoder: the online encoder; the target starts as a copy of it.
        projector_hidden: width of the projector's hidden layer.
        predictor_hidden: width of the predictor's hidden layer.
        projection: size of the projection and the prediction.
        predictor: ``mlp``, or ``linear``: one linear layer.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        projector_hidden: int,
        predictor_hidden: int,
        projection: int,
        predictor: PredictorName = "mlp",
    ) -> None:
        super().__init__()
        self.online = nn.Sequential(encoder, mlp(encoder.features, projector_hidden, projection))
        linear = predictor == "linear"
        self.predictor = Linear(projection, projection) if linear else mlp(projection, predictor_hidden, projection)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.paired = False

    @property
    def encoder(self) -> Encoder:
        """The online encoder: what pretraining is for."""
        return cast(Encoder, self.online[0])

    def pair(self) -> None:
        """Send both views through the networks in one batch from now on, half as many operations of twice the size.

        Batch statistics stay per view, see ``PairedBatchNorm``: results agree to rounding. Compiled on a GPU this is
        faster; elsewhere it is not.
        """
        self.paired = True
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.__class__ = PairedBatchNorm

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Symmetric loss of two views of the same images.

        Each view goes through the networks on its own, so batch statistics are per view. Both directions
        are summed, as in the paper's ``loss``: the value lies between 0 and 8.

        Args:
            view1: normalised images, (B, C, H, W).
            view2: another view of the same images, same shape.

        Returns:
            The loss, a scalar, and the target projection of ``view1``, (B, D), without gradient.
        """
        if self.paired:
            views = torch.cat([view1, view2])
            with torch.no_grad():
                target1, target2 = self.target(views).chunk(2)
            prediction1, prediction2 = self.predictor(self.online(views)).chunk(2)
        else:
            with torch.no_grad():
                target1, target2 = self.target(view1), self.target(view2)
            prediction1, prediction2 = self.predictor(self.online(view1)), self.predictor(self.online(view2))
        loss = regression_loss(prediction1, target2) + regression_loss(prediction2, target1)
        return loss, target1

    @torch.no_grad()
    def update_target(self, momentum: float | Tensor) -> None:
        """Move the target towards the online network: ``target = m * target + (1 - m) * online``.

        ``momentum`` 0 copies the online network, 1 leaves the target alone. Only parameters move; the
        target's BatchNorm keeps running statistics of its own. A tensor, float64 and without dimensions, is read
        where it lies: by a recorded step, whose momentum changes.
        """
        target = [p.data for p in self.target.parameters()]
        online = [p.data for p in self.online.parameters()]
        if isinstance(momentum, float | int):
            torch._foreach_lerp_(target, online, 1 - momentum)
        else:
            change = torch._foreach_sub(online, target)
            torch._foreach_mul_(change, (1 - momentum).to(torch.float32))
            torch._foreach_add_(target, change)


def target_std(projection: Tensor) -> float:
    """Spread of the target projections: std of the L2-normalised vectors times sqrt(D).

    0 is collapse to a constant, about 1 is spread evenly over the sphere (Chen and He 2021, section 4.1).

    Args:
        projection: (B, D).
    """
    normalised = F.normalize(projection.float(), dim=-1)
    return float(normalised.std(0).mean() * math.sqrt(projection.shape[1]))


def rank_me(features: Tensor) -> float:
    """Effective rank of the features: exp of the entropy of the normalised singular values.

    Garrido et al. 2023, "RankMe", equation 1. Between 1 and min(N, D).

    Args:
        features: (N, D).
    """
    singular = torch.linalg.svdvals(features.float())
    p = singular / singular.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices and kernels, which decay, and biases and norms, which do not."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


class LARS(torch.optim.Optimizer):
    """SGD with momentum and layer-wise adaptive rates (You et al. 2017), as DeepMind's BYOL code has it.

    In an ``adapt`` group ``u = g + wd * w`` is scaled by ``trust * |w| / |u|`` before it joins the velocity
    (You's algorithm 1 divides by ``|g| + wd * |w|``); groups with ``adapt`` false (biases, norms) are plain
    SGD. The learning rate multiplies the velocity when it is applied.

    Args:
        groups: parameter groups with ``weight_decay`` and ``adapt``.
        lr: learning rate.
        momentum: of the velocity.
        trust: the trust coefficient eta.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9, trust: float = 0.02
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one update; ``closure``, if given, computes the loss anew and is returned."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad.add(p, alpha=group["weight_decay"])
                if group["adapt"]:
                    weight, change = p.norm(), update.norm()
                    ratio = group["trust"] * weight / change
                    update = update * torch.where((weight > 0) & (change > 0), ratio, torch.ones_like(ratio))
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(update)
                if isinstance(group["lr"], Tensor):  # of a recorded step, see ``update_target``
                    p.sub_(group["lr"] * velocity)
                else:
                    p.add_(velocity, alpha=-group["lr"])
        return loss


def build_optimizer(
    name: OptimizerName, modules: Iterable[nn.Module], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make the optimizer over all trainable parameters of ``modules``; biases and norms never decay."""
    groups = parameter_groups(modules, weight_decay)
    if name == "lars":
        return LARS(groups, lr=learning_rate)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, fused=True)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=learning_rate, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, and compare the shapes of its tensors, which torch does not.

    Raises:
        ValueError: it is another network's.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of the optimizer is {tuple(value.shape)}, not {tuple(parameter.shape)}")
