"""The pictures of a report: videos, thumbnails, the hero.

Axes: T frames of a video, H height, W width.
"""

import base64
import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from mem0_jax.eval.film import Encoder, can_film
from mem0_jax.pages import PALETTE

if TYPE_CHECKING:
    from mem0_jax.eval.report import Results, Video

COLORS = {name: light for name, (light, _) in PALETTE.items()}
SIDES = (("with_memory", "with memory", COLORS["with"]), ("without_memory", "without memory", COLORS["without"]))
MEASURES = (("success", "task solved"), ("right_given_placed", "right choice,\nwhen one was made"))

STYLE: dict[Any, Any] = {
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
}


def draw_bars(axes: Axes, summary: dict[str, Any]) -> None:
    """Success and right choices of both sides with 95 % intervals and the chance line; a word where none was made."""
    for shift, (side, label, color) in zip((-1, 1), SIDES):
        for place, (measure, _) in enumerate(MEASURES):
            rate = summary[f"{measure}_{side}"]
            x = place + shift * 0.19
            if rate is None:
                axes.text(x, 2, "none\nmade", ha="center", color=COLORS["muted"], fontsize=9)
                continue
            low, high = summary[f"{measure}_{side}_interval"]
            axes.bar(x, 100 * rate, 0.34, color=color, label=label if place == 0 else None)
            error = [[100 * (rate - low)], [100 * (high - rate)]]
            axes.errorbar(x, 100 * rate, error, color=COLORS["ink"], capsize=4, lw=1.3)
            axes.text(x, 100 * high + 2.5, f"{100 * rate:.0f} %", ha="center", fontweight="bold")
    chance = 100 * summary["chance"]
    axes.axhline(chance, color=COLORS["muted"], lw=1.2, ls=(0, (4, 3)))
    axes.text(0.5, chance + 1.5, "chance", ha="center", color=COLORS["muted"], fontsize=10)
    axes.set(ylim=(0, 114), xlim=(-0.5, 1.5), yticks=range(0, 101, 25), ylabel="% of episodes")
    axes.set_xticks(range(2), [label for _, label in MEASURES], color=COLORS["ink"])
    axes.tick_params(length=0)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def hero(results: "Results", summary: dict[str, Any]) -> bytes:
    """The picture for the README as PNG, 1600 pixels wide: a film strip of one rollout of each side, and the bars."""
    rows = [(side, label, color) for side, label, color in SIDES if getattr(results, side).videos]
    count, width, gap, title, edge = 5, 2.05, 0.08, 0.5, 0.32  # of the film strips, in inches
    shapes = [getattr(results, side).videos[0].frames.shape for side, _, _ in rows]
    tall = max((width * shape[1] / shape[2] for shape in shapes), default=1.6)
    size = np.array([16.0, 2 * (tall + title) + edge])
    with mpl.rc_context({**STYLE, "figure.facecolor": COLORS["paper"], "font.size": 12}):
        figure = Figure(figsize=tuple(size), dpi=100)
        for row, (side, label, color) in enumerate(rows):
            video = getattr(results, side).videos[0]
            bottom = size[1] - (row + 1) * (tall + title)
            for column, number in enumerate(np.linspace(0, len(video.frames) - 1, count).astype(int)):
                corner = np.array([edge + column * (width + gap), bottom])
                axes = figure.add_axes((*(corner / size), *(np.array([width, tall]) / size)))
                axes.imshow(video.frames[number], interpolation="lanczos")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set(visible=True, color=color, linewidth=1.6)
            left, right = edge / size[0], (edge + count * (width + gap) - gap) / size[0]
            above = (bottom + tall + 0.12) / size[1]
            figure.text(left, above, label, color=color, fontsize=17, fontweight="bold")
            text = f"{_short(video.caption)}: {'task solved' if video.success else 'not solved'}"
            figure.text(right, above, text, ha="right", color=COLORS["muted"])
        start = edge + count * (width + gap) + 0.75 if rows else 1.0
        draw_bars(figure.add_axes((start / size[0], 0.16, (size[0] - start - edge) / size[0], 0.7)), summary)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def video_element(video: "Video", description: str) -> str:
    """An HTML element with the video inside: H.264, or GIF where PyAV was built without an H.264 encoder."""
    if can_film():
        source = data_uri(encode_h264(video.frames, video.fps), "video/mp4")
        return f'<video src="{source}" aria-label="{description}" controls muted loop playsinline></video>'
    return f'<img src="{data_uri(encode_gif(video.frames, video.fps), "image/gif")}" alt="{description}">'


def encode_h264(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] as an mp4 that every browser plays; odd sizes lose their last row or column."""
    buffer = io.BytesIO()
    encoder = Encoder(buffer, frames.shape[1], frames.shape[2], fps, quality=20, preset="medium")
    for frame in frames:
        encoder.append(frame)
    encoder.close()
    return buffer.getvalue()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] as a GIF that repeats."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def thumbnail(picture: np.ndarray, width: int = 160) -> str:
    """uint8 [H, W, 3] as the address of a small JPEG inside the page."""
    image = Image.fromarray(picture)
    image.thumbnail((width, width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """A file of media type `kind` as a data: address, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a twentieth of the curve on each side, less at the ends."""
    half = len(values) // 20
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    low, high = np.arange(len(values)) - half, np.arange(len(values)) + half + 1
    low, high = low.clip(0), high.clip(max=len(values))
    return (total[high] - total[low]) / (high - low)


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
