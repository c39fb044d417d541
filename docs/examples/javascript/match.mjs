// node match.mjs [--web] APP CROP... > answers.csv
//
// APP is the folder that `skumatch export --with-resize` and `skumatch gallery export` wrote. --web runs on WebAssembly,
// as a browser does.

import { readFile } from "node:fs/promises";
import path from "node:path";
import sharp from "sharp";
import { Recogniser } from "./recogniser.mjs";

async function open(app, web) {
  const { default: ort } = await import(web ? "onnxruntime-web" : "onnxruntime-node");
  const [model, vectors, views] = await Promise.all(
    ["model.resize.onnx", "vectors.f32", "views.json"].map((name) => readFile(path.join(app, name))),
  );
  return Recogniser.open(ort, model, new Uint8Array(vectors).buffer, JSON.parse(views));
}

// Upright RGBA, colours as they are stored.
async function read(crop) {
  const picture = sharp(crop, { ignoreIcc: true }).autoOrient().toColourspace("srgb").ensureAlpha();
  const { data, info } = await picture.raw().toBuffer({ resolveWithObject: true });
  return [data, info.height, info.width];
}

const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

async function main([app, ...crops], web) {
  const recogniser = await open(app, web);
  console.log("crop,rank,sku,score");
  for (const crop of crops) {
    let picture;
    try {
      picture = await read(crop);
    } catch (error) {
      console.error(`error: ${crop}: ${error.message}`);
      process.exitCode = 1;
      continue;
    }
    const found = await recogniser.match(...picture);
    found.forEach(({ sku, score }, i) => console.log([cell(crop), i + 1, cell(sku), score.toFixed(6)].join()));
  }
}

const given = process.argv.slice(2);
const web = given[0] === "--web";
if (web) given.shift();
if (given.length < 2) {
  console.error("usage: node match.mjs [--web] APP CROP...");
  process.exit(1);
}
main(given, web).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exit(1);
});
