"""A model's text tower for other programs: an ONNX file, and the tokenizer as files that read without skumatch.

tokenizer.json is the format of Hugging Face's ``tokenizers`` (Rust, Python) and transformers.js. It is published only
when it gives the ids of the model's own tokenizer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from skumatch.errors import ModelError
from skumatch.export.onnx import LARGEST, exported
from skumatch.machine import usable_cores
from skumatch.runtime.onnx import OUTPUT
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.providers import CPU, open_session
from skumatch.runtime.torch import TorchEncoder
from skumatch.spec import Vectors
from skumatch.towers.base import Bpe, TextTower

if TYPE_CHECKING:
    import onnx
    from tokenizers import Tokenizer

INPUT, NETWORK = "tokens", "text.onnx"
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
ROLES: Final = ("bos_token", "eos_token", "unk_token", "pad_token")

# What open_clip's own tokenizer takes for a piece of text, in lower case. Its pattern ignores case, whereby U+0345, a
# mark whose capital is a letter, is neither a letter nor anything else.
PIECES: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}" + "\u0345]+"

PROBES: Final = (
    "oat milk barista 1 l",
    "  Oat Milk,\tBARISTA -- 1.5 L (6-pack) #42  ",
    "it's THEY'RE O'Neill's 'n'",
    "Cr\u00e8me br\u00fbl\u00e9e \u2013 \u00c4pfel & N\u00fcsse 250 g",
    "&quot;Caf&eacute;&quot; &amp;amp; &#39;tea&#39; 5&nbsp;&euro;",
    "\u201cquoted\u201d \u2018single\u2019 \u2026",
    "\uff26\uff35\uff2c\uff2c\u3000\uff11\uff12\uff13\uff0c\ufb01ne",
    "\u725b\u4e73 \u041c\u043e\u043b\u043e\u043a\u043e \u0393\u03ac\u03bb\u03b1\u03c2 \U0001f95b",
    "e\u0301 under_score e_mail",
    "",
    "word 12 " * 300,
)


class TextNetwork(nn.Module):
    """The text tower of ``model``: ids to unit rows."""

    def __init__(self, model: nn.Module, text: TextTower) -> None:
        super().__init__()
        self.model = model  # holds the parameters that ``text.encode`` uses
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """Map int64 (N, L) to float32 (N, D) rows of unit length."""
        return nn.functional.normalize(self.text.encode(tokens).float(), dim=1)


def to_onnx_text(encoder: TorchEncoder, facts: dict[str, Any]) -> onnx.ModelProto:
    """Return the text tower of ``encoder``, which is on the CPU, as an ONNX model in float32 with dynamic batch.

    Input ``tokens`` int64 (N, L), L being the tokenizer's length; output ``embeddings`` float32 (N, D) of unit length.
    ``facts``: JSON-ready provenance, to which the tower, its L and its D are added. Raises ModelError where there is
    no text tower or it cannot be exported.
    """
    import onnx

    text = text_of(encoder)
    image = {id(parameter) for parameter in encoder.tower.image.parameters()}
    own = [parameter for parameter in encoder.tower.model.parameters() if id(parameter) not in image]
    if (size := sum(p.numel() * p.element_size() for p in own)) > LARGEST:
        raise ModelError(f"{size / 1e9:.1f} GB of weights do not fit into one ONNX file", "use the torch runtime")
    example = text.tokenize(["oat milk", "crispbread"])
    network = TextNetwork(encoder.tower.model, text).eval()
    model = exported(network, example, INPUT, [OUTPUT])
    with torch.inference_mode():
        dim = int(network(example).shape[1])
    about = {**facts, "tower": "text", "length": text.length, "dim": dim}
    del model.metadata_props[:]
    spec = replace(encoder.spec, precision="fp32")
    onnx.helper.set_model_props(model, {KEY: Passport(spec, None, about).to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def text_files(encoder: TorchEncoder, facts: dict[str, Any]) -> dict[str, bytes]:
    """Return ``text.onnx`` and the tokenizer's files by name. Raises ModelError as what makes them does."""
    return {NETWORK: bytes(to_onnx_text(encoder, facts).SerializeToString()), **tokenizer_files(encoder)}


