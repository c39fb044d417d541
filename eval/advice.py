"""What to do next, derived from the figures by stated rules: each piece of advice names the figure that made it speak.

The limits below are rules of thumb, not results: they say when a figure is worth acting on. Where a figure is missing,
its rule is silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from skumatch.eval import report_words as words
from skumatch.eval.report_words import Figures, percent, points, real
from skumatch.words import counted

WIDE = 0.10  # width of the top-1 interval from which more queries are asked for
SPARSE = 3  # queries of a SKU from which "none was right" points at its labels or views
MIXED = 5  # wrong answers between two SKUs, both directions together, from which the pair is named
RISING = 0.02  # gain of the last k-shot step from which more views pay
GAP = 0.10  # loss against the closed protocol, or under the mildest corruption, from which something is to be done
LISTED = 0.05  # gain from top-1 to the largest k from which a list of answers is worth showing
BOASTING = 0.05  # stated probability above the share that came true, on average, from which it misleads
FEW_ACCEPTED = 0.5  # share of known products accepted below which most work stays with people
REMEDIES = {
    "blur": "raise `blur` under [augment] in the recipe, and have crops retaken that a person cannot read either",
    "darkness": "raise `colour` under [augment] in the recipe, and enrol views taken in bad light",
    "jpeg": "raise `jpeg` under [augment] in the recipe, and send crops at a higher JPEG quality",
    "low-resolution": "lower `min_scale` under [augment] in the recipe, and cut crops from the full-size photo",
    "occlusion": "raise `occlusion` under [augment] in the recipe",
    "rotation": "raise `rotation` under [augment] in the recipe, and turn tilted crops upright",
}


@dataclass(frozen=True)
class Advice:
    """``action``: what to do; ``figure``: the measured figure, and the limit it crossed."""

    action: str
    figure: str


def advise(document: Figures) -> list[Advice]:
    """Return the advice that the figures of eval.json give, the most pressing first."""
    return [advice for rule in RULES for advice in rule(document)]


def _data(document: Figures) -> Iterator[Advice]:
    leaks, unreadable = document.get("leaks") or 0, document.get("unreadable") or 0
    if leaks:
        yield Advice(
            "Take the copies out of the splits; `skumatch eval --drop-leaks` keeps near copies out of the figures.",
            f"{counted(leaks, 'query')} found to be a copy of a gallery view (limit: 0).",
        )
    if unreadable:
        yield Advice(
            "Replace the pictures that cannot be read, or take them out of the data.",
            f"{counted(unreadable, 'picture')} could not be read (limit: 0).",
        )
    missing = document.get("queries_without_gallery_view") or 0
    if missing:
        yield Advice(
            "Enrol at least one view of every SKU with `skumatch gallery add`: without one it can never be found.",
            f"{counted(missing, 'query')} without any gallery view of the SKU (limit: 0).",
        )


def _labels(document: Figures) -> Iterator[Advice]:
    never = [(sku, queries) for sku, queries, value in words.per_sku(document) if value == 0 and queries >= SPARSE]
    if never:
        first = ", ".join(f"{sku} (0 of {queries})" for sku, queries in never[:3])
        yield Advice(
            "Check the labels and the views of the SKUs that are never right: `skumatch data audit`.",
            f"{counted(len(never), 'SKU')} without a single right answer among {SPARSE} or more queries: {first}"
            + (", ..." if len(never) > 3 else "."),
        )


def _pairs(document: Figures) -> Iterator[Advice]:
    wrong: Counter[tuple[str, str]] = Counter()
    for one in document.get("confused") or []:
        first, second = sorted((str(one["shown"]), str(one["answered"])))
        wrong[first, second] += int(one["queries"])
    mixed = [(pair, count) for pair, count in wrong.most_common() if count >= MIXED]
    if mixed:
        listed = "; ".join(f"{a} and {b}: {count}" for (a, b), count in mixed[:3])
        yield Advice(
            "Look at the confusions. If two names are one product, merge them (`skumatch data audit` finds more); if "
            "not, give the look-alikes CSV to `skumatch finetune`, so that they are trained against each other.",
            f"{counted(len(mixed), 'pair')} of SKUs with {MIXED} or more wrong answers between them: {listed}"
            + ("; ..." if len(mixed) > 3 else "."),
        )


def _compared(document: Figures) -> Iterator[Advice]:
    found = document.get("compare")
    ends = words.bounds(found, k=None) if found else None
    if not found or not ends:
        return
    said = f"{found['b']} against {found['a']}: {points(found.get('difference'))}, 95 % interval "
    said += f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"
    if ends[1] < 0:
        yield Advice(f"Do not serve {found['b']}: {found['a']} answers better.", f"{said}: all of it below 0.")
    elif ends[0] <= 0:
        yield Advice(
            f"Do not call {found['b']} better yet: more queries, of more SKUs, would tell.",
            f"{said}: 0 lies inside.",
        )


def _wide(document: Figures) -> Iterator[Advice]:
    ends = words.bounds(document)
    if ends and ends[1] - ends[0] >= WIDE:
        width = 100 * (ends[1] - ends[0])
        yield Advice(
            "Add queries of more SKUs: four times as many SKUs halve the interval; more queries of the same SKUs "
            "hardly narrow it.",
            f"The 95 % interval of top-1 is {width:.1f} points wide (limit: {100 * WIDE:.0f}).",
        )


def _new_skus(document: Figures) -> Iterator[Advice]:
    closed, held = words.top(document), words.protocol(document, "held-out")
    new = words.top(held) if held else None
    if held is None or new is None or closed is None:
        return
    untouched = words.top(words.untouched(document, held))
    if untouched is not None and untouched > new:
        yield Advice(
            "Match new SKUs with the untouched encoder, or fine-tune for fewer epochs: training made it worse on them.",
            f"On SKUs never trained on: {percent(new)}, the untouched encoder {percent(untouched)} (limit: no loss).",
        )
    elif closed - new >= GAP:
        yield Advice(
            "Train on more SKUs, and give a new SKU several views before relying on it.",
            f"On SKUs never trained on top-1 is {percent(new)}, {points(new - closed)} against {percent(closed)} on "
            f"all (limit: {100 * GAP:.0f} points).",
        )


def _views(document: Figures) -> Iterator[Advice]:
    curve = words.shots(document)
    if len(curve) > 1:
        (before, lower), (after, upper) = curve[-2:]
        gain = (words.top(upper) or 0.0) - (words.top(lower) or 0.0)
        if gain >= RISING:
            yield Advice(
                "Add views, first to the SKUs with the fewest: `skumatch gallery add`.",
                f"From {before} to {counted(after, 'view')} per SKU top-1 still rises by {points(gain)} "
                f"(limit: {100 * RISING:.0f}).",
            )
    closed, catalogue = words.top(document), words.protocol(document, "catalogue")
    poor = words.top(catalogue) if catalogue else None
    if closed is not None and poor is not None and closed - poor >= GAP:
        yield Advice(
            "Add one view from the shelf to every SKU that has only its catalogue picture.",
            f"With catalogue pictures as the gallery top-1 is {percent(poor)}, {points(poor - closed)} against views "
            f"from the shelf (limit: {100 * GAP:.0f} points).",
        )


def _unknown(document: Figures) -> Iterator[Advice]:
    closed, found, calibration = words.top(document), document.get("open_set"), document.get("calibration")
    if not found and not calibration and closed is not None and closed < 1:
        yield Advice(
            "Let the answers carry a probability and a decision: `skumatch calibrate`.",
            f"{percent(1 - closed)} of the answers are wrong and nothing marks which: no calibration was measured.",
        )
    stated = (found or {}).get("reliability") or calibration or {}
    over = _boast(stated.get("bins") or [])
    if over >= BOASTING:
        yield Advice(
            "Calibrate anew on crops from the shops where it is used: `skumatch calibrate`.",
            f"Stated probabilities are {100 * over:.1f} points above what came true (limit: {100 * BOASTING:.0f}).",
        )
    if found:
        yield from _accepts(found)


def _boast(bins: Sequence[Figures]) -> float:
    """Return the mean of stated probability less share that is right; below 0 it is modest, which does less harm."""
    total = sum(int(one["count"]) for one in bins)
    return sum(one["count"] * (one["probability"] - one["accuracy"]) for one in bins) / total if total else 0.0


def _accepts(found: Figures) -> Iterator[Advice]:
    target, far, ends = real(found.get("target_far")), real(found.get("far")), words.bounds(found, "far_ci95", None)
    if target is not None and far is not None and ends and ends[0] > target:
        yield Advice(
            "Calibrate with more unknown products: the threshold lets more of them through than asked for.",
            f"{percent(far)} of unknown products were accepted ({words.interval(ends)}; asked for: {percent(target)}).",
        )
    accepted = real(found.get("accepted"))
    if accepted is not None and accepted < FEW_ACCEPTED:
        yield Advice(
            "Allow more false accepts, or add views: most crops of known products now go to a person.",
            f"{percent(accepted)} of the crops of known products are accepted (limit: {percent(FEW_ACCEPTED)}).",
        )


def _robust(document: Figures) -> Iterator[Advice]:
    found = document.get("robustness") or {}
    clean = real((found.get("clean") or {}).get("top1"))
    for kind, strengths in (found.get("kinds") or {}).items():
        for one in strengths if clean is not None else []:
            value = real(one.get("top1"))
            if clean is None or value is None or clean - value < GAP:
                continue
            if one["strength"] <= 2:
                remedy = REMEDIES.get(kind, "train and enrol with pictures like that")
                yield Advice(
                    f"Prepare for {kind}: {remedy}.",
                    f"At {one.get('value', kind)} (strength {one['strength']} of {len(strengths)}) top-1 falls from "
                    f"{percent(clean)} to {percent(value)} (limit: {100 * GAP:.0f} points at strength 1 or 2).",
                )
            break


def _list(document: Figures) -> Iterator[Advice]:
    first = words.top(document)
    ks = [int(k) for k in document.get("topk") or {} if int(k) <= 5]
    most = max(ks, default=1)
    wide = words.top(document, most)
    if first is not None and wide is not None and wide - first >= LISTED:
        yield Advice(
            f"Where a person confirms, show {most} answers instead of one.",
            f"The right SKU is first in {percent(first)} of the queries, among the first {most} in {percent(wide)}.",
        )


RULES: tuple[Callable[[Figures], Iterator[Advice]], ...] = (
    _data,
    _compared,
    _labels,
    _pairs,
    _new_skus,
    _views,
    _unknown,
    _robust,
    _wide,
    _list,
)
