"""Settings: typed, frozen, strict. Science reads its own parts of them; ``config.py`` makes them from YAML.

No field has a default here: ``presets/recommended.yaml`` is complete, with the unit of each. Those that have one, the
quirks of the paper's public code, are younger than runs that there may be: at its default such a field is no part of a
run's identity (``Config.science``), so that those runs go on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["byol", "byol_plus"]
METHODS: tuple[Method, ...] = get_args(Method)
Stem = Literal["stock", "middle", "cifar"]
OptimizerName = Literal["adam", "adamw", "sgd", "lars"]
Baseline = Literal["random", "imagenet"]
ProtocolName = Literal["finetune", "linear_probe", "few_shot", "few_shot_frozen"]
DataName = Annotated[str, Field(pattern="^[a-z0-9_]+$")]  # part of keys in the store, and of --data NAME=URI
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[NotNegative, NotNegative]
Drawn = Literal["per_image", "per_batch"]
PredictorName = Literal["mlp", "linear"]
Budget = Count | Annotated[str, Field(pattern=r"^(100|[1-9]?\d(\.\d+)?)%$")]  # labels: so many per class, or a share


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys or silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Section:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float) and value[0] > value[1]:
                raise ValueError(f"{name}: the first value must not exceed the second")
        return self


class Grid(Section):
    """What is compared with what."""

    methods: tuple[Method, ...]
    baselines: tuple[Baseline, ...]
    datasets: tuple[DataName, ...]
    protocols: tuple[ProtocolName, ...]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_repeats(self) -> Grid:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: names something twice")
        return self


class Data(Section):
    """Which images, and how many of them."""

    pretrain: DataName
    pretrain_split: Literal["all", "train", "train_val"]
    size: Literal[28, 32, 64, 128, 224]
    subset: Count | None
    monitor: DataName | None
    phantoms: Literal["never", "if_missing", "always"]


class Reading(Section):
    """How image files become squares; part of the checksum of what was read, and so not of the settings compared.

    Attributes:
        fit: what becomes of images that are not square: padded with black, or cut to their centre.
        frame: of files that hold several, counted from 1; None refuses them.
        max_unreadable: share of the images that may be unreadable.
        anonymise: hash the names of files that the plan, or a message, names.
    """

    fit: Literal["pad", "crop"]
    frame: Count | None
    max_unreadable: Probability
    anonymise: bool


class Network(Section):
    """The encoder and the heads.

    Attributes:
        predictor: ``linear`` is one linear layer, without BatchNorm, and without ``predictor_hidden``.
    """

    architecture: str
    stem: Stem
    init: str
    projector_hidden: Count
    predictor_hidden: Count
    projection: Count
    predictor: PredictorName = "mlp"

    @property
    def takes_imagenet(self) -> bool:
        """Whether ImageNet's weights fit, whose first kernel is the stock stem's."""
        return self.stem == "stock"


class Pretrain(Section):
    """The pretraining recipe.

    Attributes:
        ema_every: when the target moves: after each optimizer step, or after each of its ``accumulate`` micro-batches
            and before the step itself.
    """

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    accumulate: Count
    optimizer: OptimizerName
    learning_rate: Positive
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    cosine: bool
    ema_momentum: Probability
    ema_cosine: bool
    precision: Literal["auto", "float32", "bfloat16"]
    monitor_every: Count
    knn_neighbours: Count
    knn_temperature: Positive
    collapse_below: NotNegative
    ema_every: Literal["step", "micro_batch"] = "step"


class Views(Section):
    """The operations that the views of both methods share; a probability of 0 leaves one out.

    Attributes:
        crop_scale: least and greatest share of the area that a random resized crop keeps.
        crop_ratio: least and greatest ratio of width to height of the crop.
        flip: probability of a horizontal flip.
        jitter: probability of the colour jitter.
        jitter_brightness: its factor is drawn from [1 - b, 1 + b].
        jitter_contrast: likewise, about the mean luminance of the image.
        jitter_saturation: likewise; nothing on gray images.
        jitter_hue: shift drawn from [-h, h] turns, at most 0.5; nothing on gray images.
        grayscale: probability of dropping the colour; nothing on gray images.
        blur: probability of a Gaussian blur.
        blur_sigma: least and greatest standard deviation, in pixels.
        blur_radius: the kernel spans ``2 * blur_radius + 1`` pixels.
        jitter_and_blur: whether these two are switched on for each image, or for all views of a batch at once.
        normalise: ``once`` is to [-1, 1] after all operations; ``twice`` is to [-1, 1] before them, whose clipping to
            [0, 1] then makes the darker half of the intensities mid-gray, and by ImageNet's mean and std after them.
    """

    crop_scale: tuple[Probability, Probability]
    crop_ratio: tuple[Positive, Positive]
    flip: Probability
    jitter: Probability
    jitter_brightness: NotNegative
    jitter_contrast: NotNegative
    jitter_saturation: NotNegative
    jitter_hue: Annotated[float, Field(ge=0, le=0.5)]
    grayscale: Probability
    blur: Probability
    blur_sigma: Range
    blur_radius: Annotated[int, Field(ge=1, le=13)]
    jitter_and_blur: Drawn = "per_image"
    normalise: Literal["once", "twice"] = "once"


class ViewsPlus(Section):
    """The operations that BYOL+ adds.

    Attributes:
        contrast: probability of its contrast.
        contrast_range: least and greatest factor, about the mean luminance.
        brightness: probability of its brightness.
        brightness_range: least and greatest factor.
        cutout: probability of its cutout (DeVries and Taylor 2017).
        cutout_side: least and greatest side of the square, as a share of the image's side.
        cutout_shape: ``channels_and_rows`` cuts the square out of channels and rows, all columns: what ``[:, y, x]``
            does to a batch. Most of these squares lie beyond the last channel and cut nothing.
        drawn: all that BYOL+'s views draw: for each image, or once for all views of a batch.
        keep_blur: False leaves the blur to BYOL.
    """

    contrast: Probability
    contrast_range: Range
    brightness: Probability
    brightness_range: Range
    cutout: Probability
    cutout_side: tuple[Probability, Probability]
    cutout_shape: Literal["square", "channels_and_rows"] = "square"
    drawn: Drawn = "per_image"
    keep_blur: bool = True


class Augmentation(Views, ViewsPlus):
    """All operations of a method's views: BYOL's are those of BYOL+ with three probabilities of 0."""


class Recipe(Section):
    """How to train a classifier downstream.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; a last batch of one image joins the one before it.
        optimizer: name of the optimizer.
        learning_rate: its peak; there is no warm-up.
        weight_decay: on kernels and matrices, not on biases and norms.
        cosine: decay the learning rate to 0 by half a cosine.
        standardise: scale each feature of a frozen encoder to mean 0 and std 1 over the training images
            (one that is constant there is only shifted).
        epoch: whose weights are kept: those of the best on validation data, or of the last.
        batch_norm: the mode of a frozen encoder's BatchNorm while the linear layer is trained; in ``train`` it
            normalises by the batch, and its running statistics move.
        second_batch: every step also sees as many training images again, the first of another order.
    """

    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: Positive
    weight_decay: NotNegative
    cosine: bool
    standardise: bool
    epoch: Literal["best", "last"] = "best"
    batch_norm: Literal["eval", "train"] = "eval"
    second_batch: bool = False

    @model_validator(mode="after")
    def _features_stay(self) -> Recipe:
        if self.batch_norm == "train" and self.standardise:
            raise ValueError("batch_norm=train: features then change in every step, so set standardise to false")
        return self


class FewShotRecipe(Recipe):
    """The recipe of a protocol that sees ``k`` images per class, in ``draws`` independent draws.

    Attributes:
        k: images per class.
        draws: independent choices of them.
        curve: further numbers of labels to train with, for the label curve: images per class, or shares such as
            ``10%`` of all. None for no curve.
    """

    k: Count
    draws: Count
    curve: tuple[Budget, ...] | None


class Recipes(Section):
    """The recipe of each protocol."""

    finetune: Recipe
    linear_probe: Recipe
    few_shot: FewShotRecipe
    few_shot_frozen: FewShotRecipe


class Runtime(Section):
    """How jobs run; never changes what they compute beyond rounding, so it is recorded but not compared."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: Count | None
    processes: Count | None
    compile: Literal["auto", "always", "never"]
    kernels: Literal["auto", "plain"]
    checkpoint_minutes: Positive
    checkpoint_steps: Count | None
    keep: Count
    keep_models: Literal["all", "finetune", "heads"]
    patience_minutes: Positive
    grace_seconds: Positive
    claim_seconds: Positive
    claim_wait_minutes: NotNegative
    tensorboard: str | None


