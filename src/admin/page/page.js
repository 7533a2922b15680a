"use strict";
// The live page. /events sends one `state`, which says what there is, and then a `tick` every second with the numbers.
// Names are the traffic's own: they become text nodes and titles, never markup. The DOM is made when the state comes;
// a tick only changes text and draws what can be seen.
//
// In this order, each using what is above it:
//   elements      to make and change them; names; what is remembered from visit to visit
//   numbers       in words, by unit
//   the data      what came from the server, and how it gets into `live`
//   drawing       a part is drawn when it is seen and old
//   the pen       colours of the theme, canvases, lines through samples
//   picking       which layer a tile or a chart is of
//   tiles, charts, tables, the stack, knobs: a section of the page each; `build…` makes it for a state
//   the whole     sections put together, the header, the theme
//   the stream    opening it, noticing its end, parking it

const SPAN = 300; // Seconds that are kept and drawn.
const STALE = 5; // Seconds without a tick until the numbers are called old.
const LOST = 15; // Seconds until the stream is opened anew.
const CALM = 3; // Seconds a layer has to be ahead until it takes the place of another.
const PARK = 60; // Seconds in a hidden tab until the stream is closed.

// ===== elements =====

const $ = (id) => document.getElementById(id);

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function attr(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// Controls in a name would let it pose as another: they are shown as what they are not.
const plain = (text) => String(text).replace(/[\0-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// A name: on one line, whole in its title.
function named(text) {
  const node = el("span", "name", plain(text));
  node.dir = "auto";
  node.title = plain(text);
  return node;
}

// What the page remembers from visit to visit; nothing where storage is refused.
const memory = {
  read(key) {
    try {
      return JSON.parse(localStorage.getItem("tower-flow." + key));
    } catch {
      return null;
    }
  },
  write(key, value) {
    try {
      localStorage.setItem("tower-flow." + key, JSON.stringify(value));
    } catch {
      // Then it forgets.
    }
  },
};

// ===== numbers =====

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

function three(x) {
  const size = Math.abs(x);
  return size >= 99.95 ? grouped.format(x) : size >= 9.995 ? x.toFixed(1) : x.toFixed(2);
}

function scaled(x, steps) {
  const size = Math.abs(x);
  const [by, unit] = steps.find(([by]) => size >= by * 0.9995) ?? steps[steps.length - 1];
  return [three(x / by), unit];
}

function amount(x) {
  if (Number.isInteger(x) && Math.abs(x) < 10000) return grouped.format(x);
  if (Math.abs(x) < 10000) return x > 0 && x < 0.005 ? "<0.01" : three(x);
  if (Math.abs(x) >= 1e16) return x.toExponential(1);
  return scaled(x, [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]).join("");
}

function percent(x) {
  const p = x * 100;
  if (p === 0) return "0";
  if (p < 0.1) return "<0.1";
  return p < 9.95 || (p >= 99.5 && p < 99.95) ? p.toFixed(1) : p.toFixed(0);
}

const TIMES = [
  [60, "min"],
  [1, "s"],
  [1e-3, "ms"],
  [1e-6, "µs"],
  [1e-9, "ns"],
];
const SIZES = [
  [1e12, "TB"],
  [1e9, "GB"],
  [1e6, "MB"],
  [1e3, "kB"],
  [1, "B"],
];

// Each gives the figure and its unit.
const UNITS = {
  __proto__: null,
  seconds: (x) => (x === 0 ? ["0", "ms"] : scaled(x, TIMES)),
  share: (x) => [percent(x), "%"],
  per_second: (x) => [amount(x), "/s"],
  count: (x) => [amount(x), ""],
  bytes: (x) => (x < 1 ? [x === 0 ? "0" : "<1", "B"] : scaled(x, SIZES)),
  level: (x) => [amount(x), ""],
};

function show(unit, x) {
  if (x === null || x === undefined) return "–";
  const [figure, of] = (UNITS[unit] ?? UNITS.level)(x);
  return of ? figure + "\u00a0" + of : figure;
}

function lasting(seconds) {
  const s = Math.floor(seconds);
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

const HOURS = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const clock = new Intl.DateTimeFormat(undefined, { ...HOURS, second: "2-digit" });
const minute = new Intl.DateTimeFormat(undefined, HOURS);

// ===== the data =====

const live = {
  state: null,
  shapes: [], // What the layers and the measures were when the DOM was made.
  t: [], // The time of each sample, in the server's seconds.
  v: [], // Per measure, its samples.
  of: [], // Per measure, what they are out of, such as a limit.
  tables: new Map(), // "layer/table" to rows, and how many more there are.
  knobs: new Map(), // "layer/knob" to its value.
  stack: [],
  hot: [],
  ticks: 0,
  heard: 0,
};

const layerOf = (id) => live.state.layers.find((layer) => layer.id === id);
// What a chart shows: five minutes, or less while the program is young.
const span = () => Math.min(SPAN, Math.max(60, (newest(live.t) ?? 0) - (live.t[0] ?? 0)));
const newest = (list) => (list && list.length ? list[list.length - 1] : null);
const measure = (layer, key) => live.state.measures.findIndex((m) => m.layer === layer && m.key === key);
const title = (layer) =>
  layer.name && layer.name !== layer.kind ? `${layer.kind} · ${plain(layer.name)}` : layer.kind;

function label(layer) {
  const parts = [el("span", "kind", layer.kind)];
  if (layer.name && layer.name !== layer.kind) parts.push(named(layer.name));
  return el("span", "layer", ...parts);
}

function onState(data) {
  live.state = data;
  const { at, values, of } = data.history;
  live.t = at.map((ago) => data.now + ago);
  live.v = data.measures.map((_, i) => values[i] ?? []);
  live.of = data.measures.map((_, i) => of?.[i] ?? live.t.map(() => null));
  live.knobs.clear();
  for (const layer of data.layers) {
    layer.knobs.forEach((knob, i) => live.knobs.set(`${layer.id}/${i}`, knob.value));
  }
  live.ticks = 0;
  // A stream that was opened again mostly tells of the same: what has the focus keeps it.
  const told = data.layers.map(({ knobs, ...rest }) => [rest, knobs.map((knob) => [knob.name, knob.help])]);
  const shapes = [JSON.stringify(told), JSON.stringify(data.measures)];
  const other = shapes.map((shape, i) => shape !== live.shapes[i]);
  live.shapes = shapes;
  if (other[0]) live.tables.clear();
  build(...other);
  header();
  locks();
  refresh();
}

function onTick(data) {
  const { t, v, of } = live;
  // A clock that was set back would fold the charts.
  if (t.length && data.now <= newest(t)) {
    if (newest(t) - data.now < 0.5) drop(1, true);
    else drop(t.length);
  }
  t.push(data.now);
  v.forEach((list, i) => list.push(data.values[i] ?? null));
  of.forEach((list, i) => list.push(data.of?.[i] ?? null));
  let old = 0;
  while (t[old] < data.now - SPAN - 2) old += 1;
  drop(old);
  for (const [layer, table, rows] of data.rows ?? []) {
    live.tables.set(`${layer}/${table}`, { rows, more: 0 });
  }
  for (const [layer, table, more] of data.more ?? []) {
    const key = `${layer}/${table}`;
    live.tables.set(key, { rows: [], ...live.tables.get(key), more });
  }
  for (const [layer, knob, value] of data.knobs ?? []) live.knobs.set(`${layer}/${knob}`, value);
  live.uptime = data.uptime;
  if (data.stack) live.stack = data.stack;
  if (data.hot) live.hot = data.hot;
  live.ticks += 1;
  refresh();
}

function drop(count, last) {
  if (!count) return;
  for (const list of [live.t, ...live.v, ...live.of]) list.splice(last ? -count : 0, count);
}

// ===== drawing =====

const parts = new Map(); // Root element to what draws it.
const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const part = parts.get(entry.target);
      if (!part) continue;
      part.seen = entry.isIntersecting;
      if (part.seen && part.old) later();
    }
  },
  { rootMargin: "150px" },
);

function part(root, draw) {
  const made = { draw, seen: false, old: true, drawn: false };
  parts.set(root, made);
  watcher.observe(root);
  return made;
}

function refresh() {
  for (const part of parts.values()) part.old = true;
  later();
}

let asked = false;
function later() {
  if (asked) return;
  asked = true;
  // No frames are asked for while the tab is hidden.
  requestAnimationFrame(() => {
    asked = false;
    for (const [root, part] of parts) {
      // Once all have their size, so that nothing moves when one goes to them.
      if (!part.old || (!part.seen && part.drawn && !root.hidden)) continue;
      part.old = false;
      part.drawn = live.ticks > 0;
      part.draw();
    }
    if (live.state)
      put($("uptime"), "up " + lasting(live.uptime ?? live.state.uptime));
  });
}

// ===== the pen =====

let colours = {};
function palette() {
  const probe = el("i");
  document.body.append(probe);
  colours = {};
  for (const name of ["text", "muted", "line", "strong", "panel", "warn", "bad", "c1", "c2", "c3", "c4", "c5", "c6"]) {
    probe.style.color = `var(--${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

// A canvas of as many pixels as the screen has there.
function canvas(node) {
  const { clientWidth: width, clientHeight: height } = node;
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (node.width !== w || node.height !== h) [node.width, node.height] = [w, h];
  const pen = node.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.lineJoin = pen.lineCap = "round";
  return { pen, width, height };
}

// A line through the samples, broken where there are none; `fill` down to the given height.
function trace(pen, samples, x, y, { colour, dash = [], width = 1.6, fill }) {
  const { t } = live;
  const gap = 2.5 * (live.state.period || 1);
  const runs = [];
  let run = null;
  for (let i = 0; i < t.length; i += 1) {
    const value = samples[i];
    if (value === null || value === undefined) {
      run = null;
      continue;
    }
    if (!run || t[i] - t[i - 1] > gap) runs.push((run = []));
    run.push([x(t[i]), y(value)]);
  }
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  pen.lineCap = dash.length ? "butt" : "round";
  for (const points of runs) {
    if (points.length === 1) {
      pen.beginPath();
      pen.arc(...points[0], width, 0, 7);
      pen.fill();
      continue;
    }
    pen.beginPath();
    points.forEach(([px, py]) => pen.lineTo(px, py));
    pen.stroke();
    if (fill === undefined) continue;
    pen.lineTo(points[points.length - 1][0], fill);
    pen.lineTo(points[0][0], fill);
    pen.globalAlpha = 0.12;
    pen.fill();
    pen.globalAlpha = 1;
  }
  pen.setLineDash([]);
}

// ===== picking =====

// What is wrong with a measure now: how bad it is, and a word for it.
function trouble(def, i) {
  const [value, limit] = [newest(live.v[i]), newest(live.of[i])];
  if (value === null) return null;
  if (def.gauge && limit !== null && value >= limit) return ["warn", "at limit"];
  return def.flag?.(value) ?? null;
}

// The one somebody chose. Otherwise, of what is better small, the layer where it is worst now; of all else the one with
// the most traffic now. Trouble is shown at once; any other layer only once it was ahead for a while.
function picker(id, def, layers, key, changed) {
  const saved = memory.read("pick") ?? {};
  const wanted = layers.find((layer) => title(layer) === saved[id]);
  const pick = { layer: wanted ?? layers[0], worse: null, node: null, settle() {} };
  if (layers.length === 1) {
    pick.node = label(layers[0]);
    pick.node.classList.add("of");
    return pick;
  }
  let chosen = Boolean(wanted);
  const select = el("select", "pick");
  select.setAttribute("aria-label", `${def.title}: which layer`);
  const short = (text) => (text.length > 60 ? text.slice(0, 59) + "…" : text);
  const auto = `${def.worst ? "worst" : "busiest"} of ${layers.length}`;
  [auto, ...layers.map((layer) => short(title(layer)))].forEach((text, i) => {
    const option = el("option", "", text);
    option.value = i;
    select.append(option);
  });
  const choose = (layer) => {
    pick.layer = layer;
    const name = title(layer);
    // There is little room, and the kind says nothing where all are of one.
    const brief = layers.every((other) => other.kind === layer.kind && other.name) ? plain(layer.name) : name;
    put(select.options[0], chosen ? auto : `${short(brief)} (${auto})`);
    select.value = chosen ? layers.indexOf(layer) + 1 : 0;
    select.title = chosen ? name : `${name}, the ${auto}`;
  };
  let [looked, behind] = [null, null]; // When it was settled last, and since when another is ahead.
  select.addEventListener("change", () => {
    chosen = select.value !== "0";
    looked = null;
    choose(layers[select.value - 1] ?? pick.layer);
    memory.write("pick", { ...memory.read("pick"), [id]: chosen ? title(pick.layer) : undefined });
    changed();
  });

  const valued = layers.every((layer) => measure(layer.id, "requests") >= 0);
  const rank = (layer) => {
    const i = measure(layer.id, key);
    const value = newest(live.v[i]) ?? -1;
    const traffic = valued ? (newest(live.v[measure(layer.id, "requests")]) ?? -1) : value;
    const bad = { warn: 1, bad: 2 }[trouble(def, i)?.[0]] ?? 0;
    // What is in flight says more where there is a limit to it.
    return [bad, def.worst ? value : Number(value > 0 && newest(live.of[i]) !== null), traffic];
  };
  const over = (a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
  pick.settle = () => {
    const now = newest(live.t);
    const ranks = new Map(layers.map((layer) => [layer, rank(layer)]));
    const best = layers.reduce((a, b) => (over(ranks.get(b), ranks.get(a)) > 0 ? b : a), pick.layer);
    const [mine, its] = [ranks.get(pick.layer), ranks.get(best)];
    const worse = its[0] > mine[0];
    pick.worse = chosen && worse ? best : null;
    if (chosen || now === null || (its[2] < 0 && !worse)) return;
    // As much traffic as another, give or take, is no reason to change.
    const ahead = worse || its[1] > mine[1] || its[2] > mine[2] * 1.25;
    if (!ahead) behind = null;
    else behind ??= now;
    const fresh = looked === null || Math.abs(now - looked) > CALM;
    looked = now;
    if (ahead && (worse || fresh || Math.abs(now - behind) >= CALM)) {
      behind = null;
      choose(best);
    }
  };
  choose(pick.layer);
  pick.node = select;
  return pick;
}

// ===== tiles =====

const above = (warn, bad, words) => (x) => (x > bad ? ["bad", words[1]] : x > warn ? ["warn", words[0]] : null);
const TILES = [
  { key: "requests", title: "Requests" },
  { key: "errors", title: "Errors", worst: true, flag: above(0.01, 0.05, ["raised", "high"]), colour: "c6" },
  {
    key: "p99",
    title: "Latency, p99",
    also: [
      ["p50", "p50"],
      ["p95", "p95"],
    ],
    colour: "c3",
  },
  { key: "in_flight", title: "In flight", also: [["waiting", "waiting"]], gauge: true },
  { key: "shed", title: "Refused", worst: true, flag: above(0, 0.1, ["refusing", "refusing"]), colour: "c6" },
  {
    key: "open",
    title: "Connections",
    word: "open",
    also: [
      ["idle", "idle"],
      ["waiting_for_connection", "waiting"],
    ],
    colour: "c4",
  },
  { key: "saved", title: "Calls saved", colour: "c4" },
  { key: "batch_size", title: "Batch size", word: "items", colour: "c5" },
  {
    key: "cpu",
    title: "CPU",
    also: [["run_queue", "threads waiting"]],
    flag: above(0.85, 0.95, ["busy", "full"]),
    top: 1,
  },
  {
    key: "scheduler",
    title: "Scheduler",
    word: "% busy",
    also: [["wake_delay", "wakes late by"]],
    flag: above(0.85, 0.95, ["busy", "full"]),
    top: 1,
    colour: "c5",
  },
];

function buildTiles() {
  const { measures } = live.state;
  const told = new Set();
  const make = (def) => {
    const layers = measures.filter((m) => m.key === def.key && !told.has(m)).map((m) => layerOf(m.layer));
    if (!layers.length) return;
    for (const m of measures) {
      const beside = (def.also ?? []).some(([key]) => key === m.key);
      if (m.key === def.key || (beside && layers.some((layer) => layer.id === m.layer))) told.add(m);
    }
    $("tiles").append(tile(def, layers));
  };
  TILES.forEach(make);
  // What no tile knows has its own.
  for (const m of measures) {
    if (!told.has(m)) make({ key: m.key, title: sentence(m.label) });
  }
}

function tile(def, layers) {
  const unit = live.state.measures[measure(layers[0].id, def.key)].unit;
  const root = el("article", "panel tile");
  const heading = el("h3", "", def.title);
  const figure = el("b", "", "–");
  const of = el("span", "unit");
  const flag = el("span", "flag");
  const also = el("p", "also");
  const spark = el("canvas", "spark");
  spark.setAttribute("aria-hidden", "true");
  const gauge = def.gauge ? el("div", "gauge", el("i")) : null;
  const me = part(root, () => draw());
  const pick = picker("tile." + def.key, def, layers, def.key, () => {
    me.old = true;
    later();
  });
  root.setAttribute("aria-label", def.title);
  root.dataset.key = def.key;
  root.append(
    el("div", "tile-head", heading, pick.node),
    el("p", "figure", figure, of, flag),
    also,
    ...(gauge ? [gauge] : []),
    spark,
  );

  const notes = new Map();
  const note = (name, text) => {
    let line = notes.get(name);
    if (!line) {
      line = el("b");
      notes.set(name, line);
      const span = el("span", "", name + " ", line);
      span.dataset.note = name;
      also.append(span);
    }
    put(line, text);
    line.parentNode.hidden = text === null;
  };

  function draw() {
    pick.settle();
    const i = measure(pick.layer.id, def.key);
    const value = newest(live.v[i]);
    const limit = newest(live.of[i]);
    const [text, its] = value === null ? ["–", ""] : (UNITS[unit]?.(value) ?? UNITS.level(value));
    put(figure, text);
    put(of, value === null ? "" : (def.word ?? its));
    if (gauge) {
      gauge.hidden = limit === null;
      gauge.firstChild.style.transform = `scaleX(${limit ? Math.min(1, value / limit) : 0})`;
      put(of, limit === null ? "" : "of " + amount(limit));
    }
    const level = trouble(def, i);
    attr(root, "data-level", level ? level[0] : null);
    put(flag, level ? level[1] : "");
    for (const [key, name] of def.also ?? []) {
      const at = measure(pick.layer.id, key);
      note(name, at < 0 ? null : show(live.state.measures[at].unit, newest(live.v[at])));
    }
    const { worse } = pick;
    note("worse", worse && `${show(unit, newest(live.v[measure(worse.id, def.key)]))} ${title(worse)}`);
    sparkline(live.v[i], unit, level);
  }

  function sparkline(samples, unit, level) {
    const { pen, width, height } = canvas(spark);
    const now = newest(live.t);
    if (!now) return;
    const least = def.top ?? (unit === "share" ? 0.01 : unit === "level" ? 1 : 0);
    const top = samples.reduce((top, value) => (value > top ? value : top), least) || 1;
    const wide = span();
    const x = (t) => width - ((now - t) / wide) * width;
    const y = (value) => height - 1 - (value / top) * (height - 8);
    const colour = level ? colours[level[0]] : colours[def.colour ?? "c1"];
    trace(pen, samples, x, y, { colour, width: 1.5, fill: height });
  }
  return root;
}

// ===== charts =====

const CHARTS = [
  {
    id: "latency",
    title: "Latency",
    unit: "seconds",
    lines: [
      ["p50", "p50"],
      ["p95", "p95"],
      ["p99", "p99"],
    ],
  },
  {
    id: "requests",
    title: "Requests",
    unit: "per_second",
    lines: [
      ["requests", "requests"],
      ["failed", "failed"],
    ],
  },
  {
    id: "in_flight",
    title: "In flight",
    unit: "level",
    lines: [
      ["in_flight", "in flight"],
      ["limit", "limit"],
      ["waiting", "waiting"],
    ],
  },
  { id: "shed", title: "Refused", unit: "share", lines: [["shed", "refused"]], all: true, worst: true },
  {
    id: "open",
    title: "Connections",
    unit: "level",
    lines: [
      ["open", "open"],
      ["idle", "idle"],
      ["waiting_for_connection", "waiting for one"],
    ],
  },
  { id: "saved", title: "Calls saved", unit: "share", lines: [["saved", "saved"]], all: true },
  { id: "batch_size", title: "Items in a batch", unit: "level", lines: [["batch_size", "items"]], all: true },
  {
    id: "cpu",
    title: "CPU and scheduler",
    unit: "share",
    lines: [
      ["cpu", "CPU"],
      ["scheduler", "scheduler busy"],
    ],
    all: true,
  },
  {
    id: "run_queue",
    title: "Threads that wait for a core",
    unit: "level",
    lines: [["run_queue", "waiting"]],
    all: true,
  },
  { id: "wake_delay", title: "Wake-up delay", unit: "seconds", lines: [["wake_delay", "delay"]], all: true },
];
// What is worked out of two measures.
const DERIVED = {
  __proto__: null,
  limit: (layer) => {
    const i = measure(layer, "in_flight");
    return i < 0 || live.of[i].every((value) => value === null) ? null : live.of[i];
  },
  failed: (layer) => {
    const [all, share] = [live.v[measure(layer, "requests")], live.v[measure(layer, "errors")]];
    return all && share ? all.map((value, i) => (value === null || share[i] === null ? null : value * share[i])) : null;
  },
};
const LINES = [
  ["c1", []],
  ["c2", [9, 3]],
  ["c3", [3, 2]],
  ["c4", []],
  ["c5", [9, 3]],
  ["c6", [3, 2]],
];

let cursor = null; // How many seconds before the newest sample one looks; the same in all charts.

function samples(layer, key) {
  return DERIVED[key] ? DERIVED[key](layer) : (live.v[measure(layer, key)] ?? null);
}

function buildCharts() {
  const told = new Set(["errors"]);
  const make = (def) => {
    const { measures, layers } = live.state;
    const keys = def.lines.map(([key]) => key);
    keys.forEach((key) => told.add(key));
    const on = layers.filter((layer) => measures.some((m) => m.layer === layer.id && keys.includes(m.key)));
    if (on.length) $("charts").append(chart(def, on));
  };
  CHARTS.forEach(make);
  for (const m of live.state.measures) {
    if (!told.has(m.key)) make({ id: m.key, title: m.label, unit: m.unit, lines: [[m.key, m.label]], all: true });
  }
}

function chart(def, layers) {
  const root = el("article", "panel chart");
  const legend = el("div", "legend");
  const surface = el("canvas");
  const plot = el("div", "plot", surface);
  const me = part(root, () => draw());
  const again = () => {
    me.old = true;
    later();
  };
  // A few layers go side by side where there is but one line of each.
  const together = def.all && layers.length * def.lines.length <= LINES.length;
  const pick = together ? null : picker("chart." + def.id, def, layers, def.lines[0][0], () => again());
  const head = el("div", "chart-head", el("h3", "", def.title));
  if (pick) head.append(pick.node);
  else if (layers.length === 1) head.append(Object.assign(label(layers[0]), { className: "layer of" }));
  root.append(head, legend, plot);
  root.dataset.chart = def.id;
  plot.tabIndex = 0;
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-label", `${def.title}: a time in the last 5 minutes`);
  plot.setAttribute("aria-valuemin", -SPAN);
  plot.setAttribute("aria-valuemax", 0);
  new ResizeObserver(again).observe(plot);

  let box = { left: 0, width: 1 };
  const rows = []; // One per line: layer, key, its button, whether it is off.
  const off = new Set();
  function lines() {
    const from = pick ? [pick.layer] : layers;
    const found = from.flatMap((layer) =>
      def.lines.map(([key, name]) => ({ layer, key, name, data: samples(layer.id, key) })),
    );
    // Layers that share a line's name are told apart by their own.
    const several = (name) => found.filter((line) => line.name === name && line.data).length > 1;
    return found.map((line) => ({ ...line, name: several(line.name) ? title(line.layer) : line.name }));
  }
  function entry(n, line) {
    if (!rows[n]) {
      const swatch = el("i", "swatch");
      const name = named("");
      const value = el("b");
      const button = el("button", "", swatch, name, value);
      button.type = "button";
      button.addEventListener("click", () => {
        if (off.has(rows[n].name)) off.delete(rows[n].name);
        else off.add(rows[n].name);
        again();
      });
      legend.append(button);
      rows[n] = { button, swatch, label: name, value, name: "" };
    }
    const row = rows[n];
    if (row.name !== line.name) {
      row.name = line.name;
      put(row.label, line.name);
      row.label.title = line.name;
    }
    const [colour, dash] = LINES[n % LINES.length];
    row.swatch.style.borderTopColor = `var(--${colour})`;
    row.swatch.style.borderTopStyle = dash.length === 0 ? "solid" : dash[0] > 3 ? "dashed" : "dotted";
    row.button.hidden = !line.data;
    attr(row.button, "aria-pressed", String(!off.has(line.name)));
    return row;
  }

  function draw() {
    pick?.settle();
    const { pen, width, height } = canvas(surface);
    const now = newest(live.t);
    const all = lines();
    const index = at();
    const shown = [];
    all.forEach((line, n) => {
      const row = entry(n, line);
      if (!line.data) return;
      put(row.value, show(def.unit, line.data[index]));
      if (!off.has(line.name))
        shown.push({ ...line, colour: colours[LINES[n % LINES.length][0]], dash: LINES[n % LINES.length][1] });
    });
    for (const row of rows.slice(all.length)) row.button.hidden = true;
    if (now) attr(plot, "aria-valuenow", String(Math.round((live.t[index] ?? now) - now)));
    if (!now || !width) return;

    const largest = Math.max(
      ...shown.map((line) => line.data.reduce((most, value) => (value > most ? value : most), 0)),
      0,
    );
    const { ticks, top } = scale(largest, def.unit);
    pen.font = "11px " + getComputedStyle(document.documentElement).fontFamily;
    const words = axis(ticks, def.unit);
    const left = Math.max(30, Math.ceil(Math.max(...words.map((word) => pen.measureText(word).width))) + 10);
    const [right, head, foot] = [width - 6, 8, height - 22];
    box = { left, width: right - left };
    const wide = span();
    const x = (t) => right - ((now - t) / wide) * box.width;
    const y = (value) => foot - (value / top) * (foot - head);
    const here = cursor === null || live.t[index] === undefined ? null : Math.round(x(live.t[index])) + 0.5;
    const frame = { left, right, head, foot, width, height, now, wide, here, x, y };

    pen.lineWidth = 1;
    ticks.forEach((tick, i) => rung(pen, frame, tick, words[i]));
    times(pen, frame);
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, box.width + 6, height);
    pen.clip();
    for (const { data, colour, dash } of shown) {
      trace(pen, data, x, y, { colour, dash, fill: shown.length === 1 ? foot : undefined });
    }
    pen.restore();
    if (here !== null) crosshair(pen, frame, shown, index);
  }

  const point = (event) => {
    const share = (event.clientX - plot.getBoundingClientRect().left - box.left) / box.width;
    look(span() * (1 - Math.min(1, Math.max(0, share))));
  };
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && look(null));
  plot.addEventListener("blur", () => look(null));
  plot.addEventListener("keydown", (event) => {
    const now = cursor ?? 0;
    const to = {
      ArrowLeft: now + 1,
      ArrowRight: now - 1,
      PageUp: now - 30,
      PageDown: now + 30,
      Home: span(),
      End: 0,
      Escape: null,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    look(to === null ? null : Math.min(span(), Math.max(0, to)));
    const index = at();
    const said = lines()
      .filter((line) => line.data && !off.has(line.name))
      .map((line) => `${line.name} ${show(def.unit, line.data[index])}`);
    const text = live.t[index] === undefined ? "" : `${clock.format(live.t[index] * 1000)}: ${said.join(", ")}`;
    attr(plot, "aria-valuetext", to === null ? null : text);
  });
  return root;
}

function stroke(pen, colour, ...points) {
  pen.strokeStyle = colour;
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.stroke();
}

// A line at a tick's height.
function rung(pen, { left, right, y }, tick, word) {
  const at = Math.round(y(tick)) + 0.5;
  stroke(pen, tick === 0 ? colours.strong : colours.line, [left, at], [right, at]);
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  pen.fillStyle = colours.muted;
  pen.fillText(word, left - 8, at);
}

// The time of day along the foot, as often as there is room, but not where the crosshair has its own.
function times(pen, { left, right, foot, width, height, now, wide, here, x }) {
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  const [format, steps] = wide < 150 ? [clock, [15, 30, 60]] : [minute, [60, 120]];
  const least = ((pen.measureText(format.format(0)).width + 14) / (right - left)) * wide;
  const step = steps.find((step) => step >= least) ?? 300;
  for (let t = Math.ceil((now - wide) / step) * step; t <= now; t += step) {
    const text = format.format(t * 1000);
    const half = pen.measureText(text).width / 2;
    const at = Math.round(x(t)) + 0.5;
    stroke(pen, colours.line, [at, foot], [at, foot + 4]);
    const free = here === null || Math.abs(here - at) > 60;
    if (free && at - half >= left - 4 && at + half <= width) pen.fillText(text, at, height - 5);
  }
}

// Where one looks: a line, a dot on each line of data, and the time.
function crosshair(pen, { left, head, foot, width, height, here, y }, shown, index) {
  pen.lineWidth = 1;
  stroke(pen, colours.strong, [here, head], [here, foot]);
  pen.lineWidth = 2;
  pen.strokeStyle = colours.panel;
  for (const { data, colour } of shown) {
    if ((data[index] ?? null) === null) continue;
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(here, y(data[index]), 4.5, 0, 7);
    pen.fill();
    pen.stroke();
  }
  const text = clock.format(live.t[index] * 1000);
  const half = pen.measureText(text).width / 2 + 6;
  const middle = Math.min(Math.max(here, left + half), width - half);
  pen.fillStyle = colours.text;
  pen.beginPath();
  pen.roundRect(middle - half, height - 18, half * 2, 18, 4);
  pen.fill();
  pen.fillStyle = colours.panel;
  pen.fillText(text, middle, height - 5);
}

// The sample one looks at: the newest unless there is a cursor.
function at() {
  const { t } = live;
  if (cursor === null || !t.length) return t.length - 1;
  const wanted = newest(t) - cursor;
  let [low, high] = [0, t.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (t[middle] <= wanted) low = middle;
    else high = middle;
  }
  return wanted - t[low] < t[high] - wanted ? low : high;
}

function look(ago) {
  if (ago === cursor) return;
  cursor = ago;
  for (const [root, part] of parts) if (root.dataset.chart) part.old = true;
  later();
}

// Four or five round ticks from 0 on, of which the last is above all.
function scale(largest, unit) {
  const least = unit === "share" ? 0.01 : unit === "level" ? 4 : unit === "per_second" ? 1 : 1e-6;
  const most = Math.max(largest * 1.04, least);
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step =
    [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999 && (unit !== "level" || n >= 1)) ?? raw;
  const count = Math.ceil(most / step - 0.001);
  const ticks = Array.from({ length: count + 1 }, (_, i) => i * step).filter(
    (tick) => unit !== "share" || tick < 1.001,
  );
  return { ticks, top: unit === "share" ? Math.min(count * step, 1.02) : count * step };
}

// The ticks in words, all in the unit of the last.
function axis(ticks, unit) {
  const top = ticks[ticks.length - 1];
  const places = (by) => {
    const step = (ticks[1] ?? 1) / by;
    for (let n = 0; n < 3; n += 1) if (Math.abs(step * 10 ** n - Math.round(step * 10 ** n)) < 1e-6) return n;
    return 3;
  };
  const write = (by, of) =>
    ticks.map((tick) =>
      tick === 0 ? "0" : tick / by >= 1000 ? grouped.format(tick / by) + of : (tick / by).toFixed(places(by)) + of,
    );
  if (unit === "share") return write(0.01, "\u00a0%");
  if (unit === "seconds") {
    const [by, of] = TIMES.find(([by]) => top >= by) ?? [1e-9, "ns"];
    return write(by, "\u00a0" + of);
  }
  const [by, of] = [
    [1e9, "G"],
    [1e6, "M"],
    [1e4, "k"],
  ].find(([by]) => top >= by) ?? [1, ""];
  return write(of === "k" ? 1e3 : by, of + (unit === "per_second" ? "/s" : ""));
}

// ===== tables =====

// A cell's number: [per second, total], or a number.
const figure = (cell) => (Array.isArray(cell) ? cell[0] : cell);

function table(columns, caption) {
  const body = el("tbody");
  const heads = columns.map(([name, unit], i) => {
    const button = el("button", "", name);
    button.type = "button";
    const th = el("th", unit === "text" ? "text" : "", button);
    th.scope = "col";
    button.addEventListener("click", () => order(i));
    return th;
  });
  const grid = el("table", "", el("caption", "unseen", caption), el("thead", "", el("tr", "", ...heads)), body);
  const scroll = el("div", "scroll", grid);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", caption);
  const filter = el("input");
  filter.type = "search";
  filter.placeholder = "Filter";
  filter.setAttribute("aria-label", "Filter " + caption);
  const counted = el("span", "rows");
  const more = el("p", "more");
  const nothing = el("p", "nothing", "Nothing yet.");
  const made = { scroll, filter, counted, more, nothing, set, root: null };

  let sort = null; // Column, and 1 for ascending or -1.
  let held = false;
  let last = { rows: [], more: 0 };
  let ranks = new Map();
  const slots = [];
  const texts = columns.map((column, i) => (column[1] === "text" ? i : -1)).filter((i) => i >= 0);
  const nameOf = (row) => texts.map((i) => row[i]).join("\0");

  filter.addEventListener("input", () => set(last));
  // Rows do not run away from under a pointer.
  body.addEventListener("pointerenter", (event) => (held = event.pointerType === "mouse"));
  body.addEventListener("pointerleave", () => (held = false));

  // First click: the largest on top, or A to Z; then the other way; then as the server has it.
  function order(column) {
    const first = columns[column][1] === "text" ? 1 : -1;
    if (sort?.column !== column) sort = { column, way: first };
    else sort = sort.way === first ? { column, way: -first } : null;
    heads.forEach((th, i) =>
      attr(th, "aria-sort", sort?.column === i ? (sort.way > 0 ? "ascending" : "descending") : null),
    );
    ranks.clear();
    set(last);
  }

  function compare(a, b) {
    const [x, y] = [figure(a[sort.column]), figure(b[sort.column])];
    if (x === null || y === null) return (x === null) - (y === null);
    const by =
      typeof x === "string" ? x.localeCompare(y) : x - y || (a[sort.column]?.[1] ?? 0) - (b[sort.column]?.[1] ?? 0);
    return by * sort.way;
  }

  function set(data) {
    last = data;
    const wanted = filter.value.trim().toLowerCase();
    let rows = wanted
      ? data.rows.filter((row) => texts.some((i) => String(row[i]).toLowerCase().includes(wanted)))
      : data.rows.slice();
    if (sort) rows.sort(compare);
    if (held && ranks.size) {
      const rank = (row) => ranks.get(nameOf(row)) ?? Infinity;
      rows = rows
        .map((row, i) => [rank(row), i, row])
        .sort((a, b) => a[0] - b[0] || a[1] - b[1])
        .map(([, , row]) => row);
    }
    ranks = new Map(rows.map((row, i) => [nameOf(row), i]));
    rows.forEach((row, i) => fill(slots[i] ?? slot(), row));
    while (slots.length > rows.length) slots.pop().tr.remove();
    const total = data.rows.length + data.more;
    put(counted, wanted ? `${rows.length} of ${total}` : total === 1 ? "1 row" : `${amount(total)} rows`);
    const shown = data.rows.length;
    filter.hidden = !shown || (filter.hidden && total <= 5);
    more.hidden = !data.more;
    put(
      more,
      shown
        ? `${amount(data.more)} more rows; the busiest ${shown} are shown.`
        : "Its rows do not fit in here beside those of the other tables.",
    );
    nothing.hidden = rows.length > 0 || (!shown && data.more > 0);
    put(nothing, wanted && shown ? "No row has this in its name." : "Nothing yet.");
    scroll.hidden = shown === 0;
  }
  filter.hidden = true;

  function slot() {
    const cells = columns.map(([, unit]) => {
      const main = el("span");
      const td = el("td", unit === "text" ? "text" : "", main);
      const cell = { td, main, total: null, bar: null };
      if (unit === "count" || unit === "bytes") td.append((cell.total = el("span", "total")));
      if (unit === "share") {
        cell.bar = el("i");
        const meter = el("span", "meter", cell.bar);
        meter.setAttribute("aria-hidden", "true");
        td.prepend(meter);
      }
      if (unit === "text") main.dir = "auto";
      return cell;
    });
    const made = { tr: el("tr", "", ...cells.map((cell) => cell.td)), cells };
    slots.push(made);
    body.append(made.tr);
    return made;
  }

  function fill(slot, row) {
    columns.forEach(([, unit], i) => {
      const { td, main, total, bar } = slot.cells[i];
      const value = row[i];
      if (unit === "text") {
        const text = value === null ? "–" : plain(value);
        put(main, text);
        attr(td, "title", text);
        return;
      }
      const number = figure(value);
      const pair = Array.isArray(value);
      put(main, pair && number !== null ? show(unit, number) + "/s" : show(unit, number));
      attr(main, "class", number === 0 || number === null ? "zero" : "");
      if (total) {
        put(total, pair ? show(unit, value[1]) : "");
        attr(td, "title", pair ? `${show(unit, value[1])} in all` : null);
      }
      if (bar) bar.style.transform = `scaleX(${Math.min(1, number ?? 0)})`;
    });
  }
  return made;
}

// A table in its panel.
function framed(columns, heading, layer) {
  const made = table(columns, layer ? `${heading} of ${title(layer)}` : heading);
  const head = el("div", "table-head", el("h3", "", heading));
  if (layer) head.append(label(layer));
  head.append(made.counted, made.filter);
  made.root = el("article", "panel table", head, made.nothing, made.scroll, made.more);
  return made;
}

function buildTables() {
  // Tables without rows take a word each.
  const bare = el("p", "bare", "Empty so far:");
  for (const layer of live.state.layers) {
    layer.tables.forEach(({ title: heading, columns }, i) => {
      const made = framed(columns, heading, layer);
      if (columns.length > 5) made.root.classList.add("wide");
      const name = named(`${heading} of ${title(layer)}`);
      part(made.root, () => {
        const data = live.tables.get(`${layer.id}/${i}`) ?? { rows: [], more: 0 };
        made.root.hidden = !data.rows.length && !data.more;
        name.hidden = !made.root.hidden;
        made.set(data);
        bare.hidden = !bare.querySelector(".name:not([hidden])");
      });
      made.root.hidden = true;
      bare.append(name);
      $("tables-body").append(made.root);
    });
  }
  $("tables-body").append(bare);
  $("tables").hidden = !$("tables-body").querySelector(".table");
}

const HOT = [
  ["layer", "text"],
  ["route", "text"],
  ["stage", "text"],
  ["polls", "level"],
  ["busy", "seconds"],
  ["of the process", "share"],
  ["longest", "seconds"],
  ["slow", "level"],
];

function buildHot() {
  const made = framed(HOT, "Busiest", null);
  part(made.root, () => made.set({ rows: live.hot, more: 0 }));
  $("hot-body").append(made.root);
}

// ===== the stack =====

function buildStack() {
  const body = $("stack-body");
  let drawn = "";
  let boxes = new Map(); // Layer to what changes in its box.
  part(body, () => {
    const known = live.stack.filter(([id]) => layerOf(id));
    const called = known.filter(([, , , sampled]) => sampled > 0);
    const seen = new Map(called.map((entry) => [entry[0], entry]));
    const shape = JSON.stringify(called.map(([id, , inside]) => [id, inside]));
    if (shape !== drawn) {
      drawn = shape;
      boxes = new Map();
      body.replaceChildren(...paint(seen, boxes));
    }
    for (const [id, box] of boxes) {
      const [, cost, , sampled] = seen.get(id);
      const times = (other) => often(seen, boxes.get(other).path);
      const whole = box.chain.reduce((sum, other) => sum + seen.get(other)[1] * times(other), 0);
      const share = whole ? (cost * times(id)) / whole : 0;
      const factor = times(id) === 1 ? "" : ` × ${amount(times(id))}`;
      put(box.price, show("seconds", cost / 1e9) + factor);
      box.price.title = `${amount(sampled)} of its calls were looked at; ${amount(times(id))} for each call of the outermost layer`;
      put(box.percent, show("share", share));
      box.bar.style.transform = `scaleX(${share})`;
      box.root.style.setProperty("--tint", `${Math.round(share * 14)}%`);
      if (box.total) put(box.total, show("seconds", whole / 1e9) + " per call");
    }
  });
}

// How many calls of the last layer of a path there are for each one of the first: of each layer, those that were looked
// at inside the one before it, against all that were looked at of that one.
function often(seen, path) {
  let times = 1;
  for (let i = 1; i < path.length; i++) times *= seen.get(path[i])[4] / seen.get(path[i - 1])[3];
  // A call is under way at any moment.
  return Math.abs(times - 1) < 0.05 ? 1 : times;
}

function paint(seen, boxes) {
  const nodes = [];
  // Where the layer round it is unknown or was not called, a layer is an outermost one.
  const outer = (id) => (seen.has(seen.get(id)[2]) ? seen.get(id)[2] : null);
  const ids = [...seen.keys()];
  const placed = new Set();
  const box = (id, chain, above) => {
    const path = [...above, id];
    placed.add(id);
    chain.push(id);
    const layer = layerOf(id);
    const made = {
      chain,
      path,
      price: el("span", "price"),
      percent: el("span"),
      bar: el("i"),
      root: el("div", "box"),
      total: null,
    };
    const { className, childNodes } = label(layer);
    made.root.append(
      el("div", "box-head", Object.assign(el("span", className), { dir: "auto" }), made.price),
      el("div", "share-line", el("div", "share", made.bar), made.percent),
    );
    made.root.querySelector(".layer").append(...childNodes);
    boxes.set(id, made);
    const within = ids.filter((other) => !placed.has(other) && outer(other) === id);
    for (const other of within) made.root.append(box(other, chain, path));
    if (!within.length) made.root.append(el("p", "inner", "your own code"));
    return made.root;
  };
  const chains = el("div", "chains");
  const start = (id) => {
    const total = el("b");
    const cost = el("p", "cost", "tower-flow costs you ", total);
    const column = el("div", "chain", cost, box(id, [], []));
    boxes.get(id).total = total;
    chains.append(column);
    return () => cost.append(" through ", named(title(layerOf(id))));
  };
  const through = ids.filter((id) => outer(id) === null).map(start);
  // Layers that call each other in a ring have no outermost one.
  for (const id of ids) if (!placed.has(id)) through.push(start(id));
  if (through.length > 1) through.forEach((say) => say());
  if (ids.length) nodes.push(chains);
  else nodes.push(el("p", "nothing", "No call went through a layer yet."));
  const others = live.state.layers.filter((layer) => !seen.has(layer.id));
  if (others.length) {
    nodes.push(
      el(
        "div",
        "apart",
        "Attached, with no call seen",
        el("ul", "", ...others.map((layer) => el("li", "layer", ...label(layer).childNodes))),
      ),
    );
  }
  return nodes;
}

// ===== knobs =====

const controls = [];

function buildKnobs() {
  controls.length = 0;
  const groups = el("div", "knob-groups");
  for (const layer of live.state.layers) {
    if (!layer.knobs.length) continue;
    const heading = el("h3", "", label(layer));
    const group = el("div", "panel knob-group", heading);
    layer.knobs.forEach((knob, i) => group.append(control(layer, knob, `${layer.id}/${i}`)));
    groups.append(group);
  }
  const why = el("p");
  const button = el("button", "button", "Unlock");
  button.type = "button";
  button.addEventListener("click", unlock);
  const locked = el("div", "panel locked", why, button);
  locked.id = "locked";
  why.id = "why-locked";
  $("knobs-body").replaceChildren(locked, groups);
  $("knobs").hidden = !groups.firstChild;
  part(groups, () => controls.forEach((control) => control.draw()));
}

function control(layer, knob, key) {
  const id = "knob-" + key.replace("/", "-");
  const words = knob.name.replaceAll("_", " ");
  const flag = typeof knob.value === "boolean";
  // What is off whenever one looks is something to do, not to switch on.
  const deed = knob.value === false && /^set to (?!true|false|on\b|off\b)/i.test(knob.help);
  const text = typeof knob.value === "string";
  const fault = el("p", "fault");
  fault.setAttribute("aria-live", "polite");
  const help = el("p", "help", deed ? sentence(knob.help.slice(7)) : knob.help);
  help.id = id + "-help";
  const name = el("label", "", words);
  const around = el("div", "control");
  const input = el(flag ? "button" : "input", deed ? "button" : flag ? "switch" : "");
  const root = el("div", "knob", name, help, around, fault);
  root.dataset.knob = `${layer.name}/${knob.name}`;
  input.id = id;
  name.htmlFor = id;
  input.setAttribute("aria-describedby", help.id + " why-locked");
  // What was asked for is shown until the server had time to say what came of it.
  let wanted = null;
  const now = () => (wanted && live.ticks < wanted.until ? wanted.value : live.knobs.get(key));

  async function turn(value) {
    wanted = { value, until: Infinity };
    say("");
    draw();
    const mine = wanted;
    try {
      const answer = await fetch(`knobs/${layer.id}/${encodeURIComponent(knob.name)}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(value),
      });
      if (mine !== wanted) return;
      if (answer.ok) {
        wanted.until = live.ticks + 2;
        say(deed ? "Done." : "Set.", true);
      } else {
        wanted = null;
        say(await reason(answer));
      }
    } catch {
      if (mine !== wanted) return;
      wanted = null;
      say("The server does not answer; nothing was changed.");
    }
    draw();
  }
  let calm = 0;
  function say(words, done = false) {
    put(fault, words);
    fault.classList.toggle("done", done);
    clearTimeout(calm);
    if (done) calm = setTimeout(() => put(fault, ""), 3000);
  }

  let draw;
  if (deed) {
    input.type = "button";
    put(input, "Do it");
    input.setAttribute("aria-label", `Do it: ${words}`);
    around.append(input);
    input.addEventListener("click", () => turn(true));
    draw = () => {
      input.disabled = !live.state.knobs || wanted?.until === Infinity;
    };
  } else if (flag) {
    input.type = "button";
    input.setAttribute("role", "switch");
    const word = el("span", "state");
    word.setAttribute("aria-hidden", "true");
    around.append(word, input);
    input.addEventListener("click", () => turn(now() !== true));
    draw = () => {
      input.disabled = !live.state.knobs;
      attr(input, "aria-checked", String(now() === true));
      put(word, now() === true ? "on" : "off");
    };
  } else {
    input.type = text ? "text" : "number";
    input.autocomplete = "off";
    if (!text) Object.assign(input, { step: "any", inputMode: "decimal" });
    const set = el("button", "button", "Set");
    const auto = el("button", "button", "Auto");
    set.type = auto.type = "button";
    set.setAttribute("aria-label", `Set ${words}`);
    auto.setAttribute("aria-label", `Leave ${words} to the program`);
    around.append(input, set, auto);
    const nullable = () => !text && (knob.null === true || live.knobs.get(key) === null || /\bnull\b/.test(knob.help));
    let edited = false;
    const apply = () => {
      if (input.validity.badInput || (!text && input.value.trim() === "" && !nullable()))
        return say("A number is needed.");
      edited = false;
      turn(text ? input.value : input.value.trim() === "" ? null : Number(input.value));
    };
    input.addEventListener("input", () => {
      edited = true;
      draw();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") apply();
      if (event.key === "Escape") {
        edited = false;
        say("");
        draw();
      }
    });
    set.addEventListener("click", apply);
    auto.addEventListener("click", () => {
      edited = false;
      turn(null);
    });
    draw = () => {
      const value = now();
      const shown = value === null || value === undefined ? "" : String(value);
      // What somebody is writing stays.
      if (!edited && input.value !== shown) input.value = shown;
      attr(input, "placeholder", value === null ? "auto" : "");
      input.disabled = auto.disabled = !live.state.knobs;
      auto.hidden = !nullable() || (value === null && !edited);
      set.disabled = !live.state.knobs || !edited || input.value === shown;
    };
  }
  controls.push({ draw });
  return root;
}

