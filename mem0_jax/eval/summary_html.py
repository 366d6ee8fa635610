"""The page of a closed-loop evaluation; films are linked, so it stays beside them."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mem0_jax.disk import write_whole
from mem0_jax.eval.report_html import chart, document, duration, section
from mem0_jax.eval.summary_pictures import horizon_curve, success_bars

NOTHING = "&ndash;"
SHOWN = 12  # films on the page of one variant; of several variants as many rows of the same seeds fit


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.html of what results.json holds."""
    write_whole(folder / "summary.html", page(summary).encode())


def page(summary: Mapping[str, Any]) -> str:
    """The whole page."""
    variants = summary["variants"]
    several = len(variants) > 1
    sweep = several and all(variant["name"].startswith("horizon") for variant in variants)
    picture = horizon_curve if sweep else success_bars
    drawn = chart(picture(variants, summary["chance"]), _in_words(variants)) if several else ""
    sections = [
        _header(summary),
        section("Results", _table(variants) + drawn, _reading(summary)),
        _differences(summary["differences"]) if several else "",
        _films(variants, summary["seeds"]),
        _episodes(variants, summary["seeds"]),
        section("Settings", _settings(summary)),
        section(
            "How to reproduce",
            f'<div class="card"><pre><code>{escape(" ".join(summary["command"]))}</code></pre></div>',
            "All numbers of this page are in <code>results.json</code> beside it.",
        ),
    ]
    return document(f"{summary['task']}: {summary['setting']}", "\n".join(filter(None, sections)))


def _header(summary: Mapping[str, Any]) -> str:
    first = summary["variants"][0]
    counts = first["success"]
    title = f'Solved in <span class="with">{counts["number"]} of {counts["trials"]} episodes</span>'
    title += f" ({escape(first['name'])})." if first["name"] else "."
    warning = "" if summary["complete"] else '<p class="bad"><b>Incomplete:</b> not every episode has a result.</p>'
    return f"""<header>
<p class="task">{escape(summary["task"])} · “{escape(summary["instruction"])}” · {escape(summary["setting"])}</p>
<h1>{title}</h1>
{warning}</header>"""


def _reading(summary: Mapping[str, Any]) -> str:
    chance = 100 * summary["chance"]
    return (
        f"{len(summary['seeds'])} episodes, seeds {min(summary['seeds'])} to {max(summary['seeds'])}. In brackets: "
        f"95&nbsp;% Wilson intervals. Whoever sees only the present frame solves at most {chance:.0f}&nbsp;%."
    )


def _table(variants: Sequence[Mapping[str, Any]]) -> str:
    titles = ["", "Solved", "Right choice, when one was made", "Progress", "Steps"]
    errors = any(variant["errors"] for variant in variants)
    body = ""
    for variant in variants:
        entries = [_rate(variant["success"]), _rate(variant["right_given_placed"])]
        entries += [NOTHING if variant[key] is None else f"{variant[key]:.3g}" for key in ("reward", "steps")]
        entries += [f'<span class="bad">{variant["errors"]}</span>'] if errors else []
        body += f'<tr><th scope="row">{escape(variant["name"] or "policy")}</th>' + cells(entries) + "</tr>\n"
    return grid([*titles, "No result"] if errors else titles, body)


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    body = ""
    for entry in differences:
        if entry["difference"] is None:
            entries = [NOTHING] * 3
        else:
            low, high = (100 * value for value in entry["interval"])
            pairs = entry["pairs"]
            entries = [
                f"<b>{100 * entry['difference']:+.0f}</b> points<small>{low:+.0f} to {high:+.0f}</small>",
                f"{pairs['only_first']} only so, {pairs['only_second']} only the other way",
                f"{entry['p_value']:.2g}",
            ]
        name = f"{escape(entry['variant'])}, against {escape(entry['against'])}"
        body += f'<tr><th scope="row">{name}</th>{cells(entries)}</tr>\n'
    note = (
        "The same seeds for all, so episodes are compared in pairs: Newcombe's 95&nbsp;% interval for paired "
        "proportions, and McNemar's exact test."
    )
    return section("Differences", grid(["", "Solved", "Episodes that differ", "p"], body), note)


