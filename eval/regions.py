"""Which regions of a picture tell two SKUs apart, found by covering them one after the other.

Needs nothing of an encoder but ``encode``, so it works the same on every runtime. It knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from skumatch.embed import BATCH, Progress, no_progress
from skumatch.encoder import Encoder
from skumatch.errors import ImageError
from skumatch.eval.lookalikes import Group, centroids, typical_views
from skumatch.eval.views import Views
from skumatch.images import read_image, to_pixels
from skumatch.spec import Image, Pixels, Preprocess, Vectors

CELLS = 7
REACH = (
    0.5  # a patch reaches this share of a cell into its neighbours, fading out: hard edges are evidence of their own
)
SIDE = 320  # long side of an overlay in pixels
STRONG = 0.5  # share of the strongest evidence from which on a cell is outlined
WARM = (230, 159, 0)  # orange of Okabe & Ito's palette (2008): told from grey with every kind of colour vision

Map = NDArray[np.float32]  # (cells, cells): row 0 at the top


def telling_map(encoder: Encoder, picture: Image, own: Vectors, other: Vectors, cells: int = CELLS) -> Map:
    """Return how much each region of ``picture`` speaks for one SKU against another, float32 (cells, cells).

    ``picture`` is upright RGB uint8 (H, W, 3); ``own`` and ``other`` are unit rows (M, D) of the two SKUs, of which the
    nearest counts. A soft patch of the picture's mean colour slides over what the encoder sees (``seen``); a cell's
    value is by how much the margin cos(own) - cos(other) falls when the cell is covered: above 0 it is evidence for
    ``own``, below 0 for ``other``. Occlusion maps: Zeiler & Fergus (ECCV 2014), section 4.2. Costs cells^2 + 1
    pictures. Raises ValueError when there are fewer than two cells or more than the encoder has pixels.
    """
    size = encoder.spec.size
    if not 2 <= cells <= size:
        raise ValueError(f"{cells} cells on {size} pixels")
    pixels = to_pixels(picture, encoder.spec)
    masks = _masks(size, cells)
    margins = [_margin(encoder.encode(pixels[None]), own, other)]
    for start in range(0, len(masks), BATCH):
        covered = _covered(pixels, masks[start : start + BATCH])
        margins.append(_margin(encoder.encode(covered), own, other))
    falls: Map = (margins[0] - np.concatenate(margins[1:])).reshape(cells, cells).astype(np.float32)
    return falls


def telling_overlays(
    encoder: Encoder, gallery: Views, groups: Sequence[Group], pairs: int = 2, progress: Progress = no_progress
) -> Iterator[tuple[tuple[str, str], bytes]]:
    """Yield ((SKU, other SKU), JPEG) for both directions of each group's first ``pairs`` pairs.

    The JPEG shows the SKU's most typical view (nearest to its centroid) with what speaks for it against the other SKU's
    centroid. A picture that can no longer be read is left out. ``progress`` counts pictures.
    """
    centres = dict(zip(gallery.skus, centroids(gallery), strict=True))
    for group in groups:
        shown = typical_views(gallery, group.skus)
        for pair in group.pairs[:pairs]:
            for sku, other in ((pair.a, pair.b), (pair.b, pair.a)):
                try:
                    picture = read_image(gallery.rows[shown[sku]].path)
                except ImageError:
                    continue
                evidence = telling_map(encoder, picture, centres[sku][None], centres[other][None])
                yield (sku, other), overlay(seen(picture, encoder.spec), evidence)
                progress(1)


def _margin(vectors: Vectors, own: Vectors, other: Vectors) -> NDArray[np.float64]:
    """Return cos(own) - cos(other) per row, each SKU by its nearest row."""
    nearest = [(vectors.astype(np.float64) @ rows.astype(np.float64).T).max(axis=1) for rows in (own, other)]
    margin: NDArray[np.float64] = nearest[0] - nearest[1]
    return margin


def _masks(size: int, cells: int) -> NDArray[np.float32]:
    """Return how far each patch covers each pixel, 0..1: float32 (cells^2, size, size), row by row of cells."""
    cell = size / cells
    fade = max(REACH * cell, 1.0)
    centres = (np.arange(cells) + 0.5) * cell
    away = np.abs(np.arange(size) + 0.5 - centres[:, None]) - cell / 2  # below 0 inside the cell
    line = np.clip(1 - away / fade, 0, 1).astype(np.float32)
    masks: NDArray[np.float32] = np.einsum("iy,jx->ijyx", line, line).reshape(cells * cells, size, size)
    return masks


def _covered(pixels: Pixels, masks: NDArray[np.float32]) -> Pixels:
    """Return uint8 (M, 3, S, S): ``pixels`` (3, S, S) with the mean colour laid over it through each of the masks."""
    plain = pixels.astype(np.float32)
    mean = plain.mean(axis=(1, 2), keepdims=True)
    laid: Pixels = np.rint(plain + masks[:, None] * (mean - plain)).astype(np.uint8)
    return laid


def seen(picture: Image, how: Preprocess) -> Image:
    """Return what an encoder sees of ``picture``, uint8 (H, W, 3), where squashed unsquashed again.

    A map of ``telling_map`` lies on this picture, cell by cell.
    """
    view = PILImage.fromarray(np.ascontiguousarray(to_pixels(picture, how).transpose(1, 2, 0)))
    if how.resize == "squash":
        height, width = picture.shape[:2]
        scale = how.size / max(height, width)
        view = view.resize((max(1, round(width * scale)), max(1, round(height * scale))), PILImage.Resampling.BICUBIC)
    return np.asarray(view)


def overlay(picture: Image, evidence: Map, side: int = SIDE) -> bytes:
    """Return a JPEG, long side ``side``, that keeps the colours of telling regions and greys out the rest.

    ``picture`` is uint8 (H, W, 3) as ``seen`` returns it. Cells with at least half of the strongest evidence are framed
    in orange. Only values above 0 count; a map without any leaves the picture grey.
    """
    view = PILImage.fromarray(picture)
    scale = side / max(view.size)
    width, height = (max(1, round(length * scale)) for length in view.size)
    colours = np.asarray(view.resize((width, height), PILImage.Resampling.BICUBIC)).astype(np.float32)
    strength = np.maximum(evidence, 0) / max(float(evidence.max()), 1e-12)
    smooth = PILImage.fromarray(strength.astype(np.float32)).resize((width, height), PILImage.Resampling.BILINEAR)
    kept = np.clip(np.asarray(smooth), 0, 1)[:, :, None] ** 0.7
    grey = colours.mean(axis=2, keepdims=True) * 0.45 + 110
    mixed = grey + kept * (colours - grey)
    mixed[_frame(strength >= STRONG, height, width, max(2, side // 64))] = WARM
    stream = BytesIO()
    PILImage.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _frame(cells: NDArray[np.bool_], height: int, width: int, thick: int) -> NDArray[np.bool_]:
    """Return bool (height, width): the inner border, ``thick`` pixels, of the area that the true cells cover."""
    rows = np.arange(height) * cells.shape[0] // height
    columns = np.arange(width) * cells.shape[1] // width
    area = np.pad(cells[rows][:, columns], thick)
    inner = area.copy()
    for down in (-thick, 0, thick):
        for right in (-thick, 0, thick):
            inner &= np.roll(area, (down, right), (0, 1))
    border: NDArray[np.bool_] = (area & ~inner)[thick:-thick, thick:-thick]
    return border
