"""The configuration behind a checkpoint: from the shapes of its tensors, from files, and from the released models.

Shapes tell most sizes. What they cannot tell (heads, rotary sections, deepstack taps, window, horizon, token ids) comes
from a file, or from the released model whose sizes these are; nothing else is assumed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.hf_config import HfConfigError, read_hf_config
from mem0_jax.config import ConfigError, from_dict
from mem0_jax.convert.rules import ConversionError
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.policies.mem0 import Mem0Config
from mem0_jax.stand_in import stand_in

MAX_SETTINGS_BYTES = 2**20
Shapes = Mapping[str, tuple[int, ...]]
T = TypeVar("T")

# Entries of the reference's YAML files and of golden folders -> fields of Mem0Config.
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
# What shapes do not tell and the outputs depend on. Everything else has the reference's default.
UNTOLD = {
    "backbone": (
        *("text.rope_theta", "text.mrope_section", "text.rms_norm_eps", "text.tie_word_embeddings"),
        *("vision.num_heads", "vision.deepstack_visual_indexes"),
        *(f"tokens.{name}" for name in ("vision_start", "vision_end", "image", "video", "im_start", "im_end", "pad")),
    ),
    "heads": (
        *("memory.window_size", "memory.num_heads", "memory.memory_accumulation"),
        *("action.num_heads", "action.horizon", "flow.solver_steps", "flow.buckets"),
    ),
}
# Qwen3-VL-Instruct 2B, 4B and 8B by (text width, text layers, vision width, vision layers).
RELEASED_BACKBONES = {
    (2048, 28, 1024, 24): Qwen3VLConfig(),
    (2560, 36, 1024, 24): Qwen3VLConfig(TextConfig(2560, 36, 32, 8, 128, 9728), VisionConfig(out_hidden_size=2560)),
    (4096, 36, 1152, 27): Qwen3VLConfig(
        TextConfig(4096, 36, 32, 8, 128, 12288, tie_word_embeddings=False),
        VisionConfig(27, 1152, 4304, 16, deepstack_visual_indexes=(8, 16, 24), out_hidden_size=4096),
    ),
}


@dataclass
class Settings:
    """Values for fields by dotted path such as `backbone.text.rope_theta`, and the optimizer's as found.

    Attributes:
        where: the file, for messages.
        training: the reference's `trainer` section (or `training` of a golden folder), empty if there was none.
        notes: what the user should know about the file, such as entries that are not read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: str = "the shapes of the tensors"
    training: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_settings(path: Path) -> Settings:
    """Reads a configuration: the reference's YAML, the config.json of a golden folder, or that of a bundle.

    Raises:
        ConversionError: not readable, of none of these layouts, or with settings this policy does not have.
    """
    data = _parsed(path)
    if not isinstance(data, dict):
        raise ConversionError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    problems: list[str] = []
    if "format_version" in data and isinstance(data.get("config"), dict):
        values = _dotted(data["config"], "", problems)
        if problems:
            raise ConversionError(f"{path}: " + "; ".join(problems))
        return Settings(values, str(path))
    training = data.get("trainer", data.get("training", {}))
    sections = data.get("execution_module", data)
    if not isinstance(sections, dict) or not sections.keys() & {*NAMES, "backbone"}:
        raise ConversionError(f"{path}: none of the sections {', '.join(NAMES)} found: not a Mem-0 configuration")
    unread: list[str] = []
    values = _translate(sections, unread, problems)
    if problems:
        raise ConversionError(f"{path}: " + "; ".join(problems))
    notes = (f"{path}: not read: {', '.join(unread[:20])}",) if unread else ()
    return Settings(values, str(path), training if isinstance(training, dict) else {}, notes)


def _parsed(path: Path) -> Any:
    """The content of a JSON or YAML file."""
    try:
        if path.is_dir():
            raise ConversionError(f"{path} is a folder: name the file in it")
        if said := stand_in(path):
            raise ConversionError(f"{path} {said}")
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConversionError(f"{path}: larger than 1 MiB, not a configuration")
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"{path}: not readable as YAML or JSON ({str(error).splitlines()[0]})") from None


