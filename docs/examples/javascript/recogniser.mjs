// Which SKU does a picture show. Runs on onnxruntime-node and, in a browser, on onnxruntime-web: `ort` is one of them.

const TOP = 5;

// The length-delimited fields of a protobuf message: ONNX Runtime's JavaScript API does not give a model's metadata.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (!(byte & 128)) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const kind = key % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind !== 2) return; // not protobuf: ONNX Runtime says so when it opens the file
    else {
      const length = varint();
      yield [(key - kind) / 8, bytes.subarray(at, at + length)];
      at += length;
    }
  }
}

function digestOf(model) {
  const text = new TextDecoder();
  for (const [field, entry] of fields(model)) {
    if (field !== 14) continue; // ModelProto.metadata_props
    const [key, value] = [...fields(entry)].map(([, bytes]) => text.decode(bytes));
    if (key === "skumatch") return JSON.parse(value).spec.digest;
  }
}

// RGB of RGBA, laid on white.
function opaque(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const opacity = rgba[from + 3] / 255;
    for (let i = 0; i < 3; i++) rgb[to++] = Math.round(rgba[from + i] * opacity + 255 * (1 - opacity));
  }
  return rgb;
}

export class Recogniser {
  // model: bytes of model.resize.onnx (Uint8Array); vectors: of vectors.f32 (ArrayBuffer); gallery: parsed views.json
  static async open(ort, model, vectors, gallery) {
    if (digestOf(model) !== gallery.model.digest)
      throw new Error("model.resize.onnx and views.json are not of one model: export both again");
    if (vectors.byteLength !== 4 * gallery.views * gallery.dim)
      throw new Error("vectors.f32 and views.json do not belong together: export the gallery again");
    const made = new Recogniser();
    made.ort = ort;
    made.session = await ort.InferenceSession.create(model);
    made.vectors = new Float32Array(vectors);
    made.gallery = gallery;
    return made;
  }

  // The nearest SKUs, best first, of an upright picture: RGBA row by row, as sharp and a canvas give it.
  async match(rgba, height, width) {
    const image = new this.ort.Tensor("uint8", opaque(rgba), [height, width, 3]);
    const found = await this.session.run({ image });
    const crop = (found.queries ?? found.embeddings).data;
    const { dim, rows, skus } = this.gallery;
    const best = skus.map(({ sku }) => ({ sku, score: -Infinity }));
    rows.forEach((place, row) => {
      let score = 0;
      for (let i = 0; i < dim; i++) score += this.vectors[row * dim + i] * crop[i];
      if (score > best[place].score) best[place].score = score; // a SKU's score is that of its best view
    });
    return best.sort((a, b) => b.score - a.score).slice(0, TOP);
  }
}
