"""The page of a report: one HTML file that needs no network, light or dark as the reader's system is."""

from collections.abc import Mapping
from html import escape
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from mem0_jax.eval.report_pictures import bar_chart, loss_chart, thumbnail, video_element

if TYPE_CHECKING:
    from mem0_jax.eval.report import Attention, Results, Video

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #22282c; --muted: #5f696f;
  --rule: #dcdfdf; --with: #1f6f78; --without: #b8622f; --good: #2b7a4b; --bad: #a8442f; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191b; --card: #1d2326; --ink: #e6e9ea; --muted: #9aa5ab;
  --rule: #343c40; --with: #58b8c2; --without: #e0945f; --good: #7cc79a; --bad: #e58a76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
header p.task { color: var(--muted); margin: 0; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.25; font-weight: 650; letter-spacing: -.01em;
  margin: .4rem 0 1rem; text-wrap: balance; }
h1 .with { color: var(--with); } h1 .without { color: var(--without); }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3.2rem 0 .4rem; }
p { margin: .4rem 0 1rem; max-width: 44rem; } .note { color: var(--muted); font-size: .92rem; }
figure { margin: 0; } figcaption { color: var(--muted); font-size: .88rem; line-height: 1.4; margin-top: .4rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .55rem .8rem .55rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--muted); font-weight: 500; font-size: .9rem; }
tbody th { font-weight: 500; } td b { font-size: 1.1rem; } td small { color: var(--muted); display: block; }
svg { display: block; width: 100%; max-width: 46rem; height: auto; margin: 0 auto; }
svg text { font-family: inherit !important; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-bottom: 1.4rem; }
.pair video, .pair img { display: block; width: 100%; border-radius: 8px; background: #000; }
.label { font-weight: 600; margin: 0 0 .4rem; } .with .label { color: var(--with); }
.without .label { color: var(--without); } .good { color: var(--good); } .bad { color: var(--bad); }
.keys { display: flex; gap: 1rem; margin-bottom: 1.2rem; } .keys figure { width: 11rem; }
.keys img, .window img { width: 100%; display: block; border-radius: 5px; }
.window { display: grid; grid-template-columns: repeat(10, 1fr); gap: .7rem .5rem; padding: 0;
  margin: 0; list-style: none; font-size: .75rem; line-height: 1.3; color: var(--muted); }
.window .bar { height: 6px; margin: .3rem 0 .15rem; background: var(--rule); border-radius: 3px; overflow: hidden; }
.window .bar i { display: block; height: 100%; background: var(--with); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2.5rem;
  margin: 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; padding: .45rem 0;
  border-bottom: 1px solid var(--rule); }
.facts dt { color: var(--muted); } .facts dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; margin: .6rem 0 0; } code { font: .92rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
button { font: inherit; font-size: .9rem; color: var(--ink); background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; padding: .3rem .9rem; margin-bottom: .9rem; cursor: pointer; }
button:hover, button:focus-visible { border-color: var(--with); }
@media (max-width: 48rem) { .window { grid-template-columns: repeat(5, 1fr); } }
@media (max-width: 34rem) { .pair { gap: .5rem; } .keys figure { width: 50%; } }
@media print { button { display: none; } }
"""

SCRIPT = """
document.querySelector('#play')?.addEventListener('click', () => {
  for (const video of document.querySelectorAll('.pair video')) { video.currentTime = 0; video.play(); }
});
"""

ARMS = (("with", "with_memory", "With memory"), ("without", "without_memory", "Without memory"))


def page(results: "Results", summary: Mapping[str, Any]) -> str:
    """The whole report as HTML; ``summary`` is that of ``summarize``."""
    facts = results.facts
    sections = [
        _header(summary),
        section(
            "Results", _table(summary) + chart(bar_chart(dict(summary)), _bars_in_words(summary)), _reading(summary)
        ),
        _videos(results),
        _attention(results.attention) if results.attention else "",
        section(
            "Training",
            chart(loss_chart(results), "Training losses of both policies over the optimizer steps."),
            "Pale lines are the logged values, bold lines their running mean.",
        ),
        section("The run", _facts(results)),
        section(
            "How to reproduce",
            f'<div class="card"><pre><code>{escape(facts.command)}</code></pre></div>',
            "The numbers of this page, and those behind its curves, are in <code>report.json</code> beside it.",
        ),
    ]
    return document(f"{facts.task}: with and without memory", "\n".join(section for section in sections if section))


def document(title: str, body: str) -> str:
    """A whole page of HTML around `body`, in the house's style."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _header(summary: Mapping[str, Any]) -> str:
    with_count, total = summary["success_with_memory_counts"]
    without_count, _ = summary["success_without_memory_counts"]
    low, high = summary["success_difference_interval"]
    return f"""<header>
<p class="task">{escape(summary["task"])} · “{escape(summary["instruction"])}”</p>
<h1>Solved in <span class="with">{with_count} of {total} episodes with memory</span>,
in <span class="without">{without_count} of {total} without</span>.</h1>
<p>{_choices(summary)} The difference in solved episodes is {100 * summary["success_difference"]:.0f} points
(95 % interval {100 * low:.0f} to {100 * high:.0f}).</p>
</header>"""


def _choices(summary: Mapping[str, Any]) -> str:
    """How often the choice was right, in a sentence."""
    parts = []
    for _, arm, label in ARMS:
        right, placed = summary[f"right_given_placed_{arm}_counts"]
        parts.append(f"{right} of {placed} {label.lower()}" if placed else f"none was made {label.lower()}")
    return (
        f"When a choice was made, it was the right one in {parts[0]} and in {parts[1]}; "
        f"choosing blindly would be right in {100 * summary['chance']:.0f} % of them."
        if all(summary[f"right_given_placed_{arm}_counts"][1] for _, arm, _ in ARMS)
        else f"Right choices: {parts[0]}; {parts[1]}. Choosing blindly is right in {100 * summary['chance']:.0f} %."
    )


def _reading(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['episodes']} episodes on seeds that training never saw, the same for both. An episode can fail for "
        "two reasons: a choice made wrongly, which is what memory is for, and a hand that misses. So the second row "
        "counts only the episodes in which a choice was made. In brackets: 95&nbsp;% Wilson intervals."
    )


