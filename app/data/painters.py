"""Painters of phantoms: from labels and random numbers to images, one painter for each modality.

Each image is made of random anatomy, pose, exposure and noise; the class only shifts the distribution of
a few findings, so that classes overlap as they do in reality. The numbers below were set by eye to look like
the modality; no learning method was consulted.

Coordinates: x to the right and y downwards, both in [-1, 1]. Parameters are arrays (n, 1, 1), one per image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.files import Images

Field = NDArray[Any]  # float32 (n, size, size), or (n, 1, 1): one number per image
Labels = NDArray[np.int64]


def _grid(size: int) -> tuple[Field, Field]:
    axis = ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def _step(distance: Field, softness: float | Field) -> Field:
    """Return 1 inside (``distance`` < 0), 0 outside, with an edge about ``softness`` wide."""
    inside: Field = 0.5 - 0.5 * np.tanh(distance / softness)
    return inside


def _ellipse(x: Field, y: Field, centre: tuple[Field, Field], radii: tuple[Field, Field], tilt: Field) -> Field:
    """Return a rough signed distance to tilted ellipses: negative inside."""
    dx, dy = x - centre[0], y - centre[1]
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), dy * np.cos(tilt) - dx * np.sin(tilt)
    distance: Field = (np.hypot(u / radii[0], v / radii[1]) - 1.0) * np.minimum(*radii)
    return distance


def _blob(x: Field, y: Field, cx: Field, cy: Field, width: Field) -> Field:
    bump: Field = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2.0 * width**2))
    return bump


def _band(position: Field, width: float | Field) -> Field:
    band: Field = np.exp(-((position / width) ** 2))
    return band


class _Random:
    """Random parameters, one per image, (n, 1, 1); and random fields, (n, size, size)."""

    def __init__(self, rng: np.random.Generator, n: int, size: int) -> None:
        self.rng, self.n, self.size = rng, n, size
        # Radial frequency in cycles per image, so that a field has the same detail at every size.
        frequency = np.fft.fftfreq(size, 1.0 / size)
        self._radius = np.hypot(frequency[:, None], np.fft.rfftfreq(size, 1.0 / size)[None, :])

    def uniform(self, low: float, high: float) -> Field:
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def normal(self, mean: float, deviation: float) -> Field:
        return self.rng.normal(mean, deviation, (self.n, 1, 1)).astype(np.float32)

    def lognormal(self, median: float, deviation: float) -> Field:
        return (median * np.exp(self.rng.normal(0.0, deviation, (self.n, 1, 1)))).astype(np.float32)

    def side(self) -> Field:
        return (self.rng.integers(0, 2, (self.n, 1, 1)) * 2 - 1).astype(np.float32)

    def chance(self, probability: float) -> Field:
        return (self.rng.random((self.n, 1, 1)) < probability).astype(np.float32)

    def phase(self) -> Field:
        return self.uniform(0.0, 2.0 * np.pi)

    def field(self, cycles: float) -> Field:
        """Return a Gaussian random field of unit variance whose detail ends near ``cycles`` per image."""
        white = np.fft.rfft2(self.rng.standard_normal((self.n, self.size, self.size)))
        soft = np.exp(-0.5 * (self._radius / cycles) ** 2)
        soft[0, 0] = 0.0
        field = np.fft.irfft2(white * soft, s=(self.size, self.size))
        unit: Field = (field / (field.std(axis=(1, 2), keepdims=True) + 1e-6)).astype(np.float32)
        return unit

    def wavy(self, angle: Field, orders: Sequence[int]) -> Field:
        """Return a random periodic function of ``angle`` of about unit variance, for irregular outlines."""
        waves = np.zeros_like(angle)
        for order in orders:
            waves += np.sin(order * angle + self.phase()) * self.normal(0.0, 1.0) / order
        outline: Field = waves * np.sqrt(2.0 / sum(1.0 / order**2 for order in orders))
        return outline


def _to_uint8(image: Field) -> Images:
    pixels: Images = np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)
    return pixels


# --- chest ------------------------------------------------------------------------------------------------


class _Chest:
    """A frontal chest film: trunk, lungs, heart, diaphragm, ribs, spine and vessels."""

    def __init__(self, r: _Random, *, view: float, heart: Field, inflation: Field, lucency: Field) -> None:
        """Place the anatomy. ``view`` is the half-width of the film, ``heart`` the heart's half-width."""
        self.r, self.lucency = r, lucency
        x, y = _grid(r.size)
        tilt, zoom = r.normal(0.0, 0.04), view * r.lognormal(1.0, 0.07)
        x, y = (x - r.normal(0.0, 0.06)) * zoom, (y - r.normal(0.0, 0.06)) * zoom - 0.08
        self.x, self.y = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
        x, y = self.x, self.y
        self.base = r.normal(0.46, 0.06) * inflation
        self.centre = r.normal(0.42, 0.03)
        width, height, lean = r.normal(0.31, 0.03), r.normal(0.68, 0.05) * inflation, r.normal(0.13, 0.04)
        lungs = []
        for side in (-1.0, 1.0):
            shape = _ellipse(x, y, (side * self.centre, r.normal(-0.06, 0.02)), (width, height), side * -lean)
            dome = y - (self.base + r.normal(0.0, 0.03) - 0.6 * (np.abs(x) - self.centre) ** 2)
            lungs.append(_step(np.maximum(shape, dome), 0.05))
        self.right, self.left = lungs  # the patient's right is on the viewer's left
        self.lungs = np.clip(self.right + self.left, 0.0, 1.0)
        middle = (r.normal(0.10, 0.02), self.base - 0.22)
        self.heart = _step(_ellipse(x, y, middle, (heart, r.normal(0.28, 0.03)), r.normal(0.5, 0.1)), 0.06)

    def lung(self, side: Field) -> Field:
        """Return the right lung where ``side`` is -1, the left where it is 1."""
        return np.where(side < 0, self.right, self.left)

    def spot(self, side: Field, heights: tuple[float, float], widths: tuple[float, float]) -> Field:
        """Return a round spot of height 1 somewhere in the lung of ``side``."""
        r = self.r
        cx, cy = side * (self.centre + r.normal(0.0, 0.10)), r.uniform(*heights)
        return _blob(self.x, self.y, cx, cy, r.uniform(*widths))

    def film(self, opacity: Field, lucent: Field) -> Images:
        """Return the exposed film. ``opacity`` >= 0 fills lung towards soft tissue; ``lucent`` darkens it."""
        r, x, y = self.r, self.x, self.y
        shoulders = np.maximum(-0.92 + r.normal(0.45, 0.1) * x**2 - y, np.abs(x) - r.normal(1.0, 0.07))
        trunk = np.maximum(_step(shoulders, 0.06), _step(np.abs(x) - 0.24, 0.05))
        ribs = np.sin((y + r.normal(0.35, 0.06) * x**2) * r.uniform(13.0, 17.0) + r.phase())
        ribs = ribs * np.clip(3.0 * (np.abs(x) - 0.12), 0.0, 1.0)
        tissue = r.normal(0.70, 0.05) + 0.035 * r.field(2.0)
        aerated = self.lungs * (1.0 - 0.8 * self.heart)
        depth = np.clip(0.42 + 0.08 * self.lucency, 0.15, 0.62) + lucent
        hila = np.zeros_like(x)
        for side in (-1.0, 1.0):
            hila += _blob(x, y, side * r.normal(0.24, 0.02), r.normal(-0.02, 0.05), r.uniform(0.07, 0.11))
        vessels = np.clip(r.field(8.0), 0.0, 3.0) * _band(x, 0.55)
        markings = r.uniform(0.25, 0.5) * hila + r.uniform(0.03, 0.10) * vessels
        air = aerated * depth * np.exp(-2.2 * np.maximum(opacity + markings, 0.0))
        density = tissue - air + r.uniform(0.015, 0.045) * ribs * (0.3 + 0.7 * aerated)
        density = density + 0.15 * _band(x, r.normal(0.13, 0.015)) + 0.05 * self.heart
        film = 0.5 + r.lognormal(1.05, 0.10) * (density - 0.5) + r.normal(0.0, 0.04)
        film = trunk * np.clip(film, 0.0, 1.0) + (1.0 - trunk) * r.uniform(0.0, 0.10)
        return _to_uint8(film + r.uniform(0.004, 0.015) * r.field(10.0))


