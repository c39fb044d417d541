"""``skumatch export``: a model as files for other programs, after showing that its answers did not change."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skumatch.cli.common import Device, ModelOption, Where, here, note, pipeline_of, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skumatch.dataset import Dataset, Row
    from skumatch.embed import Progress
    from skumatch.export.bundle import Made
    from skumatch.export.parity import Parity
    from skumatch.model import Bundle
    from skumatch.runtime.torch import TorchEncoder
    from skumatch.spec import Pixels
    from skumatch.workspace import Workspace

RESIZED = 100  # crops at most that the resize inside a network is compared on, and titles
CALIBRATED_ON = 256  # training crops at most that ranges and layers are chosen on


def export(
    format: Annotated[str, typer.Option(help="onnx, openvino, tensorrt or triton.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")] = "fp32",
    with_resize: Annotated[
        bool, typer.Option("--with-resize", help="An ONNX file of one picture of any size, beside the other.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="The text tower and its tokenizer, too.")] = False,
    model: ModelOption = None,
    where: Where = None,
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="End with 1 when answers changed too much.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Copy the files into this folder; Triton's repository, a native engine.")
    ] = None,
    device: Device = None,
) -> None:
    """Write the model as files that take uint8 pictures and give unit vectors, beside the model.

    Vectors and answers are compared with the model's on the split test (else val); exit code 1 when they differ by more
    than the precision allows. What is beyond is kept, but does not answer unless it is asked for.
    """
    from skumatch.dataset import parse_filters
    from skumatch.encoder import open_encoder
    from skumatch.errors import ConfigError
    from skumatch.export.bundle import publish
    from skumatch.export.formats import check, make
    from skumatch.export.text import text_of

    _require_folder(out)
    check(format, precision)
    if with_resize and format != "onnx":
        raise ConfigError(f"--with-resize makes no {format}", "leave out --format, or --with-resize")
    if format == "triton" and out is None:
        raise ConfigError("Triton's repository needs a folder", "name it with --out")
    workspace = here()
    dataset = workspace.open_dataset(parse_filters(where or []))
    bundle = _bundle(workspace, model)
    encoder = open_encoder(bundle.folder, "cpu")
    if text:
        text_of(encoder)  # refuse a model without one before the long work
    job = Job(workspace, dataset, bundle, encoder, device or workspace.runtime.device)
    with contextlib.ExitStack() as shown:
        made = make(encoder, format, precision, bundle.folder.name, job.crops, lambda layers: _bar(shown, layers))
    if made.facts.get("left"):
        typer.echo(f"{len(made.facts['left'])} of {made.facts['layers']} layers stay in float32")
    found, beyond = job.compare(made), list[str]()
    show(found)
    if with_resize:
        made, more = job.with_resize(made, precision)
        beyond += more
    if text:
        made, more = job.with_text(made)
        beyond += more
    version = publish(bundle, made, found)
    written = _copied(made, version, out if format != "triton" else None)
    if out is not None and format in ("tensorrt", "triton"):
        written.append(_for_nvidia(format, made, encoder.spec.name, out, job.device))
    for path in written:
        typer.echo(f"wrote {path}")
    if gate and (beyond or found[made.ways[0].name].beyond()):
        raise typer.Exit(1)


def _bar(shown: contextlib.ExitStack, layers: int) -> Progress:
    return shown.enter_context(progress_bar("trying layers", layers))


def _copied(made: Made, version: Path, out: Path | None) -> list[Path]:
    """Return where the files of ``made`` are: in the bundle's ``version``, or copied into ``out``."""
    if out is None:
        return [version / name for name in made.files]
    from skumatch import artefact

    with artefact.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy2(version / name, out / name)) for name in made.files]


def _require_folder(out: Path | None) -> None:
    """Refuse a path that cannot be a folder before any work. Raises ConfigError."""
    from skumatch.errors import ConfigError

    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "name a folder with --out")


