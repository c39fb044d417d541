"""``skumatch embed`` as a user runs it, without a cluster."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from skumatch.bulk.views import embedded_views
from tests.cli.conftest import Skumatch


def test_embed_with_the_workspaces_model(workspace: Path, skumatch: Skumatch) -> None:
    ran = skumatch("embed", "shop/train", "--out", "vectors", "--sku-from", "folder", "--shard-rows", "10", "--thumbs")
    assert ran.code == 0 and ran.out == "vectors: 24 pictures in 3 shards\n", ran.err
    assert sorted(path.name for path in Path("vectors").iterdir()) == [
        "LOCK",
        "done.json",
        "embed.json",
        *(f"shard-00000{number}.parquet" for number in range(3)),
    ]
    assert sum(map(len, embedded_views(Path("vectors")))) == 24
    again = skumatch(
        "embed", "shop/train", "--out", "vectors", "--sku-from", "folder", "--shard-rows", "10", "--thumbs", "--json"
    )
    said = json.loads(again.out)
    assert again.code == 0 and said["resumed"] == said["pictures"] == 24 and said["unreadable"] == 0
    assert "there already: 24 pictures" in again.err


def test_embed_names_what_it_could_not_read(workspace: Path, skumatch: Skumatch) -> None:
    bad = workspace / "shop" / "train" / "sku-0" / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    ran = skumatch("embed", "shop/train/sku-0", "--out", "vectors", "--model", "models")
    assert ran.code == 0 and ran.out == "vectors: 5 pictures in 1 shard\n"
    assert f"unreadable: {bad}: corrupt" in ran.err.replace("\n", "") and "1 picture could not be read" in ran.err
    rows = parquet.read_table("vectors/shard-000000.parquet").to_pylist()
    assert [row["error"] is None for row in rows] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gone",), "gone does not exist - check the path or address"),
        (("s3://bucket/a",), "s3:// needs a package that is not installed - pip install s3fs"),
        (("shop", "--workers", "2"), "--workers goes with --ray alone - leave it out, or add --ray local"),
        (("shop", "--column", "image"), "--column goes with Parquet files of image bytes alone - leave it out"),
        (("shop", "--sku-from", "name"), "unknown --sku-from 'name' - choose folder, or leave it out"),
        (("shop", "--model", "nowhere"), "model folder nowhere does not exist"),
        (("shop", "--ray", "local", "--model", "nowhere"), "model folder nowhere does not exist"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], said: str, workspace: Path, skumatch: Skumatch) -> None:
    ran = skumatch("embed", *words, "--out", "vectors")
    assert ran.code == 2 and ran.out == ""
    assert len(ran.errors) == 1 and said in ran.errors[0], ran.err
    assert not Path("vectors").exists()


def test_another_source_is_refused(workspace: Path, skumatch: Skumatch) -> None:
    assert skumatch("embed", "shop/train", "--out", "vectors").code == 0
    ran = skumatch("embed", "shop/test", "--out", "vectors")
    assert ran.code == 2 and "vectors was embedded with another source - embed into another --out" in ran.errors[0]
    assert skumatch("embed", "shop/test", "--out", "vectors", "--restart").out.startswith("vectors: 12 pictures")


def test_an_interrupted_run_says_how_to_go_on(
    workspace: Path, skumatch: Skumatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skumatch.runtime.torch import TorchEncoder

    calls = 0
    encode = TorchEncoder.encode

    def stopping(self: TorchEncoder, pixels: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return encode(self, pixels)  # type: ignore[arg-type]

    config = Path("skumatch.toml")
    config.write_text(config.read_text().replace("batch = 32", "batch = 8"))
    command = ("embed", "shop/train", "--out", "vectors", "--shard-rows", "4", "--runtime", "torch")
    with monkeypatch.context() as patch:
        patch.setattr(TorchEncoder, "encode", stopping)
        ran = skumatch(*command)
    assert ran.code == 130 and "finished files in vectors are kept: the same command goes on from there" in ran.err
    done = len(list(Path("vectors").glob("shard-*")))
    assert 0 < done < 6
    assert f"there already: {4 * done} pictures" in skumatch(*command).err


def test_ray_without_the_extra(workspace: Path, skumatch: Skumatch, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("skumatch.bulk.cluster.find_spec", lambda name: None if name == "ray" else found(name))
    ran = skumatch("embed", "shop", "--out", "vectors", "--ray", "local")
    assert ran.code == 2 and ran.errors == [
        'error: --ray needs Ray, which is not installed - pip install "skumatch[ray]"'
    ]
