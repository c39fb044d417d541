"""Pretrained encoders from three libraries: names, published preprocessing, and checkpoints that fit or do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from skumatch.errors import HubError, ModelError
from skumatch.towers.base import Tower, load_state
from skumatch.towers.build import ModelSource, build, split_name

CONV, VIT, TINY = "timm:test_efficientnet", "timm:test_vit", "open_clip:skumatch-tiny-96"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def random(name: str, seed: int = 0, size: int | None = None) -> Tower:
    return build(ModelSource(name, random_init=True, seed=seed, size=size))


def state_of(tower: Tower) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tower.model.state_dict().items()}


def same(tower: Tower, state: dict[str, Tensor]) -> bool:
    own = tower.model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in state.items() if name in own)


def saved(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path)
    return path


@pytest.mark.parametrize(("name", "dim"), [(CONV, 256), (VIT, 64), (TINY, 256)])
def test_random_towers_give_what_they_promise(name: str, dim: int) -> None:
    tower = random(name)
    size = tower.preprocess.size
    with torch.inference_mode():
        assert tower.image(torch.zeros(2, 3, size, size)).shape == (2, dim) == (2, tower.dim)
    assert (tower.text is not None) == (name == TINY)
    assert tower.report.source == "random initialisation" and tower.report.lines() == []


def test_resizable_towers_take_another_size_and_others_are_built_for_it() -> None:
    conv, vit = random(CONV, size=64), random(VIT, size=96)
    assert conv.resizable and vit.resizable
    for tower, size in ((conv, 64), (conv, 96), (vit, 96), (vit, 112)):
        assert tower.image(torch.zeros(1, 3, size, size)).shape == (1, tower.dim)
    assert (conv.preprocess.size, vit.preprocess.size) == (64, 96)


def test_text_tower_of_open_clip() -> None:
    text = random(TINY).text
    assert text is not None
    ids = text.tokenize(["a red box", "a tin"])
    assert ids.shape == (2, 32) and ids.dtype == torch.int64 and not torch.equal(ids[0], ids[1])
    assert text.encode(ids).shape == (2, 256)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "neither a model folder nor a model name"),
        ("tim:resnet50", "did you mean timm:"),
        ("open_clip:", "neither"),
        ("open_clip:ViT-B-33/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32/openay", "openai"),
        ("timm:resnet5O", "resnet50"),
    ],
)
def test_unknown_names_show_the_nearest(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(ModelSource(name))


def test_split_name_keeps_what_follows_the_first_colon() -> None:
    assert split_name("hf:owner/name:tag") == ("hf", "owner/name:tag")


def as_it_is(state: dict[str, Tensor]) -> Any:
    return state


def parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def compiled(state: dict[str, Tensor]) -> Any:
    return {"epoch": 3, "model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}


def wrapped(state: dict[str, Tensor]) -> Any:
    return {"state_dict": parallel(state), "epoch": 3, "arch": "made up"}


@pytest.mark.parametrize(
    ("name", "wrap"), [(CONV, as_it_is), (CONV, parallel), (CONV, compiled), (CONV, wrapped), (TINY, wrapped)]
)
def test_pt_files_load_however_they_are_wrapped(
    name: str, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    state = state_of(random(name, seed=5))
    torch.save(wrap(state), tmp_path / "w.pt")
    tower = build(ModelSource(name, tmp_path / "w.pt"))
    assert same(tower, state) and tower.report.lines() == []


def test_a_missing_image_weight_is_refused_and_named(tmp_path: Path) -> None:
    for name in (CONV, TINY):
        state = state_of(random(name))
        first = next(key for key in state if "text" not in key and key.startswith(("conv_stem", "visual")))
        del state[first]
        with pytest.raises(ModelError, match=rf"w\.safetensors lacks 1 of .*{first}"):
            build(ModelSource(name, saved(state, tmp_path / "w.safetensors")))


def test_unexpected_keys_are_reported(tmp_path: Path) -> None:
    state = {**state_of(random(CONV)), "classifier.weight": torch.zeros(3), "classifier.bias": torch.zeros(3)}
    tower = build(ModelSource(CONV, saved(state, tmp_path / "w.safetensors")))
    assert tower.report.unexpected == ("classifier.bias", "classifier.weight")
    assert tower.report.lines() == [
        f"{tmp_path / 'w.safetensors'}: 2 unexpected keys (classifier.bias, classifier.weight)"
    ]


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    state = state_of(random(CONV))
    name = "conv_stem.weight"
    shape = tuple(state[name].shape)
    state[name] = torch.zeros(1, 2, 3)
    with pytest.raises(ModelError, match=rf"{name} is \(1, 2, 3\), not ") as caught:
        build(ModelSource(CONV, saved(state, tmp_path / "w.safetensors")))
    assert str(shape) in str(caught.value)


def test_an_image_tower_alone_loads_and_takes_the_text_side_away(tmp_path: Path) -> None:
    state = {k: v for k, v in state_of(random(TINY, seed=5)).items() if k.startswith("visual.")}
    for shown in (state, {key.removeprefix("visual."): value for key, value in state.items()}):
        tower = build(ModelSource(TINY, saved(shown, tmp_path / "w.safetensors")))
        assert same(tower, state)
        assert tower.text is None and tower.report.missing


def test_position_embeddings_are_resized_to_another_image_size(tmp_path: Path) -> None:
    path = saved(state_of(random(TINY, seed=5)), tmp_path / "w.safetensors")
    tower = build(ModelSource(TINY, path, size=48))
    assert tower.preprocess.size == 48
    assert tower.image(torch.zeros(1, 3, 48, 48)).shape == (1, 256)


class Hostile:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "extra": Hostile(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt holds more than tensors.*safetensors"):
        load_state(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02", bytes(64)])
def test_files_that_are_no_weights(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        load_state(tmp_path / name)


def test_missing_and_empty_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_state(tmp_path / "none.pt")
    for content in ([1, 2], {"epoch": 3}, {}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="holds no tensors"):
            load_state(tmp_path / "w.pt")


def test_published_preprocessing_of_timm() -> None:
    how = random(CONV).preprocess
    assert (how.mean, how.std) == IMAGENET
    assert (how.size, how.resize, how.crop_pct, how.interpolation) == (160, "crop", 0.95, "bicubic")
    assert random("timm:test_resnet").preprocess.interpolation == "bilinear"


def test_published_preprocessing_of_open_clip_tags() -> None:
    import open_clip

    from skumatch.towers import open_clip as module

    tiny = random(TINY).architecture
    found = {}
    for name, tag in (("ViT-B-32", "openai"), ("ViT-B-16-SigLIP", "webli"), ("MobileCLIP-S1", "datacompdr")):
        published = module._published(open_clip.get_pretrained_cfg(name, tag))
        found[name] = module.rebuild({**tiny, "preprocess": published}).preprocess
    clip, siglip, mobile = found.values()
    assert (clip.mean, clip.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (clip.resize, clip.crop_pct, clip.interpolation) == ("crop", 1.0, "bicubic")
    assert (siglip.resize, siglip.mean, siglip.std) == ("squash", (0.5,) * 3, (0.5,) * 3)
    assert (mobile.mean, mobile.std, mobile.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")


def test_overrides() -> None:
    stretch: Any = "stretch"
    changed = build(ModelSource(CONV, random_init=True, resize="squash", size=64)).preprocess
    assert (changed.resize, changed.size) == ("squash", 64)
    assert build(ModelSource(CONV, random_init=True, crop_pct=0.5)).preprocess.crop_pct == 0.5
    with pytest.raises(ModelError, match="crop_pct goes with resize mode crop"):
        build(ModelSource(CONV, random_init=True, resize="pad", crop_pct=0.5))
    with pytest.raises(ModelError, match="resize mode"):
        build(ModelSource(CONV, random_init=True, resize=stretch))


def test_random_initialisation_follows_the_seed() -> None:
    state = state_of(random(CONV, seed=1))
    assert same(random(CONV, seed=1), state) and not same(random(CONV, seed=2), state)


def test_a_local_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"has no config\.json"):
        build(ModelSource(f"hf:{tmp_path}"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        build(ModelSource(f"hf:{tmp_path}"))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    how = '{"size": 32, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    (tmp_path / "preprocessor_config.json").write_text(how)
    with pytest.raises(ModelError, match="transformers cannot build"):
        build(ModelSource(f"hf:{tmp_path}"))


def test_towers_share_their_tensors_with_the_model() -> None:
    tower = random(TINY)
    parameter = next(p for p in tower.image.parameters())
    with torch.no_grad():
        parameter.fill_(7)
    assert any(torch.all(p == 7) for p in tower.model.parameters()) and isinstance(tower.model, nn.Module)