def _table(summary: Mapping[str, Any]) -> str:
    rows = (
        ("success", "Task solved"),
        ("right_given_placed", "Right choice, when one was made"),
        ("placed", "A choice was made"),
    )
    body = ""
    for measure, title in rows:
        cells = "".join(f"<td>{_rate(summary, f'{measure}_{arm}')}</td>" for _, arm, _ in ARMS)
        # Whoever chooses blindly solves the task at most as often as the choice is right.
        chance = {"success": "at most ", "right_given_placed": ""}.get(measure)
        chance = "" if chance is None else f"{chance}{100 * summary['chance']:.0f}&nbsp;%"
        body += f'<tr><th scope="row">{title}</th>{cells}<td>{chance}</td></tr>\n'
    head = "".join(f'<th scope="col">{title}</th>' for title in ("", *(label for _, _, label in ARMS), "Chance"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _rate(summary: Mapping[str, Any], key: str) -> str:
    number, total = summary[f"{key}_counts"]
    if not total:
        return "none"
    low, high = summary[f"{key}_interval"]
    interval = f"{100 * low:.0f} to {100 * high:.0f}&nbsp;%"
    return f"<b>{100 * number / total:.0f}&nbsp;%</b><small>{number} of {total} ({interval})</small>"


def _bars_in_words(summary: Mapping[str, Any]) -> str:
    parts = []
    for measure, title in (("success", "task solved"), ("right_given_placed", "right choice when one was made")):
        for _, arm, label in ARMS:
            rate = summary[f"{measure}_{arm}"]
            parts.append(f"{title}, {label.lower()}: {'none made' if rate is None else f'{100 * rate:.0f} %'}")
    return f"Bar chart with 95 % intervals. {'; '.join(parts)}; chance: {100 * summary['chance']:.0f} %."


def _videos(results: "Results") -> str:
    if not (results.with_memory.videos or results.without_memory.videos):
        return ""
    pairs = ""
    for pair in zip_longest(results.with_memory.videos, results.without_memory.videos):
        cells = "".join(_video(kind, label, video) for (kind, _, label), video in zip(ARMS, pair))
        pairs += f'<div class="pair">{cells}</div>\n'
    return section("Watch", f'<button id="play" type="button">Play all from the start</button>\n{pairs}')


def _video(kind: str, label: str, video: "Video | None") -> str:
    if video is None:
        return "<div></div>"
    outcome = '<span class="good">✓ solved</span>' if video.success else '<span class="bad">✗ not solved</span>'
    words = f"{label}: {video.caption}, {'solved' if video.success else 'not solved'}"
    return (
        f'<figure class="{kind}"><p class="label">{label}</p>{video_element(video, escape(words))}'
        f"<figcaption>{outcome} · {escape(video.caption)}</figcaption></figure>"
    )


def _attention(attention: "Attention") -> str:
    count = len(attention.frames)
    ages = attention.ages or range(count, 0, -1)
    most = max(float(attention.weights.max()), 1e-9)
    cells = "".join(
        f'<li><img src="{thumbnail(frame)}" alt="Frame {age} before the decision, weight {100 * weight:.1f} %">'
        f'<div class="bar"><i style="width:{100 * weight / most:.0f}%"></i></div>'
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


def _facts(results: "Results") -> str:
    facts = results.facts
    rows = {
        "parameters": f"{facts.parameters:,}",
        "optimizer steps, each policy": f"{facts.steps:,}",
        "training frames a second": f"{facts.frames_per_second:.0f}",
        **{f"time: {phase}": duration(seconds) for phase, seconds in facts.wall_seconds.items()},
        "time in all": duration(sum(facts.wall_seconds.values())),
        **{f"seeds: {what}": seeds for what, seeds in facts.seeds.items()},
        **facts.software,
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in rows.items())
    return f'<dl class="facts">{items}</dl>'


def duration(seconds: float) -> str:
    """Such as 3:05 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"


def chart(svg: str, words: str) -> str:
    """A figure, and what it shows in words."""
    return f'<figure class="card" style="margin-top:1.2rem" role="img" aria-label="{escape(words)}">{svg}</figure>'


def section(title: str, content: str, note: str = "") -> str:
    """A section; title, content and note are HTML."""
    paragraph = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{paragraph}{content}\n</section>"
