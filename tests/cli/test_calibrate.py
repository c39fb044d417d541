"""``skumatch calibrate``: what it fits on, what it leaves, and decisions of `skumatch match` before and after."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skumatch import artefact
from skumatch.calibration import FILE, Calibration
from skumatch.cli import app
from skumatch.encoder import open_encoder
from skumatch.finetune.recipe import load_recipe
from skumatch.finetune.run import Job, finetune
from skumatch.model import open_bundle
from skumatch.readers import open_dataset
from skumatch.workspace import Workspace

Skumatch = Callable[..., Any]
CPU = ("--device", "cpu")
FAR = ("--target-far", "0.1")
COUNTS = {"train": 8, "val": 5, "test": 3}


def draw(folder: Path, sku: int, view: int) -> None:
    """Write one view of a made-up SKU: its 4 x 4 colour pattern, in another light and with noise."""
    pattern = np.random.default_rng(1000 + sku).integers(20, 236, (4, 4, 3))
    rng = np.random.default_rng((sku + 1) * 100 + view)
    noisy = pattern.repeat(8, 0).repeat(8, 1) * rng.uniform(0.8, 1.1) + rng.normal(0, 12, (32, 32, 3))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{view}.png")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 14 SKUs in the splits train, val and test (do not write to it)."""
    root = tmp_path_factory.mktemp("shop")
    for sku in range(14):
        view = 0
        for split, count in COUNTS.items():
            for _ in range(count):
                draw(root / split / f"sku-{sku:02}", sku, view)
                view += 1
    return root


def command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["skumatch", *arguments])
        assert app._run(False) == 0