def _films(variants: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Episodes of the same seed side by side."""
    columns = min(len(variants), 4) if len(variants) > 1 else 3
    if len(variants) > 1:
        rows = [[_of_number(variant, number) for variant in variants] for number in range(min(len(seeds), 4))]
    else:
        rows = [variants[0]["episodes"][:SHOWN]]
    body = ""
    for row in rows:
        figures = [_film(variant, entry) for variant, entry in zip(_repeated(variants, row), row) if entry]
        if any(figures):
            style = f"grid-template-columns:repeat({columns},1fr)"
            body += f'<div class="pair" style="{style}">{"".join(figures)}</div>\n'
    button = '<button id="play" type="button">Play all from the start</button>\n'
    return section("Watch", button + body) if body else ""


def _repeated(variants: Sequence[Mapping[str, Any]], row: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    return variants if len(variants) > 1 else [variants[0]] * len(row)


def _of_number(variant: Mapping[str, Any], number: int) -> Mapping[str, Any] | None:
    return next((episode for episode in variant["episodes"] if episode["number"] == number), None)


def _film(variant: Mapping[str, Any], episode: Mapping[str, Any]) -> str:
    if not episode["film"]:
        return ""
    label = f'<p class="label">{escape(variant["name"])}</p>' if variant["name"] else ""
    words = f"{variant['name']} seed {episode['seed']}: {_outcome(episode)}".strip()
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
    body = ""
    for number, seed in enumerate(seeds):
        entries = []
        for variant in variants:
            episode = _of_number(variant, number)
            if episode is None:
                entries.append(NOTHING)
                continue
            text = f"{_verdict(episode)}<small>{episode['steps']} steps, progress {episode['reward']:.2g}</small>"
            link = f' <a href="{quote(episode["film"])}">film</a>' if episode["film"] else ""
            entries.append(text + link)
        body += f'<tr><th scope="row">{number}</th><td>{seed}</td>{cells(entries)}</tr>\n'
    names = [escape(variant["name"] or "outcome") for variant in variants]
    table = grid(["episode", "seed", *names], body)
    return section("Episodes", f"<details><summary>All {len(seeds)}</summary>{table}</details>")


def _settings(summary: Mapping[str, Any]) -> str:
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
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_text(v))}</dd></div>" for k, v in rows.items())
    return f'<dl class="facts">{items}</dl>'


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    text = {True: "yes", False: "no", None: "none"}.get(value) if isinstance(value, bool | None) else str(value)
    return text if text is not None and len(text) < 60 else f"{str(text)[:20]}…"


def _in_words(variants: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        f"{variant['name']}: " + ("no results" if variant["success"]["rate"] is None else f"{_percent(variant)} solved")
        for variant in variants
    ]
    return f"Chart with 95 % intervals. {'; '.join(parts)}."


def _percent(variant: Mapping[str, Any]) -> str:
    return f"{100 * variant['success']['rate']:.0f} %"


def _rate(counts: Mapping[str, Any]) -> str:
    if counts["rate"] is None:
        return "none"
    low, high = (100 * value for value in counts["interval"])
    return (
        f"<b>{100 * counts['rate']:.0f}&nbsp;%</b>"
        f"<small>{counts['number']} of {counts['trials']} ({low:.0f} to {high:.0f}&nbsp;%)</small>"
    )


def cells(contents: Sequence[str]) -> str:
    """Cells of a row; contents are HTML."""
    return "".join(f"<td>{content}</td>" for content in contents)


def grid(titles: Sequence[str], body: str) -> str:
    """A table; titles and the rows of its body are HTML."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
