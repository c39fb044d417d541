"""How a model's crops are looked up: search technique and test-time views, as ``skumatch sweep`` chose them.

Kept in the bundle beside the weights. It knows nothing about how they were chosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skumatch.errors import ConfigError, ModelError
from skumatch.model import open_bundle
from skumatch.techniques import NEAREST, Technique
from skumatch.testviews import ViewSetting, check

FILE = "search.json"
FORMAT = 1


@dataclass(frozen=True)
class Search:
    """``technique`` and test-time ``views``; ``facts``: the sweep that chose them."""

    technique: Technique = NEAREST
    views: ViewSetting = "none"
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether crops are looked up by their nearest views alone."""
        return self.technique == NEAREST and self.views == "none"

    def to_bytes(self) -> bytes:
        """Return the JSON that ``read`` takes."""
        chosen = {"technique": self.technique.to_json(), "views": self.views}
        return (json.dumps({"format": FORMAT, **chosen, "facts": self.facts}, indent=1) + "\n").encode()

    @staticmethod
    def read(data: bytes) -> Search:
        """Build a Search from ``to_bytes`` output. Raises ModelError when it is not that."""
        try:
            document = json.loads(data)
            if document["format"] == FORMAT:
                technique, views = Technique.from_json(document["technique"]), check(document["views"])
                return Search(technique, views, dict(document["facts"]))
        except (ValueError, KeyError, TypeError, ConfigError):
            pass
        raise ModelError(f"{FILE} was written by another version", "run `skumatch sweep` again")


def search_of(model: Path | str | None) -> Search:
    """Return how the bundle in ``model`` (or a store's current one) looks crops up; plain where it does not say.

    Raises ModelError or ArtefactError for a broken bundle.
    """
    folder = Path(model) if model is not None else None
    data = open_bundle(folder).file(FILE) if folder is not None and folder.is_dir() else None
    return Search() if data is None else Search.read(data)
