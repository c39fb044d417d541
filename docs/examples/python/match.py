"""Which SKU does each crop show: ONNX Runtime, NumPy and Pillow alone.

    python match.py APP CROP... > answers.csv

APP is the folder that `skumatch export --with-resize` and `skumatch gallery export` wrote.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

TOP = 5


class Recogniser:
    """The network and the gallery's vectors in the folder ``app``."""

    def __init__(self, app: Path) -> None:
        gallery = json.loads((app / "views.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(app / "model.resize.onnx", providers=["CPUExecutionProvider"])
        said = json.loads(self.session.get_modelmeta().custom_metadata_map.get("skumatch", "{}"))
        if said.get("spec", {}).get("digest") != gallery["model"]["digest"]:
            raise ValueError("model.resize.onnx and views.json are not of one model: export both again")
        vectors = np.fromfile(app / "vectors.f32", "<f4")
        if vectors.size != gallery["views"] * gallery["dim"]:
            raise ValueError("vectors.f32 and views.json do not belong together: export the gallery again")
        self.vectors = vectors.reshape(gallery["views"], gallery["dim"])
        self.skus = [entry["sku"] for entry in gallery["skus"]]
        self.rows = np.array(gallery["rows"])
        outputs = [output.name for output in self.session.get_outputs()]
        self.output = "queries" if "queries" in outputs else "embeddings"

    def match(self, picture: np.ndarray) -> list[tuple[str, float]]:
        """Return the nearest SKUs, best first, of an upright RGB picture, uint8 (H, W, 3)."""
        (crop,) = self.session.run([self.output], {"image": picture})[0]
        best = np.full(len(self.skus), -np.inf, np.float32)
        np.maximum.at(best, self.rows, self.vectors @ crop)  # a SKU's score is that of its best view
        return [(self.skus[place], float(best[place])) for place in np.argsort(-best, kind="stable")[:TOP]]


def read(path: str) -> np.ndarray:
    """Return a picture upright and as RGB, transparency laid on white."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("RGB"))


def main(app: str, *crops: str) -> int:
    recogniser = Recogniser(Path(app))
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["crop", "rank", "sku", "score"])
    failed = 0
    for crop in crops:
        try:
            picture = read(crop)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            sys.stderr.write(f"error: {crop}: {error}\n")
            failed = 1
            continue
        for rank, (sku, score) in enumerate(recogniser.match(picture), start=1):
            table.writerow([crop, rank, sku, f"{score:.6f}"])
    return failed


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python match.py APP CROP...")
    try:
        sys.exit(main(*sys.argv[1:]))
    except Exception as error:  # ONNX Runtime's errors have no other base in common
        sys.exit(f"error: {error}")
