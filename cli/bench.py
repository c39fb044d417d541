"""``skumatch bench``: how fast a model is on this machine, part by part, against what the machine can do."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skumatch.cli.common import Device, ModelOption, note, workspace_or_none

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skumatch.encoder import Encoder
    from skumatch.export.speed import Engine, Rate
    from skumatch.runtime.exports import Way
    from skumatch.workspace import Workspace

OF = {"encode": "the matrix product", "end to end": "encoding"}
CROPS = 64  # of the made-up store, for decoding and end to end


def bench(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[CROP]...", help="Crops; made-up ones else.")] = None,
    model: ModelOption = None,
    random_init: Annotated[
        bool, typer.Option("--random-init", help="With --model SPEC: random weights, no hub; speed is the same.")
    ] = False,
    runtime: Annotated[
        list[str] | None, typer.Option(help="torch, onnx, openvino or tensorrt; repeatable.", show_default="all")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at once; repeatable.")] = None,
    views: Annotated[int, typer.Option(min=1, help="Views of the gallery that is searched.")] = 100_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    device: Device = None,
) -> None:
    """Measure images/s of decoding, encoding per runtime, precision and batch, searching, and end to end.

    Beside each engine stands the fraction that it reaches of the machine's fastest matrix product in its precision.
    Exports that the model lacks are made in passing and thrown away; their answers are not compared.
    """
    from skumatch.errors import ConfigError

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {json_file.parent}", "make it, or name another file with --json")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), workspace_or_none(), model, random_init, device or "auto")
        document = job.run(runtime or [], tuple(batch or (1, 8, 32)), [str(path) for path in paths or []], views)
    show(document)
    if json_file is not None:
        from skumatch import artefact

        artefact.write_file(json_file, (json.dumps(document, indent=1) + "\n").encode())
        note(f"wrote {json_file}")


class Job:
    """One benchmark: the model, where its trial exports lie, and the crops that it runs on."""

    def __init__(
        self, folder: Path, workspace: Workspace | None, model: str | None, random_init: bool, device: str
    ) -> None:
        from skumatch.cli.common import pipeline_of
        from skumatch.encoder import open_encoder
        from skumatch.errors import ConfigError
        from skumatch.runtime.torch import pick_device
        from skumatch.towers.build import ModelSource

        if random_init and model is None:
            raise ConfigError("--random-init goes with --model SPEC", "name an encoder such as open_clip:ViT-B-32")
        if model is None and workspace is None:
            raise ConfigError("no workspace here and no --model", "give --model SPEC --random-init, or run it there")
        source = model or workspace.best_model()  # type: ignore[union-attr]
        self.source = ModelSource(str(source), random_init=True) if random_init else source
        self.folder = folder
        self.device = str(pick_device(device))
        self.pipeline = pipeline_of(workspace)
        self.encoder = open_encoder(self.source, "cpu")

    def run(self, runtimes: list[str], batches: tuple[int, ...], crops: list[str], views: int) -> dict[str, Any]:
        """Measure everything and return it, JSON-ready."""
        from skumatch.export import speed
        from skumatch.machine import read_cpu

        paths = self._crops(crops)
        engines = list(self._engines(runtimes, paths))
        operations = speed.flops(self.encoder)
        rates: list[Rate] = [speed.decode_rate(paths, self.encoder, self.pipeline)]
        note(f"measuring {', '.join(engine.name for engine in engines)}")
        encoded, peak = speed.encode_rates(engines, batches, self.device, operations)
        rates += [*encoded, speed.search_rate(self.encoder.spec.dim, views)]
        alone = {rate.engine: rate.rate for rate in rates if rate.part == "encode" and rate.batch == batches[-1]}
        for engine in engines:
            note(f"measuring {engine.name} end to end")
            gallery = self.folder / "gallery"
            rates.append(speed.end_to_end(engine, alone[engine.name], paths, self.pipeline, gallery))
        cpu = read_cpu()
        return {
            "model": self.encoder.spec.name,
            "device": self.device,
            "cpu": cpu.model,
            "cores": cpu.available,
            "gflop_per_picture": operations / 1e9,
            "crops": len(paths),
            "views": views,
            "peak_gflops": {name: value / 1e9 for name, value in peak.items()},
            "rates": [rate.to_json() for rate in rates],
        }

    def _crops(self, given: list[str]) -> list[Path]:
        from skumatch.crops import expand
        from skumatch.errors import DataError
        from skumatch.synth import write_store

        if given:
            found = list(expand(given))
            if not found:
                raise DataError("no crop there", "name photos or a folder of them")
            return found
        store = write_store(self.folder / "store", 8, 2, CROPS // 8, 0)
        return sorted((store / "test").rglob("*.jpg"))[:CROPS]

    def _engines(self, runtimes: list[str], paths: list[Path]) -> Iterator[Engine]:
        import numpy as np

        from skumatch.errors import ConfigError, DeviceError
        from skumatch.export.speed import Engine
        from skumatch.export.trial import trials
        from skumatch.images import load_pixels
        from skumatch.runtime.exports import RUNTIMES

        if unknown := set(runtimes) - set(RUNTIMES[1:]):
            raise ConfigError(f"unknown runtime '{min(unknown)}'", f"choose {', '.join(RUNTIMES[1:])}")
        spec = self.encoder.spec
        crops = np.stack([load_pixels(path, spec, self.pipeline.max_pixels) for path in paths[:CROPS]])
        note("exporting")
        found = 0
        for way in trials(self.encoder, self.device, runtimes, crops, self.folder):
            try:
                yield Engine(way.name, way.precision, self._open(way))
                found += 1
            except DeviceError as error:
                note(f"{way.name}: {error}")
        if not found:
            raise ConfigError("no engine to measure", "see `skumatch doctor`")

    def _open(self, way: Way) -> Encoder:
        from skumatch.encoder import open_encoder

        if way.runtime == "torch":
            return open_encoder(self.source, self.device, way.precision)
        return way.open(self.folder, self.device)


def show(document: dict[str, Any]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in document["peak_gflops"].items())
    console.print(f"{document['model']}: {document['gflop_per_picture']:.2f} GFLOP a picture, on {document['device']}")
    console.print(f"fastest matrix product, GFLOP/s: {peaks}")
    table = Table("part", "engine", "at once", "per second", "reached", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for rate in document["rates"]:
        share = "" if rate["fraction"] is None else f"{rate['fraction']:.0%} of {OF[rate['part']]}"
        table.add_row(rate["part"], rate["engine"], str(rate["batch"]), f"{rate['rate']:,.1f}", share)
    console.print(table)