// Whether knobs may be turned, and what stands in their way.
function locks() {
  const { knobs, token, profile, layers } = live.state;
  const any = layers.some((layer) => layer.knobs.length);
  const locked = $("locked");
  locked.hidden = knobs;
  locked.querySelector("button").hidden = !token;
  put(
    $("why-locked"),
    knobs
      ? ""
      : token
        ? "Knobs are locked. They can be turned by those who have the token."
        : "Knobs are only shown: the program was started without a token for this page.",
  );
  put($("knobs-hint"), knobs ? "What is set here works at once." : "");
  $("lock").hidden = !token || !(any || profile !== true || knobs);
  put($("lock-text"), knobs ? "lock" : "unlock");
  $("lock").setAttribute("aria-label", knobs ? "Lock the knobs" : "Unlock the knobs");
  $("lock").title = $("lock").getAttribute("aria-label");
  $("shackle").setAttribute("d", knobs ? "M7 9V5.5a3 3 0 0 1 5.8-1" : "M7 9V6.5a3 3 0 0 1 6 0V9");
  $("profiles").hidden = !profile;
  controls.forEach((control) => control.draw());
}

function unlock() {
  put($("unlock-fault"), "");
  $("token").value = "";
  $("unlock").showModal();
}

// What stands in the way of the token; nothing when it was taken.
async function enter(token) {
  try {
    const answer = await fetch("session", { method: "POST", headers: { "content-type": "text/plain" }, body: token });
    return answer.ok ? "" : answer.status === 401 ? "This is not the token." : await reason(answer);
  } catch {
    return "The server does not answer.";
  }
}

