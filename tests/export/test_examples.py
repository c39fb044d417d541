"""The examples of docs/embedding.md: the page shows the files, and they answer as `skumatch match` does."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageCms
from torch import nn

from skumatch.dataset import Row
from skumatch.embed import Pipeline
from skumatch.enrol import Supply, build_gallery
from skumatch.export.onnx import to_onnx
from skumatch.export.resize import with_resize
from skumatch.gallery import open_gallery
from skumatch.gallery_changes import remove_views
from skumatch.gallery_export import export_gallery
from skumatch.match import Matcher
from skumatch.model import Contents, save_bundle
from skumatch.runtime.guard import Guard
from skumatch.runtime.served import Served
from skumatch.runtime.torch import TorchEncoder
from skumatch.towers.build import ModelSource, build

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "embedding.md").read_text()
KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("plain", "guarded")]
PHOTOS = 20
SKUMATCH = "from skumatch.cli.app import main; main()"
ALONE = """
import runpy, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "skumatch"):
            raise ImportError(f"the example imports {name}")
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PYTHON = (sys.executable, "-W", "error", "-c", ALONE, "docs/examples/python/match.py")
Answers = dict[tuple[str, int], tuple[str, float]]
Draw = Callable[[int, int], PILImage.Image]


def model(kind: str) -> tuple[TorchEncoder, Served | None]:
    torch.manual_seed(0)
    tower = build(ModelSource("open_clip:skumatch-tiny-96", random_init=True))
    if kind == "plain":
        return TorchEncoder(tower, device="cpu"), None
    centres = nn.functional.normalize(torch.randn(4, tower.dim), dim=1)
    served = Served("head", nn.Linear(tower.dim, 16, bias=False), guard=Guard(centres, 0.1, 0.2))
    return TorchEncoder(tower, served, "cpu"), served


@pytest.fixture(scope="module", params=KINDS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, draw_view: Draw) -> Path:
    """Return a folder with the app's three files in app/, photos in shelf/, the examples, and what was published."""
    folder = tmp_path_factory.mktemp(request.param)
    encoder, served = model(request.param)
    state = encoder.tower.model.state_dict()
    save_bundle(folder / "models", encoder.tower, served, encoder.spec, Contents({}, state))
    rows = []
    for sku in range(8):
        for view in range(4):
            path = folder / "views" / f"{sku}-{view}.png"
            path.parent.mkdir(exist_ok=True)
            draw_view(sku, view).save(path)
            rows.append(Row(path, f'juice "{sku}", 1 l', "gallery", f"Juice {sku}"))
    gallery = build_gallery(folder / "gallery", Supply.of(rows), encoder, Pipeline()).gallery
    export_gallery(gallery, folder / "app")
    made = with_resize(to_onnx(encoder, encoder.spec, {}), encoder.spec)
    (folder / "app" / "model.resize.onnx").write_bytes(made.SerializeToString())
    take_photos(folder / "shelf", draw_view, Matcher(encoder, gallery))
    shutil.copytree(EXAMPLES, folder / "docs" / "examples", ignore=shutil.ignore_patterns("node_modules"))
    return folder


def take_photos(folder: Path, draw_view: Draw, matcher: Matcher) -> None:
    """Write JPEGs of mixed sizes, lying in all eight orientations, and at the end see-through PNGs.

    Scores of two SKUs are so far apart that what decoders differ by cannot swap them.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    number = 0
    while number < PHOTOS:
        size = tuple(rng.integers(40, 300, 2).tolist())
        photo = draw_view(int(rng.integers(8)), int(rng.integers(50, 90))).resize(size, PILImage.Resampling.BICUBIC)
        path = save(photo, folder / f"{number:02}", number)
        scores = [match.score for match in matcher.match([path], 6)[0].matches]
        if np.diff(scores).max() < -0.002:
            number += 1
        else:
            path.unlink()


def save(photo: PILImage.Image, path: Path, number: int) -> Path:
    """Save a photo as its ``number`` says, and return the path with its suffix."""
    if number >= PHOTOS - 2:
        photo.putalpha(PILImage.linear_gradient("L").resize(photo.size))
        photo.save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    exif = PILImage.Exif()
    exif[0x0112] = number % 8 + 1
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, other in ((b"rXYZ", b"...."), (b"bXYZ", b"rXYZ"), (b"....", b"bXYZ")):
        profile = profile.replace(name, other)  # red is blue: who applies it gets other colours
    photo.save(path.with_suffix(".jpg"), exif=exif, quality=90, icc_profile=profile if number % 5 == 4 else None)
    return path.with_suffix(".jpg")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def photos(shop: Path) -> list[str]:
    return sorted(str(path.relative_to(shop)) for path in (shop / "shelf").iterdir())


def answers(text: str) -> Answers:
    lines = csv.DictReader(io.StringIO(text))
    return {(line["crop"], int(line["rank"])): (line["sku"], float(line["score"])) for line in lines}


@pytest.fixture(scope="module")
def matched(shop: Path) -> Answers:
    """Return what `skumatch match` says of the photos."""
    said = ("--model", "models", "--gallery", "gallery", "--runtime", "torch", "--device", "cpu", "--topk", "5")
    done = run(shop, sys.executable, "-c", SKUMATCH, "match", *photos(shop), *said)
    assert done.returncode == 0, done.stderr
    return answers(done.stdout)


def check(text: str, matched: Answers) -> None:
    """Compare an example's CSV with what `skumatch match` said."""
    assert text.startswith("crop,rank,sku,score\n")
    found = answers(text)
    assert len(found) == PHOTOS * 5 and found.keys() == matched.keys()
    for key, (sku, score) in matched.items():
        assert found[key][0] == sku, f"{key}: {found[key]}, not {(sku, score)}"
        assert found[key][1] == pytest.approx(score, abs=1e-3)