def _paint_pneumonia(rng: np.random.Generator, labels: Labels, size: int) -> Images:
    """Paint 0 normal, 1 pneumonia: patchy opacities, in one lung or both, over a child's chest."""
    r = _Random(rng, len(labels), size)
    sick = labels[:, :, None].astype(np.float32)
    inflation = r.normal(1.02, 0.06) - 0.03 * sick
    heart, lucency = r.normal(0.35, 0.045), r.normal(-0.3, 0.45)
    chest = _Chest(r, view=0.84, heart=heart, inflation=inflation, lucency=lucency)
    # Healthy films show some opacity too (poor inspiration, thymus, vessels), and mild disease little.
    severity = r.lognormal(1.0, 0.6) * (0.14 + 0.52 * sick)
    side, both = r.side(), r.chance(0.45)
    spots = np.zeros((r.n, size, size), np.float32)
    for which, weight in ((side, 1.0), (side, 1.0), (-side, both), (-side, both)):
        spots += r.uniform(0.4, 1.2) * weight * chest.spot(which, (-0.35, 0.40), (0.12, 0.28))
    diffuse = r.chance(0.4) * r.uniform(0.1, 0.5)
    patches = np.clip(1.0 + 0.45 * r.field(5.0), 0.1, 2.5)
    return chest.film(severity * (spots + diffuse) * patches, np.zeros_like(severity))


