"""Model bundles: what was saved is what opens, without a network, and no byte of it may change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from skumatch import artefact
from skumatch.encoder import open_encoder
from skumatch.errors import ArtefactError, ModelError
from skumatch.model import (
    MANIFEST,
    SKUS,
    WEIGHTS,
    Contents,
    _link,
    finite,
    open_bundle,
    save_bundle,
    store_of,
    with_files,
)
from skumatch.runtime.served import Served
from skumatch.runtime.torch import TorchEncoder, make_spec
from skumatch.spec import Pixels
from skumatch.towers.build import ModelSource, build

CONV, TINY = "timm:test_efficientnet", "open_clip:skumatch-tiny-96"
TEXTS = ["red box", "blue tin"]
WITHOUT_NETWORK = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        raise SystemExit("a socket was opened")
socket.socket = Refused
socket.create_connection = socket.getaddrinfo = Refused
import numpy as np
from skumatch.encoder import open_encoder
for name in sys.argv[2:]:
    encoder = open_encoder(sys.argv[1] + "/" + name, "cpu")
    np.save(sys.argv[1] + f"/{name}.npy", encoder.encode(np.load(sys.argv[1] + f"/{name}-pixels.npy")))
    if encoder.tower.text is not None:
        np.save(sys.argv[1] + f"/{name}-text.npy", encoder.encode_text(["red box", "blue tin"]))
"""


def pixels(size: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (2, 3, size, size), np.uint8)


def save(store: Path, encoder: TorchEncoder, served: Served | None = None, note: str = "test") -> Path:
    tower, facts = encoder.tower, {"note": note}
    return save_bundle(store, tower, served, make_spec(tower, served), Contents(facts, tower.model.state_dict()))


def flip(path: Path, position: int) -> bytes:
    before = path.read_bytes()
    path.write_bytes(before[:position] + bytes([before[position] ^ 4]) + before[position + 1 :])
    return before


@pytest.fixture(scope="module")
def conv() -> TorchEncoder:
    return open_encoder(ModelSource(CONV, random_init=True, size=64, resize="squash"), "cpu")


@pytest.fixture
def store(tmp_path: Path, conv: TorchEncoder) -> Path:
    save(tmp_path / "models", conv)
    return tmp_path / "models"


@pytest.mark.slow
def test_bundles_open_without_a_network_and_answer_the_same(
    tmp_path: Path, hf_folder: Path, conv: TorchEncoder
) -> None:
    source = Path(shutil.copytree(hf_folder, tmp_path / "source"))
    encoders = {
        "timm": conv,
        "open_clip": open_encoder(ModelSource(TINY, random_init=True), "cpu"),
        "clip": open_encoder(f"hf:{source / 'clip'}", "cpu"),
        "dinov2": open_encoder(f"hf:{source / 'dinov2'}", "cpu"),
    }
    for name, encoder in encoders.items():
        save(tmp_path / name, encoder)
        np.save(tmp_path / f"{name}-pixels.npy", pixels(encoder.spec.size))
    shutil.rmtree(source)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path), *encoders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, encoder in encoders.items():  # another process may have another number of threads, hence the tolerance
        own = encoder.encode(pixels(encoder.spec.size))
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), own, atol=1e-5, err_msg=name)
    for name in ("open_clip", "clip"):
        own = encoders[name].encode_text(TEXTS)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}-text.npy"), own, atol=1e-5, err_msg=name)


def test_what_opens_is_what_was_saved(store: Path, conv: TorchEncoder) -> None:
    bundle = open_bundle(store)
    assert bundle.spec == conv.spec and bundle.document["note"] == "test"
    assert bundle.folder == store / "v000001" == open_bundle(store / "v000001").folder
    tower, served, spec = bundle.load()
    assert served.name == "features" and spec == conv.spec
    assert make_spec(tower) == conv.spec  # so a model made from this one gets a digest of its own weights
    assert tower.name == conv.tower.name and tower.text is None


def test_the_head_is_served(tmp_path: Path, conv: TorchEncoder) -> None:
    head = Served("head", nn.Linear(conv.tower.dim, 5, bias=False))
    before = TorchEncoder(conv.tower, head, "cpu")
    save(tmp_path / "models", conv, head)
    after = open_encoder(tmp_path / "models", "cpu")
    assert after.spec == before.spec and after.spec.dim == 5
    assert np.array_equal(after.encode(pixels(64)), before.encode(pixels(64)))


