"""Normalisation, joint layouts: equal to what the reference computes in deployment."""

import json
import warnings

import numpy as np
import pytest
from episodes import ASSETS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mem0_jax.data.normalize import Normalizer, NormStats
from mem0_jax.data.robot import RMBENCH

env_to_model, model_to_env = RMBENCH.state.read, RMBENCH.action.give
finite = st.floats(-100, 100, width=32)


@pytest.fixture(scope="module")
def golden():
    with np.load(ASSETS / "deploy/golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def stats():
    return NormStats.load(ASSETS / "deploy/norm_stats.json")


def close(ours, reference):
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-6)


def test_layouts_equal_the_reference(golden):
    np.testing.assert_array_equal(env_to_model(golden["env14"]), golden["env14_model"])
    np.testing.assert_array_equal(env_to_model(golden["env14_padded16"]), golden["env14_model"])
    np.testing.assert_array_equal(env_to_model(golden["env16"]), golden["env16_model"])
    np.testing.assert_array_equal(model_to_env(golden["env16"], 16), golden["model16_env"])
    np.testing.assert_array_equal(model_to_env(golden["action_denormalized_model"], 16), golden["action_env16"])
    np.testing.assert_array_equal(model_to_env(golden["action_denormalized_model"], 14), golden["action_env14"])


@given(st.sampled_from([14, 16]), st.data())
def test_layouts_are_inverse(dim, data):
    vector = data.draw(hnp.arrays(np.float32, (3, dim), elements=finite))
    np.testing.assert_array_equal(model_to_env(env_to_model(vector), dim), vector)


def test_layouts_refuse_other_lengths():
    with pytest.raises(ValueError, match="15 numbers; expected 14"):
        env_to_model(np.zeros(15))
    with pytest.raises(ValueError, match=r"\[3, 14\]; expected \[\.\.\., 16\]"):
        model_to_env(np.zeros((3, 14)), 14)
    with pytest.raises(ValueError, match="12 numbers"):
        model_to_env(np.zeros(16), 12)


def test_min_max_equals_the_reference(golden, stats):
    normalizer = Normalizer(stats)
    for name in ("env14_model", "env16_model"):
        close(normalizer.state.normalize(golden[name]), golden[f"{name}_normalized"])
    close(normalizer.action.denormalize(golden["action_normalized"]), golden["action_denormalized_model"])


def test_mean_std_equals_the_reference(golden):
    both = {"mean": golden["mean"], "std": golden["std"]}
    normalizer = Normalizer(NormStats(both, both), "mean_std")
    close(normalizer.state.normalize(golden["env16"]), golden["meanstd_normalized"])
    close(normalizer.state.denormalize(golden["env16"]), golden["meanstd_denormalized"])


def test_quantile_equals_the_reference(golden, stats):
    quantiles = {"q01": stats.state["min"], "q99": stats.state["max"]}
    normalizer = Normalizer(NormStats(quantiles, quantiles), "quantile")
    close(normalizer.state.normalize(golden["env16"]), golden["quantile_normalized"])


def all_stats(rng, still=()):
    low, high = np.sort(rng.uniform(-3, 3, (2, 16)), axis=0)
    high += 0.1
    for d in still:
        high[d] = low[d]
    one = {"min": low, "max": high, "mean": (low + high) / 2, "std": high - low, "q01": low, "q99": high}
    return NormStats(one, one)


@given(st.integers(0, 10**6), st.sampled_from(["min_max", "mean_std", "quantile", "none"]))
def test_denormalize_inverts_normalize_inside_the_data_range(seed, mode):
    rng = np.random.default_rng(seed)
    stats = all_stats(rng, still=(6, 13))
    x = rng.uniform(stats.action["min"], stats.action["max"], (5, 16)).astype(np.float32)
    normalizer = Normalizer(stats, mode).action
    np.testing.assert_allclose(normalizer.denormalize(normalizer.normalize(x)), x, atol=1e-5)


