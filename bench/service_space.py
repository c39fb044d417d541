"""Workspaces that the benchmarks of the service serve: of photos and a trained network, or small and drawn in code."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import skumatch
from service_mutants import write_patterns
from service_process import Server
from service_soak import Shop

if TYPE_CHECKING:
    from skumatch.encoder import Encoder

TINY = ("--model", "open_clip:skumatch-tiny-96", "--random-init")


@dataclass(frozen=True)
class Space:
    """A workspace in ``folder`` with the gallery ``gallery``; ``crops``: what is asked for."""

    folder: Path
    gallery: Path
    crops: Sequence[Path]

    def start(self) -> Server:
        """Start the service."""
        command = [str(Path(sys.executable).parent / "skumatch"), "serve", "--port", "0"]
        command += ["--gallery", str(self.gallery)]
        return Server(command, self.folder, self.folder / f"serve-{time.monotonic_ns()}.log")

    def encoder(self) -> Encoder:
        """Open the encoder that the service runs."""
        from skumatch.encoder import open_encoder
        from skumatch.workspace import Workspace

        return open_encoder(Workspace.find(self.folder).best_model())

    def shop(self) -> Shop:
        """Return it as what is changed under load."""
        return Shop(self.gallery, self.encoder(), self.crops, self.folder)


def made(folder: Path, data: Path, model: Sequence[str], views: Sequence[Path], crops: Sequence[Path]) -> Space:
    """Make a workspace anew with a gallery of ``views``, each of the SKU that its folder names."""
    from skumatch.dataset import Row
    from skumatch.embed import Pipeline
    from skumatch.enrol import Supply, build_gallery

    shutil.rmtree(folder, ignore_errors=True)
    skumatch("init", str(folder), "--data", str(data), *model, cwd=data)
    space = Space(folder, folder / "served", crops)
    rows = [Row(path, path.parent.name, "gallery") for path in views]
    build_gallery(space.gallery, Supply.of(rows), space.encoder(), Pipeline())
    return space


def small(work: Path, name: str) -> Space:
    """Make a workspace of pictures drawn in code with a small untrained model, which tells them apart well enough."""
    data = write_patterns(work / "patterns")
    crops = sorted((data / "test").rglob("*.png"))
    base = work / "small"
    if not (base / "whole").exists():
        made(base, data, TINY, sorted((data / "train").rglob("*.png")), crops)
        (base / "whole").touch()
    shutil.rmtree(work / name, ignore_errors=True)
    shutil.copytree(base, work / name)
    return Space(work / name, work / name / "served", crops)


def fast(work: Path, data: Path, weights: Path, name: str) -> Space:
    """Make the workspace ``name`` on which speed is measured: ``weights`` of MobileNetV2 on photos of shelves.

    ``name`` "light" takes the small untrained network instead, which leaves most of the time to everything else. Where
    there are no photos or no weights, it is that network on rendered photos.
    """
    photos = sorted((data / "grocery-store" / "test").rglob("*.jpg"))[:500]
    if photos and weights.is_file():
        model = TINY if name == "light" else ("--model", "timm:mobilenetv2_100", "--weights", str(weights))
        return made(work / name, data / "grocery-store", model, photos, photos)
    from skumatch.synth import write_store

    store = work / "store"
    if not (store / "products.csv").exists():
        write_store(store, 20, 3, 4, 0)
    photos = sorted((store / "test").rglob("*.jpg"))
    return made(work / name, store, TINY, photos, photos)
