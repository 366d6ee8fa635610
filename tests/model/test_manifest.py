"""The released configuration against the 910 tensors of the released checkpoint, and conversion there and back."""

import gzip
import json
from collections import Counter
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest

from mem0_jax.convert.models.mem0 import rules
from mem0_jax.convert.rules import Constant, ConversionError, Tied, export, load, make_plan
from mem0_jax.convert.torch_pt import read_pt
from mem0_jax.golden.stream import Golden
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.tree import flatten

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    return {
        k: tuple(v) for k, v in json.loads(gzip.decompress((ASSETS / "m1_mix_shapes.json.gz").read_bytes())).items()
    }


@pytest.fixture(scope="module")
def released():
    return jax.eval_shape(Mem0(Mem0Config()).init, jax.random.key(0))


def test_every_released_tensor_has_its_leaf(shapes, released):
    plan = make_plan(rules(Mem0Config()), shapes, released)
    assert len(shapes) == 910
    assert len(plan.entries) + len(plan.checks) == 910
    assert {type(check) for check in plan.checks} == {Tied, Constant}


def test_element_counts_by_module(shapes, released):
    theirs = Counter()
    for key, shape in shapes.items():
        theirs[key.split(".")[0]] += prod(shape)
    assert sum(theirs.values()) == 2_669_204_498
    ours = Counter()
    for path, leaf in flatten(released).items():
        ours[path.split("/")[0]] += leaf.size
    assert ours["backbone"] == theirs["qwen_model"] - 151_936 * 2048  # the tied language-model head
    assert ours["memory"] == theirs["memory_bank"]
    assert ours["action"] == theirs["action_model"]
    assert ours["classifier"] == theirs["classifier"] - 1  # pos_weight is a setting


def test_everything_that_does_not_fit_is_listed_at_once(shapes, released):
    wrong = dict(shapes)
    gone = "memory_bank.norm1.weight"
    del wrong[gone]
    wrong["memory_bank.extra.weight"] = (3,)
    wrong["classifier.head.weight"] = (1, 511)
    wrong["qwen_model.model.model.visual.blocks.0.attn.qkv.weight"] = (3073, 1024)
    with pytest.raises(ConversionError) as error:
        make_plan(rules(Mem0Config()), wrong, released)
    for name in (gone, "memory_bank.extra.weight", "classifier.head.weight", "attn.qkv.weight"):
        assert name in str(error.value)


@pytest.fixture(scope="module")
def small():
    golden = Golden(ASSETS / "tiny_a")
    return golden, read_pt(ASSETS / "tiny_a" / "initial.pt")["model_state_dict"]


def test_there_and_back_is_byte_equal(small):
    golden, state = small
    back = export(golden.plan, load(golden.plan, state))
    assert len(back) == len(state) - 2
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_a_head_that_is_not_tied_is_refused(small):
    golden, state = small
    changed = dict(state) | {"qwen_model.model.lm_head.weight": state["qwen_model.model.lm_head.weight"] + 1}
    with pytest.raises(ConversionError, match=r"lm_head\.weight must equal"):
        load(golden.plan, changed)


def test_a_setting_that_differs_is_refused(small):
    golden, state = small
    with pytest.raises(ConversionError, match="pos_weight must equal the setting 10"):
        load(golden.plan, dict(state) | {"classifier.pos_weight": np.array(3, np.float32)})
