"""The kit of every page: one style sheet, the document around a page, its parts: sections, tables, plots, bars, keys.

A page is one file that needs no network, is light or dark as the reader's system is, prints in the light theme, and has
no text below 12 pixels at any width: charts are HTML, their SVG holds lines alone and may be stretched. Tables scroll
within themselves, under their first column, with a shade where they go on; on a phone their rows are cards. A series
is told apart by its colour and always by its name beside it.

`str` arguments are HTML, but for those named `text` or `words` and the facts, which are escaped here.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple, TypeGuard

# Name -> (light, dark). Text has a contrast of at least 4.5 on paper and card, series one of at least 3; the series
# differ from each other for colour-blind eyes as well.
PALETTE = {
    "paper": ("#fbfaf7", "#15191b"),
    "card": ("#ffffff", "#1d2326"),
    "ink": ("#22282c", "#e6e9ea"),
    "muted": ("#5f696f", "#9aa5ab"),
    "rule": ("#dcdfdf", "#343c40"),
    "void": ("#eceeed", "#232a2e"),
    "with": ("#1f6f78", "#58b8c2"),
    "without": ("#ad5a28", "#e0945f"),
    "good": ("#2b7a4b", "#7cc79a"),
    "bad": ("#a8442f", "#e58a76"),
    "s0": ("#1f6f78", "#58b8c2"),
    "s1": ("#b8622f", "#e0945f"),
    "s2": ("#5a8aee", "#9179df"),
    "s3": ("#3b124e", "#c8fcbc"),
    "s4": ("#b17c9e", "#63e3f6"),
    "s5": ("#691902", "#e6cb38"),
    "s6": ("#5e2e92", "#35768b"),
    "s7": ("#904202", "#b14e0f"),
}
SERIES = 8


def _theme(which: int) -> str:
    return " ".join(f"--{name}: {colors[which]};" for name, colors in PALETTE.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_theme(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_theme(1)} }} }}
{" ".join(f".s{i} {{ --series: var(--s{i}); }}" for i in range(SERIES))}
"""
    + """
.with { --series: var(--with); } .without { --series: var(--without); } .muted { --series: var(--muted); }
.ink { --series: var(--ink); } .rule { --series: var(--rule); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; } main.wide { max-width: 84rem; }
header p.task { color: var(--muted); margin: 0; }
h1 { font-size: clamp(1.5rem, 4vw, 2.3rem); line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  margin: .4rem 0 1rem; text-wrap: balance; }
h1 .with { color: var(--with); } h1 .without { color: var(--without); }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3.2rem 0 .4rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0 1rem; max-width: 44rem; } .note { color: var(--muted); font-size: .92rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 0; } figcaption { color: var(--muted); font-size: .88rem; line-height: 1.4; margin-top: .4rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 1.1rem; }
.card > h3:first-child { margin-top: 0; } * + .card, * + .scroll, .card + *, .scroll + * { margin-top: 1.2rem; }

.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--paper) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--muted), transparent) 0 0 / .7rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--muted), transparent) 100% 0 / .7rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
caption { text-align: left; color: var(--muted); font-size: .88rem; padding-bottom: .3rem; }
th, td { text-align: left; padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--muted); font-weight: 500; font-size: .9rem; }
thead th > span { display: inline-block; max-width: 9rem; }
tbody th { font-weight: 500; min-width: 6rem; overflow-wrap: anywhere; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
.of { display: none; color: var(--muted); font-weight: 400; }
td b { font-size: 1.08em; } td small { color: var(--muted); display: block; font-size: .8rem; }

.key { display: inline-block; width: .85em; height: .85em; border-radius: 3px; margin-right: .5em; flex: none;
  background: var(--series); vertical-align: -.05em; }
.key.line { height: 0; width: 1.5em; border-top: 3px solid var(--series); border-radius: 0; background: none;
  vertical-align: .25em; }
.key.line.dashed { border-top-style: dashed; } .key.line.dotted { border-top-style: dotted; }
.striped { --fill: repeating-linear-gradient(135deg, var(--series) 0 5px, var(--card) 5px 8px); }
.checked { --fill: repeating-conic-gradient(var(--series) 0 25%, var(--card) 0 50%) 0 0 / 8px 8px; }
.key.striped, .key.checked { background: var(--fill); outline: 1px solid var(--series); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: .8rem 0; padding: 0; list-style: none;
  font-size: .88rem; }
.bars { display: grid; gap: .7rem; margin: 0; padding: 0; list-style: none; font-variant-numeric: tabular-nums; }
.bars li { display: grid; grid-template-columns: minmax(0, 11rem) minmax(0, 1fr) 4rem; gap: .1rem .9rem;
  align-items: center; }
.bars b { text-align: right; white-space: nowrap; }
.track { position: relative; display: block; height: 1.5rem; background: var(--void); border-radius: 4px; }
.track > * { position: absolute; top: 0; bottom: 0; }
.track .bar { left: 0; border-radius: 4px; background: var(--fill, var(--series)); border: 1px solid var(--series); }
.track .reach { height: 2px; top: calc(50% - 1px); background: var(--ink); outline: 1px solid var(--card); }
.track .line, .key.upright { width: 3px; border-radius: 0;
  background: repeating-linear-gradient(var(--ink) 0 4px, var(--card) 4px 7px); }

.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15.5rem, 100%), 1fr)); gap: 1.2rem; }
.plot figcaption { margin: 0 0 .2rem; color: var(--ink); }
.axes { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: .1rem .4rem; font-size: .75rem;
  line-height: 1.2; color: var(--muted); font-variant-numeric: tabular-nums; }
.ticks { display: flex; flex-direction: column; justify-content: space-between; text-align: right; }
.ends { grid-column: 2; display: flex; justify-content: space-between; gap: .6rem; }
.ends span:nth-child(2) { text-align: center; } .ends span:last-child { text-align: right; }
svg { display: block; width: 100%; height: 6.5rem; overflow: visible; } .tall svg { height: 12rem; }
svg path { fill: none; stroke: var(--series); stroke-width: 1.8; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
svg .rule { stroke-width: 1; } svg .dashed { stroke-dasharray: 6 4; } svg .dotted { stroke-dasharray: 2 3; }
svg .pale { stroke-width: 4; opacity: .45; } svg .thin { stroke-width: 1; opacity: .4; }
.key.pale { border-top-width: 5px; opacity: .45; } .key.thin { border-top-width: 1px; }
svg rect { fill: var(--with); }

.films { display: grid; grid-template-columns: repeat(auto-fit, minmax(max(8rem, 22%), 1fr)); gap: .8rem;
  margin-bottom: 1.4rem; }
.films video, .films img { display: block; width: 100%; border-radius: 8px; background: #000; }
.label { font-weight: 600; margin: 0 0 .4rem; }
.keys { display: flex; gap: 1rem; margin-bottom: 1.2rem; } .keys figure { width: 11rem; min-width: 0; }
.keys img, .window img, .sheet img { width: 100%; display: block; border-radius: 5px; background: #000; }
.window, .sheet { display: grid; grid-template-columns: repeat(10, 1fr); gap: .7rem .5rem; padding: 0; margin: 0;
  list-style: none; font-size: .75rem; line-height: 1.3; color: var(--muted); }
.sheet { grid-template-columns: repeat(8, 1fr); margin-bottom: .8rem; }
.share { height: 6px; margin: .3rem 0 .15rem; background: var(--rule); border-radius: 3px; overflow: hidden; }
.share i { display: block; height: 100%; background: var(--with); }
.strips { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .45rem .9rem; align-items: center;
  font-size: .85rem; }
.strip { display: flex; height: 1.9rem; border-radius: 5px; overflow: hidden; position: relative; }
.strip span { background: var(--fill, var(--series)); flex-shrink: 0; }
.strip b { margin: .3rem .2rem; padding: 0 .3rem; border-radius: 4px; background: var(--card); font-size: .75rem;
  line-height: 1.3rem; display: inline-block; } .strip span { overflow: hidden; }
.strip i, .key.end { background: var(--ink); } .strip i { position: absolute; bottom: 0; height: 6px;
  border-top: 1px solid var(--card); } .key.end { height: 6px; vertical-align: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2.5rem;
  margin: 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; padding: .45rem 0;
  border-bottom: 1px solid var(--rule); }
.facts dt { color: var(--muted); flex: 0 1 auto; min-width: 5rem; }
.facts dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; margin: 0; } code { font: .92rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; }
a { color: var(--with); }
input, button { font: inherit; font-size: .95rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--muted); border-radius: 8px; padding: .3rem .9rem; max-width: 100%; }
button { cursor: pointer; margin-bottom: .9rem; } button:hover { border-color: var(--with); }
:focus-visible { outline: 2px solid var(--with); outline-offset: 2px; }
[hidden] { display: none !important; }

.sessions { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(25rem, 100%), 1fr)); gap: 1.1rem; }
.sessions .card { padding: 0; margin: 0; overflow: hidden; min-width: 0; }
.stale img { filter: grayscale(1); } .stale .card { border-style: dashed; border-color: var(--bad); }
.about { padding: .9rem 1.1rem 1.1rem; } .about h3 { margin: 0; line-height: 1.35; font-size: 1.05rem; }
.about p { margin: .2rem 0 0; line-height: 1.4; } .about .long { max-height: 7em; overflow-y: auto; }
.about .plots { grid-template-columns: minmax(0, 1fr); gap: .9rem;
  margin-top: .8rem; }
.view { position: relative; background: var(--void); aspect-ratio: 4 / 3; }
.view img { width: 100%; height: 100%; object-fit: contain; display: block; }
.view img:not([src]) { visibility: hidden; }
.tags { position: absolute; inset: .7rem .7rem auto; display: flex; flex-wrap: wrap; gap: .4rem;
  justify-content: space-between; }
.tags span { padding: .1rem .6rem; border-radius: 1rem; font-size: .8rem; background: #14191be6; color: #fff;
  font-variant-numeric: tabular-nums; }
.dot { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; border: 2px solid var(--muted);
  margin-right: .4rem; } .dot.on { background: var(--good); border-color: var(--good); }
.values { display: flex; justify-content: space-between; gap: .8rem; }
.empty { color: var(--muted); border: 1px dashed var(--muted); border-radius: 12px; padding: 2rem;
  text-align: center; max-width: none; }
form { display: flex; flex-wrap: wrap; gap: .6rem; }

@media (max-width: 48rem) { .window { grid-template-columns: repeat(5, 1fr); }
  .sheet { grid-template-columns: repeat(4, 1fr); } }
@media (max-width: 40rem) { main { padding: 1.6rem 1rem 3rem; } .card { padding: .8rem; } .films { gap: .5rem; }
  table { font-size: .88rem; line-height: 1.4; } td small, td .of { font-size: .75rem; } td .of { display: block; }
  table, caption, tbody, th, td { display: block; } thead { display: none; } .of { display: inline; }
  tbody tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(7.5rem, 100%), 1fr)); gap: .5rem .8rem;
    padding: .7rem 0; border-bottom: 1px solid var(--rule); } th, td { padding: 0; border: 0; min-width: 0; }
  tbody th:first-child { grid-column: 1 / -1; position: static; font-weight: 600; } pre { white-space: pre-wrap; }
  .bars li { grid-template-columns: minmax(0, 1fr) 3.4rem; } .bars .name { grid-column: 1 / -1; }
  .strips { grid-template-columns: minmax(0, 1fr); gap: .2rem; } .strip { margin-bottom: .5rem; } }
@media print { :root { color-scheme: light; } body { font-size: 11pt; } main { max-width: none; padding: 0; }
  button, form { display: none; } .scroll, pre { overflow: visible; } pre { white-space: pre-wrap; }
  h2, h3 { break-after: avoid; } figure, tr, .plot, .bars li { break-inside: avoid; }
  ::details-content { content-visibility: visible; height: auto; } }
@media print, (forced-colors: active) { .key, .track, .track *, .strip *, .share *, svg { forced-color-adjust: none;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
)


def document(text: str, body: str, *, script: str = "", served: bool = False) -> str:
    """A whole page titled `text`, with `STYLE` and `script` as they are.

    One that is served by a program is wider, and has an icon, so that the browser asks for none.
    """
    program = f"<script>{script}</script>\n" if script else ""
    icon, kind = ('<link rel="icon" href="data:,">\n', ' class="wide"') if served else ("", "")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(text)}</title>\n{icon}<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main{kind}>\n{body}\n</main>\n{program}</body>\n</html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    """A section under a heading of the second level."""
    paragraph = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{paragraph}{content}\n</section>"


def table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls within itself; the first entry of a row is its header.

    Each of the others has its title with it, which is seen where rows are cards.
    """
    head = "".join(f'<th scope="col"><span>{title}</span></th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(map(_cell, titles[1:], rest))}</tr>\n' for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(title: str, content: str) -> str:
    return f'<td><span class="of">{title}</span>{content}</td>'


def facts(rows: Mapping[str, Any]) -> str:
    """Names and values, escaped."""
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in rows.items())
    return f'<dl class="facts">{items}</dl>'


