"""The page of live sessions: one HTML file without data, whose script asks /sessions once a second.

Instructions, labels and ids come from strangers: the script writes them as text nodes only, and the policy of the page
lets nothing run but this script, and nothing load but from this server.
"""

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #22282c; --muted: #5f696f;
  --rule: #dcdfdf; --live: #1f6f78; --warn: #b8622f; --bad: #a8442f; --void: #eceeed; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191b; --card: #1d2326; --ink: #e6e9ea; --muted: #9aa5ab;
  --rule: #343c40; --live: #58b8c2; --warn: #e0945f; --bad: #e58a76; --void: #232a2e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 2.2rem 1.25rem 4rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3rem 1.2rem; margin-bottom: 1.6rem; }
h1 { font-size: 1.6rem; font-weight: 650; letter-spacing: -.01em; margin: 0; }
header p { margin: 0; color: var(--muted); font-variant-numeric: tabular-nums; }
#note { color: var(--bad); } #note:empty { display: none; }
#sessions { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 1.1rem; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; overflow: hidden;
  display: flex; flex-direction: column; }
.view { position: relative; background: var(--void); aspect-ratio: 4 / 3; }
.view img { width: 100%; height: 100%; object-fit: contain; display: block; }
.view img:not([src]) { visibility: hidden; }
.tag { position: absolute; left: .7rem; top: .7rem; padding: .1rem .6rem; border-radius: 1rem; font-size: .8rem;
  background: rgb(20 25 27 / .72); color: #fff; font-variant-numeric: tabular-nums; }
.tag.end { left: auto; right: .7rem; }
.about { padding: .9rem 1.1rem 1.1rem; }
h2 { font-size: 1.02rem; line-height: 1.35; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.task { margin: .2rem 0 0; font-size: .88rem; color: var(--muted); overflow-wrap: anywhere; }
.task:empty { display: none; }
.who { display: flex; align-items: center; gap: .45rem; margin: .5rem 0 .8rem; color: var(--muted); font-size: .84rem; }
.who span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.who i { flex: none; width: .55rem; height: .55rem; border-radius: 50%; background: var(--rule); }
.who i.on { background: var(--live); }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
figure { margin: 0; }
figcaption { display: flex; justify-content: space-between; font-size: .8rem; color: var(--muted); }
figcaption b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 4.4rem; background: var(--void); border-radius: 6px; margin-top: .3rem; }
polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.empty { color: var(--muted); border: 1px dashed var(--rule); border-radius: 12px; padding: 2.5rem;
  text-align: center; }
form { display: flex; gap: .6rem; } form[hidden], .empty[hidden] { display: none; }
input, button { font: inherit; padding: .45rem .8rem; border-radius: 8px; border: 1px solid var(--rule);
  background: var(--card); color: inherit; } button { cursor: pointer; }
"""

_SCRIPT = """
"use strict";
const byId = (id) => document.getElementById(id);
const cards = new Map();
// A token in the address stands behind "#", which browsers keep to themselves.
let token = location.hash.startsWith("#token=") ? decodeURIComponent(location.hash.slice(7)) : "";

function make(tag, className, parent) {
  const space = ["svg", "polyline"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag);
  if (className) node.setAttribute("class", className);
  parent.append(node);
  return node;
}

function plot(parent, title) {
  const figure = make("figure", "", parent), caption = make("figcaption", "", figure);
  make("span", "", caption).textContent = title;
  const value = make("b", "", caption), svg = make("svg", "", figure);
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  return { value, svg };
}

function lines(svg, rows, least, most) {
  const height = (most - least) || 1;
  svg.replaceChildren();
  rows.forEach((row, i) => {
    const line = make("polyline", "", svg), last = Math.max(row.length - 1, 1);
    const y = (value) => (37 - 34 * (value - least) / height).toFixed(2);
    const points = row.map((value, j) => value === null ? "" : `${(3 + 94 * j / last).toFixed(2)},${y(value)}`);
    if (row.length === 1 && row[0] !== null) points.push(`97,${y(row[0])}`);
    line.setAttribute("points", points.filter(Boolean).join(" "));
    line.setAttribute("stroke", rows.length > 1 ? `hsl(${Math.round(360 * i / rows.length)} 52% 52%)` : "var(--live)");
  });
}

function card() {
  const article = make("article", "", byId("sessions")), view = make("div", "view", article);
  const c = { article, image: make("img", "", view), time: make("span", "tag", view) };
  c.stage = make("span", "tag end", view);
  const about = make("div", "about", article);
  c.instruction = make("h2", "", about);
  c.task = make("p", "task", about);
  const who = make("p", "who", about);
  c.dot = make("i", "", who);
  c.who = make("span", "", who);
  const plots = make("div", "plots", about);
  c.actions = plot(plots, "next actions");
  c.latency = plot(plots, "latency");
  return c;
}

function show(c, s) {
  if (s.image) c.image.src = s.image; else c.image.removeAttribute("src");
  c.image.alt = "last camera image";
  c.time.textContent = s.time < 0 ? "no frame yet" : `frame ${s.time}`;
  c.stage.hidden = !s.staged;
  const end = s.end_probability === null ? "" : `, end ${Math.round(100 * s.end_probability)} %`;
  c.stage.textContent = `stage ${s.stage}${end}`;
  c.instruction.textContent = s.instruction || s.task;
  c.task.textContent = s.instruction && s.instruction !== s.task ? s.task : "";
  c.dot.className = s.connected ? "on" : "";
  c.dot.title = s.connected ? "connected" : "between connections";
  c.who.textContent = s.env ? `${s.env} \\u00b7 ${s.id}` : s.id;
  const columns = s.actions.length ? s.actions[0].map((_, j) => s.actions.map((row) => row[j])) : [];
  const numbers = columns.flat().filter((value) => value !== null);
  lines(c.actions.svg, columns, Math.min(...numbers), Math.max(...numbers));
  c.actions.value.textContent = s.actions.length ? `${s.actions.length} \\u00d7 ${columns.length}` : "none";
  const ms = s.milliseconds;
  lines(c.latency.svg, ms.length ? [ms] : [], 0, Math.max(...ms, 1));
  c.latency.value.textContent = ms.length ? `${ms[ms.length - 1].toFixed(0)} ms` : "";
}

function render(data) {
  byId("about").textContent = `${data.policy} \\u00b7 ${data.sessions.length} of ${data.slots} sessions`;
  const alive = new Set(data.sessions.map((s) => s.id));
  for (const [id, c] of cards) if (!alive.has(id)) { c.article.remove(); cards.delete(id); }
  for (const s of data.sessions) {
    if (!cards.has(s.id)) cards.set(s.id, card());
    show(cards.get(s.id), s);
  }
  byId("empty").hidden = data.sessions.length > 0;
}

async function refresh() {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch("/sessions", { headers, signal: AbortSignal.timeout(5000) });
    byId("ask").hidden = response.status !== 401;
    if (response.status === 401) byId("note").textContent = "This server asks for its token.";
    else if (!response.ok) byId("note").textContent = `The server answered ${response.status}.`;
    else { byId("note").textContent = ""; render(await response.json()); }
  } catch (error) {
    byId("note").textContent = "The server does not answer.";
  }
  setTimeout(refresh, 1000);
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); token = byId("token").value; });
refresh();
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Policy server</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><h1>Policy server</h1><p id="about"></p><p id="note" role="status"></p></header>
<form id="ask" hidden>
<input id="token" type="password" placeholder="token" aria-label="token"><button>Show</button>
</form>
<p id="empty" class="empty" hidden>No robot is connected.</p>
<div id="sessions"></div>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
