"""A reference run that goes on here: its moments land where they belong, and the next updates are torch's."""

import zlib
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mem0_jax.convert.format import Settings
from mem0_jax.convert.importer import Request, convert, prepare
from mem0_jax.convert.models.mem0 import FORMAT, rules
from mem0_jax.convert.optimizer import read_training
from mem0_jax.convert.rules import ConversionError, export, load, make_plan
from mem0_jax.convert.settings import read_settings
from mem0_jax.convert.sources import open_source
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.policies.base import Policy
from mem0_jax.policies.bundle import BundleError, load_bundle
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.from_bundle import load_optimizer
from mem0_jax.train.loop import Extras, fit
from mem0_jax.train.optim import learning_rates
from mem0_jax.tree import flatten

ASSETS = Path(__file__).parent / "assets"
GOLDEN = ASSETS.parents[1] / "model" / "assets" / "tiny_a"
CONFIG = GOLDEN / "config.json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "step3"
    convert(prepare(open_source(GOLDEN / "step3.pt"), Request(CONFIG, with_optimizer=True)), out)
    return out


def test_moments_step_and_settings(bundle):
    step, config, state = load_optimizer(bundle)
    assert step == int(state.count) == 3
    assert config.total_steps == 40
    assert config.learning_rates["action"] == 1e-4
    source = open_source(GOLDEN / "step3.pt")
    saved = source.checkpoint["optimizer_state_dict"]["state"]
    # The first parameter of torch's first group, and the last of its last.
    first = saved[0]["exp_avg"].read().reshape(48, -1).T
    np.testing.assert_array_equal(flatten(state.mu)["backbone/visual/patch_embed/kernel"], first)
    assert len(jax.tree.leaves(state.mu)) == len(flatten(load_bundle(bundle).params)) - 1  # the final norm has none


class GivenGradients:
    """Mem-0 whose loss has the gradients [2, ...] of the parameter tree, of the step that a batch names."""

    def __init__(self, config: Mem0Config, gradients: Any):
        policy = Mem0(config)
        self.init, self.no_gradient = policy.init, policy.no_gradient
        self.learning_rate_groups, self.logical_axes = policy.learning_rate_groups, policy.logical_axes
        self._gradients = gradients

    def init_state(self, lanes: int) -> Any:
        return ()

    def loss(self, params, state, batch, rng, train):
        products = jax.tree.map(lambda p, g: jnp.vdot(p, g[batch["step"][0, 0]]), params, self._gradients)
        return sum(jax.tree.leaves(products)), {}, state

    def act(self, params, state, observation, rng):
        raise NotImplementedError


class TwoSteps:
    """A loader of the numbers 0 and 1."""

    def __init__(self):
        self.step = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.step += 1
        return {"step": np.array([[self.step - 1]])}

    def get_state(self) -> int:
        return self.step

    def set_state(self, state: int) -> None:
        self.step = state


def test_a_run_goes_on_with_torch_s_updates(bundle, tmp_path):
    expected = np.load(ASSETS / "next_step.npz")
    loaded, optimizer = load_bundle(bundle), load_optimizer(bundle)[1]
    source = open_source(GOLDEN / "step3.pt")
    plan = make_plan(rules(loaded.config), source.shapes, loaded.params)
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *(load(plan, gradients_of_torch(source, s)) for s in (3, 4)))
    policy = cast(Policy, GivenGradients(loaded.config, gradients))
    extras = Extras(initial=lambda key: load_bundle(bundle).params, optimizer=partial(load_optimizer, bundle))
    result = fit(
        policy, TwoSteps, TrainConfig(steps=5, lanes=1, log_every=1, **vars(optimizer)), tmp_path, extras=extras
    )
    assert [row["step"] for row in result.rows] == [4, 5]
    rates = [learning_rates(optimizer, count)["action"] for count in (3, 4)]
    assert [row["learning_rate/action"] for row in result.rows] == rates
    after = export(plan, result.state.params)
    assert set(after) == set(expected.files)
    for name, value in after.items():
        (norm, total, *values), (norm_t, total_t, *values_t) = summary(value), expected[name]
        assert abs(norm - norm_t) <= 1e-6 * norm_t, name
        assert abs(total - total_t) <= 1e-6 * norm_t * np.sqrt(value.size), name
        np.testing.assert_allclose(values, values_t, rtol=1e-6, atol=1e-8, err_msg=name)


def gradients_of_torch(source, step: int) -> dict[str, np.ndarray]:
    """As make_next_step.py draws them."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), step]))
        return (0.01 * rng.standard_normal(shape)).astype(np.float32)

    gradients = {name: draw(name, tuple(tensor.shape)) for name, tensor in source.tensors.items()}
    gradients["classifier.pos_weight"] = np.array(10, np.float32)  # not parameters: only checked
    gradients["qwen_model.model.lm_head.weight"] = gradients[
        "qwen_model.model.model.language_model.embed_tokens.weight"
    ]
    return gradients


def summary(value: np.ndarray) -> np.ndarray:
    flat = value.astype(np.float64).ravel()
    return np.array([np.linalg.norm(flat), flat.sum(), *flat[np.linspace(0, flat.size - 1, 16).astype(int)]])


def test_without_the_runs_settings_the_learning_rates_contradict():
    source = open_source(GOLDEN / "step3.pt")
    job = prepare(source, Request(CONFIG))
    values = read_settings(CONFIG, FORMAT).values
    assert isinstance(job.config, Mem0Config)
    with pytest.raises(ConversionError, match="by a cosine schedule of 50000 steps: give the run's own settings"):
        read_training(source, job.config, rules(job.config), job.plan, Settings(values))
    for wrong in ({"total_steps": float("inf")}, {"train_steps": "many"}, {"min_lr": [1e-6]}, {"warmup_ratio": 2}):
        with pytest.raises(ConversionError, match=r"cannot go on with the run's settings in c\.json \(\w+: "):
            read_training(source, job.config, rules(job.config), job.plan, Settings(values, "c.json", training=wrong))


def test_a_checkpoint_without_optimizer_is_refused(tmp_path):
    tensors = open_source(GOLDEN / "initial.pt").tensors
    write_pt(tmp_path / "slim.pt", {"model_state_dict": dict(tensors), "global_step": 7})
    with pytest.raises(ConversionError, match=r"no optimizer state .* leave out --with-optimizer"):
        prepare(open_source(tmp_path / "slim.pt"), Request(CONFIG, with_optimizer=True))
    convert(prepare(open_source(tmp_path / "slim.pt"), Request(CONFIG)), tmp_path / "bundle")
    with pytest.raises(BundleError, match="holds no optimizer: convert the checkpoint with --with-optimizer"):
        load_optimizer(tmp_path / "bundle")
