"""Whose numbers states and actions are: RMBench's joints, numbers without names, and robots of their own."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.data.files import DatasetError
from mem0_jax.data.joint_names import flat_names, is_rmbench
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.packed import open_dataset
from mem0_jax.data.robot import RMBENCH, robot_of

JOINTS = list(RMBENCH.state.names)
ENVIRONMENT = [*JOINTS[:7], "left_gripper", *JOINTS[7:14], "right_gripper"]  # the order of RMBench's environments
KEYS = ("observation.state", "action")
FINGERS = [f"finger_{i}" for i in range(16)]
FROM_ONE = [f"{side}Arm.joint{i}.pos" for side in ("left", "right") for i in range(1, 8)]


def rmbench(names) -> bool:
    return is_rmbench({"dtype": "float32", "shape": [16], "names": names})


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        ["motors"],
        JOINTS,
        {"motors": JOINTS},
        {"left": JOINTS[:7], "right": JOINTS[7:14], "grippers": {"left_gripper": 0, "right_gripper": 1}},
        {name: place for place, name in enumerate(JOINTS)},
        {name: str(place) for place, name in enumerate(JOINTS)},
        {name: {"index": 15 - place} for place, name in enumerate(reversed(JOINTS))},
        {str(place): name for place, name in reversed(list(enumerate(JOINTS)))},
        [{"name": name, "index": place} for place, name in enumerate(JOINTS)],
        dict.fromkeys(JOINTS),
        dict.fromkeys(JOINTS, "rad"),
        {"motors": {name: [i + 1, "sts3215"] for i, name in enumerate(JOINTS)}},
        ",".join(JOINTS),
        " ".join(JOINTS),
        "joint angles",
        ["joint_positions"],
        {"state": 16},
        {"motors": None},
        {f"motor_{i}": None for i in range(16)},
        [None] * 16,
        [""] * 16,
        [JOINTS],
        [f"{name}.pos" for name in JOINTS],
        [*FROM_ONE, "LeftGripper", "RightGripper"],
        [str(i) for i in range(16)],
        [f"motor_{i}" for i in range(16)],
        {"axes": [f"dim_{i}" for i in range(1, 17)]},
    ],
)
def test_the_two_arms_and_numbers_without_names_pass(names):
    assert rmbench(names)


@pytest.mark.parametrize(
    "names",
    [
        ENVIRONMENT,
        FINGERS,
        {"motors": FINGERS},
        {"hand": {"thumb": FINGERS[:8], "rest": FINGERS[8:]}},
        {name: i for i, name in enumerate(FINGERS)},
        {name: 15 - i for i, name in enumerate(JOINTS)},
        [*JOINTS[7:14], *JOINTS[:7], "right_gripper", "left_gripper"],
        [f"joint_{i}" for i in range(8)] * 2,
        [f"motor_{15 - i}" for i in range(16)],
        [f"关节{i}" for i in range(16)],
        JOINTS[:15],
        [*JOINTS[:15], "right_hand"],
        [f"left_joint_{digit}" for digit in "⁰¹²³⁴⁵⁶⁷⁸⁹①②③④⑤⑥"],
        {str(i): ("hip", "knee")[i % 2] for i in range(16)},
        {f"motor_{i}": ("hip", "knee")[i % 2] for i in range(16)},
        {"right_arm": [f"joint_{i}" for i in range(8)], "left_arm": [f"joint_{i}" for i in range(8, 16)]},
        {"left": [f"motor_{i}" for i in range(8)], "right": [f"motor_{i}" for i in range(8, 16)]},
        {"grippers": ["motor_0", "motor_1"], "arms": [f"motor_{i}" for i in range(2, 16)]},
        {"torques": [f"motor_{i}" for i in range(16)]},
        ["velocities"],
        "torque",
        {"velocity": 16},
        {"velocities": list(range(16))},
        {"dim_0": "torque"},
        {f"motor_{i}": [i, name] for i, name in enumerate(FINGERS)},
        {f"motor_{i}": {"id": i, "joint": name} for i, name in enumerate(FINGERS)},
    ],
)
def test_other_joints_and_other_orders_do_not(names):
    assert not rmbench(names)


@pytest.mark.parametrize(
    "names",
    [
        dict.fromkeys(FINGERS),
        {name: str(place) for place, name in enumerate(FINGERS)},
        {name: [] for name in FINGERS},
        {name: {} for name in FINGERS},
        dict.fromkeys(FINGERS, ""),
        {name: float(place) for place, name in enumerate(FINGERS)},
        {name: {"index": place} for place, name in enumerate(FINGERS)},
        {name: {"id": place, "range": [0, 4095]} for place, name in enumerate(FINGERS)},
        dict.fromkeys(FINGERS, "rad"),
        {name: [place + 1, "sts3215"] for place, name in enumerate(FINGERS)},
        {f"motor_{place}": name for place, name in enumerate(FINGERS)},
        {str(place): name for place, name in enumerate(FINGERS)},
        [{"name": name, "index": place} for place, name in enumerate(FINGERS)],
        {"thumb": dict.fromkeys(FINGERS[:8]), "rest": {name: {"unit": "rad"} for name in FINGERS[8:]}},
        ",".join(FINGERS),
        "; ".join(FINGERS),
        " ".join(FINGERS),
        str(FINGERS),
        {"motors": ", ".join(FINGERS)},
        [",".join(FINGERS[:8]), ",".join(FINGERS[8:])],
        [[[[[[[[[[FINGERS]]]]]]]]]],
    ],
)
def test_names_are_found_wherever_they_stand(names):
    assert [name.split("finger_")[-1] for name in flat_names(names, 16)] == [str(i) for i in range(16)]


@pytest.mark.parametrize("wrap", [str, lambda names: names, ",".join, lambda names: [names]])
def test_brackets_of_a_name_stay(wrap):
    names = [f"{side} arm {i} [rad]" for side in ("LEFT", "RIGHT") for i in range(8)]
    assert flat_names(wrap(names), 16) == names


@pytest.mark.parametrize("wrap", [lambda name, place: place, lambda name, place: {"index": place}])
def test_places_count_not_the_order_of_keys(wrap):
    assert not rmbench({name: wrap(name, 15 - place) for place, name in enumerate(JOINTS)})


@given(st.permutations(JOINTS))
def test_no_other_order_passes(names):
    assert rmbench(names) == (list(names) == JOINTS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("named") / "dataset"
    features = {key: value for key, value in staged_features(32, 32).items() if value["dtype"] != "video"}
    with LeRobotWriter(root, 10, features, "hand") as writer:
        vector = np.linspace(0, 1, 48, dtype=np.float32).reshape(3, 16)
        ids = {"episode_id": np.zeros(3, np.int32), "subtask_end": np.zeros(3, np.int32)}
        writer.add_episode({"observation.state": vector, "action": vector, "subtask": ["go"] * 3, **ids}, "go")
    return root


def named(recorded, root, key: str, names):
    shutil.copytree(recorded, root)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_robots_of_their_own_are_measured_checked_and_packed(recorded, tmp_path, capsys):
    root = named(recorded, tmp_path / "fingers", "action", {"motors": FINGERS})
    robot = robot_of(LeRobotDataset(root))
    assert (robot.action.names, robot.state) == (tuple(FINGERS), RMBENCH.state.__class__(tuple(JOINTS)))
    assert main(["data", "stats", str(root), "--out", str(tmp_path / "stats.json")]) == 0
    assert "\nfinger_15 " in capsys.readouterr().out
    assert main(["data", "check", str(root)]) == 0
    assert main(["data", "pack", str(root), str(tmp_path / "packed")]) == 0
    assert robot_of(open_dataset(tmp_path / "packed")) == robot
    assert (
        LaneSource(LeRobotDataset(root), lanes=1, frames=1, horizon=2, seed=0, cameras={})[0]["action"].shape[-1] == 16
    )


def test_robots_that_differ_are_not_trained_together(recorded, tmp_path, capsys):
    other, out = named(recorded, tmp_path / "fingers", "action", FINGERS), tmp_path / "out"
    command = ["train", "--config=small", f"--workdir={out}", f"--config.data.datasets=('{recorded}', '{other}')"]
    assert main([*command, "--config.data.held_out=0", "--config.train.validate_every=0"]) == 1
    error = capsys.readouterr().err
    assert f"the action of {recorded} has 16 numbers, left_joint_0, left_joint_1," in error
    assert f"that of {other} has 16 numbers, finger_0, finger_1," in error
    assert not out.exists()
    mixture = Mixture([LeRobotDataset(recorded), LeRobotDataset(other)])
    with pytest.raises(DatasetError, match=r"of one robot.*fingers has 16 numbers, finger_0"):
        LaneSource(mixture, lanes=1, frames=1, horizon=2, seed=0)


POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper", "gripper"]


@pytest.mark.parametrize(
    ("shapes", "names", "found"),
    [
        ((6, 6), [f"{joint}.pos" for joint in ("pan", "lift", "elbow", "flex", "roll", "grip")], None),
        ((8, 7), None, ([f"state_{i}" for i in range(8)], [f"action_{i}" for i in range(7)])),
        ((14, 14), None, ([f"number_{i}" for i in range(14)],) * 2),
        ((14, 14), [*JOINTS[:6], "left_gripper", *JOINTS[7:13], "right_gripper"], None),
        ((8, 8), POSE, ([*POSE[:7], "gripper_7"],) * 2),
        ((32, 32), [f"joint {i}" for i in range(32)], None),
        ((1, 1), None, (["number_0"],) * 2),
    ],
)
def test_any_width_is_a_robot(shapes, names, found):
    features = {key: {"dtype": "float32", "shape": [n], "names": names} for key, n in zip(KEYS, shapes)}
    robot = robot_of(SimpleNamespace(root="somewhere", features=features))
    assert [list(robot.state.names), list(robot.action.names)] == list(found or (names, names))
    assert (robot.state.counts, robot.state.raw, robot.delta) == ((shapes[0],), (), ())
