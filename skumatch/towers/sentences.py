"""Sentence encoders: titles to vectors, out of a folder or a hub repository in the layout of sentence-transformers.

That package is not needed. It knows nothing about pictures, except that ``open_text_encoder`` also opens the text tower
of a model that has one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skumatch import hub
from skumatch.errors import HubError, ModelError
from skumatch.runtime.exact import exact_float32
from skumatch.runtime.torch import TorchEncoder, pick_device
from skumatch.spec import Vectors
from skumatch.towers.base import load_state

PREFIX: Final = "sentences:"
BATCH: Final = 64
LONGEST: Final = 512  # tokens, where neither file says
PARTS: Final = ("Transformer", "Pooling", "Normalize")
NEEDED: Final = ("config.json", "model.safetensors", "tokenizer.json")
OPTIONAL: Final = ("tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json")

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class SentenceEncoder:
    """Titles to unit rows. ``digest``: a SHA-256 over its files; vectors of two encoders with one digest are alike."""

    name: str
    digest: str
    dim: int
    pooling: Pooling
    length: int
    model: Any
    tokenizer: Any

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Map N texts to float32 (N, D) rows of unit length; of one longer than ``length`` tokens the beginning."""
        found = np.empty((len(texts), self.dim), np.float32)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(texts), BATCH):  # texts of about one length together: little padding
            places = order[start : start + BATCH]
            found[places] = self._encoded([texts[place] for place in places])
        return found

    def _encoded(self, texts: list[str]) -> Vectors:
        device = self.model.device
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # a tokenizer takes no lone surrogates
        tokens = self.tokenizer(whole, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        with torch.inference_mode(), exact_float32():
            tokens = {key: value.to(device) for key, value in tokens.items()}
            states = self.model(**tokens).last_hidden_state
            pooled = pooled_states(states, tokens["attention_mask"], self.pooling)
            vectors: Vectors = nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        return vectors


def pooled_states(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return (N, D) of the hidden states (N, L, D): their mean where ``mask`` (N, L) is 1, or those of the first token.

    Mean: Reimers & Gurevych 2019, "Sentence-BERT", section 3.
    """
    if pooling == "cls":
        return states[:, 0]
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


@dataclass(frozen=True)
class _Layout:
    """Where the files lie: a folder, or the snapshot that the hub's files were fetched to."""

    name: str

    def file(self, filename: str) -> Path:
        folder = Path(self.name)
        if not folder.is_dir():
            return hub.fetch(self.name, filename)
        if not (folder / filename).is_file():
            raise HubError(f"{folder} has no {filename}", "give a folder in the layout of sentence-transformers")
        return folder / filename

    def json(self, filename: str) -> Any:
        path = self.file(filename)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not readable JSON", "fetch the model again") from error

    def table(self, filename: str) -> dict[str, Any]:
        found = self.json(filename)
        if not isinstance(found, dict):
            raise ModelError(f"{self.name}: {filename} holds no settings", "fetch the model again")
        return found

    def optional(self, filename: str) -> dict[str, Any]:
        try:
            self.file(filename)
        except HubError:
            return {}
        return self.table(filename)


def open_sentences(name: str, device: str = "auto") -> SentenceEncoder:
    """Open a sentence encoder: a folder, or ``owner/name`` on the hub, with or without ``sentences:`` before it.

    Needs modules.json (a transformer, mean or CLS pooling, and at most scaling to unit length), config.json,
    model.safetensors and tokenizer.json; no code of the repository is run. Raises HubError for files that are missing,
    ModelError for such as do not fit or ask for what is not supported, DeviceError for a device that is not there.
    """
    layout = _Layout(name.removeprefix(PREFIX))
    inner, pooling = _modules(layout)
    files = [layout.file(inner + filename) for filename in NEEDED]
    limits = [layout.optional(inner + filename) for filename in OPTIONAL][-1]  # the tokenizer finds the others itself
    model = _model(layout, inner).to(pick_device(device))
    tokenizer = _tokenizer(files[-1].parent)
    lengths = [
        limits.get("max_seq_length"),
        tokenizer.model_max_length,
        model.config.to_dict().get("max_position_embeddings"),
    ]
    length = min([LONGEST, *(length for length in lengths if length)])
    return SentenceEncoder(
        name=PREFIX + (Path(layout.name).name if Path(layout.name).is_dir() else layout.name),
        digest=_digest(files, f"{pooling} {length}"),
        dim=int(model.config.hidden_size),
        pooling=pooling,
        length=length,
        model=model,
        tokenizer=tokenizer,
    )


def _modules(layout: _Layout) -> tuple[str, Pooling]:
    """Return the folder of the transformer ("" or with a slash behind it) and how its states are pooled."""
    try:
        modules = [(str(part["type"]).rpartition(".")[2], str(part["path"])) for part in layout.json("modules.json")]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{layout.name}: modules.json is no list of modules", "fetch the model again") from error
    kinds = [kind for kind, _ in modules]
    if tuple(kinds) not in (PARTS, PARTS[:2]):
        what = f"{layout.name} is made of {', '.join(kinds) or 'nothing'}"
        raise ModelError(what, "choose a model of a transformer, pooling and at most scaling to unit length")
    paths = [f"{PurePosixPath(path)}/" if path else "" for _, path in modules]
    return paths[0], _pooling(layout, layout.table(f"{paths[1]}config.json"))


def _pooling(layout: _Layout, config: dict[str, Any]) -> Pooling:
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    mode = config.get("pooling_mode") or " and ".join(chosen)
    if mode in ("mean", "mean_tokens"):
        return "mean"
    if mode in ("cls", "cls_token"):
        return "cls"
    raise ModelError(f"{layout.name} pools by {mode or 'nothing'}", "choose a model that pools by mean or CLS token")


def _model(layout: _Layout, inner: str) -> Any:
    """Return the transformer with its weights, of which none may be missing but those of a pooler that is not used."""
    from transformers import AutoConfig, AutoModel

    config = dict(layout.table(f"{inner}config.json"))
    weights = layout.file(f"{inner}model.safetensors")
    try:
        model = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"transformers cannot build {layout.name} ({error})", "update it") from error
    own, prefix = model.state_dict(), f"{getattr(model, 'base_model_prefix', '')}."
    state = {key.removeprefix(prefix): tensor for key, tensor in load_state(weights).items()}
    lacking = [key for key in own if key not in state and not key.startswith("pooler.")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if lacking or wrong:
        what = f"{weights} lacks {lacking[0]}" if lacking else f"{weights} has another shape of {wrong[0]}"
        raise ModelError(what, "give the weights that belong to config.json")
    model.load_state_dict({key: tensor for key, tensor in state.items() if key in own}, strict=False)
    return model.float().eval()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the tokenizer in {folder} cannot be read ({reason})", "fetch the model again") from error


def _digest(files: Sequence[Path], settings: str) -> str:
    total = hashlib.sha256(settings.encode())
    for path in files:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


@dataclass(frozen=True)
class TextSide:
    """The text tower of an image encoder, batch by batch. ``name`` and ``digest`` are those of its encoder."""

    encoder: TorchEncoder

    @property
    def name(self) -> str:
        """What the encoder is called."""
        return self.encoder.spec.name

    @property
    def digest(self) -> str:
        """What ties vectors to the encoder."""
        return self.encoder.spec.digest

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """Map N texts to float32 (N, D) rows of unit length."""
        parts = [self.encoder.encode_text(batch) for batch in _batches(texts)]
        return np.concatenate(parts or [self.encoder.encode_text([""])[:0]])


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))


def open_text_encoder(name: str, device: str = "auto") -> SentenceEncoder | TextSide:
    """Open what turns titles into vectors: ``sentences:FOLDER`` or ``sentences:OWNER/NAME``, a bundle folder, or an
    untouched encoder (``open_clip:...``, ``hf:...``) that has a text tower.

    Raises ModelError where there is none, HubError, ArtefactError, DeviceError or ConfigError.
    """
    if name.startswith(PREFIX):
        return open_sentences(name, device)
    from skumatch.encoder import open_encoder

    encoder = open_encoder(name, device)
    if encoder.tower.text is None:
        raise ModelError(f"{encoder.spec.name} has no text tower", "use one that has, or sentences:FOLDER")
    return TextSide(encoder)
