"""Verdicts and the gallery: crops become views, undoing takes them out, and what a kill interrupts is finished."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from skumatch.embed import Pipeline
from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, ConfigError
from skumatch.readers_lists import read_manifest
from skumatch.serve.learning import Judgement
from skumatch.serve.match_routes import in_sample
from skumatch.serve.review_export import MANIFEST, write_folder
from skumatch.serve.reviews import Reviews
from skumatch.serve.service import Service, Writer
from skumatch.serve.settings import Settings
from tests.skumatch.serving import client, make_gallery, make_service

PNG = {"Content-Type": "image/png"}
Draw = Callable[[int, int], PILImage.Image]


@pytest.fixture
def service(patterns: Path, encoder: Encoder, tmp_path: Path) -> Service:
    """Return a service that keeps doubtful crops; without a calibration all are for review."""
    return make_service(make_gallery(patterns, encoder, tmp_path / "gallery"), encoder, tmp_path, reviews=True)


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    with client(service) as found:
        yield found


def png(picture: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def asked(api: TestClient, data: bytes) -> dict[str, Any]:
    answer = api.post("/v1/match?k=3", content=data, headers=PNG)
    assert answer.status_code == 200
    return dict(answer.json()["results"][0])


def judge(api: TestClient, crop: str, **said: Any) -> dict[str, Any]:
    answer = api.post(f"/v1/review/{crop}", json=said)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def version(api: TestClient) -> str:
    return str(api.get("/v1/gallery").json()["gallery"]["version"])


def test_a_new_sku_is_found_from_then_on_and_undone_again(api: TestClient, draw_view: Draw) -> None:
    crop, fresh = png(draw_view(7, 0)), png(draw_view(7, 1))
    first = asked(api, crop)
    assert first["matches"][0]["sku"] != "tea"
    said = judge(api, first["review"], verdict="new", sku="tea", title="Tea, 20 bags")
    assert said["gallery"] == {"version": "v000002"} and said["review"]["enrolled"] is True
    for data in (crop, fresh):
        best = asked(api, data)["matches"][0]
        assert (best["sku"], best["title"]) == ("tea", "Tea, 20 bags")
    undone = api.post(f"/v1/review/{first['review']}/undo").json()
    assert undone["gallery"] == {"version": "v000003"}
    assert (undone["review"]["verdict"], undone["review"]["enrolled"]) == (None, False)
    assert asked(api, fresh)["matches"][0]["sku"] != "tea" and api.get("/v1/skus/tea").status_code == 404
    assert api.post(f"/v1/review/{first['review']}/undo").status_code == 409
    assert judge(api, first["review"], verdict="new", sku="tea")["gallery"] == {"version": "v000004"}


def test_a_right_answer_and_a_corrected_one_become_views(api: TestClient, patterns: Path) -> None:
    for number, (sku, said) in enumerate((("sku-1", {"verdict": "accept"}), ("sku-2", {"verdict": "correct"}))):
        data = (patterns / "test" / "sku-1" / f"{4 + number}.png").read_bytes()
        made = asked(api, data)["review"]
        judged = judge(api, made, sku=sku, **said)["review"]
        assert (judged["sku"], judged["enrolled"]) == (sku, True)
        assert api.get(f"/v1/skus/{sku}").json()["views"] == 5
        assert asked(api, data)["matches"][0]["sku"] == sku


def test_correct_with_the_best_candidate_is_accept(api: TestClient, patterns: Path) -> None:
    made = asked(api, (patterns / "test" / "sku-1" / "4.png").read_bytes())["review"]
    assert judge(api, made, verdict="correct", sku="sku-1", enrol=False)["review"]["verdict"] == "accept"


def test_what_does_not_fit_is_refused_and_changes_nothing(api: TestClient, patterns: Path) -> None:
    made = asked(api, (patterns / "test" / "sku-1" / "4.png").read_bytes())["review"]
    for said, words in (
        ({"verdict": "new", "sku": "sku-3"}, "there is a SKU 'sku-3' already"),
        ({"verdict": "correct", "sku": "tea"}, "no SKU is called 'tea'"),
        ({"verdict": "accept", "sku": "sku-3"}, "best candidate is 'sku-1'"),
    ):
        answer = api.post(f"/v1/review/{made}", json=said)
        assert answer.status_code == 422 and words in answer.json()["error"]
    assert version(api) == "v000001" and api.get("/v1/review").json()["waiting"] == 1


def test_rejected_ones_and_nameless_ones_do_nothing_to_the_gallery(api: TestClient, patterns: Path) -> None:
    for view, said in ((4, {"verdict": "reject"}), (5, {"verdict": "new"})):
        made = asked(api, (patterns / "test" / "sku-1" / f"{view}.png").read_bytes())["review"]
        assert judge(api, made, **said)["review"]["enrolled"] is False
        assert api.post(f"/v1/review/{made}/undo").json()["review"]["verdict"] is None
    assert version(api) == "v000001"


def test_a_picture_that_the_sku_has_already_is_not_taken_out(api: TestClient, patterns: Path) -> None:
    made = asked(api, (patterns / "train" / "sku-1" / "0.png").read_bytes())["review"]
    judge(api, made, verdict="accept")
    assert version(api) == "v000001" and api.get("/v1/skus/sku-1").json()["views"] == 4
    assert api.post(f"/v1/review/{made}/undo").status_code == 200
    assert api.get("/v1/skus/sku-1").json()["views"] == 4


def test_a_view_that_two_verdicts_need_stays_until_both_are_undone(api: TestClient, patterns: Path) -> None:
    data = (patterns / "test" / "sku-1" / "4.png").read_bytes()
    first = asked(api, data)["review"]
    assert asked(api, data)["review"] == first  # it waits already
    judge(api, first, verdict="accept")
    second = asked(api, data)["review"]
    assert second != first
    judge(api, second, verdict="accept")
    for made, views in ((first, 5), (second, 4)):
        assert api.post(f"/v1/review/{made}/undo").status_code == 200
        assert api.get("/v1/skus/sku-1").json()["views"] == views


def test_the_last_view_of_a_gallery_stays(api: TestClient, patterns: Path) -> None:
    made = asked(api, (patterns / "test" / "sku-1" / "4.png").read_bytes())["review"]
    judge(api, made, verdict="accept")
    for sku in range(6):
        if sku != 1:
            assert api.delete(f"/v1/skus/sku-{sku}").status_code == 200
    for view in api.get("/v1/views?sku=sku-1").json()["views"][:-1]:
        assert api.delete(f"/v1/views/{view['view']}").status_code == 200
    answer = api.post(f"/v1/review/{made}/undo")
    assert answer.status_code == 409 and "empty the gallery" in answer.json()["error"]
    assert api.get(f"/v1/review/{made}").json()["verdict"] == "accept"


def test_a_change_that_fails_leaves_the_crop_waiting(
    api: TestClient, service: Service, patterns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = asked(api, (patterns / "test" / "sku-1" / "4.png").read_bytes())["review"]

    def full(*_: object) -> None:
        raise ArtefactError("the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(service.home, "extend", full)
        assert api.post(f"/v1/review/{made}", json={"verdict": "accept"}).status_code == 500
    found = api.get(f"/v1/review/{made}").json()
    assert (found["verdict"], found["enrolled"]) == (None, False)
    days = api.get("/v1/review/stats").json()["days"]
    assert sum(day["judged"] for day in days) == 0
    judge(api, made, verdict="accept")


class Died(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("before", ["extend", "settle", "remove_views", "reopen"])
def test_what_was_interrupted_is_finished_at_the_next_start(
    before: str, service: Service, patterns: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before each step in turn; afterwards there is one verdict with its view, or none without."""
    reviewing = service.reviewing
    assert reviewing is not None
    home, writer = service.home, Writer(service.loaded, Pipeline())
    facts = {"candidates": [{"sku": "sku-1"}], "model": ""}
    made = reviewing.reviews.keep((patterns / "test" / "sku-1" / "4.png").read_bytes(), "review", facts)
    assert made is not None
    judgement = Judgement(made, "accept", "", "eva")

    def die(*_: object) -> None:
        raise Died

    undoing = before in ("remove_views", "reopen")
    if undoing:
        reviewing.learning.enrol(judgement, home, writer)
    owner: Any = home if before in ("extend", "remove_views") else reviewing.reviews
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(owner, before, die)
        if undoing:
            reviewing.learning.undo(made, home)
        else:
            reviewing.learning.enrol(judgement, home, writer)
    reviewing.reviews.close()
    again = make_service(tmp_path / "gallery", encoder, tmp_path, reviews=True)
    assert again.reviewing is not None
    found = again.reviewing.reviews.get(made)
    views = len(again.loaded.gallery.ids_of("sku-1"))
    assert (found.verdict, found.state, views) == ((None, None, 4) if undoing else ("accept", "done", 5))
    assert again.reviewing.reviews.unfinished() == []
    if not undoing:
        again.reviewing.learning.undo(made, again.home)
        assert len(again.home.gallery().ids_of("sku-1")) == 4


