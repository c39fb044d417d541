// The queue of doubtful crops, by keyboard or by hand. A verdict counts when the service has it: until then the crop
// stays, and is sent again when the service is back.

import { call, picture, show } from "./api.js";
import { announce, ask, failed, h, toast } from "./dom.js";
import judged from "./judged.js";
import { badge, probability } from "./match.js";
import { chooser } from "./skus.js";

const SESSION = "skumatch session";
const AHEAD = 20; // crops claimed at a time
const LEFT_OUT = 1000; // skipped ones that the service is told of
const LOW = 5; // when so few are left, more are claimed
const AGAIN = 1000; // milliseconds between attempts
const LOOK = 10000; // milliseconds between looks at an empty queue
const DONE = 30; // crops that can be undone from here
const KEYS = [["1\u20139", "it is this candidate"], ["Enter", "it is the first"], ["S", "it is another SKU"], ["N", "it is a new SKU"], ["X", "no product"], ["K", "skip"], ["U", "undo the last"]];

function session() {
  let word = sessionStorage.getItem(SESSION);
  if (!word) {
    word = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem(SESSION, word);
  }
  return word;
}

export default async function review(place, only, current) {
  if (only === "judged") return judged(place);
  const mine = session();
  let queue = []; // claimed and not judged
  const skipped = new Set();
  const done = []; // ids of judged ones, the latest last
  let sending = false;
  let claiming = null;
  let beat = 0;
  let ended = false;

  const desk = h("div", { class: "desk" });
  const help = h("details", { class: "keys" }, h("summary", {}, "Keys"), h("dl", {}, KEYS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)))));
  const undoButton = h("button", { type: "button", class: "plain", onclick: undo, disabled: true }, "Undo");
  place.append(h("div", { class: "row spread" }, h("h1", {}, "Review"), h("div", { class: "row" }, h("a", { class: "button plain", href: "#review/judged" }, "Judged"), undoButton)), desk, help);

  // Get crops that nobody else gets meanwhile, and keep those that are here.
  async function claim(first = "") {
    claiming ??= claimed(first).finally(() => { claiming = null; });
    return claiming;
  }

  async function claimed(first) {
    const had = new Set(queue.map((one) => one.id));
    const asked = { session: mine, limit: Math.max(AHEAD, had.size), first, without: [...skipped].slice(-LEFT_OUT) };
    const said = await call("/v1/review/claim", { method: "POST", json: asked });
    document.dispatchEvent(new CustomEvent("skumatch:waiting", { detail: said.waiting }));
    const ours = new Set(said.reviews.map((one) => one.id));
    queue = queue.filter((one) => ours.has(one.id) || !had.has(one.id)); // who was away too long has lost them
    const known = new Set([...queue.map((one) => one.id), ...done, ...skipped]);
    queue.push(...said.reviews.filter((one) => !known.has(one.id)));
    for (const one of queue.slice(1, 4)) show(new Image(), one.url);
    clearTimeout(beat);
    if (!ended) beat = setTimeout(held, queue.length ? 1000 * Math.max(1, said.seconds / 3) : LOOK);
  }

  // What is on the screen is nobody else's, and an empty one does not stay so.
  async function held() {
    if (document.hidden) {
      beat = setTimeout(held, LOOK);
      return;
    }
    try {
      await claim();
      if (current() && !sending && queue[0]?.id !== desk.dataset.crop) draw();
    } catch {
      if (!ended) beat = setTimeout(held, LOOK);
    }
  }

  async function next() {
    if (!current()) return;
    if (queue.length === 0) await claim();
    if (current()) draw();
    if (queue.length < LOW) claim().catch(() => {});
  }

  function draw() {
    const one = queue[0];
    if (!one) {
      const again = h("button", { type: "button", onclick: () => { skipped.clear(); next().catch(failed); } }, `Look at the ${skipped.size.toLocaleString()} skipped`);
      desk.replaceChildren(h("div", { class: "empty" }, h("p", {}, skipped.size ? "Nothing else waits for review." : "Nothing waits for review."), skipped.size ? again : null));
      delete desk.dataset.crop;
      return;
    }
    const best = one.candidates[0];
    desk.replaceChildren(
      h("figure", { class: "crop" },
        picture(one.url, `the crop ${one.name || one.id}`, { loading: "eager" }),
        h("figcaption", { class: "row" }, badge(one.decision), probability(one), h("span", { class: "quiet name" }, one.name))),
      h("div", { class: "answer" },
        h("h2", {}, best ? "Which one is it?" : "What is it?"),
        h("ol", { class: "candidates choose" }, one.candidates.slice(0, 9).map((found, at) => h("li", {},
          h("button", { type: "button", "data-sku": found.sku, onclick: () => pick(at) },
            h("kbd", { "aria-hidden": "true" }, String(at + 1)),
            picture(found.view_url, ""),
            h("span", { class: "words" }, h("b", {}, found.title || found.sku), found.title ? h("span", { class: "quiet" }, found.sku) : null),
            h("span", { class: "score" }, found.score.toFixed(3)))))),
        h("p", { class: "row" },
          h("button", { type: "button", onclick: other }, "Another SKU ", h("kbd", {}, "S")),
          h("button", { type: "button", onclick: fresh }, "New SKU ", h("kbd", {}, "N")),
          h("button", { type: "button", onclick: () => judge({ verdict: "reject" }, "no product") }, "No product ", h("kbd", {}, "X")),
          h("button", { type: "button", class: "plain", onclick: skip }, "Skip ", h("kbd", {}, "K")))));
    desk.dataset.crop = one.id;
    announce(`${one.name || "a crop"}: ${best ? best.title || best.sku : "nothing alike"}`);
  }

  function pick(at) {
    const found = queue[0]?.candidates[at];
    if (found) judge(at === 0 ? { verdict: "accept", sku: found.sku } : { verdict: "correct", sku: found.sku }, found.title || found.sku);
  }

  async function other() {
    const one = queue[0];
    if (!one || sending) return;
    const sku = await chooser("Which SKU is it?");
    if (sku) judge({ verdict: "correct", sku }, sku, one);
  }

  async function fresh() {
    const one = queue[0];
    if (!one || sending) return;
    const name = h("input", { id: "new-sku", required: true, maxlength: 256, autocomplete: "off" });
    const title = h("input", { id: "new-title", maxlength: 400, autocomplete: "off" });
    const given = await ask("A new SKU", [h("label", { for: "new-sku" }, "SKU"), name, h("label", { for: "new-title" }, "Title (optional)"), title], "Add it", () => ({ sku: name.value.trim(), title: title.value.trim() }));
    if (given?.sku) judge({ verdict: "new", ...given }, given.title || given.sku, one);
  }

  function skip() {
    const one = queue.shift();
    if (one) skipped.add(one.id);
    next().catch(failed);
  }

  // Send a verdict until the service has it or refuses it.
  async function judge(said, words, one = queue[0]) {
    if (!one || sending) return;
    sending = true;
    desk.classList.add("busy");
    try {
      const answer = await persist(one.id, said);
      if (answer) toast(said.verdict === "reject" ? "No product." : `${words}: kept.`, ["Undo", undo]);
      done.push(one.id);
      done.splice(0, done.length - DONE);
      queue = queue.filter((other) => other.id !== one.id);
      undoButton.disabled = false;
      document.dispatchEvent(new Event("skumatch:changed"));
    } catch (error) {
      failed(error);
      if (error.status === 409 || error.status === 404) queue = queue.filter((other) => other.id !== one.id);
    } finally {
      sending = false;
      desk.classList.remove("busy");
    }
    next().catch(failed);
  }

  async function persist(id, said) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await call(`/v1/review/${id}`, { method: "POST", json: { ...said, session: mine } });
      } catch (error) {
        if (attempt && error.status === 409 && (await isOurs(id, said))) return null; // it had it before the connection broke
        if (error.status && error.status < 500 && error.status !== 429) throw error;
        if (ended) throw error;
        if (attempt === 0) toast("The service does not answer; the verdict is sent again until it does.", null, true);
        await new Promise((resolve) => setTimeout(resolve, AGAIN));
      }
    }
  }

  async function isOurs(id, said) {
    const there = await call(`/v1/review/${id}`);
    return there.verdict !== null && (there.sku || "") === (said.sku || "");
  }

  async function undo() {
    const id = done.pop();
    if (!id || sending) return;
    sending = true;
    try {
      const said = await call(`/v1/review/${id}/undo?session=${mine}`, { method: "POST" });
      queue.unshift(said.review);
      toast("Undone.");
      document.dispatchEvent(new Event("skumatch:changed"));
      draw();
    } catch (error) {
      failed(error);
    } finally {
      sending = false;
      undoButton.disabled = done.length === 0;
    }
  }

  function pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input, textarea, select")) return;
    const onButton = event.target.closest?.("button, a, summary");
    const key = event.key.toLowerCase();
    const act = { s: other, "/": other, n: fresh, x: () => judge({ verdict: "reject" }, ""), k: skip, u: undo }[key];
    if (/^[1-9]$/.test(key)) pick(Number(key) - 1);
    else if (key === "enter" && !onButton) pick(0);
    else if (act) act();
    else return;
    event.preventDefault();
  }
  addEventListener("keydown", pressed);
  const leaving = () => { // others get them at once
    if (beat) call("/v1/review/release", { method: "POST", keepalive: true, json: { session: mine } }).catch(() => {});
  };
  addEventListener("pagehide", leaving);

  try {
    const wanted = only && await call(`/v1/review/${only}`);
    if (wanted && wanted.verdict) {
      done.push(wanted.id);
      undoButton.disabled = false;
    } else if (wanted) {
      await claim(wanted.id);
      if (queue[0]?.id !== wanted.id) toast("Somebody else looks at this crop.");
    }
    await next();
  } catch (error) {
    if (error.status === 404 && !only) desk.replaceChildren(h("p", { class: "empty" }, "This service keeps no crops for review. Set reviews = true in [service] of skumatch.toml."));
    else failed(error);
  }
  return () => {
    ended = true;
    clearTimeout(beat);
    removeEventListener("keydown", pressed);
    removeEventListener("pagehide", leaving);
    leaving();
  };
}