async function reason(answer) {
  return (await answer.text()).trim().slice(0, 300) || `Refused with status ${answer.status}.`;
}

$("lock").addEventListener("click", async () => {
  if (!live.state?.knobs) return unlock();
  try {
    await fetch("session", { method: "DELETE" });
  } finally {
    connect();
  }
});
$("unlock-cancel").addEventListener("click", () => $("unlock").close());
$("unlock-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const fault = await enter($("token").value);
  put($("unlock-fault"), fault);
  if (fault) return $("token").select();
  $("unlock").close();
  $("token").value = "";
  connect();
});

// A link may bring the token in its fragment, which no server sees; it does not stay in the address.
async function fragment() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return false;
  history.replaceState(null, "", location.pathname);
  let token = found[1];
  try {
    token = decodeURIComponent(token);
  } catch {
    // Then it is meant as it stands.
  }
  const fault = await enter(token);
  if (fault) {
    unlock();
    put($("unlock-fault"), fault);
  }
  return true;
}
addEventListener("hashchange", async () => (await fragment()) && connect());

// ===== the whole =====

function build(layers, measures) {
  if (layers || measures) {
    make({ tiles: buildTiles, charts: buildCharts });
    for (const id of ["overview", "series"]) $(id).hidden = !live.state.measures.length;
  }
  if (layers) whole();
  for (const link of $("nav").children) link.hidden = $(link.hash.slice(1)).hidden;
  spy();
}

