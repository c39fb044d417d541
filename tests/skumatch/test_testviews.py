"""Test-time views: a mean over ready pixels, behind the same seam as any encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skumatch import images
from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError
from skumatch.spec import Pixels, Spec, Vectors
from skumatch.testviews import VIEWS, View, ViewsEncoder, by_setting, mean_view, view_of, with_views


def crops(count: int = 3, side: int = 64) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side)).astype(np.uint8)


class Counting:
    """Counts how often it is called, and with how many pictures."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.calls: list[int] = []

    @property
    def spec(self) -> Spec:
        return self.encoder.spec

    def encode(self, pixels: Pixels) -> Vectors:
        self.calls.append(len(pixels))
        return self.encoder.encode(pixels)


@pytest.mark.parametrize("setting", VIEWS)
def test_the_vector_is_the_mean_over_the_views(setting: str, encoder: Encoder) -> None:
    pixels = crops()
    parts = {
        "none": [pixels],
        "flip": [pixels, pixels[:, :, :, ::-1]],
        "scale": [pixels, view_of(pixels, "zoomed")],
        "flip+scale": [pixels, pixels[:, :, :, ::-1], view_of(pixels, "zoomed")],
    }[setting]
    total = sum(encoder.encode(np.ascontiguousarray(part)).astype(np.float64) for part in parts)
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    found = with_views(encoder, setting).encode(pixels)
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_none_is_the_encoder_itself(encoder: Encoder) -> None:
    assert with_views(encoder, "none") is encoder


def test_a_mirrored_crop_gets_the_same_vector(encoder: Encoder) -> None:
    pixels = crops()
    flipped = with_views(encoder, "flip")
    assert np.allclose(flipped.encode(pixels), flipped.encode(view_of(pixels, "mirrored")), atol=1e-6)
    assert not np.allclose(encoder.encode(pixels), encoder.encode(view_of(pixels, "mirrored")), atol=1e-2)


@pytest.mark.parametrize("side", [8, 64, 97])
def test_zooming_enlarges_the_middle(side: int) -> None:
    pixels = np.zeros((2, 3, side, side), np.uint8)
    edge = max(1, round(side * 0.075))
    pixels[:, :, edge:-edge, edge:-edge] = 200  # a frame that the zoom cuts away
    assert np.all(view_of(pixels, "zoomed") == 200)
    ramp = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8), (1, 3, side, side))
    zoomed = view_of(ramp, "zoomed")
    assert zoomed.shape == ramp.shape and zoomed.dtype == np.uint8
    assert abs(float(zoomed.mean()) - float(ramp.mean())) < 1.5  # the centre stays where it was
    assert zoomed[..., 0].max() > ramp[..., 0].max() and zoomed[..., -1].min() < ramp[..., -1].min()


def test_zooming_resizes_as_preprocessing_does() -> None:
    pixels = crops(1, 100)
    how = Spec(100, (0.5,) * 3, (0.5,) * 3, "squash", 1.0, "bicubic", name="x", dim=1, layer="x", digest="x")
    middle = np.ascontiguousarray(pixels[0, :, 8:92, 8:92].transpose(1, 2, 0))
    assert np.array_equal(view_of(pixels, "zoomed")[0], images.to_pixels(middle, how))


def test_pixels_are_left_as_they_were(encoder: Encoder) -> None:
    pixels = crops()
    before = pixels.copy()
    with_views(encoder, "flip+scale").encode(pixels)
    assert np.array_equal(pixels, before)


def test_through_the_pipeline_in_order_with_errors(patterns: Path, tmp_path: Path, encoder: Encoder) -> None:
    sources = sorted(patterns.rglob("*.png"))[:7]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    given = [*sources[:3], broken, *sources[3:]]
    counted = Counting(encoder)
    found = list(Pipeline(batch=4).embed(given, with_views(counted, "flip+scale"), also=str))
    assert [source for batch in found for source in batch.sources] == given
    assert [e is not None for batch in found for e in batch.errors] == [False] * 3 + [True] + [False] * 4
    assert [extra for batch in found for extra in batch.extras] == [str(source) for source in sources]
    assert counted.calls == [3, 3, 3, 4, 4, 4]  # one batch per view, never three in one
    pixels = np.stack([images.load_pixels(source, encoder.spec) for source in sources])
    expected = with_views(encoder, "flip+scale").encode(pixels)
    assert np.allclose(np.concatenate([batch.vectors for batch in found]), expected, atol=1e-6)


def test_an_unreadable_batch(encoder: Encoder) -> None:
    (batch,) = Pipeline().embed([b"x", b"y"], with_views(encoder, "flip"))
    assert batch.vectors.shape == (0, encoder.spec.dim) and len([e for e in batch.errors if e]) == 2


def test_the_spec_is_the_encoders_own(encoder: Encoder, make_encoder: Callable[[int], Encoder]) -> None:
    assert with_views(encoder, "scale").spec == encoder.spec
    assert with_views(make_encoder(3), "scale").spec != encoder.spec


def test_settings_from_single_views(encoder: Encoder) -> None:
    pixels = crops()
    views: tuple[View, ...] = ("original", "mirrored", "zoomed")
    made = by_setting({view: ViewsEncoder(encoder, (view,)).encode(pixels) for view in views})
    assert list(made) == list(VIEWS)
    for setting, vectors in made.items():
        assert np.allclose(vectors, with_views(encoder, setting).encode(pixels), atol=1e-6)


def test_views_that_cancel_out() -> None:
    one = np.array([[1, 0], [0, 1]], np.float32)
    assert np.array_equal(mean_view([one, np.array([[-1, 0], [0, 1]], np.float32)]), one)


@pytest.mark.parametrize("setting", ["flop", "", "flip + scale"])
def test_an_unknown_setting(setting: str, encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="unknown test-time views"):
        with_views(encoder, setting)
