"use strict";
// Asks kite every few seconds how it is, and shows what it says. All of it is put in as text, never as HTML.

const STATUS_EVERY = 2000, TRAFFIC_EVERY = 10000, PATIENCE = 5000;
const SVG = "http://www.w3.org/2000/svg";
const find = (id) => document.getElementById(id);

function element(name, words, kind) {
  const made = document.createElement(name);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  return made;
}

function drawing(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A name, which is broken behind its dots and colons rather than within a word.
function soft(words) {
  const made = document.createDocumentFragment();
  for (const part of words.split(/(?<=[.:])/)) made.append(part, document.createElement("wbr"));
  return made;
}

// Only what has changed is put in, so that a reader is not interrupted and a selection stays.
function put(node, made) {
  const text = made.map((one) => one.outerHTML).join("");
  if (node.kept === text) return;
  node.kept = text;
  node.replaceChildren(...made);
}

function say(node, words, kind) {
  if (node.textContent !== words) node.textContent = words;
  if (kind !== undefined && node.className !== kind) node.className = kind;
}

// ------------------------------------------------------------------ words

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) { bytes /= 1000; at += 1; }
  return (at === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)) + " " + units[at];
}

function time(seconds) {
  if (seconds < 60) return seconds + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds / 60 % 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor(seconds / 3600 % 24) + " h";
}

const many = (n, one, more) => n + " " + (n === 1 ? one : more);

// A pin is for comparing, which `kite status` is better for.
function short(address) {
  const [place, pin] = address.split("#");
  const onion = place.match(/^([a-z2-7]{8})[a-z2-7]{48}(\.onion.*)$/);
  return (onion ? onion[1] + "…" + onion[2] : place) + (pin ? " (pinned)" : "");
}

const STATES = {
  up: ["good", "up"], suspect: ["warn", "silent"], dialling: ["warn", "connecting"], waiting: ["bad", "down, waiting"],
  idle: ["warn", "not needed now"],
};
const MARKS = { good: "● ", warn: "◐ ", bad: "○ ", none: "– " };

function mark(kind, words) {
  return element("span", MARKS[kind] + words, "mark " + kind);
}

// ---------------------------------------------------------------- the way

const ICONS = {
  visitors: "M28 17a6 6 0 1 1 0 12 6 6 0 0 1 0-12M17 41c1-7 5-9 11-9s10 2 11 9",
  frontend: "M17 18h22v8H17zM17 30h22v8H17zM22 22h.1M22 34h.1",
  tor: "M28 14v28M28 18c-9 5-11 9-11 14 0 6 5 10 11 10s11-4 11-10c0-5-2-9-11-14M28 25c-4 3-5 5-5 8s2 5 5 5",
  direct: "M15 28h26M34 21l7 7-7 7",
  node: "M17 21c0-3 5-5 11-5s11 2 11 5-5 5-11 5-11-2-11-5v14c0 3 5 5 11 5s11-2 11-5V21M17 28c0 3 5 5 11 5s11-2 11-5",
  kites: "M30 14l10 10-12 9-8-13zM30 14l-2 19M20 20l20 4M28 33c-1 5-6 3-7 8",
};

