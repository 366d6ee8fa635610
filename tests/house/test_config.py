"""Dataclasses to JSON and back: equal after the round trip, and everything wrong is listed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.backbones.qwen3_vl.config import TextConfig, TokenIds, VisionConfig
from mem0_jax.config import ConfigError, check_ranges, decided, deciding, from_dict, to_dict
from mem0_jax.errors import UserError
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.mem0 import Mem0Config


@dataclass(frozen=True)
class Bank:
    window: int = 30
    rate: float = 0.5
    reset: Literal["episode", "subtask"] = "episode"

    def __post_init__(self):
        if self.window == 13:
            raise ValueError("window must not be 13")


@dataclass(frozen=True)
class Policy:
    name: str
    bank: Bank
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] = (0.0, "")
    banks: tuple[Bank, ...] = ()
    note: str | None = None
    second: Bank | None = None
    fast: bool = False
    derived: int = field(default=3, init=False)


finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
banks = st.builds(Bank, st.integers().filter(lambda n: n != 13), finite, st.sampled_from(["episode", "subtask"]))
policies = st.builds(
    Policy,
    name=words,
    bank=banks,
    sizes=st.lists(st.integers(), max_size=4).map(tuple),
    pair=st.tuples(finite, words),
    banks=st.lists(banks, max_size=3).map(tuple),
    note=st.none() | words,
    second=st.none() | banks,
    fast=st.booleans(),
)


@given(policies)
def test_round_trip_through_json(policy):
    text = json.dumps(to_dict(policy), allow_nan=False)
    back = from_dict(Policy, json.loads(text))
    assert back == policy
    assert json.dumps(to_dict(back)) == text


def test_defaults_and_whole_numbers():
    assert from_dict(Policy, {"name": "a", "bank": {}}) == Policy("a", Bank())
    rate = from_dict(Bank, {"rate": 1}).rate
    assert rate == 1.0
    assert type(rate) is float


def test_all_problems_are_listed_by_path():
    data = {
        "nane": "a",
        "bank": {"window": "30", "reset": "never", "extra": 1},
        "sizes": [1, 2.5, True],
        "pair": [1.0],
        "banks": [{}, {"rate": "fast"}],
        "second": 3,
        "fast": 1,
        "note": 7,
    }
    with pytest.raises(ConfigError) as caught:
        from_dict(Policy, data)
    assert str(caught.value).split("; ") == [
        "Policy.nane: unknown field, did you mean 'name'?",
        "Policy.name: missing",
        "Policy.bank.extra: unknown field, known fields: window, rate, reset",
        "Policy.bank.window: expected int, got '30' (str)",
        "Policy.bank.reset: expected one of 'episode', 'subtask', got 'never'",
        "Policy.sizes[1]: expected int, got 2.5 (float)",
        "Policy.sizes[2]: expected int, got True (bool)",
        "Policy.pair: expected 2 values, got 1",
        "Policy.banks[1].rate: expected float, got 'fast' (str)",
        "Policy.second: expected a dict of fields, got 3 (int)",
        "Policy.fast: expected bool, got 1 (int)",
        "Policy.note: expected str, got 7 (int)",
    ]


def test_the_class_has_the_last_word():
    with pytest.raises(ConfigError, match=r"Policy\.bank: window must not be 13"):
        from_dict(Policy, {"name": "a", "bank": {"window": 13}})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks(value):
    with pytest.raises(ConfigError, match=r"Bank\.rate: expected a finite number"):
        from_dict(Bank, {"rate": value})
    with pytest.raises(ConfigError, match=r"Bank\.rate: .* has no JSON form"):
        to_dict(Bank(rate=value))


def test_arrays_are_no_configuration():
    with pytest.raises(ConfigError, match=r"Policy\.sizes: array.* no JSON form"):
        to_dict(Policy("a", Bank(), sizes=np.arange(3)))  # pyright: ignore[reportArgumentType]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | finite | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    )
)
def test_any_json_is_a_policy_or_the_one_error(data):
    try:
        from_dict(Policy, data)
    except ConfigError:
        return
    raise AssertionError("a name and a bank are required")


@pytest.mark.parametrize(
    ("interval", "inside"), [("[1, 2]", "110"), ("(1, 2]", "010"), ("[1, 2)", "100"), ("(1, 2)", "000")]
)
def test_intervals_as_mathematics_writes_them(interval, inside):
    for value, good in zip((1, 2, float("nan")), inside):
        bank = Bank(rate=value)
        if good == "1":
            check_ranges(bank, rate=interval)
        else:
            with pytest.raises(ValueError, match="rate: expected a number in "):
                check_ranges(bank, rate=interval)
    check_ranges(Bank(rate=1.5), rate=interval)
    with pytest.raises(ValueError, match=r"window: expected a number in \[0, 9\], got 30; rate: .* got 0\.5"):
        check_ranges(Bank(), window="[0, 9]", rate=interval)


SENSELESS = [
    *((TextConfig, {"rope_theta": value}) for value in (-1.0, -5.0, 0.0, 1.0, 1e40, float("nan"))),
    *((TextConfig, {name: 0}) for name in ("num_key_value_heads", "num_attention_heads", "vocab_size", "head_dim")),
    (TextConfig, {"mrope_section": (66, -1, -1)}),
    *((TextConfig, {"rms_norm_eps": value}) for value in (0.0, -1e-6, 1.0)),
    *((VisionConfig, {"num_heads": value}) for value in (0, -1, 5, 512)),
    *((VisionConfig, {name: 0}) for name in ("depth", "patch_size", "temporal_patch_size", "spatial_merge_size")),
    *((VisionConfig, {"deepstack_visual_indexes": taps}) for taps in ((1, 1, 2), (3, 2, 1), (-1, 2))),
    *((TokenIds, {"image": value}) for value in (-1, 2**31, TokenIds().video, TokenIds().pad)),
    *((MemoryConfig, {"window_size": value}) for value in (0, -1, 10**9)),
    *((MemoryConfig, {name: -1}) for name in ("memory_accumulation", "num_heads", "dropout")),
    (MemoryConfig, {"num_heads": 0}),
    *((FlowConfig, {name: value}) for name in ("draws", "solver_steps", "buckets") for value in (0, -1, 10**12)),
    *((FlowConfig, {"time_scale": value}) for value in (0.0, -0.9, 2.0)),
    *((FlowConfig, {"time_beta": value}) for value in ((-1.0, 1.0), (1.5, 0.0))),
    *((DiTConfig, {name: 0}) for name in ("num_heads", "num_layers", "horizon", "width", "action_dim", "state_dim")),
    *((DiTConfig, {"dropout": value}) for value in (-0.1, 1.0, 2.0)),
    *((ClassifierConfig, {"threshold": value}) for value in (-0.5, 7.0)),
    *((ClassifierConfig, {name: -1.0}) for name in ("pos_weight", "focal_gamma", "dropout")),
    *((ClassifierConfig, {"hidden_sizes": sizes}) for sizes in ((), (6144, 0))),
    *((Mem0Config, {name: -1.0}) for name in ("lambda_action", "lambda_classifier")),
    (Mem0Config, {"image_size": (0, 256)}),
    (MemoryConfig, {"window_size": "6"}),
    (VisionConfig, {"num_heads": None}),
]


@pytest.mark.parametrize(("cls", "values"), SENSELESS)
def test_senseless_values_of_a_policy_are_refused_by_name(cls, values):
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=name) as caught:
        cls(**values)
    assert str(value[-1] if isinstance(value, tuple) and value else value)[:4] in str(caught.value) or value == ()


@dataclass(frozen=True)
class Disc:
    radius: float = 1.0


@dataclass(frozen=True)
class Box:
    sides: tuple[float, ...] = (1.0,)


def shape_class(kind: str) -> type:
    if kind not in ("disc", "box"):
        raise UserError(f"there is no shape {kind!r}")
    return {"disc": Disc, "box": Box}[kind]


@dataclass(frozen=True)
class Paint:
    color: str = "red"
    thickness: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    kind: str = deciding("disc", {"shape": shape_class}, ("paint.thickness",))
    shape: Any = None
    paint: Paint = Paint()

    def __post_init__(self):
        if self.shape is None:
            object.__setattr__(self, "shape", shape_class(self.kind)())


def test_a_field_decides_of_which_class_another_is():
    for drawing in (Drawing(), Drawing("box", Box((2.0, 3.0)), Paint("blue", {"rim": 0.5}))):
        assert from_dict(Drawing, json.loads(json.dumps(to_dict(drawing)))) == drawing
    assert from_dict(Drawing, {"shape": {"radius": 2}}) == Drawing(shape=Disc(2.0))
    with pytest.raises(ConfigError, match=r"Drawing.shape.radius: unknown field"):
        from_dict(Drawing, {"kind": "box", "shape": {"radius": 2}})
    with pytest.raises(ConfigError, match=r"^Drawing.kind: there is no shape 'bow'$"):
        from_dict(Drawing, {"kind": "bow", "shape": {"radius": 2}})
    with pytest.raises(ConfigError, match=r"Drawing.kind: expected str"):
        from_dict(Drawing, {"kind": 3, "shape": 4})
    with pytest.raises(ConfigError, match=r"thickness.rim: expected float, got 'thin'"):
        from_dict(Drawing, {"paint": {"thickness": {"rim": "thin"}}})


def test_another_choice_takes_its_own_defaults_where_they_depend_on_it():
    before = to_dict(Drawing(shape=Disc(5.0), paint=Paint("blue", {"rim": 0.5})))
    assert from_dict(Drawing, decided(Drawing, before, "kind", "box")) == Drawing("box", Box(), Paint("blue"))
    assert before == to_dict(Drawing(shape=Disc(5.0), paint=Paint("blue", {"rim": 0.5})))
