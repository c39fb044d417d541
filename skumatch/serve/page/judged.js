// What was said of crops, the latest first, to be taken back.

import { call, picture } from "./api.js";
import { failed, h, toast, when } from "./dom.js";
import { badge } from "./match.js";

const SHOWN = 100;
const WORDS = { accept: "is", correct: "is", new: "is new:", reject: "shows no product" };

export default async function judged(place) {
  const list = h("ul", { class: "views" });
  const told = h("p", { class: "quiet", role: "status" });
  place.append(h("p", {}, h("a", { href: "#review" }, "\u2190 Review")), h("h1", {}, "Judged"), told, list);

  async function draw() {
    const said = await call(`/v1/review?state=judged&limit=${SHOWN}`);
    told.textContent = said.reviews.length ? "" : "Nothing was judged yet.";
    list.replaceChildren(...said.reviews.map(line));
  }

  function line(one) {
    const words = `${WORDS[one.verdict]}${one.verdict === "reject" ? "" : ` ${one.sku || "without a name"}`}`;
    return h("li", {},
      picture(one.url, `the crop ${one.name || one.id}`),
      h("span", { class: "row" }, badge(one.decision), h("b", { title: words }, words)),
      h("span", { class: "quiet" }, `${one.who}, `, when(one.judged)),
      h("button", { type: "button", class: "plain", "aria-label": `Undo: ${one.name || one.id} ${words}`, onclick: () => undo(one.id) }, "Undo"));
  }

  async function undo(id) {
    try {
      await call(`/v1/review/${id}/undo`, { method: "POST" });
      toast("Undone: the crop waits again.");
      document.dispatchEvent(new Event("skumatch:changed"));
      await draw();
    } catch (error) {
      failed(error);
    }
  }

  await draw();
}
