"""What every policy promises, of those in this house and of one that an installed package brings.

Each has a module `cases/NAME.py`: `write_dataset(root)` records a robot, `job(dataset, settings)` trains on it.

Axis letters: L lanes or sessions, T consecutive frames, C action horizon, A action width, D width of the state.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from live import TASK, address, assert_close, serving

from mem0_jax import tree
from mem0_jax.cli import main
from mem0_jax.convert.models import formats
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.pipeline import LaneLoader
from mem0_jax.errors import UserError
from mem0_jax.family import PolicyFamily, family, names
from mem0_jax.inference.engine import Engine, Request
from mem0_jax.inference.session import Options, Session
from mem0_jax.policies.bundle import Bundle, load_bundle, save_bundle
from mem0_jax.serve.client import Client
from mem0_jax.serve.service import Service
from mem0_jax.train.config import TrainSettings
from mem0_jax.train.run import Prepared, prepare, run
from mem0_jax.train.state import blueprint
from mem0_jax.train.step import make_train_step

TESTS = Path(__file__).parents[1]
INSTALLED = str(TESTS / "glance")  # on the path: what an installation puts there
sys.path.append(INSTALLED)
POLICIES = [name for name in names() if isinstance(family(name), PolicyFamily)]
sys.path.remove(INSTALLED)
SETTINGS = TrainSettings(
    steps=6, batch_size=8, lanes=2, precision="float32", log_every=1, save_every=2, validate_every=6, ema_decay=0.9
)


class Trained(NamedTuple):
    """A case that was trained once.

    Attributes:
        prepared: the job, read.
        workdir: what the run left.
        bundle: its policy, with every parameter moved: what is at rest hides mistakes.
    """

    prepared: Prepared
    workdir: Path
    bundle: Bundle

    @property
    def policy(self) -> Any:
        return self.bundle.policy


@pytest.fixture(scope="module", autouse=True)
def installed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(INSTALLED)
        yield


@pytest.fixture(scope="module", params=POLICIES)
def trained(request, installed, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    case = importlib.import_module(f"cases.{request.param}")
    job = case.job(case.write_dataset(folder / "dataset"), SETTINGS)
    run(job, folder / "run")
    bundle, rng = load_bundle(folder / "run" / "bundle"), np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), bundle.params)
    return Trained(prepare(job), folder / "run", Bundle(**vars(bundle) | {"params": moved}))


def batch_of(prepared: Prepared) -> dict[str, Any]:
    """A batch of the training data, [L, T, ...]."""
    source = prepared.source()
    rows = [source[lane] for lane in range(prepared.config.lanes)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def announced(trained: Trained) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch that the policy announces, [L, T, ...]."""
    inputs, lead = trained.bundle.inputs, (SETTINGS.lanes, SETTINGS.batch_size // SETTINGS.lanes)
    shapes = trained.policy.batch(inputs.max_length, len(inputs.cameras))
    return {name: jax.ShapeDtypeStruct((*lead, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def observed(trained: Trained) -> dict[str, Any]:
    """What of the announced batch is an observation."""
    batch = batch_of(trained.prepared)
    return {name: batch[name] for name in announced(trained) if name not in trained.policy.labels}


def bytes_of(params: Any) -> dict[str, bytes]:
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.flatten(params).items()}


def seen(trained: Trained, seed: int, frames: int = 1) -> list[dict[str, Any]]:
    """Observations of the robot."""
    inputs, rng = trained.bundle.inputs, np.random.default_rng(seed)
    size, state = (40, 56), rng.uniform(-0.5, 0.5, len(inputs.robot.state.names)).astype(np.float32)
    return [
        {"images": {c.name: rng.integers(0, 256, (*size, 3), np.uint8) for c in inputs.cameras}, "state": state}
        for _ in range(frames)
    ]


def test_every_policy_has_a_case():
    assert {"glance", *POLICIES} == {path.stem for path in (TESTS / "cases").glob("*.py")}


def test_parameters_are_drawn_from_the_key_and_ruled(trained):
    policy, config = trained.policy, trained.bundle.config
    first, again, other = (tree.flatten(policy.init(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all(leaf.dtype == jnp.float32 for leaf in first.values())
    assert all((first[path] == again[path]).all() for path in first)
    assert any((first[path] != other[path]).any() for path in first)
    rules = trained.bundle.family.logical_axes(config)
    assert rules == policy.logical_axes
    for path, leaf in first.items():
        assert any(re.fullmatch(pattern, path) for _, pattern in policy.learning_rate_groups), path
        axes = next(axes for axes, pattern in rules if re.fullmatch(pattern, path))
        assert axes == "stream" or len(axes.split()) == leaf.ndim, (path, axes)
    groups = {group for group, _ in policy.learning_rate_groups}
    assert trained.bundle.family.learning_rates.keys() == trained.bundle.family.floors.keys() == groups
    parts = trained.bundle.family.parts(config, 8)
    assert {path.split("/")[0] for path in first} == parts.keys()
    assert all(part.operations > 0 and set(part.upstream) < parts.keys() for part in parts.values())


def test_the_loader_gives_what_is_announced(trained):
    batch, expected = batch_of(trained.prepared), announced(trained)
    for name, leaf in expected.items():
        assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype), name
    assert set(trained.policy.labels) < expected.keys()


def test_gradients_are_the_slope_of_the_loss_and_zero_where_promised(trained):
    """Of one frame after another: no gradient needs to flow through what is remembered."""
    policy, params, key = trained.policy, trained.bundle.params, jax.random.key(3)
    first, second = ({name: value[:, t : t + 1] for name, value in batch_of(trained.prepared).items()} for t in (0, 1))

    @jax.jit
    def differentiated(params: Any, memory: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            value, metrics, after = policy.loss(params, memory, batch, key, False)
            assert metrics["loss"] is value
            return value, after

        return jax.value_and_grad(loss, has_aux=True)(params)

    start = policy.init_state(SETTINGS.lanes)
    (_, memory), _ = differentiated(params, start, first)
    assert jax.tree.structure(memory) == jax.tree.structure(start)
    _, gradients = differentiated(params, memory, second)
    moved = {path for path, leaf in tree.flatten(gradients).items() if (leaf != 0).any()}
    assert not [path for path in moved if any(re.fullmatch(pattern, path) for pattern in policy.no_gradient)]
    for group, pattern in policy.learning_rate_groups:
        assert any(re.fullmatch(pattern, path) for path in moved), group
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(params))))
    still = re.compile("|".join(policy.no_gradient) or "(?!)")
    way = {
        path: jax.random.normal(next(keys), leaf.shape) * (not still.fullmatch(path))
        for path, leaf in tree.flatten(params).items()
    }
    way = tree.unflatten(way)
    slope = sum(jnp.vdot(g, w) for g, w in zip(jax.tree.leaves(gradients), jax.tree.leaves(way)))
    ahead, behind = (
        differentiated(jax.tree.map(lambda p, w, step=step: p + step * w, params, way), memory, second)[0][0]
        for step in (1e-3, -1e-3)
    )
    np.testing.assert_allclose((ahead - behind) / 2e-3, slope, rtol=0.02)


def test_a_step_compiles_for_shapes_alone(trained):
    """What `mem0-jax aot` asks."""
    prepared = trained.prepared
    _, optimizer, _, template = blueprint(prepared.policy, prepared.config)
    step = make_train_step(prepared.policy, optimizer, 1, SETTINGS.ema_decay)
    after, _ = jax.eval_shape(step, template, announced(trained))
    assert jax.tree.structure(after) == jax.tree.structure(template)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(after)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)
    ]


def test_sessions_of_a_batch_do_not_touch_each_other(trained):
    policy, params, observation = trained.policy, trained.bundle.params, observed(trained)
    lanes, spec = SETTINGS.lanes, trained.policy.spec
    noise = spec.draws(jax.random.key(1), lanes)

    @jax.jit
    def play(observation: Any, noise: Any) -> Any:
        memory = policy.init_state(len(noise))
        for t in range(3):
            now = {name: value[:, t] for name, value in observation.items()}
            context, info, memory = policy.observe(params, memory, now)
        return policy.decide(params, context, now["state"], noise, policy.constants(params)), info, memory

    chunk, info, memory = play(observation, noise)
    assert chunk.shape == (lanes, spec.horizon, spec.action_dim)
    assert ("end_probability" in info) == (spec.end_threshold is not None)
    assert bool(jax.tree.leaves(memory)) == (spec.history > 0)
    for lane in range(lanes):
        alone = play({name: value[lane : lane + 1] for name, value in observation.items()}, noise[lane : lane + 1])
        for both, one in zip(jax.tree.leaves((chunk, info, memory)), jax.tree.leaves(alone), strict=True):
            assert_close(both[lane], one[0])
    assert np.abs(chunk[0] - chunk[1]).max() > 1e-3


def test_an_emptied_memory_is_as_a_new_one(trained):
    policy, params, observation = trained.policy, trained.bundle.params, observed(trained)
    first, second = ({name: value[:, t] for name, value in observation.items() if name != "episode"} for t in (0, 1))
    observe = jax.jit(policy.observe)
    begun = observe(params, policy.init_state(SETTINGS.lanes), first)[2]
    kept, new = (observe(params, memory, second)[:2] for memory in (begun, policy.init_state(SETTINGS.lanes)))
    found = observe(params, policy.reset(begun, jnp.array([True, False])), second)[:2]
    for after, fresh, old in zip(*map(jax.tree.leaves, (found, new, kept)), strict=True):
        np.testing.assert_array_equal(after[0], fresh[0])
        np.testing.assert_array_equal(after[1], old[1])
    if policy.spec.history:
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (new, kept))))