def command(text: str) -> str:
    """A command line to copy."""
    return f'<div class="card"><pre tabindex="0"><code>{escape(text)}</code></pre></div>'


def series(index: int) -> str:
    """The class of a series: its colour, and beyond `SERIES` of them a pattern as well."""
    return f"s{index % SERIES}" + ("", " striped", " checked")[index // SERIES % 3]


def key(mark: str) -> str:
    """The sign of a series or a line of these classes, to stand before its name."""
    return f'<span class="key {mark}"></span>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(classes, name) of all that a chart shows."""
    return f'<ul class="legend">{"".join(f"<li>{key(mark)}{name}</li>" for mark, name in entries)}</ul>'


def figure(words: str, content: str) -> str:
    """A chart on a card, and what it shows in words."""
    return f'<figure class="card" role="img" aria-label="{escape(words)}">{content}</figure>'


class Bar(NamedTuple):
    """A share between 0 and 1 with its interval; `share` None: there is nothing to show, as `name` says."""

    mark: str
    name: str
    share: float | None
    interval: Sequence[float] = (0.0, 0.0)


def bars(entries: Sequence[Bar], line: float | None = None) -> str:
    """Bars from 0 to 100 %, and a dashed line across them."""
    across = "" if line is None else f'<span class="line" style="left:{100 * line:.2f}%"></span>'
    return f'<ul class="bars">{"".join(_bar(entry, across) for entry in entries)}</ul>'


def _bar(entry: Bar, across: str) -> str:
    inside, value = "", "&ndash;"
    if is_known(entry.share):
        low, high = (100 * end for end in entry.interval)
        inside = f'<span class="bar" style="width:{100 * entry.share:.2f}%"></span>'
        inside += f'<span class="reach" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
        value = f"{100 * entry.share:.0f}&nbsp;%"
    track = f'<span class="track">{inside}{across}</span>'
    return f'<li class="{entry.mark}"><span class="name">{key(entry.mark)}{entry.name}</span>{track}<b>{value}</b></li>'


class Line(NamedTuple):
    """A line of a plot: classes, places and values; where a value is None or not finite the line is broken."""

    mark: str
    x: Sequence[float]
    y: Sequence[float | None]


def plot(
    title: str,
    words: str,
    lines: Sequence[Line],
    *,
    axis: str = "",
    ends: tuple[float, float] | None = None,
    log: bool = False,
    upright: float | None = None,
) -> str:
    """Lines over a common axis.

    Args:
        title: above it.
        words: what it shows, for who cannot see it.
        lines: what to draw, the first undermost.
        axis: what runs from left to right.
        ends: least and greatest value of the other axis; by default those of the lines, rounded.
        log: that axis is logarithmic; values must be positive.
        upright: place of a dotted upright line.
    """
    places = [place for line in lines for place in line.x] or [0.0]
    left, right = min(places), max(places)
    low, high = ends or _rounded([value for line in lines for value in line.y if is_known(value)], log)
    scale = math.log10 if log else float
    bottom, top = scale(low), scale(high)

    def across(place: float) -> str:
        return f"{1000 * (place - left) / ((right - left) or 1.0):.0f}"

    def point(x: float, y: float | None) -> str | None:
        return f"{across(x)} {600 * (top - scale(y)) / ((top - bottom) or 1.0):.0f}" if is_known(y) else None

    paths = "".join(f'<path class="rule" d="M0 {y}H1000"/>' for y in (0, 300, 600))
    if upright is not None:
        paths += f'<path class="muted dotted" d="M{across(upright)} 0V600"/>'
    for line in lines:
        paths += f'<path class="{line.mark}" d="{_path([point(x, y) for x, y in zip(line.x, line.y)])}"/>'
    middle = math.sqrt(low * high) if log else (low + high) / 2
    ticks = [f"{value:.3g}" for value in (high, middle, low)]
    return axes(title, words, paths, ticks, (f"{left:g}", axis, f"{right:g}"))


def axes(title: str, words: str, drawn: str, ticks: Sequence[str], ends: Sequence[str]) -> str:
    """SVG of 1000 by 600, stretched as there is room, with numbers beside it, downwards, and below it."""
    caption = f"<figcaption>{title}</figcaption>" if title else ""
    beside, below = ("".join(f"<span>{text}</span>" for text in texts) for texts in (ticks, ends))
    return (
        f'<figure class="plot" role="img" aria-label="{escape(words)}">{caption}<div class="axes">'
        f'<div class="ticks">{beside}</div>'
        f'<svg viewBox="0 0 1000 600" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
        f'<div class="ends">{below}</div></div></figure>'
    )


def is_known(value: float | None) -> TypeGuard[float]:
    """It is a number that can be shown."""
    return value is not None and math.isfinite(value)


def _path(points: Sequence[str | None]) -> str:
    """A point between two gaps is a short line."""
    commands, pen = [], "M"
    for i, point in enumerate(points):
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point}")
        if pen == "M" and (i + 1 == len(points) or points[i + 1] is None):
            commands.append("h12")
        pen = "L"
    return "".join(commands)


def _rounded(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of the values, widened to few digits; never empty."""
    if not values:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        return (low, high) if low < high else (low / 2, high * 2)
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span)) / 2
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if low < high else (low - step, high + step)
