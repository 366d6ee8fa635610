"""Configurations from shapes, files and the released models."""

import gzip
import json
from pathlib import Path

import jax
import pytest
import yaml

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.convert.mem0 import qwen3_vl_rules
from mem0_jax.convert.rules import ConversionError, exported, make_plan
from mem0_jax.convert.settings import (
    RELEASED_BACKBONES,
    Settings,
    backbone_config,
    mem0_config,
    read_backbone_settings,
    read_settings,
)
from mem0_jax.convert.sources import open_source
from mem0_jax.policies.bundle import abstract_params
from mem0_jax.policies.mem0 import Mem0Config

MODEL = Path(__file__).parents[1] / "model" / "assets"
GOLDEN = MODEL / "tiny_a"


@pytest.fixture(scope="module")
def released() -> dict[str, tuple[int, ...]]:
    text = gzip.decompress((MODEL / "m1_mix_shapes.json.gz").read_bytes())
    return {name: tuple(shape) for name, shape in json.loads(text).items()}


@pytest.fixture(scope="module")
def tiny() -> dict[str, tuple[int, ...]]:
    return open_source(GOLDEN / "initial.pt").shapes


def test_the_released_sizes_tell_everything(released):
    assert mem0_config(released, Settings()) == Mem0Config()


@pytest.mark.parametrize("family", RELEASED_BACKBONES.values(), ids=["2B", "4B", "8B"])
def test_released_backbones_are_known_by_their_shapes(family):
    """From our tree to Hugging Face's names and shapes, and back to the configuration."""
    abstract = abstract_params(family)
    plan = make_plan(qwen3_vl_rules(family), None, abstract)
    shapes = {name: tensor.shape for name, tensor in exported(plan, plan.abstract).items()}
    assert backbone_config(shapes, Settings()) == family
    assert ("lm_head.weight" in shapes) == (family.text.hidden_size == 4096)


def test_parameters_of_the_released_backbones():
    """In billions, as their model cards count them; the 8B has a head of its own."""
    counts = [sum(leaf.size for leaf in jax.tree.leaves(abstract_params(c))) / 1e9 for c in RELEASED_BACKBONES.values()]
    assert [round(count, 1) for count in counts] == [2.1, 4.4, 8.8]


def test_golden_settings_fill_what_shapes_do_not_tell(tiny):
    settings = read_settings(GOLDEN / "config.json")
    config = mem0_config(tiny, settings)
    assert config.backbone.text.mrope_section == (4, 2, 2)
    assert config.backbone.tokens.image == 292
    assert (config.memory.window_size, config.action.horizon, config.flow.draws) == (6, 10, 3)
    assert settings.training["total_steps"] == 40


def test_all_that_nothing_tells_is_listed(tiny):
    with pytest.raises(ConversionError) as error:
        mem0_config(tiny, Settings())
    for name in ("text.mrope_section", "vision.num_heads", "tokens.im_end", "memory.window_size", "action.horizon"):
        assert name in str(error.value)
    assert "--config FILE" in str(error.value)


def test_settings_that_contradict_the_shapes_are_listed(tiny):
    settings = read_settings(GOLDEN / "config.json")
    settings.values |= {"backbone.text.hidden_size": 65, "action.num_layers": 6}
    with pytest.raises(ConversionError, match=r"(?s)text.hidden_size is 64 .* but 65 in .*action.num_layers is 4 .* 6"):
        mem0_config(tiny, settings)


REFERENCE_YAML = """
execution_module:
  memory_bank: {window_size: 20, initial_anchor_size: 1, num_heads: 8, dropout: 0.1, memory_accumulation: 8}
  action_model:
    action_model_type: DiT-B
    add_pos_embed: True
    action_horizon: 30
    repeated_diffusion_steps: 4
    noise_beta_alpha: 1.5
    noise_beta_beta: 2.0
    noise_s: 0.999
    diffusion_model_cfg: {cross_attention_dim: 2048, num_layers: 16, dropout: 0.2, norm_type: ada_norm}
  classifier: {hidden_sizes: [6144, 2048, 512], focal_gamma: 2.0}
trainer: {train_steps: 30000, scheduler: cosine, min_lr: {base: 1.0e-6}}
"""


def test_the_references_yaml(released, tmp_path):
    (tmp_path / "train.yaml").write_text(REFERENCE_YAML)
    settings = read_settings(tmp_path / "train.yaml")
    config = mem0_config(released, settings)
    assert (config.memory.window_size, config.flow.draws, config.flow.time_beta) == (20, 4, (1.5, 2.0))
    assert config.classifier.focal_gamma == 2.0
    assert settings.training["train_steps"] == 30000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_bank": {"initial_anchor_size": 2}}, "initial_anchor_size: only 1 is supported, got 2"),
        ({"action_model": {"action_model_type": "DiT-X"}}, "expected one of DiT-B, DiT-L, got 'DiT-X'"),
        ({"action_model": {"diffusion_model_cfg": {"norm_type": "layer"}}}, "norm_type: only 'ada_norm'"),
        (
            {"action_model": {"width": 48, "num_attention_heads": 4, "attention_head_dim": 16}},
            "48 is not 4 heads of 16",
        ),
        ({"memory_bank": 3}, "memory_bank: expected a mapping"),
        ({}, "none of the sections"),
        ([1], "expected a mapping of settings"),
    ],
)
def test_settings_we_do_not_have_are_refused(tmp_path, change, message):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ConversionError, match=message):
        read_settings(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"a: [", b"!!python/object/apply:os.system ['true']", b"x" * 2**21]
)
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_hostile_settings_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=name):
        read_settings(tmp_path / name)


def test_a_hugging_face_configuration(tmp_path):
    from mem0_jax.convert.exporter import hugging_face_config

    for config in RELEASED_BACKBONES.values():
        (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(config, "bfloat16")))
        values = read_backbone_settings(tmp_path).values
        assert values["backbone.text.num_attention_heads"] == config.text.num_attention_heads
        assert Qwen3VLConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    with pytest.raises(ConversionError, match="not the configuration of a dense Qwen3-VL"):
        read_backbone_settings(tmp_path)
