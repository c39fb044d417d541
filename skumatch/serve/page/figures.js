// Figures over time: how crops were answered, how often the answer was right, and whether scores move.

import { call, save } from "./api.js";
import { failed, h, percent, svg } from "./dom.js";

const SPANS = [7, 30, 90];
const KINDS = ["accept", "review", "unknown"];
const W = 640;
const H = 180;
const LEFT = 86;
const TOP = 16;
const BOTTOM = 22;

export default async function figures(place) {
  const body = h("div");
  const pick = h("select", { id: "span", onchange: () => draw().catch(failed) }, SPANS.map((days) => h("option", { value: days, selected: days === 30 }, `${days} days`)));
  place.append(h("div", { class: "row spread" }, h("h1", {}, "Figures"), h("div", { class: "row" }, h("label", { for: "span" }, "Of the last"), pick,
    h("button", { type: "button", class: "plain", onclick: () => save("/v1/review/export", "corrections.zip").catch(failed) }, "Save corrections"))), body);

  async function draw() {
    const said = await call(`/v1/review/stats?days=${pick.value}`);
    body.replaceChildren(cards(said), ...charts(said.days), table(said.days));
  }

  try {
    await draw();
  } catch (error) {
    if (error.status !== 404) throw error;
    body.replaceChildren(h("p", { class: "empty" }, "This service keeps no crops for review, and so no figures. Set reviews = true in [service] of skumatch.toml."));
  }
}

function cards(said) {
  const answered = said.days.reduce((sum, day) => sum + day.answered, 0);
  const unknown = said.days.reduce((sum, day) => sum + day.unknown, 0);
  const missing = KINDS.filter((kind) => said.days.some((day) => day[kind]) && !said.agreement[kind].count);
  const drift = said.days.findLast((day) => day.drift !== null);
  const why = !answered ? "nothing was answered" : missing.length ? `no verdict yet on answers of the kind ${missing.join(" and ")}` : "";
  return h("dl", { class: "cards" },
    card("Crops answered", answered.toLocaleString()),
    card("Unknown", answered ? percent(unknown / answered) : "\u2013"),
    card("Top-1 accuracy", percent(said.accuracy.value), why || interval(said.accuracy), "Share of all answered crops whose best candidate was right, estimated from those that were judged, each kind of answer by its number."),
    ...KINDS.map((kind) => card(`${kind}: right`, percent(said.agreement[kind].value), said.agreement[kind].count ? interval(said.agreement[kind]) : "none judged")),
    card("Drift of scores", drift ? drift.drift.toFixed(2) : "\u2013", drift ? `on ${drift.day}` : "", "Population stability index of the best scores of the last day against the 28 days before: under 0.1 is little, over 0.25 much."),
    card("Waiting for review", said.waiting.toLocaleString()));
}

function card(name, value, below = "", title = null) {
  return h("div", { class: "figure", title }, h("dt", {}, name), h("dd", {}, h("b", {}, value), below ? h("span", { class: "quiet" }, below) : null));
}

function interval(share) {
  return `${percent(share.low)} to ${percent(share.high)}, ${share.count.toLocaleString()} judged`;
}

function charts(days) {
  const rates = days.map((day) => (day.answered ? day.unknown / day.answered : null));
  return [
    chart("Crops answered", days, Math.max(1, ...days.map((day) => day.answered)), (canvas, x, y, width) => days.forEach((day, at) => {
      let base = 0;
      for (const kind of KINDS) {
        if (day[kind]) canvas.append(svg("rect", { class: `bar ${kind}`, x: x(at) + 1, width: Math.max(1, width - 2), y: y(base + day[kind]), height: y(base) - y(base + day[kind]) }));
        base += day[kind];
      }
    }), (value) => Math.round(value).toLocaleString(), KINDS),
    chart("Unknown crops", days, Math.max(0.05, ...rates.filter((rate) => rate !== null)), (canvas, x, y, width) => line(canvas, rates, x, y, width, "unknown"), (value) => `${Math.round(100 * value)} %`),
    chart("Best score: 10th percentile, median, 90th", days, 1, (canvas, x, y, width) => {
      for (const [part, kind] of [[0, "low"], [1, "middle"], [2, "low"]]) line(canvas, days.map((day) => (day.score ? Math.max(0, day.score[part]) : null)), x, y, width, kind);
    }, (value) => value.toFixed(2)),
  ];
}

function chart(title, days, most, draw, words, kinds = []) {
  const width = (W - LEFT) / days.length;
  const x = (at) => LEFT + at * width;
  const y = (value) => (H - BOTTOM) * (1 - value / most) + TOP;
  const canvas = svg("svg", { viewBox: `0 0 ${W} ${H + TOP}`, "aria-hidden": "true" });
  for (const part of [0, 0.5, 1]) {
    canvas.append(svg("line", { class: "grid", x1: LEFT, x2: W, y1: y(most * part), y2: y(most * part) }),
      svg("text", { x: LEFT - 6, y: y(most * part) + 6, "text-anchor": "end" }, words(most * part)));
  }
  for (const at of new Set([0, Math.floor(days.length / 2), days.length - 1])) {
    canvas.append(svg("text", { x: x(at) + width / 2, y: H + TOP - 4, "text-anchor": at === 0 ? "start" : at === days.length - 1 ? "end" : "middle" }, days[at].day.slice(5)));
  }
  draw(canvas, x, y, width);
  return h("figure", { class: "chart" }, h("figcaption", {}, title, kinds.map((kind) => h("span", { class: `key ${kind}` }, kind))), canvas);
}

function line(canvas, values, x, y, width, kind) {
  let points = [];
  const finish = () => {
    if (points.length > 1) canvas.append(svg("polyline", { class: `line ${kind}`, points: points.join(" ") }));
    points = [];
  };
  values.forEach((value, at) => {
    if (value === null) return finish();
    points.push(`${x(at) + width / 2},${y(value)}`);
    canvas.append(svg("circle", { class: `dot ${kind}`, cx: x(at) + width / 2, cy: y(value), r: 2.5 }));
    return null;
  });
  finish();
}

function table(days) {
  const names = ["Day", "Answered", ...KINDS, "Unknown, share", "Judged", "Right", "Drift"];
  const cells = (day) => [day.answered, ...KINDS.map((kind) => day[kind]), day.answered ? percent(day.unknown / day.answered) : "\u2013", day.judged, day.right,
    day.drift === null ? "\u2013" : day.drift.toFixed(2)];
  return h("details", {}, h("summary", {}, "Day by day"),
    h("p", { class: "quiet" }, "Drift is the population stability index of the best scores against the 28 days before: under 0.1 is little, over 0.25 much."),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Day by day" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name, at) => h("th", { scope: "col", class: at ? "number" : null }, name)))),
      h("tbody", {}, [...days].reverse().map((day) => h("tr", {}, h("th", { scope: "row" }, day.day), cells(day).map((cell) => h("td", { class: "number" }, String(cell)))))))));
}
