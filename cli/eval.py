"""``skumatch eval``: how often the nearest SKU is the right one, and what else a store will ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import (
    Device,
    ModelOption,
    PrecisionOption,
    RuntimeOption,
    Where,
    engine_of,
    here,
    model_of,
    note,
    pipeline_of,
    progress_bar,
)
from skumatch.cli.eval_show import show, show_comparison

if TYPE_CHECKING:
    from skumatch.encoder import Encoder
    from skumatch.eval.evaluate import Evaluation, Plan, Question
    from skumatch.eval.leaks import Leak
    from skumatch.eval.pool import Pool
    from skumatch.workspace import Workspace


def evaluate(
    topk: Annotated[int, typer.Option(min=1, help="Largest k; 1, 3 and 5 are always reported.")] = 5,
    model: ModelOption = None,
    split: Annotated[str, typer.Option(help="Queries: val or test.")] = "test",
    where: Where = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="closed, k-shot, held-out, catalogue, open-set; repeatable.", show_default="all"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A published split; see docs/data-formats.md.")] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Evaluate the untouched encoder too.")] = False,
    baselines: Annotated[str | None, typer.Option(help="Published models beside it: clip,fashion-clip.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two models on the same queries: is B better?")
    ] = None,
    target_far: Annotated[float, typer.Option(help="False accept rate asked for in the open set.")] = 0.01,
    robustness: Annotated[bool, typer.Option("--robustness", help="Blur, dark, JPEG ...: 30 more passes.")] = False,
    lookalikes: Annotated[bool, typer.Option("--lookalikes", help="Page with the regions that tell apart.")] = False,
    drop_leaks: Annotated[bool, typer.Option("--drop-leaks", help="Leave near-copies of views out too.")] = False,
    max_leaks: Annotated[int | None, typer.Option(min=0, help="Exit with 1 when more queries leaked.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="eval/ here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json on stdout.")] = False,
    device: Device = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Match one split against the gallery split: top-k with intervals, all protocols that the data allows, a report."""
    from skumatch.dataset import parse_filters
    from skumatch.encoder import open_encoder
    from skumatch.eval.baselines import open_baselines
    from skumatch.eval.evaluate import NAMES, Question

    workspace = here()
    question = Question(split, tuple(protocol or NAMES), preset, target_far, seed)
    filters = parse_filters(where or [])
    job = Job(workspace, question, topk, out or workspace.folder / "eval", filters)
    if compare is not None:
        show_comparison(job.compare(compare, device), as_json)
        return
    names = [name for name in (baselines or "").split(",") if name]
    others, lines = open_baselines(names, device or workspace.runtime.device) if names else ([], [])
    for line in lines:
        note(line)
    extras = Extras(robustness, lookalikes, drop_leaks)
    untouched = open_encoder(workspace.source(), device or workspace.runtime.device) if baseline else None
    encoder = engine_of(workspace, model, device, (runtime, precision))
    document = job.run(encoder, model_of(workspace, model), untouched, dict(others), extras)
    if as_json:
        typer.echo(json.dumps(document, indent=1))
    else:
        show(document)
        typer.echo(f"wrote {job.out / 'report.html'}, eval.json, predictions.csv")
    if max_leaks is not None and document["leaks"] + document["near_leaks"] > max_leaks:
        found = document["leaks"] + document["near_leaks"]
        note(f"gate failed: {found} leaked queries, at most {max_leaks} allowed")
        raise typer.Exit(1)


@dataclass(frozen=True)
class Extras:
    """What is done beside the protocols."""

    robustness: bool = False
    lookalikes: bool = False
    drop_leaks: bool = False
    near_copies: bool = True  # looked for among the queries; the demo knows how its store was rendered


