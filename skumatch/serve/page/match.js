// Drop, paste or choose crops, and see which SKUs they show.

import { call, form, picture } from "./api.js";
import { announce, h, percent } from "./dom.js";

const AT_ONCE = 8; // pictures in a request
const SHOWN = 5;
const WORDS = { accept: "accepted", review: "to review", unknown: "unknown", error: "no answer" };

export default async function match(place) {
  const results = h("div", { class: "results", "aria-live": "off" });
  const busy = h("p", { class: "quiet", role: "status" });
  const input = h("input", {
    type: "file", id: "crops", multiple: true, accept: "image/jpeg,image/png,image/webp",
    onchange: () => { take([...input.files]); input.value = ""; },
  });
  const zone = h("div", {
    class: "zone",
    ondragover: (event) => { event.preventDefault(); zone.classList.add("over"); },
    ondragleave: () => zone.classList.remove("over"),
    ondrop: (event) => { zone.classList.remove("over"); take([...event.dataTransfer.files]); },
  },
  h("label", { for: "crops", class: "button" }, "Choose crops"), input,
  h("p", { class: "quiet" }, "or drop them here, or paste one"));
  const pasted = (event) => {
    const files = [...(event.clipboardData?.files || [])];
    if (files.length) take(files);
  };
  addEventListener("paste", pasted);
  place.append(h("h1", {}, "Match crops"), zone, busy, results);

  const queue = [];
  let working = false;

  async function take(files) {
    queue.push(...files.filter((file) => file.size));
    if (working) return;
    working = true;
    let done = 0;
    while (queue.length) {
      busy.textContent = `${queue.length} waiting`;
      const some = queue.splice(0, AT_ONCE);
      try {
        const said = await call(`/v1/match?k=${SHOWN}`, { method: "POST", body: form(some) });
        said.results.forEach((result, at) => results.prepend(card(result, some[at])));
      } catch (error) {
        for (const file of some) results.prepend(unanswered(file, error));
      }
      done += some.length;
    }
    busy.textContent = "";
    working = false;
    announce(`${done} answered`);
    document.dispatchEvent(new Event("skumatch:changed"));
  }

  return () => removeEventListener("paste", pasted);
}

function card(result, file) {
  const best = result.matches[0];
  const shown = h("img", { alt: `the crop ${file.name}`, src: URL.createObjectURL(file) });
  shown.addEventListener("load", () => URL.revokeObjectURL(shown.src), { once: true });
  return h("article", { class: "card", "data-decision": result.decision },
    h("div", { class: "crop" }, shown),
    h("div", { class: "about" },
      h("p", { class: "row" }, badge(result.decision), best && probability(result), h("span", { class: "quiet name" }, file.name || "pasted")),
      result.error ? h("p", { class: "wrong" }, result.error) : h("ol", { class: "candidates" }, result.matches.map((one) => candidate(one, result.decision === "accept"))),
      result.review && result.decision !== "accept" && h("p", {}, h("a", { class: "button", href: `#review/${result.review}` }, "Say what it is"))));
}

function unanswered(file, error) {
  return h("article", { class: "card", "data-decision": "error" },
    h("div", { class: "about" }, h("p", { class: "row" }, badge("error"), h("span", { class: "quiet name" }, file.name || "pasted")), h("p", { class: "wrong" }, error.message)));
}

export function badge(decision) {
  return h("span", { class: `badge ${decision}` }, WORDS[decision]);
}

export function probability(result) {
  return result.probability === null ? null : h("span", { title: "probability that the best answer is right" }, percent(result.probability));
}

function candidate(one) {
  return h("li", {},
    h("a", { href: `#gallery/${encodeURIComponent(one.sku)}` },
      picture(one.view_url, ""),
      h("span", { class: "words" }, h("b", {}, one.title || one.sku), one.title ? h("span", { class: "quiet" }, one.sku) : null),
      h("span", { class: "score" }, one.score.toFixed(3))));
}
