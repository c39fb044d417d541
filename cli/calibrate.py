"""``skumatch calibrate``: fit accept, review and unknown to a false accept rate, and keep the rule in the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import (
    Device,
    ModelOption,
    Where,
    encoder_of,
    here,
    model_of,
    note,
    pipeline_of,
    progress_bar,
    report_failures,
)

if TYPE_CHECKING:
    from skumatch.calibration import Calibration
    from skumatch.dataset import Dataset
    from skumatch.eval.unknowns import Roles
    from skumatch.model import Bundle
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.workspace import Workspace


def calibrate(
    target_far: Annotated[float, typer.Option(help="Share of unknown crops that may be accepted.")] = 0.01,
    model: ModelOption = None,
    where: Where = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration on stdout.")] = False,
    device: Device = None,
) -> None:
    """Fit the decision rule on validation crops and on SKUs that the model was not trained on; never on the split test.

    The rule goes into a new version of the model, which galleries built with it still fit. `skumatch match` then fills
    decision and probability.
    """
    from skumatch import artefact
    from skumatch.calibration import FILE
    from skumatch.dataset import parse_filters
    from skumatch.errors import ConfigError
    from skumatch.model import open_bundle, with_files

    if not 0 < target_far < 1:
        raise ConfigError(f"target false accept rate {target_far} is out of range", "choose 0.001 to 0.5")
    workspace = here()
    dataset = workspace.open_dataset(parse_filters(where or []))
    bundle = bundle_of(workspace, model)
    encoder = encoder_of(workspace, model, device)
    rule = fitted(workspace, dataset, encoder, bundle, (target_far, seed))
    if bundle is None:
        bundle = open_bundle(publish_untouched(workspace, encoder))
    made = with_files(bundle, {FILE: rule.to_bytes()})
    if as_json:
        typer.echo(rule.to_bytes().decode().rstrip())
        return
    show(rule)
    current = artefact.current(made.parent) == made
    typer.echo(f"wrote {made} - next: skumatch match CROPS" + ("" if current else f" --model {made}"))


def bundle_of(workspace: Workspace, model: str | None) -> Bundle | None:
    """Return the bundle that a new version can be made of; None for the workspace's untouched encoder.

    Raises ConfigError for another encoder by name, which would take the place of the workspace's model, and ModelError
    for a bundle outside a store.
    """
    from skumatch.errors import ConfigError
    from skumatch.model import open_bundle, store_of

    folder = model_of(workspace, model)
    if folder is None:
        if model is not None:
            raise ConfigError(f"{model} is no model folder, so nothing can be kept in it", "leave out --model")
        return None
    bundle = open_bundle(folder)
    store_of(bundle)
    return bundle


def fitted(
    workspace: Workspace, dataset: Dataset, encoder: TorchEncoder, bundle: Bundle | None, how: tuple[float, int]
) -> Calibration:
    """Return the rule for (target false accept rate, seed). Raises DataError where there is too little to fit on."""
    from skumatch.eval import unknowns
    from skumatch.eval.calibrate import fit
    from skumatch.eval.pool import asked_pool, embed_pool, missing
    from skumatch.search import search_of

    trained, held = bundle.skus() if bundle is not None else (frozenset(), frozenset())
    held &= set(dataset.skus)
    looked_up = search_of(bundle.folder if bundle is not None else None)
    roles = roles_of(dataset, bundle, trained, held)
    rows = (*roles.gallery, *roles.queries, *roles.unknown)
    kept = workspace.folder / "eval" / "vectors"
    with progress_bar("embedding", missing(rows, encoder, kept)) as progress:
        pool = embed_pool(rows, encoder, pipeline_of(workspace), kept, progress)
    report_failures(list(pool.problems), "picture")
    pool = asked_pool(pool, (*roles.queries, *roles.unknown), encoder, looked_up.views, pipeline_of(workspace))
    gallery, queries = pool.views(roles.gallery), pool.queries(roles.queries)
    target, seed = how
    known, typical = unknowns.known_case(gallery, queries, None, looked_up.technique)
    if roles.unknown:
        unknown = unknowns.known_case(gallery, pool.queries(roles.unknown), typical, looked_up.technique)[0]
    else:
        unknown = unknowns.removed_case(gallery, queries, typical, looked_up.technique, seed)
    rule = fit(known, unknown, target, encoder.spec.digest, typical, seed)
    tuned = bundle is not None and "recipe" in bundle.document
    return replace(rule, facts={**rule.facts, "unknowns": _unknowns(bool(roles.unknown), tuned)})


def roles_of(dataset: Dataset, bundle: Bundle | None, trained: frozenset[str], held: frozenset[str]) -> Roles:
    """Return the rows to calibrate with; where the data has no split val, the known crops are the training pictures
    that fine-tuning kept aside to validate with."""
    from skumatch.eval.unknowns import Roles, rows_for_calibration

    roles = rows_for_calibration(dataset, trained, held)
    recipe = bundle.document.get("recipe") if bundle is not None else None
    if recipe is None or "val" in dataset.splits:
        return roles
    from skumatch.finetune.data import split_rows
    from skumatch.finetune.recipe import recipe_from

    aside = split_rows(dataset, recipe_from(recipe)).queries
    paths = {row.path for row in aside}
    gallery = tuple(row for row in roles.gallery if row.path not in paths)
    known = {row.sku for row in gallery}
    queries = tuple(row for row in aside if row.sku in known)
    return Roles(gallery, queries, roles.unknown) if queries else roles


def _unknowns(held: bool, trained: bool) -> str:
    if held:
        return "SKUs that the model was not trained on"
    if trained:
        return "SKUs removed from the gallery, which the model was trained on: the true false accept rate is higher"
    return "SKUs removed from the gallery; the encoder is untouched"


def publish_untouched(workspace: Workspace, encoder: TorchEncoder) -> Path:
    """Publish an encoder that was not fine-tuned as a model of the workspace, so that it can keep a calibration."""
    from skumatch.model import Contents, save_bundle

    tower = encoder.tower
    contents = Contents({"reason": "untouched encoder"}, tower.model.state_dict())
    return save_bundle(workspace.models, tower, None, encoder.spec, contents)


def show(rule: Calibration) -> None:
    """Print what was fitted on what, and what to expect."""
    facts: dict[str, Any] = rule.facts
    typer.echo(
        f"fitted on {facts['known_queries']:,} crops of {facts['known_skus']:,} known SKUs and "
        f"{facts['unknown_crops']:,} crops of {facts['unknown_skus']:,} unknown ones ({facts['unknowns']})"
    )
    typer.echo(
        f"accept from probability {rule.accept:.3f}, unknown below {rule.unknown:.3f}: "
        f"{100 * facts['fitted_accepted']:.1f} % of known crops are accepted; calibration error "
        f"{100 * facts['ece']:.1f} %"
    )
    twin = facts["worst_unknown"]
    typer.echo(
        f"false accept rate asked for {100 * facts['target_far']:.1f} %, on SKUs that the threshold was not set on "
        f"{100 * facts['left_out_far']:.1f} %; most often accepted: {twin['sku']}, {100 * twin['far']:.1f} %"
    )
    if rule.accept > 1:
        note(f"no answer will be accepted: {_why_nothing(facts)}")


def _why_nothing(facts: dict[str, Any]) -> str:
    crops, target = facts["unknown_crops"], facts["target_far"]
    if target * (crops + 1) < 1:
        least = f"{100 / (crops + 1):.1f} %"
        return f"{crops:,} unknown crops cannot show a rate below {least} - hold out more SKUs, or give --target-far"
    return "known and unknown crops look alike to this model - fine-tune it first, or give a higher --target-far"
