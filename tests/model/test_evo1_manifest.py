"""EVO1 at full size: every tensor of LeRobot's file and of the authors' has its place, and no parameter is without."""

import gzip
import json
import math
from pathlib import Path

import jax
import pytest

from mem0_jax.convert.models import dialects
from mem0_jax.convert.rules import PlanError, make_plan
from mem0_jax.distributed.sharding import STANDARD, placements
from mem0_jax.policies.evo1 import EVO1, EVO1Config

SHAPES = json.loads(gzip.decompress((Path(__file__).parent / "assets" / "evo1_shapes.json.gz").read_bytes()))
LAYOUTS = dict(zip(("lerobot", "authors"), (one for one in dialects() if one.name == "evo1")))


@pytest.fixture(scope="module")
def abstract():
    return jax.eval_shape(EVO1(EVO1Config()).init, jax.random.key(0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_has_its_place(layout, abstract):
    shapes = {name: tuple(shape) for name, shape in SHAPES[layout].items()}
    rules = LAYOUTS[layout].rules(EVO1Config())
    plan = make_plan(rules, shapes, abstract)
    assert len(plan.entries) == len(shapes) == {"lerobot": 728, "authors": 632}[layout]
    assert sum(map(math.prod, shapes.values())) == 776_139_440
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 776_139_440
    name = next(iter(shapes))
    with pytest.raises(PlanError, match="is missing"):
        make_plan(rules, {other: shape for other, shape in shapes.items() if other != name}, abstract)


def test_it_is_split_over_a_mesh(abstract):
    placed = placements(abstract, EVO1(EVO1Config()).logical_axes, STANDARD, {"fsdp": 8})
    whole, part = (sum(getattr(leaf, name) for leaf in placed.values()) for name in ("bytes", "bytes_per_device"))
    assert part < 1.02 * whole / 8