def _paint_chest(rng: np.random.Generator, labels: Labels, size: int) -> Images:
    """Paint adult chest films with any of ChestMNIST's 14 findings, in the order of its labels."""
    r = _Random(rng, len(labels), size)
    has = [labels[:, index, None, None].astype(np.float32) for index in range(labels.shape[1])]
    atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumonia = has[:7]
    pneumothorax, consolidation, edema, emphysema, fibrosis, pleural, hernia = has[7:]
    chest = _Chest(
        r,
        view=1.0,
        heart=r.normal(0.33, 0.035) + 0.10 * cardiomegaly * r.uniform(0.5, 1.5),
        inflation=r.normal(1.05, 0.07) + 0.08 * emphysema - 0.06 * atelectasis,
        lucency=r.normal(0.3, 0.6) + emphysema,
    )
    x, y = chest.x, chest.y
    low, anywhere = (-0.2, 0.4), (-0.5, 0.35)
    patches = np.clip(1.0 + 0.5 * r.field(5.0), 0.0, 2.0)
    opacity = pneumonia * r.lognormal(0.6, 0.4) * patches * chest.spot(r.side(), low, (0.14, 0.26))
    opacity += consolidation * r.lognormal(0.8, 0.4) * chest.spot(r.side(), anywhere, (0.16, 0.28))
    opacity += mass * r.lognormal(1.0, 0.4) * chest.spot(r.side(), anywhere, (0.09, 0.14))
    opacity += nodule * r.lognormal(0.9, 0.4) * chest.spot(r.side(), anywhere, (0.04, 0.07))
    opacity += infiltration * r.uniform(0.1, 0.4) * np.clip(r.field(4.0), 0.0, 2.0)
    opacity += edema * r.uniform(0.2, 0.6) * _band(x, 0.6) * patches
    opacity += fibrosis * r.uniform(0.1, 0.4) * np.abs(r.field(11.0)) * _step(-y - 0.2, 0.3)
    opacity += pleural * r.uniform(0.5, 1.5) * 4.0 * chest.lungs * (1.0 - chest.lungs)
    stomach = _blob(x, y, r.normal(0.0, 0.06), chest.base - 0.05, r.uniform(0.12, 0.2))
    opacity += hernia * r.uniform(0.6, 1.5) * stomach
    plate = y - r.uniform(0.0, 0.4) + 0.3 * x * r.side()
    opacity += atelectasis * r.uniform(0.3, 1.0) * _band(plate, 0.05) * chest.lung(r.side())
    water = y - chest.base + r.uniform(0.1, 0.5) - 0.25 * (np.abs(x) - 0.6)
    wet = np.maximum(_step(-x * r.side(), 0.01), r.chance(0.3))
    opacity += effusion * 2.0 * wet * _step(-water, 0.06)
    apex = _step(y + r.uniform(0.2, 0.5), 0.08) * _step(0.42 - np.abs(x), 0.08)
    return chest.film(opacity, pneumothorax * r.uniform(0.08, 0.2) * apex * chest.lung(r.side()))


