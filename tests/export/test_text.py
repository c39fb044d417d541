"""The text tower for other programs: the same vectors in ONNX Runtime, the same ids from tokenizer.json alone."""

from __future__ import annotations

import html.entities
import json
import shutil
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from skumatch.errors import ModelError
from skumatch.export.cleaning import normalizer
from skumatch.export.text import CONFIG, INPUT, TOKENIZER, ids_of, to_onnx_text, tokenizer_files
from skumatch.runtime.onnx import OUTPUT, OnnxEncoder
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.torch import TorchEncoder
from skumatch.towers import open_clip as towers
from skumatch.towers.build import ModelSource, build

TINY = ModelSource("open_clip:skumatch-tiny-96", random_init=True)
TITLES = ["red box", "blue tin", "Oat milk BARISTA 1 l", "", "tin " * 100, "caf\u00e9 & co"]


# ruff: noqa: RUF001  (what looks alike is meant)
LINES = """\
Oat Milk, BARISTA 1.5L (6-pack)
it's they're we've I'm you'll he'd o'neill's 'n'
12345 1,299.00 3½ m²
Crème brûlée
Äpfel & Nüsse, STRASSE STRAßE
Łódź ser żółty
Молоко 3,2% «Дом»
ΓΑΛΑΣ ΣΟΣ Σ γάλας
牛乳 500毫升
おいしい牛乳
우유 1리터
حليب كامل الدسم
חלב 3%
दूध १२
นมสด
İstanbul Iı
🥛🍫 👨‍👩‍👧 🇫🇷
“quoted” ‘single’ „low‟ ‹x›
ＦＵＬＬ　１２，（大）
ｶﾞﾗｽ
ﬁne ﬄ ĳs Ǆ ŉ ﬅ
™ ® € 5° … – —
AT&T R&D M&M's
__init__ e_mail
C++ & C# @ 100%!!!
http://a.b/c?d=e&f=g
<start_of_text> a <end_of_text> b
<END_OF_TEXT>
<b>bold</b> &lt;i&gt;
٦ Ⅳ ①
&amp;amp;amp;
&amp;eacute; &amp;#39;
&quot;x&quot; &#34;y&#x22; &#X27;z
&#8217;s &#146;s &#x92;
&ampere &copy2024 &notin; &notit;
&nbspx&nbsp;y
P&EACUTE;REZ STRA&SZLIG;E
&unknown; &; & &# &#;
5 &lt 6 &gt 4
&#0039; &#00233; &#233
5 &lt; 6 < 7 &eacute;
Ünï-Cödé/Šlash\\back|pipe
"""
ODD = [
    "", "   ", "  ends  ", "tab\tline\nbreak\r\nend", "a\u00a0b\u2003c\u2028d\u0085e", "\x00\x07bell\x1b[31mred\x7f",
    "\ufeffmark", "\x93smart\x94 \x80 9", "e\u0301 a\u030a n\u0303", "\u0345\u03b9", "zero\u200bwidth\u200djoin",
    string.punctuation, "word " * 200, "x" * 400, "牛" * 100, "12 " * 90, " ".join(string.ascii_letters),
]  # fmt: skip


def varied() -> list[str]:
    """Return more than 200 texts that are unlike each other: titles, scripts, entities, odd characters, long ones."""
    names = [f"&{name};" for name in html.entities.name2codepoint]
    pairs = [f"{names[i]}x{names[i + 1]} {names[i + 2]}" for i in range(0, len(names) - 2, 3)]
    fitting = [" ".join(["tin"] * count) for count in range(27, 34)]  # 30 fit beside start and end
    titles = [f"SKU {i} {string.ascii_letters[i] * (i % 7 + 1)} {i * 37 % 1000}g No.{i}" for i in range(52)]
    return [*LINES.splitlines(), *ODD, *pairs, *fitting, *titles]


@pytest.fixture(scope="module")
def tiny() -> TorchEncoder:
    return TorchEncoder(build(TINY), device="cpu")


@pytest.fixture(scope="module")
def written(tiny: TorchEncoder) -> dict[str, bytes]:
    return tokenizer_files(tiny)


def hugging_face(kind: str, hf_folder: Path, root: Path) -> TorchEncoder:
    """Return a tiny model of transformers with the tokenizer that the tiny CLIP has."""
    folder = Path(shutil.copytree(hf_folder / kind, root / kind))
    for file in (hf_folder / "clip").glob("*token*"):
        shutil.copy(file, folder)
    return TorchEncoder(build(ModelSource(f"hf:{folder}")), device="cpu")


def run(model: onnx.ModelProto, tokens: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.float32]:
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.typing.NDArray[np.float32] = session.run([OUTPUT], {INPUT: tokens})[0]
    return found


def check(encoder: TorchEncoder) -> None:
    """The exported tower answers as the encoder does, at any batch, from what tokenizer.json makes of the texts."""
    model, data = to_onnx_text(encoder, {"note": "test"}), tokenizer_files(encoder)[TOKENIZER].decode()
    expected = encoder.encode_text(TITLES)
    for count in (1, 2, len(TITLES)):
        found = run(model, np.array(ids_of(data, TITLES[:count]), np.int64))
        assert found.dtype == np.float32 and found.shape == expected[:count].shape
        assert (found * expected[:count]).sum(1).min() > 0.99999
        assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=1e-3)


