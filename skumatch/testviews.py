"""Test-time views: a crop is embedded as it is, mirrored and zoomed, and the mean of its vectors is used.

A wrapper around any encoder that works on ready pixels: each picture is decoded and resized once. Whether it helps is
measured (``skumatch.eval.sweep``), never assumed: mirrored print is nobody's label, and each view costs one encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, nearest
from skumatch.spec import Pixels, Spec, Vectors
from skumatch.technique_store import unit_rows

if TYPE_CHECKING:
    from skumatch.runtime.guard import Guard

ViewSetting = Literal["none", "flip", "scale", "flip+scale"]
View = Literal["original", "mirrored", "zoomed"]
ZOOM: Final = 0.85  # side of the middle part that is enlarged

VIEWS: Final[dict[ViewSetting, tuple[View, ...]]] = {
    "none": ("original",),
    "flip": ("original", "mirrored"),
    "scale": ("original", "zoomed"),
    "flip+scale": ("original", "mirrored", "zoomed"),
}


@dataclass(frozen=True)
class ViewsEncoder:
    """An Encoder whose vector is the mean of ``encoder``'s vectors over ``views``, scaled to unit length.

    The spec is ``encoder``'s own: its vectors are compared with a gallery of plain ones.
    """

    encoder: Encoder
    views: tuple[View, ...]

    @property
    def spec(self) -> Spec:
        """What the wrapped encoder is."""
        return self.encoder.spec

    @property
    def guard(self) -> Guard | None:
        """The wrapped encoder's guard."""
        return getattr(self.encoder, "guard", None)

    def encode(self, pixels: Pixels) -> Vectors:
        """Map uint8 (N, 3, S, S) to float32 (N, D) unit rows; one call of the wrapped encoder per view."""
        return mean_view([self.encoder.encode(view_of(pixels, view)) for view in self.views])


def with_views(encoder: Encoder, setting: str) -> Encoder:
    """Return ``encoder`` itself for "none", else a ViewsEncoder. Raises ConfigError for an unknown setting."""
    views = VIEWS[check(setting)]
    return encoder if views == ("original",) else ViewsEncoder(encoder, views)


def check(setting: str) -> ViewSetting:
    """Return ``setting`` if it is known. Raises ConfigError otherwise."""
    for known in VIEWS:
        if setting == known:
            return known
    near = nearest(setting, list(VIEWS)) or ", ".join(VIEWS)
    raise ConfigError(f"unknown test-time views '{setting}'", f"choose {near}")


def by_setting(vectors: Mapping[View, Vectors]) -> dict[ViewSetting, Vectors]:
    """Return the (N, D) unit rows of every setting, made of the vectors of each single view."""
    return {setting: mean_view([vectors[view] for view in views]) for setting, views in VIEWS.items()}


def mean_view(vectors: list[Vectors]) -> Vectors:
    """Return the mean of several (N, D) unit rows, scaled to unit length; of one, that one unchanged.

    Where views cancel out to nothing, the first counts alone.
    """
    if len(vectors) == 1:
        return vectors[0]
    total = np.sum(vectors, axis=0)
    kept: Vectors = np.where(np.linalg.norm(total, axis=1, keepdims=True) > 1e-6, total, vectors[0])
    return unit_rows(kept)


def view_of(pixels: Pixels, view: View) -> Pixels:
    """Return uint8 (N, 3, S, S): ``pixels`` as they are, mirrored left to right, or their middle 85 % enlarged.

    Enlarged as ``images.to_pixels`` resizes: bicubic.
    """
    if view == "original":
        return pixels
    if view == "mirrored":
        return np.ascontiguousarray(pixels[..., ::-1])
    import torch
    from torch.nn.functional import interpolate

    side = pixels.shape[-1]
    edge = round(side * (1 - ZOOM) / 2)
    middle = torch.from_numpy(np.ascontiguousarray(pixels[..., edge : side - edge, edge : side - edge]))
    enlarged: Pixels = interpolate(middle, size=(side, side), mode="bicubic", antialias=True).numpy()
    return enlarged