# --- breast -----------------------------------------------------------------------------------------------


def _paint_breast(rng: np.random.Generator, labels: Labels, size: int) -> Images:
    """Paint 0 malignant, 1 normal or benign: layered tissue in speckle with a dark lesion.

    Malignant lesions tend to an irregular, blurred outline, to be taller than wide and to cast a shadow;
    benign ones to be smooth wide ellipses with brighter tissue below. A fifth of class 1 has no lesion.
    """
    r = _Random(rng, len(labels), size)
    bad = (labels[:, :, None] == 0).astype(np.float32)
    x, y = _grid(size)
    tissue = r.normal(0.44, 0.05) + 0.06 * r.field(2.5)
    tissue += 0.08 * np.sin((y + 0.10 * r.field(1.5)) * r.uniform(6.0, 11.0) + r.phase())
    tissue += 0.15 * _band(y + r.normal(0.55, 0.10), 0.12) + 0.25 * _band(y + 1.0, 0.12)
    centre = (r.normal(0.0, 0.16), r.normal(-0.02, 0.14))
    dx, dy = x - centre[0], y - centre[1]
    radius = r.lognormal(0.36, 0.22) * (1.0 + 0.08 * bad)
    aspect = r.lognormal(1.26, 0.20) * (1.0 - 0.18 * bad)
    distance = _ellipse(x, y, centre, (radius * aspect, radius / aspect), r.normal(0.0, 0.25))
    rough = r.lognormal(0.08, 0.45) * (1.0 + 1.3 * bad)
    distance = distance + radius * rough * r.wavy(np.arctan2(dy, dx), (2, 3, 4, 5, 7, 9))
    present = np.maximum(bad, r.chance(0.8))
    lesion = present * _step(distance, 0.07 + 0.06 * bad * r.uniform(0.0, 1.0))
    below = present * _step(np.abs(dx) - 0.7 * radius, 0.12) * _step(0.5 * radius - dy, 0.10) * (1.0 - lesion)
    shadow = r.normal(-0.04, 0.08) + 0.18 * bad
    echo = tissue * (1.0 - r.uniform(0.5, 0.85) * lesion) * (1.0 - 1.8 * shadow * below)
    # Speckle: the magnitude of a complex Gaussian field is Rayleigh distributed, with mean sqrt(pi / 2).
    speckle = np.hypot(r.field(5.0), r.field(5.0)) / np.sqrt(np.pi / 2.0)
    echo = echo * (1.0 + r.uniform(0.12, 0.30) * (speckle - 1.0)) * r.lognormal(1.0, 0.12)
    return _to_uint8(echo * (1.0 - r.uniform(0.1, 0.7) * (y + 1.0) / 2.0))


# --- skin -------------------------------------------------------------------------------------------------