def test_corrections_are_a_manifest_for_the_next_fine_tune(api: TestClient, service: Service, tmp_path: Path) -> None:
    strange = '=1+1, "x"'
    data = png(PILImage.effect_noise((50, 40), 90).convert("RGB"))
    judge(api, asked(api, data)["review"], verdict="new", sku=strange, title="Noise")
    rejected = png(PILImage.effect_noise((40, 40), 90).convert("RGB"))
    judge(api, asked(api, rejected)["review"], verdict="reject")
    answer = api.get("/v1/review/export")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "zip")
    assert service.reviewing is not None
    assert write_folder(service.reviewing.reviews, tmp_path / "out") == 1
    for folder in ("zip", "out"):
        (row,) = read_manifest(tmp_path / folder / MANIFEST, 0)
        assert (row.sku, row.split, row.title, row.extra["verdict"]) == (strange, "train", "Noise", "new")
        assert row.path.read_bytes() == data
        assert "'=1+1" in (tmp_path / folder / MANIFEST).read_text()
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_folder(service.reviewing.reviews, tmp_path / "out")


def test_of_two_sessions_none_gets_the_same_crop(api: TestClient, patterns: Path) -> None:
    made = [asked(api, path.read_bytes())["review"] for path in sorted((patterns / "test").rglob("*.png"))]
    got: dict[str, list[str]] = {}
    for session in ("operator-1", "operator-2"):
        said = api.post("/v1/review/claim", json={"session": session, "limit": 4}).json()
        got[session] = [one["id"] for one in said["reviews"]]
        assert all(one["claimed"] for one in said["reviews"])
        again = api.post("/v1/review/claim", json={"session": session, "limit": 4}).json()
        assert [one["id"] for one in again["reviews"]] == got[session]
    assert got == {"operator-1": made[:4], "operator-2": made[4:8]}
    for said, status in (({"session": "operator-2"}, 409), ({}, 409), ({"session": "operator-1"}, 200)):
        answer = api.post(f"/v1/review/{made[0]}", json={"verdict": "reject", **said})
        assert answer.status_code == status
    assert api.post("/v1/review/release", json={"session": "operator-1"}).json() == {"released": 3}
    said = api.post("/v1/review/claim", json={"session": "operator-2", "limit": 6}).json()
    assert [one["id"] for one in said["reviews"]] == sorted([*made[4:8], *made[1:3]], key=made.index)
    judge(api, made[11], verdict="reject")  # nobody has it


