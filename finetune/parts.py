"""The parts of a recipe: one frozen dataclass per table of its TOML file. They know nothing about torch or data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from skumatch.errors import ConfigError

Mode = Literal["head", "projection", "lora", "full"]
BatchNorm = Literal["train", "frozen"]
Margin = Literal["fixed", "ramped", "adaptive"]
Draw = Literal["weighted", "pk"]
Kind = Literal["cosine", "one-cycle", "restarts"]
Precision = Literal["auto", "fp32"]
Serve = Literal["features", "head", "both", "measure"]


def within(what: str, settings: Any, **limits: tuple[float, float]) -> None:
    """Raise ConfigError unless every named attribute of ``settings`` lies in its (low, high) range."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigError(f"{what}: {name} is {value}", f"choose {low} to {high}")


def one_of(what: str, settings: Any, *names: str) -> None:
    """Raise ConfigError unless every named attribute of ``settings`` is one that its Literal type lists."""
    hints = get_type_hints(type(settings))
    for name in names:
        value, choices = getattr(settings, name), get_args(hints[name])
        if value not in choices:
            raise ConfigError(f"{what}: {name} is '{value}'", f"choose {', '.join(choices)}")


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives in the sum that is minimised; 0 leaves one out.

    ``arcface``, ``softmax``, ``supcon``: learn the SKUs, on the training head. ``clip``: picture against the SKU's
    title, on the features. ``retain``: stay near the untouched encoder's features. ``distil``: follow a larger
    encoder.
    """

    arcface: float = 1.0
    softmax: float = 0.0
    supcon: float = 0.0
    clip: float = 0.0
    retain: float = 0.0
    distil: float = 0.0

    def __post_init__(self) -> None:
        within("objectives", self, **dict.fromkeys(vars(self), (0, 1000)))
        if not any(getattr(self, name) for name in ("arcface", "softmax", "supcon", "clip", "distil")):
            raise ConfigError("objectives: nothing teaches the SKUs", "give arcface, softmax, supcon or clip a weight")


@dataclass(frozen=True)
class ArcFace:
    """Sub-centre ArcFace: ``sub_centres`` prototypes per SKU, scale ``s``, margin in radians.

    ``margin`` "fixed": ``margin_to`` throughout; "ramped": from ``margin_from`` to ``margin_to`` over the first half of
    stage 2; "adaptive": per SKU by its n training pictures, ``margin_from`` + (``margin_to`` - ``margin_from``) * r,
    r being n^(-1/4) scaled to 0 for the largest SKU and 1 for the smallest. ``label_smoothing`` 0..0.5.
    """

    sub_centres: int = 3
    s: float = 24.0
    margin: Margin = "ramped"
    margin_from: float = 0.05
    margin_to: float = 0.35
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        one_of("arcface", self, "margin")
        within("arcface", self, sub_centres=(1, 10), s=(1, 256), margin_from=(0, 1.5), margin_to=(0, 1.5))
        within("arcface", self, label_smoothing=(0, 0.5))


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy over cosines times ``s``: the baseline that ArcFace must beat.

    ``normalised`` off: over what a linear layer gives, bias and lengths included; ``s`` has no meaning then.
    """

    s: float = 24.0
    label_smoothing: float = 0.0
    normalised: bool = True

    def __post_init__(self) -> None:
        within("softmax", self, s=(1, 256), label_smoothing=(0, 0.5))


@dataclass(frozen=True)
class SupCon:
    """Supervised contrast within the batch; ``temperature`` is where it starts, and learned unless ``learn`` is off."""

    temperature: float = 0.1
    learn: bool = True

    def __post_init__(self) -> None:
        within("supcon", self, temperature=(0.01, 1))


@dataclass(frozen=True)
class Clip:
    """Image-text contrast with the SKUs' titles.

    ``templates``: texts in which ``{}`` stands for the title; one is drawn per picture and step. ``train_text``:
    whether the text tower learns too, at ``lr_text``.
    """

    templates: tuple[str, ...] = ("{}", "a photo of {}", "{} on a shop shelf")
    temperature: float = 0.07
    learn: bool = True
    train_text: bool = True
    lr_text: float = 1e-5

    def __post_init__(self) -> None:
        within("clip", self, temperature=(0.01, 1), lr_text=(0, 1))
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise ConfigError("clip: every template needs one {} for the title", 'write "a photo of {}"')


