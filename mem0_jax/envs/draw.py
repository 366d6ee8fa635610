"""Draws a tabletop scene with OpenCV: uint8 RGB [240, 320, 3].

What does not change (table, mats, buttons) is painted once an episode, the rest on a copy of it every frame.
Coordinates are table units (see `arm`); 240 pixels are one unit. Nothing here needs a GPU or a window system.
"""

from __future__ import annotations

import cv2
import numpy as np

from mem0_jax.envs.arm import Point

HEIGHT, WIDTH = 240, 320
BLOCK_HALF, MAT_HALF, PAD_HALF = 0.07, 0.095, 0.105
BUTTON_RADIUS = 0.075
STRIP = ((0.25, 0.955), (1.0833, 0.955))

Color = tuple[int, int, int]
COLORS: dict[str, Color] = {
    "red": (226, 44, 52),
    "blue": (36, 92, 232),
    "green": (28, 176, 84),
    "purple": (168, 64, 220),
}
STRIP_COLORS: dict[str, Color] = {"off": (70, 74, 82), "green": (70, 255, 120), "amber": (255, 176, 32)}
TABLE, MAT, MAT_EDGE = (127, 127, 127), (172, 176, 184), (208, 211, 216)
PAD, PAD_EDGE = (92, 97, 108), (208, 211, 216)
LINK_COLOR, JOINT_COLOR, PALM, FINGER = (58, 64, 76), (36, 40, 48), (36, 40, 48), (255, 214, 20)

_SHIFT = 4  # fractional bits of OpenCV's coordinates
_UNIT = HEIGHT << _SHIFT
_AA = cv2.LINE_AA


def _px(point: Point) -> tuple[int, int]:
    return round(point[0] * _UNIT), round((1 - point[1]) * _UNIT)


def _disc(image: np.ndarray, center: Point, radius: float, color: Color) -> None:
    cv2.circle(image, _px(center), round(radius * _UNIT), color, -1, _AA, _SHIFT)


def _line(image: np.ndarray, start: Point, end: Point, color: Color, width: int) -> None:
    cv2.line(image, _px(start), _px(end), color, width, _AA, _SHIFT)


def _square(image: np.ndarray, center: Point, half: float, color: Color, corner: float) -> None:
    """A filled square with rounded corners: the hull of four discs."""
    (u, v), inner, width = _px(center), half - corner, max(1, round(2 * corner * HEIGHT))
    d = round(inner * _UNIT)
    points = np.array([[u - d, v - d], [u + d, v - d], [u + d, v + d], [u - d, v + d]], np.int32)
    cv2.fillConvexPoly(image, points, color, _AA, _SHIFT)
    cv2.polylines(image, [points], True, color, width, _AA, _SHIFT)


def _mix(color: Color, level: int, share: float) -> Color:
    red, green, blue = (round(c + share * (level - c)) for c in color)
    return red, green, blue


def table() -> np.ndarray:
    """An empty table."""
    return np.full((HEIGHT, WIDTH, 3), TABLE, np.uint8)


def mat(image: np.ndarray, center: Point) -> None:
    """A mat a block may lie on."""
    _square(image, center, MAT_HALF + 0.01, MAT_EDGE, 0.03)
    _square(image, center, MAT_HALF, MAT, 0.025)


def pad(image: np.ndarray, center: Point) -> None:
    """The dark pad blocks are brought to."""
    _square(image, center, PAD_HALF + 0.01, PAD_EDGE, 0.03)
    _square(image, center, PAD_HALF, PAD, 0.025)


def button(image: np.ndarray, center: Point, color: Color) -> None:
    """A round button."""
    _disc(image, center, BUTTON_RADIUS + 0.022, (52, 56, 64))
    _disc(image, center, BUTTON_RADIUS, color)
    _disc(image, (center[0] - 0.018, center[1] + 0.018), 0.02, _mix(color, 255, 0.4))


def strip(image: np.ndarray, state: str) -> None:
    """The light strip at the far edge: "off", "green" or "amber"."""
    _line(image, *STRIP, (44, 47, 54), 14)
    _line(image, *STRIP, STRIP_COLORS[state], 9)


def block(image: np.ndarray, center: Point, color: Color) -> None:
    """A block seen from above."""
    _square(image, (center[0] + 0.008, center[1] - 0.01), BLOCK_HALF, (88, 88, 90), 0.02)
    _square(image, center, BLOCK_HALF, _mix(color, 0, 0.2), 0.02)
    _square(image, center, BLOCK_HALF - 0.012, color, 0.018)


def sign(image: np.ndarray, center: Point, color: Color) -> None:
    """A sign that shows a colour."""
    _disc(image, center, 0.155, (250, 250, 250))
    _disc(image, center, 0.135, color)


def digit(image: np.ndarray, center: Point, number: int) -> None:
    """A display that shows one digit."""
    _square(image, center, 0.15, (30, 33, 40), 0.03)
    text, font, scale, thickness = str(number), cv2.FONT_HERSHEY_DUPLEX, 2.6, 5
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    origin = (round(center[0] * HEIGHT - width / 2), round((1 - center[1]) * HEIGHT + height / 2))
    cv2.putText(image, text, origin, font, scale, (255, 236, 150), thickness, _AA)


def arm(image: np.ndarray, base: Point, elbow: Point, tip: Point, opening: float, holding: bool) -> None:
    """An arm: two thin links, a palm behind the gripper's centre `tip`, and two fingers `opening` (0 to 1) apart."""
    ahead = np.subtract(tip, elbow)
    ahead /= np.hypot(*ahead)
    across = np.array([-ahead[1], ahead[0]])
    gap = max(0.022 + 0.083 * opening, BLOCK_HALF + 0.012 if holding else 0.0)
    palm = np.subtract(tip, 0.115 * ahead)
    _line(image, base, elbow, LINK_COLOR, 6)
    _line(image, elbow, tuple(palm), LINK_COLOR, 5)
    _disc(image, elbow, 0.022, JOINT_COLOR)
    _line(image, tuple(palm - gap * across), tuple(palm + gap * across), PALM, 6)
    for side in (-gap, gap):
        start, end = tuple(palm + side * across), tuple(tip + 0.045 * ahead + side * across)
        _line(image, start, end, PALM, 8)
        _line(image, start, end, FINGER, 4)
