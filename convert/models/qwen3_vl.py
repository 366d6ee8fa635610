"""Qwen3-VL (dense) as Hugging Face has it: names of its tensors, and config.json."""

from dataclasses import asdict
from math import isqrt
from typing import Any

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.hf_config import HfConfigError, read_hf_config
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS
from mem0_jax.convert.dotted import flat
from mem0_jax.convert.format import Format, Names, Settings
from mem0_jax.convert.rules import TRANSPOSE, AnyRule, ConversionError, Op, Rule, Tied, flatten_kernel, linear, norm

# Of tokenizers that come as tokenizer.json alone: without a class, transformers would read them as Qwen's byte pairs.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": SPECIAL_TOKENS["im_end"],
    "pad_token": SPECIAL_TOKENS["pad"],
    "clean_up_tokenization_spaces": False,
}
# Qwen3-VL-Instruct 2B, 4B and 8B.
RELEASED = (
    Qwen3VLConfig(),
    Qwen3VLConfig(TextConfig(2560, 36, 32, 8, 128, 9728), VisionConfig(out_hidden_size=2560)),
    Qwen3VLConfig(
        TextConfig(4096, 36, 32, 8, 128, 12288, tie_word_embeddings=False),
        VisionConfig(27, 1152, 4304, 16, deepstack_visual_indexes=(8, 16, 24), out_hidden_size=4096),
    ),
)