function stations(status) {
  const open = status.traffic.open;
  const visitors = ["visitors", "Visitors", "good", open ? open + " here now" : "none just now",
    status.traffic.visitors + " since the start"];
  if (status.role === "frontend") {
    const silent = status.backends.filter((b) => !b.answers).length;
    const tunnels = status.backends.length;
    const flying = status.kites.filter((k) => k.tunnels > 0).length;
    const tor = status.tor;
    return [
      visitors,
      ["frontend", "This frontend", "good", "up for " + time(status.up), "takes visitors and backends"],
      tor ? ["tor", "Tor", tor.ready ? "good" : "bad", tor.ready ? "onion service works" : tor.state, tor.ready ? "" : tor.text]
        : ["direct", "Internet", "good", "no onion service", "backends come to its ports, perhaps through Tor"],
      ["kites", "Backends", !tunnels ? "warn" : silent ? "warn" : "good",
        !tunnels ? "none connected" : many(tunnels, "tunnel", "tunnels") + (silent ? ", " + silent + " silent" : ""),
        many(flying, "kite flies", "kites fly")],
    ];
  }
  const tor = status.tor;
  const all = status.frontends.length, up = status.frontends.filter((f) => f.up > 0).length;
  const origins = status.kites.map((k) => k.origin).filter(Boolean);
  const broken = origins.find((o) => o.state !== "unknown" && !o.state.startsWith("speaks"));
  const known = origins.find((o) => o.state.startsWith("speaks"));
  return [
    visitors,
    ["frontend", all === 1 ? "Frontend" : "Frontends", up === all ? "good" : up ? "warn" : "bad",
      all === 1 ? (up ? "connected" : "not connected") : up + " of " + all + " connected",
      !up ? nextTry(status) : tor ? "each sees visitors, never this machine" : "each sees visitors, and this machine"],
    tor ? ["tor", "Tor", tor.ready ? "good" : "bad", tor.ready ? "working" : tor.state,
        tor.ready ? "hides this machine's address" : tor.text]
      : ["direct", "No Tor", "warn", "direct", "frontends see this machine's address"],
    ["node", origins.length > 1 ? "Nodes" : "Node", broken ? "bad" : known ? "good" : "none",
      broken ? broken.state : known ? known.state : "not looked at yet",
      broken ? broken.address : many(status.kites.length, "kite", "kites")],
  ];
}

function nextTry(status) {
  const times = status.frontends.map((f) => f.retry_in).filter((t) => t !== null && t !== undefined);
  return times.length ? "next try in " + time(Math.min(...times)) : "connecting";
}

function way(status) {
  const made = stations(status);
  const flows = status.speed.from_visitors + status.speed.to_visitors > 0;
  put(find("way"), made.map(([icon, title, kind, state, more], at) => {
    const item = element("li");
    const broken = at > 0 && (kind === "bad" || made[at - 1][2] === "bad");
    // Two of them: a style sheet shows the one that fits.
    const lines = [["wide", "0 0 100 16", "M2 8H98"], ["tall", "0 0 16 100", "M8 4V96"]].map(([shape, viewBox, d]) => {
      const kinds = "line " + shape + (broken ? " bad off" : flows ? " good flows" : " good");
      const line = drawing("svg", { class: kinds, "aria-hidden": "true", viewBox, preserveAspectRatio: "none" });
      line.append(drawing("path", { d }));
      return line;
    });
    const station = drawing("svg", { class: "station " + kind, viewBox: "0 0 56 56", "aria-hidden": "true" });
    station.append(drawing("circle", { cx: 28, cy: 28, r: 26 }), drawing("path", { d: ICONS[icon] }));
    item.append(...lines, station, element("strong", title), element("span", MARKS[kind] + state, "state " + kind));
    if (more) item.append(element("span", more, "quiet"));
    return item;
  }));
}

// --------------------------------------------------------------- tables

// Cells are words, or elements; the first of a row is its head.
function table(node, caption, heads, rows) {
  say(node.querySelector("caption"), caption);
  // The roles are said, since on a narrow screen the cells are blocks.
  const head = element("tr");
  head.setAttribute("role", "row");
  for (const words of heads) {
    const cell = element("th", words);
    cell.scope = "col";
    cell.setAttribute("role", "columnheader");
    head.append(cell);
  }
  put(node.querySelector("thead"), [head]);
  put(node.querySelector("tbody"), rows.map((cells) => {
    const row = element("tr");
    row.setAttribute("role", "row");
    cells.forEach((words, at) => {
      const cell = element(at === 0 ? "th" : "td");
      cell.setAttribute("role", at === 0 ? "rowheader" : "cell");
      if (at === 0) cell.scope = "row";
      else cell.dataset.head = heads[at];
      cell.append(at === 0 ? soft(words) : words);
      row.append(cell);
    });
    return row;
  }));
}