def test_frames_may_be_remembered_without_being_looked_at(trained):
    """Several at once, and without their text; what is seen after them is the same."""
    policy, params, observation = trained.policy, trained.bundle.params, observed(trained)
    frames = [{name: value[:, t] for name, value in observation.items() if name != "episode"} for t in range(3)]
    start, observe = policy.init_state(SETTINGS.lanes), jax.jit(policy.observe)
    memory = start
    for frame in frames[:2]:
        memory = observe(params, memory, frame)[2]
    both = jax.tree.map(lambda *frames: np.stack(frames, 1), *frames[:2])
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in both.items()}
    index = np.arange(2 * SETTINGS.lanes).reshape(SETTINGS.lanes, 2)
    written = jax.jit(policy.remember)(params, start, flat, index, np.full(SETTINGS.lanes, 2))
    found, expected = (jax.tree.leaves(observe(params, m, frames[2])) for m in (written, memory))
    for leaf, other in zip(found, expected, strict=True):
        assert_close(leaf, other)


def test_noise_is_of_the_announced_law(trained):
    spec = trained.policy.spec
    drawn = np.stack([spec.draw(np.random.default_rng(seed)) for seed in range(200)])
    assert drawn.dtype == np.float32
    for values in (drawn, np.asarray(spec.draws(jax.random.key(0), 200))):
        assert values.shape == (200, spec.horizon, spec.action_dim)
        assert abs(values.mean()) < 0.1
        assert (np.abs(values).max() < 1) == (spec.noise == "uniform")
        np.testing.assert_allclose(values.std(), 3**-0.5 if spec.noise == "uniform" else 1, rtol=0.05)


