"""From a bundle back to the PyTorch world."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.convert.finite import finite
from mem0_jax.convert.hf_safetensors import write_safetensors
from mem0_jax.convert.importer import PROCESSOR_FILES, TOKENIZER
from mem0_jax.convert.rules import ConversionError
from mem0_jax.convert.sources import Source
from mem0_jax.convert.stored import nbytes
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.convert.wrapped import BACKBONE_IN_MEM0
from mem0_jax.disk import disk_told
from mem0_jax.lock import hold_output
from mem0_jax.policies.bundle import new_folder, read_description
from mem0_jax.policies.mem0 import Mem0Config

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
    prefix = BACKBONE_IN_MEM0 if source.model == "mem0" else ""
    config = _backbone_config(source)
    tied = config.text.tie_word_embeddings
    if out.exists():
        raise ConversionError(f"{out} exists: name a new folder")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in source.tensors.items()
        if name.startswith(prefix) and not (tied and name.endswith("lm_head.weight"))
    }
    dtypes = {np.dtype(tensor.dtype).name for tensor in tensors.values()}
    with new_folder(out) as folder:
        write_safetensors(folder, tensors if allow_nonfinite else finite(tensors), progress=progress)
        description = hugging_face_config(config, dtypes.pop() if len(dtypes) == 1 else "float32")
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        for name in (TOKENIZER, *PROCESSOR_FILES):
            for place in (source.path / name, source.path / "processor" / name):
                if place.is_file():
                    shutil.copyfile(place, folder / name)
    return {"tensors": len(tensors), "bytes": sum(map(nbytes, tensors.values()))}


def _backbone_config(source: Source) -> Qwen3VLConfig:
    if source.config is None:
        raise ConversionError(f"{source.path} is no bundle: convert it to one first, then export that")
    return source.config.backbone if isinstance(source.config, Mem0Config) else source.config


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
