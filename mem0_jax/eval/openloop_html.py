"""The page of an open-loop evaluation: one HTML file that needs no network."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem0_jax.disk import write_whole
from mem0_jax.pages import Line, command, document, facts, is_known, legend, plot, section, table
from mem0_jax.units import counted

if TYPE_CHECKING:
    from mem0_jax.eval.openloop import Replay


def write_page(path: Path, result: Mapping[str, Any], found: "Replay") -> None:
    """Writes the page of what openloop.json holds and of what was predicted."""
    write_whole(path, page(result, found).encode())


def page(result: Mapping[str, Any], found: "Replay") -> str:
    """The whole page."""
    note = (
        "Mean absolute error of the sampled chunks over their offset, in the robot's units. Joints that never move in "
        "the recording are left out."
    )
    sections = [
        _header(result),
        section("Errors", _joints(result) + _errors(result) if result["joints"] else "", note),
        section(
            f"Episode {found.episode[0]}",
            _traces(result, found) if result["joints"] else "",
            "Recorded actions, and the first action of each chunk sampled on the way, in the robot's units.",
        ),
        section("Subtask-end classifier", _classifier(result["classifier"])),
        section("Settings", facts(_settings(result))),
        section(
            "How to reproduce",
            command(" ".join(result["command"])),
            "All numbers of this page are in <code>openloop.json</code> beside it.",
        ),
    ]
    return document(f"open loop: {result['dataset']}", "\n".join(sections))


def _header(result: Mapping[str, Any]) -> str:
    error, still = result["mae"], result["mae_hold"]
    title = "No joint moves in this recording."
    if error is not None:
        title = (
            f'Mean error <span class="with">{_number(error)}</span>, '
            f'holding still <span class="without">{_number(still)}</span>.'
        )
    counts = [(len(result["episodes"]), "episode"), (result["frames"], "frame"), (result["chunks"], "chunk")]
    shown = ", ".join(counted(*count) for count in counts)
    lost = f'<p class="bad">{escape(result["broken"])}</p>\n' if result["broken"] else ""
    return f'<header>\n<p class="task">{escape(result["dataset"])} · {shown}</p>\n<h1>{title}</h1>\n{lost}</header>'


def _joints(result: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(joint["name"]),
            f"<b>{_number(joint['mae'])}</b>",
            _number(joint["mae_hold"]),
            *(_number(joint["mae_by_offset"][end]) for end in (0, -1)),
        ]
        for joint in result["joints"]
    ]
    titles = ["Joint", "Error", "Holding still", "First action", "Last action"]
    return table("Each joint: over the whole chunk, its first and its last action", titles, rows)


def _number(value: float | None) -> str:
    return _digits(value) if is_known(value) else "&ndash;"


def _digits(value: float) -> str:
    """Four decimals, or as many significant digits where these would show nothing, or far more than is known."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def _errors(result: Mapping[str, Any]) -> str:
    """A plot a joint: error over the offset."""
    body = ""
    for joint in result["joints"]:
        error, still = joint["mae_by_offset"], joint["mae_hold_by_offset"]
        known = [value for value in (*error, *still) if is_known(value)]
        words = f"{joint['name']}: error over the offset into the chunk, mean {_digits(joint['mae'])}"
        offsets = range(len(error))
        lines = [Line("without dashed", offsets, still)] if any(map(is_known, still)) else []
        lines.append(Line("with", offsets, error))
        body += plot(_title(joint), words, lines, axis="offset", ends=(0, max(known, default=0) or 1))
    keys = legend([("line with", "the policy"), ("line without dashed", "holding still at the present state")])
    return f'{keys}<div class="card plots">{body}</div>'


def _traces(result: Mapping[str, Any], found: "Replay") -> str:
    """A plot a joint: recorded actions of the first episode and the first action of each chunk."""
    chosen = [i for i, episode in enumerate(found.episode) if episode == found.episode[0]]
    frames = [found.frame[i] for i in chosen]
    body = ""
    for joint in result["joints"]:
        dim = found.robot.action.names.index(joint["name"])
        recorded, predicted = (
            [float(getattr(found, name)[i][0, dim]) for i in chosen] for name in ("recorded", "predicted")
        )
        words = f"{joint['name']}: recorded and predicted actions of frames {frames[0]} to {frames[-1]}"
        lines = [Line("muted pale", frames, recorded), Line("with", frames, predicted)]
        body += plot(_title(joint), words, lines, axis="frame")
    keys = legend([("line muted pale", "recorded"), ("line with", "predicted")])
    return f'{keys}<div class="card plots">{body}</div>'


def _title(joint: Mapping[str, Any]) -> str:
    return escape(joint["name"].replace("_", " "))


def _classifier(quality: Mapping[str, Any] | None) -> str:
    if quality is None:
        return "<p>The dataset has no positive label.</p>"
    at = quality["at_threshold"]
    row = [f"at {at['threshold']:g}", *(f"<b>{_number(at[key])}</b>" for key in ("precision", "recall", "f1"))]
    row += [_number(quality["average_precision"]), f"{quality['positives']} of {quality['frames']}"]
    titles = ["Threshold", "Precision", "Recall", "F1", "Average precision", "Positive frames"]
    return table("How well the ends of subtasks are found", titles, [row]) + _curves(quality)


def _curves(quality: Mapping[str, Any]) -> str:
    """Precision, recall and F1 over the threshold."""
    used = quality["at_threshold"]["threshold"]
    thresholds = [entry["threshold"] for entry in quality["curve"]]
    marks = {"precision": "with", "recall": "without dashed", "f1": "ink dotted"}
    lines = [Line(mark, thresholds, [entry[key] for entry in quality["curve"]]) for key, mark in marks.items()]
    words = f"Precision, recall and F1 over the threshold, {used:g} in use."
    picture = plot("Share", words, lines, axis="threshold", ends=(0, 1), upright=used)
    names = ["precision", "recall", "F1"]
    keys = legend([*((f"line {mark}", name) for mark, name in zip(marks.values(), names)), _used(used)])
    return f'{keys}<div class="card tall">{picture}</div>'


def _used(threshold: float) -> tuple[str, str]:
    return "upright", f"the threshold in use, {threshold:g}"


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    policy = result["policy"]
    rows = {"bundle": policy["bundle"], "sha256": policy["sha256"][:20] + "…", **result["settings"]}
    rows |= {f"provenance: {key}": value for key, value in policy["provenance"].items()} | result["versions"]
    return {key: str(value)[:60] for key, value in rows.items()}
