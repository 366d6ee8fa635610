"""Scripted experts, the frame-only oracle, and recording of episodes.

T frames of an episode. The expert turns the task's plan into joint targets one step ahead, slowing down near its goal,
and acts on the visible scene and the hidden variable alone, so that a policy with memory can learn it. Noise is put on
what is executed and not on the label, which makes demonstrations contain recoveries (DART: Laskey et al. 2017,
arXiv:1703.09327).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from mem0_jax.envs.arm import Arm, Point
from mem0_jax.envs.tabletop import HOME, Tabletop

SPEED = 0.07  # greatest step of the gripper
LAST_STEP = 0.04  # distance from the goal that is covered in one step; further away the arm slows down gradually
NEAR = 0.04  # distance from the goal at which the gripper closes or opens
END_FRAMES = 8  # frames at the end of a segment that are marked as its end


@dataclass(frozen=True)
class Noise:
    """Disturbance of executed actions, in table units: Gaussian on every step, now and then a kick of fixed length."""

    sigma: float = 0.012
    kick_probability: float = 0.04
    kick: float = 0.05


class Expert:
    """Solves a task by `Tabletop.plan`. Call `reset()` after each `env.reset()`."""

    def __init__(self, env: gymnasium.Env, rng: np.random.Generator, noise: Noise | None = None):
        base = env.unwrapped
        if not isinstance(base, Tabletop):
            raise TypeError(f"an expert needs a mem0_jax.envs environment; got {type(base).__name__}")
        self.env, self.rng, self.noise = base, rng, noise

    def reset(self) -> None:
        """Forget the last episode."""

    def belief(self) -> Any:
        """What is put in place of the hidden variable: the truth."""
        return self.env.hidden()

    def act(self) -> tuple[np.ndarray, int]:
        """The clean joint targets, float32 [14], and the index of the current stage."""
        move = self.env.plan(self.belief())
        self._arm = move.arm
        tip = self.env.tip(move.arm)
        distance = math.dist(tip, move.goal)
        pace = min(distance, SPEED, max(0.5 * distance, LAST_STEP))
        point = move.goal
        if pace < distance:
            share = pace / distance
            point = (tip[0] + share * (move.goal[0] - tip[0]), tip[1] + share * (move.goal[1] - tip[1]))
        self._target = point
        return _joints(move.arm, point, move.arrive if distance < NEAR else move.travel), self.env.subtask

    def execute(self, action: np.ndarray) -> np.ndarray:
        """What to pass to `env.step` for the last `act`: `action` itself, disturbed if there is noise."""
        if self.noise is None:
            return action
        dx, dy = self.rng.normal(0.0, self.noise.sigma, 2)
        if self.rng.random() < self.noise.kick_probability:
            angle = self.rng.uniform(0, 2 * math.pi)
            dx, dy = dx + self.noise.kick * math.cos(angle), dy + self.noise.kick * math.sin(angle)
        point = (self._target[0] + float(dx), self._target[1] + float(dy))
        return _joints(self._arm, point, float(action[self._arm.gripper]))


class FrameOracle(Expert):
    """The expert's skill without memory: what the current frame does not show is guessed.

    It guesses anew whenever the scene is at rest (all arms exactly at home and free to move) and acts on the guess
    until the next rest.
    """

    def reset(self) -> None:
        """Forget the guess."""
        self._guess = None

    def belief(self) -> Any:
        """The guess, made anew whenever the scene is at rest."""
        if self._guess is None or self.env.at_rest():
            self._guess = (self.env.guess(self.rng),)
        return self._guess[0]


def frame_oracle(env: gymnasium.Env, rng: np.random.Generator) -> FrameOracle:
    """The best policy that sees only the current frame of `env`, with the interface of `Expert`."""
    return FrameOracle(env, rng)


def _joints(arm: Arm, point: Point, gripper: float) -> np.ndarray:
    joints = HOME.copy()
    if point != arm.home:  # home stays bit-exact
        joints[arm.joint : arm.joint + 2] = arm.inverse(point)
    joints[arm.gripper] = gripper
    return joints


@dataclass(frozen=True)
class Demonstration:
    """A recorded episode of T frames; `action[t]` is the clean target for frame t.

    image uint8 [T, 240, 320, 3] (None when recorded without), state float32 [T, 14], action float32 [T, 14];
    subtask int32 [T], the true stage; subtask_end int32 [T], 1 on the last eight frames of each segment (a task that is
    not staged is one segment); text, T strings, the instruction a policy is given at each frame.
    """

    task: str
    instruction: str
    seed: int
    image: np.ndarray | None
    state: np.ndarray
    action: np.ndarray
    subtask: np.ndarray
    subtask_end: np.ndarray
    text: tuple[str, ...]
    success: bool
    placed: bool
    placed_right: bool
    reward: float

    def __len__(self) -> int:
        return len(self.state)


def rollout(env: gymnasium.Env, expert: Expert, seed: int) -> Demonstration:
    """Play one episode to its end and record it. Images are kept if `env` renders."""
    base = expert.env
    if env.unwrapped is not base:
        raise ValueError("rollout: env and expert differ; build the expert with Expert(env, ...)")
    observation, info = env.reset(seed=seed)
    expert.reset()
    images, states, actions, stages = [], [], [], []
    over = False
    while not over:
        action, stage = expert.act()
        images.append(observation["observation"]["head_camera"]["rgb"])
        states.append(observation["joint_action"]["vector"])
        actions.append(action)
        stages.append(stage)
        observation, _, terminated, truncated, info = env.step(expert.execute(action))
        over = terminated or truncated
    subtask = np.array(stages, np.int32)
    segment = subtask if base.staged else np.zeros_like(subtask)
    return Demonstration(
        task=base.task,
        instruction=base.instruction,
        seed=seed,
        image=np.stack(images) if base.draws else None,
        state=np.stack(states),
        action=np.stack(actions),
        subtask=subtask,
        subtask_end=segment_ends(segment),
        text=tuple(base.subtasks[i] if base.staged else base.instruction for i in stages),
        success=info["success"],
        placed=info["placed"],
        placed_right=info["placed_right"],
        reward=info["reward"],
    )


def segment_ends(segment: np.ndarray) -> np.ndarray:
    """1 on the last eight frames of each run of equal values of `segment` [T], else 0, int32 [T]."""
    ends = np.append(np.flatnonzero(np.diff(segment)), len(segment) - 1)
    frames = np.arange(len(segment))
    last = ends[np.searchsorted(ends, frames)]
    return (last - frames < END_FRAMES).astype(np.int32)
