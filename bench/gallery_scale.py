"""The table of docs/scale.md: what runs where, measured up to millions of views, computed for 1,000 million.

``document`` holds all that the table is made of and is kept below it, so that anybody can make it again. Nobody has
measured a cluster here: its column stands on the largest rung and on what ``Assumed`` supposes.

Milvus builds an index per segment and asks all segments, so a query costs the number of segments times the core-seconds
that one takes, plus once what naming the answers takes. A segment of S views takes what the largest rung measured times
(S / views of that rung) ** p, with p fitted to the two largest rungs. Not a + b * root(S): the effort steps in powers
of two, and a line through two points may begin below nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

VIEWS = 1_000_000_000
DEFAULT_SEGMENT = 1 << 30  # bytes of vectors: dataCoord.segment.maxSize of Milvus, 1,024 MB, where nobody changed it
HOURS = 730  # of a month
BEGIN = "<!-- written by bench/gallery.py --table: begin -->"
END = "<!-- written by bench/gallery.py --table: end -->"
QUICK = (
    "**Figures of a `--quick` run with a few thousand views, which mean nothing: a full run is to replace them.**\n\n"
)
RUNS = {"exact": "`exact`, one process", "ivf-rabitq": "`ivf-rabitq`, a gallery folder on one machine"}
PARTS = ("vectors", "rows", "thumbnails", "facts", "index")
Rung = Mapping[str, Any]


@dataclass(frozen=True)
class Assumed:
    """What the table supposes. ``machine_gb``, ``machine_cores``: one machine of the cluster; ``filled``: share of its
    memory that is planned for; ``segment_views``: views in a segment (None: those of the largest rung);
    ``images_per_second``: embedded by all encoders together; prices of a core and a GB of memory for an hour, of a GB
    of disk for a month. None where nobody gave them."""

    machine_gb: float = 256
    machine_cores: int = 32
    filled: float = 0.75
    segment_views: int | None = None
    images_per_second: float | None = None
    core_hour: float | None = None
    gb_hour: float | None = None
    gb_month: float | None = None


@dataclass(frozen=True)
class Column:
    """One size: queries/s, core-seconds per query, bytes; ``rung``: what was measured, None where it is computed."""

    views: int
    runs: str
    machines: int
    rate: float
    core_seconds: float
    recall: float
    index: float
    memory: float
    disk: Mapping[str, float]
    core_hours: float
    rung: Rung | None


Line = tuple[str, Callable[[Column], str]]  # what it says, and how it is told of a column


def document(rungs: Mapping[str, Rung], assumed: Assumed, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table is made of, ready for JSON: ``rungs`` as ``gallery_build.measured`` gives them, smallest
    first, to four digits."""
    short = json.loads(json.dumps(dict(rungs)), parse_float=lambda digits: float(f"{float(digits):.4g}"))
    return {"machine": dict(machine), "assumed": asdict(assumed), "rungs": short}


def measured(rung: Rung) -> Column:
    """Return the column of a rung."""
    search = rung["search"]
    return Column(
        views=rung["rows"],
        runs=RUNS[rung["kind"]],
        machines=1,
        rate=search["queries/s"]["gallery"],
        core_seconds=search["core seconds/query"]["gallery"],
        recall=search["recall@1"],
        index=search["anonymous bytes"]["index"],
        memory=sum(search["anonymous bytes"].values()) + search["libraries bytes"],
        disk=rung["disk bytes"],
        core_hours=sum(rung["build"]["core seconds"].values()) / 3600,
        rung=rung,
    )


def exponent(below: Rung, top: Rung) -> float:
    """Return p of cost ~ views ** p, through the core-seconds that the indexes of two rungs take for a query."""
    costs = [float(rung["search"]["core seconds/query"]["index"]) for rung in (below, top)]
    return math.log(costs[1] / costs[0]) / math.log(top["rows"] / below["rows"])


