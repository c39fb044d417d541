"""How the report says figures, and how it reads them out of eval.json: missing keys and nulls become None or a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_SHOT = re.compile(r"k-shot (\d+)\b")
Figures = Mapping[str, Any]


def real(value: object) -> float | None:
    """Return ``value`` as a finite float, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object) -> str:
    """Return a share of 0..1 as a percentage with one decimal, a dash where there is none."""
    found = real(value)
    return "-" if found is None else f"{100 * found:.1f} %"


def points(value: object) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    found = real(value)
    return "-" if found is None else f"{100 * found:+.1f} points"


def bounds(figures: Figures, key: str = "ci95", k: str | None = "1") -> tuple[float, float] | None:
    """Return (low, high) from ``figures[key]``, or from its entry ``k``; None where it is missing or not finite."""
    held = figures.get(key)
    held = held.get(k) if isinstance(held, Mapping) and k is not None else held
    if not isinstance(held, (list, tuple)) or len(held) != 2:
        return None
    low, high = real(held[0]), real(held[1])
    return None if low is None or high is None else (low, high)


def interval(ends: tuple[float, float] | None) -> str:
    """Return an interval of shares as percentages."""
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def top(figures: Figures, k: int = 1) -> float | None:
    """Return top-k accuracy."""
    held = figures.get("topk")
    return real(held.get(str(k))) if isinstance(held, Mapping) else None


def with_interval(figures: Figures, k: int = 1) -> str:
    """Return top-k accuracy with its 95 % interval in brackets."""
    ends = bounds(figures, k=str(k))
    return percent(top(figures, k)) + (f" ({interval(ends)})" if ends else "")


def baselines(document: Figures) -> dict[str, Figures]:
    """Return the models that this one is measured against, the untouched encoder first."""
    found: dict[str, Figures] = {}
    if isinstance(document.get("baseline"), Mapping):
        found["untouched encoder"] = document["baseline"]
    return found | dict(document.get("baselines") or {})


def protocol(document: Figures, name: str) -> Figures | None:
    """Return the first protocol whose name starts with ``name``."""
    for one in document.get("protocols") or []:
        if str(one.get("name", "")).startswith(name):
            found: Figures = one
            return found
    return None


def untouched(document: Figures, one: Figures) -> Figures:
    """Return the figures of the untouched encoder under the protocol ``one``; empty where there are none."""
    held = one.get("baseline")
    if isinstance(held, Mapping):
        return held
    return protocol(document.get("baseline") or {}, str(one.get("name"))) or {}


def macro(figures: Figures) -> float | None:
    """Return top-1 as the mean over SKUs of their own top-1."""
    held = figures.get("topk_macro")
    return real(held.get("1")) if isinstance(held, Mapping) else real(figures.get("top1_macro"))


def shots(document: Figures) -> list[tuple[int, Figures]]:
    """Return (reference views per SKU, figures) of the k-shot protocols, fewest views first."""
    found = [
        (int(match[1]), one)
        for one in document.get("protocols") or []
        if (match := _SHOT.match(str(one.get("name", "")))) and top(one) is not None
    ]
    return sorted(found, key=lambda pair: pair[0])


def per_sku(document: Figures) -> list[tuple[str, int, float]]:
    """Return (SKU, queries, top-1) of every SKU, the worst first, of equal ones the one with more queries."""
    held = document.get("per_sku") or {}
    rows = [(str(sku), int(one["queries"]), float(one["top1"])) for sku, one in held.items()]
    return sorted(rows, key=lambda row: (row[2], -row[1], row[0]))