def test_a_bundle_comes_back_as_it_was(trained, tmp_path):
    bundle = trained.bundle
    again = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert (again.config, again.inputs, again.provenance) == (bundle.config, bundle.inputs, bundle.provenance)
    assert bytes_of(again.params) == bytes_of(bundle.params)
    chunks = []
    for of in (bundle, again):
        session = Session(of, Options())
        session.reset(TASK, seed=1)
        session.observe(seen(trained, 0)[0])
        chunks.append(session.act())
    np.testing.assert_array_equal(*chunks)
    serving_dtypes = load_bundle(tmp_path / "bundle", dtype="serving")
    for path, leaf in tree.flatten(serving_dtypes.params).items():
        assert leaf.dtype == bundle.family.serving_dtype(path, bundle.config), path


def test_an_engine_serves_two_sessions_as_two_engines_would(trained):
    bundle, spec = trained.bundle, trained.policy.spec
    rng = np.random.default_rng(0)

    def request(slot: int, fresh: bool, frames: int) -> Request:
        views = tuple(rng.integers(0, 256, (frames, *c.size, 3), np.uint8) for c in bundle.inputs.cameras)
        state = rng.uniform(-1, 1, spec.state_dim).astype(np.float32)
        return Request(slot, views, TASK, fresh, state, spec.draw(rng))

    turns = [
        [request(0, True, 1), request(1, True, 3)],
        [request(0, False, 2)],
        [request(0, False, 1), request(1, False, 2)],
    ]
    together = Engine(bundle, slots=2, rows=2)
    replies = [(r.slot, reply) for turn in turns for r, reply in zip(turn, together.step(turn))]
    for slot in (0, 1):
        alone = Engine(bundle, slots=2, rows=2)
        expected = [alone.step([r])[0] for turn in turns for r in turn if r.slot == slot]
        for found, own in zip([reply for s, reply in replies if s == slot], expected, strict=True):
            assert_close(found.chunk, own.chunk)
            assert_close(found.end_probability, own.end_probability)
            assert found.info.keys() == own.info.keys()


def test_a_server_acts_as_a_session(trained):
    pytest.importorskip("aiohttp")
    bundle, frames = trained.bundle, seen(trained, 5, 3)
    session = Session(bundle, Options(2))
    session.reset(TASK, seed=1)
    for frame in frames:
        session.observe(frame)
    robot = bundle.inputs.robot
    with serving(lambda: Service(bundle, slots=2, rows=2)) as server, Client(address(server)) as policy:
        assert policy.metadata["policy"] == bundle.family.name
        assert policy.metadata["cameras"] == [camera.name for camera in bundle.inputs.cameras]
        assert policy.metadata["state"] == [len(robot.state.names)]
        policy.reset(TASK, seed=1, n_action_steps=2)
        for frame in frames:
            policy.observe(frame)
        actions = policy.act()
        assert actions.shape == (2, len(robot.action.names))
        assert_close(actions, session.act())
        with pytest.raises(ValueError, match=f"state must be {len(robot.state.names)} numbers, got 5"):
            policy.observe(frames[0] | {"state": np.zeros(5)})
        with pytest.raises(ValueError, match="trained on the camera"):
            policy.observe({"images": {"nowhere": frames[0]["images"].popitem()[1]}, "state": frames[0]["state"]})


