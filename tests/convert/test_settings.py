"""Configurations from shapes, files and the released models."""

import copy
import gzip
import json
from pathlib import Path

import jax
import pytest
import yaml

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.convert.format import Settings
from mem0_jax.convert.models import mem0, qwen3_vl
from mem0_jax.convert.rules import ConversionError, exported, make_plan
from mem0_jax.convert.settings import configuration, read_folder_settings, read_settings
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
    assert configuration(mem0.FORMAT, released, Settings()) == Mem0Config()


@pytest.mark.parametrize("family", qwen3_vl.RELEASED, ids=["2B", "4B", "8B"])
def test_released_backbones_are_known_by_their_shapes(family):
    """From our tree to Hugging Face's names and shapes, and back to the configuration."""
    abstract = abstract_params(family)
    plan = make_plan(qwen3_vl.rules(family), None, abstract)
    shapes = {name: tensor.shape for name, tensor in exported(plan, plan.abstract).items()}
    assert configuration(qwen3_vl.FORMAT, shapes, Settings()) == family
    assert ("lm_head.weight" in shapes) == (family.text.hidden_size == 4096)


def test_parameters_of_the_released_backbones():
    """In billions, as their model cards count them; the 8B has a head of its own."""
    counts = [sum(leaf.size for leaf in jax.tree.leaves(abstract_params(c))) / 1e9 for c in qwen3_vl.RELEASED]
    assert [round(count, 1) for count in counts] == [2.1, 4.4, 8.8]


def test_golden_settings_fill_what_shapes_do_not_tell(tiny):
    settings = read_settings(GOLDEN / "config.json", mem0.FORMAT)
    config = configuration(mem0.FORMAT, tiny, settings)
    assert config.backbone.text.mrope_section == (4, 2, 2)
    assert config.backbone.tokens.image == 292
    assert (config.memory.window_size, config.action.horizon, config.flow.draws) == (6, 10, 3)
    assert settings.training["total_steps"] == 40


def test_all_that_nothing_tells_is_listed(tiny):
    with pytest.raises(ConversionError) as error:
        configuration(mem0.FORMAT, tiny, Settings())
    for name in ("text.mrope_section", "vision.num_heads", "tokens.im_end", "memory.window_size", "action.horizon"):
        assert name in str(error.value)
    assert "--config FILE" in str(error.value)


def test_settings_that_contradict_the_shapes_are_listed(tiny):
    settings = read_settings(GOLDEN / "config.json", mem0.FORMAT)
    settings.values |= {"backbone.text.hidden_size": 65, "action.num_layers": 6}
    with pytest.raises(ConversionError, match=r"(?s)text.hidden_size is 64 .* but 65 in .*action.num_layers is 4 .* 6"):
        configuration(mem0.FORMAT, tiny, settings)


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
    settings = read_settings(tmp_path / "train.yaml", mem0.FORMAT)
    config = configuration(mem0.FORMAT, released, settings)
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
        ({}, "not a Mem-0 configuration: expected one of the sections memory_bank"),
        ([1], "expected a mapping of settings"),
    ],
)
def test_settings_we_do_not_have_are_refused(tmp_path, change, message):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(ConversionError, match=message):
        read_settings(tmp_path / "a.yaml", mem0.FORMAT)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"a: [", b"!!python/object/apply:os.system ['true']", b"x" * 2**21]
)
@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_hostile_settings_files(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError, match=name):
        read_settings(tmp_path / name, mem0.FORMAT)


GOLDEN_CONFIG = json.loads((GOLDEN / "config.json").read_text())


def edited(path: str, value) -> dict:
    """The golden configuration with one entry `a.b.c` of another value."""
    config = copy.deepcopy(GOLDEN_CONFIG)
    *outer, last = path.split(".")
    node = config
    for key in outer:
        node = node[key]
    node[last] = value
    return config


