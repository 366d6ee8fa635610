"""Mem-0 as its reference has it: modules' names, YAML files, optimizer. Source: RMBench `policy/Mem-0` (behaviour)."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from mem0_jax.convert.dotted import dotted, parts
from mem0_jax.convert.format import Format, Inside, Names, Optimizer, Settings
from mem0_jax.convert.models import qwen3_vl
from mem0_jax.convert.rules import TRANSPOSE, AnyRule, Constant, ConversionError, Rule, linear, norm
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.policies.inputs import Inputs
from mem0_jax.policies.mem0 import Mem0Config
from mem0_jax.train.config import OptimizerConfig

PREFIX = "qwen_model.model."  # before Hugging Face's names of the backbone
# Entries of the reference's YAML files and of golden folders -> fields of `Mem0Config`.
NAMES: dict[str, dict[str, str]] = {
    "memory_bank": {
        "window_size": "memory.window_size",
        "num_heads": "memory.num_heads",
        "memory_accumulation": "memory.memory_accumulation",
        "dropout": "memory.dropout",
    },
    "action_model": {
        "width": "action.width",
        "num_attention_heads": "action.num_heads",
        "num_layers": "action.num_layers",
        "output_dim": "action.output_dim",
        "cross_attention_dim": "action.context_width",
        "hidden_size": "action.hidden_size",
        "action_dim": "action.action_dim",
        "state_dim": "action.state_dim",
        "action_horizon": "action.horizon",
        "max_seq_len": "action.max_positions",
        "dropout": "action.dropout",
        "repeated_diffusion_steps": "flow.draws",
        "noise_s": "flow.time_scale",
        "num_timestep_buckets": "flow.buckets",
        "num_inference_timesteps": "flow.solver_steps",
    },
    "classifier": {
        name: f"classifier.{name}" for name in ("hidden_sizes", "dropout", "pos_weight", "focal_gamma", "threshold")
    },
    "loss_weights": {name: name for name in ("lambda_action", "lambda_classifier")},
}
# Settings of the reference that this policy has in one form only.
FIXED: dict[str, Any] = {
    "initial_anchor_size": 1,
    "add_pos_embed": True,
    "final_dropout": True,
    "interleave_self_attention": True,
    "norm_type": "ada_norm",
    "positional_embeddings": None,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
    "upcast_attention": False,
}
# Fields of Mem0Config -> what the reference calls them, where that is another name.
THEIRS = {
    ours: f"{section}.{name}"
    for section, names in NAMES.items()
    for name, ours in names.items()
    if not ours.endswith(f".{name}")
} | {"flow.time_beta": "action_model.noise_beta_alpha and noise_beta_beta"}
YAML_NUMBER = re.compile(r"[-+]?\d+e[-+]?\d+", re.IGNORECASE)  # a text to PyYAML
# Read by `_translate_action`.
ELSEWHERE = {"action_model_type", "diffusion_model_cfg", "noise_beta_alpha", "noise_beta_beta", "attention_head_dim"}
VARIANTS = {"DiT-B": (768, 12), "DiT-L": (1536, 32)}  # width, heads
GROUPS = {"qwen_model": "backbone", "action_model": "action", "classifier": "classifier", "base": "memory"}
RELEASED_FLOORS = {"backbone": 1e-6, "action": 5e-6, "classifier": 5e-6, "memory": 1e-6}
RELEASED_STEPS = 50_000


def memory_rules() -> list[AnyRule]:
    """The MemoryBank: packed q, k, v projections and the rank encoder."""
    rules: list[AnyRule] = []
    for theirs, ours in (("0", "rank_linear_1"), ("2", "rank_linear_2")):
        rules += linear(f"memory_bank.window_position_encoder.mlp.{theirs}", f"memory/{ours}")
    for branch in ("cross_attn1", "cross_attn2"):
        packed = f"memory_bank.{branch}.in_proj_"
        rules.append(Rule(f"{packed}weight", tuple(f"memory/{branch}/{p}/kernel" for p in "qkv"), TRANSPOSE))
        rules.append(Rule(f"{packed}bias", tuple(f"memory/{branch}/{p}/bias" for p in "qkv")))
        rules += linear(f"memory_bank.{branch}.out_proj", f"memory/{branch}/out")
    return rules + norm("memory_bank.norm1", "memory/norm1") + norm("memory_bank.norm2", "memory/norm2")


def action_rules() -> list[AnyRule]:
    """The DiT head: even source blocks cross-attend, odd ones self-attend."""
    rules: list[AnyRule] = []
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


def classifier_rules(config: Mem0Config) -> list[AnyRule]:
    """The subtask-end classifier; its positive weight is a buffer there and a setting here."""
    rules: list[AnyRule] = [Constant("classifier.pos_weight", config.classifier.pos_weight)]
    sizes = config.classifier.hidden_sizes
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        source, target = f"classifier.blocks.{i}.", f"classifier/block_{i}/"
        rules += norm(f"{source}norm", f"{target}norm")
        for layer in ("fc1", "fc2") + (("skip",) if inputs != outputs else ()):
            rules += linear(source + layer, target + layer)
    rules += norm("classifier.final_norm", "classifier/final_norm")
    return rules + linear("classifier.head", "classifier/head")


def rules(config: Mem0Config) -> list[AnyRule]:
    """All tensors of a Mem-0 `model_state_dict`."""
    backbone = qwen3_vl.rules(config.backbone, PREFIX, "backbone/")
    return backbone + memory_rules() + action_rules() + classifier_rules(config)


def sizes(names: Names) -> dict[str, Any]:
    """What the shapes of the heads' tensors tell."""
    action, classifier = names.below("action_model."), names.below("classifier.")
    block = "model.transformer_blocks.0.attn1."
    widths = [classifier["blocks.0.fc1.weight", 2][1]]
    widths += [classifier[f"blocks.{i}.fc1.weight", 2][0] for i in range(classifier.count("blocks."))]
    return {
        "action.width": action[f"{block}to_q.weight", 2][1],
        "action.context_width": action[f"{block}to_k.weight", 2][1],
        "action.num_layers": action.count("model.transformer_blocks."),
        "action.hidden_size": action["state_encoder.layer1.weight", 2][0],
        "action.state_dim": action["state_encoder.layer1.weight", 2][1],
        "action.action_dim": action["action_encoder.layer1.weight", 2][1],
        "action.output_dim": action["model.proj_out_2.weight", 2][0],
        "action.max_positions": action["position_embedding.weight", 2][0],
        "classifier.hidden_sizes": tuple(widths),
    }