def test_a_model_that_lost_its_text_side_opens_without_it(tmp_path: Path) -> None:
    tower = build(ModelSource(TINY, random_init=True))
    tower.text = None
    visual = {name: tensor for name, tensor in tower.model.state_dict().items() if name.startswith("visual.")}
    save_bundle(tmp_path / "models", tower, None, make_spec(tower), Contents({}, visual))
    encoder = open_encoder(tmp_path / "models", "cpu")
    assert np.array_equal(encoder.encode(pixels(96)), TorchEncoder(tower, device="cpu").encode(pixels(96)))
    with pytest.raises(ModelError, match="no text tower"):
        encoder.encode_text(TEXTS)


def test_all_files_are_for_the_same_people(store: Path) -> None:
    modes = {path.stat().st_mode for path in open_bundle(store).folder.iterdir() if path.is_file()}
    assert len(modes) == 1


def test_any_flipped_byte_names_its_file(store: Path) -> None:
    folder = open_bundle(store).folder
    for path in (folder / WEIGHTS, folder / MANIFEST, store / artefact.CURRENT):
        size = path.stat().st_size
        for position in sorted({0, 7, size // 2, size - 1} & set(range(size))):
            before = flip(path, position)
            with pytest.raises(ArtefactError, match=path.name):
                open_encoder(store, "cpu")
            path.write_bytes(before)
    assert open_bundle(store).folder == folder


def test_saving_again_makes_a_new_version_and_keeps_the_old(store: Path, conv: TorchEncoder) -> None:
    old = open_bundle(store)
    save(store, conv, note="second")
    assert open_bundle(store).document["note"] == "second"
    assert artefact.versions(store) == ["v000001", "v000002"]
    assert open_bundle(old.folder).document["note"] == "test"


def test_a_full_disk_leaves_the_old_model_current(tiny_disk: Path, conv: TorchEncoder) -> None:
    store = tiny_disk / "models"
    save(store, conv)
    (tiny_disk / "filler").write_bytes(bytes(300_000))
    with pytest.raises(ArtefactError, match=r"(?i)no space left"):
        save(store, conv)
    assert artefact.versions(store) == ["v000001"] and not list(store.glob(".*"))
    assert np.array_equal(open_encoder(store, "cpu").encode(pixels(64)), conv.encode(pixels(64)))


def test_files_travel_with_the_weights(tmp_path: Path, conv: TorchEncoder) -> None:
    skus = {"trained": ["a", "b"], "held_out": ["c"]}
    contents = Contents({}, conv.tower.model.state_dict(), {SKUS: json.dumps(skus).encode(), "note.txt": b"hello"})
    bundle = open_bundle(save_bundle(tmp_path / "models", conv.tower, None, conv.spec, contents))
    assert bundle.file("note.txt") == b"hello" and bundle.file("other.txt") is None
    assert bundle.skus() == (frozenset("ab"), frozenset("c"))
    flip(bundle.folder / "note.txt", 2)
    with pytest.raises(ArtefactError, match=r"note\.txt"):
        open_bundle(bundle.folder)


def test_a_file_that_the_manifest_does_not_name_is_not_read(store: Path) -> None:
    bundle = open_bundle(store)
    (bundle.folder / "calibration.json").write_bytes(b"slipped in")
    assert open_bundle(store).file("calibration.json") is None
    assert bundle.skus() == (frozenset(), frozenset())


def test_a_version_with_files_is_the_same_encoder(store: Path, conv: TorchEncoder) -> None:
    before = open_bundle(store)
    made = with_files(before, {"calibration.json": b"one", "new.txt": b"two"})
    after = open_bundle(store)
    assert made == after.folder == store / "v000002" and after.document["parent"] == "v000001"
    assert after.spec == before.spec and after.document["note"] == "test"
    assert (after.file("calibration.json"), after.file("new.txt")) == (b"one", b"two")
    opened = open_encoder(store, "cpu")
    assert opened.spec.digest == conv.spec.digest
    assert np.array_equal(opened.encode(pixels(64)), conv.encode(pixels(64)))
    assert (made / WEIGHTS).samefile(before.folder / WEIGHTS)
    assert open_bundle(store / "v000001").document == before.document
    assert not list(store.glob(".*"))


def test_files_are_replaced_and_left_out_and_older_versions_keep_theirs(store: Path) -> None:
    first = with_files(open_bundle(store), {"calibration.json": b"one", "search.json": b"kept"})
    second = with_files(open_bundle(store), {"calibration.json": b"two"})
    third = with_files(open_bundle(store), {"calibration.json": None, "never.there": None})
    contents = [open_bundle(folder).file("calibration.json") for folder in (first, second, third)]
    assert contents == [b"one", b"two", None] and not (third / "calibration.json").exists()
    assert [open_bundle(folder).file("search.json") for folder in (first, second, third)] == [b"kept"] * 3
    assert open_bundle(store / "v000001").file("calibration.json") is None
    assert artefact.versions(store) == ["v000001", "v000002", "v000003", "v000004"]


def test_files_are_copied_where_the_disk_has_no_hard_links(store: Path, tiny_disk: Path) -> None:
    weights = store / "v000001" / WEIGHTS
    _link(weights, tiny_disk / "copy")  # no hard link leads to another file system
    assert (tiny_disk / "copy").read_bytes() == weights.read_bytes()
    assert not (tiny_disk / "copy").samefile(weights)


def test_a_version_that_is_not_current_stays_so_with_files(store: Path, conv: TorchEncoder) -> None:
    old = open_bundle(store)
    save(store, conv, note="second")
    made = with_files(old, {"calibration.json": b"one"})
    assert made == store / "v000003" and open_bundle(made).file("calibration.json") == b"one"
    assert open_bundle(store).folder == store / "v000002"


def test_files_need_a_version_in_a_store(store: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(store / "v000001", tmp_path / "copied"))
    bundle = open_bundle(copied)
    with pytest.raises(ModelError, match="copied is not a version in a model store - give the store"):
        store_of(bundle)
    with pytest.raises(ModelError, match="copied is not a version"):
        with_files(bundle, {"calibration.json": b"one"})
    assert store_of(open_bundle(store)) == store
    assert sorted(path.name for path in copied.iterdir()) == sorted([MANIFEST, WEIGHTS])


def test_a_full_disk_keeps_the_version_without_the_files(tiny_disk: Path, conv: TorchEncoder) -> None:
    store = tiny_disk / "models"
    save(store, conv)
    with pytest.raises(ArtefactError, match=r"(?i)no space left"):
        with_files(open_bundle(store), {"calibration.json": bytes(1 << 20)})
    assert artefact.versions(store) == ["v000001"] and not list(store.glob(".*"))
    assert np.array_equal(open_encoder(store, "cpu").encode(pixels(64)), conv.encode(pixels(64)))
    with_files(open_bundle(store), {"calibration.json": b"small"})
    assert open_bundle(store).file("calibration.json") == b"small"


def test_weights_that_lack_something_are_refused(tmp_path: Path, conv: TorchEncoder) -> None:
    state = conv.tower.model.state_dict()
    first = next(iter(state))
    del state[first]
    save_bundle(tmp_path / "models", conv.tower, None, conv.spec, Contents({}, state))
    with pytest.raises(ModelError, match=f"lacks the weights {first}"):
        open_bundle(tmp_path / "models").load()


def test_another_format_and_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        open_bundle(tmp_path)
    artefact.seal(tmp_path, MANIFEST, {"kind": "model", "format": 99})
    with pytest.raises(ModelError, match="written by another version"):
        open_bundle(tmp_path)


def test_provenance_is_plain_json(tmp_path: Path, conv: TorchEncoder) -> None:
    facts = {"loss": float("nan"), "metrics": {"best": (1.5, float("inf")), "name": "x"}, "none": None}
    assert finite(facts) == {"loss": None, "metrics": {"best": [1.5, None], "name": "x"}, "none": None}
    folder = save_bundle(
        tmp_path / "models", conv.tower, None, conv.spec, Contents(facts, conv.tower.model.state_dict())
    )
    document = json.loads((folder / MANIFEST).read_text(), parse_constant=pytest.fail)
    assert document["metrics"]["best"] == [1.5, None]
