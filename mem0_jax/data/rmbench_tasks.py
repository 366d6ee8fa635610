"""RMBench's tasks: which are staged, and their instructions.

The texts are the benchmark's own, letter for letter with their slips, because policies are trained and evaluated on
them. Source: RMBench (https://github.com/RoboTwin-Platform/RMBench, MIT licence).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task: M(1), one instruction for the whole episode, or M(n) (`staged`), where annotations name subtasks."""

    staged: bool
    instruction: str


TASKS = {
    "observe_and_pickup": Task(
        False,
        "Initially, there is one target object on the shelf and five random objects on the table. Then, a screen "
        "obscures the target object. Pick up the corresponding target object from the table and lift it up.",
    ),
    "put_back_block": Task(
        False,
        "There are four mats, one block, and a button on the table. One block is on one of the mats. First, put the "
        "block to the center, then press the button. Then, put the block back in its original position.",
    ),
    "rearrange_blocks": Task(
        False,
        "Move the block between the two mats onto the empty mat, press the button, then move the other block (the one "
        "that started on a mat) to the space between the two mats.",
    ),
    "swap_blocks": Task(
        False,
        "There are three traies on the table, and two blocks are placed in two different traies. You may move only one "
        "block at a time, and each tray can hold at most one block. Swap the positions of the two blocks. Finally "
        "press the button.",
    ),
    "swap_T": Task(False, "Swap the poses of the two T-blocks, including both position and orientation."),
    "battery_try": Task(
        True,
        "There are two batteries and a battery slot on the table. Combining the two batteries in different "
        "orientations causes the dashboard needle to rotate.",
    ),
    "blocks_ranking_try": Task(
        True,
        "There is a button and three colored cubes arranged in a random row on the table. Each time the cubes are "
        "rearranged, the arm presses the button until the arrangement is successful.",
    ),
    "cover_blocks": Task(
        True,
        "On the table, red, green, and blue blocks are arranged randomly along with three lids. From the current "
        "viewpoint, cover the blocks from right to left using the lids, and then uncover them again in the sequence "
        "red, green, and blue.",
    ),
    "press_button": Task(
        True,
        "Observe the two numbers on the table. Press the left button the number of times corresponding to the number "
        "on the left, and press the middle button the number of times corresponding to the number on the right. Then "
        "press the right button once to confirm.",
    ),
    "place_block_mat": Task(
        True,
        "Pick up the blocks from the blue mat and place them on the green mat, then put them back on the original mat, "
        "starting from left to right.",
    ),
}
