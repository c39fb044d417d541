"""The torch engine: uint8 in, unit vectors out, the same whatever the batch, tied to a digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from skumatch.encoder import open_encoder
from skumatch.errors import DeviceError, ModelError
from skumatch.runtime.served import Served
from skumatch.runtime.torch import Network, TorchEncoder, make_spec, memory_format, pick_device
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

CONV, VIT, TINY = "timm:test_efficientnet", "timm:test_vit", "open_clip:skumatch-tiny-96"
GOLDEN = {
    TINY: [0.05114, 0.04676, -0.06378, -0.05920, -0.05074],
    CONV: [0.04748, -0.01034, 0.05244, -0.12200, 0.01593],
}


def pixels(size: int, count: int = 1) -> Pixels:
    """Return pictures that are the same on every machine: waves of another length in each."""
    wave = np.arange(count * 3 * size * size).reshape(count, 3, size, size)
    return ((wave * 37 + wave // 11 * 5 + wave // size * 3) % 256).astype(np.uint8)


def encoder_of(name: str, **options: Any) -> TorchEncoder:
    return open_encoder(ModelSource(name, random_init=True, **options), "cpu")


@pytest.fixture(scope="module")
def tiny() -> TorchEncoder:
    return encoder_of(TINY)


@pytest.fixture(scope="module")
def conv() -> TorchEncoder:
    return encoder_of(CONV)


def test_unit_vectors(tiny: TorchEncoder, conv: TorchEncoder) -> None:
    for encoder in (tiny, conv):
        vectors = encoder.encode(pixels(encoder.spec.size, 3))
        assert vectors.shape == (3, encoder.spec.dim) and vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_golden_vectors(tiny: TorchEncoder, conv: TorchEncoder) -> None:
    for encoder, name in ((tiny, TINY), (conv, CONV)):
        found = encoder.encode(pixels(encoder.spec.size))[0, :5]
        assert np.allclose(found, GOLDEN[name], atol=1e-4), found.tolist()


def test_one_by_one_equals_a_batch(tiny: TorchEncoder, conv: TorchEncoder) -> None:
    for encoder in (tiny, conv):
        batch = pixels(encoder.spec.size, 8)
        single = np.concatenate([encoder.encode(batch[i : i + 1]) for i in range(8)])
        assert np.allclose(single, encoder.encode(batch), atol=1e-5)


def test_scaling_inside_the_network_is_torchvisions() -> None:
    from torchvision.transforms.functional import convert_image_dtype, normalize

    tower = build(ModelSource(VIT, random_init=True))
    tower.preprocess = replace(tower.preprocess, mean=(0.48, 0.45, 0.41), std=(0.26, 0.27, 0.28))
    network = Network(tower.image, tower.preprocess).eval()
    batch = torch.from_numpy(pixels(tower.preprocess.size, 2))
    by_hand = normalize(convert_image_dtype(batch, torch.float32), [0.48, 0.45, 0.41], [0.26, 0.27, 0.28])
    with torch.inference_mode():
        expected = nn.functional.normalize(tower.image.eval()(by_hand), dim=1)
        assert torch.allclose(network(batch), expected, atol=1e-5)


def test_the_head_is_served_on_top() -> None:
    tower = build(ModelSource(CONV, random_init=True))
    head = nn.Linear(tower.dim, 7, bias=False)
    plain, served = TorchEncoder(tower, device="cpu"), TorchEncoder(tower, Served("head", head), "cpu")
    batch = pixels(160, 2)
    expected = plain.encode(batch) @ head.weight.detach().numpy().T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(served.encode(batch), expected, atol=1e-5)
    assert (served.spec.dim, served.spec.layer, plain.spec.layer) == (7, "head", "features")
    assert served.spec.digest != plain.spec.digest


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 96, 96), np.uint8),
        np.zeros((1, 96, 96, 3), np.uint8),
        np.zeros((1, 3, 96, 95), np.uint8),
        np.zeros((1, 3, 96, 96), np.float32),
        np.zeros((1, 1, 96, 96), np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(tiny: TorchEncoder, wrong: NDArray[Any]) -> None:
    with pytest.raises(ModelError, match=r"give uint8 \(N, 3, 96, 96\)"):
        tiny.encode(wrong)


def test_odd_but_valid_arrays(tiny: TorchEncoder) -> None:
    batch = pixels(96, 3)
    expected = tiny.encode(batch)
    assert np.allclose(tiny.encode(batch[::-1]), expected[::-1], atol=1e-5)
    batch.flags.writeable = False
    assert np.allclose(tiny.encode(batch), expected, atol=1e-6)
    assert tiny.encode(batch[:0]).shape == (0, 256)
    assert encoder_of(VIT).encode(np.empty((0, 3, 160, 160), np.uint8)).shape == (0, 64)


def test_text_vectors(tiny: TorchEncoder, conv: TorchEncoder) -> None:
    vectors = tiny.encode_text(["a red box", "a blue tin", "a red box"])
    assert vectors.shape == (3, 256) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-3)
    with pytest.raises(ModelError, match="no text tower"):
        conv.encode_text(["a red box"])


def test_digest_is_the_same_only_for_the_same_vectors(conv: TorchEncoder) -> None:
    assert encoder_of(CONV).spec == conv.spec
    others = [
        encoder_of(CONV, seed=1),
        encoder_of(CONV, size=64),
        encoder_of(CONV, resize="squash"),
        encoder_of(CONV, crop_pct=0.9),
        encoder_of(VIT),
    ]
    digests = {conv.spec.digest, *(other.spec.digest for other in others)}
    assert len(digests) == 6


def test_digest_sees_one_changed_weight() -> None:
    tower = build(ModelSource(CONV, random_init=True))
    before = make_spec(tower).digest
    with torch.no_grad():
        next(tower.image.parameters()).view(-1)[3] += 1e-6
    assert make_spec(tower).digest != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_granted_is_an_error(device: str) -> None:
    with pytest.raises(DeviceError, match="torch sees no usable GPU"):
        open_encoder(ModelSource(CONV, random_init=True), device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:", "cuda:-1", "", "cuda:\N{SUPERSCRIPT TWO}"])
def test_a_device_that_is_none(device: str) -> None:
    with pytest.raises(DeviceError, match="choose auto, cpu, cuda"):
        pick_device(device)


def test_devices_and_layouts(tiny: TorchEncoder, conv: TorchEncoder) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert memory_format(conv.tower.image) is torch.channels_last
    assert memory_format(tiny.tower.image) is torch.contiguous_format


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", "no-such-folder"):
        with pytest.raises(ModelError, match="does not exist"):
            open_encoder(missing, "cpu")
    with pytest.raises(ModelError, match="holds no model"):
        open_encoder(tmp_path, "cpu")
