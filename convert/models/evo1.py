"""EVO1 as LeRobot has it: names of its tensors, and config.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mem0_jax.convert.format import Format, Inside, Names, Settings
from mem0_jax.convert.lerobot_folder import read_folder
from mem0_jax.convert.models import internvl3
from mem0_jax.convert.rules import KEEP, TRANSPOSE, AnyRule, ConversionError, Rule, linear, norm
from mem0_jax.policies.evo1 import EVO1Config

PROMPT = 1024  # tokens: LeRobot cuts longer ones
PREFIX, HEAD = "embedder.model.", "action_head."
# Entries of LeRobot's config.json -> fields of `EVO1Config`.
NAMES = {
    "chunk_size": "head.horizon",
    "max_state_dim": "head.state_dim",
    "max_action_dim": "head.action_dim",
    "max_views": "views",
    "embed_dim": "head.width",
    "hidden_dim": "head.hidden_size",
    "state_hidden_dim": "head.state_hidden_size",
    "num_heads": "head.num_heads",
    "num_layers": "head.num_layers",
    "dropout": "head.dropout",
    "num_categories": "head.categories",
    "num_inference_timesteps": "flow.solver_steps",
    "default_embodiment_id": "category",
    "return_cls_only": "cls_only",
    "vlm_dtype": "dtype",
}
# The same of the authors' config.json, where they call it otherwise.
AUTHORS_NAMES = NAMES | {"horizon": "head.horizon", "per_action_dim": "head.action_dim", "state_dim": "head.state_dim"}
# Encoders of LeRobot's -> ours, and their layers.
ENCODERS = {"state_encoder": ("fc1", "fc2"), "action_encoder": ("W1", "W2", "W3"), "mlp_head": ("fc1", "fc2")}


def rules(config: EVO1Config) -> list[AnyRule]:
    """All tensors of a policy."""
    return internvl3.rules(config.backbone, PREFIX, "backbone/") + head_rules(config)


def authors_rules(config: EVO1Config) -> list[AnyRule]:
    """The same as the authors name them."""
    return internvl3.remote_rules(config.backbone, PREFIX, "backbone/") + head_rules(config)


def head_rules(config: EVO1Config) -> list[AnyRule]:
    """The head, which LeRobot and the authors name alike. What of it has weights for several kinds of robots is not
    transposed."""
    block, ours, several = f"{HEAD}transformer_blocks.{{n}}.", "head/blocks/", config.head.categories > 1
    found: list[AnyRule] = [Rule(f"{HEAD}time_pos_enc.pe", ("head/time_table/embedding",), internvl3.FIRST)]
    found += norm(f"{block}norm1", f"{ours}norm1") + norm(f"{block}norm2", f"{ours}norm2")
    found += [
        Rule(f"{block}attn.in_proj_weight", tuple(f"{ours}{part}/kernel" for part in "qkv"), TRANSPOSE),
        Rule(f"{block}attn.in_proj_bias", tuple(f"{ours}{part}/bias" for part in "qkv")),
    ]
    found += linear(f"{block}attn.out_proj", f"{ours}out")
    found += linear(f"{block}ff.0", f"{ours}ff_in") + linear(f"{block}ff.2", f"{ours}ff_out")
    found += norm(f"{HEAD}norm_out", "head/norm_out") + linear(f"{HEAD}seq_pool_proj", "head/pool")
    for theirs, layers in ENCODERS.items():
        if theirs == "action_encoder" and config.head.horizon == 1:
            found += linear(f"{HEAD}single_action_proj", "head/single")
            continue
        name = "decoder" if theirs == "mlp_head" else theirs
        for i, layer in enumerate(layers, 1):
            source, target = f"{HEAD}{theirs}.{layer}.", f"head/{name}/layer{i}/"
            if several:
                found += [Rule(f"{source}weight", (f"{target}kernel",), KEEP)]
                found += [Rule(f"{source}bias", (f"{target}bias",))]
            else:
                found += linear(f"{source}linear", target.rstrip("/"))
    if config.head.horizon > 1:
        table = f"{HEAD}action_encoder.pos_encoding.pe"
        found.append(Rule(table, ("head/position_table/embedding",), internvl3.FIRST))
    return found


def sizes(names: Names) -> dict[str, Any]:
    """What the shapes of the head's tensors tell."""
    head = names.below(HEAD)
    width = head["norm_out.weight", 1][0]
    horizon = head["seq_pool_proj.weight", 2][1] // width
    found = {
        "head.width": width,
        "head.num_layers": head.count("transformer_blocks."),
        "head.horizon": horizon,
        "head.times": head["time_pos_enc.pe", 3][1],
    }
    several = head.prefix + "state_encoder.fc1.weight" in names.shapes
    if several:
        kinds, state, hidden = head["state_encoder.fc1.weight", 3]
        _, inner, chunk = head["mlp_head.fc2.weight", 3]
    else:
        kinds, (hidden, state), (chunk, inner) = (
            1,
            head["state_encoder.fc1.linear.weight", 2],
            head["mlp_head.fc2.linear.weight", 2],
        )
    return found | {
        "head.categories": kinds,
        "head.state_dim": state,
        "head.state_hidden_size": hidden,
        "head.hidden_size": inner,
        "head.action_dim": chunk // horizon,
    }


