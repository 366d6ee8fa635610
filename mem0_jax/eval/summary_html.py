"""The page of a closed-loop evaluation; films are linked, so it stays beside them."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mem0_jax.disk import write_whole
from mem0_jax.eval.report_html import SCRIPT, duration
from mem0_jax.pages import Bar, bars, command, document, facts, figure, is_known, key, legend, section, series, table
from mem0_jax.units import counted

NOTHING = "&ndash;"
SHOWN = 12  # films on the page of one variant; of several variants as many rows of the same seeds fit


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.html of what results.json holds."""
    write_whole(folder / "summary.html", page(summary).encode())


def page(summary: Mapping[str, Any]) -> str:
    """The whole page."""
    variants = summary["variants"]
    sections = [
        _header(summary),
        section("Results", _table(variants) + _bars(variants, summary["chance"]), _reading(summary)),
        _differences(summary["differences"]) if len(variants) > 1 else "",
        _films(variants, summary["seeds"]),
        _episodes(variants, summary["seeds"]),
        section("Settings", facts(_settings(summary))),
        section(
            "How to reproduce",
            command(" ".join(summary["command"])),
            "All numbers of this page are in <code>results.json</code> beside it.",
        ),
    ]
    title = f"{summary['task']}: {summary['setting']}"
    return document(title, "\n".join(filter(None, sections)), script=SCRIPT)


def _name(variants: Sequence[Mapping[str, Any]], number: int) -> str:
    """A variant's name, with its sign where there are several."""
    name = escape(variants[number]["name"] or "policy")
    return key(series(number)) + name if len(variants) > 1 else name


def _header(summary: Mapping[str, Any]) -> str:
    first = summary["variants"][0]
    counts = first["success"]
    title = f'Solved in <span class="with">{counts["number"]} of {counted(counts["trials"], "episode")}</span>'
    title += f" ({escape(first['name'])})." if first["name"] else "."
    warning = "" if summary["complete"] else '<p class="bad"><b>Incomplete:</b> not every episode has a result.</p>'
    return f"""<header>
<p class="task">{escape(summary["task"])} · “{escape(summary["instruction"])}” · {escape(summary["setting"])}</p>
<h1>{title}</h1>
{warning}</header>"""


def _reading(summary: Mapping[str, Any]) -> str:
    chance, seeds = 100 * summary["chance"], summary["seeds"]
    these = f", seeds {min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f", seed {seeds[0]}" if seeds else ""
    return (
        f"{counted(len(seeds), 'episode')}{these}. In brackets: 95&nbsp;% Wilson intervals. Whoever sees only the "
        f"present frame solves at most {chance:.0f}&nbsp;%."
    )


def _table(variants: Sequence[Mapping[str, Any]]) -> str:
    titles = ["Variant", "Solved", "Right choice, when one was made", "Progress", "Steps"]
    errors = any(variant["errors"] for variant in variants)
    rows = []
    for number, variant in enumerate(variants):
        row = [_name(variants, number), _rate(variant["success"]), _rate(variant["right_given_placed"])]
        row += [f"{variant[key]:.3g}" if is_known(variant[key]) else NOTHING for key in ("reward", "steps")]
        lost = f'<span class="bad">{variant["errors"]}</span>' if variant["errors"] else "0"
        rows.append(row + ([lost] if errors else []))
    return table("Means over the episodes", [*titles, "No result"] if errors else titles, rows)


def _bars(variants: Sequence[Mapping[str, Any]], chance: float) -> str:
    """Success of each variant with its interval, where there are several."""
    if len(variants) < 2:
        return ""
    entries = [
        Bar(
            series(number),
            escape(variant["name"]) + ("" if variant["success"]["trials"] else ": no results"),
            variant["success"]["rate"],
            variant["success"]["interval"],
        )
        for number, variant in enumerate(variants)
    ]
    best = f"best without memory, {100 * chance:.0f}&nbsp;%"
    keys = legend([("upright", best), ("line ink", "95&nbsp;% interval")])
    return f"<h3>Episodes solved</h3>{keys}{figure(_in_words(variants), bars(entries, chance))}"


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for number, entry in enumerate(differences, 1):
        row = [f"{key(series(number))}{escape(entry['variant'])}, against {escape(entry['against'])}"]
        if not is_known(entry["difference"]):
            rows.append(row + [NOTHING] * 3)
            continue
        low, high = (100 * value for value in entry["interval"])
        pairs = entry["pairs"]
        row += [
            f"<b>{100 * entry['difference']:+.0f}</b> points<small>{low:+.0f} to {high:+.0f}</small>",
            f"{pairs['only_first']} only so, {pairs['only_second']} only the other way",
            f"{entry['p_value']:.2g}",
        ]
        rows.append(row)
    note = (
        "The same seeds for all, so episodes are compared in pairs: Newcombe's 95&nbsp;% interval for paired "
        "proportions, and McNemar's exact test."
    )
    titles = ["Variant", "Solved", "Episodes that differ", "p"]
    return section("Differences", table("Differences of success", titles, rows), note)


