"""A workspace: the folder with ``skumatch.toml`` that every command finds upward from where it runs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from skumatch import artefact
from skumatch.errors import ConfigError, DataError, nearest
from skumatch.milvus.address import Address, is_milvus, parse
from skumatch.serve.settings import Settings

if TYPE_CHECKING:
    from skumatch.dataset import Dataset
    from skumatch.towers.build import ModelSource

CONFIG = "skumatch.toml"
MODELS = "models"


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: where the pictures lie and in which format; ``seed`` of the split where the data brings none."""

    path: str
    format: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: the pretrained encoder; ``resize``, ``size``, ``crop_pct`` override its published preprocessing."""

    name: str
    weights: str | None = None
    random_init: bool = False
    resize: str | None = None
    size: int | None = None
    crop_pct: float | None = None


@dataclass(frozen=True)
class GalleryConfig:
    """``[gallery]``: the folder of the gallery, or its address in Milvus."""

    path: str = "gallery"


@dataclass(frozen=True)
class RuntimeConfig:
    """``[runtime]``: device, engine ("auto", "torch", "onnx", "openvino"), pictures per batch, decode threads (0: one
    per core), pixel limit of one picture, where JPEGs are decoded ("auto", "cpu", "gpu")."""

    device: str = "auto"
    engine: str = "auto"
    batch: int = 32
    workers: int = 0
    max_pixels: int = 64_000_000
    decode: str = "auto"


@dataclass(frozen=True)
class Workspace:
    """A folder and its settings. Paths in the settings are relative to the folder."""

    folder: Path
    data: DataConfig
    model: ModelConfig
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    service: Settings = field(default_factory=Settings)

    @staticmethod
    def find(start: Path) -> Workspace:
        """Return the workspace that ``start`` lies in. Raises ConfigError when there is none or it is invalid."""
        start = start.absolute()
        for folder in (start, *start.parents):
            if (folder / CONFIG).is_file():
                return Workspace.read(folder)
        raise ConfigError(f"no {CONFIG} in {start} or above", "make one with `skumatch init --data PATH`")

    @staticmethod
    def read(folder: Path) -> Workspace:
        """Read ``folder/skumatch.toml``. Raises ConfigError naming the file and the key."""
        path = folder / CONFIG
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path} is not valid TOML ({error})", "correct it") from error
        sections = {"data": DataConfig, "model": ModelConfig, "gallery": GalleryConfig, "runtime": RuntimeConfig}
        sections["service"] = Settings
        _known(table, list(sections), str(path))
        made = {name: _section(cls, table.get(name, {}), f"{path} [{name}]") for name, cls in sections.items()}
        return Workspace(folder, **made)

    def write(self) -> Path:
        """Write ``skumatch.toml``. Raises ConfigError when there is one already or a path is not UTF-8."""
        path = self.folder / CONFIG
        if path.exists():
            raise ConfigError(f"{path} exists already", "edit it, or remove it to start anew")
        lines = ["# Settings of this skumatch workspace; paths are relative to this folder.", ""]
        for name in ("data", "model", "gallery", "runtime"):
            section = getattr(self, name)
            lines += [f"[{name}]"]
            lines += [f"{f.name} = {_toml(v)}" for f in fields(section) if (v := getattr(section, f.name)) is not None]
            lines += [""]
        try:
            text = "\n".join(lines).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"a path that is not UTF-8 cannot be written to {path}", "rename it") from error
        with artefact.disk_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        artefact.write_file(path, text)
        return path

    def open_dataset(self, filters: Mapping[str, str] | None = None) -> Dataset:
        """Return the workspace's data, filtered. Raises DataError."""
        from skumatch.readers import open_dataset

        path = self._path(self.data.path)
        return open_dataset(path, self.data.format, self.data.seed).where(filters or {})

    @property
    def models(self) -> Path:
        """The store that fine-tuned models go to."""
        return self.folder / MODELS

    @property
    def gallery_place(self) -> Path | Address:
        """Where the gallery is: a folder, or an address in Milvus. Raises ConfigError for an address that is none."""
        text = self.gallery.path
        return parse(text, self.folder) if is_milvus(text) else self._path(text)

    def source(self) -> ModelSource:
        """Return the configured pretrained encoder."""
        from skumatch.towers.build import ModelSource

        weights = self._path(self.model.weights) if self.model.weights else None
        how = {"resize": self.model.resize, "size": self.model.size, "crop_pct": self.model.crop_pct}
        return ModelSource(self.model.name, weights, self.model.random_init, **how)  # type: ignore[arg-type]

    def best_model(self) -> Path | ModelSource:
        """Return the fine-tuned model's store if there is one, else the configured encoder."""
        return self.models if artefact.current(self.models) is not None else self.source()

    def resolved(self) -> dict[str, Any]:
        """Return all settings as JSON-ready values, for saving beside results."""
        sections = {name: vars(getattr(self, name)) for name in ("data", "model", "gallery", "runtime")}
        return {"workspace": str(self.folder), **sections}

    def _path(self, text: str) -> Path:
        return self.folder / Path(text).expanduser()


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON allows it bare, TOML does not


def _known(table: Mapping[str, Any], valid: Sequence[str], where: str) -> None:
    for key in table:
        if key not in valid:
            near = nearest(key, list(valid), 1)
            hint = f"did you mean '{near}'?" if near else f"valid keys are {', '.join(valid)}"
            raise ConfigError(f"{where}: unknown key '{key}'", hint)


def _section(cls: type, table: Any, where: str) -> Any:
    """Build the dataclass ``cls`` from a TOML table, checking keys, types and what is required."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table", "write it as a section")
    names = [f.name for f in fields(cls)]
    _known(table, names, where)
    hints = get_type_hints(cls)
    for key, value in table.items():
        kinds = get_args(hints[key]) if get_origin(hints[key]) in (Union, UnionType) else (hints[key],)
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            raise ConfigError(f"{where}: {key} is {value!r}", f"give a value of type {kinds[0].__name__}")
    required = {"data": "path", "model": "name"}
    for name, key in required.items():
        if where.endswith(f"[{name}]") and key not in table:
            raise ConfigError(f"{where}: {key} is missing", "add it, or run `skumatch init` anew")
    return cls(**table)


def require_pairs(dataset: Dataset) -> None:
    """Raise DataError unless some SKU has at least two pictures: nothing can be compared otherwise."""
    seen: set[str] = set()
    for row in dataset:
        if row.sku in seen:
            return
        seen.add(row.sku)
    raise DataError(f"no SKU in {dataset.root} has two pictures", "give at least two pictures for some SKUs")