def query_cost(below: Rung, top: Rung, segment: float) -> float:
    """Return core-seconds per query of 1,000 million views in segments of ``segment`` views each."""
    costs: dict[str, float] = top["search"]["core seconds/query"]
    one: float = costs["index"] * (segment / top["rows"]) ** exponent(below, top)
    return math.ceil(VIEWS / segment) * one + max(0.0, costs["gallery"] - costs["index"])


def computed(below: Rung, top: Rung, assumed: Assumed) -> Column:
    """Return the column of 1,000 million views: bytes and building by the view, queries by the segment.

    Index and rows (SKU, source, digest) are in memory; vectors, thumbnails and facts are not.
    """
    largest, times = measured(top), VIEWS / top["rows"]
    disk = {part: size * times for part, size in largest.disk.items()}
    memory = largest.index * times + disk["rows"]
    machines = math.ceil(memory / (assumed.filled * assumed.machine_gb * 1e9))
    cost = query_cost(below, top, assumed.segment_views or top["rows"])
    return Column(
        views=VIEWS,
        runs="`milvus://`, a cluster with `IVF_RABITQ`",
        machines=machines,
        rate=machines * assumed.machine_cores / cost,
        core_seconds=cost,
        recall=largest.recall,
        index=largest.index * times,
        memory=memory,
        disk=disk,
        core_hours=largest.core_hours * times,
        rung=None,
    )


def columns(made_of: Mapping[str, Any]) -> list[Column]:
    """Return the columns of the table."""
    rungs = list(made_of["rungs"].values())
    return [*map(measured, rungs), computed(rungs[-2], rungs[-1], Assumed(**made_of["assumed"]))]


def section(made_of: Mapping[str, Any]) -> str:
    """Return the table, what it supposes, the table of segments, and ``made_of`` itself, in Markdown."""
    assumed = Assumed(**made_of["assumed"])
    cells = [[label, *map(tell, columns(made_of))] for label, tell in [*lines(), *prices(assumed)]]
    parts = [_table(cells), supposed(made_of, assumed), segments(made_of, assumed), "Computed from these figures:"]
    parts += [f"```json\n{_json(made_of)}\n```"]
    return (QUICK if made_of["machine"]["quick"] else "") + "\n\n".join(parts)


def lines() -> list[Line]:
    """Return the lines of the table that need no prices."""
    return [
        ("views", lambda c: f"{c.views:,}"),
        ("figures are", lambda c: "measured" if c.rung else "computed"),
        ("runs as", lambda c: c.runs),
        ("machines", lambda c: f"{c.machines:,}"),
        ("queries/s, in batches of 64", lambda c: _short(c.rate)),
        _only("one query alone, ms", lambda rung: 1000 / rung["search"]["one by one/s"]),
        ("core-seconds for a million queries", lambda c: _short(1e6 * c.core_seconds)),
        ("recall@1", lambda c: f"{c.recall:.3f}" + ("" if c.rung else " in each segment")),
        ("memory, GB: index", lambda c: _short(c.index / 1e9)),
        ("memory, GB: all that is opened", lambda c: _short(c.memory / 1e9)),
        _only("memory, GB: pages of files besides", lambda rung: rung["search"]["mapped bytes"] / 1e9),
        *((f"disk, GB: {part}", lambda c, part=part: _short(c.disk[part] / 1e9)) for part in PARTS),
        ("disk, GB: together", lambda c: _short(sum(c.disk.values()) / 1e9)),
        ("core-hours to build", lambda c: _short(c.core_hours)),
        _only("built in, s", lambda rung: sum(rung["build"]["seconds"].values())),
        _only("peak while building, GB: resident", lambda rung: rung["build"]["peak bytes"] / 1e9),
        _only("peak while building, GB: anonymous", lambda rung: rung["build"]["peak anonymous bytes"] / 1e9),
        _only("from opening to the first answer with names, s", lambda rung: sum(rung["search"]["seconds"].values())),
        _only("opening with every byte hashed, s", lambda rung: rung["search"]["verified in s"]),
    ]