def _films(variants: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Episodes of the same seed side by side."""
    if len(variants) > 1:
        rows = [
            [(i, _of_number(variant, number)) for i, variant in enumerate(variants)]
            for number in range(min(len(seeds), 4))
        ]
    else:
        rows = [[(0, episode) for episode in variants[0]["episodes"][:SHOWN]]]
    body = ""
    for row in rows:
        figures = "".join(_film(variants, i, episode) for i, episode in row if episode and episode["film"])
        body += f'<div class="films">{figures}</div>\n' if figures else ""
    button = '<button id="play" type="button">Play all from the start</button>\n'
    return section("Watch", button + body) if body else ""


def _of_number(variant: Mapping[str, Any], number: int) -> Mapping[str, Any] | None:
    return next((episode for episode in variant["episodes"] if episode["number"] == number), None)


def _film(variants: Sequence[Mapping[str, Any]], index: int, episode: Mapping[str, Any]) -> str:
    name = variants[index]["name"]
    label = f'<p class="label">{_name(variants, index)}</p>' if name else ""
    words = f"{name} seed {episode['seed']}: {_outcome(episode)}".strip()
    return (
        f'<figure>{label}<video src="{quote(episode["film"])}" aria-label="{escape(words)}" controls muted loop '
        f'playsinline preload="metadata"></video><figcaption>{_verdict(episode)} · seed {episode["seed"]}, '
        f"{episode['steps']} steps</figcaption></figure>"
    )


def _outcome(episode: Mapping[str, Any]) -> str:
    return "no result" if episode["error"] else "solved" if episode["success"] else "not solved"


def _verdict(episode: Mapping[str, Any]) -> str:
    if episode["error"]:
        return f'<span class="bad" title="{escape(episode["error"])}">no result</span>'
    return '<span class="good">✓ solved</span>' if episode["success"] else '<span class="bad">✗ not solved</span>'


def _episodes(variants: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    rows = [
        [
            f'<span class="of">Episode </span>{number}',
            str(seed),
            *(_episode(_of_number(variant, number)) for variant in variants),
        ]
        for number, seed in enumerate(seeds)
    ]
    names = [_name(variants, i) if len(variants) > 1 else "Outcome" for i in range(len(variants))]
    found = table("What became of every episode", ["Episode", "Seed", *names], rows)
    return section("Episodes", f"<details><summary>All {len(seeds)}</summary>{found}</details>")


def _episode(episode: Mapping[str, Any] | None) -> str:
    if episode is None:
        return NOTHING
    link = f' <a href="{quote(episode["film"])}">film</a>' if episode["film"] else ""
    return f"{_verdict(episode)}<small>{episode['steps']} steps, progress {episode['reward']:.2g}</small>{link}"


def _settings(summary: Mapping[str, Any]) -> dict[str, str]:
    policy, first = summary["policy"], summary["variants"][0]["settings"]
    varied = {key for key in first if len({str(v["settings"][key]) for v in summary["variants"]}) > 1}
    rows: dict[str, Any] = {key: value for key, value in policy.items() if not isinstance(value, Mapping)}
    rows |= {f"provenance: {key}": value for key, value in policy.get("provenance", {}).items()}
    rows |= {key: "as the variants say" if key in varied else value for key, value in first.items()}
    for name, timing in summary["timing"].items():
        if timing["seconds"]:
            what = f"time: {name}"
            rows[what] = f"{duration(timing['seconds'])}, {timing['episodes_per_minute']:.3g} episodes a minute"
    rows |= {"timestamp": summary["timestamp"], **summary["versions"]}
    return {key: _text(value) for key, value in rows.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    text = {True: "yes", False: "no", None: "none"}.get(value) if isinstance(value, bool | None) else str(value)
    return text if text is not None and len(text) < 60 else f"{str(text)[:20]}…"


def _in_words(variants: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{variant['name']}: "
        + (f"{_percent(variant)} solved" if is_known(variant["success"]["rate"]) else "no results")
        for variant in variants
    ]
    return f"Chart with 95 % intervals. {'; '.join(parts)}."


def _percent(variant: Mapping[str, Any]) -> str:
    return f"{100 * variant['success']['rate']:.0f} %"


def _rate(counts: Mapping[str, Any]) -> str:
    if not is_known(counts["rate"]):
        return "none"
    low, high = (100 * value for value in counts["interval"])
    return (
        f"<b>{100 * counts['rate']:.0f}&nbsp;%</b>"
        f"<small>{counts['number']} of {counts['trials']} ({low:.0f} to {high:.0f}&nbsp;%)</small>"
    )
