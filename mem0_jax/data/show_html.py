"""The page of `mem0_jax.data.show`: one HTML file that needs no network, light or dark as the reader's system is.

All texts come from the dataset, from strangers that is: every one is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mem0_jax.pages import axes, document, facts, legend, section, series, table
from mem0_jax.units import counted

if TYPE_CHECKING:
    from mem0_jax.data.show import Histogram, Sheet, Strip, View


def page(view: View) -> str:
    """Return the whole page."""
    dataset = view.dataset
    title = str(dataset.root).rstrip("/").rsplit("/", 1)[-1]
    seconds = dataset.num_frames / dataset.fps
    lead = (
        f"{counted(len(dataset.episodes), 'episode')}, {counted(dataset.num_frames, 'frame')} at {dataset.fps:g} a "
        f"second: {_duration(seconds)} of recordings."
    )
    sections = [
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>",
        facts(_said(view)),
        section("Pictures", "".join(_sheets(view, *item) for item in view.sheets.items())) if view.sheets else "",
        section("Subtasks", _strips(view.strips), _STRIP_NOTE) if _has_subtasks(view) else "",
        section("Instructions", "".join(_texts(key, rows) for key, rows in view.texts.items())),
        section("Episode lengths", f'<div class="card tall">{_lengths(view)}</div>'),
        *(section(f"Distribution of {escape(key)}", _dims(rows), _DIM_NOTE) for key, rows in view.histograms.items()),
    ]
    return document(title, "\n".join(filter(None, sections)))


_STRIP_NOTE = "Each strip is an episode, a colour and its number a subtask."
_DIM_NOTE = "Over all frames; bars are relative to the fullest. Above each: mean ± deviation."


def _has_subtasks(view: View) -> bool:
    return any(strip.ends or strip.segments[0][2] is not None for strip in view.strips)


def _said(view: View) -> dict[str, Any]:
    dataset = view.dataset
    lengths = [episode.length for episode in dataset.episodes]
    rows = {
        "place": dataset.root,
        "format": f"LeRobot {dataset.version}",
        "robot": dataset.robot_type or "not said",
        "episode length": f"{_span(min(lengths), max(lengths))} frames, median {np.median(lengths):g}",
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
    return rows


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
    texts = list(dict.fromkeys(text for strip in strips for _, _, text in strip.segments if _is_said(text)))
    body = "".join(
        f'<div>episode {strip.episode.index}</div><div class="strip">{_segments(strip, texts)}</div>'
        for strip in strips
    )
    keys = [(series(i), f"{i + 1} {escape(text or '')}") for i, text in enumerate(texts)]
    keys += [("rule", "no subtask"), ("end", "flagged as the end of a subtask")]
    return f'{legend(keys)}<div class="card strips">{body}</div>'


def _is_said(text: str | None) -> bool:
    return text is not None and text.strip() not in ("", "null")


def _segments(strip: Strip, texts: Sequence[str | None]) -> str:
    percent = 100 / strip.episode.length
    body = ""
    for start, length, text in strip.segments:
        mark, number = (series(texts.index(text)), texts.index(text) + 1) if _is_said(text) else ("rule", "")
        body += (
            f'<span class="{mark}" title="{escape(text or "")}: frames {start} to {start + length - 1}" '
            f'style="width:{length * percent:.3f}%">{f"<b>{number}</b>" if number else ""}</span>'
        )
    return body + "".join(
        f'<i style="left:{start * percent:.3f}%;width:{length * percent:.3f}%"></i>' for start, length in strip.ends
    )


def _texts(key: str, rows: Sequence[tuple[str, int, int]]) -> str:
    found = [[escape(text) or "<i>empty</i>", f"{episodes:,}", f"{frames:,}"] for text, episodes, frames in rows]
    return table(f"Where {escape(key)} says so", [escape(key), "Episodes", "Frames"], found)


def _lengths(view: View) -> str:
    """A histogram of the episodes' lengths."""
    lengths = np.array([episode.length for episode in view.dataset.episodes])
    low, high = int(lengths.min()), int(lengths.max())
    bins = min(50, high - low + 1)
    counts, edges = np.histogram(lengths, bins, (low - 0.5, high + 0.5))
    spans = [_span(np.ceil(edges[i]), np.floor(edges[i + 1])) for i in range(bins)]  # the edges lie between lengths
    titles = [f"{span} frames: {counted(count, 'episode')}" for span, count in zip(spans, counts.tolist())]
    words = f"Histogram of episode lengths, {_span(low, high)} frames"
    return _histogram("", words, counts, (str(low), "frames", str(high)), titles)


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _dims(rows: Sequence[Histogram]) -> str:
    body = ""
    for row in rows:
        words = f"{row.name}: {row.low:.4g} to {row.high:.4g}, mean {row.mean:.4g}"
        numbers = f"constant {row.low:.3g}" if row.low == row.high else f"{row.mean:.3g} ± {row.std:.2g}"
        title = f"<b>{escape(row.name)}</b> {numbers}"
        body += _histogram(title, words, row.counts, (f"{row.low:.3g}", "", f"{row.high:.3g}"))
    return f'<div class="card plots">{body}</div>'


def _histogram(
    title: str, words: str, counts: np.ndarray, ends: tuple[str, str, str], titles: Sequence[str] = ()
) -> str:
    """Bars over a range; `ends` stand below."""
    step, most = 1000 / len(counts), int(counts.max())
    # A bin that holds anything stays visible.
    tall = [max(8.0, 600 * n / max(1, most)) for n in counts.tolist()]
    rects = "".join(
        f'<rect x="{i * step:.1f}" y="{600 - tall[i]:.1f}" width="{0.9 * step:.1f}" height="{tall[i]:.1f}">'
        f"{f'<title>{titles[i]}</title>' if titles else ''}</rect>"
        for i, n in enumerate(counts.tolist())
        if n
    )
    return axes(title, words, rects, (f"{most:,}", "0"), ends)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
