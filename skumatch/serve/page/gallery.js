// What the gallery holds: SKUs by words, the views of one, and its versions.

import { call, form, picture } from "./api.js";
import { announce, ask, failed, h, toast, when } from "./dom.js";
import { searching } from "./skus.js";

const PAGE = 60;

export default async function gallery(place, sku, current) {
  if (sku === "versions:") return versions(place, current);
  return sku ? one(place, sku, current) : list(place);
}

function list(place) {
  let next = null;
  const found = h("ul", { class: "skus" });
  const more = h("button", { type: "button", hidden: true, onclick: () => add().catch(failed) }, "More");
  const told = h("p", { class: "quiet", role: "status" });
  const field = h("input", { type: "search", id: "words", maxlength: 200, autocomplete: "off", placeholder: "words of a name, title or fact", oninput: () => look() });
  const look = searching(field, (skus, following) => {
    found.replaceChildren(...skus.map(line));
    told.textContent = skus.length ? "" : "No SKU has these words.";
    next = following;
    more.hidden = !next;
  }, PAGE);

  async function add() {
    const said = await call(`/v1/skus?limit=${PAGE}&query=${encodeURIComponent(field.value)}&after=${encodeURIComponent(next)}`);
    found.append(...said.skus.map(line));
    next = said.next;
    more.hidden = !next;
  }

  place.append(
    h("div", { class: "row spread" }, h("h1", {}, "Gallery"), h("a", { class: "button plain", href: "#gallery/versions%3A" }, "Versions")),
    h("div", { class: "row" }, h("label", { for: "words" }, "Find"), field, h("button", { type: "button", onclick: create }, "New SKU")),
    told, found, more);
  look();
}

function line(said) {
  return h("li", {}, h("a", { href: `#gallery/${encodeURIComponent(said.sku)}` },
    h("span", { class: "words" }, h("b", {}, said.title || said.sku), said.title ? h("span", { class: "quiet" }, said.sku) : null),
    h("span", { class: "quiet" }, `${said.views} ${said.views === 1 ? "view" : "views"}`)));
}

async function create() {
  const name = h("input", { id: "sku-name", required: true, maxlength: 256, autocomplete: "off" });
  const title = h("input", { id: "sku-title", maxlength: 400, autocomplete: "off" });
  const files = h("input", { id: "sku-files", type: "file", multiple: true, required: true, accept: "image/jpeg,image/png,image/webp" });
  const given = await ask("A new SKU", [
    h("label", { for: "sku-name" }, "SKU"), name, h("label", { for: "sku-title" }, "Title (optional)"), title,
    h("label", { for: "sku-files" }, "Pictures"), files,
  ], "Add it", () => ({ sku: name.value.trim(), title: title.value.trim(), files: [...files.files] }));
  if (!given?.sku) return;
  try {
    await enrol(given.sku, given.files, given.title);
    location.hash = `#gallery/${encodeURIComponent(given.sku)}`;
  } catch (error) {
    failed(error);
  }
}

async function enrol(sku, files, title = "") {
  const said = await call(`/v1/views?sku=${encodeURIComponent(sku)}&title=${encodeURIComponent(title)}`, { method: "POST", body: form(files) });
  const known = said.known ? `, ${said.known} known already` : "";
  toast(`${said.views.length} added${known}.`);
  document.dispatchEvent(new Event("skumatch:changed"));
  return said;
}