def _only(label: str, tell: Callable[[Rung], float]) -> Line:
    """Return a line of what was measured and is not computed."""
    return label, lambda column: _short(tell(column.rung)) if column.rung else "-"


def prices(assumed: Assumed) -> list[Line]:
    """Return the lines of embedding time and of costs, as far as rates and prices were given."""
    rate, core, memory, disk = assumed.images_per_second, assumed.core_hour, assumed.gb_hour, assumed.gb_month
    found: list[Line] = []
    if rate is not None:
        found += [(f"embedded at {rate:,g} images/s in, hours", lambda c: _short(c.views / rate / 3600))]
    if core is not None:
        found += [("price of a million queries", lambda c: _short(1e6 * c.core_seconds / 3600 * core))]
        found += [("price of building", lambda c: _short(c.core_hours * core))]
    if memory is not None:
        found += [("price of memory, a month", lambda c: _short(c.memory / 1e9 * HOURS * memory))]
    if disk is not None:
        found += [("price of disk, a month", lambda c: _short(sum(c.disk.values()) / 1e9 * disk))]
    return found


def supposed(made_of: Mapping[str, Any], assumed: Assumed) -> str:
    """Return what was measured on what, and what was supposed."""
    machine, top = made_of["machine"], list(made_of["rungs"].values())[-1]
    asked = {"core-hour": assumed.core_hour, "GB of memory and hour": assumed.gb_hour}
    given = {**asked, "GB of disk and month": assumed.gb_month}
    told = ", ".join(f"{price:g} a {what}" for what, price in given.items() if price is not None)
    return (
        f"Measured on {machine['cores']} cores ({machine['processor']}, Python {machine['python']}, no GPU): made-up "
        f"look-alikes of {top['dim']} numbers, about two views per SKU, {top['build']['skus']:,} SKUs in the largest. "
        f"Supposed: thumbnails of {top['disk bytes']['thumbnails'] / top['rows']:,.0f} bytes; machines of "
        f"{assumed.machine_gb:g} GB, {100 * assumed.filled:g} % of it filled, and {assumed.machine_cores} cores; "
        f"segments of {assumed.segment_views or top['rows']:,} views. Prices: {told or 'none were given'}."
    )


def segments(made_of: Mapping[str, Any], assumed: Assumed) -> str:
    """Return what a query costs at 1,000 million views by the size of a segment."""
    *_, below, top = made_of["rungs"].values()
    last = columns(made_of)[-1]
    sizes = {
        "1,024 MB, as Milvus comes": DEFAULT_SEGMENT / (4 * top["dim"]),
        "as in the table": assumed.segment_views or top["rows"],
        "one for each machine": VIEWS / last.machines,
    }
    cells = [["segments", "views in each", "number", "core-seconds for a million queries", "queries/s"]]
    for name, size in sizes.items():
        cost = query_cost(below, top, size)
        rate = _short(last.machines * assumed.machine_cores / cost)
        cells.append([name, f"{size:,.0f}", f"{math.ceil(VIEWS / size):,}", _short(1e6 * cost), rate])
    return f"1,000,000,000 views by the size of a segment (p = {exponent(below, top):.2f}):\n\n{_table(cells)}"


def _table(cells: list[list[str]]) -> str:
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([rows[0], "|---" * len(cells[0]) + "|", *rows[1:]])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _json(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict) or depth == 3:
        return json.dumps(value)
    inner = [f"{' ' * (depth + 1)}{json.dumps(name)}: {_json(some, depth + 1)}" for name, some in value.items()]
    return "{\n" + ",\n".join(inner) + f"\n{' ' * depth}}}"


def replaced(page: str, made_of: Mapping[str, Any]) -> str:
    """Return the text ``page`` with what stands between the two marks made anew."""
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{section(made_of)}\n\n{END}{after}"


def embedded(page: str) -> dict[str, Any]:
    """Return what the table in the text ``page`` was made of."""
    return dict(json.loads(page.split(BEGIN)[1].split("```json\n")[1].split("```")[0]))