# One row per class of DermaMNIST: radius, raggedness of the outline, colour (R, G, B), depth of the colour,
# variegation, softness of the edge.
_SKIN = np.array(
    [
        [0.46, 0.13, 0.62, 0.36, 0.34, 0.55, 0.32, 0.14],  # actinic keratoses: pale red, scaly
        [0.46, 0.11, 0.64, 0.38, 0.40, 0.58, 0.34, 0.12],  # basal cell carcinoma: pink, pearly
        [0.50, 0.13, 0.50, 0.34, 0.28, 0.62, 0.30, 0.09],  # benign keratosis: brown, sharp edge
        [0.38, 0.08, 0.56, 0.36, 0.34, 0.58, 0.20, 0.16],  # dermatofibroma: small, paler centre
        [0.56, 0.14, 0.36, 0.22, 0.20, 0.76, 0.45, 0.09],  # melanoma: large, ragged, dark, of several colours
        [0.43, 0.10, 0.46, 0.28, 0.22, 0.68, 0.22, 0.11],  # melanocytic nevi: round, even brown
        [0.37, 0.09, 0.56, 0.14, 0.24, 0.72, 0.20, 0.08],  # vascular lesions: red to purple
    ],
    np.float32,
)


def _paint_skin(rng: np.random.Generator, labels: Labels, size: int) -> Images:
    """Paint DermaMNIST's seven classes: a lesion on skin, with hairs, vignetting and uneven light."""
    r = _Random(rng, len(labels), size)
    x, y = _grid(size)
    look = [column[:, None, None] for column in _SKIN[labels[:, 0]].T]
    radius, ragged, red, green, blue, depth, variegation, edge = look
    dermatofibroma, melanoma = ((labels[:, :, None] == index).astype(np.float32) for index in (3, 4))
    centre = (r.normal(0.0, 0.10), r.normal(0.0, 0.10))
    radius, aspect = radius * r.lognormal(1.0, 0.24), r.lognormal(1.0, 0.16)
    distance = _ellipse(x, y, centre, (radius * aspect, radius / aspect), r.phase())
    angle = np.arctan2(y - centre[1], x - centre[0])
    distance = distance + radius * ragged * r.lognormal(1.0, 0.35) * r.wavy(angle, (2, 3, 4, 5, 7))
    lesion = _step(distance, edge * r.lognormal(1.0, 0.3))
    lesion = lesion * (1.0 - dermatofibroma * r.uniform(0.0, 0.6) * _step(distance + 0.5 * radius, 0.08))
    patches = r.field(3.0)
    depth = np.clip(depth + r.normal(0.0, 0.12), 0.2, 0.95)
    mottled = depth * (1.0 + variegation * patches + 0.12 * r.field(8.0))
    cover = (lesion * np.clip(mottled, 0.0, 1.0))[..., None]
    light, warmth = r.normal(0.0, 0.06)[..., None], r.normal(0.0, 0.05)
    skin = light + np.stack([0.82 + 0.3 * warmth, 0.62 - warmth, 0.60 - 1.3 * warmth], axis=-1)
    skin = skin + r.rng.normal(0.0, 0.02, skin.shape).astype(np.float32)
    shade = r.normal(0.0, 0.05)
    tint = np.stack([colour + shade + r.normal(0.0, 0.03) for colour in (red, green, blue)], axis=-1)
    image = skin * (1.0 + 0.03 * r.field(2.0)[..., None]) * (1.0 - cover) + tint * cover
    veil = melanoma * r.chance(0.5) * r.uniform(0.0, 0.12) * lesion * np.clip(patches, 0.0, 2.0)
    image = image + veil[..., None] * np.array([-0.3, 0.2, 1.0], np.float32)
    for _ in range(3):
        turn, bend = r.phase(), r.normal(0.0, 0.3)
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        hair = r.chance(0.15) * _band(across - r.uniform(-0.9, 0.9) - bend * along**2, 0.035)
        image = image * (1.0 - r.uniform(0.2, 0.5) * hair)[..., None]
    lamp = 1.0 + r.normal(0.0, 0.05) * x + r.normal(0.0, 0.05) * y - r.uniform(0.0, 0.12) * (x**2 + y**2)
    image = image * (lamp * r.lognormal(1.0, 0.06))[..., None]
    return _to_uint8(image + 0.01 * np.stack([r.field(10.0) for _ in range(3)], axis=-1))


PAINTERS: Mapping[str, Callable[[np.random.Generator, Labels, int], Images]] = {
    "chestmnist": _paint_chest,
    "pneumoniamnist": _paint_pneumonia,
    "breastmnist": _paint_breast,
    "dermamnist": _paint_skin,
}
