"""Runtimes: whether exports give the same answers, and how fast they are against the machine and a plain script.

Answers: a fine-tuned MobileNetV2 and a small transformer, trained from random values, on Grocery Store. Speed: CLIP
ViT-B/32 with random weights. Ratios are those of one run, in which engines take turns. Finished rungs are kept in
``--work``.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Result, arguments, kept, skumatch

from skumatch.embed import Pipeline
from skumatch.encoder import open_encoder
from skumatch.export import speed
from skumatch.export.formats import make
from skumatch.export.parity import compare
from skumatch.export.trial import trials
from skumatch.images import load_pixels
from skumatch.runtime.openvino import precisions
from skumatch.synth import write_store
from skumatch.towers.build import ModelSource

BATCH = 32
VIT = ModelSource("open_clip:ViT-B-32", random_init=True)
PRECISIONS = (("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "bf16"), ("openvino", "int8"))
LEAST = {"onnx fp32": 0.99999, "onnx fp16": 0.999, "openvino bf16": 0.9995}
TINY = ("timm:vit_tiny_patch16_224", "--random-init", "--size", "112")


def main() -> None:
    """Measure, and hold the figures against the bars."""
    options = arguments(__doc__ or "")
    result = Result(options.quick)
    grocery = options.data / "grocery-store"
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        photos = _photos(grocery, work, 40 if options.quick else 200)
        found = kept(work / "speed.json", lambda: rates(work, photos, options.quick))
        result.figures["speed"] = found
        cosines = kept(work / "cosines.json", lambda: vectors(photos, options.quick))
        result.figures["ViT-B/32 random"] = cosines
        if grocery.is_dir() and not options.quick:
            for name, model in (("MobileNetV2", ("timm:mobilenetv2_100", "--weights", options.weights)), ("ViT", TINY)):
                result.figures[name] = kept(
                    work / f"{name}.json", lambda m=model, n=name: answers(work / n, grocery, m)
                )
    bars(result)
    result.write(options.json)


def bars(result: Result) -> None:
    """Hold what was measured against the bars."""
    found, cosines = result.figures["speed"], result.figures["ViT-B/32 random"]
    for name, least in LEAST.items():
        if name in cosines:  # a processor without bfloat16 has no figure in it
            result.bar(f"{name}: least cosine, ViT-B/32", cosines[name]["min_cosine"], least, "least")
    for model in ("MobileNetV2", "ViT"):
        for name, parity in result.figures.get(model, {}).items():
            if name in LEAST:
                result.bar(f"{name}: least cosine, {model}", parity["min_cosine"], LEAST[name], "least")
            if name.endswith("int8"):
                lost = round(100 * (parity["answers"]["before"] - parity["answers"]["after"]), 6)
                result.bar(f"{name}: points of top-1 lost, {model}", lost, 0.5, "most")
    rate, share = found["rates"], found["fractions"]
    best = max(rate["onnx int8"], rate["openvino int8"])
    result.bar("int8 against ONNX fp32, ViT-B/32", best / rate["onnx fp32"], 2.8, "least")
    result.bar("ONNX fp32: fraction of the matrix product", share["onnx fp32"], 0.85, "least")
    if "openvino bf16" in share:
        result.bar("OpenVINO bf16: fraction of the matrix product", share["openvino bf16"], 0.85, "least")
    result.bar("int8: fraction of the matrix product", max(share["onnx int8"], share["openvino int8"]), 0.70, "least")
    for name, fraction in found["end to end"].items():
        result.bar(f"match, {name}: fraction of the engine's rate", fraction, 0.9, "least")
    for name, least in (("onnx fp32", 1.1), ("openvino bf16", 2.0), ("openvino int8", 3.0)):
        if name in found["plain"]:
            result.bar(f"match, {name}: against the plain script", found["plain"][name], least, "least")
    result.bar("--with-resize: least cosine", cosines["with resize"]["min_cosine"], 0.999, "least")


def _photos(grocery: Path, work: Path, count: int) -> list[Path]:
    if grocery.is_dir():
        found = sorted((grocery / "test").rglob("*.jpg"))
    else:
        found = sorted((write_store(work / "store", 20, 2, 10, 0) / "test").rglob("*.jpg"))
    return [found[int(place)] for place in np.linspace(0, len(found) - 1, min(count, len(found)))]


def rates(work: Path, photos: Sequence[Path], quick: bool) -> dict[str, Any]:
    """Return images/s per engine, the fraction of the matrix product, of matching, and matching against the script."""
    if quick:
        speed.TURN, speed.ROUNDS = 0.3, 2
    source = ModelSource("open_clip:skumatch-tiny-96", random_init=True) if quick else VIT
    encoder = open_encoder(source, "cpu")
    pixels = np.stack([load_pixels(path, encoder.spec) for path in photos[:64]])
    folder = work / "trials"
    folder.mkdir(exist_ok=True)
    engines = [
        speed.Engine(
            way.name, way.precision, way.open(folder, "cpu") if way.file else open_encoder(source, "cpu", way.precision)
        )
        for way in trials(encoder, "cpu", (), pixels, folder)
    ]
    encoded, peaks = speed.encode_rates(engines, [8, BATCH], "cpu", speed.flops(encoder), 3 if quick else 20)
    best = {e.name: max((r for r in encoded if r.engine == e.name), key=lambda r: r.rate) for e in engines}
    how, gallery = Pipeline(BATCH), work / "gallery"
    matched = {e.name: speed.end_to_end(e, best[e.name].rate, photos, how, gallery).fraction for e in engines}
    return {
        "peaks": peaks,
        "rates": {name: one.rate for name, one in best.items()},
        "fractions": {name: one.fraction for name, one in best.items()},
        "end to end": matched,
        "plain": against_plain(engines, source, photos, gallery),
        "decode": speed.decode_rate(photos, encoder, how).rate,
    }


def against_plain(
    engines: Sequence[speed.Engine], source: ModelSource, photos: Sequence[Path], gallery: Path
) -> dict[str, float]:
    """Return how many times as fast matching is, per engine, as what one would write first."""
    from skumatch.gallery import open_gallery
    from skumatch.match import Matcher

    plain = _plain(source, photos)
    opened = open_gallery(gallery)
    works: speed.Works = {"plain": plain}
    for engine in engines:
        works[engine.name] = _all_of(Matcher(engine.encoder, opened, Pipeline(BATCH)), photos)
    turns = [speed.in_turns(works, 1, warm=not i) for i in range(speed.ROUNDS)]
    return {engine.name: statistics.median(turn["plain"] / turn[engine.name] for turn in turns) for engine in engines}


def _all_of(matcher: Any, photos: Sequence[Path]) -> Callable[[], object]:
    return lambda: sum(1 for _ in matcher.stream(photos, 5))


def _plain(source: ModelSource, photos: Sequence[Path]) -> Callable[[], object]:
    """Return the plain script: Pillow, open_clip's transform, torch in float32, a product of arrays."""
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(source.name.partition(":")[2], pretrained=None)
    model.eval()
    views = np.random.default_rng(0).normal(size=(len(photos), model.visual.output_dim)).astype(np.float32)

    def run() -> object:
        found = []
        for start in range(0, len(photos), BATCH):
            group = [transform(Image.open(path).convert("RGB")) for path in photos[start : start + BATCH]]
            with torch.no_grad():
                vectors = model.encode_image(torch.stack(group), normalize=True).numpy()
            found.append(np.argsort(-(vectors @ views.T), axis=1)[:, :5])
        return found

    return run