def _translate(sections: Mapping[str, Any], unread: list[str], problems: list[str]) -> dict[str, Any]:
    values = _dotted(_section(sections, "backbone", problems), "backbone", problems)
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


def read_backbone_settings(folder: Path) -> Settings:
    """Reads a Hugging Face folder's config.json (dense Qwen3-VL) and the ids of its tokenizer."""
    path = folder / "config.json"
    try:
        config, notes = read_hf_config(_parsed(path))
    except HfConfigError as error:
        raise ConversionError(f"{path}: {error}") from None
    values = {f"backbone.{key}": value for key, value in _flat(config).items()}
    return Settings(values, str(path), notes=tuple(f"{path}: {note}" for note in notes))


def backbone_config(shapes: Shapes, settings: Settings, prefix: str = "") -> Qwen3VLConfig:
    """The backbone whose tensors are called `prefix` + Hugging Face's names. Raises ConversionError."""
    problems: list[str] = []
    values = _backbone_values(shapes, settings, prefix, problems)
    _refuse(problems)
    config = _built(Qwen3VLConfig, values, settings)
    _check_tokens(config, settings)
    return config


def mem0_config(shapes: Shapes, settings: Settings) -> Mem0Config:
    """The configuration of a Mem-0 `model_state_dict`.

    Raises:
        ConversionError: listing every setting that contradicts the shapes and every one that nothing tells.
    """
    problems: list[str] = []
    backbone = _backbone_values(shapes, settings, "qwen_model.model.", problems)
    derived, released = _head_shapes(shapes), _flat(Mem0Config())
    names = ("action.width", "action.num_layers", "action.context_width")
    known = released if all(derived[name] == released[name] for name in names) else {}
    given = {name: value for name, value in settings.values.items() if not name.startswith("backbone.")}
    values = _complete(derived, given, known, "heads", settings.where, problems)
    _refuse(problems)
    config = _built(Mem0Config, _nested(values) | {"backbone": backbone}, settings)
    _check_tokens(config.backbone, settings)
    return config


def _built(cls: type[T], values: Mapping[str, Any], settings: Settings) -> T:
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        said = str(error)
    paths = said.replace(": ", ".")
    theirs = [f"{name} is its {given}" for name, given in THEIRS.items() if re.search(rf"\.{name}\b", paths)]
    raise ConversionError(f"{settings.where}: {said}" + (f" ({', '.join(theirs)})" if theirs else ""))


def _check_tokens(config: Qwen3VLConfig, settings: Settings) -> None:
    """Not a rule of the class: a job has its tokens and vocabulary from the tokenizer, not from its configuration."""
    size = config.text.vocab_size
    if beyond := [f"{name} {number}" for name, number in asdict(config.tokens).items() if number >= size]:
        raise ConversionError(
            f"{settings.where}: special tokens beyond the vocabulary of {size}: {', '.join(beyond)}; expected ids in "
            f"[0, {size})"
        )


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConversionError("the configuration is not settled:\n  " + "\n  ".join(problems))


def _backbone_values(shapes: Shapes, settings: Settings, prefix: str, problems: list[str]) -> dict[str, Any]:
    derived = _backbone_shapes(shapes, prefix)
    sizes = ("text.hidden_size", "text.num_hidden_layers", "vision.hidden_size", "vision.depth")
    family = RELEASED_BACKBONES.get(tuple(derived[name] for name in sizes))  # pyright: ignore[reportArgumentType]
    known = _flat(family) if family and derived["text.vocab_size"] == family.text.vocab_size else {}
    given = {k.removeprefix("backbone."): v for k, v in settings.values.items() if k.startswith("backbone.")}
    return _nested(_complete(derived, given, known, "backbone", settings.where, problems))


