"""Encoders from a local transformers folder: the same vectors as transformers itself, older key names, text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skumatch.errors import HubError, ModelError
from skumatch.runtime.torch import TorchEncoder
from skumatch.towers.base import Tower
from skumatch.towers.build import ModelSource, build


def of(folder: Path, **options: Any) -> Tower:
    return build(ModelSource(f"hf:{folder}", **options))


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_clip_gives_the_image_features_of_transformers(hf_folder: Path) -> None:
    import transformers

    tower = of(hf_folder / "clip")
    reference = transformers.CLIPModel.from_pretrained(hf_folder / "clip").eval()
    with torch.inference_mode():
        expected = reference.get_image_features(pixel_values=images()).pooler_output
        assert torch.allclose(tower.image(images()), expected, atol=1e-6)
    assert tower.dim == 12 and tower.resizable and tower.report.lines() == []


def test_dinov2_loads_although_its_keys_were_renamed_since(hf_folder: Path) -> None:
    import transformers

    folder = hf_folder / "dinov2"
    tower = of(folder)
    assert not set(load_file(folder / "model.safetensors")) >= set(tower.model.state_dict())
    reference = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = reference(pixel_values=images()).pooler_output
        assert torch.allclose(tower.image(images()), expected, atol=1e-6)
    assert tower.report.lines() == [] and tower.text is None


def test_published_preprocessing(hf_folder: Path) -> None:
    clip, siglip, dino = (of(hf_folder / name, random_init=True).preprocess for name in ("clip", "siglip", "dinov2"))
    assert (clip.size, clip.resize, clip.interpolation) == (32, "crop", "bicubic")
    assert clip.crop_pct == pytest.approx(32 / 36)
    assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (siglip.size, siglip.resize, siglip.crop_pct) == (32, "squash", 1.0)
    assert (dino.resize, dino.interpolation) == ("crop", "bilinear")


def test_text_where_there_is_a_tokenizer(hf_folder: Path) -> None:
    encoder = TorchEncoder(of(hf_folder / "clip"), device="cpu")
    vectors = encoder.encode_text(["red box", "blue tin", "red box"])
    assert vectors.shape == (3, 12) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=1e-6) and not np.allclose(vectors[0], vectors[1], atol=1e-2)
    assert of(hf_folder / "siglip").text is None


def test_missing_weights_are_refused_and_wrong_shapes_too(hf_folder: Path, tmp_path: Path) -> None:
    for name, key in (("clip", "visual_projection.weight"), ("dinov2", "layernorm.weight")):
        state = load_file(hf_folder / name / "model.safetensors")
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v for k, v in state.items() if k != key}, path)
        with pytest.raises(ModelError, match=rf"lacks 1 of .*{key}"):
            of(hf_folder / name, weights=path)
        save_file({**state, key: torch.zeros(3, 3)}, path)
        with pytest.raises(ModelError, match=key):
            of(hf_folder / name, weights=path)


def test_an_image_tower_alone_takes_the_text_away(hf_folder: Path, tmp_path: Path) -> None:
    state = load_file(hf_folder / "clip" / "model.safetensors")
    path = tmp_path / "image.safetensors"
    save_file({k: v for k, v in state.items() if k.startswith("vis")} | {"extra": torch.zeros(1)}, path)
    tower = of(hf_folder / "clip", weights=path)
    assert tower.text is None
    assert tower.report.missing and tower.report.unexpected == ("extra",)


def test_half_precision_in_a_config_does_not_halve_the_network(hf_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder / "clip", tmp_path / "half")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    tower = of(folder)
    assert {p.dtype for p in tower.model.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(tower.image(images()), of(hf_folder / "clip").image(images()))


def test_another_size_only_where_the_network_takes_it(hf_folder: Path) -> None:
    dino = of(hf_folder / "dinov2", size=48)
    assert dino.preprocess.size == 48 and dino.image(images(48)).shape == (2, 16)
    clip = of(hf_folder / "clip", size=48)
    assert clip.preprocess.size == 48 and clip.image(images(48)).shape == (2, 12)
    with pytest.raises(ModelError, match=r"takes multiples of \d+ px, not 50"):
        of(hf_folder / "clip", size=50)


def test_a_folder_without_weights(hf_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder / "clip", tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError):
        of(folder)
    assert of(folder, random_init=True).dim == 12


@pytest.mark.parametrize("left", [None, {"size": 32, "image_std": [0.5, 0.5, 0.5]}])
def test_preprocessing_is_never_guessed(hf_folder: Path, tmp_path: Path, left: dict[str, object] | None) -> None:
    copy = tmp_path / "dinov2"
    shutil.copytree(hf_folder / "dinov2", copy)
    (copy / "preprocessor_config.json").unlink()
    if left is not None:
        (copy / "preprocessor_config.json").write_text(json.dumps(left))
    with pytest.raises(ModelError, match="preprocessor_config"):
        build(ModelSource(f"hf:{copy}"))
