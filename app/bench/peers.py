"""Peer libraries, each used as its own documentation uses it, on our images, batch and network."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from app.bench.turns import Contender, now
from app.data import Unlabelled
from app.errors import UsageError
from app.machine import cores
from app.science.networks import to_float, torchvision_resnet
from app.settings import Config


def build_peers(config: Config, data: Unlabelled, device: str) -> list[Contender]:
    """Build all peers for the network, batch and images of ``config``.

    Raises:
        UsageError: one is not installed, or cannot have this network.
    """
    network = config.network
    if network.projector_hidden != network.predictor_hidden:
        raise UsageError("bench --peers: needs projector_hidden = predictor_hidden, all that they have")
    if config.pretrain.accumulate > 1:
        raise UsageError("bench --peers: they do not accumulate gradients; use --set pretrain.accumulate=1")
    return [ByolPytorch(config, data, device), Lightly(config, data, device)]


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"bench --peers: {error}; install them by pip install '.[peers]'") from error


class ByolPytorch:
    """byol-pytorch, as in its README: a batch of tensors, its own augmentation, Adam, ``update_moving_average``.

    Its heads are as wide as ours and have no simplicial embeddings, which are its default and not BYOL's. A gray
    image becomes three channels, since it takes nothing else.
    """

    name = "byol-pytorch"

    def __init__(self, config: Config, data: Unlabelled, device: str) -> None:
        with _installed():
            from byol_pytorch import BYOL
        network = config.network
        self.device, self.batch = device, config.pretrain.batch_size
        self.images = torch.from_numpy(data.images).to(device)
        self.learner = BYOL(
            torchvision_resnet(network.architecture, network.stem).to(device),
            image_size=data.size,
            hidden_layer="avgpool",
            projection_size=network.projection,
            projection_hidden_size=network.projector_hidden,
            use_simplicial_embeddings=False,
        )
        self.optimizer = torch.optim.Adam(self.learner.parameters(), lr=3e-4)

    def turn(self, steps: int) -> float:
        """Do ``steps`` steps after one that does not count; return seconds a step."""
        self._step()
        begin = now(self.device)
        for _ in range(steps):
            self._step()
        return (now(self.device) - begin) / steps

    def _step(self) -> None:
        at = torch.randint(len(self.images), (self.batch,), device=self.device)
        images = to_float(self.images[at])
        loss = self.learner(images.expand(-1, 3, -1, -1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.learner.update_moving_average()


class Lightly:
    """lightly, as in its example for BYOL: its transform of PIL images in a DataLoader, SGD, ``update_momentum``.

    Its heads are as wide as ours. As many workers as cores load; a turn begins with fresh ones and with steps that
    do not count, until they are as far ahead as they come.
    """

    name = "lightly"
    warm_up = 6

    def __init__(self, config: Config, data: Unlabelled, device: str) -> None:
        with _installed():
            from lightly.loss import NegativeCosineSimilarity
            from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
            from lightly.models.utils import deactivate_requires_grad, update_momentum
            from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
        network = config.network
        self.device, self.batch = device, config.pretrain.batch_size
        self.update_momentum = update_momentum
        transform = BYOLTransform(
            view_1_transform=BYOLView1Transform(input_size=data.size, gaussian_blur=0.0),
            view_2_transform=BYOLView2Transform(input_size=data.size, gaussian_blur=0.0),
        )
        self.loader = torch.utils.data.DataLoader(
            _Pictures(data, transform),
            batch_size=self.batch,
            shuffle=True,
            drop_last=True,
            num_workers=cores(),
        )
        resnet = torchvision_resnet(network.architecture, network.stem)
        self.backbone = nn.Sequential(*list(resnet.children())[:-1]).to(device)
        width, hidden = resnet.fc.in_features, network.projector_hidden
        self.projection_head = BYOLProjectionHead(width, hidden, network.projection).to(device)
        self.prediction_head = BYOLPredictionHead(network.projection, hidden, network.projection).to(device)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()
        trained = nn.ModuleList([self.backbone, self.projection_head, self.prediction_head])
        self.optimizer = torch.optim.SGD(trained.parameters(), lr=0.06)

    def turn(self, steps: int) -> float:
        """Do ``steps`` steps after some that do not count; return seconds a step."""
        batches = self._batches()
        for _ in range(self.warm_up):
            self._step(next(batches))
        begin = now(self.device)
        for _ in range(steps):
            self._step(next(batches))
        seconds = (now(self.device) - begin) / steps
        batches.close()  # its workers would go on loading in the others' turns
        return seconds

    def _batches(self) -> Generator[Any, None, None]:
        while True:
            yield from self.loader

    def _step(self, batch: Any) -> None:
        x0, x1 = (view.to(self.device) for view in batch)
        self.update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        self.update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        p0, z0 = self._online(x0), self._target(x0)
        p1, z1 = self._online(x1), self._target(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _online(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))
        return prediction

    def _target(self, x: Tensor) -> Tensor:
        projection: Tensor = self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1))
        return projection.detach()


class _Pictures(torch.utils.data.Dataset[Any]):
    """Images as torchvision's data sets have them: PIL, in RGB, then the transform."""

    def __init__(self, data: Unlabelled, transform: Any) -> None:
        self.images, self.transform = data.images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index]).convert("RGB"))