def test_open_loop_replays_every_episode(trained, tmp_path):
    dataset = trained.prepared.job.data.datasets[0]
    words = ["eval", "openloop", dataset, "--bundle", str(trained.workdir / "bundle"), "--every", "4"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "openloop.json").read_text())
    assert result["frames"] == sum(episode.length for episode in LeRobotDataset(dataset).episodes)
    named = {joint["name"] for joint in result["joints"]}
    assert len(named) > 1
    assert named <= set(trained.bundle.inputs.robot.action.names)
    assert result["mae"] > 0


def test_a_run_stopped_at_any_row_ends_as_the_uninterrupted_one(trained, tmp_path):
    job, rows = trained.prepared.job, []

    def stop(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "run", stop)
    assert not (tmp_path / "run" / "bundle").exists()
    run(job, tmp_path / "run")
    mine, theirs = (load_bundle(folder / "bundle") for folder in (tmp_path / "run", trained.workdir))
    assert bytes_of(mine.params) == bytes_of(theirs.params)
    validations = [(folder / "validation.jsonl").read_text() for folder in (tmp_path / "run", trained.workdir)]
    assert json.loads(validations[0])["validation/score"] == json.loads(validations[1])["validation/score"] > 0


def test_converters_go_there_and_back(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_bundle(trained.bundle, tmp_path / "bundle")
    code, name = main(["convert", "bundle", "there.pt", "--to", "torch"]), trained.bundle.family.name
    if name not in formats():
        assert code == 1
        assert f"no checkpoints of PyTorch are known for '{name}'" in capsys.readouterr().err
        return
    assert code == 0
    assert main(["convert", "there.pt", "back", "--config", "bundle/config.json"]) == 0
    assert bytes_of(load_bundle("back").params) == bytes_of(trained.bundle.params)


def test_a_policy_starts_from_its_own_kind_alone(trained, tmp_path):
    other = next(name for name in POLICIES if name != trained.bundle.family.name)
    case = importlib.import_module(f"cases.{other}")
    job = case.job(case.write_dataset(tmp_path / "dataset"), SETTINGS)
    job = type(job)(**vars(job) | {"init_from": str(trained.workdir / "bundle")})
    with pytest.raises(UserError, match=f"holds a {trained.bundle.family.name}, and a {other} is trained"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def partly_stopped(loss):
    """Some of the loss comes with no gradient."""

    def mutated(self, params, *rest):
        extra = jax.lax.stop_gradient(sum(leaf.sum() for leaf in jax.tree.leaves(params["head"])))
        value, metrics, state = loss(self, params, *rest)
        return value + extra, metrics | {"loss": value + extra}, state

    return mutated


def mixed_lanes(observe):
    def mutated(*args):
        context, info, memory = observe(*args)
        return jax.tree.map(lambda leaf: leaf + 0.1 * leaf.mean(0), context), info, memory

    return mutated


# A promise of the contract -> whose policy breaks it, by another method.
BROKEN = {
    test_gradients_are_the_slope_of_the_loss_and_zero_where_promised: ("glance", "loss", partly_stopped),
    test_sessions_of_a_batch_do_not_touch_each_other: ("glance", "observe", mixed_lanes),
    test_an_emptied_memory_is_as_a_new_one: ("mem0", "reset", lambda _: lambda self, state, where: state),
    test_frames_may_be_remembered_without_being_looked_at: ("mem0", "remember", lambda _: lambda *args: args[2]),
}


@pytest.mark.parametrize("promise", BROKEN, ids=lambda promise: promise.__name__[5:])
def test_a_broken_promise_is_noticed(promise, trained, monkeypatch):
    name, method, change = BROKEN[promise]
    if trained.bundle.family.name == name:
        kind = type(trained.policy)
        monkeypatch.setattr(kind, method, change(getattr(kind, method)))
        with pytest.raises(AssertionError):
            promise(trained)


def test_a_run_that_begins_its_data_anew_is_noticed(trained, tmp_path, monkeypatch):
    if trained.bundle.family.name == "glance":
        monkeypatch.setattr(LaneLoader, "set_state", lambda self, state: None)
        with pytest.raises(AssertionError):
            test_a_run_stopped_at_any_row_ends_as_the_uninterrupted_one(trained, tmp_path)
