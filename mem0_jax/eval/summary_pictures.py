"""Charts of an evaluation as SVG that follow the page's theme."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mem0_jax.eval.report_pictures import COLORS, STYLE, svg


def success_bars(variants: Sequence[dict[str, Any]], chance: float | None = None) -> str:
    """Success of each variant of results.json with its interval; `chance` is a line."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for x, variant in enumerate(variants):
            counts = variant["success"]
            if counts["rate"] is None:
                axes.text(x, 2, "no results", ha="center", color=COLORS["muted"], fontsize=9)
                continue
            rate, low, high = (100 * value for value in (counts["rate"], *counts["interval"]))
            axes.bar(x, rate, 0.55, color=COLORS["with"] if x == 0 else COLORS["without"])
            axes.errorbar(x, rate, [[rate - low], [high - rate]], color=COLORS["ink"], capsize=4, lw=1.3)
            axes.text(x, high + 2.5, f"{rate:.0f} %", ha="center", fontweight="bold")
        _chance(figure, chance)
        axes.set_xticks(
            range(len(variants)), [variant["name"].replace(" ", "\n", 1) for variant in variants], color=COLORS["ink"]
        )
        axes.set(ylim=(0, 114), xlim=(-0.6, len(variants) - 0.4), yticks=range(0, 101, 25), ylabel="% solved")
        axes.tick_params(length=0)
        return svg(figure, "variants")


def horizon_curve(variants: Sequence[dict[str, Any]], chance: float | None = None) -> str:
    """Success over the number of executed actions of a chunk, with the band of the intervals."""
    known = sorted(
        (variant["settings"]["action_horizon"], variant["success"])
        for variant in variants
        if variant["success"]["rate"] is not None
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        horizons = [horizon for horizon, _ in known]
        rates = [100 * counts["rate"] for _, counts in known]
        low, high = (np.array([100 * counts["interval"][i] for _, counts in known]) for i in (0, 1))
        axes.fill_between(horizons, low, high, color=COLORS["with"], alpha=0.15, lw=0)
        axes.plot(horizons, rates, color=COLORS["with"], lw=2, marker="o", ms=6)
        for horizon, rate in zip(horizons, rates):  # above everything that is drawn
            axes.text(horizon, 105, f"{rate:.0f} %", ha="center", fontweight="bold")
        _chance(figure, chance)
        axes.set(ylim=(0, 114), yticks=range(0, 101, 25), ylabel="% solved", xlabel="actions executed of a chunk")
        axes.set_xticks(horizons)
        axes.margins(x=0.08)
        axes.grid(axis="y", color=COLORS["rule"], lw=0.7)
        axes.tick_params(length=0)
        return svg(figure, "horizon")


def _chance(figure: Figure, chance: float | None) -> None:
    if chance is not None:
        axes = figure.axes[0]
        axes.axhline(100 * chance, color=COLORS["muted"], lw=1.2, ls=(0, (4, 3)), zorder=0.5)
        axes.annotate(
            "best without\nmemory",
            (1, 100 * chance),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            va="center",
            color=COLORS["muted"],
            fontsize=9,
        )
