"""What may stand for a picture: a path, bytes, an array or a Pillow image, and what is refused."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage

from skumatch.errors import ImageError
from skumatch.images import image_of, read_image


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_kind_of_source_is_the_same_upright_picture(orientation: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (97, 61, 3)).astype(np.uint8)
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    stream = BytesIO()
    PILImage.fromarray(noise).save(stream, "PNG", exif=exif)
    data, path = stream.getvalue(), tmp_path / "shelf.png"
    path.write_bytes(data)
    expected = read_image(data)
    assert expected.shape == ((61, 97, 3) if orientation == 6 else (97, 61, 3))
    for source in (path, str(path), data, expected, PILImage.open(BytesIO(data))):
        found = image_of(source)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
    for source in (path, data, PILImage.open(BytesIO(data))):
        with pytest.raises(ImageError, match="more than 100 pixels"):
            image_of(source, max_pixels=100)


def test_what_is_no_picture_is_refused_before_anything_is_done_with_it() -> None:
    wrong: list[NDArray[np.uint8]] = [
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 4), "u1"),
    ]
    for array in (*wrong, np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ImageError, match=r"an array of .* is not an image"):
            image_of(np.asarray(array))
    odd: list[Any] = [None, 3.5, ["a.png"]]
    for value in odd:
        with pytest.raises(ImageError, match="is not an image"):
            image_of(value)