function whole() {
  make({ "stack-body": buildStack, "knobs-body": buildKnobs, "hot-body": buildHot, "tables-body": buildTables });
  const any = live.state.layers.length > 0;
  $("empty").hidden = any;
  $("stack").hidden = $("hot").hidden = !any;
}

function make(builders) {
  for (const [id, builder] of Object.entries(builders)) {
    for (const root of parts.keys()) {
      if ($(id).contains(root) && parts.delete(root)) watcher.unobserve(root);
    }
    $(id).replaceChildren();
    builder();
  }
}

function header() {
  const { service, version, unshown } = live.state;
  put($("service"), plain(service));
  $("service").title = plain(service);
  document.title = `${plain(service)} · tower-flow`;
  put($("version"), `tower-flow ${version}`);
  $("unshown").hidden = !unshown;
  put($("unshown-text"), `${amount(unshown ?? 0)} measures`);
}

// Which section one is in.
function spy() {
  const links = [...$("nav").children].filter((link) => !link.hidden);
  $("nav").hidden = !links.length;
  if (!links.length) return;
  const tops = links.map((link) => $(link.hash.slice(1)).getBoundingClientRect().top);
  const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const now = end
    ? links.length - 1
    : tops.reduce((last, top, i) => (top < innerHeight * 0.4 && top > tops[last] ? i : last), 0);
  if (links[now].hasAttribute("aria-current")) return;
  links.forEach((link, i) => attr(link, "aria-current", i === now ? "true" : null));
  $("nav").scrollTo({ left: links[now].offsetLeft - 60 });
}
addEventListener("scroll", () => requestAnimationFrame(spy), { passive: true });

