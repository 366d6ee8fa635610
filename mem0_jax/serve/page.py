"""The page of live sessions: one HTML file without data, whose script asks /sessions once a second.

Instructions, labels and ids come from strangers: the script writes them as text nodes only, and the policy of the page
lets nothing run but this script, and nothing load but from this server.
"""

import base64
import hashlib

from mem0_jax.pages import STYLE, document, legend, table

_SCRIPT = """
"use strict";
const byId = (id) => document.getElementById(id);
const cards = new Map();
let token = "", seen = null;
// A token in the address stands behind "#", which browsers keep to themselves.
if (location.hash.startsWith("#token=")) {
  token = location.hash.slice(7);
  try { token = decodeURIComponent(token); } catch { /* it is no code: as it is */ }
}

function make(tag, className, parent) {
  const space = ["svg", "path"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag);
  if (className) node.setAttribute("class", className);
  parent.append(node);
  return node;
}

function write(node, text) { if (node.textContent !== text) node.textContent = text; }

function plot(parent) {
  const figure = make("figure", "plot", parent), caption = make("figcaption", "", figure);
  const axes = make("div", "axes", figure), ticks = make("div", "ticks", axes), svg = make("svg", "", axes);
  const ends = make("div", "ends", axes);
  figure.setAttribute("role", "img");
  svg.setAttribute("viewBox", "0 0 1000 600");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const [high, low, left, right] = [ticks, ticks, ends, ends].map((side) => make("span", "", side));
  return { figure, caption, svg, high, low, left, right };
}

function draw(p, title, rows, marks, [least, most], unit, left, right) {
  const height = (most - least) || 1;
  p.svg.replaceChildren();
  for (const y of [0, 600]) make("path", "rule", p.svg).setAttribute("d", `M0 ${y}H1000`);
  rows.forEach((row, i) => {
    const last = Math.max(row.length - 1, 1);
    const points = row.map((value, j) => value === null ? ""
      : `${(1000 * j / last).toFixed(0)} ${(600 - 600 * (value - least) / height).toFixed(0)}`).filter(Boolean);
    if (points.length === 1) points.push(`1000 ${points[0].split(" ")[1]}`);
    if (points.length) make("path", marks[i], p.svg).setAttribute("d", "M" + points.join("L"));
  });
  const any = rows.some((row) => row.length);
  write(p.caption, title);
  p.figure.setAttribute("aria-label", any ? `${title}; ${brief(least)} to ${brief(most)} ${unit}` : title);
  write(p.high, any ? `${brief(most)} ${unit}` : "");
  write(p.low, any ? `${brief(least)} ${unit}` : "");
  write(p.left, any ? left : "");
  write(p.right, any ? right : "");
}

function brief(value) { return Number(value.toPrecision(3)).toString(); }

function card() {
  const article = make("article", "card", byId("sessions")), view = make("div", "view", article);
  const c = { article, image: make("img", "", view) }, tags = make("div", "tags", view);
  c.time = make("span", "", tags);
  c.stage = make("span", "", tags);
  const about = make("div", "about", article);
  c.name = make("h3", "", about);
  c.instruction = make("p", "long", about);
  c.task = make("p", "note", about);
  const who = make("p", "note", about);
  c.dot = make("span", "dot", who);
  c.who = make("span", "", who);
  const plots = make("div", "plots", about);
  c.actions = plot(plots);
  c.latency = plot(plots);
  return c;
}

// Each arm's joints, then its gripper.
function arm(j, count) {
  const half = count / 2;
  return (j < half ? "s0" : "s1") + ((j + 1) % half === 0 ? " dashed" : "");
}

function show(c, s) {
  if (s.image) c.image.src = s.image; else c.image.removeAttribute("src");
  c.image.alt = `last camera image of ${s.name}`;
  write(c.time, s.time < 0 ? "no frame yet" : `frame ${s.time}`);
  c.stage.hidden = !s.staged;
  const end = s.end_probability === null ? "" : `, end ${Math.round(100 * s.end_probability)} %`;
  write(c.stage, `stage ${s.stage}${end}`);
  write(c.name, s.name);
  write(c.instruction, s.instruction || s.task);
  write(c.task, `task: ${s.task}`);
  c.task.hidden = !s.instruction || s.instruction === s.task;
  c.dot.classList.toggle("on", s.connected);
  const from = s.client ? `connected from ${s.client}` : "connected";
  const id = s.name.includes(s.id) ? "" : `, session ${s.id}`;
  write(c.who, `${s.connected ? from : "between connections"}${id}`);
  const columns = s.actions.length ? s.actions[0].map((_, j) => s.actions.map((row) => row[j])) : [];
  const numbers = columns.flat().filter((value) => value !== null);
  const range = numbers.length ? [Math.min(...numbers), Math.max(...numbers)] : [0, 0];
  const size = s.actions.length ? `${s.actions.length} steps of ${columns.length} numbers` : "none yet";
  draw(c.actions, `Next actions: ${size}`, columns, columns.map((_, j) => arm(j, columns.length)), range, "",
    "next step", `step ${s.actions.length}`);
  const ms = s.milliseconds, count = ms.length;
  const now = count ? `${brief(ms[count - 1])} ms, the last ${count} answers` : "no answer yet";
  draw(c.latency, `Latency: ${now}`, count ? [ms] : [], ["muted"], [0, Math.max(...ms, 1)], "ms",
    count > 1 ? `${count - 1} answers ago` : "", "last answer");
}

function tell(statistics) {
  const most = `at most the last ${statistics.most} of each`;
  write(document.querySelector("caption"), `Over the last ${statistics.seconds} s, ${most}`);
  const titles = [...document.querySelectorAll("thead th")].slice(1).map((head) => head.textContent);
  document.querySelector("tbody").replaceChildren(...statistics.rows.map((row) => {
    const line = document.createElement("tr"), head = make("th", "", line);
    head.scope = "row";
    head.textContent = row.unit ? `${row.name}, ${row.unit}` : row.name;
    [row.now, row.p50, row.p90, row.p99, row.most, row.count].forEach((value, i) => {
      const cell = make("td", "", line);
      make("span", "of", cell).textContent = titles[i];
      cell.append(value === null ? "\\u2013" : brief(value));
    });
    return line;
  }));
}

function render(data) {
  const count = `${data.sessions.length} of ${data.slots} sessions`;
  write(byId("about"), `${data.policy} \\u00b7 ${data.state} \\u00b7 ${count}`);
  tell(data.statistics);
  const alive = new Set(data.sessions.map((s) => s.id));
  for (const [id, c] of cards) if (!alive.has(id)) { c.article.remove(); cards.delete(id); }
  for (const s of data.sessions) {
    if (!cards.has(s.id)) cards.set(s.id, card());
    show(cards.get(s.id), s);
  }
  byId("empty").hidden = data.sessions.length > 0;
  byId("live").hidden = false;
}

function note(text) {
  write(byId("note"), text);
  byId("live").classList.toggle("stale", text !== "" && seen !== null);
}

async function refresh() {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch("/sessions", { headers, signal: AbortSignal.timeout(5000) });
    byId("ask").hidden = response.status !== 401;
    if (response.status === 401) note(token ? "This is not the server's token." : "This server asks for its token.");
    else if (!response.ok) note(`The server answered ${response.status}. Asking again every second.`);
    else { render(await response.json()); seen = new Date(); note(""); }
  } catch (error) {
    const since = seen ? ` since ${seen.toLocaleTimeString()}, what is shown is from then` : "";
    note(`The server does not answer${since}. Asking again every second.`);
  }
  setTimeout(refresh, 1000);
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); token = byId("token").value.trim(); });
refresh();
"""

