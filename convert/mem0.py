"""Rules for Mem-0 checkpoints (the reference's module names) and the Qwen3-VL inside them (Hugging Face's names)."""

from collections.abc import Sequence
from itertools import pairwise

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.convert.rules import KEEP, TRANSPOSE, AnyRule, Constant, Op, Rule, Tied, flatten_kernel
from mem0_jax.policies.mem0 import Mem0Config

Rules = list[AnyRule]


def linear(source: str, target: str, *, bias: bool = True, parts: Sequence[str] = (), **layers: int) -> Rules:
    """A torch linear layer; with `parts` one packed layer that fills several of ours, `target/PART`."""
    targets = [f"{target}/{part}" for part in parts] or [target]
    rules: Rules = [Rule(f"{source}.weight", tuple(f"{t}/kernel" for t in targets), TRANSPOSE, **layers)]
    if bias:
        rules.append(Rule(f"{source}.bias", tuple(f"{t}/bias" for t in targets), KEEP, **layers))
    return rules


def norm(source: str, target: str, *, bias: bool = True) -> Rules:
    """A LayerNorm, or without bias an RMSNorm."""
    rules: Rules = [Rule(f"{source}.weight", (f"{target}/scale",))]
    return [*rules, Rule(f"{source}.bias", (f"{target}/bias",))] if bias else rules


def qwen3_vl_rules(config: Qwen3VLConfig, source: str = "", target: str = "") -> Rules:
    """The backbone: `source` and `target` are prefixes with their trailing separator."""
    vision = config.vision
    patch: Op = flatten_kernel((3, vision.temporal_patch_size, vision.patch_size, vision.patch_size))
    visual, ours = f"{source}model.visual.", f"{target}visual/"
    rules: Rules = [
        Rule(f"{visual}patch_embed.proj.weight", (f"{ours}patch_embed/kernel",), patch),
        Rule(f"{visual}patch_embed.proj.bias", (f"{ours}patch_embed/bias",)),
        Rule(f"{visual}pos_embed.weight", (f"{ours}pos_embed/embedding",)),
    ]
    block, our_block = f"{visual}blocks.{{n}}.", f"{ours}blocks/"
    rules += norm(f"{block}norm1", f"{our_block}norm1") + norm(f"{block}norm2", f"{our_block}norm2")
    rules += linear(f"{block}attn.qkv", f"{our_block}attn", parts=("q", "k", "v"))
    rules += linear(f"{block}attn.proj", f"{our_block}attn/proj")
    for layer in ("linear_fc1", "linear_fc2"):
        rules += linear(f"{block}mlp.{layer}", f"{our_block}{layer}")
    mergers = [("merger.", "merger/")]
    if vision.deepstack_visual_indexes:
        mergers.append(("deepstack_merger_list.{n}.", "deepstack_mergers/"))
    for theirs, merger in mergers:
        rules += norm(f"{visual}{theirs}norm", f"{ours}{merger}norm")
        for layer in ("linear_fc1", "linear_fc2"):
            rules += linear(f"{visual}{theirs}{layer}", f"{ours}{merger}{layer}")
    text, ours = f"{source}model.language_model.", f"{target}language_model/"
    rules.append(Rule(f"{text}embed_tokens.weight", (f"{ours}embed_tokens/embedding",)))
    layer, our_layer = f"{text}layers.{{n}}.", f"{ours}layers/"
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
        rules += norm(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        rules += linear(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        rules += linear(f"{layer}{name}", our_layer + name.replace(".", "/"), bias=False)
    rules += norm(f"{text}norm", f"{ours}norm", bias=False)
    head = f"{source}lm_head.weight"
    if config.text.tie_word_embeddings:
        return [*rules, Tied(head, f"{text}embed_tokens.weight")]
    return [*rules, Rule(head, (f"{target}lm_head/kernel",), TRANSPOSE)]


def memory_rules() -> Rules:
    """The MemoryBank: packed q, k, v projections and the rank encoder."""
    rules: Rules = []
    for theirs, ours in (("0", "rank_linear_1"), ("2", "rank_linear_2")):
        rules += linear(f"memory_bank.window_position_encoder.mlp.{theirs}", f"memory/{ours}")
    for branch in ("cross_attn1", "cross_attn2"):
        packed = f"memory_bank.{branch}.in_proj_"
        rules.append(Rule(f"{packed}weight", tuple(f"memory/{branch}/{p}/kernel" for p in "qkv"), TRANSPOSE))
        rules.append(Rule(f"{packed}bias", tuple(f"memory/{branch}/{p}/bias" for p in "qkv")))
        rules += linear(f"memory_bank.{branch}.out_proj", f"memory/{branch}/out")
    return rules + norm("memory_bank.norm1", "memory/norm1") + norm("memory_bank.norm2", "memory/norm2")


def action_rules() -> Rules:
    """The DiT head: even source blocks cross-attend, odd ones self-attend."""
    rules: Rules = []
    for n in (1, 2):
        timestep = f"action_model.model.timestep_encoder.timestep_embedder.linear_{n}"
        rules += linear(timestep, f"action/time_linear_{n}")
        rules += linear(f"action_model.model.proj_out_{n}", f"action/proj_out_{n}")
    names = {"norm1.linear": "norm1", "ff.net.0.proj": "ff_in", "ff.net.2": "ff_out", "attn1.to_out.0": "to_out"}
    names |= {f"attn1.{p}": p for p in ("to_q", "to_k", "to_v")}
    for offset, kind in enumerate(("cross", "self")):
        for theirs, ours in names.items():
            source = f"action_model.model.transformer_blocks.{{n}}.{theirs}"
            rules += linear(source, f"action/blocks/{kind}/{ours}", every=2, offset=offset)
    for mlp, layers in (("state_encoder", 2), ("action_encoder", 3), ("action_decoder", 2)):
        for n in range(1, layers + 1):
            rules += linear(f"action_model.{mlp}.layer{n}", f"action/{mlp}/layer{n}")
    return [*rules, Rule("action_model.position_embedding.weight", ("action/position_embedding/embedding",))]


def classifier_rules(config: Mem0Config) -> Rules:
    """The subtask-end classifier; its positive weight is a buffer there and a setting here."""
    rules: Rules = [Constant("classifier.pos_weight", config.classifier.pos_weight)]
    sizes = config.classifier.hidden_sizes
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        source, target = f"classifier.blocks.{i}.", f"classifier/block_{i}/"
        rules += norm(f"{source}norm", f"{target}norm")
        for layer in ("fc1", "fc2") + (("skip",) if inputs != outputs else ()):
            rules += linear(source + layer, target + layer)
    rules += norm("classifier.final_norm", "classifier/final_norm")
    return rules + linear("classifier.head", "classifier/head")


def mem0_rules(config: Mem0Config) -> Rules:
    """All tensors of a Mem-0 `model_state_dict`."""
    backbone = qwen3_vl_rules(config.backbone, "qwen_model.model.", "backbone/")
    return backbone + memory_rules() + action_rules() + classifier_rules(config)
