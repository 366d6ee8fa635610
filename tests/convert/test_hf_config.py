"""Hugging Face's configurations of Qwen3-VL: every value that is not implemented is refused by name."""

import copy
import json

import pytest

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.hf_config import HfConfigError, read_hf_config
from mem0_jax.convert.models.mem0 import FORMAT
from mem0_jax.convert.models.qwen3_vl import hugging_face_config
from mem0_jax.convert.rules import ConversionError
from mem0_jax.convert.settings import read_folder_settings, read_settings

RELEASED = hugging_face_config(Qwen3VLConfig(), "bfloat16")
ROPE = RELEASED["text_config"]["rope_scaling"]


def changed(path: str, value) -> dict:
    """The released configuration with one entry, `a.b.c`, set or (with ...) removed."""
    config = copy.deepcopy(RELEASED)
    *outer, last = path.split(".")
    node = config
    for key in outer:
        node = node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return config


def test_the_released_configuration():
    assert read_hf_config(RELEASED) == (Qwen3VLConfig(), [])
    assert Qwen3VLConfig.from_hf(RELEASED) == Qwen3VLConfig()


def test_as_transformers_5_writes_it():
    config = changed("text_config.rope_scaling", ...)
    del config["text_config"]["rope_theta"]
    config["text_config"]["rope_parameters"] = ROPE | {"rope_theta": 5e6}
    config["vision_config"] |= {
        "model_type": "qwen3_vl_vision",
        "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4},
    }
    assert read_hf_config(config) == (Qwen3VLConfig(), [])


