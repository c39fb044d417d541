// What was decided on groups, the latest first, to be taken back.

import { call } from "./api.js";
import { failed, h, toast, when } from "./dom.js";

const SHOWN = 100;
const WORDS = { accept: () => "one product", split: (one) => `split into ${one.parts.length}`, merge: (one) => `merged with ${one.groups.slice(1).join(", ")}` };

export default async function decided(place) {
  const list = h("ul", { class: "skus" });
  const told = h("p", { class: "quiet", role: "status" });
  place.append(h("p", {}, h("a", { href: "#groups" }, "\u2190 Groups")), h("h1", {}, "Decided"), told, list);

  async function draw() {
    const said = await call(`/v1/catalogue/decisions?limit=${SHOWN}`);
    told.textContent = said.decisions.length ? "" : "Nothing was decided yet.";
    list.replaceChildren(...said.decisions.map(line));
  }

  function line(one) {
    const words = WORDS[one.decision](one);
    const end = one.withdrawn ? h("span", { class: "quiet" }, "undone")
      : h("button", { type: "button", class: "plain", "aria-label": `Undo: ${one.groups[0]} ${words}`, onclick: () => undo(one.id) }, "Undo");
    return h("li", { class: "decision" },
      h("span", { class: "words" }, h("b", {}, `${one.groups[0]}: ${words}`), h("span", { class: "quiet" }, `${one.who}, `, when(one.at))), end);
  }

  async function undo(id) {
    try {
      await call(`/v1/catalogue/decisions/${id}/undo`, { method: "POST" });
      toast("Undone.");
      document.dispatchEvent(new Event("skumatch:changed"));
      await draw();
    } catch (error) {
      failed(error);
    }
  }

  await draw();
}