def compare_text(encoder: TorchEncoder, files: Mapping[str, bytes], texts: Sequence[str]) -> float:
    """Return the least cosine of what ``text_files`` give of ``texts``, run without ``encoder``, with its vectors."""
    session = open_session(files[NETWORK], CPU, threads=usable_cores())
    ids = np.array(ids_of(files[TOKENIZER].decode(), list(texts)), np.int64)
    found: Vectors = session.run([OUTPUT], {INPUT: ids})[0]
    return float((found * encoder.encode_text(list(texts))).sum(1).min())


def text_of(encoder: TorchEncoder) -> TextTower:
    """Return the text tower. Raises ModelError where there is none."""
    if encoder.tower.text is None:
        raise ModelError(f"{encoder.spec.name} has no text tower", "use an open_clip or hf model that has one")
    return encoder.tower.text


def tokenizer_files(encoder: TorchEncoder) -> dict[str, bytes]:
    """Return the tokenizer's files by name: ``tokenizer.json``, which cleans, cuts and pads texts to (N, L) ids as the
    text tower takes them, and ``tokenizer_config.json`` for transformers and transformers.js.

    Of open_clip's cleaning, what mends garbled text is left out (see ``skumatch.export.cleaning``). Raises ModelError
    where there is no text tower, or no such file gives the ids of its tokenizer.
    """
    text = text_of(encoder)
    name = encoder.spec.name
    tokenizer, roles = _saved(text, name) if text.bpe is None else _of_bpe(text.bpe, text, name)
    tokenizer.enable_truncation(text.length)
    data = tokenizer.to_str()
    if ids_of(data, PROBES) != text.tokenize(PROBES).tolist():
        raise _unwritable(name, "tokenizer.json would give other ids")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": text.length, **roles}
    return {TOKENIZER: data.encode(), CONFIG: json.dumps(config, indent=1).encode()}


def ids_of(data: str, texts: tuple[str, ...] | list[str]) -> list[list[int]]:
    """Return the ids that a ``tokenizer.json`` gives ``texts``."""
    from tokenizers import Tokenizer

    return [encoding.ids for encoding in Tokenizer.from_str(data).encode_batch(list(texts))]


def _unwritable(name: str, why: str) -> ModelError:
    return ModelError(f"the tokenizer of {name} cannot be exported: {why}", "leave out --text")


def _of_bpe(bpe: Bpe, text: TextTower, name: str) -> tuple[Tokenizer, dict[str, str]]:
    """Return open_clip's own tokenizer and its special tokens by role."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

    from skumatch.export.cleaning import normalizer

    if text.cleaning != "lower":  # no published model; its special tokens would be found in texts in another way
        raise _unwritable(name, f"texts are cleaned by '{text.cleaning}'")
    start, end = bpe.special[:2]
    tokenizer = Tokenizer(models.BPE(dict(bpe.ids), list(bpe.merges), end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizer(text.cleaning)
    pieces = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in bpe.special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, bpe.ids[token]) for token in (start, end)]
    )
    padding = next(piece for piece, number in bpe.ids.items() if number == 0)  # open_clip fills with zeros
    tokenizer.enable_padding(length=text.length, pad_id=0, pad_token=padding)
    return tokenizer, {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": padding}


def _saved(text: TextTower, name: str) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer that transformers saves, with what cleans texts first, and its special tokens by role."""
    from tokenizers import Tokenizer, normalizers

    from skumatch.export.cleaning import normalizer

    with tempfile.TemporaryDirectory() as folder:
        text.save_tokenizer(Path(folder))
        found = next(Path(folder).rglob(TOKENIZER), None)
        if found is None:
            raise _unwritable(name, "it has no tokenizer.json")
        tokenizer = Tokenizer.from_file(str(found))
        config = json.loads(found.with_name(CONFIG).read_text(encoding="utf-8"))
    roles = {role: _content(config[role]) for role in ROLES if config.get(role)}
    if "pad_token" not in roles:
        raise _unwritable(name, "it has no padding token")
    side = config.get("padding_side", "right")
    pad = roles["pad_token"]
    tokenizer.enable_padding(direction=side, length=text.length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    if text.cleaning:
        own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizer(text.cleaning), *own])
    return tokenizer, roles


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
