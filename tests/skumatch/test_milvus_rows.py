"""Addresses, and what lies in Milvus: rows, their proofs, and conditions in the language of the server."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from skumatch.backend import backend
from skumatch.errors import ConfigError, GalleryError
from skumatch.folder_backend import FolderBackend
from skumatch.milvus import client
from skumatch.milvus import rows as in_milvus
from skumatch.milvus.address import is_milvus, parse, time_limit
from skumatch.milvus.backend import MilvusBackend
from skumatch.milvus.client import Connection, connect
from skumatch.milvus.rows import CHANGES, FLAT, NEVER, alive, both, like, one_of, proof, renewed, view_fields, view_row


def row(**other: object) -> dict[str, object]:
    said = {"sku": "a", "source": "s/1.jpg", "sha256": "0" * 64, "thumb": b"\xff\xd8x", **other}
    return view_row(3, 5, said, [1.0, 0.0], {"brand": "red", "title": ""})


def test_an_address_says_where_the_gallery_is(tmp_path: Path) -> None:
    file = parse("milvus+file:some/g.db", tmp_path)
    assert (file.folder, file.uri, file.name) == (tmp_path / "some/g.db", str(tmp_path / "some/g.db"), "gallery")
    assert parse(f"milvus+file:{tmp_path}/g.db", Path("/elsewhere")).folder == tmp_path / "g.db"
    server = parse("milvus://milvus.shop:19531/audits_2")
    assert (server.uri, server.name, server.folder) == ("http://milvus.shop:19531", "audits_2", None)
    assert parse("milvus://10.0.0.7/shop").uri == "http://10.0.0.7:19530"
    assert parse("milvus+tls://[::1]:443/shop").uri == "https://[::1]:443"
    assert str(server) == "milvus://milvus.shop:19531/audits_2"


@pytest.mark.parametrize(
    "text",
    [
        "milvus://host:19530",
        "milvus://host:19530/",
        "milvus://host:19530/two/names",
        "milvus://host:0/shop",
        "milvus://host:99999/shop",
        "milvus://user:secret@host:19530/shop",
        "milvus://host:19530/my-shop",
        "milvus://host:19530/3shops",
        "milvus+file:./g.sqlite",
        "milvus:shop",
        "milvus+http://host/shop",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    assert is_milvus(text)
    with pytest.raises(ConfigError, match=r"write "):
        parse(text)


def test_folders_are_folders() -> None:
    assert not any(map(is_milvus, ["gallery", "./milvus", "/a/milvus.db", "C:milvus", "milvus", Path("milvus:x")]))
    assert isinstance(backend("gallery"), FolderBackend)
    assert isinstance(backend("milvus+file:./g.db"), MilvusBackend)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9", ""])
def test_a_time_limit_out_of_range_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKUMATCH_MILVUS_TIMEOUT", text)
    with pytest.raises(ConfigError, match="SKUMATCH_MILVUS_TIMEOUT is"):
        time_limit()


def test_a_row_proves_what_it_was_written_with() -> None:
    made = row()
    assert made["pk"] == 3 << CHANGES and made["facts"] == {"brand": "red"} and made["died"] == NEVER
    assert proof(made) == made["proof"]
    for name, value in {"sku": "b", "vector": [0.0, 1.0], "thumb": "", "facts": {}, "view": 4}.items():
        assert proof({**made, name: value}) != made["proof"], name
    assert proof({**made, "born": 9, "died": 10, "pk": 1}) == made["proof"]
    assert 0 <= int(str(made["proof"])) < 1 << 63


def test_a_changed_view_gets_another_row() -> None:
    made = {**row(), "died": 8}
    again = renewed(made, 8, {"brand": "blue"})
    assert (again["pk"], again["born"], again["died"]) == ((3 << CHANGES) + 1, 8, NEVER)
    assert again["facts"] == {"brand": "blue"} and proof(again) == again["proof"] and made["facts"] == {"brand": "red"}


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(GalleryError, match=r"the sku .* is longer than 4,096 bytes - shorten it"):
        row(sku="\u00fc" * 2049)
    with pytest.raises(GalleryError, match=r"what is known of SKU 'a' is longer"):
        in_milvus.fitting({"title": "t" * 60_000}, "a")


def test_a_large_thumbnail_is_made_smaller_until_it_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    stream = BytesIO()
    PILImage.fromarray(noise).save(stream, "JPEG", quality=98)
    assert len(stream.getvalue()) > 65_535 * 3 // 4
    text = in_milvus.packed(stream.getvalue())
    assert 10_000 < len(text) <= 65_535
    assert PILImage.open(BytesIO(in_milvus.unpacked(text))).size[0] >= 128
    small = b"\xff\xd8 any bytes"
    assert in_milvus.unpacked(in_milvus.packed(small)) == small == base64.b64decode(in_milvus.packed(small))
    assert in_milvus.packed(bytes(70_000)) == ""  # no picture at all


def test_a_program_keeps_its_logging(tmp_path: Path) -> None:
    code = (
        "import logging, sys\n"
        "class Kept(logging.StreamHandler):\n"
        "    def close(self):\n"
        "        print('closed')\n"
        "logging.getLogger().addHandler(Kept(sys.stdout))\n"
        "from skumatch.milvus import address, client\n"
        "print(client.connect(address.parse('milvus+file:k.db')).collections())\n"
        "logging.getLogger('mine').warning('still said')\n"
        "sys.stdout.flush(); import os; os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\nstill said\n", "")


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    address = parse(f"milvus+file:{tmp_path_factory.mktemp('milvus')}/r.db")
    yield connect(address)
    client.close(address)


TEXTS = ["plain", 'quo"te', "apo'strophe", "back\\slash", "new\nline", "tab\t", "\\n", "{x}", "%", "a_b", "Stra\u00dfe",
         "\u4e2d\u6587", "\U0001f600", " ", "a]", "null", "\r", 'both "\\" ones']  # fmt: skip


def test_the_server_reads_conditions_as_they_are_meant(lite: Connection) -> None:
    lite.create("views", view_fields(2), FLAT)
    rows = []
    for number, text in enumerate(TEXTS):
        said = {"sku": text, "source": "", "sha256": "", "thumb": b""}
        rows.append(view_row(number, number % 3 + 1, said, [1.0, 0.0], {"brand": text, text: "x"} if number else {}))
    lite.upsert("views", rows)

    def found(condition: str) -> list[int]:
        return sorted(row["view"] for row in lite.query("views", condition, ["view"]))

    for number, text in enumerate(TEXTS):
        assert found(one_of("sku", [text])) == [number], text
        assert found(like({"sku": text})) == [number], text
        assert found(like({"brand": text})) == ([number] if number else []), text
        assert found(like({text: "x"})) == ([number] if number else []), text
    assert found(like({"brand": ""})) == [0]
    assert found(one_of("sku", TEXTS)) == found(one_of("view", range(len(TEXTS)))) == list(range(len(TEXTS)))
    assert found(both(alive(2), "", one_of("view", [0, 1, 2]))) == [0, 1]
    assert both("", "") == ""
    lite.upsert("views", [{"pk": rows[1]["pk"], "died": 3}], partial=True)
    assert found(both(alive(2), one_of("view", [1]))) == [1] and found(both(alive(3), one_of("view", [1]))) == []
    whole = lite.query("views", one_of("view", [1]), in_milvus.WHOLE)[0]
    assert proof(whole) == whole["proof"] == rows[1]["proof"]  # a changed life leaves the rest as it was
    assert sum(len(some) for some in lite.stream("views", "born >= 0", ["view"], 5)) == lite.count("views", "born >= 0")
