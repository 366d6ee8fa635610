"""InternVL3 as Hugging Face has it: names of its tensors, and config.json. Its language-model head is not taken."""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from mem0_jax.backbones.internvl3.config import InternVL3Config
from mem0_jax.backbones.internvl3.processor import token_ids
from mem0_jax.convert.format import Format, Names, Settings
from mem0_jax.convert.rules import AnyRule, ConversionError, Op, Rule, flatten_kernel, linear, norm

FIRST = Op(lambda x: x[0], lambda x: x[None])  # a parameter with an axis of one before it
# Entries of config.json -> fields of `InternVL3Config`.
TEXT = {
    **{name: f"text.{name}" for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")},
    **{name: f"text.{name}" for name in ("intermediate_size", "vocab_size", "rms_norm_eps", "head_dim")},
}
VISION = {
    **{name: f"vision.{name}" for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
    **{name: f"vision.{name}" for name in ("intermediate_size", "layer_norm_eps")},
}
# What this backbone has in one form only.
FIXED_TEXT: dict[str, Any] = {"hidden_act": "silu", "use_sliding_window": False}
FIXED_VISION: dict[str, Any] = {
    "attention_bias": True,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
    "use_qk_norm": False,
}
FIXED: dict[str, Any] = {"projector_hidden_act": "gelu", "vision_feature_layer": -1}
LONGEST = 4096  # tokens; a dynamic rope changes nothing up to the length that a model was made for


def rules(config: InternVL3Config, source: str = "", target: str = "") -> list[AnyRule]:
    """The backbone: `source` and `target` are prefixes with their trailing separator."""
    return vision_rules(config, source, target) + text_rules(f"{source}language_model.", target)


def vision_rules(config: InternVL3Config, source: str, target: str) -> list[AnyRule]:
    """Tower and projector."""
    patch, tower, ours = flatten_kernel((3, *[config.vision.patch_size] * 2)), f"{source}vision_tower.", "vision_tower/"
    embeddings, ours = f"{tower}embeddings.", target + ours
    found: list[AnyRule] = [
        Rule(f"{embeddings}cls_token", (f"{ours}cls_token",), FIRST),
        Rule(f"{embeddings}position_embeddings", (f"{ours}position",), FIRST),
        Rule(f"{embeddings}patch_embeddings.projection.weight", (f"{ours}patch_embed/kernel",), patch),
        Rule(f"{embeddings}patch_embeddings.projection.bias", (f"{ours}patch_embed/bias",)),
    ]
    layer, block = f"{tower}encoder.layer.{{n}}.", f"{ours}blocks/"
    for part in "qkv":
        found += linear(f"{layer}attention.{part}_proj", f"{block}attn/{part}")
    found += linear(f"{layer}attention.projection_layer", f"{block}attn/proj")
    for part in ("fc1", "fc2"):
        found += linear(f"{layer}mlp.{part}", block + part)
    for theirs, name in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
        found += norm(layer + theirs, block + name)
    found += [Rule(f"{layer}{name}", (block + name,)) for name in ("lambda_1", "lambda_2")]
    projector = f"{source}multi_modal_projector."
    found += norm(f"{projector}layer_norm", f"{target}projector/norm")
    for part in ("linear_1", "linear_2"):
        found += linear(projector + part, f"{target}projector/{part}")
    return found


def text_rules(source: str, target: str) -> list[AnyRule]:
    """The text stack: embeddings, layers, final norm."""
    ours = f"{target}language_model/"
    found: list[AnyRule] = [Rule(f"{source}embed_tokens.weight", (f"{ours}embed_tokens/embedding",))]
    layer, block = f"{source}layers.{{n}}.", f"{ours}layers/"
    for name in ("input_layernorm", "post_attention_layernorm"):
        found += norm(layer + name, block + name, bias=False)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        found += linear(f"{layer}self_attn.{name}", f"{block}self_attn/{name}", bias=name != "o_proj")
    for name in ("gate_proj", "up_proj", "down_proj"):
        found += linear(f"{layer}mlp.{name}", f"{block}mlp/{name}", bias=False)
    return found + norm(f"{source}norm", f"{ours}norm", bias=False)


def remote_rules(config: InternVL3Config, source: str = "", target: str = "") -> list[AnyRule]:
    """The same as the authors' own classes name it."""
    vision, patch = f"{source}vision_model.", flatten_kernel((3, *[config.vision.patch_size] * 2))
    ours, embeddings = f"{target}vision_tower/", f"{vision}embeddings."
    found: list[AnyRule] = [
        Rule(f"{embeddings}class_embedding", (f"{ours}cls_token",), FIRST),
        Rule(f"{embeddings}position_embedding", (f"{ours}position",), FIRST),
        Rule(f"{embeddings}patch_embedding.weight", (f"{ours}patch_embed/kernel",), patch),
        Rule(f"{embeddings}patch_embedding.bias", (f"{ours}patch_embed/bias",)),
    ]
    layer, block = f"{vision}encoder.layers.{{n}}.", f"{ours}blocks/"
    found += linear(f"{layer}attn.qkv", f"{block}attn", parts=("q", "k", "v"))
    found += linear(f"{layer}attn.proj", f"{block}attn/proj")
    for part in ("fc1", "fc2"):
        found += linear(f"{layer}mlp.{part}", block + part)
    for n in (1, 2):
        found += [*norm(f"{layer}norm{n}", f"{block}norm{n}"), Rule(f"{layer}ls{n}", (f"{block}lambda_{n}",))]
    found += norm(f"{source}mlp1.0", f"{target}projector/norm")
    found += linear(f"{source}mlp1.1", f"{target}projector/linear_1")
    found += linear(f"{source}mlp1.3", f"{target}projector/linear_2")
    return found + text_rules(f"{source}language_model.model.", target)


def remote_sizes(names: Names) -> dict[str, Any]:
    """See `sizes`."""
    text, vision = names.below("language_model.model."), names.below("vision_model.")
    tower = _vision_sizes(
        vision["embeddings.patch_embedding.weight", 4],
        vision["embeddings.position_embedding", 3],
        names["mlp1.1.weight", 2],
    )
    return (
        tower
        | _text_sizes(text)
        | {
            "vision.num_hidden_layers": vision.count("encoder.layers."),
            "vision.intermediate_size": vision["encoder.layers.0.mlp.fc1.weight", 2][0],
        }
    )


def sizes(names: Names) -> dict[str, Any]:
    """What the shapes of the tensors tell."""
    text, vision = names.below("language_model."), names.below("vision_tower.")
    tower = _vision_sizes(
        vision["embeddings.patch_embeddings.projection.weight", 4],
        vision["embeddings.position_embeddings", 3],
        names["multi_modal_projector.linear_1.weight", 2],
    )
    return (
        tower
        | _text_sizes(text)
        | {
            "vision.num_hidden_layers": vision.count("encoder.layer."),
            "vision.intermediate_size": vision["encoder.layer.0.mlp.fc1.weight", 2][0],
        }
    )


def _text_sizes(text: Names) -> dict[str, Any]:
    vocabulary, width = text["embed_tokens.weight", 2]
    return {
        "text.hidden_size": width,
        "text.vocab_size": vocabulary,
        "text.num_hidden_layers": text.count("layers."),
        "text.intermediate_size": text["layers.0.mlp.gate_proj.weight", 2][0],
    }


def _vision_sizes(patches: tuple[int, ...], positions: tuple[int, ...], projector: tuple[int, ...]) -> dict[str, Any]:
    width, _, patch, _ = patches
    return {
        "vision.hidden_size": width,
        "vision.patch_size": patch,
        "vision.image_size": isqrt(positions[1] - 1) * patch,
        "merge": isqrt(projector[1] // width),
    }


def read(data: Mapping[str, Any]) -> Settings:
    """Hugging Face's config.json. How many text layers there are, the tensors tell. Raises ConversionError."""
    problems: list[str] = []
    text, vision = (_section(data, name, problems) for name in ("text_config", "vision_config"))
    values: dict[str, Any] = {ours: text[theirs] for theirs, ours in TEXT.items() if text.get(theirs) is not None}
    values |= {ours: vision[theirs] for theirs, ours in VISION.items() if theirs in vision}
    for section, fixed, given in (("text_config.", FIXED_TEXT, text), ("vision_config.", FIXED_VISION, vision)):
        problems += _other(given, fixed, section)
    problems += _other(data, FIXED, "")
    width, heads = text.get("hidden_size"), text.get("num_attention_heads")
    if "text.head_dim" not in values and isinstance(width, int) and isinstance(heads, int) and heads:
        values["text.head_dim"] = width // heads
    values |= _rope(text, problems)
    for name in ("image_size", "patch_size"):
        if name in vision:
            values[f"vision.{name}"] = _side(vision[name], f"vision_config.{name}", problems)
    ratio = data.get("downsample_ratio", 0.5)
    values["merge"] = round(1 / ratio) if isinstance(ratio, float) and 0 < ratio <= 1 else ratio
    if "image_token_id" in data:
        values["tokens.image"] = data["image_token_id"]
    if problems:
        raise ConversionError("; ".join(problems))
    return Settings(values)


def _section(data: Mapping[str, Any], name: str, problems: list[str]) -> Mapping[str, Any]:
    given = data.get(name)
    if not isinstance(given, dict):
        problems.append(f"{name}: expected a mapping of settings, got {given!r:.60}")
    return given if isinstance(given, dict) else {}


def _other(given: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> list[str]:
    return [
        f"{where}{name}: only {value!r} is supported, got {given[name]!r:.60}"
        for name, value in fixed.items()
        if name in given and given[name] != value
    ]


def _side(given: Any, where: str, problems: list[str]) -> Any:
    """The side of a square, written once or twice."""
    sides = given if isinstance(given, list) else [given]
    if len(set(map(str, sides))) != 1:
        problems.append(f"{where}: only squares are supported, got {given!r:.60}")
    return sides[0] if sides else None


def _rope(text: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The base of the rotary positions, in the words of transformers 4 and 5."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind not in ("default", "dynamic") or text.get("max_position_embeddings", LONGEST) < LONGEST:
        problems.append(f"text_config: rotary positions of the kind {kind!r:.60} are not supported, nor short ones")
    theta = rope.get("rope_theta", text.get("rope_theta")) if isinstance(rope, dict) else None
    return {} if theta is None else {"text.rope_theta": float(theta)}


REMOTE = Format(
    name="internvl3",
    title="InternVL3 of its authors' classes",
    mark="vision_model.encoder.layers.",
    rules=remote_rules,
    sizes=remote_sizes,
    untold=(
        *("text.num_attention_heads", "text.num_key_value_heads", "text.head_dim", "text.rope_theta"),
        *("text.rms_norm_eps", "vision.num_attention_heads", "vision.layer_norm_eps"),
        *(f"tokens.{name}" for name in ("image_start", "image_end", "image", "pad")),
    ),
    released=(InternVL3Config(),),
    known_by=("text.hidden_size", "vision.hidden_size", "vision.num_hidden_layers", "text.vocab_size"),
    files="Hugging Face's config.json",
    reads=lambda data: data.get("model_type") == "internvl",
    read=read,
    tokens=lambda tokenizer: {f"tokens.{name}": number for name, number in vars(token_ids(tokenizer)).items()},
)
FORMAT = replace(
    REMOTE, title="InternVL3", mark="vision_tower.encoder.layer.", rules=rules, sizes=sizes, dialects=(REMOTE,)
)
