"""Whose numbers states and actions are: RMBench's joints, numbers without names, and other robots' refused by name."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.data.files import DatasetError
from mem0_jax.data.joint_names import check_names, foreign_names
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.layout import JOINT_NAMES
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, mem0_features
from mem0_jax.data.mixture import Mixture

JOINTS = list(JOINT_NAMES)
ENVIRONMENT = [*JOINTS[:7], "left_gripper", *JOINTS[7:14], "right_gripper"]  # the order of RMBench's environments
FINGERS = [f"finger_{i}" for i in range(16)]
FROM_ONE = [f"{side}Arm.joint{i}.pos" for side in ("left", "right") for i in range(1, 8)]


def foreign(names) -> list[str]:
    return foreign_names({"dtype": "float32", "shape": [16], "names": names})


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
    assert foreign(names) == []


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
    assert foreign(names)


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
    assert [name.split("finger_")[-1] for name in foreign(names)] == [str(i) for i in range(16)]


@pytest.mark.parametrize("wrap", [str, lambda names: names, ",".join, lambda names: [names]])
def test_brackets_of_a_name_stay(wrap):
    names = [f"{side} arm {i} [rad]" for side in ("LEFT", "RIGHT") for i in range(8)]
    assert foreign(wrap(names)) == names


@pytest.mark.parametrize("wrap", [lambda name, place: place, lambda name, place: {"index": place}])
def test_places_count_not_the_order_of_keys(wrap):
    assert foreign({name: wrap(name, 15 - place) for place, name in enumerate(JOINTS)})


@given(st.permutations(JOINTS))
def test_no_other_order_passes(names):
    assert bool(foreign(names)) == (list(names) != JOINTS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("named") / "dataset"
    features = {key: value for key, value in mem0_features(32, 32).items() if value["dtype"] != "video"}
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


COMMANDS = {
    "stats": ["data", "stats", "DATASET", "--out", "OUT"],
    "pack": ["data", "pack", "DATASET", "OUT"],
    "train": [
        "train",
        "--config=small",
        "--workdir=OUT",
        "--config.data.datasets=('GOOD', 'DATASET')",
        "--config.data.held_out=0",
        "--config.train.validate_every=0",
    ],
}


@pytest.mark.parametrize("key", ["observation.state", "action"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_them_by_name_and_write_nothing(command, key, recorded, tmp_path, capsys):
    root, out = named(recorded, tmp_path / "fingers", key, {"motors": FINGERS}), tmp_path / "out"
    places = {"DATASET": str(root), "GOOD": str(recorded), "OUT": str(out)}
    words = COMMANDS[command]
    for word, place in places.items():
        words = [part.replace(word, place) for part in words]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"{root}: {key}: the numbers are named finger_0, finger_1," in error
    assert "expected left_joint_0, left_joint_1," in error
    assert "to null there" in error
    assert not out.exists()


def test_a_check_finds_them(recorded, tmp_path, capsys):
    assert main(["data", "check", str(recorded)]) == 0
    assert main(["data", "check", str(named(recorded, tmp_path / "other", "action", ENVIRONMENT))]) == 1
    assert "action: the numbers are named left_joint_0," in capsys.readouterr().out


def test_lanes_refuse_them_in_a_mixture_too(recorded, tmp_path):
    other = LeRobotDataset(named(recorded, tmp_path / "fingers", "action", FINGERS))
    for dataset in (other, Mixture([LeRobotDataset(recorded), other])):
        with pytest.raises(DatasetError, match=r"fingers: action: the numbers are named finger_0"):
            LaneSource(dataset, lanes=1, frames=1, horizon=2, seed=0)
        with pytest.raises(DatasetError, match="finger_0"):
            check_names(dataset)
