// The status page: takes the status as it changes and shows it. No library but uPlot, nothing from elsewhere.
"use strict";

const byId = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en");
const period = () => document.querySelector("input[name=period]:checked").value;
let latest = null;

// --- words and figures ---

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 1) return seconds ? `${Math.round(seconds * 1000)} ms` : "0 s";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

const milliseconds = (value) => (value === null ? "–" : `${value.toFixed(1)} ms`);
const ratio = (c) => (c.hits + c.misses ? `${((100 * c.hits) / (c.hits + c.misses)).toFixed(1)} %` : "–");

// --- pieces of the page; text is always set as text, so that no name is ever taken for markup ---

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function fillTable(table, caption, headings, rows, none) {
  const head = element("tr");
  for (const heading of headings) head.append(element("th", heading, { scope: "col" }));
  const thead = element("thead");
  thead.append(head);
  const tbody = element("tbody");
  for (const [first, ...rest] of rows) {
    const row = element("tr");
    row.append(element("th", first, { scope: "row" }), ...rest.map((text) => element("td", text)));
    tbody.append(row);
  }
  if (!rows.length) {
    const row = element("tr");
    row.append(element("td", none, { colspan: headings.length }));
    tbody.append(row);
  }
  table.replaceChildren(element("caption", caption, { class: "unseen" }), thead, tbody);
}

function fillFacts(list, facts) {
  list.replaceChildren(...facts.map(([term, text]) => {
    const pair = element("div");
    pair.append(element("dt", term), element("dd", text));
    return pair;
  }));
}

// --- plots ---

const plots = new Map();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function plot(id, series, data, format) {
  const place = byId(id);
  let drawn = plots.get(id);
  if (!drawn) {
    const line = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--quiet"), grid: line, ticks: line };
    const hours = (_, ticks) => ticks.map((at) => new Date(at * 1000)
      .toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }));
    drawn = new uPlot({
      width: place.clientWidth || 400,
      height: 160,
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, low, high) => [0, Math.max(high, 1)] } },
      axes: [{ ...axis, values: hours }, { ...axis, size: 84, values: (_, ticks) => ticks.map(format) }],
      series: [{ value: (_, at) => (at === null ? "–" : new Date(at * 1000).toLocaleTimeString()) },
        ...series.map(([label, name]) => ({
          label, stroke: colour(name), fill: `color-mix(in srgb, ${colour(name)} 18%, transparent)`, width: 2,
          points: { show: false }, value: (_, value) => (value === null ? "–" : format(value)),
        }))],
    }, data, place);
    plots.set(id, drawn);
  } else {
    drawn.setData(data);
  }
  const sums = series.map(([label], index) => `${label}: ${format(data[index + 1].reduce((a, b) => a + b, 0))}`);
  place.setAttribute("aria-label", `${sums.join(", ")} in the period shown; the tables below have the figures`);
}

function forgetPlots() {
  for (const drawn of plots.values()) drawn.destroy();
  plots.clear();
}

// --- the sections ---

function showActivity(shown, of) {
  const total = shown.total;
  byId("hit-ratio").textContent = ratio(total);
  byId("requests").textContent = count.format(total.requests);
  byId("served").textContent = bytes(total.served_bytes);
  byId("stored").textContent = bytes(total.stored_bytes);
  byId("saved").textContent = total.saved_seconds ? duration(total.saved_seconds) : "–";
  byId("failed").textContent = count.format(total.failed);
  const at = shown.points.map((point) => point.at);
  const each = (name) => shown.points.map((point) => point.total[name]);
  plot("plot-hits", [["hits", "--good"], ["misses", "--miss"]], [at, each("hits"), each("misses")], count.format);
  plot("plot-bytes", [["served", "--bytes"], ["stored", "--stored"]],
    [at, each("served_bytes"), each("stored_bytes")], bytes);
  const headings = ["requests", "hit ratio", "served", "stored", "time saved", "failed"];
  const cells = (c) => [count.format(c.requests), ratio(c), bytes(c.served_bytes), bytes(c.stored_bytes),
    c.saved_seconds ? duration(c.saved_seconds) : "–", count.format(c.failed)];
  for (const [id, what, counts] of [["tools", "tool", shown.tools], ["projects", "project", shown.projects]]) {
    const rows = Object.entries(counts).sort((a, b) => b[1].requests - a[1].requests);
    fillTable(byId(id), `By ${what}, ${of}`, [what, ...headings], rows.map(([name, c]) => [name, ...cells(c)]),
      `no build has asked for anything in the ${of}`);
  }
}