EDITED = {  # entry -> values, and what is said of each beside the value
    "backbone": ([[1], "x", 3, []], "backbone: expected a mapping"),
    "backbone.text": ([None, 3, [1], "x"], "backbone.text: expected a mapping"),
    "backbone.text.rope_theta": ([-1, 0, {"a": 1}, None, [1]], "rope_theta: expected"),
    "backbone.text.mrope_section": ([[10, -1, -1]], "mrope_section: expected numbers in"),
    "backbone.text.tie_word_embeddings": (["false", 0], "tie_word_embeddings: expected bool"),
    "backbone.vision.num_heads": ([0, -4], "num_heads: expected a number in"),
    "backbone.vision.deepstack_visual_indexes": ([[1, 1, 2], [3, 2, 1]], "must rise"),
    "backbone.tokens": ([[1], None], "backbone.tokens: expected a mapping"),
    "backbone.tokens.image": ([-1, 293, 300, 151655], "image"),
    "memory_bank": ([[], 0, "x"], "memory_bank: expected a mapping"),
    "memory_bank.num_heads": ([0, -1, 5], "num_heads"),
    "memory_bank.window_size": ([0, -1, {"a": 1}], "window_size: expected"),
    "memory_bank.memory_accumulation": ([-1], "memory_accumulation: expected a number in"),
    "action_model.diffusion_model_cfg": ([[1], "x", 3], "action_model.diffusion_model_cfg: expected a mapping"),
    "action_model.action_model_type": ([[1], {"a": 1}], "action_model_type: expected one of"),
    "action_model.attention_head_dim": ([13], "48 is not 4 heads of 13"),
    "action_model.num_attention_heads": ([0, [1], "4"], "num_attention_heads"),
    "action_model.action_horizon": ([0, -3], "action_model.action_horizon"),
    "action_model.num_inference_timesteps": ([0, -1], "action_model.num_inference_timesteps"),
    "action_model.num_timestep_buckets": ([0], "action_model.num_timestep_buckets"),
    "action_model.noise_s": ([0, -1], "action_model.noise_s"),
    "action_model.noise_beta_alpha": ([-1, 0, "x"], "noise_beta_alpha"),
    "action_model.dropout": ([2.0, 1], "dropout: expected a number in [0, 1)"),
    "classifier.threshold": ([7], "threshold: expected a number in [0, 1]"),
    "classifier.hidden_sizes": ([[], [0]], "hidden_sizes"),
    "loss_weights.lambda_action": ([-1], "lambda_action: expected"),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, (values, _) in EDITED.items() for value in values])
def test_one_edited_value_is_refused_in_a_sentence(tiny, tmp_path, path, value):
    config, file = edited(path, value), tmp_path / "c.json"
    if path == "action_model.num_attention_heads":  # else the width alone contradicts it
        del config["action_model"]["attention_head_dim"]
    file.write_text(json.dumps(config))
    with pytest.raises(ConversionError) as caught:
        configuration(mem0.FORMAT, tiny, read_settings(file, mem0.FORMAT))
    assert EDITED[path][1] in str(caught.value)
    assert str(file) in str(caught.value)


def test_an_entry_that_looks_like_a_path(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"backbone": {"text": {"rope_theta": 1e4, "rope_theta.x": 1}}}))
    with pytest.raises(ConversionError, match=r"backbone\.text: unknown entry 'rope_theta\.x'"):
        read_settings(tmp_path / "c.json", mem0.FORMAT)


def test_values_that_switch_something_off_are_taken(tiny, tmp_path):
    for path, name in (("memory_bank.memory_accumulation", "memory"), ("classifier.focal_gamma", "classifier")):
        (tmp_path / "c.json").write_text(json.dumps(edited(path, 0)))
        config = configuration(mem0.FORMAT, tiny, read_settings(tmp_path / "c.json", mem0.FORMAT))
        assert getattr(getattr(config, name), path.rpartition(".")[2]) == 0


def test_half_of_the_time_law_keeps_the_other_half(tiny, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(edited("action_model.noise_beta_beta", 2.0)))
    assert configuration(mem0.FORMAT, tiny, read_settings(tmp_path / "c.json", mem0.FORMAT)).flow.time_beta == (
        1.5,
        2.0,
    )


@pytest.mark.parametrize(("part", "value"), [("memory", None), ("memory", [1]), ("backbone", 3), ("flow", "x")])
def test_the_configuration_of_a_bundle_with_other_parts(tmp_path, part, value):
    (tmp_path / "c.json").write_text(json.dumps({"format_version": 1, "config": {part: value}}))
    with pytest.raises(ConversionError, match=rf"c\.json: {part}: expected a mapping of settings, got "):
        read_settings(tmp_path / "c.json", mem0.FORMAT)


def test_a_hugging_face_configuration(tmp_path):
    for config in qwen3_vl.RELEASED:
        (tmp_path / "config.json").write_text(json.dumps(qwen3_vl.hugging_face_config(config, "bfloat16")))
        values = read_folder_settings(tmp_path, mem0.FORMAT).values
        assert values["backbone.text.num_attention_heads"] == config.text.num_attention_heads
        assert Qwen3VLConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl_moe"}')
    with pytest.raises(ConversionError, match="not the configuration of a dense Qwen3-VL"):
        read_folder_settings(tmp_path, mem0.FORMAT)