def rules(config: Qwen3VLConfig, source: str = "", target: str = "") -> list[AnyRule]:
    """The backbone: `source` and `target` are prefixes with their trailing separator."""
    vision = config.vision
    patch: Op = flatten_kernel((3, vision.temporal_patch_size, vision.patch_size, vision.patch_size))
    visual, ours = f"{source}model.visual.", f"{target}visual/"
    found: list[AnyRule] = [
        Rule(f"{visual}patch_embed.proj.weight", (f"{ours}patch_embed/kernel",), patch),
        Rule(f"{visual}patch_embed.proj.bias", (f"{ours}patch_embed/bias",)),
        Rule(f"{visual}pos_embed.weight", (f"{ours}pos_embed/embedding",)),
    ]
    block, our_block = f"{visual}blocks.{{n}}.", f"{ours}blocks/"
    found += norm(f"{block}norm1", f"{our_block}norm1") + norm(f"{block}norm2", f"{our_block}norm2")
    found += linear(f"{block}attn.qkv", f"{our_block}attn", parts=("q", "k", "v"))
    found += linear(f"{block}attn.proj", f"{our_block}attn/proj")
    for layer in ("linear_fc1", "linear_fc2"):
        found += linear(f"{block}mlp.{layer}", f"{our_block}{layer}")
    mergers = [("merger.", "merger/")]
    if vision.deepstack_visual_indexes:
        mergers.append(("deepstack_merger_list.{n}.", "deepstack_mergers/"))
    for theirs, merger in mergers:
        found += norm(f"{visual}{theirs}norm", f"{ours}{merger}norm")
        for layer in ("linear_fc1", "linear_fc2"):
            found += linear(f"{visual}{theirs}{layer}", f"{ours}{merger}{layer}")
    text, ours = f"{source}model.language_model.", f"{target}language_model/"
    found.append(Rule(f"{text}embed_tokens.weight", (f"{ours}embed_tokens/embedding",)))
    layer, our_layer = f"{text}layers.{{n}}.", f"{ours}layers/"
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        found += norm(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        found += linear(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        found += linear(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    found += norm(f"{text}norm", f"{ours}norm", bias=False)
    head = f"{source}lm_head.weight"
    if config.text.tie_word_embeddings:
        return [*found, Tied(head, f"{text}embed_tokens.weight")]
    return [*found, Rule(head, (f"{target}lm_head/kernel",), TRANSPOSE)]


def sizes(names: Names) -> dict[str, Any]:
    """What the shapes of the tensors tell."""
    text, vision = names.below("model.language_model."), names.below("model.visual.")
    vocabulary, width = text["embed_tokens.weight", 2]
    head = text["layers.0.self_attn.q_norm.weight", 1][0]
    vision_width, _, temporal, patch, _ = vision["patch_embed.proj.weight", 5]
    merged = vision["merger.linear_fc1.weight", 2][1]
    return {
        "text.hidden_size": width,
        "text.vocab_size": vocabulary,
        "text.head_dim": head,
        "text.num_hidden_layers": text.count("layers."),
        "text.num_attention_heads": text["layers.0.self_attn.q_proj.weight", 2][0] // head,
        "text.num_key_value_heads": text["layers.0.self_attn.k_proj.weight", 2][0] // head,
        "text.intermediate_size": text["layers.0.mlp.gate_proj.weight", 2][0],
        "vision.hidden_size": vision_width,
        "vision.depth": vision.count("blocks."),
        "vision.intermediate_size": vision["blocks.0.mlp.linear_fc1.weight", 2][0],
        "vision.num_position_embeddings": vision["pos_embed.weight", 2][0],
        "vision.patch_size": patch,
        "vision.temporal_patch_size": temporal,
        "vision.spatial_merge_size": isqrt(merged // vision_width),
        "vision.out_hidden_size": vision["merger.linear_fc2.weight", 2][0],
    }


def read(data: Any) -> Settings:
    """Hugging Face's config.json, with the ids of Qwen's tokenizer. Raises ConversionError."""
    try:
        config, notes = read_hf_config(data)
    except HfConfigError as error:
        raise ConversionError(str(error)) from None
    return Settings(flat(config), notes=tuple(notes))


def check(config: Qwen3VLConfig) -> str:
    """Not a rule of the class: a job has its tokens and vocabulary from the tokenizer, not from its configuration."""
    size = config.text.vocab_size
    if beyond := [f"{name} {number}" for name, number in asdict(config.tokens).items() if number >= size]:
        return f"special tokens beyond the vocabulary of {size}: {', '.join(beyond)}; expected ids in [0, {size})"
    return ""


def hugging_face_config(config: Qwen3VLConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of `Qwen3VLForConditionalGeneration`, readable by transformers 4.57 and 5."""
    text, vision, tokens = config.text, config.vision, config.tokens
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": tokens.image,
        "video_token_id": tokens.video,
        "vision_start_token_id": tokens.vision_start,
        "vision_end_token_id": tokens.vision_end,
        "tie_word_embeddings": text.tie_word_embeddings,
        "dtype": dtype,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "vocab_size": text.vocab_size,
            "rope_theta": text.rope_theta,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": list(text.mrope_section),
                "rope_type": "default",
            },
            "max_position_embeddings": 262144,
            "rms_norm_eps": text.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": tokens.pad,
            "eos_token_id": tokens.im_end,
            "tie_word_embeddings": text.tie_word_embeddings,
            "dtype": dtype,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": vision.depth,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "in_channels": 3,
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "out_hidden_size": vision.out_hidden_size,
            "num_position_embeddings": vision.num_position_embeddings,
            "deepstack_visual_indexes": list(vision.deepstack_visual_indexes),
            "hidden_act": "gelu_pytorch_tanh",
        },
    }


def processor_files(config: Qwen3VLConfig, least: int, most: int) -> dict[str, dict[str, Any]]:
    """What Hugging Face's processor must know to show the model images as it is shown them here."""
    vision = config.vision
    images = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": least, "longest_edge": most},
    }
    return {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessorFast", **images},
        # The processor is not loaded without one.
        "video_preprocessor_config.json": images | {"video_processor_type": "Qwen3VLVideoProcessor"},
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }


FORMAT = Format(
    name="qwen3_vl",
    title="Qwen3-VL",
    mark="model.visual.",
    rules=rules,
    sizes=sizes,
    untold=(
        *("text.rope_theta", "text.mrope_section", "text.rms_norm_eps", "text.tie_word_embeddings"),
        *("vision.num_heads", "vision.deepstack_visual_indexes"),
        *(f"tokens.{name}" for name in ("vision_start", "vision_end", "image", "video", "im_start", "im_end", "pad")),
    ),
    released=RELEASED,
    known_by=("text.hidden_size", "text.num_hidden_layers", "vision.hidden_size", "vision.depth", "text.vocab_size"),
    files="Hugging Face's config.json",
    reads=lambda data: "model_type" in data,
    read=read,
    check=check,
    hugging_face=hugging_face_config,
    processor=processor_files,
)
