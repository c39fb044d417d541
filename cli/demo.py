"""``skumatch demo``: the whole story offline, on a synthetic store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import note

if TYPE_CHECKING:
    from skumatch.calibration import Calibration
    from skumatch.encoder import Encoder
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.workspace import Workspace

MODEL = "open_clip:skumatch-tiny-96"
SKUS, VIEWS, TEST_VIEWS = 60, 60, 10
FALSE_ACCEPTS = 0.05


def demo(
    out: Annotated[Path, typer.Option(help="New or empty folder.")] = Path("skumatch-demo"),
    seed: Annotated[int, typer.Option(help="Same seed, same figures.")] = 0,
) -> None:
    """Render a store, fine-tune a small network from nothing, evaluate before and after, match crops. Offline."""
    from skumatch.backend import backend
    from skumatch.cli.finetune import train
    from skumatch.cli.match import build_from
    from skumatch.cli.match import run as match_crops
    from skumatch.crops import expand
    from skumatch.encoder import open_encoder
    from skumatch.finetune.recipe import load_recipe
    from skumatch.finetune.run import Job
    from skumatch.match import Matcher
    from skumatch.resumable import ResumableFile
    from skumatch.workspace import DataConfig, ModelConfig, Workspace

    _require_empty(out)
    note(f"1/6 rendering a store of {SKUS} SKUs")
    _render(out / "store", seed)
    workspace = Workspace(out.absolute(), DataConfig("store", "rp2k"), ModelConfig(MODEL, random_init=True))
    workspace.write()
    note("2/6 evaluating the untouched network (random weights)")
    before = _evaluate(workspace, open_encoder(workspace.source()), out / "before")
    note("3/6 fine-tuning it on the training crops")
    recipe = load_recipe("scratch", seed=seed)
    train(Job(workspace.open_dataset(), workspace.source(), recipe, workspace.models))
    note("4/6 evaluating the fine-tuned network on crops it has not seen")
    encoder = open_encoder(workspace.models)
    after = _evaluate(workspace, encoder, out / "after")
    note("5/6 calibrating decisions: accept, review, unknown")
    rule = _calibrate(workspace, encoder)
    note("6/6 matching a folder of crops")
    _pick_crops(out)
    gallery = build_from(workspace, encoder, backend(workspace.gallery_place), {})
    matcher = Matcher(encoder, gallery, calibration=rule)
    result = ResumableFile(out / "matches.csv", {})
    match_crops(matcher, expand([str(out / "crops")]), SKUS, 5, result, out / "index.html")
    _story(out, before, after)


def _require_empty(out: Path) -> None:
    from skumatch.errors import ConfigError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty", "remove it, or choose another with --out DIR")


def _render(folder: Path, seed: int) -> None:
    from skumatch.synth import write_store

    write_store(folder, SKUS, VIEWS, TEST_VIEWS, seed)


def _evaluate(workspace: Workspace, encoder: Encoder, out: Path) -> float:
    """Evaluate on the test crops, show the table and return top-1."""
    from skumatch.cli.eval import Extras, Job
    from skumatch.cli.eval_show import show
    from skumatch.eval.evaluate import Question

    document = Job(workspace, Question(names=("closed",)), 5, out, {}).run(
        encoder, None, extras=Extras(near_copies=False)
    )
    show(document)
    return float(document["topk"]["1"])


def _calibrate(workspace: Workspace, encoder: TorchEncoder) -> Calibration:
    """Fit decisions to a false accept rate of 5 % and keep them in the model."""
    from skumatch.calibration import FILE
    from skumatch.cli.calibrate import fitted, show
    from skumatch.model import open_bundle, with_files

    bundle = open_bundle(workspace.models)
    rule = fitted(workspace, workspace.open_dataset(), encoder, bundle, (FALSE_ACCEPTS, 0))
    with_files(bundle, {FILE: rule.to_bytes()})
    show(rule)
    return rule


def _pick_crops(out: Path) -> None:
    """Copy one test crop of each SKU into ``crops``, as if they came from a store visit."""
    (out / "crops").mkdir()
    for sku in sorted((out / "store" / "test").iterdir()):
        first = min(sku.iterdir())
        shutil.copy(first, out / "crops" / f"{sku.name}{first.suffix}")


def _story(out: Path, before: float, after: float) -> None:
    typer.echo(f"\ntop-1 on fresh crops: {100 * before:.1f} % before, {100 * after:.1f} % after fine-tuning")
    typer.echo(
        f"open {out / 'index.html'}: each crop beside its best reference views; answers in {out / 'matches.csv'}"
    )
    typer.echo("\nnow with your own pictures, one folder per SKU:")
    for command in ("init --data PATH", "finetune", "eval", "calibrate", "match CROPS/"):
        typer.echo(f"  skumatch {command}")
