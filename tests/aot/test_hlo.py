"""Counting what a program sends, on text written by hand and on real programs."""

import math
import os
import re
import subprocess
import sys

import pytest

from mem0_jax.distributed.hlo import Collective, collectives

LOOP = """HloModule step

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%inner (q: f32[2]) -> f32[2] {
  ROOT %ar = f32[2]{0} all-reduce(%q), channel_id=3, replica_groups=[2,8]<=[16], to_apply=%add
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %gather = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %done = f32[8,4]{1,0} all-gather-done(%gather)
  %scatter = bf16[2,4]{1,0:T(8,128)(2,1)} reduce-scatter(%y), channel_id=2, replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
  ROOT %f = f32[2]{0} fusion(%z), kind=kLoop, calls=%inner
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body
  %again = f32[8,4]{1,0} all-to-all(%p), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  %again.2 = f32[8,4]{1,0} all-to-all(%p), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %move = f32[3]{0} collective-permute(%p), channel_id=4, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_loops_groups_and_channels_are_counted():
    assert collectives(LOOP) == {
        "all-gather": Collective(28, 28 * 8 * 4 * 4 * 3 / 4),
        "reduce-scatter": Collective(28, 28 * 2 * 4 * 2 * 4 * 3 / 4),
        "all-reduce": Collective(28, 28 * 2 * 2 * 4 * 7 / 8),
        "all-to-all": Collective(1, 8 * 4 * 4 * 3 / 4),
        "collective-permute": Collective(1, 12),
    }


def test_a_loop_without_a_constant_bound_counts_once():
    text = LOOP.replace("constant(28)", "get-tuple-element(%p), index=2")
    assert collectives(text)["all-gather"].count == 1


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("HloModule nothing")


def test_a_real_program():
    """Eleven turns of x <- psum over four devices of x @ w, on virtual devices."""
    code = """if True:
        import jax, jax.numpy as jnp
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        mesh = Mesh(np.array(jax.devices()), ("a",))
        split = lambda *axes: NamedSharding(mesh, P(*axes))
        def loop(x, w):
            turn = lambda x, _: (jax.lax.with_sharding_constraint(x @ w, split(None, "a")), None)
            return jax.lax.scan(turn, x, None, length=11)[0]
        x = jax.device_put(jnp.ones((16, 32)), split(None, "a"))
        w = jax.device_put(jnp.ones((32, 32)), split("a", None))
        print(jax.jit(loop).lower(x, w).compile().as_text())
    """
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    text = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=True
    ).stdout
    found = collectives(text)
    assert found
    assert all(kind.count % 11 == 0 for kind in found.values()), found
    whole = 16 * 32 * 4 * 3 / 4
    assert math.isclose(sum(kind.sent for kind in found.values()), 11 * whole * (2 if "all-reduce" in found else 1)), (
        found,
        re.findall(r".*all-reduce.*", text),
    )