async function one(place, sku, current) {
  const facts = h("dl", { class: "facts" });
  const views = h("ul", { class: "views" });
  const head = h("h1", {}, sku);
  const more = h("button", { type: "button", hidden: true, onclick: () => page().catch(failed) }, "More");
  const input = h("input", { type: "file", id: "add", multiple: true, accept: "image/jpeg,image/png,image/webp", onchange: () => added([...input.files]) });
  const zone = h("div", {
    class: "zone small",
    ondragover: (event) => { event.preventDefault(); zone.classList.add("over"); },
    ondragleave: () => zone.classList.remove("over"),
    ondrop: (event) => { zone.classList.remove("over"); added([...event.dataTransfer.files]); },
  }, h("label", { for: "add", class: "button" }, "Add pictures"), input, h("span", { class: "quiet" }, "or drop them here"));
  let after = null;

  async function told() {
    const said = await call(`/v1/skus/${encodeURIComponent(sku)}`);
    head.textContent = said.title || said.sku;
    facts.replaceChildren(...[["SKU", said.sku], ["Views", said.views], ...Object.entries(said.facts)].map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(text)))));
  }

  async function page() {
    const said = await call(`/v1/views?sku=${encodeURIComponent(sku)}&limit=${PAGE}${after === null ? "" : `&after=${after}`}`);
    if (after === null) views.replaceChildren();
    views.append(...said.views.map(view));
    after = said.next;
    more.hidden = after === null;
  }

  function view(said) {
    return h("li", {},
      picture(said.url, `view ${said.view}${said.file ? `, ${said.file}` : ""}`),
      h("span", { class: "quiet name" }, said.file || `view ${said.view}`),
      h("button", { type: "button", class: "plain", "aria-label": `Remove view ${said.view}`, onclick: () => change(`/v1/views/${said.view}`, "DELETE", "View removed.") }, "Remove"));
  }

  async function again() {
    after = null;
    await Promise.all([told(), page()]);
  }

  async function added(files) {
    if (!files.length) return;
    try {
      await enrol(sku, files);
      await again();
    } catch (error) {
      failed(error);
    }
    input.value = "";
  }

  // Do something that can be taken back by going back a version.
  async function change(path, method, words) {
    try {
      const before = (await call("/v1/gallery")).gallery.version;
      await call(path, { method });
      toast(words, ["Undo", () => back(before).then(again).catch(failed)]);
      document.dispatchEvent(new Event("skumatch:changed"));
      await again();
    } catch (error) {
      if (error.status === 404) location.hash = "#gallery"; // it went with its last view
      else failed(error);
    }
  }

  async function rename() {
    const field = h("input", { id: "title", maxlength: 400, autocomplete: "off", value: head.textContent });
    const given = await ask("Title", [h("label", { for: "title" }, `Title of ${sku}`), field], "Keep it", () => ({ title: field.value.trim() }));
    if (!given) return;
    try {
      await call(`/v1/skus/${encodeURIComponent(sku)}`, { method: "PATCH", json: { facts: given } });
      await told();
    } catch (error) {
      failed(error);
    }
  }

  async function remove() {
    const sure = await ask(`Remove ${sku}?`, [h("p", {}, "Its views go with it. Older versions of the gallery keep them until they are pruned.")], "Remove it", () => true);
    if (sure) change(`/v1/skus/${encodeURIComponent(sku)}`, "DELETE", `${sku} removed.`);
  }

  place.append(
    h("p", {}, h("a", { href: "#gallery" }, "\u2190 All SKUs")), head, facts,
    h("p", { class: "row" }, h("button", { type: "button", class: "plain", onclick: rename }, "Change title"), h("button", { type: "button", class: "plain", onclick: remove }, "Remove SKU")),
    zone, views, more);
  await again();
  if (current()) announce(`${head.textContent}`);
}

async function back(version) {
  await call("/v1/gallery/rollback", { method: "POST", json: { to: version } });
  toast(`${version} answers.`);
  document.dispatchEvent(new Event("skumatch:changed"));
}

async function versions(place) {
  const rows = h("tbody");
  async function draw() {
    const said = await call("/v1/gallery/log?limit=200");
    rows.replaceChildren(...said.versions.map((line) => h("tr", { class: line.current ? "current" : null },
      h("th", { scope: "row" }, line.version),
      h("td", {}, line.damaged ? "damaged" : line.reason),
      h("td", {}, line.time ? when(line.time) : ""),
      h("td", { class: "number" }, line.views?.toLocaleString() ?? ""),
      h("td", {}, line.current ? "answers" : line.damaged ? "" : h("button", { type: "button", class: "plain", "aria-label": `Go back to ${line.version}`, onclick: () => go(line.version) }, "Go back")))));
  }
  async function go(version) {
    const now = (await call("/v1/gallery")).current.version;
    const said = await call(`/v1/gallery/diff?a=${now}&b=${version}&limit=1`);
    const words = [["skus_added", "SKUs come"], ["skus_removed", "SKUs go"], ["views_added", "views come"], ["views_removed", "views go"]]
      .filter(([name]) => said[name].count).map(([name, what]) => `${said[name].count.toLocaleString()} ${what}`).join(", ");
    const sure = await ask(`Go back to ${version}?`, [h("p", {}, words ? `${words}. ` : "", "Later versions stay until they are pruned.")], "Go back", () => true);
    if (sure) await back(version).then(draw);
  }
  place.append(h("p", {}, h("a", { href: "#gallery" }, "\u2190 All SKUs")), h("h1", {}, "Versions"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Versions" }, h("table", {}, h("thead", {}, h("tr", {}, ["Version", "Made by", "Time", "Views", "State"].map((name) => h("th", { scope: "col" }, name)))), rows)));
  await draw();
}