def _sections(data: Mapping[str, Any]) -> Any:
    return data.get("execution_module", data)


def reads(data: Mapping[str, Any]) -> bool:
    """Whether a file is the reference's YAML, or the config.json of a golden folder."""
    sections = _sections(data)
    return isinstance(sections, dict) and bool(sections.keys() & {*NAMES, "backbone"})


def read(data: Mapping[str, Any]) -> Settings:
    """Such a file. Raises ConversionError: settings this policy does not have."""
    unread: list[str] = []
    problems: list[str] = []
    values = _translate(_sections(data), unread, problems)
    if problems:
        raise ConversionError("; ".join(problems))
    notes = (f"not read: {', '.join(unread[:20])}",) if unread else ()
    training = data.get("trainer", data.get("training", {}))
    return Settings(values, training=training if isinstance(training, dict) else {}, notes=notes)


def _translate(sections: Mapping[str, Any], unread: list[str], problems: list[str]) -> dict[str, Any]:
    values = dotted(_section(sections, "backbone", problems), "backbone", parts(Mem0Config), problems)
    for section, names in NAMES.items():
        given = _section(sections, section, problems)
        given = given | _section(given, "diffusion_model_cfg", problems, f"{section}.")
        for key, value in given.items():
            if isinstance(value, str) and YAML_NUMBER.fullmatch(value):
                value = float(value)
            if key in names:
                values[names[key]] = tuple(value) if isinstance(value, list) else value
            elif key in FIXED and value != FIXED[key]:
                problems.append(f"{section}.{key}: only {FIXED[key]!r} is supported, got {value!r}")
            elif key not in FIXED and key not in ELSEWHERE:
                unread.append(f"{section}.{key}"[:60])
        if section == "action_model":
            _translate_action(given, values, problems)
    return values


