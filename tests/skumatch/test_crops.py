"""From names on the command line to crops."""

from __future__ import annotations

from pathlib import Path

import pytest

from skumatch.crops import count, expand
from skumatch.errors import DataError


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of empty files and make it the current one."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "inner/c.webp", "inner/deeper/d.jpeg", ".hidden/e.jpg"):
        path = tmp_path / "visit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path / "visit")
    return tmp_path / "visit"


def names(*arguments: str) -> list[str]:
    return [str(path) for path in expand(arguments)]


def test_a_folder_gives_its_pictures_in_order(visit: Path) -> None:
    assert names(".") == ["a.PNG", "b.jpg", "inner/c.webp", "inner/deeper/d.jpeg"]
    assert names("inner") == ["inner/c.webp", "inner/deeper/d.jpeg"]


def test_a_file_is_taken_as_it_is(visit: Path) -> None:
    assert names("notes.txt", "b.jpg", "b.jpg") == ["notes.txt", "b.jpg", "b.jpg"]


def test_globs_give_sorted_pictures_only(visit: Path) -> None:
    assert names("*") == ["a.PNG", "b.jpg"]
    assert names("inner/**/*.jp*g") == ["inner/deeper/d.jpeg"]
    assert names(f"{visit}/inner/*.webp") == [f"{visit}/inner/c.webp"]


def test_an_existing_name_with_brackets_is_no_glob(visit: Path) -> None:
    (visit / "crop [1].jpg").touch()
    (visit / "shelf [2]").mkdir()
    (visit / "shelf [2]" / "f.jpg").touch()
    assert names("crop [1].jpg", "shelf [2]") == ["crop [1].jpg", "shelf [2]/f.jpg"]


def test_count_is_the_number_that_expand_yields(visit: Path) -> None:
    assert count([".", "b.jpg", "*.jpg"]) == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere does not exist - give pictures, folders or globs"),
        ("nowhere/*.jpg", r"no picture matches nowhere/\*\.jpg"),
        ("*.txt", "no picture matches"),
        ("empty", "no .jpg, .jpeg, .png or .webp in empty"),
    ],
)
def test_what_names_no_picture_is_an_error(visit: Path, name: str, said: str) -> None:
    (visit / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        list(expand([name]))


def test_paths_stream_before_all_are_listed(visit: Path) -> None:
    stream = expand(iter(["b.jpg", "nowhere"]))
    assert next(stream) == Path("b.jpg")
    with pytest.raises(DataError):
        next(stream)