def _for_nvidia(format: str, made: Made, name: str, out: Path, device: str) -> Path:
    """Write Triton's model repository, or TensorRT's native engine, into ``out``; return what was written."""
    from skumatch.export.tensorrt import build_engine, engine_is_current
    from skumatch.export.triton import write_repository
    from skumatch.runtime.nvidia import PROFILE

    (network,) = (data for file, data in made.files.items() if file == made.ways[0].file)
    if format == "triton":
        return write_repository(out, re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-"), network)
    precision = made.ways[0].precision
    engine = out / Path(made.ways[0].file).with_suffix(".engine").name
    if not engine_is_current(engine, network, precision, PROFILE, device):
        build_engine(network, precision, PROFILE, engine, device)
    return engine


def _bundle(workspace: Workspace, model: str | None) -> Bundle:
    """Return the bundle to export; the workspace's untouched encoder is published first."""
    from skumatch.cli.calibrate import bundle_of, publish_untouched
    from skumatch.encoder import open_encoder
    from skumatch.model import open_bundle

    bundle = bundle_of(workspace, model)
    if bundle is not None:
        return bundle
    return open_bundle(publish_untouched(workspace, open_encoder(workspace.source(), "cpu")))


@dataclass(frozen=True)
class Job:
    """What is exported, and the user's crops to calibrate and to compare it on."""

    workspace: Workspace
    dataset: Dataset
    bundle: Bundle
    encoder: TorchEncoder
    device: str

    def crops(self) -> Pixels:
        """Return the pixels of up to 256 crops of the split train, in a shuffled order that is always the same."""
        import random

        import numpy as np

        from skumatch import images
        from skumatch.embed import cores, ordered_batches
        from skumatch.errors import ImageError

        rows = [row for row in self.dataset if row.split == "train"]
        random.Random(0).shuffle(rows)
        side = self.encoder.spec.size

        def read(row: Row) -> Pixels | None:
            try:
                return images.load_pixels(row.path, self.encoder.spec, self.workspace.runtime.max_pixels)
            except ImageError:
                return None

        batches = ordered_batches(rows[:CALIBRATED_ON], read, 32, self.workspace.runtime.workers or cores())
        read_ones = [pixels for _, group in batches for pixels in group if pixels is not None]
        return np.stack(read_ones) if read_ones else np.empty((0, 3, side, side), np.uint8)

    def compare(self, made: Made) -> dict[str, Parity]:
        """Return how each way to run ``made`` compares with the model in float32."""
        from skumatch.errors import DeviceError
        from skumatch.export.parity import CROPS, VIEWS, compare

        gallery, queries = _sides(self.dataset)
        with tempfile.TemporaryDirectory() as folder:
            made.write(Path(folder))
            engines = {}
            for way in made.ways:
                home = Path(folder) if way.file else self.bundle.folder
                device = "cpu" if way.runtime == "openvino" else self.device
                try:
                    engines[way.name] = way.open(home, device)
                except DeviceError:
                    if way is made.ways[0]:
                        raise
            with progress_bar("comparing", min(len(gallery), VIEWS) + min(len(queries), CROPS)) as progress:
                return compare(self.encoder, engines, gallery, queries, pipeline_of(self.workspace), progress)

    def with_resize(self, made: Made, precision: str) -> tuple[Made, list[str]]:
        """Return ``made`` with the network of whole pictures beside it, and how that differs too much, in words."""
        import onnx

        from skumatch.export.parity import thinned
        from skumatch.export.resize import compare_resize, with_resize
        from skumatch.runtime.exports import file_name
        from skumatch.runtime.onnx import OnnxEncoder

        plain = file_name(precision)
        name = plain.removesuffix(".onnx") + ".resize.onnx"
        whole = with_resize(onnx.load_from_string(made.files[plain]), self.encoder.spec)
        both = {plain: made.files[plain], name: whole.SerializeToString()}
        with tempfile.TemporaryDirectory() as folder:
            replace(made, files=both).write(Path(folder))
            _, queries = _sides(self.dataset)
            paths = [row.path for row in thinned(queries, RESIZED)]
            parity = compare_resize(Path(folder) / name, OnnxEncoder(Path(folder) / plain, "cpu"), paths)
        typer.echo(
            f"{name:14} {parity.pictures:,} crops: cosine at least {parity.min_cosine:.6f} with the host's resize"
        )
        return replace(made, files={**made.files, **both}), _said(name, parity.beyond())

    def with_text(self, made: Made) -> tuple[Made, list[str]]:
        """Return ``made`` with the text tower and its tokenizer, and how that differs too much, in words."""
        from skumatch.export.text import compare_text, text_files

        files = text_files(self.encoder, {"version": self.bundle.folder.name})
        titles = sorted({row.title or row.sku for row in self.dataset})[:RESIZED]
        least = compare_text(self.encoder, files, titles)
        typer.echo(f"{'text.onnx':14} {len(titles):,} titles: cosine at least {least:.6f}")
        beyond = [] if least >= 0.99999 else [f"least cosine {least:.6f} is below 0.99999"]
        return replace(made, files={**made.files, **files}), _said("text.onnx", beyond)


def _sides(dataset: Dataset) -> tuple[Sequence[Row], Sequence[Row]]:
    """Return views and crops to compare answers on: the gallery and the split test, else val; with neither no views and
    the gallery's own pictures, whose answers would say nothing."""
    views = [row for row in dataset if row.split == dataset.gallery_split]
    for split in ("test", "val"):
        crops = [row for row in dataset if row.split == split != dataset.gallery_split]
        if crops:
            return views, crops
    note("there is no split test or val: vectors alone are compared")
    return [], views


def show(found: dict[str, Parity]) -> None:
    """Print what the comparison found."""
    for name, parity in found.items():
        line = f"{name:14} {parity.pictures:,} crops: cosine at least {parity.min_cosine:.6f}"
        if (answers := parity.answers) is not None:
            line += (
                f"; top-1 {answers.before:.1%} before, {answers.after:.1%} after, {answers.agreement:.1%} answers alike"
            )
        typer.echo(line)
        if beyond := parity.beyond():
            note(f"{name}: {', '.join(beyond)}: it is not used unless asked for")


def _said(name: str, beyond: list[str]) -> list[str]:
    if beyond:
        note(f"{name}: {', '.join(beyond)}")
    return beyond