def _section(sections: Mapping[str, Any], name: str, problems: list[str], where: str = "") -> dict[str, Any]:
    """A mapping in a file; null stands for one that says nothing."""
    given = sections.get(name)
    if given is not None and not isinstance(given, dict):
        problems.append(f"{where}{name}: expected a mapping of settings, got {given!r:.60}")
    return given if isinstance(given, dict) else {}


def _translate_action(given: Mapping[str, Any], values: dict[str, Any], problems: list[str]) -> None:
    variant = given.get("action_model_type")
    if isinstance(variant, str) and variant in VARIANTS:
        values["action.width"], values["action.num_heads"] = VARIANTS[variant]
    elif variant is not None:
        problems.append(f"action_model.action_model_type: expected one of {', '.join(VARIANTS)}, got {variant!r:.60}")
    beta = dict(zip(("noise_beta_alpha", "noise_beta_beta"), FlowConfig().time_beta))
    if beta.keys() & given.keys():
        values["flow.time_beta"] = tuple(given.get(name, default) for name, default in beta.items())
    width, heads, each = (given.get(k) for k in ("width", "num_attention_heads", "attention_head_dim"))
    if isinstance(width, int) and isinstance(heads, int) and isinstance(each, int) and width != heads * each:
        problems.append(f"action_model: width {width} is not {heads} heads of {each}")


def optimizer_config(
    given: Mapping[str, Any], rates: Mapping[str, float], weight_decay: float, **adam: Any
) -> OptimizerConfig:
    """The reference's settings under our names.

    Args:
        given: entries of its section `trainer`; what it leaves out is as released.
        rates: learning rate of each of its groups.
        weight_decay: of all of them.
        adam: b1, b2, eps, where they are not torch's.
    """
    floors = given.get("min_lr")
    return OptimizerConfig(
        learning_rates={ours: float(rates[theirs]) for theirs, ours in GROUPS.items()},
        floors={ours: float(floors[theirs]) for theirs, ours in GROUPS.items()} if floors else RELEASED_FLOORS,
        total_steps=int(given.get("total_steps", given.get("train_steps", RELEASED_STEPS))),
        warmup_ratio=float(given.get("warmup_ratio", 0.05)),
        schedule=given.get("scheduler", "cosine"),
        weight_decay=float(weight_decay),
        clip_norm=float(given.get("grad_clip_norm", 2.5)),
        **dict[str, Any]({name: float(value) for name, value in adam.items()}),
    )


FORMAT = Format(
    name="mem0",
    title="Mem-0",
    mark=PREFIX,
    modules=("qwen_model", "memory_bank", "action_model", "classifier"),
    rules=rules,
    sizes=sizes,
    untold=(
        *("memory.window_size", "memory.num_heads", "memory.memory_accumulation"),
        *("action.num_heads", "action.horizon", "flow.solver_steps", "flow.buckets"),
    ),
    released=(Mem0Config(),),
    known_by=("action.width", "action.num_layers", "action.context_width"),
    files=f"one of the sections {', '.join(NAMES)}",
    reads=reads,
    read=read,
    theirs=THEIRS,
    buffers={"classifier.pos_weight": "classifier.pos_weight"},
    backbone=Inside(qwen3_vl.FORMAT, PREFIX),
    inputs=Inputs(),
    optimizer=Optimizer(GROUPS, "base", optimizer_config),
)
