// Groups of duplicates, the least sure first: one product, several, or one with another group. A decision counts when
// the service has it: until then the group stays, and the decision is sent again when the service is back.

import { call, picture, save } from "./api.js";
import { announce, failed, h, toast } from "./dom.js";
import decided from "./decided.js";

const AHEAD = 40; // groups asked for at a time
const APART = 10; // groups that two operators who met keep between them
const AGAIN = 1000; // milliseconds between attempts
const DONE = 30; // decisions that can be undone from here
const FEW = 6; // postings of a suggested group that are shown
const SURE = 0.8;
const KEYS = [["Enter or A", "one product"], ["1\u20139", "mark a posting that belongs elsewhere; again: elsewhere still"], ["S", "split the marked ones off"], ["M", "merge with the group beside it"], ["N", "another group beside it"], ["Esc", "no marks"], ["K", "skip"], ["U", "undo the last"]];

export default async function groups(place, only, current) {
  if (only === "decided:") return decided(place);
  let queue = []; // names of groups that wait
  const skipped = new Set();
  const done = []; // [id of a decision, the groups it was about], the latest last
  const known = new Map(); // name -> what was told of it
  let shown = null;
  let marks = new Map(); // posting -> part, 1 or more
  let beside = 0; // which suggestion
  let sending = false;
  let ended = false;

  const desk = h("div", { class: "desk" });
  const help = h("details", { class: "keys" }, h("summary", {}, "Keys"), h("dl", {}, KEYS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)))));
  const undoButton = h("button", { type: "button", class: "plain", onclick: undo, disabled: true }, "Undo");
  place.append(h("div", { class: "row spread" }, h("h1", {}, "Groups"), h("div", { class: "row" },
    h("a", { class: "button plain", href: "#groups/decided%3A" }, "Decided"),
    h("button", { type: "button", class: "plain", onclick: () => save("/v1/catalogue/export", "decisions.jsonl").catch(failed) }, "Save decisions"),
    undoButton)), desk, help);

  function told(name) {
    if (!known.has(name)) {
      const asked = call(`/v1/catalogue/groups/${encodeURIComponent(name)}`);
      asked.catch(() => known.delete(name));
      known.set(name, asked);
    }
    return known.get(name);
  }

  // Get groups that wait, page by page until one was not skipped.
  async function fill() {
    let after = 0;
    while (queue.length === 0 && after !== null) {
      const said = await call(`/v1/catalogue/groups?limit=${AHEAD}&after=${after}`);
      document.dispatchEvent(new CustomEvent("skumatch:groups", { detail: said.waiting }));
      queue = said.groups.map((one) => one.group).filter((name) => !skipped.has(name));
      after = said.next;
    }
  }

  async function next() {
    if (!current()) return;
    if (queue.length === 0) await fill();
    const name = queue[0];
    let found = null;
    try {
      found = name === undefined ? null : await told(name);
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    if (!current() || name !== queue[0]) return;
    if (name !== undefined && (!found || (found.decided && name !== only))) { // somebody else was here
      queue.shift();
      known.delete(name);
      return next();
    }
    show(found);
    if (queue[1]) told(queue[1]).then((one) => one.postings.slice(0, 12).forEach((posting) => posting.url && picture(posting.url, "", { loading: "eager" })), () => {});
  }

  function show(one) {
    shown = one;
    marks = new Map();
    beside = 0;
    if (one) draw();
    else {
      const again = h("button", { type: "button", onclick: () => { skipped.clear(); next().catch(failed); } }, `Look at the ${skipped.size.toLocaleString()} skipped`);
      desk.replaceChildren(h("div", { class: "empty" }, h("p", {}, skipped.size ? "Nothing else waits for review." : "Nothing waits for review."), skipped.size ? again : null));
      delete desk.dataset.group;
    }
  }

  function draw() {
    const one = shown;
    const other = h("section", { class: "beside" });
    desk.replaceChildren(
      h("div", { class: "group" },
        h("div", { class: "row" }, h("h2", {}, one.group), h("span", { class: "quiet" }, `${one.size.toLocaleString()} ${one.size === 1 ? "posting" : "postings"}`), sure(one)),
        h("p", { class: "row" },
          h("button", { type: "button", onclick: accept }, "One product ", h("kbd", {}, "A")),
          h("button", { type: "button", onclick: split }, "Split ", h("kbd", {}, "S")),
          h("button", { type: "button", class: "plain", onclick: skip }, "Skip ", h("kbd", {}, "K"))),
        h("ul", { class: "tiles" }, one.postings.map((posting, at) => h("li", {}, tile(posting, at))))),
      h("div", { class: "answer" }, one.reasons.length ? h("section", {}, h("h2", {}, "Why"), h("ul", { class: "reasons" }, one.reasons.map((reason) => h("li", {}, why(reason, one))))) : null, other));
    desk.dataset.group = one.group;
    drawBeside(other);
    announce(`${one.group}: ${one.size} postings`);
  }

  function tile(posting, at) {
    return h("button", { type: "button", class: "tile", "aria-pressed": "false", "data-posting": posting.posting, onclick: () => mark(at) },
      photo(posting, at),
      h("span", { class: "words" }, h("b", { title: posting.title }, at < 9 ? h("kbd", { "aria-hidden": "true" }, String(at + 1)) : `${at + 1}`, ` ${posting.title || "no title"}`),
        h("span", { class: "quiet" }, posting.posting)),
      h("span", { class: "row" }, h("span", { class: "score" }, posting.confidence.toFixed(2)), h("span", { class: "mark" })));
  }

  // Mark a posting for another part than it had, of one more than there are.
  function mark(at) {
    const posting = shown?.postings[at]?.posting;
    if (posting === undefined || sending) return;
    const others = Math.max(0, ...[...marks].filter(([name]) => name !== posting).map(([, part]) => part));
    const part = ((marks.get(posting) || 0) + 1) % (others + 2);
    if (part) marks.set(posting, part);
    else marks.delete(posting);
    drawMarks();
  }

  function drawMarks() {
    const several = Math.max(0, ...marks.values()) > 1;
    for (const button of desk.querySelectorAll(".tile")) {
      const part = marks.get(button.dataset.posting) || 0;
      button.setAttribute("aria-pressed", String(part > 0));
      button.querySelector(".mark").textContent = part ? `apart${several ? ` ${part}` : ""}` : "";
    }
    announce(`${marks.size} marked`);
  }

  async function drawBeside(section) {
    const suggestion = shown.suggestions[beside];
    if (!suggestion) return;
    const from = shown;
    const more = from.suggestions.length > 1 ? h("button", { type: "button", class: "plain", onclick: another }, "Another ", h("kbd", {}, "N")) : null;
    const list = h("ul", { class: "tiles small" });
    section.replaceChildren(
      h("h2", {}, "The same as ", h("span", {}, `${suggestion.group}?`)),
      h("p", { class: "row" }, h("button", { type: "button", onclick: merge }, "Merge ", h("kbd", {}, "M")), more, h("span", { class: "quiet" }, `${suggestion.size.toLocaleString()} ${suggestion.size === 1 ? "posting" : "postings"}`)),
      list, h("ul", { class: "reasons" }, h("li", {}, why(suggestion.reason, from))));
    try {
      const other = await told(suggestion.group);
      if (shown !== from || from.suggestions[beside] !== suggestion) return;
      list.replaceChildren(...other.postings.slice(0, FEW).map((posting, at) => h("li", { title: posting.title }, photo(posting, at), h("b", {}, posting.title || "no title"))));
    } catch (error) {
      if (error.status !== 404) failed(error);
    }
  }

  function another() {
    if (!shown || shown.suggestions.length < 2) return;
    beside = (beside + 1) % shown.suggestions.length;
    drawBeside(desk.querySelector(".beside"));
  }

  function accept() {
    if (marks.size) toast("Some postings are marked: S splits them off, Esc takes the marks back.");
    else decide({ decision: "accept", groups: [seen(shown)] }, `${shown?.group}: one product.`);
  }

  function split() {
    if (!shown) return;
    const parts = Array.from({ length: Math.max(0, ...marks.values()) + 1 }, () => []);
    for (const { posting } of shown.postings) parts[marks.get(posting) || 0].push(posting);
    const filled = parts.filter((part) => part.length);
    if (filled.length < 2) toast("Mark the postings that belong elsewhere first: click them, or press their numbers.");
    else decide({ decision: "split", groups: [seen(shown)], parts: filled }, `${shown.group}: split into ${filled.length}.`);
  }

  function merge() {
    const other = shown?.suggestions[beside];
    if (!other) toast("No other group is alike.");
    else if (marks.size) toast("Some postings are marked: S splits them off, Esc takes the marks back.");
    else decide({ decision: "merge", groups: [seen(shown), seen(other)] }, `${shown.group}: merged with ${other.group}.`);
  }

  function seen(one) {
    return one && { group: one.group, version: one.version };
  }

  function skip() {
    if (!shown || sending) return;
    skipped.add(shown.group);
    leave([shown.group]);
    next().catch(failed);
  }

  function leave(names) {
    queue = queue.filter((name) => !names.includes(name));
  }

  // Send a decision until the service has it or refuses it.
  async function decide(said, words) {
    if (!shown || sending) return;
    sending = true;
    desk.classList.add("busy");
    const names = said.groups.map((one) => one.group);
    try {
      const taken = await persist({ ...said, id: word() });
      done.push([taken.id, names]);
      done.splice(0, done.length - DONE);
      undoButton.disabled = false;
      toast(words, ["Undo", undo]);
      leave(names);
      known.clear(); // what was told of others may name these
      document.dispatchEvent(new Event("skumatch:changed"));
    } catch (error) {
      failed(error);
      if (error.status === 409 || error.status === 404) met(names);
    } finally {
      sending = false;
      desk.classList.remove("busy");
    }
    next().catch(failed);
  }

  // Somebody else works here too: go on some groups away. Theirs are passed over when their turn comes.
  function met(names) {
    known.clear();
    if (names.length > 1) return; // the group itself may be as it was: it is looked at again
    leave(names);
    if (queue.length > APART) queue.push(...queue.splice(0, APART));
  }

  async function persist(said) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await call("/v1/catalogue/decisions", { method: "POST", json: said });
      } catch (error) {
        if (error.status && error.status < 500 && error.status !== 429) throw error;
        if (ended) throw error;
        if (attempt === 0) toast("The service does not answer; the decision is sent again until it does.", null, true);
        await new Promise((resolve) => setTimeout(resolve, AGAIN));
      }
    }
  }

  async function undo() {
    if (done.length === 0 || sending) return;
    const [id, names] = done.pop();
    sending = true;
    try {
      await call(`/v1/catalogue/decisions/${id}/undo`, { method: "POST" });
      leave(names);
      known.clear();
      queue.unshift(...names);
      toast("Undone.");
      document.dispatchEvent(new Event("skumatch:changed"));
    } catch (error) {
      failed(error);
    } finally {
      sending = false;
      undoButton.disabled = done.length === 0;
    }
    next().catch(failed);
  }

  function pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest?.("input, textarea, select")) return;
    const onButton = event.target.closest?.("button, a, summary");
    const key = event.key.toLowerCase();
    const act = { a: accept, s: split, m: merge, n: another, k: skip, u: undo, escape: () => { marks.clear(); drawMarks(); } }[key];
    if (/^[1-9]$/.test(key)) mark(Number(key) - 1);
    else if (key === "enter" && !onButton) accept();
    else if (act) act();
    else return;
    event.preventDefault();
  }
  addEventListener("keydown", pressed);

  try {
    if (only) queue = [only];
    await next();
  } catch (error) {
    if (error.status === 404) desk.replaceChildren(h("p", { class: "empty" }, "This service has no groups for review. Start it with --catalogue and the folder that skumatch dedupe wrote."));
    else failed(error);
  }
  return () => {
    ended = true;
    removeEventListener("keydown", pressed);
  };
}

