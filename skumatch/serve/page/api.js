// Asking the service. A key, where one is needed, is kept for this tab alone.

import { ask, h } from "./dom.js";

const KEY = "skumatch key";
const pictures = new Map(); // address -> object URL
const MOST = 300;
let asking = null;

export class Refused extends Error {
  constructor(status, what, todo) {
    super(todo ? `${what} \u2013 ${todo}` : what);
    this.status = status;
    this.what = what;
  }
}

// Ask, and return the answer's JSON. Throws Refused with the service's words; status 0: it cannot be reached.
export async function call(path, { method = "GET", json = null, body = null, headers = {}, signal, keepalive } = {}) {
  const answer = await send(path, method, json === null ? body : JSON.stringify(json),
    json === null ? headers : { ...headers, "Content-Type": "application/json" }, { signal, keepalive });
  return answer.json();
}

async function send(path, method, body, headers, how = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let answer;
    try {
      answer = await fetch(path, { ...how, method, body, headers: key ? { ...headers, "X-API-Key": key } : headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "the service cannot be reached", "is it running?");
    }
    if (answer.status === 401 && (await newKey(key))) continue;
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }
}

async function refusal(answer) {
  try {
    const said = await answer.json();
    return new Refused(answer.status, said.error, said.todo);
  } catch {
    return new Refused(answer.status, `the service answered ${answer.status}`, "see its log");
  }
}

// Ask the person for a key, once for all requests that wait for one; return whether there is another now.
async function newKey(before) {
  if (sessionStorage.getItem(KEY) !== before) return true;
  asking ??= keyAsked(before).finally(() => { asking = null; });
  return asking;
}

async function keyAsked(before) {
  const field = h("input", { type: "password", autocomplete: "off", required: true, id: "key" });
  const about = before ? "This key is not valid." : "This service asks for an API key.";
  const given = await ask("API key", [h("p", {}, about), h("label", { for: "key" }, "Key"), field], "Use it", () => field.value.trim());
  if (given) sessionStorage.setItem(KEY, given);
  return Boolean(given);
}

// Show the picture at `path` in `img`. Where a key is needed an address alone does not do.
export function show(img, path) {
  if (!sessionStorage.getItem(KEY)) {
    img.src = path;
    return img;
  }
  if (!pictures.has(path)) {
    pictures.set(path, send(path, "GET", null, {}).then((answer) => answer.blob()).then(URL.createObjectURL));
    if (pictures.size > MOST) {
      const [oldest, held] = pictures.entries().next().value;
      pictures.delete(oldest);
      held.then(URL.revokeObjectURL, () => {});
    }
  }
  pictures.get(path).then((url) => { img.src = url; }, () => pictures.delete(path));
  return img;
}

// Save what is at `path` as a file.
export async function save(path, name) {
  const answer = await send(path, "GET", null, {});
  const url = URL.createObjectURL(await answer.blob());
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

export function picture(path, alt, attributes = {}) {
  return show(h("img", { alt, loading: "lazy", decoding: "async", ...attributes }), path);
}

// Send files, or other pictures, as one form.
export function form(files) {
  const made = new FormData();
  for (const file of files) made.append("images", file, file.name || "pasted.png");
  return made;
}