def _complete(
    derived: Mapping[str, Any],
    given: Mapping[str, Any],
    released: Mapping[str, Any],
    part: str,
    where: str,
    problems: list[str],
) -> dict[str, Any]:
    """Shapes first, then the file, then the released model."""
    problems += [
        f"{name} is {_plain(derived[name])} by the tensors' shapes, but {_plain(value)} in {where}"
        for name, value in given.items()
        if name in derived and _plain(value) != _plain(derived[name])
    ]
    values = {name: released[name] for name in UNTOLD[part] if name in released} | dict(given) | dict(derived)
    missing = [name for name in UNTOLD[part] if name not in values]
    if missing:
        problems.append(
            f"{part}: the shapes do not tell {', '.join(missing)}, and these are not the sizes of a released model; "
            "give the settings with --config FILE (the reference's YAML or a config.json) or --backbone DIR"
        )
    return values


def _backbone_shapes(shapes: Shapes, prefix: str) -> dict[str, Any]:
    text, vision = _Namespace(shapes, f"{prefix}model.language_model."), _Namespace(shapes, f"{prefix}model.visual.")
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


def _head_shapes(shapes: Shapes) -> dict[str, Any]:
    action, classifier = _Namespace(shapes, "action_model."), _Namespace(shapes, "classifier.")
    block = "model.transformer_blocks.0.attn1."
    sizes = [classifier["blocks.0.fc1.weight", 2][1]]
    sizes += [classifier[f"blocks.{i}.fc1.weight", 2][0] for i in range(classifier.count("blocks."))]
    return {
        "action.width": action[f"{block}to_q.weight", 2][1],
        "action.context_width": action[f"{block}to_k.weight", 2][1],
        "action.num_layers": action.count("model.transformer_blocks."),
        "action.hidden_size": action["state_encoder.layer1.weight", 2][0],
        "action.state_dim": action["state_encoder.layer1.weight", 2][1],
        "action.action_dim": action["action_encoder.layer1.weight", 2][1],
        "action.output_dim": action["model.proj_out_2.weight", 2][0],
        "action.max_positions": action["position_embedding.weight", 2][0],
        "classifier.hidden_sizes": tuple(sizes),
    }


@dataclass(frozen=True)
class _Namespace:
    """Shapes of the tensors under a prefix."""

    shapes: Shapes
    prefix: str

    def __getitem__(self, key: tuple[str, int]) -> tuple[int, ...]:
        name, axes = self.prefix + key[0], key[1]
        shape = self.shapes.get(name)
        if shape is None or len(shape) != axes or 0 in shape:
            found = "is missing" if shape is None else f"has shape {tuple(shape)}, expected {axes} axes"
            raise ConversionError(f"{name} {found}: not a checkpoint of this model")
        return shape

    def count(self, stem: str) -> int:
        """Layers `stem`0, `stem`1, ... without a gap (a tensor beyond a gap is found unmapped by the plan)."""
        found = {
            key[len(self.prefix) + len(stem) :].split(".")[0]
            for key in self.shapes
            if key.startswith(self.prefix + stem)
        }
        n = 0
        while str(n) in found:
            n += 1
        return n


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dataclass as dotted path -> value."""
    values: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            values |= _flat(value, f"{prefix}{f.name}.")
        else:
            values[prefix + f.name] = value
    return values


def _dotted(data: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """What is at `path` in a nested `Mem0Config` as dotted path -> value; lists become tuples."""
    if path not in PARTS:
        return {path: tuple(data) if isinstance(data, list) else data}
    if not isinstance(data, dict):
        problems.append(f"{path}: expected a mapping of settings, got {data!r:.60}")
        return {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if "." in str(key):
            problems.append(f"{path}: unknown entry {key!r:.60}")
        else:
            values |= _dotted(value, f"{path}.{key}".lstrip("."), problems)
    return values


PARTS = {path.rsplit(".", n)[0] for path in _flat(Mem0Config()) for n in range(1, 1 + path.count("."))} | {""}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *outer, last = path.split(".")
        node = tree
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    return tree


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