def refusals(shop: Path, folder: Path, command: Sequence[str]) -> None:
    """Run an example on what is broken: one line says what, and whole crops are answered all the same."""
    shutil.copy(shop / "shelf" / "00.jpg", folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((shop / "shelf" / "00.jpg").read_bytes()[:1500])
    whole = str(folder / "whole.jpg")
    done = run(shop, *command, "app", str(folder / "cut.jpg"), whole, str(folder / "absent.jpg"))
    assert done.returncode == 1 and {crop for crop, _ in answers(done.stdout)} == {whole}
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert [name in line for name, line in zip(("cut.jpg", "absent.jpg"), errors, strict=True)] == [True, True]
    told = {"other": "not of one model", "short": "do not belong together", "absent": "", "foreign": "not of one model"}
    for name, words in told.items():
        app = folder / name
        shutil.copytree(shop / "app", app)
        spoil(app, name)
        done = run(shop, *command, str(app), whole)
        assert done.returncode == 1 and answers(done.stdout) == {}, name
        assert done.stderr.startswith("error: ") and words in done.stderr and len(done.stderr.splitlines()) == 1, name
    assert run(shop, *command, "app").stderr.startswith("usage: ")


def spoil(app: Path, how: str) -> None:
    if how == "other":
        document = json.loads((app / "views.json").read_text())
        document["model"]["digest"] = "0" * 64
        (app / "views.json").write_text(json.dumps(document))
    elif how == "short":
        (app / "vectors.f32").write_bytes((app / "vectors.f32").read_bytes()[:-4])
    elif how == "absent":
        (app / "views.json").unlink()
    else:
        foreign = onnx.load(str(app / "model.resize.onnx"))
        foreign.metadata_props[0].key = "other"
        onnx.save(foreign, str(app / "model.resize.onnx"))


def test_the_page_shows_the_files() -> None:
    shown = re.findall(r"^```(py|js|json|cmake|cpp)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    kinds = {".py": "py", ".mjs": "js", ".json": "json", ".txt": "cmake", ".cpp": "cpp"}
    others = {"node_modules", "deploy"}  # the second has a page of its own
    ours = [path for path in EXAMPLES.rglob("*") if path.is_file() and not others & set(path.parts)]
    files = [path for path in ours if path.name != "package-lock.json"]
    assert len(files) == 6
    assert sorted(shown) == sorted((kinds[path.suffix], path.read_text()) for path in files)


def test_python_answers_as_match_does(shop: Path, matched: Answers, tmp_path: Path) -> None:
    done = run(shop, *PYTHON, "app", *photos(shop))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    check(done.stdout, matched)
    refusals(shop, tmp_path, PYTHON)


def test_an_exported_gallery_holds_every_view(shop: Path, tmp_path: Path) -> None:
    done = run(shop, sys.executable, "-c", SKUMATCH, "gallery", "export", "--gallery", "gallery", "--out", "more/app")
    assert done.returncode == 0, done.stderr
    files = "vectors.f32, views.json, views.parquet, skus.parquet"
    assert done.stdout == f"wrote {files} into more/app: 32 views of 8 SKUs\n"
    for name in ("vectors.f32", "views.json"):
        assert (shop / "more" / "app" / name).read_bytes() == (shop / "app" / name).read_bytes()
    shutil.copytree(shop / "gallery", tmp_path / "gallery")
    gallery = remove_views(open_gallery(tmp_path / "gallery"), [0, 5])
    export_gallery(gallery, tmp_path)
    document = json.loads((tmp_path / "views.json").read_text())
    vectors = np.fromfile(tmp_path / "vectors.f32", "<f4").reshape(document["views"], document["dim"])
    assert document["views"] == len(gallery) == 30 and document["model"]["digest"] == gallery.spec.digest
    assert np.array_equal(vectors, gallery.vectors_of(gallery.ids))
    skus = [document["skus"][place] for place in document["rows"]]
    assert [entry["sku"] for entry in skus] == [gallery.view(int(i)).sku for i in gallery.ids]
    assert skus[0] == {"sku": 'juice "0", 1 l', "title": "Juice 0"}


def commands(heading: str) -> list[str]:
    """Return the shell blocks below a heading of the page."""
    (section,) = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def block(shop: Path, code: str, lacking: str) -> str:
    """Run a block of the page and return the answers; skip where its stderr shows that something is ``lacking``."""
    done = run(shop, "bash", "-euc", code)
    if done.returncode and (reason := re.search(lacking, done.stderr)):
        pytest.skip(f"this machine lacks what the example needs: {reason[0]}")
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return (shop / "answers.csv").read_text()


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.mark.slow
def test_javascript_answers_as_match_does(shop: Path, matched: Answers, tmp_path: Path) -> None:
    need("bash", "node", "npm")
    blocks = commands("JavaScript")
    assert len(blocks) == 2
    for code in blocks:
        check(block(shop, code, r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EBADENGINE.*"), matched)
    for way in ((), ("--web",)):
        folder = tmp_path / f"node{''.join(way)}"
        folder.mkdir()
        refusals(shop, folder, ("node", "docs/examples/javascript/match.mjs", *way))


@pytest.mark.slow
def test_cpp_answers_as_match_does(shop: Path, matched: Answers, tmp_path: Path) -> None:
    need("bash", "cmake", "c++", "pkg-config")
    (code,) = commands("C++")
    check(block(shop, code, r"Could not find .*|required packages were not found.*|Package '.*not found"), matched)
    refusals(shop, tmp_path, ("app-build/match",))