def read(data: Mapping[str, Any]) -> Settings:
    """LeRobot's config.json. Raises ConversionError: settings that this policy has not."""
    values = {ours: data[theirs] for theirs, ours in NAMES.items() if theirs in data}
    problems = []
    size, width = data.get("image_resolution", [448, 448]), data.get("embed_dim")
    if not isinstance(size, list) or len(set(map(str, size))) != 1:
        problems.append(f"image_resolution: only squares are supported, got {size!r:.60}")
    else:
        values["backbone.vision.image_size"] = size[0]
    if data.get("action_head", "flowmatching") != "flowmatching":
        problems.append(f"action_head: only 'flowmatching' is supported, got {data['action_head']!r:.60}")
    if width is not None:
        values["backbone.text.hidden_size"] = width
    if problems:
        raise ConversionError("; ".join(problems))
    return Settings(values)


def read_authors(data: Mapping[str, Any]) -> Settings:
    """The authors' config.json. Raises ConversionError as `read`."""
    values = {ours: data[theirs] for theirs, ours in AUTHORS_NAMES.items() if theirs in data}
    if data.get("action_head", "flowmatching") != "flowmatching":
        raise ConversionError(f"action_head: only 'flowmatching' is supported, got {data['action_head']!r:.60}")
    return Settings({**values, "backbone.vision.image_size": data.get("image_size", 448), "mode": "fa2", "views": 3})


LEROBOT = Format(
    name="evo1",
    title="EVO1",
    mark=f"{PREFIX}vision_tower.",
    modules=("embedder", "action_head"),
    rules=rules,
    sizes=sizes,
    untold=("head.num_heads", "flow.solver_steps", "views"),
    released=(EVO1Config(),),
    known_by=("head.width", "head.num_layers", "head.horizon"),
    files="LeRobot's config.json",
    reads=lambda data: data.get("type") == "evo1",
    read=read,
    theirs={ours: theirs for theirs, ours in NAMES.items()},
    backbone=Inside(internvl3.FORMAT, PREFIX),
    beside=lambda folder: read_folder(folder, PROMPT),
)
AUTHORS = replace(
    LEROBOT,
    title="EVO1 of its authors",
    mark=f"{PREFIX}vision_model.",
    rules=authors_rules,
    beside=None,
    files="the authors' config.json",
    reads=lambda data: "vlm_name" in data,
    read=read_authors,
    theirs={ours: theirs for theirs, ours in AUTHORS_NAMES.items()},
    backbone=Inside(internvl3.REMOTE, PREFIX),
)
FORMAT = replace(LEROBOT, dialects=(AUTHORS,))
