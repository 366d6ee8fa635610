"""Two mirror-symmetric planar arms: kinematics, joint limits and the 14-D joint layout.

Lengths are in table units (the table is 4/3 wide and 1 deep, x to the right, y away from the arms), angles in radians.
The joint vector is `[left arm 6, left gripper, right arm 6, right gripper]`. Of each arm only shoulder and elbow move;
the other four joints stay at `WRIST`. A gripper value is 1 when open and 0 when closed.

Shoulder 0 points straight ahead, positive angles turn inwards, and a positive elbow bends inwards: both arms have the
same numbers in mirrored postures. The elbow stays inside (0, pi), so each reachable point has one posture and no joint
wraps around.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

STATE_SIZE = 14
WRIST = (0.4, -0.3, 0.2, -0.1)
LINK = 0.76  # both links; long enough that the angles stay close to linear in the position over the whole table
SHOULDER_LIMITS = (-2.2, 1.2)
ELBOW_LIMITS = (0.5, 2.8)
JOINT_STEP = 0.25  # greatest change of a joint in one step
GRIPPER_STEP = 0.4  # greatest change of a gripper in one step
GRIPPER_SHUT = 0.5  # a gripper holds below this opening

Point = tuple[float, float]


class Arm(NamedTuple):
    """One arm. `joint` and `gripper` index the joint vector; `side` is -1 for the left arm and +1 for the right."""

    name: str
    side: int
    base: Point
    home: Point
    joint: int
    gripper: int

    def forward(self, shoulder: float, elbow: float) -> tuple[Point, Point]:
        """Positions of the elbow and of the gripper."""
        x, y = self.base
        middle = (x - self.side * LINK * math.sin(shoulder), y + LINK * math.cos(shoulder))
        angle = shoulder + elbow
        return middle, (middle[0] - self.side * LINK * math.sin(angle), middle[1] + LINK * math.cos(angle))

    def inverse(self, point: Point) -> tuple[float, float]:
        """Shoulder and elbow that bring the gripper to `point`, or as near to it as the limits allow."""
        inwards, ahead = -self.side * (point[0] - self.base[0]), point[1] - self.base[1]
        reach = [2 * LINK * math.cos(limit / 2) for limit in ELBOW_LIMITS]
        distance = min(max(math.hypot(inwards, ahead), reach[1]), reach[0])
        elbow = 2 * math.acos(distance / (2 * LINK))
        shoulder = math.atan2(inwards, ahead) - elbow / 2
        return min(max(shoulder, SHOULDER_LIMITS[0]), SHOULDER_LIMITS[1]), elbow


LEFT = Arm("left", -1, base=(1 / 3, -0.1), home=(4 / 3 - 1.1, 0.2), joint=0, gripper=6)
RIGHT = Arm("right", 1, base=(1.0, -0.1), home=(1.1, 0.2), joint=7, gripper=13)
ARMS = (LEFT, RIGHT)


def home_joints() -> np.ndarray:
    """Joint vector with both arms at home and both grippers open, float32 [14]."""
    joints = np.empty(STATE_SIZE, np.float32)
    for arm in ARMS:
        joints[arm.joint : arm.joint + 6] = (*arm.inverse(arm.home), *WRIST)
        joints[arm.gripper] = 1.0
    return joints


def joint_limits() -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest joint vector that may be commanded, two float32 [14]."""
    low, high = np.empty(STATE_SIZE, np.float32), np.empty(STATE_SIZE, np.float32)
    for arm in ARMS:
        low[arm.joint : arm.joint + 6] = (SHOULDER_LIMITS[0], ELBOW_LIMITS[0], *[-math.pi] * 4)
        high[arm.joint : arm.joint + 6] = (SHOULDER_LIMITS[1], ELBOW_LIMITS[1], *[math.pi] * 4)
        low[arm.gripper], high[arm.gripper] = 0.0, 1.0
    return low, high


def limit_speed(joints: np.ndarray, target: np.ndarray, locked: tuple[Arm, ...] = ()) -> np.ndarray:
    """One step from `joints` towards `target` (both float32 [14]) at limited speed.

    Wrists never move, nor do the `locked` arms. A target within reach of one step is met exactly.
    """
    low, high = joint_limits()
    pace = np.zeros(STATE_SIZE, np.float32)
    for arm in ARMS:
        if arm not in locked:
            pace[arm.joint : arm.joint + 2] = JOINT_STEP
            pace[arm.gripper] = GRIPPER_STEP
    target = np.clip(target, low, high)
    change = target - joints
    return np.where(np.abs(change) <= pace, target, joints + np.clip(change, -pace, pace)).astype(np.float32)
