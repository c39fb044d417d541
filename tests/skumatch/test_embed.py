"""The pipeline: in order whatever decodes first, bounded, errors in their place, no thread left behind."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.embed import Embedded, Pipeline, Source, cores, ordered_batches
from skumatch.encoder import Encoder
from skumatch.errors import ConfigError, ImageError
from skumatch.images import load_pixels, to_pixels
from skumatch.spec import Image, Pixels, Vectors


def pictures(root: Path) -> list[Source]:
    return [*sorted(root.rglob("*.png"))]


def wait_for_threads(before: int) -> None:
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_order_is_kept_whatever_is_done_first() -> None:
    chance = random.Random(0)
    delays = [chance.random() * 0.02 for _ in range(50)]

    def work(item: int) -> int:
        time.sleep(delays[item])
        return item * item

    batches = list(ordered_batches(range(50), work, batch=8, workers=4))
    assert [len(items) for items, _ in batches] == [8] * 6 + [2]
    assert [item for items, _ in batches for item in items] == list(range(50))
    assert [result for _, results in batches for result in results] == [i * i for i in range(50)]


def test_at_most_three_batches_are_in_flight() -> None:
    taken = delivered = most = 0

    def endless() -> Iterator[int]:
        nonlocal taken, most
        while True:
            taken += 1
            most = max(most, taken - delivered)
            yield taken

    stream = ordered_batches(endless(), lambda item: item, batch=5, workers=2)
    for _ in range(20):
        delivered += len(next(stream)[0])
    assert most == 15


def test_a_dropped_iterator_waits_for_nothing_on_whatever_thread() -> None:
    """The collector may end it anywhere: on a thread of its own, or while one is being started."""
    before, given, going_on, closed = threading.active_count(), *(threading.Event() for _ in range(3))

    def work(item: int) -> int:
        if item == 1:
            given.wait(10)
            stream.close()
            closed.set()
        elif item > 1:
            going_on.wait(30)
        return item

    stream = ordered_batches(range(9), work, batch=1, workers=2)
    assert next(stream) == ([0], [0])
    given.set()
    assert closed.wait(10) and not going_on.is_set()
    assert next(stream, None) is None
    going_on.set()
    wait_for_threads(before)


def test_an_error_comes_through_when_no_thread_works_any_more() -> None:
    working, ended = threading.Event(), threading.Event()

    def work(item: int) -> None:
        if item == 0:
            working.wait(10)
            raise OSError("no space")
        working.set()
        time.sleep(0.3)
        ended.set()

    with pytest.raises(OSError, match="no space"):
        next(ordered_batches(range(2), work, batch=1, workers=2))
    assert ended.is_set()


def test_vectors_are_those_of_the_pictures(patterns: Path, encoder: Encoder) -> None:
    paths = pictures(patterns)
    batches = list(Pipeline(batch=7, workers=3).embed(paths, encoder))
    assert [path for batch in batches for path in batch.sources] == paths
    expected = encoder.encode(np.stack([load_pixels(path, encoder.spec) for path in sorted(patterns.rglob("*.png"))]))
    assert np.allclose(np.concatenate([batch.vectors for batch in batches]), expected, atol=1e-6)


def test_errors_stand_in_their_place_and_extras_beside_the_rest(store: Path, encoder: Encoder) -> None:
    paths = pictures(store)[:10]
    (store / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    paths[3:3] = [store / "broken.png"]
    paths.append(store / "missing.jpg")
    done: list[int] = []
    seen: list[Source] = []
    errors: list[ImageError | None] = []
    for batch in Pipeline(batch=4).embed(paths, encoder, done.append, also=str):
        assert batch.extras == [str(batch.sources[int(place)]) for place in batch.good]
        assert batch.vectors.shape == (len(batch.good), encoder.spec.dim)
        assert [error is None for error in batch.errors] == [i in batch.good for i in range(len(batch.sources))]
        seen += batch.sources
        errors += batch.errors
    assert seen == paths and done == [4, 4, 4]
    assert [i for i, error in enumerate(errors) if error] == [3, 11]
    assert "broken.png" in str(errors[3]) and "missing.jpg" in str(errors[11])


def test_a_change_sees_the_whole_upright_picture_before_it_is_resized(encoder: Encoder) -> None:
    """Whatever the source; corruptions and test-time views rely on it."""
    wide = np.random.default_rng(0).integers(0, 256, (40, 90, 3)).astype(np.uint8)
    turned = PILImage.Exif()
    turned[0x0112] = 6
    stored = BytesIO()
    PILImage.fromarray(np.ascontiguousarray(np.rot90(wide))).save(stored, "PNG", exif=turned)
    seen: list[tuple[int, ...]] = []

    def left_half(image: Image) -> Image:
        seen.append(image.shape)
        return image[:, :45]

    sources: list[Source] = [wide, PILImage.fromarray(wide), stored.getvalue(), b"broken"]
    kept: list[bool] = []
    (batch,) = Pipeline(workers=1).embed(sources, encoder, also=lambda s: kept.append(s is wide), change=left_half)
    assert seen == [(40, 90, 3)] * 3 and kept == [True, False, False]
    expected = encoder.encode(to_pixels(wide[:, :45], encoder.spec)[None])[0]
    assert np.allclose(batch.vectors, expected, atol=1e-6) and batch.good.tolist() == [0, 1, 2]
    (plain,) = Pipeline(workers=1).embed([wide], encoder)
    assert np.allclose(plain.vectors, encoder.encode(to_pixels(wide, encoder.spec)[None]), atol=1e-6)
    assert not np.allclose(plain.vectors[0], expected, atol=1e-2)


def test_a_change_may_refuse_a_picture_and_never_sees_what_is_none(patterns: Path, encoder: Encoder) -> None:
    def too_dark(image: Image) -> Image:
        raise ImageError("too dark", "light it")

    (batch,) = Pipeline().embed([*pictures(patterns)[:2], np.zeros((4, 4), np.uint8)], encoder, change=too_dark)
    assert [str(error) for error in batch.errors][:2] == ["too dark - light it"] * 2
    assert "is not an image" in str(batch.errors[2]) and batch.vectors.shape == (0, encoder.spec.dim)


def test_a_batch_without_a_readable_picture(tmp_path: Path, encoder: Encoder) -> None:
    (batch,) = Pipeline().embed([tmp_path / "a.jpg", b"", b"GIF89a"], encoder)
    assert batch.vectors.shape == (0, encoder.spec.dim) and len(batch.good) == 0
    assert all(isinstance(error, ImageError) for error in batch.errors)


def test_no_pictures_no_batches(encoder: Encoder) -> None:
    assert list(Pipeline().embed([], encoder)) == []


def test_a_stream_given_up_midway_leaves_no_threads(patterns: Path, encoder: Encoder) -> None:
    before = threading.active_count()
    stream = Pipeline(batch=2, workers=4).embed(pictures(patterns), encoder)
    next(stream)
    assert threading.active_count() > before
    del stream
    wait_for_threads(before)


class Failing:
    """An encoder that gives up at its second batch."""

    def __init__(self, real: Encoder) -> None:
        self.spec = real.spec
        self.real = real
        self.calls = 0

    def encode(self, pixels: Pixels) -> Vectors:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return self.real.encode(pixels)


class Beginning:
    """An encoder that is given a batch before it is done with the last one."""

    def __init__(self, real: Encoder) -> None:
        self.spec = real.spec
        self.real = real
        self.done: list[str] = []

    def begin(self, pixels: Pixels) -> Callable[[], Vectors]:
        number = sum(one.startswith("begun") for one in self.done)
        self.done.append(f"begun {number}")

        def wait() -> Vectors:
            self.done.append(f"waited {number}")
            return self.real.encode(pixels)

        return wait

    def encode(self, pixels: Pixels) -> Vectors:
        raise AssertionError("it was to begin")


def test_an_encoder_that_can_is_given_the_next_batch_before_the_last_is_awaited(store: Path, encoder: Encoder) -> None:
    (store / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    paths = pictures(store)[:10]
    there = Beginning(encoder)
    plain = list(Pipeline(batch=4).embed(paths, encoder, also=str))
    found: list[Embedded] = []
    for batch in Pipeline(batch=4).embed(paths, there, also=str):
        there.done.append(f"taken {len(found)}")
        found.append(batch)
    assert there.done[:5] == ["begun 0", "begun 1", "waited 0", "taken 0", "begun 2"]
    assert there.done[5:] == ["waited 1", "taken 1", "waited 2", "taken 2"]
    for one, other in zip(found, plain, strict=True):
        assert np.array_equal(one.vectors, other.vectors) and one.extras == other.extras
        assert one.sources == other.sources and one.good.tolist() == other.good.tolist()
    (batch,) = Pipeline().embed([b""], there)
    assert batch.vectors.shape == (0, encoder.spec.dim)


def test_errors_that_are_no_image_errors_surface_and_leave_no_threads(patterns: Path, encoder: Encoder) -> None:
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        list(Pipeline(batch=2).embed(pictures(patterns), Failing(encoder)))

    def broken() -> Iterator[Source]:
        yield from pictures(patterns)[:3]
        raise KeyError("listing failed")

    with pytest.raises(KeyError, match="listing failed"):
        list(Pipeline(batch=2).embed(broken(), encoder))
    wait_for_threads(before)


def test_the_pixel_limit_is_passed_on(patterns: Path, encoder: Encoder) -> None:
    (batch,) = Pipeline(max_pixels=100).embed(pictures(patterns)[:2], encoder)
    assert all("more than 100 pixels" in str(error) for error in batch.errors)


def test_settings_that_would_drop_everything_are_refused() -> None:
    settings: list[dict[str, Any]] = [{"batch": 0}, {"workers": -1}, {"max_pixels": 0}]
    for pipeline in settings:
        with pytest.raises(ConfigError, match="out of range"):
            Pipeline(**pipeline)
    assert cores() >= 1
