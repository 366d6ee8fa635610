"""The table, its physics and the gymnasium interface that the memory tasks share.

Kinematic and deterministic: arms move at limited joint speed; a gripper that closes near a free block takes it (the
jaws centre the block), one that closes near a button presses it (the jaws centre on the knob), one that opens lays down
what it holds. A block laid near a free mat settles exactly in its middle. These settlings are more than a convenience:
they wipe out small offsets in which a policy without memory could hide, in the world itself, what it saw earlier.

Observation and action follow RMBench: `{"observation": {"head_camera": {"rgb": uint8 [240, 320, 3]}},
"joint_action": {"vector": float32 [14]}}` and absolute joint targets, float32 [14] (layout in `arm`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from mem0_jax.envs import draw
from mem0_jax.envs.arm import (
    ARMS,
    GRIPPER_SHUT,
    RIGHT,
    STATE_SIZE,
    Arm,
    Point,
    home_joints,
    joint_limits,
    limit_speed,
)

GRASP_TOLERANCE = 0.07  # greatest distance at which a closing gripper takes a block or presses a button
LAY_TOLERANCE = 0.09  # greatest distance at which a block settles on a mat
DOCK_TOLERANCE = 0.1  # greatest distance at which a recalled arm docks at home
OFF_MATS = -1  # a block's mat when it lies on none
HOME = home_joints()


class Move(NamedTuple):
    """What to do next: bring `arm` to `goal` with the gripper at `travel`, and set it to `arrive` there."""

    arm: Arm
    goal: Point
    travel: float
    arrive: float


def pick(arm: Arm, point: Point) -> Move:
    """Close the gripper at `point`: take a block or press a button."""
    return Move(arm, point, travel=1.0, arrive=0.0)


def lay(arm: Arm, point: Point) -> Move:
    """Carry what the gripper holds to `point` and open there."""
    return Move(arm, point, travel=0.0, arrive=1.0)


def go_home(arm: Arm) -> Move:
    """Return home with an open gripper."""
    return Move(arm, arm.home, travel=1.0, arrive=1.0)


@dataclass
class Block:
    """A block: where it is, on which mat it rests (`OFF_MATS`: on none) and which arm holds it (None: none)."""

    color: str
    position: Point
    mat: int = OFF_MATS
    holder: Arm | None = None


@dataclass(frozen=True)
class Button:
    """A button on the table."""

    color: str
    position: Point


class Tabletop(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Base of the tasks. A task lays out the scene and reacts to what happens in it.

    `render=False` leaves the camera image black (about ten times faster); `env.render()` draws on demand all the same.
    The reward of a step is the gain in progress, so that an episode's rewards sum to its final progress in [0, 1].

    Every `info` has `success` (bool), `reward` (progress so far), `subtask` (true stage), `placed` (a choice among the
    alternatives was made) and `placed_right` (it was the right one).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (gymnasium's declaration)

    task: str  # name in the registry
    instruction: str  # the whole task in a few plain words
    step_limit: int
    chance: float  # greatest success rate of a policy that sees only the current frame
    subtasks: tuple[str, ...]  # instructions of this episode's stages, in order
    staged = False  # True: a policy is told one subtask after the other; False: it is told `instruction` throughout
    working_arms: tuple[Arm, ...] = (RIGHT,)  # the others stay locked at home

    def __init__(self, render: bool = True, render_mode: str = "rgb_array"):
        if render_mode != "rgb_array":
            raise ValueError(f"render_mode must be 'rgb_array', the only one there is; got {render_mode!r}")
        self.render_mode = render_mode
        self.draws = render
        low, high = joint_limits()
        box = gymnasium.spaces.Box
        self.action_space = box(low, high, dtype=np.float32)
        image = box(0, 255, (draw.HEIGHT, draw.WIDTH, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "observation": gymnasium.spaces.Dict({"head_camera": gymnasium.spaces.Dict({"rgb": image})}),
                "joint_action": gymnasium.spaces.Dict({"vector": box(-math.pi, math.pi, (STATE_SIZE,), np.float32)}),
            }
        )
        self._over = True
        self._static: np.ndarray | None = None  # what does not change in the episode, painted

    # What a task defines -----------------------------------------------------------------------------------------

    def lay_out(self, rng: np.random.Generator) -> None:
        """Place mats, blocks, buttons and the rest for a new episode, and draw the hidden variable."""
        raise NotImplementedError

    @property
    def subtask(self) -> int:
        """Index of the current stage."""
        raise NotImplementedError

    def hidden(self) -> Hashable:
        """What the current frame does not show and only memory knows."""
        raise NotImplementedError

    def guess(self, rng: np.random.Generator) -> Hashable:
        """The best answer in place of `hidden` of someone who sees only the current frame."""
        raise NotImplementedError

    def plan(self, hidden: Any) -> Move:
        """The expert's next move: a function of what is visible now and of `hidden`, of nothing else."""
        raise NotImplementedError

    def on_take(self, block: Block) -> None:
        """`block` was taken from the table."""

    def on_lay(self, block: Block) -> None:
        """`block` was laid down; `block.mat` says where."""

    def on_press(self, button: Button) -> None:
        """`button` was pressed."""

    def on_dock(self) -> None:
        """The recalled arm docked at home."""

    def draw_static(self, image: np.ndarray) -> None:
        """Paint what does not change in the episode."""
        for position in self.mats:
            draw.mat(image, position)
        for button in self.buttons:
            draw.button(image, button.position, draw.COLORS[button.color])

    def draw_sign(self, image: np.ndarray) -> None:
        """Paint what changes and is no block, strip or arm."""

    # gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode; the same seed gives the same pixels. `options` is not used."""
        super().reset(seed=seed)
        self.joints = HOME.copy()
        self.mats: list[Point] = []
        self.blocks: list[Block] = []
        self.buttons: list[Button] = []
        self.light = "off"
        self.recalled = False  # True: the arm must dock at home before it can do anything (the strip shows amber)
        self.steps, self.progress = 0, 0.0
        self.success = self.failed = self.placed = self.placed_right = False
        self.lay_out(self.np_random)
        self._static = draw.table()
        self.draw_static(self._static)
        self._over = False
        return self.observation(), self.info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Move one step towards the joint targets `action`, float32 [14]; targets beyond a joint's limits are clipped.

        Raises ValueError for a wrong shape or a value that is not finite, ResetNeeded after the end of an episode.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded(f"{self.task}: no episode is under way; call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != (STATE_SIZE,) or not np.isfinite(action).all():
            raise ValueError(
                f"{self.task}: an action is {STATE_SIZE} finite joint targets [left arm 6, left gripper, right arm 6, "
                f"right gripper]; got shape {action.shape}, {int((~np.isfinite(action)).sum())} values not finite"
            )
        before = self.progress
        self._move(action)
        self.steps += 1
        terminated = self.success or self.failed
        truncated = not terminated and self.steps >= self.step_limit
        self._over = terminated or truncated
        return self.observation(), self.progress - before, terminated, truncated, self.info()

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The current frame, uint8 [240, 320, 3]."""
        if self._static is None:
            raise gymnasium.error.ResetNeeded(f"{self.task}: there is nothing to draw before reset()")
        image = self._static.copy()
        draw.strip(image, "amber" if self.recalled else self.light)
        self.draw_sign(image)
        for block in sorted(self.blocks, key=lambda b: b.holder is not None):
            draw.block(image, block.position, draw.COLORS[block.color])
        for arm in ARMS:
            elbow, tip = arm.forward(*self.joints[arm.joint : arm.joint + 2].tolist())
            draw.arm(image, arm.base, elbow, tip, float(self.joints[arm.gripper]), self.held(arm) is not None)
        return image

    def observation(self) -> dict[str, Any]:
        """The current observation, in arrays of its own."""
        image = self.render() if self.draws else np.zeros((draw.HEIGHT, draw.WIDTH, 3), np.uint8)
        return {"observation": {"head_camera": {"rgb": image}}, "joint_action": {"vector": self.joints.copy()}}

    def info(self) -> dict[str, Any]:
        """The current `info`."""
        return {
            "success": self.success,
            "reward": self.progress,
            "subtask": self.subtask,
            "placed": self.placed,
            "placed_right": self.placed_right,
        }

    # Physics -----------------------------------------------------------------------------------------------------

    def locked_arms(self) -> tuple[Arm, ...]:
        """Arms that do not move whatever is commanded."""
        return tuple(arm for arm in ARMS if arm not in self.working_arms)

    def at_rest(self) -> bool:
        """All arms are exactly at home, open, and free to act."""
        return not self.recalled and np.array_equal(self.joints, HOME)

    def tip(self, arm: Arm) -> Point:
        """Where the gripper of `arm` is."""
        return arm.forward(*self.joints[arm.joint : arm.joint + 2].tolist())[1]

    def held(self, arm: Arm) -> Block | None:
        """The block that `arm` holds."""
        return next((block for block in self.blocks if block.holder is arm), None)

    def choose(self, right: bool) -> None:
        """Record the choice among the alternatives; it ends the episode."""
        self.placed, self.placed_right, self.success, self.failed = True, right, right, not right
        if right:
            self.reach(1.0)

    def reach(self, progress: float) -> None:
        """Raise the progress; it never falls."""
        self.progress = max(self.progress, progress)

    def _move(self, action: np.ndarray) -> None:
        was_shut = {arm: self.joints[arm.gripper] < GRIPPER_SHUT for arm in ARMS}
        self.joints = limit_speed(self.joints, action, self.locked_arms())
        for arm in ARMS:
            block = self.held(arm)
            if block is not None:
                block.position = self.tip(arm)
            shut = self.joints[arm.gripper] < GRIPPER_SHUT
            if shut and not was_shut[arm]:
                self._close(arm)
            elif block is not None and not shut:
                self._open(block)
            if self.recalled and arm in self.working_arms and math.dist(self.tip(arm), arm.home) < DOCK_TOLERANCE:
                self.joints = HOME.copy()
                self.recalled = False
                self.on_dock()

    def _close(self, arm: Arm) -> None:
        if self.recalled:
            return
        tip = self.tip(arm)
        free = [block for block in self.blocks if block.holder is None]
        things = [thing for thing in (*free, *self.buttons) if math.dist(tip, thing.position) <= GRASP_TOLERANCE]
        if not things:
            return
        nearest = min(things, key=lambda thing: math.dist(tip, thing.position))
        if isinstance(nearest, Block):
            nearest.holder, nearest.mat, nearest.position = arm, OFF_MATS, tip
            self.on_take(nearest)
        else:
            self.joints[arm.joint : arm.joint + 2] = arm.inverse(nearest.position)
            self.joints[arm.gripper] = 0.0
            self.on_press(nearest)

    def _open(self, block: Block) -> None:
        block.holder = None
        taken = {other.mat for other in self.blocks}
        free = [
            i for i, mat in enumerate(self.mats) if i not in taken and math.dist(mat, block.position) <= LAY_TOLERANCE
        ]
        if free:
            block.mat = min(free, key=lambda i: math.dist(self.mats[i], block.position))
            block.position = self.mats[block.mat]
        self.on_lay(block)


def jitter(rng: np.random.Generator, point: Point, spread: float) -> Point:
    """`point` moved by up to `spread` along each axis."""
    dx, dy = rng.uniform(-spread, spread, 2).tolist()
    return point[0] + dx, point[1] + dy