class Search(Section):
    """What ``tune`` tries: the section ``search`` of its preset.

    Attributes:
        method: how trials are pretrained.
        seed: of every trial; none of the study's, whose seeds are not to be chosen for.
        trials: so many combinations of values, drawn at random; None tries all. The preset's own are tried first.
        rungs: epochs of the trials of each round: all begin, and the better ones go on.
        keep: one trial in so many goes on to the next rung.
        settings: values to try, by the settings that take them: those of pretraining, ``network``, ``views`` and
            ``views_plus``. Names with commas between them change together: their values are lists of one for each.
    """

    method: Method
    seed: Annotated[int, Field(ge=0)]
    trials: Count | None
    rungs: Annotated[tuple[Count, ...], Field(min_length=1)]
    keep: Annotated[int, Field(ge=2)]
    settings: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_judged(self) -> Search:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError("rungs: each rung takes more epochs than the one before")
        for line, values in self.settings.items():
            count = len(names_of(line))
            if count > 1 and (odd := [v for v in values if not isinstance(v, list) or len(v) != count]):
                raise ValueError(f"settings: {line} are {count}, and need a list of {count} values, not {odd[0]}")
        names = [name for line in self.settings for name in names_of(line)]
        for name in names:
            if name.partition(".")[0] not in ("network", "pretrain", "views", "views_plus") or "." not in name:
                raise ValueError(f"settings: {name} is not one of network, pretrain, views or views_plus")
            if name == "pretrain.epochs":
                raise ValueError("settings: pretrain.epochs is what the rungs say")
            if names.count(name) > 1:
                raise ValueError(f"settings: {name} is there twice")
        return self