@dataclass(frozen=True)
class Job:
    """An evaluation in a workspace; results and kept vectors go to ``out``."""

    workspace: Workspace
    question: Question
    topk: int
    out: Path
    filters: dict[str, str]

    def run(
        self,
        encoder: Encoder,
        model: Path | None,
        untouched: Encoder | None = None,
        others: dict[str, Encoder] | None = None,
        extras: Extras | None = None,
    ) -> dict[str, Any]:
        """Evaluate ``encoder`` (from the bundle ``model``, if it is one), the untouched one and others beside it;
        write everything and return eval.json."""
        from skumatch.eval.corrupt import examples
        from skumatch.eval.evaluate import evaluate, judged
        from skumatch.eval.pool import asked_pool
        from skumatch.eval.report import pictures_of, write
        from skumatch.eval.report_page import write_report
        from skumatch.images import read_image
        from skumatch.search import search_of

        extras = extras or Extras()
        plan, looked_up = self._plan(model), search_of(model)
        pool = self._embed(plan, encoder, "embedding")
        pool = asked_pool(pool, plan.rows, encoder, looked_up.views, pipeline_of(self.workspace))
        leaks = self._leaks(plan, pool) if extras.near_copies else []
        if extras.drop_leaks:
            plan = plan.without({leak.query.path for leak in leaks})
        question = replace(self.question, technique=looked_up.technique)
        found = evaluate(plan, question, pool, encoder.spec, self.topk)
        document = {**found.document, "split": self.question.split, "where": self.filters}
        document.update(near_leaks=len(leaks), dropped_leaks=extras.drop_leaks, settings=self.workspace.resolved())
        document["search"] = {"technique": looked_up.technique.to_json(), "views": looked_up.views}
        if untouched is not None:
            document["baseline"] = self._beside(plan, untouched, "embedding (untouched)")
            _pair(document["protocols"], document["baseline"]["protocols"])
        if others:
            document["baselines"] = {n: self._beside(plan, e, f"embedding ({n})") for n, e in others.items()}
        rule = _calibration(model)
        if rule is not None:
            document["calibration"] = judged(rule, found.answers)
        if extras.robustness:
            document["robustness"] = self._robustness(found, encoder)
        document["lookalikes"] = self._lookalikes(found, encoder, extras.lookalikes)
        write(self.out, document, found.answers)
        shown = [(leak.query.path, leak.view.path, leak.kind) for leak in leaks]
        copies = [(row.path, Path(view), "bytes") for row, view in plan.leaks]
        pictures = pictures_of(found.answers, [*copies, *shown])
        if extras.robustness:
            pictures = replace(pictures, corrupted=examples(read_image(found.answers.queries.rows[0].path)))
        write_report(self.out / "report.html", document, pictures)
        return document

    def compare(self, models: tuple[str, str], device: str | None) -> dict[str, Any]:
        """Evaluate two models, each with its own search, on the headline's queries; say which is better, or that no
        difference is shown."""
        from skumatch.encoder import open_encoder
        from skumatch.eval.evaluate import plan
        from skumatch.eval.pool import asked_pool
        from skumatch.eval.report import compare
        from skumatch.eval.retrieval import retrieve
        from skumatch.search import search_of

        dataset = self.workspace.open_dataset(self.filters)
        what = plan(dataset, _only_closed(self.question))
        encoders = [open_encoder(name, device or self.workspace.runtime.device) for name in models]
        answers = []
        for name, encoder in zip(models, encoders, strict=True):
            how, pool = search_of(name), self._embed(what, encoder, f"embedding ({name})")
            pool = asked_pool(pool, what.rows, encoder, how.views, pipeline_of(self.workspace))
            gallery, queries = pool.views(what.main.gallery), pool.queries(what.main.queries)
            answers.append(retrieve(gallery, queries, max(5, self.topk), how.technique))
        found = compare(*answers)
        top1 = [float((one.nearest.skus[:, 0] == one.truth).mean()) for one in answers]
        ends = {"ci95": [found.low, found.high]}
        return {"a": models[0], "b": models[1], "top1_a": top1[0], "top1_b": top1[1], **vars(found), **ends}

    def _plan(self, model: Path | None) -> Plan:
        from skumatch.eval.evaluate import plan
        from skumatch.model import open_bundle

        dataset = self.workspace.open_dataset(self.filters)
        trained, held = open_bundle(model).skus() if model is not None else (frozenset(), frozenset())
        return plan(dataset, self.question, held, trained)

    def _embed(self, plan: Plan, encoder: Encoder, what: str) -> Pool:
        from skumatch.eval.pool import embed_pool, missing

        folder = self.out / "vectors"
        total = missing(plan.rows, encoder, folder)
        with progress_bar(what, total) as progress:
            return embed_pool(plan.rows, encoder, pipeline_of(self.workspace), folder, progress)

    def _beside(self, plan: Plan, encoder: Encoder, what: str) -> dict[str, Any]:
        from skumatch.eval.evaluate import evaluate

        pool = self._embed(plan, encoder, what)
        return evaluate(plan, self.question, pool, encoder.spec, self.topk).document

    def _leaks(self, plan: Plan, pool: Pool) -> list[Leak]:
        from skumatch.eval.leaks import find_leaks
        from skumatch.eval.leaks_page import write_leaks_page

        if plan.main.leave_one_out:
            return []
        gallery, queries = pool.views(plan.main.gallery), pool.views(plan.main.queries)
        pipeline = pipeline_of(self.workspace)
        with progress_bar("looking for leaks", len(gallery) + len(queries)) as progress:
            found = find_leaks(gallery, queries, pipeline.workers, pipeline.max_pixels, progress)
        page = self.out / "leaks.html"
        if found:
            self.out.mkdir(parents=True, exist_ok=True)
            write_leaks_page(page, found, {"queries": f"{len(queries):,}", "reference views": f"{len(gallery):,}"})
        else:
            page.unlink(missing_ok=True)
        return found

    def _robustness(self, found: Evaluation, encoder: Encoder) -> dict[str, Any]:
        from skumatch.eval.robustness import Corruptions, RobustnessState, robustness

        how = Corruptions(seed=self.question.seed, pipeline=pipeline_of(self.workspace))
        rows = found.answers.queries.rows
        self.out.mkdir(parents=True, exist_ok=True)
        state = RobustnessState(self.out / "robustness.state.json")
        with progress_bar("robustness", len(how.sample(rows)) * (1 + len(how.cells()))) as progress:
            return robustness(found.answers.gallery, rows, encoder, how, state, progress).to_json()

    def _lookalikes(self, found: Evaluation, encoder: Encoder, page: bool) -> list[dict[str, Any]]:
        """Write lookalikes.csv, with ``page`` the page too, and return the groups for eval.json."""
        from skumatch.cli.lookalikes import write_all

        return write_all(self.out, found, encoder, page)


def _only_closed(question: Question) -> Question:
    return replace(question, names=("closed",))


def _pair(protocols: Sequence[dict[str, Any]], untouched: Sequence[dict[str, Any]]) -> None:
    """Put the untouched encoder's figures beside the model's, line by line."""
    other = {one["name"]: one for one in untouched}
    for one in protocols:
        if one["name"] in other:
            one["baseline"] = {key: other[one["name"]][key] for key in ("topk", "ci95", "map_at_r")}


def _calibration(model: Path | None) -> Any:
    from skumatch.match import calibration_of

    return calibration_of(model) if model is not None else None
