"""The page of a report: one HTML file that needs no network, light or dark as the reader's system is."""

from collections.abc import Mapping
from html import escape
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from mem0_jax.eval.report_pictures import running_mean, thumbnail, video_element
from mem0_jax.pages import Bar, Line, bars, command, document, facts, figure, key, legend, plot, section, table
from mem0_jax.units import counted

if TYPE_CHECKING:
    from mem0_jax.eval.report import Attention, Curve, Results, Video

SCRIPT = """
document.querySelector('#play')?.addEventListener('click', () => {
  for (const video of document.querySelectorAll('.films video')) { video.currentTime = 0; video.play(); }
});
"""

MEASURES = (("success", "Task solved"), ("right_given_placed", "Right choice, when one was made"))
SIDES = (("with", "with_memory", "With memory"), ("without", "without_memory", "Without memory"))


def page(results: "Results", summary: Mapping[str, Any]) -> str:
    """The whole report as HTML; ``summary`` is that of ``summarize``."""
    command_line = results.facts.command
    sections = [
        _header(summary),
        section("Results", _table(summary) + _bars(summary), _reading(summary)),
        _videos(results),
        _attention(results.attention) if results.attention else "",
        section("Training", _losses(results), "Thin lines are the logged values, bold lines their running mean."),
        section("The run", facts(_run(results))),
        section(
            "How to reproduce",
            command(command_line),
            "The numbers of this page, and those behind its curves, are in <code>report.json</code> beside it.",
        ),
    ]
    title = f"{results.facts.task}: with and without memory"
    return document(title, "\n".join(filter(None, sections)), script=SCRIPT)


def _header(summary: Mapping[str, Any]) -> str:
    with_count, total = summary["success_with_memory_counts"]
    without_count, _ = summary["success_without_memory_counts"]
    low, high = summary["success_difference_interval"]
    return f"""<header>
<p class="task">{escape(summary["task"])} · “{escape(summary["instruction"])}”</p>
<h1>Solved in <span class="with">{with_count} of {counted(total, "episode")} with memory</span>,
in <span class="without">{without_count} of {total} without</span>.</h1>
<p>{_choices(summary)} The difference in solved episodes is {100 * summary["success_difference"]:.0f} points
(95 % interval {100 * low:.0f} to {100 * high:.0f}).</p>
</header>"""


def _choices(summary: Mapping[str, Any]) -> str:
    """How often the choice was right, in a sentence."""
    parts = []
    for _, side, label in SIDES:
        right, placed = summary[f"right_given_placed_{side}_counts"]
        parts.append(f"{right} of {placed} {label.lower()}" if placed else f"none was made {label.lower()}")
    return (
        f"When a choice was made, it was the right one in {parts[0]} and in {parts[1]}; "
        f"choosing blindly would be right in {100 * summary['chance']:.0f} % of them."
        if all(summary[f"right_given_placed_{side}_counts"][1] for _, side, _ in SIDES)
        else f"Right choices: {parts[0]}; {parts[1]}. Choosing blindly is right in {100 * summary['chance']:.0f} %."
    )


def _reading(summary: Mapping[str, Any]) -> str:
    return (
        f"{counted(summary['episodes'], 'episode')} on seeds that training never saw, the same for both. An episode "
        "can fail for two reasons: a choice made wrongly, which is what memory is for, and a hand that misses. So the "
        "second row counts only the episodes in which a choice was made. In brackets: 95&nbsp;% Wilson intervals."
    )


def _table(summary: Mapping[str, Any]) -> str:
    rows = []
    for measure, title in (*MEASURES, ("placed", "A choice was made")):
        # Whoever chooses blindly solves the task at most as often as the choice is right.
        chance = {"success": "at most ", "right_given_placed": ""}.get(measure)
        chance = "&ndash;" if chance is None else f"{chance}{100 * summary['chance']:.0f}&nbsp;%"
        rows.append([title, *(_rate(summary, f"{measure}_{side}") for _, side, _ in SIDES), chance])
    return table("Rates over the episodes", ["Measure", *(label for _, _, label in SIDES), "Chance"], rows)


def _rate(summary: Mapping[str, Any], key: str) -> str:
    number, total = summary[f"{key}_counts"]
    if not total:
        return "none"
    low, high = summary[f"{key}_interval"]
    interval = f"{100 * low:.0f} to {100 * high:.0f}&nbsp;%"
    return f"<b>{100 * number / total:.0f}&nbsp;%</b><small>{number} of {total} ({interval})</small>"


def _bars(summary: Mapping[str, Any]) -> str:
    """Both measures of both sides with 95 % intervals and the chance line."""
    body = ""
    for measure, title in MEASURES:
        entries = [
            Bar(kind, label, summary[f"{measure}_{side}"], summary[f"{measure}_{side}_interval"])
            for kind, side, label in SIDES
        ]
        body += f"<h3>{title}</h3>{bars(entries, summary['chance'])}"
    entries = [("line ink", "95&nbsp;% interval"), ("upright", f"chance, {100 * summary['chance']:.0f}&nbsp;%")]
    return legend([*((kind, label) for kind, _, label in SIDES), *entries]) + figure(_bars_in_words(summary), body)


