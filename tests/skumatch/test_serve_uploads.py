"""Uploaded pictures on disk: named by their content alone, whole or not there, for nobody else to read."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as PILImage

from skumatch.errors import ArtefactError, ImageError
from skumatch.serve.uploads import Uploads, require_readable

Draw = Callable[[int, int], PILImage.Image]


def file_of(picture: PILImage.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "ending"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_a_file_is_named_by_its_content(tmp_path: Path, draw_view: Draw, kind: str, ending: str) -> None:
    data = file_of(draw_view(0, 0), kind)
    path = Uploads(tmp_path / "state" / "uploads").keep(data)
    digest = hashlib.sha256(data).hexdigest()
    assert path == tmp_path / "state" / "uploads" / digest[:2] / f"{digest[2:]}{ending}"
    assert path.read_bytes() == data and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_the_path_is_absolute_wherever_the_service_runs(
    tmp_path: Path, draw_view: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Uploads(Path("uploads")).keep(file_of(draw_view(0, 0)))
    assert path.is_absolute() and path.is_relative_to(tmp_path)


def test_what_is_there_stays_unless_it_was_damaged(tmp_path: Path, draw_view: Draw) -> None:
    uploads, data = Uploads(tmp_path), file_of(draw_view(0, 0))
    path = uploads.keep(data)
    made = path.stat().st_ino
    assert uploads.keep(data) == path and path.stat().st_ino == made
    path.write_bytes(data[:-1])
    assert uploads.keep(data) == path and path.read_bytes() == data


def test_half_a_file_is_never_there(tmp_path: Path, draw_view: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    uploads, data = Uploads(tmp_path / "uploads"), file_of(draw_view(0, 0))
    (tmp_path / "uploads" / hashlib.sha256(data).hexdigest()[:2]).mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ArtefactError, match="no space left"):
        uploads.keep(data)
    assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert uploads.keep(data).read_bytes() == data


def test_a_link_laid_in_the_way_is_not_followed(tmp_path: Path, draw_view: Draw) -> None:
    data = file_of(draw_view(0, 0))
    digest = hashlib.sha256(data).hexdigest()
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "uploads" / digest[:2]).mkdir(parents=True)
    path = tmp_path / "uploads" / digest[:2] / f"{digest[2:]}.png"
    path.symlink_to(target)
    assert Uploads(tmp_path / "uploads").keep(data) == path
    assert target.read_text() == "mine" and not path.is_symlink() and path.read_bytes() == data


def test_many_threads_keep_the_same_file(tmp_path: Path, draw_view: Draw) -> None:
    uploads, kept = Uploads(tmp_path / "a" / "b"), list[Path]()
    files = [file_of(draw_view(0, view)) for view in range(3)]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        kept.extend(uploads.keep(files[number % 3]) for _ in range(5))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 40 and sorted(set(kept)) == sorted(p for p in uploads.folder.rglob("*") if p.is_file())
    assert {path.read_bytes() for path in kept} == set(files)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg/>", b"\0" * 100])
def test_what_is_no_picture_is_not_kept(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ImageError):
        Uploads(tmp_path).keep(data)
    assert list(tmp_path.iterdir()) == []


def test_those_that_cannot_be_decoded_are_named(draw_view: Draw) -> None:
    good = file_of(draw_view(0, 0))
    require_readable([("a", good), ("b", good)])
    with pytest.raises(ImageError) as refused:
        require_readable([("a.png", good), ("b.png", good[:-20]), ("c.svg", b"<svg/>")])
    assert "a.png" not in str(refused.value) and "b.png: " in str(refused.value) and "c.svg: " in str(refused.value)
    with pytest.raises(ImageError, match="64 x 64 is more than 100 pixels"):
        require_readable([("a", good)], 100)
    with pytest.raises(ImageError, match="and 3 more"):
        require_readable([(str(number), b"x") for number in range(13)])