def possible() -> list[tuple[str, str]]:
    """Return the formats and precisions that this processor runs."""
    has = ("int8", *precisions())
    return [(format, precision) for format, precision in PRECISIONS if format != "openvino" or precision in has]


def vectors(photos: Sequence[Path], quick: bool) -> dict[str, Any]:
    """Return how the exports' vectors of ``photos`` compare with torch's."""
    from skumatch.dataset import Row
    from skumatch.export.resize import compare_resize, with_resize

    encoder = open_encoder(ModelSource("open_clip:skumatch-tiny-96", random_init=True) if quick else VIT, "cpu")
    crops = np.stack([load_pixels(path, encoder.spec) for path in photos[:64]])
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for format, precision in possible():
            made = make(encoder, format, precision, "v000001", lambda: crops)
            made.write(folder)
            way = made.ways[0]
            rows = [Row(path, "", "test") for path in photos]
            found[way.name] = compare(encoder, {"it": way.open(folder, "cpu")}, [], rows, Pipeline(BATCH))[
                "it"
            ].to_json()
        import onnx

        whole = with_resize(onnx.load(str(folder / "model.onnx")), encoder.spec)
        (folder / "whole.onnx").write_bytes(whole.SerializeToString())
        resized = compare_resize(folder / "whole.onnx", encoder, photos[:100])
        found["with resize"] = {"pictures": resized.pictures, "min_cosine": resized.min_cosine}
    return found


def answers(space: Path, grocery: Path, model: Sequence[object]) -> dict[str, Any]:
    """Fine-tune ``model`` on Grocery Store, export it in every precision and return the bundle's figures by way."""
    space.mkdir(parents=True, exist_ok=True)
    if not (space / "skumatch.toml").exists():
        skumatch("init", "--data", str(grocery), "--model", *map(str, model), cwd=space)
    if not (space / "models" / "CURRENT").exists():
        recipe = ("scratch", "--epochs", "40") if "--random-init" in model else ("quick",)
        skumatch("finetune", "--recipe", *recipe, cwd=space)
    for format, precision in possible():
        started = time.perf_counter()
        skumatch("export", "--format", format, "--precision", precision, "--no-gate", cwd=space)
        print(f"{format} {precision}: {time.perf_counter() - started:.0f} s", flush=True)
    current = space / "models" / (space / "models" / "CURRENT").read_text().strip()
    document = json.loads((current / "exports.json").read_text())
    return {name: entry["parity"] for name, entry in document["ways"].items()}


if __name__ == "__main__":
    main()
