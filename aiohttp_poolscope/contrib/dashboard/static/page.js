// The page. Whatever came from a request is put in as text (textContent), never as markup.
"use strict";

const SAMPLES = 900;
const SHORTEST = 120; // seconds on a time axis: two minutes, while there is less to show
const MARKS = { ok: "✓", info: "i", warn: "!", bad: "✕" };
const STAYS = 3; // messages: what is gone before is not announced
const SKEW = 10; // seconds between two clocks that are worth a word
const ROWS = 100; // of leases
const WORST = ["ok", "info", "warn", "bad"];

const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Only what differs: an assignment of the same text would still be work for the browser and for screen readers.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/* Numbers for people */

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  if (value < 0.00995) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 119.5) return `${Math.round(value)} s`;
  if (value < 7170) return `${Math.round(value / 60)} min`;
  return `${Math.round(value / 3600)} h`;
}

function count(value) {
  if (value === null || value === undefined) return "–";
  return value < 9.95 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

// "/srv/app/shop/report.py:12 in report" is long: the last folder tells enough, the rest is in the tooltip.
const shortened = (where) => where.replace(/^\S*?([^/\\\s]+[/\\][^/\\\s]+:\d+ in )/, "$1");

/* What is known */

let told = null; // the last message
let chosen = decodeURIComponent(location.hash.slice(1));
const history = new Map(); // of each pool: columns

function remember(message) {
  message.scopes.forEach((scope, i) => {
    let columns = history.get(scope.key);
    if (!columns) history.set(scope.key, (columns = message.columns.map(() => [])));
    for (const sample of message.samples[i]) {
      const last = columns[0].at(-1);
      if (last !== undefined && sample[0] <= last) continue;
      sample.forEach((value, j) => columns[j].push(value));
    }
    for (const column of columns) column.splice(0, Math.max(0, column.length - SAMPLES));
  });
}

const shown = () => told.scopes.find((scope) => scope.key === chosen) ?? told.scopes[0];
const worst = () => told.scopes.reduce((a, b) => (WORST.indexOf(b.verdict.level) > WORST.indexOf(a.verdict.level) ? b : a));

/* The headline */

let announced = null; // what a screen reader was told last
let latest = ""; // the matter of the last message
let lasted = 0; // messages in a row that had it

// It is told when the matter changes, not each second that its numbers do. What gets worse is told at once, all else
// when it has lasted: a pool at its limit is in and out of trouble each second.
function announce(matter, level, text) {
  const rank = WORST.indexOf(level);
  lasted = matter === latest ? lasted + 1 : 1;
  latest = matter;
  if (matter === announced?.matter || (rank <= (announced?.rank ?? 0) && lasted < STAYS)) return;
  if (announced || rank) write($("announce"), text);
  announced = { matter, rank };
}

function drawVerdict() {
  const scope = worst();
  const { level, kind, text, advice } = scope.verdict;
  const several = told.scopes.length > 1;
  write($("headline"), several && level !== "ok" ? `${scope.key}: ${text}` : text);
  write($("advice"), advice || (level === "ok" ? "Nothing to do." : ""));
  write($("mark"), MARKS[level] ?? "");
  mark($("verdict"), "data-level", level);
  mark($("verdict"), "data-kind", kind);
  document.title = `${MARKS[level] ?? ""} ${several ? `${scope.key}: ` : ""}${text.split(":")[0]} – pools`;
  announce(`${scope.key} ${level} ${kind}`, level, `${several ? `${scope.key}: ` : ""}${text}. ${advice}`.trim());
}

function drawWorker() {
  const { pid, started, workers } = told.worker;
  const of = workers > 1 ? `one of ${workers}` : "";
  write($("worker"), `process ${pid}${of && `, ${of}`}, since ${clock(started)}`);
  write(
    $("which"),
    `This page shows process ${pid}${of && `, ${of}`}. ` +
      "Each process has pools of its own. A reload may reach another one; while the page stays open, it stays with this one.",
  );
  const skew = told.at - Date.now() / 1000;
  const differ = Math.abs(skew) < SKEW ? "" : `, which is ${seconds(Math.abs(skew))} ${skew > 0 ? "ahead of" : "behind"} this browser's`;
  write($("times"), `Times are by the clock of the process${differ}, in the time zone of this browser.`);
}

function drawScopes() {
  const nav = $("scopes");
  nav.hidden = told.scopes.length < 2;
  while (nav.children.length < told.scopes.length) {
    const button = make("button", { type: "button" }, make("span", { class: "dot", "aria-hidden": "true" }), make("span"), make("span", { class: "unseen" }));
    button.addEventListener("click", () => {
      chosen = button.dataset.key;
      location.replace(`#${encodeURIComponent(chosen)}`);
      draw();
    });
    nav.append(button);
  }
  told.scopes.forEach((scope, i) => {
    const button = nav.children[i];
    button.dataset.key = scope.key;
    mark(button, "aria-pressed", String(scope === shown()));
    mark(button.children[0], "data-level", scope.verdict.level);
    write(button.children[1], scope.key);
    // Without its numbers: what has the focus is read again when its name changes.
    write(button.children[2], `: ${scope.verdict.kind}`);
  });
}

/* Now */

const TILES = [
  ["In use", (s) => [`${s.now.in_use} of ${s.now.maxsize}`, beside(s.now), s.now.in_use >= s.now.maxsize ? "warn" : null]],
  ["Waiting", (s) => [count(s.now.waiting), s.now.waiting ? `longest ${seconds(s.now.oldest_wait)}` : "nobody", s.now.waiting ? s.verdict.level : null]],
  ["Borrows per s", (s) => [count(s.rates.borrows), unserved(s), null]],
  ["Waited, p99", (s) => [seconds(s.wait.p99), `median ${seconds(s.wait.p50)}`, null]],
  ["Held, p99", (s) => [seconds(s.lease.p99), `median ${seconds(s.lease.p50)}`, null]],
  ["Breaker", (s) => [s.now.breaker, `the pool is ${s.state}`, s.now.breaker === "closed" ? null : "bad"]],
];

function beside({ idle, opening, repairing }) {
  const parts = [[idle, "idle"], [opening, "opening"], [repairing, "in repair"]];
  return parts.filter(([n]) => n).map(([n, word]) => `${n} ${word}`).join(", ") || "none beside";
}

function unserved(scope) {
  const { timed_out, refused, shed, failed } = scope.rates.errors;
  const rate = timed_out + refused + shed + failed;
  return rate ? `${count(rate)} not served` : "all are served";
}

function drawTiles(scope) {
  const tiles = $("tiles");
  if (!tiles.children.length) {
    for (const [name] of TILES) {
      tiles.append(make("div", {}, make("dt", {}, name), make("dd", { class: "big" }), make("dd", { class: "small" })));
    }
  }
  TILES.forEach(([, values], i) => {
    const [, big, small] = tiles.children[i].children;
    const [value, more, level] = values(scope);
    write(big, value);
    write(small, more);
    mark(big, "data-level", level === "ok" ? null : level);
  });
}

/* The connections, a cell for each */

// From a millisecond to the leak threshold, on a logarithmic scale: what is normal fills a little.
function fill(held, threshold) {
  const least = 0.001;
  return Math.min(1, Math.max(0.04, Math.log(Math.max(held, least) / least) / Math.log((threshold ?? 30) / least)));
}

function drawCells(scope) {
  const cells = $("cells");
  mark(cells, "data-many", scope.slots.length > 60 ? "" : null);
  while (cells.children.length < scope.slots.length) cells.append(make("div", { class: "cell" }, make("span")));
  while (cells.children.length > scope.slots.length) cells.lastChild.remove();
  const held = { states: {}, longest: 0 };
  scope.slots.forEach(({ state, since }, i) => {
    const cell = cells.children[i];
    const lent = state === "lent";
    const leaked = lent && scope.leak_threshold !== null && since > scope.leak_threshold;
    mark(cell, "data-state", state);
    mark(cell, "data-age", lent ? (leaked ? 2 : since > 1 ? 1 : 0) : null);
    cell.style.setProperty("--fill", lent ? fill(since, scope.leak_threshold) : 0);
    write(cell.firstChild, lent && since >= 1 ? seconds(since) : "");
    mark(cell, "title", since === null ? state : `${lent ? "in use" : state} for ${seconds(since)}`);
    held.states[state] = (held.states[state] ?? 0) + 1;
  });
  const { states } = held;
  const parts = Object.entries(states).map(([state, n]) => `${n} ${state === "lent" ? "in use" : state}`);
  mark(cells, "aria-label", `${scope.slots.length} places: ${parts.join(", ")}`);
}

/* Curves */

const sum = (columns, names) => names.map((name) => columns.get(name)).reduce((a, b) => a.map((value, i) => value + b[i]));
const CURVES = [
  { title: "In use", format: count, top: (s) => s.now.maxsize, series: [["in use", "--accent", ["in_use"], "area"]] },
  { title: "Waiting", format: count, least: 4, series: [["waiting", "--warn", ["waiting"], "area"]] },
  { title: "Borrows per second", format: count, least: 4, series: [["borrowed", "--accent", ["borrows"], "area"]] },
  { title: "Time waited", format: seconds, least: 0.01, series: [["p50", "--accent", ["wait_p50"]], ["p99", "--second", ["wait_p99"]]] },
  { title: "Time held", format: seconds, least: 0.01, series: [["p50", "--accent", ["lease_p50"]], ["p99", "--second", ["lease_p99"]]] },
  {
    title: "Errors", format: count, least: 1,
    series: [
      ["refused", "--bad", ["timed_out", "refused", "shed", "failed"]],
      ["statements", "--second", ["statement", "timeout", "connection"]],
      ["left", "--third", ["client_gone", "cancelled"], "dash"],
    ],
  },
];

// Where little happens, a sample has no neighbour to be joined to by a line: it is a point.
function alone(plot, series) {
  const values = plot.data[series];
  return values.flatMap((value, i) => (value !== null && (values[i - 1] ?? values[i + 1] ?? null) === null ? [i] : []));
}

function makeCurve(curve) {
  const outputs = curve.series.map(() => make("b", { class: "value" }));
  const several = curve.series.length > 1;
  const legend = make("span", { class: several ? "series several" : "series" });
  curve.series.forEach(([label, colour, , style], i) => {
    if (curve.format === count) outputs[i].classList.add("number");
    const line = make("i", { class: style === "dash" ? "dash" : "", "aria-hidden": "true" });
    line.style.setProperty("--c", `var(${colour})`);
    legend.append(several ? make("span", {}, line, label, outputs[i]) : outputs[i]);
  });
  // Of the moment under the cursor, else of the last one.
  const legendOf = (u) => {
    const i = u.cursor.idx ?? u.data[0].length - 1;
    outputs.forEach((output, j) => write(output, curve.format(u.data[j + 1][i])));
  };
  const box = make("div", { class: "plot", role: "img" });
  $("curves").append(make("figure", {}, make("figcaption", {}, make("b", {}, curve.title), legend), box));
  const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const plot = new uPlot(
    {
      width: Math.max(100, box.clientWidth), height: 150, padding: [8, 18, 0, 0], legend: { show: false },
      cursor: { sync: { key: "pools" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: {
        x: { range: (_, low, high) => [Math.min(low, high - SHORTEST), high] },
        y: { range: (_, low, high) => [0, curve.top ? curve.top(shown()) * 1.05 : Math.max(high * 1.1, curve.least)] },
      },
      axes: [
        { ...axis, size: 26, space: 70, values: (_, at) => at.map((t) => clock(t).slice(0, t % 60 ? 8 : 5)) },
        { ...axis, size: 52, gap: 4, space: 34, values: (_, values) => values.map((v) => (curve.format === count && !Number.isInteger(v) && v > 1 ? "" : curve.format(v))) },
      ],
      series: [
        {},
        ...curve.series.map(([label, colour, , style]) => ({
          label, width: 1.75, dash: style === "dash" ? [5, 3] : undefined, stroke: () => css(colour),
          points: { show: true, size: 4, width: 0, fill: () => css(colour), filter: alone },
          fill: style === "area" ? () => `color-mix(in srgb, ${css(colour)} 16%, transparent)` : undefined,
        })),
      ],
      hooks: { setCursor: [legendOf] },
    },
    [[], ...curve.series.map(() => [])],
    box,
  );
  new ResizeObserver(() => plot.setSize({ width: Math.max(100, box.clientWidth), height: 150 })).observe(box);
  return { curve, box, plot, legendOf };
}

const curves = [];

function drawCurves(scope) {
  if (typeof uPlot === "undefined") return write($("curves"), "This browser cannot draw the curves.");
  if (!curves.length) curves.push(...CURVES.map(makeCurve));
  const columns = new Map(told.columns.map((name, i) => [name, history.get(scope.key)[i]]));
  for (const { curve, box, plot, legendOf } of curves) {
    const data = curve.series.map(([, , names]) => sum(columns, names));
    plot.setData([columns.get("at"), ...data]);
    legendOf(plot);
    const said = curve.series.map(([label], i) => {
      const values = data[i].filter((value) => value !== null);
      const last = data[i].at(-1) ?? null;
      return `${label} ${last === null ? "none" : curve.format(last)}, at most ${curve.format(values.length ? Math.max(...values) : null)}`;
    });
    mark(box, "aria-label", `${curve.title}: ${said.join("; ")}`);
  }
}

/* Lists. Rows are kept and written over, so that nothing moves under the reader's eye. */

const cell = () => make("td", { role: "cell" }, make("span"), make("span", { class: "sub" }));

function drawRows(table, rows, fillRow) {
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.lastChild.remove();
  rows.forEach((row, i) => {
    if (!body.rows[i]) body.append(make("tr", { role: "row" }, cell(), cell(), cell()));
    fillRow(body.rows[i], row);
  });
  table.nextElementSibling.hidden = rows.length > 0;
}

const request = (it) => [it.method, it.route].filter(Boolean).join(" ");

function drawLeases(scope) {
  const limit = scope.leak_threshold;
  const beyond = scope.leases.length - ROWS;
  drawRows($("leases"), scope.leases.slice(0, ROWS), (row, lease) => {
    mark(row, "data-level", limit !== null && lease.held > limit ? "bad" : lease.held > 1 ? "warn" : null);
    write(row.cells[0].firstChild, seconds(lease.held));
    write(row.cells[1].children[0], request(lease) || lease.task || "outside of requests");
    write(row.cells[1].children[1], [lease.request_id, request(lease) ? lease.task : null].filter(Boolean).join(" · "));
    write(row.cells[2].children[0], lease.where ? shortened(lease.where) : "");
    mark(row.cells[2], "title", lease.where);
  });
  $("leases-beyond").hidden = beyond <= 0;
  write($("leases-beyond"), `and ${count(beyond)} more, which state.json has`);
}

const REASONS = { idle: "unused for long", lifetime: "old", expired: "expired", dead: "found dead", failed: "beyond repair", shutdown: "shutdown" };
const FAULTS = { statement: "A statement failed", timeout: "A statement was too slow", connection: "A connection died in a statement" };
const EVENTS = {
  opened: [null, "Opened"],
  connect_failed: ["bad", "Connecting failed"],
  closed: [null, "Closed"],
  timed_out: ["bad", "Waited too long"],
  refused: ["bad", "Refused"],
  shed: ["bad", "Shed"],
  client_gone: [null, "Client left"],
  cancelled: [null, "Cancelled"],
  failed: ["bad", "No database"],
  error: ["bad", "A statement failed"],
  slow: ["warn", "Slow statement"],
  leaked: ["bad", "Leaked"],
  returned_late: ["warn", "Came back late"],
  returned_dirty: ["bad", "Came back inside a transaction"],
  lease_cancelled: ["warn", "Ended by the drain"],
  breaker_opened: ["bad", "Breaker opened"],
  breaker_closed: ["ok", "Breaker closed"],
  drain_started: ["warn", "Drain started"],
  drain_finished: ["ok", "Drained"],
};

function about(event) {
  const parts = [];
  if (request(event)) parts.push(request(event));
  if (event.reason) parts.push(REASONS[event.reason] ?? event.reason);
  if (event.sqlstate) parts.push(`SQLSTATE ${event.sqlstate}`);
  if (event.waited >= 0.001) parts.push(`after ${seconds(event.waited)}`);
  if (event.duration !== undefined) parts.push(`in ${seconds(event.duration)}`);
  if (event.held !== undefined) parts.push(`held for ${seconds(event.held)}`);
  if (event.attempt !== undefined) parts.push(`attempt ${event.attempt}`);
  if (event.in_use !== undefined) parts.push(`${event.in_use} in use`);
  if (event.served !== undefined) parts.push(`${event.served} served, ${event.cancelled} cancelled, ${event.forced} forced`);
  return parts.join(", ");
}

function drawEvents(scope) {
  drawRows($("events"), scope.events, (row, event) => {
    const [level, words] = EVENTS[event.kind] ?? [null, event.kind];
    const tag = row.cells[1].children[0];
    tag.className = "tag";
    mark(tag, "data-level", event.reason === "dead" || event.reason === "failed" ? "warn" : level);
    write(row.cells[0].firstChild, clock(event.at));
    write(tag, (FAULTS[event.fault] ?? words) + (event.count > 1 ? ` × ${event.count.toLocaleString("en")}` : ""));
    write(row.cells[1].children[1], event.request_id ?? "");
    write(row.cells[2].children[0], about(event));
    write(row.cells[2].children[1], event.statement ?? (event.where ? shortened(event.where) : ""));
  });
}

/* All of it */

function draw() {
  const scope = shown();
  mark(document.body, "data-empty", null);
  drawVerdict();
  drawWorker();
  drawScopes();
  drawTiles(scope);
  drawCells(scope);
  drawCurves(scope);
  drawLeases(scope);
  drawEvents(scope);
}

/* The stream. A page that nobody looks at asks for nothing. */

let source = null;
let again = 0;

function link(state, text) {
  mark($("link"), "data-link", state);
  write($("link-text"), text);
  mark(document.body, "data-stale", state === "lost" && told ? "" : null);
}

function connect() {
  clearTimeout(again);
  source?.close();
  if (document.hidden) return;
  source = new EventSource("events");
  source.addEventListener("state", (message) => {
    const next = JSON.parse(message.data);
    // Another process: not its past. Its number may be the same, as in containers, where it is often 1.
    if (told && (told.worker.pid !== next.worker.pid || told.worker.started !== next.worker.started)) history.clear();
    told = next;
    remember(told);
    draw();
    if (told.ended) lost("has ended");
    else link("live", "live");
  });
  source.addEventListener("error", () => lost("does not answer"));
}

function lost(how) {
  source.close();
  clearTimeout(again);
  again = setTimeout(connect, 2000);
  if ($("link").dataset.link === "lost") return; // it has been said, with the reason
  link("lost", "lost, retrying");
  if (!told) {
    write($("headline"), "No answer");
    return;
  }
  const text = `The process ${how}`;
  const advice = `What is below was so at ${clock(told.at)}. The page goes on as soon as a process answers.`;
  write($("headline"), text);
  write($("advice"), advice);
  write($("announce"), `${text}. ${advice}`);
  write($("mark"), "?");
  mark($("verdict"), "data-level", "none");
  mark($("verdict"), "data-kind", "lost");
  document.title = "? The process is lost – pools";
  announced = { matter: "lost", rank: WORST.length };
}

document.addEventListener("visibilitychange", () => (document.hidden ? source?.close() : connect()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => curves.forEach(({ plot }) => plot.redraw()));
connect();
