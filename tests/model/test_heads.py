"""The heads: flow matching and its laws, the DiT's shared condition, dropout, the classifier's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.heads import flow
from mem0_jax.heads.classifier import ClassifierConfig, SubtaskEndClassifier, counts, focal_loss
from mem0_jax.heads.dit import DiTConfig, DiTHead, repeat_condition
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.nn import module
from mem0_jax.nn.layers import dropout

CONFIG = DiTConfig(
    width=12, num_heads=3, num_layers=4, context_width=10, hidden_size=8, output_dim=14, action_dim=5, state_dim=4,
    horizon=6, max_positions=9, dropout=0.3,
)  # fmt: skip
CLASSIFIER = ClassifierConfig(hidden_sizes=(12, 8, 8), dropout=0.3)


def randomised(build, seed=0):
    """A module with every parameter random: biases of zero would hide mistakes."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(lambda key: module.init(build, key), jax.random.key(0))
    return module.bind(build)(jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), abstract))


@pytest.fixture(scope="module")
def head() -> DiTHead:
    return randomised(lambda rngs: DiTHead(CONFIG, rngs))


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@settings(max_examples=20)
@given(steps=st.sampled_from([1, 4, 8, 10]), rate=st.floats(-2, 2), buckets=st.sampled_from([100, 1000]))
def test_solver_takes_euler_steps_at_the_bucketed_times(steps, rate, buckets):
    noise = normal(2, 3, 4)

    def velocity(x, timestep):  # grows with time, so that its place in the schedule counts
        return rate * x + timestep / buckets

    actions = flow.solve(velocity, jnp.asarray(noise), FlowConfig(solver_steps=steps, buckets=buckets))
    expected = noise.astype(np.float64)
    for i in range(steps):
        expected = expected + (rate * expected + (i * buckets // steps) / buckets) / steps
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


def test_solver_shows_the_network_the_released_timesteps():
    with jax.disable_jit():
        seen = []
        flow.solve(lambda x, timestep: seen.append(int(timestep)) or x, jnp.zeros((1, 2, 3)), FlowConfig())
    assert seen == [0, 125, 250, 375, 500, 625, 750, 875]


def test_time_law_is_the_reversed_beta():
    """t = (s - b) / s with b from Beta(1.5, 1), whose distribution function is b^1.5."""
    config, count = FlowConfig(), 200_000
    time = np.asarray(flow.sample_time(jax.random.key(3), count, config), np.float64)
    assert time.shape == (count,)
    assert (1 - 1 / 0.999) - 1e-6 <= time.min() < 0.01
    assert 0.99 < time.max() <= 1
    b = 0.999 * (1 - time)
    deviation = 4 / np.sqrt(count)
    assert abs(b.mean() - 0.6) < deviation * b.std()
    assert abs(b.var() - 1.5 / (2.5**2 * 3.5)) < deviation * 0.1
    for at in (0.1, 0.3, 0.5, 0.8, 0.95):
        assert abs((b < at).mean() - at**1.5) < deviation


@given(st.lists(st.floats(-0.25, 1.0, width=32, allow_subnormal=False), min_size=8, max_size=8))
def test_buckets_truncate_towards_zero(times):
    scaled = np.array(times, np.float32) * np.float32(1000)
    bucket = flow.bucket(jnp.array(times, jnp.float32), FlowConfig())
    assert bucket.dtype == jnp.int32
    assert bucket.tolist() == [int(value) for value in scaled]


def test_bucket_of_the_least_time_is_zero():
    assert flow.bucket(jnp.array([-0.00099, 0.0019, 0.9999]), FlowConfig()).tolist() == [0, 1, 999]


def test_interpolation_ends_at_noise_and_actions():
    noise, actions = normal(3, 6, 5, seed=1), normal(3, 6, 5, seed=2)
    point, velocity = flow.interpolate(jnp.asarray(noise), jnp.asarray(actions), jnp.array([0.0, 1.0, 0.25]))
    expected = [noise[0], actions[1], 0.75 * noise[2] + 0.25 * actions[2]]
    np.testing.assert_allclose(point, np.stack(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(velocity, actions - noise, rtol=1e-6)


def test_repeated_condition_equals_repeated_samples(head):
    samples, draws = 3, 4
    context, state = normal(samples, 3, 10), normal(samples, 4)
    actions = normal(samples * draws, 6, 5)
    timestep = jnp.arange(samples * draws) * 80
    reused = head.velocity(repeat_condition(head.condition(context, state), draws), actions, timestep)
    direct = head.condition(np.tile(context, (draws, 1, 1)), np.tile(state, (draws, 1)))
    np.testing.assert_allclose(reused, head.velocity(direct, actions, timestep), rtol=1e-5, atol=1e-5)
    for row in (0, 4, 11):  # row r * samples + i belongs to sample i, and to nothing else
        i = row % samples
        alone = head.condition(context[i : i + 1], state[i : i + 1])
        one = head.velocity(alone, actions[row : row + 1], timestep[row : row + 1])
        np.testing.assert_allclose(reused[row], one[0], rtol=1e-5, atol=1e-5)


def test_velocity_depends_on_every_input(head):
    given = [normal(1, 3, 10), normal(1, 4), normal(1, 6, 5), np.array([300.0], np.float32)]

    def velocity(context, state, actions, timestep):
        return head.velocity(head.condition(context, state), actions, timestep)

    jacobians = jax.jacobian(velocity, argnums=(0, 1, 2, 3))(*map(jnp.asarray, given))
    for which, jacobian in enumerate(jacobians):
        per_input = np.abs(np.asarray(jacobian)).reshape(30, -1).max(0)
        assert per_input.min() > 1e-5, which


def test_a_shorter_chunk_is_denoised_too(head):
    condition = head.condition(normal(2, 3, 10), normal(2, 4))
    assert head.velocity(condition, normal(2, 2, 5), jnp.array([1, 2])).shape == (2, 2, 5)


def test_dropout_of_the_head_needs_a_key(head):
    condition, actions, timestep = head.condition(normal(2, 3, 10), normal(2, 4)), normal(2, 6, 5), jnp.array([7, 600])
    plain, again = (head.velocity(condition, actions, timestep) for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    first, same, other = (head.velocity(condition, actions, timestep, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    for one, two in ((first, other), (first, plain)):
        assert np.abs(np.asarray(one) - two).max() > 1e-3


def test_dropout_of_the_classifier_needs_a_key():
    classifier, x = randomised(lambda rngs: SubtaskEndClassifier(CLASSIFIER, rngs)), normal(4, 12)
    plain = classifier(x)
    assert plain.shape == (4,)
    np.testing.assert_array_equal(plain, classifier(x))
    assert np.abs(np.asarray(plain) - classifier(x, jax.random.key(0))).max() > 1e-3


@settings(max_examples=20)
@given(rate=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
def test_dropout_keeps_the_mean(rate, seed):
    size = 40_000
    dropped = np.asarray(dropout(jnp.ones(size), rate, jax.random.key(seed)))
    kept = dropped[dropped > 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-5)
    assert abs(len(kept) / size - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / size)


def plain_focal_loss(logits, labels, pos_weight, gamma):
    total = 0.0
    for logit, label in zip(logits.astype(np.float64), labels):
        p = 1 / (1 + np.exp(-logit))
        entropy = -pos_weight * np.log(p) if label else -np.log1p(-p)
        total += entropy * (1 - (p if label else 1 - p)) ** gamma
    return total / len(logits)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(st.floats(-12, 12, width=32), st.booleans()), min_size=1, max_size=6),
    pos_weight=st.sampled_from([1.0, 10.0, 0.3]),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_classifier_loss_equals_the_formula(rows, pos_weight, gamma):
    logits, labels = np.array([x for x, _ in rows], np.float32), np.array([y for _, y in rows])
    config = ClassifierConfig(pos_weight=pos_weight, focal_gamma=gamma)
    loss = focal_loss(jnp.asarray(logits), jnp.asarray(labels, jnp.float32), config)
    # 1 - p_t is a difference of numbers near 1: float32 leaves it 1e-7 of absolute error.
    np.testing.assert_allclose(loss, plain_focal_loss(logits, labels, pos_weight, gamma), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_classifier_loss_stays_finite_far_out(gamma):
    logits, labels = jnp.array([-90.0, 90.0, -90.0, 90.0]), jnp.array([1.0, 0.0, 0.0, 1.0])
    config = ClassifierConfig(focal_gamma=gamma)
    loss, gradient = jax.value_and_grad(lambda x: focal_loss(x, labels, config))(logits)
    assert float(loss) == pytest.approx((10 * 90 + 90) / 4, rel=1e-5)
    np.testing.assert_allclose(gradient, [-2.5, 0.25, 0, 0], atol=1e-5)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=20))
def test_confusion_counts(rows):
    logits, labels = np.array([x for x, _ in rows], np.float32), np.array([y for _, y in rows])
    found = counts(jnp.asarray(logits), jnp.asarray(labels, jnp.float32), 0.5)
    predicted = logits >= 0  # sigmoid(0) = 0.5 counts as positive
    assert {name: int(value) for name, value in found.items()} == {
        "cls_tp": sum(predicted & labels),
        "cls_fp": sum(predicted & ~labels),
        "cls_fn": sum(~predicted & labels),
        "cls_correct": sum(predicted == labels),
        "cls_total": len(rows),
        "cls_positive": sum(labels),
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_layers": 3}, "num_layers must be even"),
        ({"num_heads": 7}, "multiple of num_heads 7"),
        ({"horizon": 2000}, "exceeds max_positions 1024"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**wrong)


def test_a_modulation_stands_for_its_timestep(head):
    """Made once for all samples, as the solver does, or for each."""
    condition, actions = head.condition(normal(2, 3, 10), normal(2, 4)), normal(2, 6, 5)
    for timestep in (jnp.array([375]), jnp.array([0, 875])):
        direct = head.velocity(condition, actions, jnp.broadcast_to(timestep, 2))
        np.testing.assert_allclose(
            head.velocity(condition, actions, head.modulation(timestep)), direct, rtol=1e-5, atol=1e-5
        )
    wrong = head.velocity(condition, actions, head.modulation(jnp.array([500])))
    assert np.abs(wrong - direct).max() > 1e-3