@pytest.fixture(scope="module")
def made(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace fine-tuned with held-out SKUs, with a gallery of all SKUs (do not write to it)."""
    root = tmp_path_factory.mktemp("tuned")
    shutil.copytree(shop, root / "shop")
    (root / "mine.toml").write_text("epochs = 1\nhead_epochs = 0\nembedding = 16\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SKUMATCH_CACHE", str(root / "cache"))
        command("init", "--data", "shop", "--model", "timm:test_efficientnet", "--random-init", "--size", "32")
        command("finetune", "--recipe", "mine.toml", "--hold-out", "0.4", *CPU)
        command("gallery", "build", *CPU)
    return root


@pytest.fixture
def tuned(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of ``made`` that the test may change, and make it the current folder."""
    root = Path(shutil.copytree(made, tmp_path / "copy"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def plain(shop: Path, tmp_path: Path, skumatch: Skumatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a workspace around a copy of the shop with a random network, and make it the current folder."""
    root = tmp_path / "plain"
    shutil.copytree(shop, root / "shop")
    monkeypatch.chdir(root)
    ran = skumatch("init", "--data", "shop", "--model", "timm:test_efficientnet", "--random-init", "--size", "32")
    assert ran.code == 0, ran.err
    return root


def rule_in(models: Path) -> Calibration:
    data = open_bundle(models).file(FILE)
    assert data is not None
    return Calibration.read(data)


def answers(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_held_out_skus_are_the_unknown_ones(skumatch: Skumatch, tuned: Path) -> None:
    trained, held = open_bundle(tuned / "models").skus()
    assert (len(trained), len(held)) == (8, 6)
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0, ran.err
    assert "fitted on 40 crops of 8 known SKUs and 78 crops of 6 unknown ones" in ran.out
    assert "SKUs that the model was not trained on" in ran.out and "skumatch match" in ran.out
    rule, encoder = rule_in(tuned / "models"), open_encoder(tuned / "models", "cpu")
    assert rule.spec_digest == encoder.spec.digest
    assert rule.facts["worst_unknown"]["sku"] in held and rule.facts["target_far"] == 0.1
    assert artefact.versions(tuned / "models") == ["v000001", "v000002"]
    assert open_bundle(tuned / "models").skus() == (trained, held)


def test_decisions_come_with_the_calibration_and_the_gallery_stays(skumatch: Skumatch, tuned: Path) -> None:
    before = skumatch("match", "shop/test", "--topk", "2", *CPU)
    assert {line["decision"] for line in answers(before.out)} == {"review"}
    assert {line["probability"] for line in answers(before.out)} == {""}
    assert "not calibrated, so every answer is for review: run `skumatch calibrate`" in before.err
    assert skumatch("calibrate", *FAR, *CPU).code == 0
    after = skumatch("match", "shop/test", "--topk", "2", *CPU)
    assert after.code == 0 and "not calibrated" not in after.err
    rule = rule_in(tuned / "models")
    for old, new in zip(answers(before.out), answers(after.out), strict=True):
        assert [old[c] for c in ("crop", "sku", "rank", "score")] == [new[c] for c in ("crop", "sku", "rank", "score")]
        assert (new["probability"] == "") == (new["rank"] == "2")
    for line in answers(after.out)[::2]:
        stated = float(line["probability"])
        if min(abs(stated - rule.accept), abs(stated - rule.unknown)) > 1e-5:
            assert line["decision"] == rule.decide(stated)
    counts = Counter(line["decision"] for line in answers(after.out)[::2])
    assert counts["accept"] > 5 and f"{counts['accept']} accept" in after.err


def test_unknown_products_are_not_accepted(skumatch: Skumatch, tuned: Path) -> None:
    """The shelf shows held-out SKUs that nobody enrolled."""
    held = sorted(open_bundle(tuned / "models").skus()[1])
    assert skumatch("calibrate", *FAR, *CPU).code == 0
    for sku in held:
        assert skumatch("gallery", "remove", sku).code == 0
    known = answers(skumatch("match", "shop/test", "--topk", "1", *CPU).out)
    unknown = [line for line in known if Path(line["crop"]).parent.name in held]
    rates = [
        np.mean([line["decision"] == "accept" for line in lines])
        for lines in (unknown, [line for line in known if line not in unknown])
    ]
    assert len(unknown) == 18 and rates[0] <= 0.25 and rates[1] > rates[0] + 0.3


def test_an_untouched_encoder_becomes_a_model_that_keeps_the_rule(skumatch: Skumatch, plain: Path) -> None:
    assert skumatch("match", "shop/test/sku-00", *CPU).code == 0  # builds the gallery with the encoder by name
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0, ran.err
    assert "SKUs removed from the gallery; the encoder is untouched" in ran.out
    assert open_bundle(plain / "models").document["reason"] == "untouched encoder"
    after = skumatch("match", "shop/test/sku-00", "--topk", "1", *CPU)
    assert after.code == 0 and "building" not in after.err
    assert all(line["probability"] for line in answers(after.out))


def test_without_held_out_skus_it_says_that_the_figures_flatter(skumatch: Skumatch, tuned: Path) -> None:
    assert skumatch("finetune", "--epochs", "1", *CPU).code == 0
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0, ran.err
    assert "which the model was trained on: the true false accept rate is higher" in ran.out
    assert "70 crops of 14 known SKUs and 70 crops of 14 unknown ones" in ran.out


def test_without_a_split_val_the_pictures_kept_aside_ask(skumatch: Skumatch, plain: Path) -> None:
    shutil.rmtree(plain / "shop" / "val")
    for sku in range(14):
        for view in range(20, 36):
            draw(plain / "shop" / "train" / f"sku-{sku:02}", sku, view)
    recipe = "epochs = 1\nhead_epochs = 0\nembedding = 16\n"
    (plain / "mine.toml").write_text(recipe)
    assert skumatch("finetune", "--recipe", "mine.toml", *CPU).code == 0
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0, ran.err
    assert "28 crops of 14 known SKUs" in ran.out  # a tenth of 24, never trained on


def test_the_same_seed_gives_the_same_bytes(skumatch: Skumatch, tuned: Path) -> None:
    found = []
    for seed in ("3", "3", "4"):
        assert skumatch("calibrate", *FAR, "--seed", seed, *CPU).code == 0
        found.append((open_bundle(tuned / "models").folder / FILE).read_bytes())
    assert found[0] == found[1] != found[2]
    assert artefact.versions(tuned / "models") == [f"v00000{n}" for n in range(1, 5)]


def test_json_is_the_rule_itself(skumatch: Skumatch, tuned: Path) -> None:
    ran = skumatch("calibrate", *FAR, "--json", *CPU)
    assert ran.code == 0 and Calibration.read(ran.out.encode()) == rule_in(tuned / "models")
    assert set(json.loads(ran.out)["facts"]) >= {"unknowns", "target_far", "left_out_far", "ece"}


def test_the_split_test_is_never_opened(skumatch: Skumatch, tuned: Path) -> None:
    assert skumatch("calibrate", *FAR, *CPU).code == 0
    before = rule_in(tuned / "models")
    shutil.rmtree(tuned / "eval")  # the vectors that were kept
    for number, path in enumerate(sorted((tuned / "shop" / "test").rglob("*.png"))):
        path.unlink()
        if number % 2:
            path.write_bytes(b"poison")
        else:
            path.symlink_to(tuned / "nowhere.png")
    assert any(row.split == "test" for row in open_dataset(tuned / "shop"))
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0 and "unreadable" not in ran.err
    assert rule_in(tuned / "models") == before


def test_an_unreadable_picture_is_reported(skumatch: Skumatch, tuned: Path) -> None:
    trained = sorted(open_bundle(tuned / "models").skus()[0])
    (tuned / "shop" / "val" / trained[0] / "9.png").write_bytes(b"broken")
    ran = skumatch("calibrate", *FAR, *CPU)
    assert ran.code == 0 and "39 crops of 8 known SKUs" in ran.out
    assert f"unreadable: {Path('shop/val') / trained[0] / '9.png'}" in ran.err.replace(f"{tuned}/", "")
    assert "1 picture could not be read and was left out" in ran.err


def test_a_rate_that_so_few_crops_cannot_show_is_said(skumatch: Skumatch, tuned: Path) -> None:
    ran = skumatch("calibrate", "--target-far", "0.01", *CPU)
    assert ran.code == 0, ran.err
    assert "no answer will be accepted: 78 unknown crops cannot show a rate below 1.3 %" in ran.err
    matched = skumatch("match", "shop/train", "--topk", "1", *CPU)
    assert "accept" not in {line["decision"] for line in answers(matched.out)}


def test_an_interrupted_fine_tune_keeps_to_its_held_out_skus(skumatch: Skumatch, tuned: Path) -> None:
    workspace = Workspace.read(tuned)
    recipe = load_recipe("quick", hold_out=0.2, epochs=2)
    job = Job(workspace.open_dataset(), workspace.source(), recipe, workspace.models, "cpu")
    assert finetune(job, should_stop=lambda: True).interrupted
    ran = skumatch("finetune", "--resume", "--hold-out", "0.4", *CPU)
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert "the interrupted run has hold_out 0.2, not 0.4" in ran.errors[0]


def test_an_older_version_does_not_take_the_place_of_the_current_one(skumatch: Skumatch, tuned: Path) -> None:
    first = open_bundle(tuned / "models")
    assert skumatch("finetune", "--epochs", "1", "--seed", "9", *CPU).code == 0
    ran = skumatch("calibrate", "--model", "models/v000001", *FAR, *CPU)
    assert ran.code == 0, ran.err
    assert "--model models/v000003" in ran.out
    assert artefact.current(tuned / "models") == tuned / "models" / "v000002"
    assert open_bundle(tuned / "models" / "v000003").spec.digest == first.spec.digest
    assert rule_in(tuned / "models" / "v000003").spec_digest == first.spec.digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target-far", "0"], "false accept rate 0.0 is out of range"),
        (["--target-far", "1"], "false accept rate 1.0 is out of range"),
        (["--target-far", "nan"], "false accept rate nan is out of range"),
        (["--seed", "-1"], "--seed"),
        (["--where", "sku=sku-00"], "SKU"),
        (["--where", "colour=red"], "no column 'colour'"),
        (["--where", "split=test"], "no split 'train' or 'gallery'"),
        (["--model", "nowhere"], "nowhere is no model folder"),
        (["--model", "timm:test_efficientnet"], "is no model folder"),
        (["--model", "shop"], "shop holds no model"),
        (["--model", "copied"], "copied is not a version in a model store"),
    ],
)
def test_a_wrong_argument_is_one_line(skumatch: Skumatch, tuned: Path, arguments: list[str], said: str) -> None:
    shutil.copytree("models/v000001", "copied")
    ran = skumatch("calibrate", *arguments, *CPU)
    assert (ran.code, len(ran.errors)) == (2, 1), ran.err
    assert said in ran.errors[0] and "Traceback" not in ran.err
    assert artefact.versions(tuned / "models") == ["v000001"] and rule_free(tuned)


def rule_free(workspace: Path) -> bool:
    return open_bundle(workspace / "models").file(FILE) is None


def test_too_few_skus_leave_no_model(skumatch: Skumatch, plain: Path) -> None:
    for split in COUNTS:
        for sku in range(1, 14):
            shutil.rmtree(plain / "shop" / split / f"sku-{sku:02}")
    ran = skumatch("calibrate", *FAR, *CPU)
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert "give at least two SKUs" in ran.errors[0]
    assert not (plain / "models").exists()


def test_held_out_skus_alone_show_nothing_that_is_known(skumatch: Skumatch, tuned: Path) -> None:
    trained, held = open_bundle(tuned / "models").skus()
    ran = skumatch("calibrate", *FAR, *CPU, "--where", f"sku={min(held)}")
    assert ran.code == 2 and "no crop in " in ran.errors[0] and "that the model knows" in ran.errors[0]
    ran = skumatch("calibrate", *FAR, *CPU, "--where", f"sku={min(trained)}")
    assert ran.code == 2 and "too few SKUs" in ran.errors[0]


def test_outside_a_workspace_it_says_what_to_do(
    skumatch: Skumatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = skumatch("calibrate")
    assert ran.code == 2 and "skumatch init" in ran.errors[0]


def test_a_broken_calibration_is_one_error(skumatch: Skumatch, tuned: Path) -> None:
    from skumatch.model import with_files

    with_files(open_bundle(tuned / "models"), {FILE: b'{"format": 1}'})
    ran = skumatch("match", "shop/test", *CPU)
    assert (ran.code, len(ran.errors), ran.out) == (2, 1, "")
    assert "calibration.json is broken" in ran.errors[0] and "run `skumatch calibrate` again" in ran.errors[0]
    assert skumatch("calibrate", *FAR, *CPU).code == 0
    assert skumatch("match", "shop/test", *CPU).code == 0


def test_an_interrupted_match_does_not_go_on_under_another_calibration(
    skumatch: Skumatch, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file decided by one rule and half by another would look like one answer."""
    crops = [str(path) for path in sorted(Path("shop/test").rglob("*.png"))] * 4

    def match(*arguments: str, then: str = "") -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*crops, then])))
        return skumatch("match", "-", "--topk", "1", "--out", "all.csv", *CPU, *arguments)

    changes: tuple[tuple[str, ...], ...] = (FAR, ("--target-far", "0.2"))
    for change in changes:  # from no calibration to one, and from one to another
        stopped = match(then="nowhere.png")
        assert stopped.code == 2 and "the same command with --resume goes on" in stopped.err
        assert skumatch("calibrate", *change, *CPU).code == 0
        ran = match("--resume")
        assert (ran.code, len(ran.errors)) == (2, 1) and not Path("all.csv").exists()
        assert "differ from the interrupted match of all.csv" in ran.errors[0]
    assert match(then="nowhere.png").code == 2
    done = match("--resume")
    assert done.code == 0, done.err
    lines = answers(Path("all.csv").read_text())
    assert [line["crop"] for line in lines] == crops and all(line["probability"] for line in lines)