const THEMES = ["auto", "light", "dark"];
let theme = THEMES.includes(memory.read("theme")) ? memory.read("theme") : "auto";
function dress() {
  attr(document.documentElement, "data-theme", theme === "auto" ? null : theme);
  put($("theme-text"), theme);
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("theme").title = `Theme: ${theme}`;
  palette();
  refresh();
}
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  memory.write("theme", theme);
  dress();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
dress();

// ===== the stream =====

let source = null;
let attempt = 0;
let waiting = 0;
let parked = 0;

function status(state, text) {
  document.body.dataset.connection = state;
  put($("connection-text"), text);
}

function connect() {
  clearTimeout(waiting);
  source?.close();
  source = new EventSource("events");
  const mine = source;
  live.heard = performance.now();
  const heard = (handle) => (event) => {
    if (mine !== source) return;
    live.heard = performance.now();
    attempt = 0;
    handle(JSON.parse(event.data));
    status("live", "live");
  };
  source.addEventListener("state", heard(onState));
  source.addEventListener(
    "tick",
    heard((data) => live.state && onTick(data)),
  );
  source.addEventListener("error", () => {
    if (mine !== source) return;
    status("reconnecting", "reconnecting");
    // A stream that broke is opened again by the browser; one that was refused is not.
    if (source.readyState === EventSource.CLOSED) refused();
  });
}