def _bars_in_words(summary: Mapping[str, Any]) -> str:
    parts = []
    for measure, title in MEASURES:
        for _, side, label in SIDES:
            rate = summary[f"{measure}_{side}"]
            parts.append(f"{title.lower()}, {label.lower()}: {'none made' if rate is None else f'{100 * rate:.0f} %'}")
    return f"Bar chart with 95 % intervals. {'; '.join(parts)}; chance: {100 * summary['chance']:.0f} %."


def _losses(results: "Results") -> str:
    """Both losses of both sides over the steps: measured values thin, their running mean bold."""
    body = ""
    for name, title in (("action_loss", "Action loss (flow matching)"), ("classifier_loss", "Subtask-end loss")):
        curves = [(kind, getattr(results, side).curve) for kind, side, _ in SIDES]
        known = [
            (kind, c.step[keep], getattr(c, name)[keep]) for kind, c in curves if (keep := _measured(c, name)).any()
        ]
        thin = [Line(f"{kind} thin", steps.tolist(), loss.tolist()) for kind, steps, loss in known]
        bold = [Line(kind, steps.tolist(), running_mean(loss).tolist()) for kind, steps, loss in known]
        positive = bool(known) and all((loss > 0).all() for _, _, loss in known)
        words = f"{title} of both policies over the optimizer steps."
        body += plot(title, words, thin + bold, axis="optimizer step", log=positive)
    keys = legend([(f"line {kind}", label) for kind, _, label in SIDES])
    return f'{keys}<div class="card plots tall">{body}</div>'


def _measured(curve: "Curve", name: str) -> np.ndarray:
    return np.isfinite(getattr(curve, name))


def _videos(results: "Results") -> str:
    if not (results.with_memory.videos or results.without_memory.videos):
        return ""
    pairs = ""
    for pair in zip_longest(results.with_memory.videos, results.without_memory.videos):
        cells = "".join(_video(kind, label, video) for (kind, _, label), video in zip(SIDES, pair))
        pairs += f'<div class="films">{cells}</div>\n'
    return section("Watch", f'<button id="play" type="button">Play all from the start</button>\n{pairs}')


def _video(kind: str, label: str, video: "Video | None") -> str:
    if video is None:
        return "<div></div>"
    outcome = '<span class="good">✓ solved</span>' if video.success else '<span class="bad">✗ not solved</span>'
    words = f"{label}: {video.caption}, {'solved' if video.success else 'not solved'}"
    return (
        f'<figure><p class="label">{key(kind)}{label}</p>{video_element(video, escape(words))}'
        f"<figcaption>{outcome} · {escape(video.caption)}</figcaption></figure>"
    )


def _attention(attention: "Attention") -> str:
    count = len(attention.frames)
    ages = attention.ages or range(count, 0, -1)
    most = max(float(attention.weights.max()), 1e-9)
    cells = "".join(
        f'<li><img src="{thumbnail(frame)}" alt="Frame {age} before the decision, weight {100 * weight:.1f} %">'
        f'<div class="share"><i style="width:{100 * weight / most:.0f}%"></i></div>'
        f"&minus;{age} · {100 * weight:.1f} %</li>\n"
        for frame, weight, age in zip(attention.frames, attention.weights.tolist(), ages)
    )
    keys = (
        f'<figure><img src="{thumbnail(attention.current, 320)}" alt="The frame at the decision">'
        f"<figcaption>now, frame {attention.step}</figcaption></figure>"
        f'<figure><img src="{thumbnail(attention.anchor, 320)}" alt="The frame kept as anchor">'
        "<figcaption>anchor: the first frame since memory was cleared</figcaption></figure>"
    )
    return section(
        "What memory looked at",
        f'<div class="card"><div class="keys">{keys}</div><ul class="window">{cells}</ul></div>',
        f"One decision of the policy with memory. It reads an anchor and a window of the last {count} frames; the bar "
        "under each frame is its share of the attention, relative to the greatest.",
    )


def _run(results: "Results") -> dict[str, Any]:
    said = results.facts
    return {
        "parameters": f"{said.parameters:,}",
        "optimizer steps, each policy": f"{said.steps:,}",
        "training frames a second": f"{said.frames_per_second:.0f}",
        **{f"time: {phase}": duration(seconds) for phase, seconds in said.wall_seconds.items()},
        "time in all": duration(sum(said.wall_seconds.values())),
        **{f"seeds: {what}": seeds for what, seeds in said.seeds.items()},
        **said.software,
    }


def duration(seconds: float) -> str:
    """Such as 3:05 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"