YARN = ROPE | {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 262144}
TYPE = "rope_type '{}' is not supported, only 'default'"
REFUSED = {
    "yarn": ("text_config.rope_scaling", YARN, "text_config.rope_scaling: " + TYPE.format("yarn")),
    "yarn of 5": ("text_config.rope_parameters", YARN, "text_config.rope_parameters: " + TYPE.format("yarn")),
    "yarn outside": ("rope_scaling", YARN, "rope_scaling: " + TYPE.format("yarn")),
    "linear": ("text_config.rope_scaling.type", "linear", "type 'linear' is not supported, only 'default'"),
    "dynamic": ("text_config.rope_scaling.rope_type", "dynamic", TYPE.format("dynamic")),
    "longrope": ("text_config.rope_scaling.rope_type", "longrope", TYPE.format("longrope")),
    "factor": ("text_config.rope_scaling.factor", 2.0, "text_config.rope_scaling: factor 2.0 is not supported"),
    "not interleaved": (
        "text_config.rope_scaling.mrope_interleaved",
        False,
        "mrope_interleaved False is not supported, only True",
    ),
    "partial": (
        "text_config.partial_rotary_factor",
        0.5,
        "text_config: partial_rotary_factor 0.5 is not supported, only 1.0",
    ),
    "partial of 5": ("text_config.rope_scaling.partial_rotary_factor", 0.5, "partial_rotary_factor 0.5"),
    "two bases": (
        "text_config.rope_scaling.rope_theta",
        1e6,
        "rope_theta is 5000000.0 in text_config, but 1000000.0 in",
    ),
    "no rope": ("text_config.rope_scaling", None, "text_config: mrope_section is missing, expected"),
    "no rope at all": ("text_config.rope_scaling", ..., "'mrope_section': [24, 20, 20]"),
    "no base": ("text_config.rope_theta", ..., "text_config: rope_theta is missing"),
    "sections": ("text_config.rope_scaling.mrope_section", [24, 20, 24], "must sum to head_dim / 2 = 64"),
    "two sections": ("text_config.rope_scaling.mrope_section", [32, 32], "mrope_section: expected 3 values, got 2"),
    "rope is text": ("text_config.rope_scaling", "yarn", "text_config.rope_scaling: expected an object, got 'yarn'"),
    "vision base": ("vision_config.rope_parameters", {"rope_type": "axial", "rope_theta": 1e5}, "rope_theta 100000.0"),
    "activation": ("text_config.hidden_act", "gelu", "text_config: hidden_act 'gelu' is not supported, only 'silu'"),
    "vision activation": ("vision_config.hidden_act", "silu", "vision_config: hidden_act 'silu'"),
    "bias": ("text_config.attention_bias", True, "attention_bias True is not supported, only False"),
    "window": ("text_config.use_sliding_window", True, "use_sliding_window True"),
    "window size": ("text_config.sliding_window", 4096, "text_config: sliding_window 4096 is not supported, only null"),
    "layers": ("text_config.layer_types", ["full_attention", "sliding_attention"], "layer_types 'sliding_attention'"),
    "experts": ("text_config.num_experts", 128, "num_experts 128 is not supported"),
    "channels": ("vision_config.in_channels", 4, "vision_config: in_channels 4 is not supported, only 3"),
    "quantized": (
        "quantization_config",
        {"quant_method": "gptq", "bits": 4},
        "quantization_config 'gptq' is not supported",
    ),
    "quantized text": ("text_config.quantization_config", {"quant_method": "fp8"}, "quantization_config 'fp8'"),
    "moe": ("model_type", "qwen3_vl_moe", "expected model_type 'qwen3_vl', got 'qwen3_vl_moe'"),
    "older": ("model_type", "qwen2_5_vl", "not the configuration of a dense Qwen3-VL"),
    "moe text": ("text_config.model_type", "qwen3_vl_moe_text", "text_config: model_type 'qwen3_vl_moe_text'"),
    "no text": ("text_config", None, "text_config missing"),
    "no vision": ("vision_config", ..., "vision_config missing"),
    "eps as text": ("text_config.rms_norm_eps", "1e-6", "rms_norm_eps: expected float, got '1e-6'"),
    "tied as text": ("tie_word_embeddings", "false", "tie_word_embeddings: expected bool, got 'false'"),
    "tied as number": ("tie_word_embeddings", 1, "tie_word_embeddings: expected bool, got 1"),
    "no heads": ("vision_config.num_heads", 0, "num_heads: expected a number in [1, inf), got 0"),
    "five heads": ("vision_config.num_heads", 5, "hidden_size 1024 must be a multiple of 4 * num_heads 5"),
    "no key heads": ("text_config.num_key_value_heads", 0, "num_key_value_heads: expected a number in [1, inf), got 0"),
    "base": ("text_config.rope_theta", -1, "rope_theta: expected a number in (1, 1e30), got -1"),
    "negative sections": (
        "text_config.rope_scaling.mrope_section",
        [66, -1, -1],
        "mrope_section: expected numbers in [0, inf)",
    ),
    "one id twice": ("image_token_id", 151656, "expected ids that differ, got image 151656, video 151656"),
    "negative id": ("image_token_id", -1, "image: expected a number in"),
    "taps": ("vision_config.deepstack_visual_indexes", [5, 99], r"must lie in [0, 24)"),
    "two patches": ("vision_config.patch_size", [16, 14], "patch_size: expected int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_are_not_implemented(tmp_path, case):
    path, value, message = REFUSED[case]
    with pytest.raises(HfConfigError) as caught:
        read_hf_config(changed(path, value))
    assert message in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(ConversionError, match=r"config\.json: ") as refused:
        read_folder_settings(tmp_path, FORMAT)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "rope",
    [
        *(ROPE | {"rope_type": kind, "factor": 2.0} for kind in ("yarn", "linear", "dynamic", "llama3")),
        {"type": "mrope", "mrope_section": [24, 20, 20]},
        ROPE | {"mrope_interleaved": False},
        ROPE | {"partial_rotary_factor": 0.5},
        [1],
        "yarn",
    ],
)
def test_a_refused_rope_is_the_only_finding(rope):
    for path in ("text_config.rope_scaling", "rope_scaling"):
        config = changed(path, rope)
        if path == "rope_scaling":
            del config["text_config"]["rope_scaling"]
        with pytest.raises(HfConfigError) as caught:
            read_hf_config(config)
        assert f"{path}: " in str(caught.value)
        assert "missing" not in str(caught.value)
    config = changed("text_config.rope_scaling", ...)
    config["vision_config"]["rope_parameters"] = rope  # says nothing of the text's
    with pytest.raises(HfConfigError, match="mrope_section is missing"):
        read_hf_config(config)


@pytest.mark.parametrize(("outside", "inside", "tied"), [(None, True, True), (..., True, True), (False, True, False)])
def test_tied_embeddings_are_said_in_two_places(outside, inside, tied):
    config = changed("tie_word_embeddings", outside)
    config["text_config"]["tie_word_embeddings"] = inside
    assert read_hf_config(config)[0].text.tie_word_embeddings is tied


HARMLESS = {
    "text_config.sliding_window": None,
    "text_config.use_sliding_window": False,
    "text_config.layer_types": ["full_attention"] * 28,
    "text_config.max_window_layers": 28,
    "text_config.partial_rotary_factor": 1.0,
    "text_config.torch_dtype": "bfloat16",
    "text_config.pad_token_id": None,
    "text_config.num_experts": None,
    "text_config.rope_scaling.factor": None,
    "quantization_config": None,
    "text_config.rms_norm_eps": ...,
    "text_config.attention_bias": ...,
    "vision_config.num_heads": ...,
    "image_token_id": ...,
}


@pytest.mark.parametrize("path", HARMLESS)
def test_values_that_change_nothing(path):
    assert read_hf_config(changed(path, HARMLESS[path])) == (Qwen3VLConfig(), [])


def test_what_is_not_read_is_listed(tmp_path):
    config = changed("text_config.temperature", 2.0)
    config |= {"mystery": 1}
    assert read_hf_config(config)[1] == [
        "not read, as transformers' Qwen3-VL has no such entries: mystery, text_config.temperature"
    ]
    (notes,) = read_hf_config(changed("text_config.attention_dropout", 0.1))[1]
    assert "text_config.attention_dropout 0.1 acts in training" in notes
    (tmp_path / "a.yaml").write_text("memory_bank: {window_size: 3, colour: red}\naction_model: {norm_eps: 1e-5}")
    assert read_settings(tmp_path / "a.yaml", FORMAT).notes == (f"{tmp_path / 'a.yaml'}: not read: memory_bank.colour",)
    (tmp_path / "a.yaml").write_text("action_model: {norm_eps: 1e-6, activation_fn: relu}")
    with pytest.raises(ConversionError, match=r"norm_eps: only 1e-05 is supported, got 1e-06; .*activation_fn: only"):
        read_settings(tmp_path / "a.yaml", FORMAT)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}"])
def test_other_json(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConversionError, match="not the configuration of a dense Qwen3-VL"):
        read_folder_settings(tmp_path, FORMAT)


@pytest.mark.torch
def test_every_entry_of_transformers_is_known():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3VLConfig(text_config={"rope_theta": 5e6, "rope_scaling": ROPE}).to_dict()
    config["text_config"]["hidden_size"] = config["vision_config"]["out_hidden_size"]
    assert read_hf_config(config)[1] == []
