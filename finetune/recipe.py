"""How to fine-tune: one frozen dataclass, read from TOML; unknown keys and values out of range are errors."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from skumatch.errors import ConfigError, nearest

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Augment:
    """Strengths of the shelf augmentation; 0 switches a part off. There is no mirror: packs carry text.

    ``min_scale``: smallest share of the picture's area that a random resized crop keeps. ``rotation`` in degrees,
    ``perspective`` as a share of the side, ``colour`` relative. ``blur``, ``jpeg`` and ``occlusion``: probabilities.
    """

    min_scale: float = 0.35
    rotation: float = 8.0
    perspective: float = 0.08
    colour: float = 0.3
    blur: float = 0.2
    jpeg: float = 0.2
    occlusion: float = 0.25

    def __post_init__(self) -> None:
        _within("augment", self, min_scale=(0.05, 1), rotation=(0, 45), perspective=(0, 0.3), colour=(0, 0.9))
        _within("augment", self, blur=(0, 1), jpeg=(0, 1), occlusion=(0, 1))


@dataclass(frozen=True)
class Recipe:
    """A fine-tune in full.

    Stage 1 trains the head alone for ``head_epochs``; stage 2 everything for ``epochs``. ``lr_conv`` and
    ``lr_transformer``: learning rate of the last block of a convolution net or a transformer, falling by
    ``layer_decay`` per block towards the input. Pictures grow from ``scale_from`` to ``scale_to`` of the encoder's
    own size over stage 2 (encoders with a fixed size keep it), or are ``size`` pixels throughout where it is not 0.
    ``sub_centres``, ``s``, ``margin_from``, ``margin_to``: sub-centre ArcFace; the margin (radians) rises over the
    first half of stage 2. ``balance``: 0 samples pictures alike, 1 SKUs alike. ``serve``: "features", "head" or
    "measure". ``val_views``: reference views per SKU when validating; ``val_queries``: queries at most. ``hold_out``:
    share of the SKUs that is not trained on at all, chosen by the seed, so that evaluation and calibration can tell
    how unknown products fare. ``lookalike_share``: part of a batch that look-alikes fill, where they are listed.
    """

    name: str = "default"
    epochs: int = 12
    head_epochs: int = 1
    batch: int = 32
    seed: int = 0
    scale_from: float = 0.57
    scale_to: float = 1.0
    size: int = 0
    embedding: int = 256
    dropout: float = 0.2
    sub_centres: int = 3
    s: float = 24.0
    margin_from: float = 0.05
    margin_to: float = 0.35
    lr_head: float = 2e-3
    lr_conv: float = 1e-3
    lr_transformer: float = 1e-5
    layer_decay: float = 0.85
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip: float = 5.0
    ema: float = 0.99
    balance: float = 0.5
    serve: str = "measure"
    val_views: int = 10
    val_queries: int = 1000
    hold_out: float = 0.0
    lookalike_share: float = 0.5
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        _within("recipe", self, epochs=(0, 10_000), head_epochs=(0, 1000), batch=(2, 65_536), scale_from=(0.2, 2))
        _within("recipe", self, scale_to=(0.2, 2), embedding=(8, 8192), dropout=(0, 0.9), sub_centres=(1, 10))
        _within("recipe", self, s=(1, 256), margin_from=(0, 1.5), margin_to=(0, 1.5), lr_head=(0, 1), lr_conv=(0, 1))
        _within("recipe", self, lr_transformer=(0, 1), layer_decay=(0.01, 1), weight_decay=(0, 1), warmup=(0, 0.9))
        _within("recipe", self, clip=(1e-3, 1e6), ema=(0, 0.99999), balance=(0, 1), val_views=(1, 1000))
        _within("recipe", self, size=(0, 4096), hold_out=(0, 0.9), lookalike_share=(0, 1))
        _within("recipe", self, val_queries=(1, 10**7), seed=(0, 2**31 - 1))
        if self.serve not in ("features", "head", "measure"):
            raise ConfigError(f"recipe: serve is '{self.serve}'", "choose features, head or measure")
        if self.epochs + self.head_epochs == 0:
            raise ConfigError("recipe: no epochs at all", "set epochs to at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON-ready values."""
        return asdict(self)


def _within(what: str, settings: Any, **limits: tuple[float, float]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigError(f"{what}: {name} is {value}", f"choose {low} to {high}")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str, **overrides: Any) -> Recipe:
    """Read a recipe by name or TOML file; ``overrides`` that are not None replace single settings.

    Raises ConfigError for an unknown name, unreadable file, unknown key or bad value.
    """
    path = FOLDER / f"{name}.toml" if name in recipe_names() else Path(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"there is no recipe '{name}'", f"choose {', '.join(recipe_names())} or give a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not valid TOML ({error})", "correct it") from error
    return replace(recipe_from(table, str(path)), **{k: v for k, v in overrides.items() if v is not None})


def recipe_from(table: dict[str, Any], where: str = "recipe") -> Recipe:
    """Build a Recipe from a table as TOML or JSON gives it. Raises ConfigError."""
    augment = table.get("augment", {})
    if not isinstance(augment, dict):
        raise ConfigError(f"{where}: augment is not a table", "write it as [augment]")
    plain = {key: value for key, value in table.items() if key != "augment"}
    return Recipe(**_typed(Recipe, plain, where), augment=Augment(**_typed(Augment, augment, f"{where} [augment]")))


def _typed(cls: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    """Check keys and types of ``table`` against the dataclass ``cls``."""
    valid = [f.name for f in fields(cls)]
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in valid:
            near = nearest(key, valid, 1)
            raise ConfigError(f"{where}: unknown key '{key}'", f"did you mean '{near}'?" if near else "remove it")
        wanted = hints[key]
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} is {value!r}", f"give a value of type {wanted.__name__}")
    return {key: hints[key](value) for key, value in table.items()}
