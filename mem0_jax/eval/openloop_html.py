"""The page of an open-loop evaluation: one HTML file that needs no network."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mem0_jax.data.layout import JOINT_NAMES
from mem0_jax.disk import write_whole
from mem0_jax.eval.report_html import chart, document, section
from mem0_jax.eval.report_pictures import COLORS, STYLE, svg
from mem0_jax.eval.summary_html import cells, grid

if TYPE_CHECKING:
    from mem0_jax.eval.openloop import Replay

COLUMNS = 3
SMALL: dict[Any, Any] = {**STYLE, "font.size": 9}


def write_page(path: Path, result: Mapping[str, Any], found: "Replay") -> None:
    """Writes the page of what openloop.json holds and of what was predicted."""
    write_whole(path, page(result, found).encode())


def page(result: Mapping[str, Any], found: "Replay") -> str:
    """The whole page."""
    note = (
        "Mean absolute error of the sampled chunks over their offset, in the robot's units; dashed: holding still at "
        "the present state. Joints that never move in the recording are left out."
    )
    errors = (
        chart(error_chart(result), "Error of each joint over the offset into the chunk.") if result["joints"] else ""
    )
    traces = chart(trace_chart(result, found), "Recorded and predicted actions of one episode.")
    sections = [
        _header(result),
        section("Errors", errors + _joints(result), note),
        section(
            f"Episode {found.episode[0]}",
            traces if result["joints"] else "",
            "Recorded actions (pale), and the first action of each chunk sampled on the way.",
        ),
        _classifier(result["classifier"]),
        section("Settings", _facts(result)),
        section(
            "How to reproduce",
            f'<div class="card"><pre><code>{escape(" ".join(result["command"]))}</code></pre></div>',
            "All numbers of this page are in <code>openloop.json</code> beside it.",
        ),
    ]
    return document(f"open loop: {result['dataset']}", "\n".join(filter(None, sections)))


def _header(result: Mapping[str, Any]) -> str:
    error, still = result["mae"], result["mae_hold"]
    title = "No joint moves in this recording."
    if error is not None:
        title = (
            f'Mean error <span class="with">{error:.4f}</span>, holding still <span class="without">{still:.4f}</span>.'
        )
    counts = f"{len(result['episodes'])} episodes, {result['frames']:,} frames, {result['chunks']:,} chunks"
    return f'<header>\n<p class="task">{escape(result["dataset"])} · {counts}</p>\n<h1>{title}</h1>\n</header>'


def _joints(result: Mapping[str, Any]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(joint["name"])}</th>'
        + cells([f"<b>{joint['mae']:.4f}</b>", f"{joint['mae_hold']:.4f}", *map(_number, _ends(joint))])
        + "</tr>\n"
        for joint in result["joints"]
    )
    return grid(["", "Error", "Holding still", "First action", "Last action"], body)


def _ends(joint: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return joint["mae_by_offset"][0], joint["mae_by_offset"][-1]


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.4f}"


def _classifier(quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return section("Subtask-end classifier", "<p>The dataset has no positive label.</p>")
    at = quality["at_threshold"]
    row = cells([f"<b>{_number(at[key])}</b>" for key in ("precision", "recall", "f1")])
    row += cells([_number(quality["average_precision"]), f"{quality['positives']} of {quality['frames']}"])
    titles = [f"at {at['threshold']:g}", "Precision", "Recall", "F1", "Average precision", "Positive frames"]
    body = f'<tr><th scope="row">classifier</th>{row}</tr>'
    picture = chart(classifier_chart(quality), "Precision, recall and F1 over the threshold.")
    return section("Subtask-end classifier", grid(titles, body) + picture)


def _facts(result: Mapping[str, Any]) -> str:
    policy = result["policy"]
    rows = {"bundle": policy["bundle"], "sha256": policy["sha256"][:20] + "…", **result["settings"]}
    rows |= {f"provenance: {key}": value for key, value in policy["provenance"].items()} | result["versions"]
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v)[:60])}</dd></div>" for k, v in rows.items())
    return f'<dl class="facts">{items}</dl>'


def error_chart(result: Mapping[str, Any]) -> str:
    """One small panel a joint."""
    with mpl.rc_context(SMALL):
        figure, panels = _panels(len(result["joints"]))
        for axes, joint in zip(panels, result["joints"]):
            axes.plot(_values(joint["mae_by_offset"]), color=COLORS["with"], lw=1.8)
            axes.plot(_values(joint["mae_hold_by_offset"]), color=COLORS["without"], lw=1.2, ls=(0, (4, 3)))
            axes.set_ylim(bottom=0)
            _titled(axes, joint["name"])
        panels[-1].set_xlabel("offset into the chunk")
        return svg(figure, "errors")


def trace_chart(result: Mapping[str, Any], found: "Replay") -> str:
    """Recorded actions of the first episode and the first action of each chunk."""
    chosen = [i for i, episode in enumerate(found.episode) if episode == found.episode[0]]
    frames = np.array([found.frame[i] for i in chosen])
    with mpl.rc_context(SMALL):
        figure, panels = _panels(max(len(result["joints"]), 1))
        for axes, joint in zip(panels, result["joints"]):
            dim = JOINT_NAMES.index(joint["name"])
            recorded, predicted = (
                [getattr(found, name)[i][0, dim] for i in chosen] for name in ("recorded", "predicted")
            )
            axes.plot(frames, recorded, color=COLORS["muted"], lw=3, alpha=0.4)
            axes.plot(frames, predicted, color=COLORS["with"], lw=1.3)
            _titled(axes, joint["name"])
        panels[-1].set_xlabel("frame")
        return svg(figure, "traces")


def classifier_chart(quality: Mapping[str, Any]) -> str:
    """Precision, recall and F1 over the threshold."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        thresholds = [entry["threshold"] for entry in quality["curve"]]
        for key, color, style in (("precision", "with", "-"), ("recall", "without", "-"), ("f1", "ink", "--")):
            values = _values([entry[key] for entry in quality["curve"]])
            axes.plot(thresholds, values, style, color=COLORS[color], lw=1.8, label="F1" if key == "f1" else key)
        axes.axvline(quality["at_threshold"]["threshold"], color=COLORS["muted"], lw=1, ls=(0, (1, 2)))
        axes.set(ylim=(0, 1.05), xlabel="threshold")
        axes.grid(axis="y", color=COLORS["rule"], lw=0.7)
        axes.tick_params(length=0)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return svg(figure, "classifier")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(7.6, 0.4 + 1.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _titled(axes: Axes, name: str) -> None:
    axes.set_title(name.replace("_", " "), fontsize=9, loc="left")
    axes.grid(axis="y", color=COLORS["rule"], lw=0.6)
    axes.tick_params(length=0)


def _values(values: list[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
