"""Observe and pick up: a sign shows a colour for a moment; later frames do not tell which."""

from __future__ import annotations

import numpy as np

from mem0_jax.envs import draw
from mem0_jax.envs.arm import ARMS, LEFT, RIGHT, Arm
from mem0_jax.envs.tabletop import OFF_MATS, Block, Move, Tabletop, go_home, jitter, lay, pick

PLACES = ((0.235, 0.75), (0.522, 0.75), (0.811, 0.75), (1.098, 0.75))
PAD = (2 / 3, 0.42)
COLORS = ("red", "blue", "green", "purple")
SIGN_FRAMES = 8  # frames at the start that show the sign


class ObserveAndPickup(Tabletop):
    """Wait while the sign shows a colour, then bring the block of that colour to the pad with the nearer arm.

    The arms are locked while the sign is shown, so the first frame without it is the same whatever it showed, and a
    policy without memory is right once in four.
    """

    task = "observe_and_pickup"
    instruction = "bring the block shown on the sign"
    step_limit = 90
    chance = 1 / len(PLACES)
    subtasks = ("look at the sign", "pick up the block", "bring the block to the pad")
    working_arms = ARMS

    def lay_out(self, rng: np.random.Generator) -> None:
        self.target = int(rng.integers(len(PLACES)))
        self.mats = [jitter(rng, PAD, 0.02)]
        colors = rng.permutation(COLORS).tolist()
        self.blocks = [Block(color, jitter(rng, place, 0.02)) for color, place in zip(colors, PLACES)]

    @property
    def _sign_shown(self) -> bool:
        return self.steps < SIGN_FRAMES

    @property
    def subtask(self) -> int:
        if self._sign_shown:
            return 0
        return 1 if self.blocks[self.target].holder is None else 2

    def hidden(self) -> int:
        return self.target

    def guess(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(PLACES)))

    def plan(self, hidden: int) -> Move:
        block = self.blocks[hidden]
        if self._sign_shown:
            return go_home(RIGHT)
        if block.holder is not None:
            return lay(block.holder, self.mats[0])
        return pick(LEFT if block.position[0] < PAD[0] else RIGHT, block.position)

    def locked_arms(self) -> tuple[Arm, ...]:
        return ARMS if self._sign_shown else ()

    def on_take(self, block: Block) -> None:
        if block is self.blocks[self.target]:
            self.reach(0.5)

    def on_lay(self, block: Block) -> None:
        if block.mat != OFF_MATS:
            self.choose(block is self.blocks[self.target])

    def draw_static(self, image: np.ndarray) -> None:
        draw.pad(image, self.mats[0])

    def draw_sign(self, image: np.ndarray) -> None:
        if self._sign_shown:
            draw.sign(image, self.mats[0], draw.COLORS[self.blocks[self.target].color])
