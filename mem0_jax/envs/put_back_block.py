"""Put the block back: which of four equal mats it came from is in no later frame."""

from __future__ import annotations

import numpy as np

from mem0_jax.envs import draw
from mem0_jax.envs.arm import RIGHT
from mem0_jax.envs.tabletop import OFF_MATS, Block, Button, Move, Tabletop, jitter, lay, pick

MATS = ((0.235, 0.77), (0.522, 0.77), (0.811, 0.77), (1.098, 0.77))
PAD, BUTTON = (0.72, 0.44), (0.25, 0.48)


class PutBackBlock(Tabletop):
    """Bring the block to the pad, press the button (the strip turns green), put the block back on its own mat.

    From the press on nothing visible depends on the origin: block, gripper and strip are in exactly the same state
    whatever it was, so a policy without memory is right once in four.
    """

    task = "put_back_block"
    instruction = "put the block back where it was"
    step_limit = 150
    chance = 0.25
    subtasks = ("bring the block to the pad", "press the button", "put the block back on its mat")

    def lay_out(self, rng: np.random.Generator) -> None:
        self.origin = int(rng.integers(len(MATS)))
        self.mats = [jitter(rng, mat, 0.02) for mat in MATS]
        self.mats.append(jitter(rng, PAD, 0.02))
        self.buttons = [Button("blue", jitter(rng, BUTTON, 0.02))]
        self.blocks = [Block("red", self.mats[self.origin], self.origin)]

    @property
    def _centred(self) -> bool:
        return self.blocks[0].mat == len(MATS)

    @property
    def subtask(self) -> int:
        return 2 if self.light == "green" else int(self._centred)

    def hidden(self) -> int:
        return self.origin

    def guess(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(MATS)))

    def plan(self, hidden: int) -> Move:
        lit, block = self.light == "green", self.blocks[0]
        if block.holder is not None:
            return lay(RIGHT, self.mats[hidden if lit else len(MATS)])
        if self._centred and not lit:
            return pick(RIGHT, self.buttons[0].position)
        return pick(RIGHT, block.position)

    def on_press(self, button: Button) -> None:
        if self._centred:  # otherwise the button is dead
            self.light = "green"
            self.reach(0.6)

    def on_lay(self, block: Block) -> None:
        if self._centred:
            self.reach(0.3)
        elif self.light == "green" and block.mat != OFF_MATS:
            self.choose(block.mat == self.origin)

    def draw_static(self, image: np.ndarray) -> None:
        for mat in self.mats[:-1]:
            draw.mat(image, mat)
        draw.pad(image, self.mats[-1])
        draw.button(image, self.buttons[0].position, draw.COLORS["blue"])
