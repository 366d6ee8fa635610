"""Press a button as often as a digit says: how often it was pressed is in no frame."""

from __future__ import annotations

import numpy as np

from mem0_jax.envs import draw
from mem0_jax.envs.arm import RIGHT
from mem0_jax.envs.tabletop import Button, Move, Tabletop, go_home, jitter, pick

DIGITS = (1, 2, 3, 4)
DISPLAY = (2 / 3, 0.745)
BUTTON, CONFIRM = (0.38, 0.38), (0.85, 0.42)


def best_without_memory(presses: int) -> float:
    """Greatest chance to press exactly so often for someone who sees the same frame before each press.

    Going on with probability q each time succeeds with probability q^n (1 - q), greatest at q = n / (n + 1).
    """
    return presses**presses / (presses + 1) ** (presses + 1)


class PressButton(Tabletop):
    """Press the blue button as often as the display says, then the green one. One press too many or too few fails.

    After each press the strip turns amber: the arm must dock at home before it can press again. There it is in exactly
    the same state as at the start, whatever the count.
    """

    task = "press_button"
    instruction = "press as often as shown, then confirm"
    step_limit = 300
    chance = sum(best_without_memory(digit) for digit in DIGITS) / len(DIGITS)
    staged = True

    def lay_out(self, rng: np.random.Generator) -> None:
        self.digit = int(rng.choice(DIGITS))
        self.presses = self.finished = 0
        self.buttons = [Button("blue", jitter(rng, BUTTON, 0.02)), Button("green", jitter(rng, CONFIRM, 0.02))]
        self.subtasks = ("press the button",) * self.digit + ("press the confirm button",)

    @property
    def subtask(self) -> int:
        return min(self.finished, self.digit)

    def hidden(self) -> bool:
        return self.presses >= self.digit

    def guess(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < 1 / (self.digit + 1))

    def plan(self, hidden: bool) -> Move:
        if self.recalled:
            return go_home(RIGHT)
        return pick(RIGHT, self.buttons[int(hidden)].position)

    def on_press(self, button: Button) -> None:
        if button is self.buttons[1]:
            self.choose(self.presses == self.digit)
            return
        self.presses += 1
        self.recalled = True
        if self.presses > self.digit:
            self.choose(False)
        else:
            self.reach(self.presses / (self.digit + 1))

    def on_dock(self) -> None:
        self.finished += 1

    def draw_static(self, image: np.ndarray) -> None:
        super().draw_static(image)
        draw.digit(image, DISPLAY, self.digit)
