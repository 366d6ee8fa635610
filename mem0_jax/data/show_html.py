"""The page of `mem0_jax.data.show`: one HTML file that needs no network, light or dark as the reader's system is.

All texts come from the dataset, from strangers that is: every one is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mem0_jax.data.show import Histogram, Sheet, Strip, View

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #22282c; --muted: #5f696f;
  --rule: #dcdfdf; --bar: #1f6f78; --end: #b8622f; --bad: #a8442f;
  --s0: #a9cdd1; --s1: #c9d8b6; --s2: #d9c7de; --s3: #f0d9b5; --s4: #b9cbe6; --null: #e9ebeb; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191b; --card: #1d2326; --ink: #e6e9ea; --muted: #9aa5ab;
  --rule: #343c40; --bar: #58b8c2; --end: #e0945f; --bad: #e58a76;
  --s0: #2c5a60; --s1: #4c5c37; --s2: #5b4563; --s3: #6a5430; --s4: #38507a; --null: #2a3135; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  margin: .4rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3.2rem 0 .4rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0 1rem; max-width: 44rem; overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: .92rem; } .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 1.1rem; }
.scroll { overflow-x: auto; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2.5rem;
  margin: 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; padding: .45rem 0;
  border-bottom: 1px solid var(--rule); }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.sheet { display: grid; grid-template-columns: repeat(8, 1fr); gap: .5rem; margin: 0 0 .8rem; padding: 0;
  list-style: none; font-size: .75rem; color: var(--muted); }
.sheet img { width: 100%; display: block; border-radius: 5px; background: #000; }
.dims { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: 1.2rem; }
.dims figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption span { color: var(--muted); font-variant-numeric: tabular-nums; display: block; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--muted); }
.bars { fill: var(--bar); } .axis { stroke: var(--rule); }
.strips { display: grid; grid-template-columns: max-content 1fr; gap: .45rem .9rem; align-items: center;
  font-size: .85rem; }
.strip { display: flex; height: 1.9rem; border-radius: 5px; overflow: hidden; position: relative; }
.strip span { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; padding: .25rem .4rem; font-size: .75rem;
  min-width: 0; flex-shrink: 0; }
.strip i { position: absolute; bottom: 0; height: 5px; background: var(--end); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td + td, th + th { text-align: right; white-space: nowrap; } td { overflow-wrap: anywhere; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--muted); font-weight: 500; font-size: .9rem; }
@media (max-width: 48rem) { .sheet { grid-template-columns: repeat(4, 1fr); } }
"""


def page(view: View) -> str:
    """Return the whole page."""
    dataset = view.dataset
    title = str(dataset.root).rstrip("/").rsplit("/", 1)[-1]
    seconds = dataset.num_frames / dataset.fps
    lead = (
        f"{_episodes(len(dataset.episodes))}, {dataset.num_frames:,} frames at {dataset.fps:g} a second: "
        f"{_duration(seconds)} of recordings."
    )
    sections = [
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>",
        _facts(view),
        _section("Pictures", "".join(_sheets(view, *item) for item in view.sheets.items())),
        _section("Subtasks", _strips(view.strips), _STRIP_NOTE) if _has_subtasks(view) else "",
        _section("Instructions", "".join(_table(key, rows) for key, rows in view.texts.items())),
        _section("Episode lengths", f'<div class="card">{_lengths(view)}</div>'),
        *(_section(f"Distribution of {key}", _dims(rows), _DIM_NOTE) for key, rows in view.histograms.items()),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


_STRIP_NOTE = "Each strip is an episode, a colour a subtask. Marked below: the frames flagged as the end of a subtask."
_DIM_NOTE = "Over all frames; bars are relative to the fullest. Below each: least to greatest value, mean ± deviation."


def _has_subtasks(view: View) -> bool:
    return any(strip.ends or strip.segments[0][2] is not None for strip in view.strips)


def _facts(view: View) -> str:
    dataset = view.dataset
    lengths = [episode.length for episode in dataset.episodes]
    rows = {
        "place": dataset.root,
        "format": f"LeRobot {dataset.version}",
        "robot": dataset.robot_type or "not said",
        "episode length": f"{min(lengths)} to {max(lengths)} frames, median {np.median(lengths):g}",
    }
    if "task" in view.texts:
        rows["tasks"] = len(dataset.tasks())
    for camera in dataset.cameras:
        feature = dataset.features[camera]
        rows[camera] = _kind(feature)
    for key, feature in dataset.features.items():
        if key in view.histograms:
            rows[key] = _kind(feature)
    rows |= {f"{key}: not shown": problem for key, problem in view.problems.items()}
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in rows.items())
    return f'<dl class="facts">{items}</dl>'


def _kind(feature: Mapping[str, Any]) -> str:
    return f"{feature['dtype']} {feature.get('shape')}"


