"""Beyond one machine: Ray against the plain engine on real photos, Milvus Lite against a folder on made-up look-alikes.

python bench/beyond.py [--quick] [--data DIR] [--weights FILE] [--work DIR] --json OUT
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import beyond_milvus
import beyond_ray
from common import Result, arguments, kept


def main() -> None:
    """Run both, print the bars and write JSON."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)) / ("quick" if options.quick else "beyond")
        work.mkdir(parents=True, exist_ok=True)
        rows, count = (500, 128) if options.quick else (20_000, 2000)
        milvus = kept(work / "milvus.json", lambda: beyond_milvus.figures(work, rows, count))
        data = options.data if options.data.is_dir() else None
        weights = options.weights if options.weights.is_file() else None
        ray = kept(work / "ray.json", lambda: beyond_ray.figures(work, data, weights, options.quick))
    result.figures = {"milvus-lite": milvus, "ray": ray}
    result.bar("20,000 views: top-1 as in a folder, share", milvus["same top-1"], 0.999, "least")
    result.bar("Ray: photos embedded", ray["pictures"], 5000, "least")
    result.bar("Ray, 2 workers: least cosine with the plain engine", ray["min cosine"], 0.99999, "least")
    result.bar("killed once and resumed: pictures there twice", ray["duplicates"], 0, "most")
    result.bar("killed once and resumed: pictures lacking", ray["gaps"], 0, "most")
    result.write(options.json)


if __name__ == "__main__":
    main()
