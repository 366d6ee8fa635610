"""Hugging Face's `config.json` of a dense Qwen3-VL, entry by entry.

Every entry of transformers' configuration classes (4.57 and 5) is read, or has no influence on the numbers, or has one
value that is implemented here: any other is refused. Entries which these classes do not have are listed as not read.
"""

from collections.abc import Mapping
from typing import Any

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.config import ConfigError, from_dict
from mem0_jax.errors import UserError

TEXT, VISION = "text_config", "vision_config"
# What transformers takes where a file says nothing; entries that are in none of these tables must be there.
DEFAULTS: dict[str, dict[str, Any]] = {
    TEXT: {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
    },
    VISION: {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 3584,
    },
}
TOKENS = {
    "vision_start": ("vision_start_token_id", 151652),
    "vision_end": ("vision_end_token_id", 151653),
    "image": ("image_token_id", 151655),
    "video": ("video_token_id", 151656),
}
_UNQUANTIZED = {"quantization_config": (), "compression_config": ()}
_ONE_OF_MANY = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), (0, 1))
# Values that are implemented; null and a missing entry stand for the first of them, or for none.
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"model_type": ("qwen3_vl",)} | _UNQUANTIZED,
    TEXT: {
        "model_type": ("qwen3_vl_text",),
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_qk_norm": (True,),
        "qk_norm": (True,),
        "use_sliding_window": (False,),
        "partial_rotary_factor": (1.0,),
        "moe_intermediate_size": (0,),
        "attn_logit_softcapping": (),
        "final_logit_softcapping": (),
    }
    | _ONE_OF_MANY
    | _UNQUANTIZED,
    VISION: {
        "model_type": ("qwen3_vl", "qwen3_vl_vision"),
        "hidden_act": ("gelu_pytorch_tanh",),
        "in_channels": (3,),
        "in_chans": (3,),
        "attention_bias": (True,),
        "window_size": (),
        "fullatt_block_indexes": (),
    }
    | _UNQUANTIZED,
}
# The rotary entries: of the text (transformers 4 and 5 name them differently), and of the vision tower (5 alone).
ROPES = ("rope_scaling", "rope_parameters")
ROPE_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    TEXT: {"rope_type": ("default",), "type": ("default",), "mrope_interleaved": (True,)},
    VISION: {"rope_type": ("axial", "default"), "type": ("axial", "default"), "rope_theta": (10000.0,)},
}
ROPE_FIXED[TEXT]["partial_rotary_factor"] = ROPE_FIXED[VISION]["partial_rotary_factor"] = (1.0,)
# Entries that do not change what the model computes, or that something else here tells.
FREE = frozenset(
    (
        *("initializer_range", "use_cache", "max_position_embeddings", "max_window_layers", "dtype", "torch_dtype"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "architectures", "transformers_version", "_name_or_path"),
        *("attention_dropout", "tie_word_embeddings", "rope_theta", "layer_types", "sliding_window", "problem_type"),
        *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id", "torchscript"),
        *("decoder_sparse_step", "mlp_only_layers", "norm_topk_prob", "router_aux_loss_coef", "output_router_logits"),
        *("auto_map", "chunk_size_feed_forward", "attn_implementation", "use_return_dict", "is_encoder_decoder"),
    )
)
ROPE_EXAMPLE = "{'rope_type': 'default', 'mrope_interleaved': True, 'mrope_section': [24, 20, 20]}"


class HfConfigError(UserError, ValueError):
    """A configuration of another model, or of a form of this one that is not implemented; lists all that is wrong."""


def read_hf_config(config: Any) -> tuple[Qwen3VLConfig, list[str]]:
    """Reads a `config.json`; the ids of text tokens are those of Qwen's tokenizer.

    Returns:
        The backbone's sizes, and what the user should know: entries that act in training alone, or are not read.

    Raises:
        HfConfigError: listing every value that is not implemented, and every entry that is missing or no size.
    """
    model = config.get("model_type") if isinstance(config, Mapping) else None
    if model != "qwen3_vl":
        raise HfConfigError(
            f"not the configuration of a dense Qwen3-VL (expected model_type 'qwen3_vl', got {model!r})"
        )
    parts: dict[str, Any] = {"": config, TEXT: config.get(TEXT), VISION: config.get(VISION)}
    if absent := [name for name, part in parts.items() if not isinstance(part, Mapping) or not part]:
        raise HfConfigError(f"{' and '.join(absent)} missing: expected objects with the sizes of the model")
    problems: list[str] = []
    for name, part in parts.items():
        problems += _not_fixed(part, FIXED[name], name) + _windows(part, name)
    rope = _rope(parts, problems)
    if problems:
        raise HfConfigError("; ".join(problems))
    text = DEFAULTS[TEXT] | {k: v for k, v in parts[TEXT].items() if k in DEFAULTS[TEXT]} | rope
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    tied = [
        part["tie_word_embeddings"] for part in (config, parts[TEXT]) if part.get("tie_word_embeddings") is not None
    ]
    text["tie_word_embeddings"] = tied[0] if tied else False
    vision = DEFAULTS[VISION] | {k: v for k, v in parts[VISION].items() if k in DEFAULTS[VISION]}
    tokens = {name: config.get(key, default) for name, (key, default) in TOKENS.items()}
    try:
        return from_dict(Qwen3VLConfig, {"text": text, "vision": vision, "tokens": tokens}), _notes(parts)
    except ConfigError as error:
        raise HfConfigError(str(error)) from None