function peers(status) {
  const node = find("peers");
  if (status.role === "frontend") {
    say(find("peers-title"), "Backends");
    table(node, status.backends.length ? "Each tunnel that a backend holds to this frontend" : "No backend is connected.",
      ["Kites", "State", "Streams", "Round trip"],
      status.backends.map((b) => [
        b.kites.join(", ") || "none yet",
        b.answers ? mark("good", "answers") : mark("warn", "owes a sign of life"),
        String(b.streams),
        b.round_trip_ms === null ? "not measured" : b.round_trip_ms + " ms",
      ]));
    return;
  }
  table(node, "Each frontend, and how this backend is connected to it",
    ["Frontend", "State", "Tunnels", "Score", "Round trip", "Next try", "Last trouble"],
    status.frontends.map((f) => {
      const [kind, words] = STATES[f.state] || ["warn", f.state];
      const trips = status.tunnels.filter((t) => t.frontend === f.address && t.round_trip_ms !== null)
        .map((t) => t.round_trip_ms);
      return [
        short(f.address), mark(kind, words), f.up + " of " + f.tunnels, score(f),
        trips.length ? Math.min(...trips) + " ms" : "not measured",
        f.retry_in === null ? "—" : "in " + time(f.retry_in), f.last_error || "none",
      ];
    }));
}

// How a frontend did of late, as the backend's own visits saw it.
function score(frontend) {
  if (!frontend.score) return "not visited";
  const { standing, points } = frontend.score;
  if (standing === "astray") return mark("bad", "leads astray, " + points);
  return standing === "poor" ? mark("warn", "poor, " + points) : mark("good", String(points));
}

// What became of the visits that a backend pays to its own kite, from outside.
function visits(kite) {
  const proven = kite.probes.filter((p) => p.outcome === "proven").length;
  const failed = kite.probes.concat((kite.by_name || []).filter((p) => !p.frontend)).filter((p) => p.outcome === "failed");
  if (failed.length) {
    return mark("bad", failed.map((p) => p.finding + " by " + (p.frontend ? short(p.frontend) : "its name")).join(", "));
  }
  if (!kite.probes.length) return "not visited";
  if (proven < kite.wanted_at.length) return "proven through " + proven + " of " + many(kite.wanted_at.length, "frontend", "frontends");
  return mark("good", "reaches the node");
}

// Why visitors were sent away, the most frequent first.
function sentAway(refused) {
  const all = Object.entries(refused).sort((a, b) => b[1] - a[1]);
  return all.length ? all.map(([why, n]) => why + " " + n).join(", ") : "none";
}

function kites(status) {
  const isBackend = status.role === "backend";
  const heads = ["Kite", "State", "Visitors", "To visitors", "From visitors", "Sent away"];
  if (isBackend) heads.push("Node", "Own visit");
  table(find("kites"), status.kites.length ? "What is public, and who came" : "No kite has flown yet.", heads,
    status.kites.map((k) => {
      const cells = [
        k.kite,
        k.tunnels ? mark("good", isBackend ? "flies at " + many(k.flies_at.length, "frontend", "frontends") : "flies")
          : mark("bad", "does not fly"),
        k.traffic.open + " now, " + k.traffic.visitors + " in all", size(k.traffic.to_visitors),
        size(k.traffic.from_visitors), sentAway(k.traffic.refused),
      ];
      if (isBackend) cells.push(k.origin ? k.origin.state : "unknown", visits(k));
      return cells;
    }));
}

function troubles(status) {
  const made = status.troubles.slice(0, 10).map((trouble) => {
    const item = element("li");
    const times = trouble.times > 1 ? ", " + trouble.times + " times" : "";
    item.append(element("strong", (trouble.code ? trouble.code + " " : "") + short(trouble.with)),
      element("span", " " + time(trouble.ago) + " ago" + times, "quiet"), element("div", trouble.text));
    return item;
  });
  put(find("troubles"), made.length ? made : [element("li", "Nothing since kite started.", "quiet")]);
}

// ---------------------------------------------------------------- verdict

