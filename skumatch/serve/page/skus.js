// Finding a SKU by words.

import { call } from "./api.js";
import { failed, h } from "./dom.js";

const PAUSE = 150; // milliseconds of no typing
let lists = 0;

// Ask for a SKU in a dialog; resolves to its name, or null.
export function chooser(title) {
  return new Promise((resolve) => {
    let picked = null;
    let found = [];
    let at = 0;
    const list = h("ul", { role: "listbox", id: `skus-${(lists += 1)}`, class: "options", "aria-label": "SKUs" });
    const field = h("input", {
      type: "search", role: "combobox", "aria-expanded": "true", "aria-controls": list.id, "aria-autocomplete": "list", "aria-label": title,
      autocomplete: "off", maxlength: 200, placeholder: "words of its name or title",
      oninput: () => look(), onkeydown: typed,
    });
    const look = searching(field, (skus) => { found = skus; at = 0; draw(); });
    const dialog = h("dialog", { "aria-label": title, onclose: () => { dialog.remove(); resolve(picked); } },
      h("h2", {}, title), field, list, h("p", { class: "row end" }, h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Cancel")));

    function draw() {
      list.replaceChildren(...found.map((one, number) => h("li", {
        role: "option", id: `${list.id}-${number}`, "aria-selected": String(number === at), onclick: () => take(number),
      }, h("b", {}, one.title || one.sku), one.title ? h("span", { class: "quiet" }, one.sku) : null)));
      if (!found.length) list.append(h("li", { class: "quiet" }, "no such SKU"));
      field.setAttribute("aria-activedescendant", found.length ? `${list.id}-${at}` : "");
      list.children[at]?.scrollIntoView({ block: "nearest" });
    }

    function take(number) {
      picked = found[number]?.sku ?? null;
      if (picked) dialog.close();
    }

    function typed(event) {
      if (event.key === "Enter") take(at);
      else if (event.key === "ArrowDown") at = Math.min(found.length - 1, at + 1);
      else if (event.key === "ArrowUp") at = Math.max(0, at - 1);
      else return;
      event.preventDefault();
      if (dialog.open) draw();
    }

    document.body.append(dialog);
    dialog.showModal();
    look();
  });
}

// Return a function that asks for what `field` says, and gives `then` the first SKUs of the latest question.
export function searching(field, then, limit = 20) {
  let timer = 0;
  let running = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      running?.abort();
      const own = (running = new AbortController());
      try {
        const said = await call(`/v1/skus?limit=${limit}&query=${encodeURIComponent(field.value)}`, { signal: own.signal });
        if (running === own) then(said.skus, said.next);
      } catch (error) {
        failed(error);
      }
    }, PAUSE);
  };
}