@pytest.mark.slow
def test_open_clips_text_tower(tiny: TorchEncoder) -> None:
    check(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_hugging_faces_text_towers(kind: str, hf_folder: Path, tmp_path: Path) -> None:
    check(hugging_face(kind, hf_folder, tmp_path))


def test_the_file_says_what_it_is_and_holds_the_text_tower_alone(tiny: TorchEncoder, tmp_path: Path) -> None:
    model = to_onnx_text(tiny, {"note": "test"})
    (given,), (taken,) = model.graph.input, model.graph.output
    sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, sizes, given.type.tensor_type.elem_type) == (INPUT, [0, 32], onnx.TensorProto.INT64)
    assert taken.name == OUTPUT and taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (said,) = model.metadata_props
    passport = Passport.read(said.value, "it")
    assert said.key == KEY and passport.spec == tiny.spec
    assert passport.facts == {"note": "test", "tower": "text", "length": 32, "dim": 256}
    image = sum(parameter.numel() for parameter in tiny.tower.image.parameters())
    whole = sum(parameter.numel() for parameter in tiny.tower.model.parameters())
    assert len(model.SerializeToString()) < 4 * (whole - image) * 1.1 < 4 * whole
    (tmp_path / "text.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"text\.onnx takes tokens, not images"):
        OnnxEncoder(tmp_path / "text.onnx", "cpu")


def test_tokenizer_json_gives_open_clips_ids(tiny: TorchEncoder, written: dict[str, bytes]) -> None:
    texts = varied()
    assert len(set(texts)) >= 200
    assert tiny.tower.text is not None
    wanted = tiny.tower.text.tokenize(texts).tolist()
    found = ids_of(written[TOKENIZER].decode(), texts)
    assert {len(ids) for ids in found} == {32}
    assert [text for text, one, other in zip(texts, found, wanted, strict=True) if one != other] == []


def test_transformers_reads_the_files(tiny: TorchEncoder, written: dict[str, bytes], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = tokenizer(TITLES, padding="max_length", truncation=True)["input_ids"]
    assert tiny.tower.text is not None and found == tiny.tower.text.tokenize(TITLES).tolist()
    assert tokenizer.model_max_length == 32
    assert set(written) == {TOKENIZER, CONFIG}


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_the_cleaning_of_models_with_a_tokenizer_of_their_own_goes_in_front(
    clean: str, hf_folder: Path, tiny: TorchEncoder
) -> None:
    """As in open_clip's SigLIP models, whose config names a tokenizer of transformers."""
    architecture = json.loads(json.dumps(tiny.tower.architecture))
    architecture["config"]["text_cfg"] |= {"hf_tokenizer_name": "some/repository", "tokenizer_kwargs": {"clean": clean}}
    encoder = TorchEncoder(towers.rebuild(architecture, hf_folder / "clip"), device="cpu")
    data = tokenizer_files(encoder)[TOKENIZER].decode()
    texts = ["RED box", "red&nbsp;_box_", "\u201cblue\u201d tin!", "\uff52ed box", *TITLES]
    assert encoder.tower.text is not None
    assert ids_of(data, texts) == encoder.tower.text.tokenize(texts).tolist()
    assert (ids_of(data, ["RED box"]) == ids_of(data, ["red box"])) == (clean != "whitespace")
    assert (ids_of(data, ["blue!"]) == ids_of(data, ["blue"])) == (clean == "canonicalize")


@pytest.mark.parametrize("name", ["lower", "whitespace", "canonicalize"])
def test_cleaning_is_open_clips(name: str) -> None:
    from open_clip.tokenizer import get_clean_fn

    clean, steps = get_clean_fn(name), normalizer(name)
    texts = varied()
    assert [text for text in texts if steps.normalize_str(text) != clean(text)] == []


def test_what_cannot_be_exported_is_refused(tiny: TorchEncoder, hf_folder: Path) -> None:
    image_only = TorchEncoder(build(ModelSource("timm:test_vit", random_init=True, size=64)), device="cpu")
    for call in (lambda: to_onnx_text(image_only, {}), lambda: tokenizer_files(image_only)):
        with pytest.raises(ModelError, match="timm:test_vit has no text tower - use an open_clip or hf model"):
            call()
    with pytest.raises(ModelError, match="the cleaning 'spotless' of texts cannot be exported"):
        normalizer("spotless")
    other = TorchEncoder(build(TINY), device="cpu")
    text = other.tower.text
    assert text is not None
    other.tower.text = replace(text, tokenize=lambda texts: text.tokenize([one[::-1] for one in texts]))
    with pytest.raises(ModelError, match=r"the tokenizer of .*tiny-96 cannot be exported: tokenizer\.json would give"):
        tokenizer_files(other)
    other.tower.text = replace(text, bpe=None)
    with pytest.raises(ModelError, match=r"cannot be exported: it has no tokenizer\.json - leave out --text"):
        tokenizer_files(other)


@pytest.mark.parametrize("options", [{"reduction_mask": "random"}, {"clean": "whitespace"}, {"clean": "canonicalize"}])
def test_open_clips_tokenizer_with_other_settings_is_refused(options: dict[str, str], tiny: TorchEncoder) -> None:
    architecture = json.loads(json.dumps(tiny.tower.architecture))
    architecture["config"]["text_cfg"]["tokenizer_kwargs"] = options
    encoder = TorchEncoder(towers.rebuild(architecture), device="cpu")
    with pytest.raises(ModelError, match=r"cannot be exported: .* - leave out --text"):
        tokenizer_files(encoder)
