"""From a bundle back to the PyTorch world."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.convert.finite import finite
from mem0_jax.convert.hf_safetensors import write_safetensors
from mem0_jax.convert.importer import PROCESSOR_FILES, TOKENIZER
from mem0_jax.convert.rules import ConversionError, Tied
from mem0_jax.convert.sources import Source
from mem0_jax.convert.stored import nbytes
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.disk import disk_told
from mem0_jax.lock import hold_output
from mem0_jax.policies.bundle import new_folder, read_description

Progress = Callable[[int], object]


def to_torch(
    source: Source, out: Path, progress: Progress = lambda count: None, allow_nonfinite: bool = False
) -> dict[str, Any]:
    """Writes a `.pt` file that the reference's loader takes with `strict=True`: tensors under `model_state_dict`.

    Returns:
        What was written: number of `tensors`, and their `bytes`, tied ones once.

    Raises:
        ConversionError: a tensor has NaN or infinity in it and `allow_nonfinite` is not set.
    """
    if out.is_dir():
        raise ConversionError(f"{out} is a folder: name the .pt file to write")
    step = None
    if source.format == "bundle":
        step = read_description(source.path)[1].get("provenance", {}).get("source_step")
    tensors = source.tensors if allow_nonfinite else finite(source.tensors)
    with hold_output(out), disk_told(out):
        write_pt(out, {"model_state_dict": OrderedDict(tensors), "global_step": step or 0}, progress)
    return {"tensors": len(source.tensors), "bytes": source.nbytes}


def to_safetensors(
    source: Source, out: Path, progress: Progress = lambda count: None, allow_nonfinite: bool = False
) -> dict[str, Any]:
    """Writes the backbone as a Hugging Face folder that `transformers` loads, tokenizer and processor files with it.

    Returns:
        As `to_torch`.
    """
    model, prefix, config = source.model.innermost, source.model.prefix, source.config
    if config is None:
        raise ConversionError(f"{source.path} is no bundle: convert it to one first, then export that")
    if model.hugging_face is None:
        raise ConversionError(f"{source.path} is a {source.model.title}, which has no Hugging Face folder: --to torch")
    if source.model.backbone:
        config = getattr(config, source.model.backbone.field)
    tied = {rule.source for rule in model.rules(config) if isinstance(rule, Tied)}
    if out.exists():
        raise ConversionError(f"{out} exists: name a new folder")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in source.tensors.items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in tied
    }
    dtypes = {np.dtype(tensor.dtype).name for tensor in tensors.values()}
    with new_folder(out) as folder:
        write_safetensors(folder, tensors if allow_nonfinite else finite(tensors), progress=progress)
        description = model.hugging_face(config, dtypes.pop() if len(dtypes) == 1 else "float32")
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        for name in (TOKENIZER, *PROCESSOR_FILES):
            for place in (source.path / name, source.path / "processor" / name):
                if place.is_file():
                    shutil.copyfile(place, folder / name)
    return {"tensors": len(tensors), "bytes": sum(map(nbytes, tensors.values()))}