def test_one_crop_is_asked_for_and_others_are_left_out(api: TestClient, patterns: Path) -> None:
    made = [asked(api, path.read_bytes())["review"] for path in sorted((patterns / "test").rglob("*.png"))[:5]]

    def claimed(session: str, **said: Any) -> list[str]:
        answer = api.post("/v1/review/claim", json={"session": session, "limit": 2, **said})
        assert answer.status_code == 200 and answer.json()["seconds"] == 300
        return [one["id"] for one in answer.json()["reviews"]]

    assert claimed("operator-1", first=made[3]) == [made[3], made[0]]
    assert claimed("operator-2", first=made[3]) == made[1:3]
    assert claimed("operator-1", without=[made[3], "0" * 32]) == [made[0], made[4]]
    assert claimed("operator-2", first=made[3], without=[made[1]]) == [made[3], made[2]]
    judge(api, made[0], verdict="reject", session="operator-1")
    undone = api.post(f"/v1/review/{made[0]}/undo?session=operator-1").json()["review"]
    assert undone["claimed"] and undone["verdict"] is None
    assert claimed("operator-2", limit=5) == made[1:4]
    assert api.post(f"/v1/review/{made[1]}/undo?session=x").status_code == 422


def test_a_claim_ends(tmp_path: Path) -> None:
    now = [1000.0]
    reviews = Reviews(tmp_path / "reviews.db", Settings(review_claim=60), lambda: now[0])
    made = reviews.keep(b"x", "review", {})
    assert [one.id for one in reviews.claim("one", 5)] == [made] and reviews.claim("two", 5) == []
    now[0] += 61
    assert [one.id for one in reviews.claim("two", 5)] == [made]
    reviews.close()


def test_figures_over_time(api: TestClient, patterns: Path) -> None:
    paths = sorted((patterns / "test").rglob("*.png"))
    made = [asked(api, path.read_bytes())["review"] for path in paths]
    judge(api, made[0], verdict="accept", enrol=False)
    judge(api, made[1], verdict="correct", sku="sku-5", enrol=False)
    said = api.get("/v1/review/stats?days=3").json()
    assert len(said["days"]) == 3 and said["waiting"] == len(paths) - 2
    today = said["days"][-1]
    assert (today["answered"], today["review"], today["accept"], today["unknown"]) == (len(paths), len(paths), 0, 0)
    assert (today["judged"], today["right"], today["drift"]) == (2, 1, None)
    assert today["score"] == sorted(today["score"]) and said["days"][0]["answered"] == 0
    assert said["accuracy"]["value"] == 0.5 and said["agreement"]["review"]["count"] == 2
    assert said["accuracy"]["low"] < 0.2 and said["accuracy"]["high"] > 0.8
    assert said["agreement"]["accept"] == {"value": None, "low": None, "high": None, "count": 0}


def test_a_sample_is_drawn_of_the_accepted() -> None:
    pictures = [str(number).encode() for number in range(4000)]
    assert not any(in_sample(one, 0.0) for one in pictures) and all(in_sample(one, 1.0) for one in pictures)
    assert 300 < sum(in_sample(one, 0.1) for one in pictures) < 500


def test_verdicts_are_in_the_audit_log(api: TestClient, patterns: Path, tmp_path: Path) -> None:
    made = asked(api, (patterns / "test" / "sku-1" / "4.png").read_bytes())["review"]
    judge(api, made, verdict="accept")
    api.post(f"/v1/review/{made}/undo")
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["state"], line["review"]) for line in lines] == [
        ("review.enrol", "begun", made),
        ("review.enrol", "done", made),
        ("review.undo", "begun", made),
        ("review.undo", "done", made),
    ]