def names_of(line: str) -> list[str]:
    """Names of the settings that change together, of a line of ``Search.settings``."""
    return [name.strip() for name in line.split(",")]


NOT_SCIENCE = {"preset", "reading", "runtime", "sources", "data_root", "imagenet_weights"}


class Config(Section):
    """Everything a run needs to know."""

    preset: str
    study: Grid
    data: Data
    reading: Reading
    network: Network
    pretrain: Pretrain
    views: Views
    views_plus: ViewsPlus
    protocols: Recipes
    runtime: Runtime
    sources: dict[DataName, str]
    data_root: str | None
    imagenet_weights: str | None

    def science(self) -> dict[str, Any]:
        """Return the fields that decide the results; two runs with equal ones are the same experiment."""
        return self.model_dump(mode="json", exclude=NOT_SCIENCE, exclude_defaults=True)

    def augmentation(self, method: Method) -> Augmentation:
        """Return the operations of a method's views."""
        views, plus = self.views, self.views_plus
        if method == "byol":
            nothing = dict.fromkeys(("contrast", "brightness", "cutout"), 0.0)
            plus = plus.model_copy(update=nothing | {"drawn": "per_image"})
        elif not plus.keep_blur:
            views = views.model_copy(update={"blur": 0.0})
        return Augmentation(**views.model_dump(), **plus.model_dump())