function word() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sure(one) {
  return h("span", { class: `badge ${one.confidence >= SURE ? "accept" : "review"}`, title: "of the posting least sure to belong here" }, one.confidence.toFixed(2));
}

function photo(posting, at) {
  const none = () => h("span", { class: "none" }, "no picture");
  if (!posting.url) return none();
  return picture(posting.url, `picture ${at + 1}`, { onerror: (event) => event.target.replaceWith(none()) });
}

// What speaks for and against a pair: postings of the group by their numbers, the lower first, others by their ids.
function why(reason, one) {
  const place = (id) => one.postings.findIndex((posting) => posting.posting === id) + 1 || Infinity;
  const named = [reason.left, reason.right].sort((a, b) => place(a) - place(b)).map((id) => (place(id) === Infinity ? id : place(id)));
  const scores = Object.entries(reason.scores).map(([name, score]) => `${name} ${score.toFixed(2)}`).join(", ");
  return [
    h("span", { class: "row" }, h("b", { title: `${reason.left} and ${reason.right}` }, `${named[0]} and ${named[1]}`), h("span", { class: "score" }, reason.probability.toFixed(2)),
      reason.says.map((word) => h("span", { class: `says ${word.speaks_for ? "for" : "against"}` }, word.text))),
    h("span", { class: "quiet" }, scores)];
}