def _sheets(view: View, index: int, sheets: Sequence[Sheet]) -> str:
    episode = next(e for e in view.dataset.episodes if e.index == index)
    head = f"<h3>Episode {index} · {episode.length} frames · {escape(', '.join(episode.tasks))}</h3>"
    body = ""
    for sheet in sheets:
        cells = "".join(
            f'<li><img src="{address}" alt="Episode {index}, frame {frame}" loading="lazy">{frame}</li>'
            for frame, address in sheet.pictures
        )
        name = f'<p class="note">{escape(sheet.camera)}</p>' if len(sheets) > 1 else ""
        problem = f'<p class="bad">{escape(sheet.problem)}</p>' if sheet.problem else ""
        body += f'{name}<ul class="sheet">{cells}</ul>{problem}'
    return head + body


def _strips(strips: Sequence[Strip]) -> str:
    texts = list(dict.fromkeys(text for strip in strips for _, _, text in strip.segments))
    body = ""
    for strip in strips:
        percent = 100 / strip.episode.length
        spans = "".join(
            f'<span title="{escape(text or "", quote=True)}: frames {start} to {start + length - 1}" '
            f'style="width:{length * percent:.3f}%;background:var(--{_color(texts, text)})">{escape(text or "")}</span>'
            for start, length, text in strip.segments
        )
        marks = "".join(
            f'<i style="left:{start * percent:.3f}%;width:{length * percent:.3f}%"></i>' for start, length in strip.ends
        )
        body += f'<div>episode {strip.episode.index}</div><div class="strip">{spans}{marks}</div>'
    return f'<div class="card strips">{body}</div>'


def _color(texts: Sequence[str | None], text: str | None) -> str:
    return "null" if text is None or text.strip() in ("", "null") else f"s{texts.index(text) % 5}"


def _table(key: str, rows: Sequence[tuple[str, int, int]]) -> str:
    body = "".join(
        f"<tr><td>{escape(text) or '<i>empty</i>'}</td><td>{episodes:,}</td><td>{frames:,}</td></tr>"
        for text, episodes, frames in rows
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (key, "episodes", "frames"))
    return (
        f'<h3>{escape(key)}</h3><div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _lengths(view: View) -> str:
    """A histogram of the episodes' lengths."""
    lengths = np.array([episode.length for episode in view.dataset.episodes])
    low, high = int(lengths.min()), int(lengths.max())
    bins = min(50, high - low + 1)
    counts, edges = np.histogram(lengths, bins, (low - 0.5, high + 0.5))
    most = f'<text x="0" y="11">{_episodes(counts.max())}</text>'
    ends = f'<text x="0" y="158">{low} frames</text><text x="800" y="158" text-anchor="end">{high} frames</text>'
    titles = [f"{edges[i]:.0f} to {edges[i + 1]:.0f} frames: {_episodes(count)}" for i, count in enumerate(counts)]
    bars = _bars(counts, 800, 20, 140, titles)
    words = f"Histogram of episode lengths, {low} to {high} frames"
    return f'<svg viewBox="0 0 800 162" role="img" aria-label="{words}">{most}{bars}{ends}</svg>'


def _episodes(count: int) -> str:
    return f"{count} episode{'' if count == 1 else 's'}"


def _dims(rows: Sequence[Histogram]) -> str:
    cells = ""
    for row in rows:
        words = f"{row.name}: {row.low:.4g} to {row.high:.4g}, mean {row.mean:.4g}"
        svg = f'<svg viewBox="0 0 184 60" role="img" aria-label="{escape(words, quote=True)}">'
        svg += _bars(row.counts, 184, 2, 58) + "</svg>"
        constant = "constant " if row.low == row.high else ""
        numbers = f"{row.low:.3g}" if constant else f"{row.low:.3g} to {row.high:.3g}, {row.mean:.3g} ± {row.std:.2g}"
        cells += f"<figure>{svg}<figcaption>{escape(row.name)}<span>{constant}{numbers}</span></figcaption></figure>"
    return f'<div class="card dims">{cells}</div>'


def _bars(counts: np.ndarray, width: int, top: int, bottom: int, titles: Sequence[str] = ()) -> str:
    step = width / len(counts)
    gap = min(1.5, step / 4)
    scale = (bottom - top) / max(1, counts.max())
    # A bin that holds anything stays visible.
    rects: list[Any] = [
        f'<rect x="{i * step:.2f}" y="{bottom - max(1.0, n * scale):.2f}" width="{step - gap:.2f}" '
        f'height="{max(1.0, n * scale):.2f}">{f"<title>{titles[i]}</title>" if titles else ""}</rect>'
        for i, n in enumerate(counts.tolist())
        if n
    ]
    line = f'<line class="axis" x1="0" x2="{width}" y1="{bottom}" y2="{bottom}"/>'
    return f'<g class="bars">{"".join(rects)}</g>{line}'


def _section(title: str, content: str, note: str = "") -> str:
    paragraph = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{paragraph}{content}\n</section>"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