@dataclass(frozen=True)
class Distil:
    """``teacher``: the larger encoder that teaches, a model folder or a name such as open_clip:ViT-L-14/openai.

    The path of a folder is taken from where the command runs.
    """

    teacher: str = ""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of mode "lora": ``rank``, and ``alpha`` / rank as their scale."""

    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        within("lora", self, rank=(1, 1024), alpha=(0.01, 10_000))


@dataclass(frozen=True)
class Sampling:
    """Which pictures an epoch shows.

    ``draw`` "weighted": a SKU with n pictures is drawn in proportion to n^alpha, 1 showing every picture once and 0
    every SKU equally often. "pk": batches of ``per_sku`` pictures each of as many SKUs as fit. ``lookalike_share``:
    part of a batch that look-alikes fill, where they are listed or ``refresh`` finds them; ``refresh``: group SKUs that
    are close in the current embedding, anew each epoch, ``group`` SKUs to a group.
    """

    draw: Draw = "weighted"
    alpha: float = 0.5
    per_sku: int = 4
    lookalike_share: float = 0.5
    refresh: bool = False
    group: int = 4

    def __post_init__(self) -> None:
        one_of("sampler", self, "draw")
        within("sampler", self, alpha=(0, 1), per_sku=(2, 64), lookalike_share=(0, 1), group=(2, 256))


_STEP = re.compile(r"\s*([0-9.]+)\s*(?::\s*([0-9.]+))?\s*")


@dataclass(frozen=True)
class Course:
    """How learning rate and picture size run over stage 2.

    ``kind`` "cosine": ``warmup`` (share of the steps), then half a cosine; "one-cycle": up to the peak at ``warmup``
    and down to a thousandth of it; "restarts": cosines of ``cycle_len`` epochs, each ``cycle_mult`` times as long as
    the one before. ``sizes`` "128:4,160:4,224:2": sides of the training pictures and for how many parts of stage 2,
    in pixels or, below 8, as a share of the encoder's own size. ``patience``: epochs without better validation after
    which training stops (0: never).
    """

    kind: Kind = "cosine"
    warmup: float = 0.1
    cycle_len: int = 4
    cycle_mult: float = 1.0
    sizes: str = "1"
    patience: int = 0

    def __post_init__(self) -> None:
        one_of("schedule", self, "kind")
        within("schedule", self, warmup=(0, 0.9), cycle_len=(1, 10_000), cycle_mult=(1, 10), patience=(0, 10_000))
        self.steps()

    def steps(self) -> list[tuple[float, float]]:
        """Return (side in pixels, or share of the encoder's size where below 8; parts) in order.

        Raises ConfigError for what is not such a list.
        """
        found = []
        for entry in self.sizes.split(","):
            match = _STEP.fullmatch(entry)
            try:
                side, parts = (float(match[1]), float(match[2] or 1)) if match else (0.0, 0.0)
            except ValueError:
                side, parts = 0.0, 0.0
            if not (0.2 <= side <= 2 or 8 <= side <= 4096) or parts <= 0:
                raise ConfigError(f"schedule: sizes is '{self.sizes}'", 'write it like "128:4,160:4,224:2"')
            found.append((side, parts))
        return found


@dataclass(frozen=True)
class After:
    """What is tried when training is over, and kept only where validation gains.

    ``wise_ft``: shares of the way from the untouched to the trained weights (WiSE-FT), 1 being the trained ones.
    ``soup``: how many of the last epochs' weights are averaged (0, 1: none). ``batch_norm``: pictures on which batch
    statistics of mixed weights are estimated anew (0: never).
    """

    wise_ft: tuple[float, ...] = ()
    soup: int = 0
    batch_norm: int = 512

    def __post_init__(self) -> None:
        within("after", self, soup=(0, 50), batch_norm=(0, 10**6))
        if any(not 0 <= share <= 1.5 for share in self.wise_ft):
            raise ConfigError(f"after: wise_ft is {list(self.wise_ft)}", "choose shares of 0 to 1.5")


@dataclass(frozen=True)
class Served:
    """What the model answers with: "features", the training "head", "both" side by side, or what validation favours.

    ``weight``: share of the head in the cosine of "both", 0..1. ``pca``: dimensions that PCA-whitening keeps (0: none).
    ``guard``: keep the untouched encoder inside, for pictures unlike those that were trained on.
    """

    layer: Serve = "measure"
    weight: float = 0.5
    pca: int = 0
    guard: bool = False

    def __post_init__(self) -> None:
        one_of("serve", self, "layer")
        within("serve", self, weight=(0, 1), pca=(0, 8192))


@dataclass(frozen=True)
class Compute:
    """How the work is done; none of it changes what is learned beyond rounding.

    ``precision`` "auto": the encoder in bf16 where that is faster, "fp32": never. ``accumulate``: into how many
    parts a batch is cut that go through the encoder one after the other, for batches that do not fit into memory;
    objectives still see the whole batch (Gao et al., "Scaling deep contrastive learning batch size under memory
    limited setup", 2021). Batch norms see the parts. ``checkpointing``: keep few activations and compute the others
    twice. ``compile``: torch.compile of the encoder. ``cache``: keep the shrunk training pictures on disk, so that
    no later epoch decodes them.
    """

    precision: Precision = "auto"
    accumulate: int = 1
    checkpointing: bool = False
    compile: bool = False
    cache: bool = False

    def __post_init__(self) -> None:
        one_of("compute", self, "precision")
        within("compute", self, accumulate=(1, 4096))


@dataclass(frozen=True)
class Augment:
    """Strengths of the shelf noise; 0 switches a part off. There is no mirror unless asked for: packs carry text.

    ``min_scale``: smallest share of the picture's area that a random resized crop keeps. ``rotation`` in degrees,
    ``perspective`` as a share of the side, ``colour`` (exposure, contrast, saturation, white balance) relative. The
    others are probabilities: ``blur`` (defocus), ``motion`` (blur along a line), ``low_res`` (few pixels, enlarged),
    ``jpeg``, ``glare``, ``shadow``, ``occlusion`` (a price rail or a box), ``bleed`` (a neighbouring pack at the edge),
    ``background`` (another background behind pictures from a studio), ``cut_out`` (photos cut out on white, like
    catalogue pictures) and ``mirror``.
    """

    min_scale: float = 0.35
    rotation: float = 8.0
    perspective: float = 0.08
    colour: float = 0.3
    blur: float = 0.2
    motion: float = 0.0
    low_res: float = 0.0
    jpeg: float = 0.2
    glare: float = 0.0
    shadow: float = 0.0
    occlusion: float = 0.25
    bleed: float = 0.0
    background: float = 0.0
    cut_out: float = 0.0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        within("augment", self, min_scale=(0.05, 1), rotation=(0, 45), perspective=(0, 0.3), colour=(0, 0.9))
        strengths = ("min_scale", "rotation", "perspective", "colour")
        within("augment", self, **dict.fromkeys((name for name in vars(self) if name not in strengths), (0, 1)))
