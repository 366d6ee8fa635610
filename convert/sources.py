"""Checkpoints of every kind we know, opened alike: named tensors that are read when asked for.

Names are those of the PyTorch world, Hugging Face's or a reference's. A bundle of ours is
opened under the same names, so that looking, comparing and exporting need no case of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.convert.files import Parts
from mem0_jax.convert.format import Format
from mem0_jax.convert.hf_safetensors import open_safetensors, read_safetensors
from mem0_jax.convert.models import format_of
from mem0_jax.convert.rules import Constant, ConversionError, Tied, exported, make_plan
from mem0_jax.convert.stored import StoredTensor, nbytes
from mem0_jax.convert.torch_pt import open_pt
from mem0_jax.convert.wrapped import find_weights
from mem0_jax.family import Config
from mem0_jax.policies.bundle import abstract_params, read_description
from mem0_jax.store import open_tree

SHARD = re.compile(r".+-\d{5}-of-(?P<count>(?!00001)\d{5})\.\w+")
PYTORCH_MODEL = "pytorch_model.bin"  # in a folder of Hugging Face: the weights as a .pt file
SEVERAL_BINS = "has its weights in several .bin files: save it with save_pretrained as safetensors instead"
# Files in folders of weights that are not read -> what follows the folder's name.
FOLDERS = {
    "*.distcp": "is a checkpoint of torch.distributed: join it first with "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch SRC DST",
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed: join its files first with the zero_to_fp32.py in it",
    "*.safetensors.index.json": "has an index of safetensors and none of them: download them too",
    "*_optim_states.pt": "is a step of a checkpoint of DeepSpeed: join its files first with the zero_to_fp32.py in "
    "the folder above",
    "*.bin.index.json": SEVERAL_BINS,
    "*-of-?????.bin": SEVERAL_BINS,
    "*.gguf": "has a GGUF file of llama.cpp: convert the model's safetensors instead",
}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        path: as the user named it.
        format: "pt", "safetensors" or "bundle".
        model: whose tensors they are.
        tensors: by PyTorch name; each has `shape`, `dtype` and `read()`.
        checkpoint: what a `.pt` file holds besides the tensors (optimizer, scheduler, step).
        config: known only for a bundle.
        notes: what the user should know about how it was read.
    """

    path: Path
    format: str
    model: Format
    tensors: Mapping[str, Any]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its PyTorch name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def model_folder(self) -> Path | None:
        """The folder of Hugging Face that the weights lie in, if they do."""
        folder = self.path.parent if self.path.is_file() else self.path
        named = self.path in (folder, folder / PYTORCH_MODEL) and (folder / PYTORCH_MODEL).is_file()
        return folder if named or self.format == "safetensors" else None

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


def open_source(path: str | Path, weights: str | None = None) -> Source:
    """Opens a `.pt` file or safetensors (a file, its byte parts, or a folder) or a bundle of ours.

    Args:
        path: where it lies.
        weights: which ones, where a file holds several sets, such as averages beside them (see `wrapped`).

    Raises:
        UserError: nothing there, damaged, or of a model without rules.
    """
    path = Path(path)
    if path.is_dir() and (path / "params").is_dir():
        return _open_bundle(path)
    content, kind = _read(path)
    try:
        found = find_weights(content, weights)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None
    taken = found.keys[:1] or found.model.modules
    rest = {key: value for key, value in content.items() if key not in taken and not isinstance(value, StoredTensor)}
    notes = [*found.notes, *_unchecked(found.tensors, kind)]
    return Source(path, kind, found.model, found.tensors, rest, notes=notes)


def _read(path: Path) -> tuple[Any, str]:
    """What is in the files, and their format."""
    if match := SHARD.fullmatch(path.name):
        raise ConversionError(
            f"{path} is one of {int(match['count'])} shards of a model: name their folder, {path.parent}"
        )
    if path.name.endswith(".index.json") or (path.is_dir() and any(path.glob("*.safetensors"))):
        return open_safetensors(path), "safetensors"
    if path.is_dir():
        for pattern, said in FOLDERS.items():
            if any(path.glob(pattern)):
                raise ConversionError(f"{path} {said}")
        path = path / PYTORCH_MODEL if (path / PYTORCH_MODEL).is_file() else path
    elif path.name.endswith("_optim_states.pt"):
        raise ConversionError(
            f"{path} holds the optimizer's state of DeepSpeed: join its checkpoint's files first with the "
            "zero_to_fp32.py in the folder above"
        )
    parts = Parts.open(path)
    if parts.name.endswith(".safetensors"):
        return read_safetensors(parts), "safetensors"
    return open_pt(parts), "pt"


def _unchecked(tensors: Mapping[str, Any], kind: str) -> list[str]:
    count = sum(tensor.checksum is None for tensor in tensors.values())
    if kind != "pt" or not count:
        return []
    return [f"{count} tensors have no checksum (torch.serialization.set_crc32_options): damage to them goes unseen"]


def _open_bundle(path: Path) -> Source:
    config, _ = read_description(path)
    leaves = open_tree(path / "params")
    model = format_of(config)
    rules = model.rules(config)
    plan = make_plan(rules, None, abstract_params(config))
    if missing := [leaf for leaf in plan.abstract if leaf not in leaves]:
        raise ConversionError(f"{path}: params lacks {', '.join(missing)}: the bundle is damaged")
    tensors: dict[str, Any] = dict(exported(plan, leaves))
    for rule in rules:
        if isinstance(rule, Tied):
            tensors[rule.source] = tensors[rule.same_as]
        elif isinstance(rule, Constant):
            tensors[rule.source] = np.array(rule.value, np.float32)
    return Source(path, "bundle", model, tensors, config=config)
