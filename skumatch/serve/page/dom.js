// Making elements, and saying things. Text is only ever set as text: nothing that a SKU is called becomes markup.

export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Tell who cannot see it.
export function announce(text) {
  document.getElementById("said").textContent = text;
}

let fading = 0;

// Tell everybody, for a while; `action` is [label, what it does].
export function toast(text, action = null, failed = false) {
  const place = document.getElementById("toast");
  clearTimeout(fading);
  const button = action && h("button", { type: "button", onclick: () => { place.hidden = true; action[1](); } }, action[0]);
  place.replaceChildren(h("span", {}, text), button || "", h("button", { type: "button", class: "plain", "aria-label": "Close", onclick: () => { place.hidden = true; } }, "\u00d7"));
  place.classList.toggle("failed", failed);
  place.hidden = false;
  announce(text);
  fading = setTimeout(() => { place.hidden = true; }, failed ? 20000 : 8000);
}

export function failed(error) {
  if (error.name !== "AbortError") toast(error.message, null, true);
}

// Ask in a dialog; resolves to what the form's `values` returns, or null where it was left.
export function ask(title, fields, submit, values) {
  return new Promise((resolve) => {
    let answer = null;
    const close = () => dialog.close();
    const form = h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); answer = values(); close(); } },
      h("h2", { id: "dialog-title" }, title), fields,
      h("p", { class: "row end" },
        h("button", { type: "button", class: "plain", onclick: close }, "Cancel"),
        h("button", { type: "submit" }, submit)));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => { dialog.remove(); resolve(answer); } }, form);
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function percent(share) {
  return share === null || share === undefined ? "\u2013" : `${(100 * share).toFixed(1)} %`;
}

export function when(text) {
  return h("time", { datetime: text }, new Date(text).toLocaleString());
}
