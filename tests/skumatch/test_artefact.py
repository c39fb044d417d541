"""Folders published whole or not at all: every byte guarded, a full disk survived, the dead cleaned up."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skumatch import artefact
from skumatch.errors import ArtefactError

MANIFEST = "manifest.json"


def publish(store: Path, content: bytes = b"content") -> Path:
    """Publish a version with a file, an empty file and a file in a folder."""
    final = store / artefact.next_version(store)
    with artefact.staged(store, final.name) as stage:
        (stage.folder / "a.bin").write_bytes(content)
        (stage.folder / "empty.txt").touch()
        (stage.folder / "inner").mkdir()
        (stage.folder / "inner" / "b.bin").write_bytes(b"deep")
        artefact.seal(stage.folder, MANIFEST, {"kind": "test"})
    artefact.set_current(store, final.name)
    return final


def flip(path: Path, position: int) -> bytes:
    """Flip one bit of the byte at ``position``; return what the file held."""
    before = path.read_bytes()
    path.write_bytes(before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :])
    return before


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_publishing_names_versions_and_moves_the_pointer(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert artefact.versions(store) == [] and artefact.current(store) is None
    first, second = publish(store), publish(store, b"other")
    assert artefact.versions(store) == [first.name, second.name] == ["v000001", "v000002"]
    assert artefact.current(store) == second
    assert artefact.read_manifest(second, MANIFEST)["kind"] == "test"
    assert set(artefact.read_manifest(first, MANIFEST)["files"]) == {"a.bin", "empty.txt", "inner/b.bin"}
    artefact.set_current(store, first.name)
    assert artefact.current(store) == first
    assert hidden(store) == []


def test_versions_sort_by_number(tmp_path: Path) -> None:
    for name in ("v999999", "v1000000", "v000002", "v12", "other"):
        (tmp_path / name).mkdir()
    assert artefact.versions(tmp_path) == ["v000002", "v999999", "v1000000"]
    assert artefact.next_version(tmp_path) == "v1000001"


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = publish(store)
    with pytest.raises(KeyboardInterrupt), artefact.staged(store, "v000002") as stage:
        (stage.folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt
    assert sorted(path.name for path in store.iterdir()) == ["CURRENT", "v000001"]
    assert artefact.current(store) == first


def test_a_taken_name_is_an_error_and_leaves_the_first(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = publish(store)
    with (
        pytest.raises(ArtefactError, match="v000001 was written by someone else"),
        artefact.staged(store, "v000001") as stage,
    ):
        (stage.folder / "a.bin").write_bytes(b"mine")
    assert (first / "a.bin").read_bytes() == b"content" and hidden(store) == []


def test_a_name_taken_by_the_same_content_is_no_error(tmp_path: Path) -> None:
    for _ in range(2):
        with artefact.staged(tmp_path, "new", by_content=True) as stage:
            (stage.folder / "a.bin").write_bytes(b"same")
            stage.name = "digest"
    assert (tmp_path / "digest" / "a.bin").read_bytes() == b"same" and hidden(tmp_path) == []


def test_any_flipped_byte_names_its_file(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store", bytes(range(200)))
    artefact.read_manifest(folder, MANIFEST)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) == 3
    for path in files:
        size = path.stat().st_size
        for position in sorted({0, 1, size // 3, size // 2, size - 2, size - 1}):
            before = flip(path, position)
            with pytest.raises(ArtefactError, match=path.name):
                artefact.read_manifest(folder, MANIFEST)
            path.write_bytes(before)
    artefact.read_manifest(folder, MANIFEST)


def test_every_byte_of_a_manifest_is_guarded(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store")
    for position in range((folder / MANIFEST).stat().st_size):
        before = flip(folder / MANIFEST, position)
        with pytest.raises(ArtefactError, match=MANIFEST):
            artefact.read_manifest(folder, MANIFEST)
        (folder / MANIFEST).write_bytes(before)


def test_every_byte_of_the_pointer_is_guarded(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish(store)
    for position in range(len("v000001\n")):
        before = flip(store / "CURRENT", position)
        with pytest.raises(ArtefactError, match=r"CURRENT is corrupt.*v000001"):
            artefact.current(store)
        (store / "CURRENT").write_bytes(before)
    (store / "CURRENT").write_bytes(b"v0000\xff1\n")
    with pytest.raises(ArtefactError, match="CURRENT"):
        artefact.current(store)


def test_missing_cut_and_grown_files_are_named(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store")
    path = folder / "inner" / "b.bin"
    for content in (b"", b"dee", b"deeper"):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=r"b\.bin is corrupt"):
            artefact.read_manifest(folder, MANIFEST)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"b\.bin is missing"):
        artefact.read_manifest(folder, MANIFEST)
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtefactError, match=r"manifest\.json is missing"):
        artefact.read_manifest(folder, MANIFEST)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"files": {}}', '{"manifest_digest": "x"}', '"manifest_digest"']
)
def test_a_manifest_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtefactError, match=r"manifest\.json is corrupt"):
        artefact.read_manifest(tmp_path, MANIFEST)


def test_a_file_once_verified_is_trusted_until_it_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish(tmp_path / "store")
    hashed: list[str] = []
    real = artefact.file_digest

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(artefact, "file_digest", counting)
    artefact.read_manifest(folder, MANIFEST)
    assert sorted(hashed) == ["a.bin", "b.bin", "empty.txt"]
    artefact.read_manifest(folder, MANIFEST)
    assert len(hashed) == 3
    os.utime(folder / "a.bin", ns=(1, 1))
    artefact.read_manifest(folder, MANIFEST)
    assert hashed[3:] == ["a.bin"]
    artefact.read_manifest(folder, MANIFEST, full=True)
    assert len(hashed) == 7


def test_a_change_under_an_old_mtime_is_noticed(tmp_path: Path) -> None:
    folder = publish(tmp_path / "store")
    artefact.read_manifest(folder, MANIFEST)
    path = folder / "a.bin"
    facts = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ArtefactError, match=r"a\.bin"):
        artefact.read_manifest(folder, MANIFEST)


def test_without_a_writable_cache_files_are_hashed_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain-file").touch()
    monkeypatch.setenv("SKUMATCH_CACHE", str(tmp_path / "plain-file"))
    folder = publish(tmp_path / "store")
    artefact.read_manifest(folder, MANIFEST)
    flip(folder / "a.bin", 0)
    with pytest.raises(ArtefactError, match=r"a\.bin"):
        artefact.read_manifest(folder, MANIFEST)


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artefact.cache_dir() == tmp_path / "skumatch-cache"
    monkeypatch.delenv("SKUMATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert artefact.cache_dir() == tmp_path / "skumatch"


def test_a_full_disk_is_one_line_and_the_old_version_stays(tiny_disk: Path) -> None:
    store = tiny_disk / "store"
    first = publish(store)
    with pytest.raises(ArtefactError, match=r"(?i)no space left"):
        publish(store, b"x" * 2_000_000)
    assert artefact.current(store) == first and artefact.versions(store) == ["v000001"] and hidden(store) == []
    artefact.read_manifest(first, MANIFEST, full=True)
    with pytest.raises(ArtefactError, match=r"(?i)no space left while writing .*notes"):
        artefact.write_file(store / "notes", b"x" * 2_000_000)
    assert hidden(store) == [] and not (store / "notes").exists()


def test_a_path_through_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match="cannot write"), artefact.staged(tmp_path / "file", "v000001"):
        pass
    with pytest.raises(ArtefactError, match="cannot write"):
        artefact.write_file(tmp_path / "file" / "CURRENT", b"x")


def test_folders_of_dead_writers_are_removed_and_of_live_ones_kept(tmp_path: Path) -> None:
    old = time.time() - 3600
    names = {name: tmp_path / f".v000001.{number}.1.tmp" for number, name in enumerate(("dead", "alive", "young"))}
    strange = [tmp_path / ".hidden", tmp_path / ".other.tmp", tmp_path / "v000009.1.1.tmp"]
    for folder in (*names.values(), *strange):
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
        os.utime(folder, (old, old))
    os.utime(names["young"])  # as if its writer had made it just now, and not locked it yet
    claim = os.open(names["alive"], os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_EX)
    publish(tmp_path)
    assert not names["dead"].exists()
    assert all((folder / "part").exists() for folder in (names["alive"], names["young"], *strange))
    os.close(claim)  # as the kernel does for a killed writer
    publish(tmp_path)
    assert not names["alive"].exists()


def test_a_killed_writer_leaves_nothing_that_stays(tmp_path: Path) -> None:
    code = "import os, signal, sys; from pathlib import Path; from skumatch import artefact"
    code += (
        "\nwith artefact.staged(Path(sys.argv[1]), 'v000001') as stage:\n    (stage.folder / 'half').write_bytes(b'x')"
    )
    code += "\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode < 0
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    publish(tmp_path)
    assert hidden(tmp_path) == []


def test_writers_beside_each_other_leave_each_others_work_alone(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(5):
            with artefact.staged(tmp_path, "new", by_content=True) as stage:
                (stage.folder / "a.bin").write_bytes(b"%d %d" % (number, turn))
                stage.name = f"{number}-{turn}"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}-{t}" for n in range(4) for t in range(5)]


def test_write_file_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    artefact.write_file(path, b"long first content")
    artefact.write_file(path, b"second")
    assert path.read_bytes() == b"second" and hidden(tmp_path) == []
