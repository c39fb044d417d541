"""Recognise which SKU a noisy crop of a shop shelf shows.

The names below are stable; they are imported when first used, so that ``import skumatch`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skumatch.backend import open_gallery as open_gallery
    from skumatch.client import Client as Client
    from skumatch.client_wire import ServiceError as ServiceError
    from skumatch.dataset import Dataset as Dataset
    from skumatch.encoder import Encoder as Encoder
    from skumatch.encoder import open_encoder as open_encoder
    from skumatch.errors import SkumatchError as SkumatchError
    from skumatch.explain import Explanation as Explanation
    from skumatch.gallery import Gallery as Gallery
    from skumatch.match import CropMatches as CropMatches
    from skumatch.match import Match as Match
    from skumatch.match import Matcher as Matcher
    from skumatch.readers import open_dataset as open_dataset
    from skumatch.spec import Spec as Spec

__version__ = "0.1.0"

_HOMES = {
    "Client": "skumatch.client",
    "CropMatches": "skumatch.match",
    "Dataset": "skumatch.dataset",
    "Encoder": "skumatch.encoder",
    "Explanation": "skumatch.explain",
    "Gallery": "skumatch.gallery",
    "Match": "skumatch.match",
    "Matcher": "skumatch.match",
    "ServiceError": "skumatch.client_wire",
    "SkumatchError": "skumatch.errors",
    "Spec": "skumatch.spec",
    "open_dataset": "skumatch.readers",
    "open_encoder": "skumatch.encoder",
    "open_gallery": "skumatch.backend",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skumatch' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
