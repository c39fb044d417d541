"""Fakes and small data for all tests: an encoder without a network, a data set of coloured patterns, no hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.encoder import Encoder
from skumatch.spec import Pixels, Spec, Vectors

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported
SIZE, DIM = 64, 32


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the processes that are about to start: threads of all would wait for each other."""
    processes = config.getoption("numprocesses", None) or 1
    if processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the code blocks of the docs, which take minutes each: none of them is what all wait for at the end."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


class FakeEncoder:
    """Pools pixels to 4 x 4 and projects them at random: pictures that look alike get similar vectors."""

    def __init__(self, seed: int = 0) -> None:
        half = (0.5, 0.5, 0.5)
        digest = f"{seed:064x}"
        self.spec = Spec(
            SIZE, half, half, "squash", 1.0, "bicubic", name="fake", dim=DIM, layer="features", digest=digest
        )
        self.projection = np.random.default_rng(seed).normal(size=(48, DIM))

    def encode(self, pixels: Pixels) -> Vectors:
        pooled = pixels.reshape(len(pixels), 3, 4, SIZE // 4, 4, SIZE // 4).mean(axis=(3, 5)).reshape(-1, 48) - 127.5
        projected = pooled @ self.projection + 1e-6
        vectors: Vectors = (projected / np.linalg.norm(projected, axis=1, keepdims=True)).astype(np.float32)
        return vectors


def draw(sku: int, view: int) -> PILImage.Image:
    """Draw one view of a made-up SKU: its 4 x 4 colour pattern, in another light and with noise."""
    pattern = np.random.default_rng(1000 + sku).integers(20, 236, (4, 4, 3))
    rng = np.random.default_rng((sku + 1) * 100 + view)
    noisy = pattern.repeat(SIZE // 4, 0).repeat(SIZE // 4, 1) * rng.uniform(0.8, 1.1) + rng.normal(
        0, 6, (SIZE, SIZE, 3)
    )
    return PILImage.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the hub and off the user's cache."""
    monkeypatch.setenv("SKUMATCH_CACHE", str(tmp_path / "skumatch-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def make_encoder() -> Callable[[int], Encoder]:
    """Return a factory of fake encoders; another seed is another encoder with another digest."""
    return FakeEncoder


@pytest.fixture
def encoder() -> Encoder:
    """Return the fake encoder: 64 px in, 32 numbers out."""
    return FakeEncoder()


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 6 SKUs with 4 train and 2 test views of 64 px, as RP2K lays it out (do not write to it)."""
    root = tmp_path_factory.mktemp("patterns")
    for sku in range(6):
        for view in range(6):
            folder = root / ("train" if view < 4 else "test") / f"sku-{sku}"
            folder.mkdir(parents=True, exist_ok=True)
            draw(sku, view).save(folder / f"{view}.png")
    return root


@pytest.fixture(scope="session")
def draw_view() -> Callable[[int, int], PILImage.Image]:
    """Return the function that draws view ``view`` of made-up SKU ``sku``."""
    return draw


@pytest.fixture
def store(patterns: Path, tmp_path: Path) -> Path:
    """Return a copy of ``patterns`` that the test may change."""
    return Path(shutil.copytree(patterns, tmp_path / "store"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB, where that is allowed."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except (OSError, AttributeError):
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield folder
    # lazily: a memory map may still hold it
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with tiny random transformers models: clip (with a tokenizer), siglip and dinov2."""
    import torch
    import transformers as hf

    root = tmp_path_factory.mktemp("hf")
    common: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {**common, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text = {**common, "num_attention_heads": 2, "vocab_size": 100, "max_position_embeddings": 8, **ends}
    crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 36}}
    squash = {"size": {"height": 32, "width": 32}}
    torch.manual_seed(3)
    made: dict[str, tuple[Any, dict[str, Any], int]] = {
        "clip": (hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)), crop, 3),
        "siglip": (hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)), squash, 3),
        "dinov2": (hf.Dinov2Model(hf.Dinov2Config(**vision)), crop, 2),
    }
    for name, (model, sizes, resample) in made.items():
        model.save_pretrained(root / name)
        how = {**sizes, "resample": resample, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        (root / name / "preprocessor_config.json").write_text(json.dumps(how))
    save_tokenizer(root / "clip")
    return root


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer that knows four words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "</s>", "red", "box", "blue", "tin"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "</s>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
