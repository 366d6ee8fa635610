"""Where every parameter lies: snapshots a topology, and strictness. Arithmetic only, no devices."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mem0_jax import tree
from mem0_jax.backbones.qwen3_vl.axes import logical_axes as backbone_axes
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.distributed.mesh import AXES, MeshError, lane_shards, make_mesh, parse_mesh
from mem0_jax.distributed.sharding import STANDARD, partition_specs, placement_table, placements, shardings
from mem0_jax.nn import module
from mem0_jax.policies.mem0 import Mem0, Mem0Config

SNAPSHOTS = Path(__file__).parent / "snapshots"
MESHES = ("fsdp=16", "fsdp=256", "data=4,fsdp=64", "fsdp=64,tensor=4", "fsdp=8", "data=2,fsdp=2,tensor=2")


@pytest.fixture(scope="module")
def full_size():
    policy = Mem0(Mem0Config())
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    return lambda mesh: placements(abstract, policy.logical_axes, STANDARD, parse_mesh(mesh))


@pytest.mark.parametrize("mesh", MESHES)
def test_snapshot(full_size, mesh):
    """A changed placement must be wanted: then replace the snapshot's text by what this test prints."""
    placed = full_size(mesh)
    lines = [
        f"{path} {list(leaf.shape)} P{tuple(leaf.spec)} {' '.join(leaf.undivided)}".strip()
        for path, leaf in placed.items()
    ]
    lines.append(f"{sum(leaf.bytes_per_device for leaf in placed.values())} bytes a device")
    name = mesh.replace("=", "").replace(",", "_")
    assert lines == (SNAPSHOTS / f"{name}.txt").read_text().splitlines(), "\n".join(lines)


@pytest.mark.parametrize("mesh", MESHES)
def test_large_leaves_are_split_by_all_devices(full_size, mesh):
    sizes = parse_mesh(mesh)
    split = sizes["fsdp"] * sizes["tensor"]
    placed = full_size(mesh)
    for path, leaf in placed.items():
        wanted = sizes["fsdp"] if "norm1" in path or "embed/" in path else split
        if leaf.bytes > 2**24:
            assert leaf.bytes_per_device * wanted <= leaf.bytes, path
    whole = sum(leaf.bytes for leaf in placed.values())
    assert sum(leaf.bytes_per_device for leaf in placed.values()) < 1.02 * whole / split + 2**26


def test_rules_cover_the_backbone_alone_tied_or_not():
    vision = VisionConfig(depth=2, deepstack_visual_indexes=(), hidden_size=64, num_position_embeddings=16,
                          intermediate_size=128, out_hidden_size=64, num_heads=4)  # fmt: skip
    for tied in (True, False):
        text = TextConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                          head_dim=16, mrope_section=(4, 2, 2), intermediate_size=96, vocab_size=32,
                          tie_word_embeddings=tied)  # fmt: skip
        config = Qwen3VLConfig(text, vision)
        abstract = jax.eval_shape(partial(module.init, partial(Qwen3VL, config)), jax.random.key(0))
        specs = partition_specs(abstract, backbone_axes(config), STANDARD, {"fsdp": 2, "tensor": 2})
        assert ("lm_head/kernel" in specs) is not tied
        assert specs["language_model/embed_tokens/embedding"] == P("tensor", "fsdp")
        if not tied:
            assert specs["lm_head/kernel"] == P("fsdp", "tensor")


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_everything_that_does_not_fit_is_listed():
    abstract = {"a": {"kernel": leaf(4, 4), "bias": leaf(4)}, "b": leaf(3)}
    with pytest.raises(tree.TreeError, match=r"(?s)a/bias.*\n  b\n.*small: 'c/.*'"):
        placements(abstract, [("embed mlp", "a/kernel"), ("small", "c/.*")], STANDARD, {})
    with pytest.raises(tree.TreeError, match=r"(?s)a/kernel: 2 dimensions \[4, 4\].*axis 'what'"):
        placements(abstract, [("small", "a/kernel"), ("what", ".*")], STANDARD, {})
    with pytest.raises(tree.TreeError, match="a/kernel: the axes embed embed ask for the mesh axis 'fsdp' more than"):
        placements(abstract, [("embed embed", "a/kernel"), ("small", ".*")], STANDARD, {})
    with pytest.raises(MeshError, match="column"):
        placements(abstract, [("small", ".*")], {"small": "column"}, {})


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))
def test_a_dimension_is_split_exactly_where_the_mesh_divides_it(rows, columns, fsdp, tensor):
    placed = placements(
        {"kernel": leaf(rows, columns)}, [("embed mlp", "kernel")], STANDARD, {"fsdp": fsdp, "tensor": tensor}
    )
    got = placed["kernel"]
    shard = (rows if rows % fsdp else rows // fsdp) * (columns if columns % tensor else columns // tensor)
    assert got.bytes_per_device == 4 * shard
    assert set(got.undivided) == {a for a, n, size in (("fsdp", rows, fsdp), ("tensor", columns, tensor)) if n % size}
    assert ("not divisible" in placement_table(placed)) == bool(got.undivided)


@pytest.mark.parametrize(
    ("text", "sizes"), [("", (1, 1, 1)), ("fsdp=16", (1, 16, 1)), (" tensor=2, data=3 ", (3, 1, 2))]
)
def test_mesh_is_read(text, sizes):
    assert tuple(parse_mesh(text).items()) == tuple(zip(AXES, sizes))
    assert lane_shards(parse_mesh(text)) == sizes[0] * sizes[1]


@pytest.mark.parametrize("text", ["model=2", "fsdp", "fsdp=", "fsdp=0", "fsdp=-1", "fsdp=1.5", "fsdp=2,fsdp=2", "=2"])
def test_mesh_that_cannot_be_read(text):
    with pytest.raises(MeshError, match="mesh"):
        parse_mesh(text)


def test_mesh_must_use_all_devices():
    with pytest.raises(MeshError, match=r"= 3 devices, but there are 1"):
        make_mesh({"fsdp": 3}, jax.devices()[:1])


def test_shardings_have_the_form_of_the_tree():
    abstract = {"a": {"kernel": leaf(4, 4)}, "b": leaf(3)}
    specs = partition_specs(abstract, [("embed mlp", "a/.*"), ("small", "b")], STANDARD, {})
    made = shardings(make_mesh({}, jax.devices()[:1]), specs)
    assert jax.tree.structure(made) == jax.tree.structure(abstract)
    assert jax.device_put(jnp.ones((4, 4)), made["a"]["kernel"]).sharding.spec == P()
