"""Checkpoints: exact, strict, and never half or wrong."""

import gc
import json
import logging
import shutil
import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mem0_jax.train.checkpoint import CheckpointError, Checkpoints
from mem0_jax.train.optim import OptimizerState
from mem0_jax.train.state import TrainState

# The storage library leaves reads unawaited when one of them fails, and complains of it when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect_unawaited_reads():
    yield
    gc.collect()


def make_state(step, shape=(40, 30)):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
    moments = {"layer": {"kernel": kernel * 0.1}}
    return TrainState(
        step=jnp.int32(step),
        params={"layer": {"kernel": kernel, "half": kernel[0].astype(jnp.bfloat16)}},
        opt_state=OptimizerState(
            jnp.int32(step), jnp.int32(0), jnp.float32(np.inf), moments, {"layer": {"kernel": kernel**2}}
        ),
        carry={"window": (kernel[:2], jnp.array([True, False])), "count": jnp.arange(3)},
        seed=jnp.uint32(5),
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A run with checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step), {"data": {"next": step}, "config": {"a": [1.5]}})
    return tmp_path / "checkpoints"


def test_round_trip_is_exact_and_needs_shapes_only(folder):
    template = jax.eval_shape(lambda: make_state(2))
    with Checkpoints(folder, 2) as checkpoints:
        restored = checkpoints.restore(template)
    assert restored is not None
    assert_equal(restored.state, make_state(2))
    assert restored.extra == {"data": {"next": 2}, "config": {"a": [1.5]}}


def test_a_new_folder_holds_nothing(tmp_path):
    with Checkpoints(tmp_path / "new", 2) as checkpoints:
        assert checkpoints.restore(make_state(1)) is None


def test_keeps_the_newest_and_saving_a_step_twice_is_harmless(folder):
    with Checkpoints(folder, 2) as checkpoints:
        for step in (3, 3, 4):
            checkpoints.save(make_state(step), {})
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["3", "4"]


def test_saved_values_survive_donation_of_the_state(tmp_path):
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    state = make_state(1, (2000, 500))
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path / "c", 1) as checkpoints:
        checkpoints.save(state, {})
        for _ in range(5):
            state = double(state)
        jax.block_until_ready(state)
        checkpoints.wait()
        restored = checkpoints.restore(make_state(1, (2000, 500)))
    assert restored is not None
    assert_equal(restored.state, expected)


def test_what_is_saved_beside_the_state_may_change_afterwards(tmp_path):
    """As the log's lists do, while the checkpoint is written."""
    with Checkpoints(tmp_path / "c", 1) as checkpoints:
        for step in range(1, 6):
            values = list(range(step))
            checkpoints.save(make_state(step), {"log": {"values": values}})
            values.append(-1)
            checkpoints.wait()
            restored = checkpoints.restore(make_state(0))
            assert restored is not None
            assert restored.extra == {"log": {"values": list(range(step))}}
            assert int(restored.state.step) == step


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        for place in (len(data) // 3, len(data) // 2):
            data[place] ^= 0x10
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_damage_to_any_file_gives_the_right_state_or_the_one_before(folder, tmp_path, how, caplog):
    files = sorted(p.relative_to(folder) for p in (folder / "2").rglob("*") if p.is_file() and p.stat().st_size)
    fell_back = []
    for name in files:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy / "checkpoints")
        damage(copy / "checkpoints" / name, how)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mem0_jax"), Checkpoints(copy / "checkpoints", 2) as checkpoints:
            restored = checkpoints.restore(make_state(0))
        assert restored is not None, name
        step = int(restored.state.step)
        assert_equal(restored.state, make_state(step))
        assert restored.extra["data"] == {"next": step}
        if step == 1:
            fell_back.append(name)
            assert "checkpoint of step 2 is damaged" in caplog.text
            assert list(copy.glob("damaged_checkpoint_2_*"))
    # The array data and the description must be among them, or the test damaged nothing that matters.
    assert any(name.parts[1] == "meta" for name in fell_back)
    assert any("d" in name.parts for name in fell_back)


def test_a_changed_array_value_is_noticed_though_its_file_is_sound(folder):
    # A checkpoint whose arrays are readable but are not those described: the storage library itself sees nothing wrong.
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    with Checkpoints(folder, 2) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored is not None
    assert int(restored.state.step) == 1


def test_after_falling_back_the_same_step_can_be_saved_again(folder):
    damage(next((folder / "2" / "meta").glob("metadata")), "truncate")
    with Checkpoints(folder, 2) as checkpoints:
        checkpoints.restore(make_state(0))
        checkpoints.save(make_state(2), {"again": True})
    with Checkpoints(folder, 2) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored is not None
    assert restored.extra == {"again": True}


def test_unfinished_writes_are_ignored_and_removed(folder):
    unfinished = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", unfinished)
    with Checkpoints(folder, 2) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert restored is not None
        assert int(restored.state.step) == 2
        checkpoints.save(make_state(3), {})
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_reading_beside_a_run_that_is_under_way_changes_nothing(folder):
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    (folder / "2" / "meta" / "metadata").write_text("{")
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder, 1, read_only=True) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored is not None
    assert_equal(restored.state, make_state(1))
    assert sorted(folder.rglob("*")) == before
    assert not list(folder.parent.glob("damaged*"))


def test_when_all_are_damaged_the_error_says_why(folder):
    for step in ("1", "2"):
        shutil.rmtree(folder / step / "state")
    with (
        Checkpoints(folder, 2) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint can be read") as error,
    ):
        checkpoints.restore(make_state(0))
    assert "step 1:" in str(error.value)
    assert "step 2:" in str(error.value)


def test_another_model_is_refused_and_every_difference_listed(folder):
    state = make_state(0)
    params = {"layer": {"kernel": jnp.zeros((4, 5)), "half": jnp.zeros(30, jnp.float32), "new": jnp.zeros(2)}}
    other = replace(state, params=params, carry=())
    with Checkpoints(folder, 2) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(other)
    for expected in (
        "params/layer/kernel: float32[40, 30] saved, float32[4, 5] expected",
        "params/layer/half: bfloat16[30] saved, float32[30] expected",
        "params/layer/new: not in the checkpoint",
        "carry/count: in the checkpoint, unknown to this run",
        "carry/window/0: in the checkpoint",
    ):
        assert expected in str(error.value)
    assert (folder / "2").is_dir()  # a mismatch is no damage


def test_another_format_version_is_refused(folder):
    path = folder / "2" / "meta" / "metadata"
    content = json.loads(path.read_text())["content"] | {"format_version": 99}
    crc32 = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps({"crc32": crc32, "content": content}))
    with Checkpoints(folder, 2) as checkpoints, pytest.raises(CheckpointError, match="format 99"):
        checkpoints.restore(make_state(0))


def test_values_that_are_not_json_are_refused_at_once(folder):
    with Checkpoints(folder, 2) as checkpoints:
        with pytest.raises(TypeError, match="bytes"):
            checkpoints.save(make_state(3), {"data": b"raw"})
        restored = checkpoints.restore(make_state(0))
    assert restored is not None
    assert int(restored.state.step) == 2
