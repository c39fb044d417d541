"""A workspace file: found upward, checked key by key, written so that it reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skumatch.encoder import open_encoder
from skumatch.errors import ConfigError, DataError, ModelError
from skumatch.model import Contents, save_bundle
from skumatch.readers import open_dataset
from skumatch.towers.build import ModelSource
from skumatch.workspace import (
    DataConfig,
    GalleryConfig,
    ModelConfig,
    RuntimeConfig,
    Workspace,
    require_pairs,
)

MINIMAL = '[data]\npath = "store"\n[model]\nname = "timm:test_efficientnet"\n'


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "skumatch.toml").write_text(text, encoding="utf-8")
    return folder


def test_found_from_any_folder_below(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write(tmp_path / "a", MINIMAL)
    for start in (tmp_path / "a", inner, inner / "not-made-yet"):
        assert Workspace.find(start).folder == tmp_path / "a"
    write(inner, MINIMAL)
    assert Workspace.find(inner).folder == inner
    with pytest.raises(ConfigError, match=r"no skumatch\.toml in .*skumatch init"):
        Workspace.find(tmp_path)


def test_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, MINIMAL)
    (tmp_path / "crops").mkdir()
    monkeypatch.chdir(tmp_path / "crops")
    assert Workspace.find(Path()).folder == tmp_path


def test_defaults_and_everything_set(tmp_path: Path) -> None:
    plain = Workspace.read(write(tmp_path / "plain", MINIMAL))
    assert (plain.runtime, plain.gallery) == (RuntimeConfig(), GalleryConfig())
    text = MINIMAL + "crop_pct = 1\nsize = 64\n[runtime]\nbatch = 4\nworkers = 1\n[gallery]\npath = '/g'\n"
    full = Workspace.read(write(tmp_path / "full", text))
    assert (full.model.crop_pct, full.model.size, full.runtime.batch) == (1, 64, 4)
    assert (full.gallery_place, full.models) == (Path("/g"), tmp_path / "full" / "models")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "[galery]\n", "unknown key 'galery' - did you mean 'gallery'"),
        (MINIMAL + "wieghts = 'x'\n", r"\[model\]: unknown key 'wieghts' - did you mean 'weights'"),
        (MINIMAL + "[runtime]\nqqqq = 1\n", "valid keys are device, engine, batch, workers, max_pixels, decode"),
        (MINIMAL + "[runtime]\nbatch = '8'\n", r"batch is '8' - give a value of type int"),
        (MINIMAL + "[runtime]\nbatch = true\n", "batch is True"),
        (MINIMAL + "[runtime]\nbatch = 8.0\n", "batch is 8.0"),
        (MINIMAL + "random_init = 1\n", "random_init is 1"),
        (MINIMAL + "size = '64'\n", "size is '64' - give a value of type int"),
        ("gallery = 'x'\n" + MINIMAL, r"\[gallery\] is not a table"),
        ("[model]\nname = 'x'\n", r"\[data\]: path is missing"),
        ("[data]\npath = 'x'\n[model]\nsize = 64\n", r"\[model\]: name is missing"),
        ("[data\n", "not valid TOML"),
        ("[data]\npath = 'a'\npath = 'b'\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Workspace.read(write(tmp_path, text))
    assert str(tmp_path / "skumatch.toml") in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "skumatch.toml").write_bytes(b"\xff\xfe[data]")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Workspace.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with space",
        "quote\"s'",
        "back\\slash",
        "tab\tnew\nline",
        "caf\u00e9 \u5e97 \U0001f6d2",
        "del\x7f\x01",
        "#=[x]",
    ],
)
def test_written_and_read_back_whatever_the_path(name: str, tmp_path: Path) -> None:
    made = Workspace(
        tmp_path / "deep" / "ws",
        DataConfig(name, "rp2k", 7),
        ModelConfig("timm:test_efficientnet", name, True, "crop", 64, 0.875),
        GalleryConfig(name),
        RuntimeConfig("cpu", "onnx", 1, 2, 3, "gpu"),
    )
    assert made.write() == tmp_path / "deep" / "ws" / "skumatch.toml"
    assert Workspace.read(made.folder) == made
    plain = Workspace(tmp_path, DataConfig("x"), ModelConfig("y"))
    plain.write()
    assert Workspace.read(tmp_path) == plain


def test_a_path_that_toml_cannot_hold_is_refused(tmp_path: Path) -> None:
    made = Workspace(tmp_path, DataConfig("bytes\udcff"), ModelConfig("y"))
    with pytest.raises(ConfigError, match="cannot be written"):
        made.write()
    assert not list(tmp_path.glob("*.toml"))


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(ConfigError, match="exists already"):
        Workspace(tmp_path, DataConfig("x"), ModelConfig("y")).write()
    assert (tmp_path / "skumatch.toml").read_text() == MINIMAL


def test_the_data_is_read_relative_to_the_folder(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.read(write(store.parent, MINIMAL))
    monkeypatch.chdir("/")
    assert len(workspace.open_dataset()) == 36
    assert len(workspace.open_dataset({"sku": "sku-1"})) == 6
    with pytest.raises(DataError, match="there is no data set at"):
        Workspace(store, DataConfig("gone"), ModelConfig("x")).open_dataset()


def test_the_model_is_the_fine_tuned_one_where_there_is_one(tmp_path: Path) -> None:
    text = MINIMAL + "weights = 'w.pt'\nrandom_init = true\nresize = 'squash'\nsize = 64\n"
    workspace = Workspace.read(write(tmp_path, text))
    source = workspace.best_model()
    weights = tmp_path / "w.pt"
    assert source == ModelSource("timm:test_efficientnet", weights, True, resize="squash", size=64)
    encoder = open_encoder(ModelSource("timm:test_efficientnet", random_init=True), "cpu")
    save_bundle(workspace.models, encoder.tower, None, encoder.spec, Contents({}, encoder.tower.model.state_dict()))
    assert workspace.best_model() == tmp_path / "models"
    assert open_encoder(workspace.best_model(), "cpu").spec == encoder.spec


def test_missing_weights_are_named(tmp_path: Path) -> None:
    workspace = Workspace.read(write(tmp_path, MINIMAL + "weights = 'none.pt'\n"))
    with pytest.raises(ModelError, match=r"none\.pt does not exist"):
        open_encoder(workspace.source(), "cpu")


def test_resolved_settings_are_json(tmp_path: Path) -> None:
    found = json.loads(json.dumps(Workspace.read(write(tmp_path, MINIMAL)).resolved()))
    assert found["workspace"] == str(tmp_path)
    assert (found["data"]["path"], found["runtime"]["batch"]) == ("store", 32)


def test_pairs_are_required(store: Path) -> None:
    data = open_dataset(store)
    require_pairs(data)
    lonely = data.with_rows([row for row in data.split("train") if row.path.stem == "0"])
    with pytest.raises(DataError, match="two pictures"):
        require_pairs(lonely)