@given(st.integers(0, 10**6))
def test_min_max_stays_in_bounds(seed):
    rng = np.random.default_rng(seed)
    stats = all_stats(rng, still=(6, 13))
    x = rng.normal(0, 10, (7, 16)).astype(np.float32)
    normalizer = Normalizer(stats).action
    y = normalizer.normalize(x)
    assert (np.abs(y[:, :14]) <= 1 + 1e-6).all()
    assert (y[:, [6, 13]] == 0).all()
    np.testing.assert_array_equal(y[:, 14:], x[:, 14:])
    z = normalizer.denormalize(x)[:, :14]
    low, high = (stats.action[k][:14].astype(np.float32) for k in ("min", "max"))
    assert ((low <= z) & (z <= high)).all()


def test_save_and_load_keep_every_number(tmp_path, real):
    stats = NormStats.from_dataset(real)
    state = real.column("observation.state").astype(np.float64)
    np.testing.assert_allclose(stats.state["q99"], np.quantile(state, 0.99, axis=0))
    np.testing.assert_array_equal(stats.state["max"], state.max(0))
    path = tmp_path / "norm_stats.json"
    stats.save(path)
    loaded = NormStats.load(path)
    for kind in ("state", "action"):
        for name in ("min", "max", "mean", "std", "q01", "q99"):
            np.testing.assert_array_equal(getattr(loaded, kind)[name], getattr(stats, kind)[name])
    data = json.loads(path.read_text())
    assert {"state_min", "action_max", "state_mean", "action_std", "observation.state", "action"} <= data.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["norm_stats.json"]


def write(tmp_path, **changes):
    data = json.loads((ASSETS / "deploy/norm_stats.json").read_text()) | changes
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_min": [0.0] * 14}, r"state_min has shape \[14\], expected \[16\]"),
        ({"action_max": [float("nan")] * 16}, "action_max has NaN"),
        ({"action_max": [-9.0] * 16}, r"action_max is below action_min for \['left_joint_0'"),
        ({"state_std": [-1.0] * 16}, "state_std is negative"),
        ({"state_min": ["a"] * 16}, "state_min is not a list of numbers"),
    ],
)
def test_bad_statistics_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"norm_stats\.json.*{message}"):
        NormStats.load(write(tmp_path, **changes))


def test_missing_statistics_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"'min_max' needs.*\['action_max'\]"):
        Normalizer(NormStats.load(write(tmp_path, action_max=None)))
    with pytest.raises(ValueError, match=r"'quantile' needs.*state_q01"):
        Normalizer(NormStats.load(write(tmp_path)), "quantile")
    with pytest.raises(ValueError, match="unknown; expected one of"):
        Normalizer(NormStats.load(write(tmp_path)), "zscore")
    (tmp_path / "other.json").write_text('{"mean": [1]}')
    with pytest.raises(ValueError, match=r"other\.json: no statistics found"):
        NormStats.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        NormStats.load(tmp_path / "none.json")


def test_bad_vectors_are_refused(stats):
    normalizer = Normalizer(stats)
    with pytest.raises(ValueError, match=r"state has shape \[14\]"):
        normalizer.state.normalize(np.zeros(14))
    x = np.zeros((3, 16))
    x[1, 8] = np.inf
    with pytest.raises(ValueError, match=r"action has NaN or infinite values in \['right_joint_1'\]"):
        normalizer.action.denormalize(x)


def test_tiny_spans_warn_with_joint_names(stats):
    narrow = dict(stats.state)
    narrow["max"] = narrow["max"].copy()
    narrow["max"][9] = narrow["min"][9] + 1e-5
    with pytest.warns(UserWarning, match=r"state: \['right_joint_2'\] span less than"):
        Normalizer(NormStats(narrow, stats.action))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normalizer(stats)  # joints 6 and 13 do not move at all, which is normal for 6-joint arms
