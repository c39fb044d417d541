"""How to fine-tune: one frozen dataclass, read from TOML; unknown keys and values out of range are errors."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from skumatch.errors import ConfigError, nearest
from skumatch.finetune.parts import (
    After,
    ArcFace,
    Augment,
    BatchNorm,
    Clip,
    Compute,
    Course,
    Distil,
    Lora,
    Mode,
    Objectives,
    Sampling,
    Served,
    Softmax,
    SupCon,
    one_of,
    within,
)

FOLDER = Path(__file__).parent / "recipes"
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """A fine-tune in full.

    Stage 1 trains the head alone for ``head_epochs``; stage 2 for ``epochs``, and at least ``min_steps`` steps, what
    ``mode`` says: the "head" alone, the encoder's last layer too ("projection"), low-rank updates of every layer
    ("lora") or "full", all blocks but the share ``freeze`` nearest to the input. ``batch_norm`` "frozen" keeps the
    statistics of the untouched encoder.
    ``embedding``: width of the head. ``lr_conv`` and ``lr_transformer``: learning rate of the last block of a
    convolution net or a transformer, falling by ``layer_decay`` per block towards the input. ``ema``: decay of the
    averaged weights, which are what is validated and published. ``val_views``: reference views per SKU when
    validating; ``val_queries``: queries at most. ``hold_out``: share of the SKUs that is not trained on at all, chosen
    by the seed, so that evaluation and calibration can tell how unknown products fare.
    """

    name: str = "default"
    epochs: int = 12
    min_steps: int = 0
    head_epochs: int = 1
    batch: int = 32
    seed: int = 0
    mode: Mode = "full"
    freeze: float = 0.0
    batch_norm: BatchNorm = "train"
    embedding: int = 256
    dropout: float = 0.2
    lr_head: float = 2e-3
    lr_conv: float = 1e-3
    lr_transformer: float = 1e-5
    layer_decay: float = 0.85
    weight_decay: float = 1e-2
    clip_norm: float = 5.0
    ema: float = 0.99
    val_views: int = 10
    val_queries: int = 1000
    hold_out: float = 0.0
    objectives: Objectives = field(default_factory=Objectives)
    arcface: ArcFace = field(default_factory=ArcFace)
    softmax: Softmax = field(default_factory=Softmax)
    supcon: SupCon = field(default_factory=SupCon)
    clip: Clip = field(default_factory=Clip)
    distil: Distil = field(default_factory=Distil)
    lora: Lora = field(default_factory=Lora)
    sampler: Sampling = field(default_factory=Sampling)
    schedule: Course = field(default_factory=Course)
    after: After = field(default_factory=After)
    serve: Served = field(default_factory=Served)
    augment: Augment = field(default_factory=Augment)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        within(
            "recipe",
            self,
            epochs=(0, 10_000),
            min_steps=(0, 10**9),
            head_epochs=(0, 1000),
            batch=(2, 65_536),
            seed=(0, 2**31 - 1),
        )
        within("recipe", self, freeze=(0, 1), embedding=(8, 8192), dropout=(0, 0.9), lr_head=(0, 1), lr_conv=(0, 1))
        within("recipe", self, lr_transformer=(0, 1), layer_decay=(0.01, 1), weight_decay=(0, 1), ema=(0, 0.99999))
        within("recipe", self, clip_norm=(1e-3, 1e6), val_views=(1, 1000), val_queries=(1, 10**7), hold_out=(0, 0.9))
        one_of("recipe", self, "mode", "batch_norm")
        if self.epochs + self.head_epochs == 0:
            raise ConfigError("recipe: no epochs at all", "set epochs to at least 1")
        if self.objectives.distil and not self.distil.teacher:
            raise ConfigError("recipe: distil has no teacher", 'write [distil] teacher = "MODEL"')
        if self.batch < 2 * self.compute.accumulate:
            said = f"recipe: a batch of {self.batch} in {self.compute.accumulate} parts leaves less than two pictures"
            raise ConfigError(said, "raise batch or lower compute.accumulate")
        if self.sampler.draw == "pk" and self.batch < 2 * self.sampler.per_sku:
            said = f"recipe: a batch of {self.batch} holds less than two SKUs of {self.sampler.per_sku} pictures"
            raise ConfigError(said, "raise batch or lower sampler.per_sku")

    def lengthened(self, steps: int) -> Recipe:
        """Return the recipe with as many epochs of ``steps`` steps as ``min_steps`` asks for: few pictures, more."""
        wanted = -(-self.min_steps // max(1, steps)) if self.epochs else 0
        return replace(self, epochs=max(self.epochs, min(wanted, 10_000)))

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON-ready values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, as they are read back
        return found


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str, **overrides: Any) -> Recipe:
    """Read a recipe by name or TOML file; ``overrides`` that are not None replace single settings, and those given as
    a dict single settings of a table.

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
    for key, value in overrides.items():
        if isinstance(value, dict):
            table[key] = {**table.get(key, {}), **value}
        elif value is not None:
            table[key] = value
    return recipe_from(table, str(path))


def recipe_from(table: dict[str, Any], where: str = "recipe") -> Recipe:
    """Build a Recipe from a table as TOML or JSON gives it. Raises ConfigError."""
    return _read(Recipe, table, where)


def _read(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Build the dataclass ``cls``, and those in it, from ``table``; an unknown key or a wrong type is a ConfigError."""
    hints = get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = nearest(key, list(hints), 1)
            raise ConfigError(f"{where}: unknown key '{key}'", f"did you mean '{near}'?" if near else "remove it")
    return cls(**{key: _value(hints[key], value, key, where) for key, value in table.items()})


def _value(wanted: Any, value: Any, key: str, where: str) -> Any:
    """Return ``value`` as the type ``wanted``. Raises ConfigError when it is of another."""
    if is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is not a table", f"write it as [{key}]")
        return _read(wanted, value, f"{where} [{key}]")
    if get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {key} is {value!r}", "give a list in brackets")
        return tuple(_value(get_args(wanted)[0], one, key, where) for one in value)
    plain = str if get_origin(wanted) is Literal else wanted
    fits = isinstance(value, plain) or (plain is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and plain is not bool):
        raise ConfigError(f"{where}: {key} is {value!r}", f"give a value of type {plain.__name__}")
    return plain(value)