function verdict(status) {
  if (status.tor && !status.tor.ready) return ["bad", "Tor: " + status.tor.state];
  if (status.role === "frontend") {
    return status.backends.length ? ["good", "All is well"] : ["warn", "No backend is connected"];
  }
  const down = status.frontends.filter((f) => f.up === 0).length;
  if (down === status.frontends.length) return ["bad", "Not reachable: no frontend is connected"];
  if (stations(status)[3][2] === "bad") return ["bad", "The node is " + stations(status)[3][3]];
  if (down) return ["warn", many(down, "frontend is", "frontends are") + " not connected"];
  return status.tor ? ["good", "All is well"] : ["warn", "Works, but not hidden"];
}

function show(status) {
  const [kind, words] = verdict(status);
  say(find("title"), "kite " + status.role);
  document.title = words + " – kite " + status.role;
  say(find("about"), "Version " + status.version + ", up for " + time(status.up));
  say(find("verdict"), MARKS[kind] + words, "verdict " + kind);
  way(status);
  peers(status);
  kites(status);
  troubles(status);
}

// ------------------------------------------------------------------ plots

const WIDTH = 720, HEIGHT = 220;
let plots = null, span = "hour";

function line(values, most) {
  const step = WIDTH / Math.max(1, values.length - 1);
  return values.map((v, at) => (at ? "L" : "M") + (at * step).toFixed(1) + " " + (HEIGHT - 4 - v / most * (HEIGHT - 14)).toFixed(1))
    .join("");
}

function draw() {
  if (!plots) return;
  const plot = plots[span], svg = find("plot");
  const total = (values) => values.reduce((a, b) => a + b, 0);
  const most = Math.max(1, ...plot.to_visitors, ...plot.from_visitors), streams = Math.max(1, ...plot.streams);
  const close = "L" + WIDTH + " " + HEIGHT + "L0 " + HEIGHT + "Z";
  const made = [drawing("path", { class: "grid", d: "M0 55H720M0 110H720M0 165H720M0 219.5H720" })];
  for (const [kind, values] of [["to", plot.to_visitors], ["from", plot.from_visitors]]) {
    made.push(drawing("path", { class: "area-" + kind, d: line(values, most) + close }),
      drawing("path", { class: "line-" + kind, d: line(values, most) }));
  }
  made.push(drawing("path", { class: "streams", d: line(plot.streams, streams) }));
  svg.replaceChildren(...made);
  say(find("sum"), "In the last " + span + " " + size(total(plot.to_visitors)) + " to visitors and " +
    size(total(plot.from_visitors)) + " from them; at most " + many(Math.max(...plot.streams), "stream", "streams") +
    " at a time, and " + size(most > 1 ? most / plot.step : 0) + " per second.");
  say(find("most"), most > 1 ? size(most / plot.step) + "/s" : "");
  const hour = span === "hour";
  put(find("times"), (hour ? ["60 min ago", "30 min", "now"] : ["24 h ago", "12 h", "now"]).map((w) => element("span", w)));
}

for (const choice of ["hour", "day"]) {
  find(choice).addEventListener("click", () => {
    span = choice;
    for (const each of ["hour", "day"]) find(each).setAttribute("aria-pressed", String(each === choice));
    draw();
  });
}

// ------------------------------------------------------------------ asking

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), credentials: "same-origin" });
  if (answer.status === 403) throw new Error("closed");
  if (!answer.ok) throw new Error("no answer");
  return answer.json();
}

function lost(error) {
  const words = error.message === "closed" ? "Your visit is over: run kite web again" : "kite does not answer";
  say(find("verdict"), MARKS.bad + words, "verdict bad");
  say(find("age"), "What is shown is no longer true.");
}

async function keep(path, every, use) {
  for (;;) {
    try {
      use(await ask(path));
    } catch (error) {
      lost(error);
    }
    await new Promise((done) => setTimeout(done, every));
  }
}

keep("/status.json", STATUS_EVERY, (status) => {
  say(find("age"), "");
  show(status);
});
keep("/traffic.json", TRAFFIC_EVERY, (answer) => {
  plots = answer;
  draw();
});
