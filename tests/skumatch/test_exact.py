"""TF32 is off while it must be and as it was before afterwards, whatever threads and errors do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from skumatch.encoder import beginning, open_encoder, pixels_on
from skumatch.runtime.exact import exact_float32
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource

MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    """Allow TF32 in both, and leave torch as it was."""
    before = MATMUL.fp32_precision, CONV.fp32_precision
    MATMUL.fp32_precision = CONV.fp32_precision = "tf32"
    yield
    MATMUL.fp32_precision, CONV.fp32_precision = before


def settings() -> tuple[str, str]:
    return MATMUL.fp32_precision, CONV.fp32_precision


def test_off_inside_and_as_before_outside() -> None:
    with exact_float32():
        assert settings() == ("ieee", "ieee")
        with exact_float32():
            assert settings() == ("ieee", "ieee")
        assert settings() == ("ieee", "ieee")
    assert settings() == ("tf32", "tf32")
    MATMUL.fp32_precision = "none"
    with exact_float32():
        assert settings() == ("none", "ieee")
    assert settings() == ("none", "tf32")
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert settings() == ("none", "tf32")


def test_the_last_thread_turns_it_on_again() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with exact_float32():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with exact_float32():
        assert settings() == ("ieee", "ieee")
    assert settings() == ("ieee", "ieee")
    leave.set()
    thread.join(10)
    assert settings() == ("tf32", "tf32")


def pixels(side: int, count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)


def encoder_on(device: str) -> TorchEncoder:
    return open_encoder(ModelSource("timm:test_efficientnet", random_init=True, size=64), device)


def test_on_the_cpu_nothing_is_begun_ahead_and_tensors_are_taken() -> None:
    encoder = encoder_on("cpu")
    assert beginning(encoder) is None and pixels_on(encoder) == ""
    batch = pixels(64, 3)
    assert np.array_equal(encoder.encode(torch.from_numpy(batch)), encoder.encode(batch))
    assert settings() == ("tf32", "tf32")


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_vectors_though_tf32_is_allowed() -> None:
    here, there = encoder_on("cpu"), encoder_on("cuda")
    assert pixels_on(there) == "cuda:0"
    batch = pixels(64, 8)
    assert (there.encode(batch) * here.encode(batch)).sum(1).min() > 0.99999
    assert (there.encode(torch.from_numpy(batch).to("cuda")) * here.encode(batch)).sum(1).min() > 0.99999
    assert there.encode(batch[:0]).shape == (0, here.spec.dim) and settings() == ("tf32", "tf32")


@pytest.mark.gpu
def test_batches_that_are_begun_together_keep_apart() -> None:
    here, there = encoder_on("cpu"), encoder_on("cuda")
    begin = beginning(there)
    assert begin is not None
    for _ in range(20):
        batches = [pixels(64, 1 + seed % 5, seed) for seed in range(8)]
        waiting = [begin(batch) for batch in batches]
        for wait, batch in zip(waiting, batches, strict=True):
            assert (wait() * here.encode(batch)).sum(1).min() > 0.99999
