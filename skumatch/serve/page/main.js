// Which view is shown, and what all of them share.

import { call } from "./api.js";
import { failed, h } from "./dom.js";
import figures from "./figures.js";
import gallery from "./gallery.js";
import groups from "./groups.js";
import match from "./match.js";
import review from "./review.js";

const VIEWS = { match, review, groups, gallery, figures };
let leave = () => {};
let turn = 0;

async function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "match";
  const own = ++turn;
  leave();
  leave = () => {};
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view} \u2013 skumatch`;
  const place = h("div", { class: `view ${view}` });
  document.getElementById("main").replaceChildren(place);
  try {
    const left = await VIEWS[view](place, rest.map(decodeURIComponent).join("/"), () => own === turn);
    if (own === turn) leave = left || leave;
    else left?.();
  } catch (error) {
    failed(error);
  }
  status();
}

// Say what answers, and how many crops and groups wait.
export async function status() {
  try {
    const now = await call("/v1/gallery");
    const said = `${now.skus.toLocaleString()} SKUs, ${now.gallery.version}`;
    const place = document.getElementById("version");
    place.textContent = said;
    place.title = `${now.views.toLocaleString()} views, ${now.model}`;
  } catch (error) {
    failed(error);
  }
  await count("waiting", "/v1/review?limit=1");
  await count("waiting-groups", "/v1/catalogue/stats");
}

// Say how many wait, where there is anything to wait for.
async function count(name, path) {
  try {
    waiting(name, (await call(path)).waiting);
  } catch (error) {
    if (error.status !== 404) failed(error);
  }
}

function waiting(name, count) {
  const place = document.getElementById(name);
  place.textContent = count.toLocaleString();
  place.hidden = count === 0;
  place.closest("a").hidden = false;
}

addEventListener("hashchange", () => {
  show();
  document.getElementById("main").focus();
});
document.addEventListener("skumatch:changed", status);
document.addEventListener("skumatch:waiting", (event) => waiting("waiting", event.detail));
document.addEventListener("skumatch:groups", (event) => waiting("waiting-groups", event.detail));
// A picture that is dropped beside the drop zone does not replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
show();