_SIGNS = legend(
    [
        ("line s0", "left arm's joints"),
        ("line s0 dashed", "left gripper"),
        ("line s1", "right arm's joints"),
        ("line s1 dashed", "right gripper"),
        ("line muted", "latency"),
    ]
)
_READING = (
    "Next actions in the robot's units, from the next step on; latency from a message to its answer, in ms. Beside "
    "each curve: its greatest and its least value."
)
_MEASURES = (
    "Latency: from a message to its answer, where the policy stepped. Batch: sessions in one step of the policy. "
    "Queue: requests that wait for one, each time that one more does."
)
_NUMBERS = table("", ["Of each", "Now", "p50", "p90", "p99", "Max", "Count"], [])  # the script fills it

PAGE = document(
    "Policy server",
    f"""<header><h1>Policy server</h1><p id="about" class="note"></p>
<p id="note" class="bad" role="status"></p></header>
<form id="ask" hidden>
<input id="token" type="password" autocomplete="off" placeholder="token" aria-label="token"><button>Show</button>
</form>
<div id="live" hidden>
<section>
<h2>Whole server</h2>
<p class="note">{_MEASURES}</p>
{_NUMBERS}
</section>
<section>
<h2>Sessions</h2>
<p class="note">{_READING}</p>
{_SIGNS}
<p id="empty" class="empty" hidden>No robot is connected.</p>
<div id="sessions" class="sessions"></div>
</section>
</div>""",
    script=_SCRIPT,
    served=True,
)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(STYLE)}; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
