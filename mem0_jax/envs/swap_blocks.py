"""Swap two blocks over a free mat: whether they are swapped already is in no single frame."""

from __future__ import annotations

import numpy as np

from mem0_jax.envs.arm import RIGHT
from mem0_jax.envs.tabletop import OFF_MATS, Block, Button, Move, Tabletop, go_home, jitter, lay, pick

MATS = ((0.3, 0.75), (2 / 3, 0.75), (1.033, 0.75))
BUTTON = (0.42, 0.4)
RED, BLUE = 0, 1

Arrangement = tuple[int, int]  # the mats of the red and of the blue block


def mover(arrangement: Arrangement) -> int:
    """The block to move next so that moving on always leads to the swap after three moves.

    Moving a block to the free mat links the six arrangements into a ring, and the swapped arrangement is the opposite
    one. Red moves from an even permutation (red, blue, free), blue from an odd one: that walks the ring in one sense.
    """
    red, blue = arrangement
    return RED if (blue - red) % 3 == 1 else BLUE


def ring(start: Arrangement) -> list[Arrangement]:
    """The six arrangements in the order in which `mover` visits them from `start`."""
    order = [start]
    while len(order) < 6:
        red, blue = order[-1]
        free = 3 - red - blue
        order.append((free, blue) if mover((red, blue)) == RED else (red, free))
    return order


class SwapBlocks(Tabletop):
    """Swap the blocks by way of the free mat, going home in between, and press the button when they are swapped.

    After each block laid down the strip turns amber: the arm must dock at home before it can do anything else. There it
    is in exactly the same state as at the start, so that a frame shows only one of six equally likely arrangements. A
    policy without memory maps it to "move red", "move blue" or "press", perhaps at random; the best of these succeeds
    once in six (walk the ring and press at one fixed arrangement: right if the start was the opposite one).
    """

    task = "swap_blocks"
    instruction = "swap the blocks and press the button"
    step_limit = 300
    chance = 1 / 6
    subtasks = ("swap the blocks", "press the button")

    def lay_out(self, rng: np.random.Generator) -> None:
        red, blue, _ = rng.permutation(3).tolist()
        self.ring = ring((red, blue))
        self.mats = [jitter(rng, mat, 0.02) for mat in MATS]
        self.buttons = [Button("green", jitter(rng, BUTTON, 0.02))]
        self.blocks = [Block("red", self.mats[red], red), Block("blue", self.mats[blue], blue)]

    @property
    def _arrangement(self) -> Arrangement:
        return self.blocks[RED].mat, self.blocks[BLUE].mat

    @property
    def _swapped(self) -> bool:
        return self._arrangement == self.ring[3]

    @property
    def subtask(self) -> int:
        return int(self._swapped)

    def hidden(self) -> bool:
        return self._swapped

    def guess(self, rng: np.random.Generator) -> bool:
        return self._arrangement == (0, 1)

    def plan(self, hidden: bool) -> Move:
        if self.recalled:
            return go_home(RIGHT)
        held = next((i for i, block in enumerate(self.blocks) if block.holder is not None), None)
        if held is not None:
            return lay(RIGHT, self.mats[self._destination(held)])
        if hidden:
            return pick(RIGHT, self.buttons[0].position)
        return pick(RIGHT, self.blocks[mover(self._arrangement)].position)

    def _destination(self, held: int) -> int:
        """Where the held block goes: of the two empty mats the one that it did not come from."""
        other = self.blocks[1 - held].mat
        first, second = (mat for mat in range(3) if mat != other)
        came_from_first = mover((first, other) if held == RED else (other, first)) == held
        return second if came_from_first else first

    def on_lay(self, block: Block) -> None:
        if block.mat == OFF_MATS:
            self.failed = True
            return
        self.recalled = True
        moves = self.ring.index(self._arrangement)
        self.reach(0.25 * min(moves, 6 - moves))

    def on_press(self, button: Button) -> None:
        self.choose(self._swapped)
