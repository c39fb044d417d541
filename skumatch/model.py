"""Model bundles: a trained encoder as a folder that opens without any hub and without pickle.

``model.json`` holds spec, architecture, provenance and the digests of all files; ``weights.safetensors`` the tensors.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skumatch import artefact
from skumatch.errors import ArtefactError, ModelError
from skumatch.spec import Spec, preprocess_of

if TYPE_CHECKING:
    from torch import Tensor

    from skumatch.runtime.served import Served
    from skumatch.towers.base import Tower

MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"
SKUS = "skus.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A published model: its folder, what it is, and ``document``: everything that made it."""

    folder: Path
    spec: Spec
    document: dict[str, Any]

    def file(self, name: str) -> bytes | None:
        """Return the content of a file that the manifest names, None where it names none such."""
        return (self.folder / name).read_bytes() if name in self.document["files"] else None

    def skus(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the SKUs it was trained on and those that were held out; both empty for an untouched encoder."""
        data = self.file(SKUS)
        found = json.loads(data) if data is not None else {"trained": [], "held_out": []}
        return frozenset(found["trained"]), frozenset(found["held_out"])

    def load(self) -> tuple[Tower, Served, Spec]:
        """Return (tower with the saved weights, what is served on top, spec). Raises ModelError."""
        from skumatch.runtime.served import Served
        from skumatch.towers.base import LoadReport, image_keys, load_state
        from skumatch.towers.build import rebuild

        tower = rebuild(self.document["architecture"], self.folder)
        state = load_state(self.folder / WEIGHTS)
        try:
            served = Served.restore(self.document.get("serve", {"layer": self.spec.layer}), state)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{self.folder} lacks {error} of what it serves", "train or export it again") from error
        needed = set(tower.model.state_dict()) if self.document["text"] else image_keys(tower.model, tower.image)
        lacking = sorted(needed - set(state))
        if lacking:
            raise ModelError(f"{self.folder} lacks the weights {lacking[0]}", "train or export it again")
        tower.model.load_state_dict(state, strict=False)
        tower.preprocess = preprocess_of(self.spec)
        tower.report = LoadReport(str(self.folder))
        if not self.document["text"]:
            tower.text = None
        return tower, served, self.spec


@dataclass(frozen=True)
class Contents:
    """What a bundle holds: ``facts`` (JSON-ready provenance, recipe, metrics), ``tensors`` (the tower's state dict) and
    further ``files`` by name."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    files: dict[str, bytes] = field(default_factory=dict)


def save_bundle(
    store: Path, tower: Tower, served: Served | None, spec: Spec, contents: Contents, make_current: bool = True
) -> Path:
    """Publish ``contents`` and what is served (None: the features) as the next version in ``store``.

    Returns the version's folder, which becomes the store's current one unless ``make_current`` is false. Raises
    ArtefactError when the disk refuses; the store is then as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    more = served.tensors() if served else {}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in (*contents.tensors.items(), *more.items())}
    final = store / artefact.next_version(store)
    with artefact.staged(store, final.name) as stage:
        weights = stage.folder / WEIGHTS
        weights.touch()
        mode = weights.stat().st_mode  # as other files have it here; safetensors' own is for the owner alone
        try:
            save_file(state, weights)
            weights.chmod(mode)
        except SafetensorError as error:
            raise ArtefactError(f"cannot write {final / WEIGHTS} ({error})", "free some space, run it again") from error
        if tower.text is not None:
            tower.text.save_tokenizer(stage.folder)
        for name, data in contents.files.items():
            (stage.folder / name).write_bytes(data)
        document = {
            "kind": "model",
            "format": FORMAT,
            "spec": spec.to_json(),
            "architecture": tower.architecture,
            "text": tower.text is not None,
            "serve": served.settings() if served else {"layer": "features"},
            **finite(contents.facts),
        }
        artefact.seal(stage.folder, MANIFEST, document)
    if make_current:
        artefact.set_current(store, final.name)
    return final


def with_files(bundle: Bundle, files: dict[str, bytes | None]) -> Path:
    """Publish a version of ``bundle`` with ``files`` added or replaced (None: left out); current if ``bundle`` was.

    The network and its digest are the same, so galleries stay valid; the other files are hard links where the disk
    allows them. Raises ModelError when the bundle is not a version in a store, ArtefactError when the disk refuses.
    """
    folder, store = bundle.folder, store_of(bundle)
    final = store / artefact.next_version(store)
    with artefact.staged(store, final.name) as stage:
        for name in bundle.document["files"]:
            if name not in files:
                (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
                _link(folder / name, stage.folder / name)
        for name, data in files.items():
            if data is not None:
                (stage.folder / name).write_bytes(data)
        document = {key: value for key, value in bundle.document.items() if key not in ("files", "manifest_digest")}
        artefact.seal(stage.folder, MANIFEST, {**document, "parent": folder.name})
    if artefact.current(store) == folder:  # another model may have become current, or be on purpose
        artefact.set_current(store, final.name)
    return final


def store_of(bundle: Bundle) -> Path:
    """Return the store that ``bundle`` is a version in. Raises ModelError where it is in none."""
    folder = bundle.folder
    if folder.name not in artefact.versions(folder.parent):
        raise ModelError(f"{folder} is not a version in a model store", "give the store that `skumatch finetune` wrote")
    return folder.parent


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def finite(value: Any) -> Any:
    """Return JSON-ready ``value`` with NaN and infinities as None (JSON has neither)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def bundle_folder(path: Path) -> Path:
    """Return the bundle in ``path``: itself, or the current version of a store. Raises ArtefactError, ModelError."""
    if (path / MANIFEST).exists():
        return path
    found = artefact.current(path)
    if found is None:
        raise ModelError(f"{path} holds no model", "give a folder that `skumatch finetune` wrote")
    return found


def open_bundle(path: Path) -> Bundle:
    """Open a bundle, or the current one of a store, after checking its digests.

    Raises ModelError when there is none, ArtefactError when a byte differs.
    """
    folder = bundle_folder(path)
    document = artefact.read_manifest(folder, MANIFEST)
    if document.get("kind") != "model" or document.get("format") != FORMAT:
        raise ModelError(f"{folder} was written by another version", "open it with that version or train again")
    return Bundle(folder, Spec.from_json(document["spec"]), document)
