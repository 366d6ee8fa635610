"""The chain between a robot and its policy: numbers of any width, cameras of any size, three spellings of one thing."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.config import from_dict, to_dict
from mem0_jax.data import observation as reading
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.observation import spelled
from mem0_jax.data.robot import RMBENCH, Robot, Vector, matching
from mem0_jax.errors import UserError
from mem0_jax.policies.base import Spec
from mem0_jax.policies.inputs import Camera, Inputs, Transform
from mem0_jax.serve import client

TOP, WRIST = Camera("observation.images.top", (8, 12)), Camera("observation.image.wrist", (4, 4))
STATE = Vector(("x", "y", "turn", "grip"), raw=("grip",), periodic=("turn",))
ACTION = Vector(("turn", "y", "grip"), raw=("grip",), periodic=("turn",))
ARM = Robot(STATE, ACTION, delta=("turn", "y"))


def stats(robot: Robot, low: float = -4, high: float = 4) -> NormStats:
    def of(vector: Vector) -> dict[str, np.ndarray]:
        count = len(vector.names)
        ends = {"min": np.full(count, low), "max": np.full(count, high)}
        return ends | {"q01": ends["min"], "q99": ends["max"], "mean": np.ones(count), "std": np.full(count, 2.0)}

    return NormStats(of(robot.state), of(robot.action))


def transform(robot: Robot = ARM, width: int = 6, **changes) -> Transform:
    inputs = Inputs(cameras=(TOP, WRIST), robot=robot, **changes)
    return Transform(inputs, stats(robot), Spec(horizon=5, action_dim=width, state_dim=width))


def pictures(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for name, h, w in (("top", 16, 24), ("wrist", 9, 5))}


def spellings(images: dict[str, np.ndarray], state: np.ndarray) -> list[dict]:
    nested = {"observation": {name: {"rgb": image} for name, image in images.items()}}
    flat = [
        {form.format(name): image for name, image in images.items()} | {key: state}
        for form, key in (
            ("observation/{}", "observation/state"),
            ("observation/{}/rgb", "joint_action/vector"),
            ("observation/images/{}", "state"),
            ("observation.images.{}", "observation.state"),
        )
    ]
    return [{"images": images, "state": state}, nested | {"joint_action": {"vector": state}}, *flat]


def test_every_spelling_is_the_same_frame():
    images, state, chain = pictures(), np.array([0.1, 0.2, 0.3, 0.9], np.float32), transform()
    frames = [chain(one) for one in spellings(images, state)]
    assert [image.shape for image in frames[0].images] == [(8, 12, 3), (4, 4, 3)]
    for frame in frames[1:]:
        for ours, first in zip((*frame.images, frame.state), (*frames[0].images, frames[0].state)):
            np.testing.assert_array_equal(ours, first)
    np.testing.assert_array_equal(frames[0].raw[1], images["wrist"])
    np.testing.assert_allclose(frames[0].state, [0.025, 0.05, 0.075, 0.9, 0, 0], atol=1e-6)  # zeros behind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["images"].pop("wrist"), "trained on the cameras 'top', 'wrist', the observation has 'top'"),
        (lambda o: o.pop("images"), r"lacks observation.top.rgb.*has state"),
        (lambda o: o.update(state=[1, 2]), "2 numbers; expected 4"),
        (lambda o: o.pop("state"), "lacks joint_action.vector, or flat"),
        (lambda o: o.update(state=[1, 2, np.nan, 0]), "NaN or infinite values in \\['turn'\\]"),
        (lambda o: o["images"].update(top=np.zeros((4, 4), np.uint8)), "expected uint8"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change, message):
    seen = {"images": pictures(), "state": [0.0] * 4}
    change(seen)
    with pytest.raises(ValueError, match=message):
        transform()(seen)


def test_the_client_reads_observations_by_the_same_lines():
    def lines(module) -> str:
        return inspect.getsource(module).split("# -- spellings --\n")[1].split("# -- end of spellings --")[0]

    assert lines(client) == lines(reading)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["min_max", "quantile", "mean_std", "none"]))
def test_what_training_sees_comes_back_as_actions(seed, normalization):
    chain, rng = transform(normalization=normalization, clip=False), np.random.default_rng(seed)
    state = rng.uniform(-3, 3, 4).astype(np.float32)
    chunk = rng.uniform(-3, 3, (5, 3)).astype(np.float32)
    told = chain.normalizer.action.normalize(ARM.differences(chunk, state))
    told = np.pad(told, [(0, 0), (0, 3)])  # the policy's own width
    np.testing.assert_allclose(chain.chunk(told, state), chunk, atol=1e-4)
    kept = chain.kept(told, state)
    np.testing.assert_allclose(chain.actions(kept[:, None], 4), chunk, atol=1e-4)


def test_angles_take_the_shorter_way():
    start, chunk = np.array([0, 0, 3.0, 0], np.float32), np.array([[-3.0, 1.0, 0.5]], np.float32)
    made = ARM.differences(chunk, start)
    np.testing.assert_allclose(made, [[2 * math.pi - 6, 1.0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(ARM.absolute(made, start), chunk, atol=1e-6)
    mean = ACTION.mean([np.array([3.1, 1, 0], np.float32), np.array([-3.1, 3, 1], np.float32)])
    np.testing.assert_allclose(np.abs(mean), [math.pi, 2, 0.5], atol=1e-6)
    assert Vector(("a",), periodic=("a",), period=360.0).wrapped(np.array([350.0], np.float32)) == [-10]


def test_clipping_and_raw_numbers_are_values():
    wide, start = np.full((1, 6), 3.0, np.float32), np.zeros(4, np.float32)
    absolute = Robot(STATE, ACTION)
    clipped, free = (transform(absolute, clip=clip).chunk(wide, start)[0] for clip in (None, False))
    np.testing.assert_allclose(clipped[1:], [4, 3])  # the gripper is raw
    np.testing.assert_allclose(free[1:], [12, 3])
    mean_std = transform(absolute, normalization="mean_std", clip=True)
    np.testing.assert_allclose(mean_std.chunk(wide, start)[0, 1:], [4, 3])


def test_robots_and_inputs_are_json_and_come_back_equal():
    for robot in (ARM, RMBENCH):
        inputs = Inputs(cameras=(TOP, WRIST), robot=robot, clip=False, text="task")
        assert from_dict(Inputs, to_dict(inputs)) == inputs


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'grop' is none of the numbers, did you mean 'grip'"):
        Vector(("x", "grip"), raw=("grop",))
    with pytest.raises(ValueError, match="a name is there twice"):
        Vector(("x", "x"))
    with pytest.raises(ValueError, match="delta: 'x' is none of the action's numbers"):
        Robot(STATE, ACTION, delta=("x",))
    with pytest.raises(ValueError, match="cameras of different names"):
        Inputs(cameras=(TOP, Camera("observation.image.top")))
    with pytest.raises(UserError, match=r"state has 4 numbers, x, y, turn, grip; the policy takes 3.*state_dim to 4"):
        transform(width=3)
    with pytest.raises(ValueError, match="matches none of x, y"):
        matching(["z*"], ["x", "y"], "raw")
    assert matching(["*", "!*grip*"], ["x", "left_grip", "y"], "delta") == ("x", "y")


def test_rmbench_gives_and_takes_14_or_16_numbers():
    assert RMBENCH.state.counts == (14, 16)
    chain = transform(RMBENCH, width=20)
    for count in (14, 16):
        frame = chain({"images": pictures(), "state": np.arange(count) / 10})
        assert (frame.count, frame.state.shape) == (count, (20,))
        chunk = np.random.default_rng(0).uniform(-1, 1, (5, 20)).astype(np.float32)
        actions = chain.actions(chunk[:, None], frame.count)
        np.testing.assert_allclose(RMBENCH.action.read(actions)[:, 14:], chunk[:, 14:16])
    with pytest.raises(ValueError, match="15 numbers; expected 14 or 16"):
        chain({"images": pictures(), "state": np.zeros(15)})
    assert spelled({"image": 1, "state": 2}, ["any"]) == ({"any": 1}, 2)
