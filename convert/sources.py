"""Checkpoints of every kind we know, opened alike: named tensors that are read when asked for.

Names are those of the PyTorch world: Hugging Face's for a backbone, the reference's for Mem-0. A bundle of ours is
opened under the same names, so that looking, comparing and exporting need no case of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.convert.files import Parts
from mem0_jax.convert.hf_safetensors import open_safetensors
from mem0_jax.convert.mem0 import mem0_rules, qwen3_vl_rules
from mem0_jax.convert.rules import AnyRule, Constant, ConversionError, Tied, exported, make_plan
from mem0_jax.convert.stored import StoredTensor, nbytes
from mem0_jax.convert.torch_pt import open_pt
from mem0_jax.policies.bundle import abstract_params, read_description
from mem0_jax.policies.mem0 import Mem0Config
from mem0_jax.store import open_tree

BACKBONE_IN_MEM0 = "qwen_model.model."  # before Hugging Face's names, in a Mem-0 checkpoint
Config = Mem0Config | Qwen3VLConfig


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        path: as the user named it.
        format: "pt", "safetensors" or "bundle".
        model: "mem0" or "qwen3_vl".
        tensors: by PyTorch name; each has `shape`, `dtype` and `read()`.
        checkpoint: what a `.pt` file holds besides the tensors (optimizer, scheduler, step).
        parts: the `.pt` file itself.
        config: known only for a bundle.
    """

    path: Path
    format: str
    model: str
    tensors: Mapping[str, Any]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts | None = None
    config: Config | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its PyTorch name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, tied ones once."""
        tied = {twin for twin, _ in tied_tensors(self.tensors)}
        return sum(nbytes(tensor) for name, tensor in self.tensors.items() if name not in tied)


def tied_tensors(tensors: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs (later name, earlier name) of tensors that are one and the same in the file."""
    first: dict[Any, str] = {}
    pairs = []
    for name, tensor in tensors.items():
        twin = first.setdefault(identity(tensor), name)
        if twin != name:
            pairs.append((name, twin))
    return pairs


def identity(tensor: Any) -> Any:
    """Equal for tensors that are one and the same in the file."""
    if isinstance(tensor, StoredTensor):
        return tensor.storage, tensor.start, tensor.offset, tensor.shape, tensor.strides
    return id(tensor)


def rules_of(config: Config) -> list[AnyRule]:
    """The table that maps between PyTorch names and our tree."""
    return mem0_rules(config) if isinstance(config, Mem0Config) else qwen3_vl_rules(config)


def open_source(path: str | Path) -> Source:
    """Opens a `.pt` file or its byte parts, safetensors (a file or a folder) or a bundle of ours.

    Raises:
        UserError: nothing there, damaged, or of a model without rules.
    """
    path = Path(path)
    if path.is_dir() and (path / "params").is_dir():
        return _open_bundle(path)
    if path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors*"))):
        tensors = open_safetensors(path)
        return Source(path, "safetensors", _model(tensors, path), tensors)
    parts = Parts.open(path)
    content = open_pt(parts)
    checkpoint = content if isinstance(content, dict) else {}
    state = checkpoint.get("model_state_dict", checkpoint)
    tensors = {key: value for key, value in state.items() if isinstance(value, StoredTensor)} if state else {}
    if not tensors or len(tensors) != len(state):
        raise ConversionError(
            f"{path}: expected a dict of tensors, or one under 'model_state_dict'; found "
            + (f"the entries {', '.join(map(repr, list(checkpoint)[:8]))}" if checkpoint else type(content).__name__)
        )
    rest = (
        {key: value for key, value in checkpoint.items() if key != "model_state_dict"} if state is not content else {}
    )
    return Source(path, "pt", _model(tensors, path), tensors, rest, parts)


def _open_bundle(path: Path) -> Source:
    config, _ = read_description(path)
    leaves = open_tree(path / "params")
    rules = rules_of(config)
    plan = make_plan(rules, None, abstract_params(config))
    if missing := [leaf for leaf in plan.abstract if leaf not in leaves]:
        raise ConversionError(f"{path}: params lacks {', '.join(missing)}: the bundle is damaged")
    tensors: dict[str, Any] = dict(exported(plan, leaves))
    for rule in rules:
        if isinstance(rule, Tied):
            tensors[rule.source] = tensors[rule.same_as]
        elif isinstance(rule, Constant):
            tensors[rule.source] = np.array(rule.value, np.float32)
    return Source(path, "bundle", "mem0" if isinstance(config, Mem0Config) else "qwen3_vl", tensors, config=config)


def _model(tensors: Mapping[str, Any], path: Path) -> str:
    if any(name.startswith(BACKBONE_IN_MEM0) for name in tensors):
        return "mem0"
    if any(name.startswith("model.visual.") for name in tensors):
        return "qwen3_vl"
    raise ConversionError(
        f"{path}: neither a Mem-0 (tensors called {BACKBONE_IN_MEM0}...) nor a Qwen3-VL (model.visual....); it begins "
        f"with {', '.join(map(repr, list(tensors)[:4]))}"
    )