async function refused() {
  attempt += 1;
  const mine = source;
  const stop = new AbortController();
  const enough = setTimeout(() => stop.abort(), LOST * 1000);
  const answer = await fetch("events", { signal: stop.signal }).catch(() => null);
  clearTimeout(enough);
  stop.abort();
  if (mine !== source) return;
  if (answer?.status === 401) {
    status("locked", "locked");
    $("lock").hidden = false;
    if (!$("unlock").open) unlock();
  } else {
    waiting = setTimeout(connect, Math.min(30, 2 ** attempt) * 1000);
  }
}

// A stream may be dead and not know it: nothing comes, and nothing fails. One that was refused is waited for elsewhere.
setInterval(() => {
  if (!source || source.readyState === EventSource.CLOSED) return;
  const ago = (performance.now() - live.heard) / 1000;
  if (ago > LOST) {
    status("reconnecting", "reconnecting");
    connect();
  } else if (ago > STALE && document.body.dataset.connection === "live") status("stale", "stale");
}, 1000);

// A tab nobody looks at does not keep a place in the server's bounded number of streams.
document.addEventListener("visibilitychange", () => {
  clearTimeout(parked);
  if (document.hidden) {
    parked = setTimeout(() => {
      clearTimeout(waiting);
      source?.close();
      source = null;
    }, PARK * 1000);
  } else if (!source) {
    connect();
  } else {
    later();
  }
});

fragment().then(connect);