def _not_fixed(given: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], where: str) -> list[str]:
    return [
        f"{where}{': ' if where else ''}{name} {_shown(given[name])} is not supported"
        + (f", only {' or '.join(map(repr, values))}" if values else "")
        for name, values in fixed.items()
        if given.get(name) is not None and given[name] not in values
    ]


def _shown(value: Any) -> str:
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    return repr(method) if method else f"{value!r:.60}"


def _windows(part: Mapping[str, Any], where: str) -> list[str]:
    """Layers that attend to a part of the sequence."""
    kinds = part.get("layer_types")
    strange = [kind for kind in (kinds if isinstance(kinds, list) else []) if kind != "full_attention"]
    problems = [f"{where}: layer_types {kind!r:.60} is not supported, only 'full_attention'" for kind in strange[:1]]
    window = part.get("sliding_window")
    if window is not None and part.get("use_sliding_window") is not False:
        problems.append(f"{where}: sliding_window {window!r:.60} is not supported, only null")
    return problems


def _rope(parts: Mapping[str, Mapping[str, Any]], problems: list[str]) -> dict[str, Any]:
    """Base and sections of the text's rotary embedding; adds what is not implemented, missing, or said twice."""
    found: dict[str, dict[str, Any]] = {"rope_theta": {}, "mrope_section": {}}  # each by the place that says it
    if parts[TEXT].get("rope_theta") is not None:
        found["rope_theta"][TEXT] = parts[TEXT]["rope_theta"]
    refused = False  # a form of the text's, with all numbers in it
    for where, name in ((where, name) for where in parts for name in ROPES if parts[where].get(name) is not None):
        rope, place = parts[where][name], f"{where}.{name}".lstrip(".")
        if not isinstance(rope, Mapping):
            problems.append(f"{place}: expected an object, got {rope!r:.60}")
            refused |= where != VISION
            continue
        fixed, read = ROPE_FIXED[VISION if where == VISION else TEXT], () if where == VISION else found
        if other := _not_fixed(rope, fixed, place):
            problems += other
            refused |= where != VISION
            continue
        strange = [key for key, value in rope.items() if value is not None and key not in (*fixed, *read)]
        problems += [f"{place}: {key} {rope[key]!r:.60} is not supported, only null" for key in strange]
        for key in read:
            found[key] |= {place: rope[key]} if rope.get(key) is not None else {}
    for key, places in found.items():
        first = next(iter(places.values()), None)
        if not places and not refused:
            problems.append(
                f"{TEXT}: {key} is missing, expected 'rope_theta': 5000000 and 'rope_scaling': {ROPE_EXAMPLE}"
            )
        elif any(value != first for value in places.values()):
            problems.append(
                f"{key} is " + ", but ".join(f"{value!r:.60} in {place}" for place, value in places.items())
            )
    return {key: next(iter(places.values()), None) for key, places in found.items()}


def _notes(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = []
    for name, part in parts.items():
        if dropout := part.get("attention_dropout"):
            notes.append(f"{name}.attention_dropout {dropout!r:.20} acts in training and is not applied")
    known = {name: {*FREE, *FIXED[name], *ROPES, *DEFAULTS.get(name, ())} for name in parts}
    known[""] |= {TEXT, VISION, *(key for key, _ in TOKENS.values())}
    unread = [
        f"{name}.{key}".lstrip(".")[:60] for name, part in parts.items() for key in part if key not in known[name]
    ]
    if unread:
        notes.append(f"not read, as transformers' Qwen3-VL has no such entries: {', '.join(unread[:20])}")
    return notes
