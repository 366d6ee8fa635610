"""EVO1 equals both references that it was ported from, and the gates that say so notice deliberate mistakes."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mem0_jax.backbones.internvl3 import model, processor, vision
from mem0_jax.cli import main
from mem0_jax.errors import UserError
from mem0_jax.golden import numbers_in
from mem0_jax.golden.models.evo1 import Golden, processors, sampling, stages, training
from mem0_jax.heads import cross_attention
from mem0_jax.nn import layers
from mem0_jax.policies.evo1.family import FAMILY
from mem0_jax.policies.evo1.policy import EVO1
from mem0_jax.reference import Report
from mem0_jax.resize import resize

EVO1_A = Path(__file__).parent / "assets" / "evo1_a"


@pytest.fixture(scope="module")
def evo1() -> Golden:
    return Golden(EVO1_A)


def test_golden_passes_on_the_command_line(tmp_path, capsys):
    assert main(["golden", str(EVO1_A), "--json", str(tmp_path / "golden.json")]) == 0
    checks = {check["quantity"]: check for check in json.loads((tmp_path / "golden.json").read_text())["checks"]}
    for quantity, gate in (
        ("backbone: fused_tokens", 1e-5),
        ("head: velocity", 2e-5),
        ("sampling: chunk", 2e-5),
        ("mixed: chunk", 2e-5),
        ("other heads: chunk", 2e-5),
        ("authors' fa2: chunk", 2e-5),
        ("authors: gradients", 2e-5),
        ("training: parameters", 5e-5),
    ):
        assert 0 < checks[quantity]["error"] <= checks[quantity]["gate"] == gate  # really computed, not copied
    assert "FAIL" not in capsys.readouterr().out


def looked_at(golden: Golden, *parts) -> set[str]:
    """What is past its gate, op by op: nothing is compiled anew."""
    report = Report()
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        for part in parts:
            part(golden, report)
    return {check.name for check in report.checks.values() if not check.passed}


def test_op_by_op_all_passes(evo1):
    assert looked_at(evo1, processors, stages, sampling) == set()


def attribute(owner, name, change):
    """Replaces `owner.name` by `change(owner.name)`."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def without_norm(call):
    def mutated(self, x, arrays, **how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(self.norm), "__call__", lambda norm, x: x)
            return call(self, x, arrays, **how)

    return mutated


def columns_first(shuffle):
    def mutated(patches, side, merge):
        turned = patches.reshape(-1, side, side, patches.shape[-1]).swapaxes(1, 2)
        return shuffle(turned.reshape(patches.shape), side, merge)

    return mutated


def time_before_the_norm(call):
    def mutated(self, x, time, kv, weight, key):
        x = x + self.attended(x, kv, weight, key)
        return x + self.ff_out(cross_attention.gelu_exact(self.ff_in(self.norm2(x + time[:, None]))))

    return mutated


def without_state(condition):
    def mutated(self, context, copies, state, category):
        made = condition(self, context, copies, state, category)
        return made._replace(weight=made.weight.at[:, -1].set(-jnp.inf))

    return mutated


def counting_what_is_seen(encode):
    def mutated(self, arrays, *args, **how):
        position = jnp.maximum(jnp.cumsum(arrays["visible"], 1) - 1, 0)
        return encode(self, arrays | {"position": position}, *args, **how)

    return mutated


def seeing_absent_pictures(encode):
    def mutated(self, arrays, *args, **how):
        return encode(self, arrays | {"visible": arrays["visible"] | (arrays["image_slot"] >= 0)}, *args, **how)

    return mutated


def normal_noise(spec):
    return property(lambda self: dataclasses.replace(spec.fget(self), noise="normal"))


MUTANTS = {
    "no final norm": (attribute(model.TextStack, "__call__", without_norm), stages, "backbone: fused_tokens"),
    "columns first": (
        attribute(model, "pixel_shuffle", columns_first),
        stages,
        "backbone: fused_tokens",
    ),
    "tanh GELU in the tower": (
        attribute(vision, "gelu_exact", lambda _: layers.gelu_tanh),
        stages,
        "backbone: vision_layer0",
    ),
    "tanh GELU in the head": (
        attribute(cross_attention, "gelu_exact", lambda _: layers.gelu_tanh),
        stages,
        "head: block0",
    ),
    "time before the norm": (
        attribute(cross_attention.Block, "__call__", time_before_the_norm),
        stages,
        "head: block0",
    ),
    "no state in the context": (
        attribute(cross_attention.CrossAttentionHead, "condition", without_state),
        stages,
        "head: velocity",
    ),
    "Pillow's resize": (
        attribute(processor, "resize", lambda _: lambda picture, size, _: resize(picture, size, "bicubic")),
        stages,
        "backbone: vision_embeddings",
    ),
    "normal noise": (attribute(EVO1, "spec", normal_noise), sampling, "sampling: noise beyond [-1, 1)"),
    "positions that skip what is hidden": (
        attribute(model.InternVL3, "encode", counting_what_is_seen),
        stages,
        "backbone: fused_tokens",
    ),
    "absent pictures are seen": (
        attribute(model.InternVL3, "encode", seeing_absent_pictures),
        stages,
        "backbone: fused_tokens",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_are_noticed(name, evo1, monkeypatch):
    mutate, part, quantity = MUTANTS[name]
    mutate(monkeypatch)
    assert quantity in looked_at(evo1, part)


def test_decay_of_norms_and_biases_is_noticed(evo1, monkeypatch):
    gates = importlib.import_module("mem0_jax.golden.models.evo1.training")  # its function has the same name
    monkeypatch.setattr(gates, "STAGES", {"stage1": gates.STAGES["stage1"]})
    object.__setattr__(FAMILY, "no_decay", ())
    try:
        report = Report()
        with jax.default_matmul_precision("highest"):
            training(evo1, report)
    finally:
        object.__setattr__(FAMILY, "no_decay", (r".*/(bias|scale|lambda_[12])",))
    assert not report.checks["training: parameters"].passed
    assert report.checks["training: gradients"].passed


def test_a_folder_is_known_by_its_files(tmp_path):
    shutil.copytree(EVO1_A, tmp_path / "golden")
    (tmp_path / "golden" / "vlm" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"vlm/tokenizer\.json is missing.*of evo1, config\.json.*of mem0"):
        numbers_in(tmp_path / "golden")
