"""Notes of unfinished jobs: gone on with where they are whole and their segments are there, else begun anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skumatch import artefact
from skumatch.errors import ArtefactError
from skumatch.jobs import Job, open_job, pieces_of_jobs

IDENTITY = {"what": "extend", "model": "f" * 64, "rows": "r"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a saved job with two segments, which are there."""
    for name in ("one", "two"):
        (tmp_path / "segments" / name).mkdir(parents=True)
        (tmp_path / "segments" / name / "vectors.f32").write_bytes(b"vectors")
        artefact.seal(tmp_path / "segments" / name, "segment.json", {})
    counts = {"done": 17, "unreadable": 3, "known": 2, "from_thumbs": 1}
    made = Job(tmp_path / "pending", IDENTITY, [("one", 8), ("two", 4)], failures=["a.jpg is broken"], **counts)
    made.save()
    return made


def opened(job: Job, identity: dict[str, str] = IDENTITY) -> Job:
    return open_job(job.folder, identity, job.folder.parent / "segments")


def test_a_job_goes_on_where_it_was(job: Job) -> None:
    assert opened(job) == job
    job.segments.append(("one", 1))
    job.done = 18
    job.save()
    assert opened(job) == job and [path.name for path in job.folder.iterdir()] == [job.file.name]


def test_another_job_begins_anew(job: Job) -> None:
    for name in IDENTITY:
        other = {**IDENTITY, name: "other"}
        assert opened(job, other) == Job(job.folder, other)
    assert opened(job, dict(reversed(IDENTITY.items()))).done == 17


def test_a_finished_job_is_forgotten(job: Job) -> None:
    job.finish()
    assert opened(job) == Job(job.folder, IDENTITY) and list(job.folder.iterdir()) == []
    job.finish()


def test_a_job_whose_segment_is_gone_begins_anew(job: Job) -> None:
    shutil.rmtree(job.folder.parent / "segments" / "two")
    assert opened(job) == Job(job.folder, IDENTITY)


def test_a_job_whose_segment_is_damaged_begins_anew(job: Job) -> None:
    (job.folder.parent / "segments" / "two" / "vectors.f32").write_bytes(b"vectorz")
    assert opened(job) == Job(job.folder, IDENTITY)


def test_the_segments_of_all_jobs_are_known(job: Job) -> None:
    assert pieces_of_jobs(job.folder) == {"one", "two"}
    Job(job.folder, {"what": "other"}, [("three", 1)]).save()
    (job.folder / ".half.json").write_text("{")
    (job.folder / "note.txt").write_text("{")
    assert pieces_of_jobs(job.folder) == {"one", "two", "three"}
    assert pieces_of_jobs(job.folder / "nowhere") == set()


@pytest.mark.parametrize(
    "change",
    [
        {"segments": 3},
        {"segments": [["one"]]},
        {"segments": [["one", "many"]]},
        {"segments": None},
        {"done": None},
        {"known": "x"},
        {"failures": 1},
        {"identity": []},
    ],
)
def test_a_note_of_another_kind_is_no_note(job: Job, change: dict[str, object]) -> None:
    note = json.loads(job.file.read_text())
    job.file.write_text(json.dumps({**note, **change}))
    assert opened(job) == Job(job.folder, IDENTITY)
    assert pieces_of_jobs(job.folder) <= {"one", "two"}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe"])
def test_what_is_no_note(job: Job, data: bytes) -> None:
    job.file.write_bytes(data)
    assert opened(job) == Job(job.folder, IDENTITY) and pieces_of_jobs(job.folder) == set()


def test_a_note_under_another_jobs_name_is_not_that_jobs(job: Job) -> None:
    other = Job(job.folder, {**IDENTITY, "rows": "other"})
    job.file.rename(other.file)
    assert opened(job, dict(other.identity)) == other


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pending").touch()
    with pytest.raises(ArtefactError, match=r"cannot write .*pending"):
        Job(tmp_path / "pending", IDENTITY).save()