function showDisk(disk) {
  const limit = disk.limit_bytes || 1;
  const [used, reserved] = [disk.used_bytes, disk.reserved_bytes].map((value) => Math.min(100, (100 * value) / limit));
  const meter = byId("meter");
  meter.querySelector(".used").style.width = `${used}%`;
  meter.querySelector(".reserved").style.width = `${reserved}%`;
  meter.querySelector(".target").style.left = `${disk.target_percent}%`;
  meter.querySelector(".high").style.left = `${disk.high_percent}%`;
  meter.setAttribute("aria-label", `${used.toFixed(1)} percent of the limit is used; eviction begins at `
    + `${disk.high_percent} and ends at ${disk.target_percent} percent`);
  fillFacts(byId("disk-facts"), [
    ["Artifacts", `${bytes(disk.used_bytes)} of at most ${bytes(disk.limit_bytes)}`],
    ["Uploads in progress", bytes(disk.reserved_bytes)],
    ["Volume", `${bytes(disk.free_bytes)} of ${bytes(disk.volume_bytes)} free`],
    ["Eviction", `from ${disk.high_percent} % to ${disk.target_percent} %`],
    ["Evicted since the start", count.format(disk.evicted)],
    ["Age at eviction", disk.eviction_age_seconds === null ? "–" : duration(disk.eviction_age_seconds)],
  ]);
}

function showBuffers(buffers) {
  const headings = ["buffer", "rows waiting", "bytes", "in flight", "oldest", "flush", "longest flush", "retries", "state"];
  fillTable(byId("buffers"), "Buffers", headings, buffers.map((b) => [
    b.name.replaceAll("_", " "), count.format(b.rows), bytes(b.bytes), count.format(b.in_flight),
    duration(b.oldest_age_seconds), milliseconds(b.flush_ms), milliseconds(b.longest_flush_ms),
    count.format(b.retries), b.stalled ?? "well",
  ]), "none");
}

const STORE = { none: "none: the node is complete on its own", unasked: "not asked lately", well: "well", failing: "failing" };

function showStore(store, transfers) {
  fillFacts(byId("store-facts"), [
    ["Health", STORE[store.health]],
    ["Requests, last 5 minutes", `${count.format(store.requests)}, ${count.format(store.errors)} failed`],
    ["Transfers waiting", `${count.format(transfers.uploads)} up, ${count.format(transfers.downloads)} down, ${count.format(transfers.deletes)} deletes`],
    ["In work", count.format(transfers.in_work)],
    ["Parked", count.format(transfers.parked)],
  ]);
}

function showWarnings(warnings) {
  const items = warnings.map((one) => {
    const item = element("li");
    const values = Object.entries(one.values).map(([name, value]) => `${name}=${value}`).join("  ");
    const when = element("time", new Date(one.at).toLocaleTimeString(), { datetime: one.at });
    item.append(when, " ", element("strong", one.event, { class: one.level }), " ", element("span", values, { class: "quiet" }));
    return item;
  });
  byId("warnings").replaceChildren(...(items.length ? items : [element("li", "none", { class: "quiet" })]));
}

// Said only when it changes: a screen reader reads it out each time.
function say(text, state) {
  const health = byId("health");
  if (health.textContent !== text) health.textContent = text;
  health.className = `health ${state}`;
}

function troubles(status) {
  const found = status.buffers.filter((b) => b.stalled).map((b) => `buffer ${b.name.replaceAll("_", " ")}: ${b.stalled}`);
  if (status.object_store.health === "failing") found.push("the object store fails");
  if (status.transfers.parked) found.push(`${count.format(status.transfers.parked)} transfers are parked`);
  return found;
}

function show() {
  if (!latest) return;
  const found = troubles(latest);
  say(found.length ? found.join("; ") : "All is well", found.length ? "trouble" : "well");
  const workers = latest.workers > 1 ? `, ${latest.workers} processes` : "";
  byId("about").textContent = `version ${latest.version}, up ${duration(latest.at - latest.started_at)}${workers}`;
  showActivity(latest[period()], period() === "hour" ? "last hour" : "last day");
  showDisk(latest.disk);
  showBuffers(latest.buffers);
  showStore(latest.object_store, latest.transfers);
  showWarnings(latest.warnings);
}

// --- life ---

function redraw() {
  forgetPlots();
  show();
}

for (const choice of document.querySelectorAll("input[name=period]")) choice.addEventListener("change", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(redraw, 150);
});

const news = new EventSource("/api/status");
news.addEventListener("message", (event) => {
  latest = JSON.parse(event.data);
  show();
});
// The browser connects again by itself.
news.addEventListener("error", () => say("No answer from the node; trying again", "trouble"));
