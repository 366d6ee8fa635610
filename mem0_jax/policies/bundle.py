"""Self-describing policy folders: loading one needs nothing else.

config.json       format version, policy, its configuration, inputs, provenance
norm_stats.json   statistics of state and action
tokenizer.json    the tokenizer
params/           Orbax checkpoint of the parameters
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from tokenizers import Tokenizer

from mem0_jax import __version__
from mem0_jax.backbones.qwen3_vl.processor import Processor, load_tokenizer
from mem0_jax.config import from_dict, to_dict
from mem0_jax.data.normalize import Normalizer, NormStats
from mem0_jax.data.transforms import ObservationTransform
from mem0_jax.errors import UserError
from mem0_jax.policies.base import Params
from mem0_jax.policies.mem0 import Mem0, Mem0Config

FORMAT_VERSION = 1


class BundleError(UserError):
    """A folder that is no bundle, or one of another version."""


@dataclass(frozen=True)
class Inputs:
    """How observations become inputs.

    Attributes:
        camera_size: (height, width) camera images are resized to before anything else.
        resample: "bilinear" or "bicubic", for that resize.
        max_length: tokens of a prompt.
        normalization: mode of `data.normalize.Normalizer`.
    """

    camera_size: tuple[int, int] = (224, 224)
    resample: str = "bicubic"
    max_length: int = 128
    normalization: str = "min_max"


@dataclass(frozen=True)
class Bundle:
    """A policy with everything it needs."""

    config: Mem0Config
    params: Params
    stats: NormStats
    tokenizer: Tokenizer
    inputs: Inputs = field(default_factory=Inputs)
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def policy(self) -> Mem0:
        """The policy of this configuration."""
        return Mem0(self.config)

    @cached_property
    def processor(self) -> Processor:
        """Images and instructions to backbone arrays."""
        return Processor(self.tokenizer, self.config.backbone, self.config.image_size, self.inputs.max_length)

    @cached_property
    def transform(self) -> ObservationTransform:
        """Environment observations to images and states, and chunks back to actions."""
        normalizer = Normalizer(self.stats, self.inputs.normalization)
        return ObservationTransform(normalizer, self.inputs.camera_size, self.inputs.resample)


def save_bundle(bundle: Bundle, folder: str | Path) -> Path:
    """Writes a bundle; the folder appears when complete and replaces an older one."""
    folder = Path(folder).absolute()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    description = {
        "format_version": FORMAT_VERSION,
        "policy": "mem0",
        "config": to_dict(bundle.config),
        "inputs": to_dict(bundle.inputs),
        "provenance": {"mem0_jax": __version__, "jax": jax.__version__, **bundle.provenance},
    }
    (unfinished / "config.json").write_text(json.dumps(description, indent=1))
    bundle.stats.save(unfinished / "norm_stats.json")
    bundle.tokenizer.save(str(unfinished / "tokenizer.json"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(unfinished / "params", bundle.params)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return folder


def load_bundle(folder: str | Path) -> Bundle:
    """Reads a bundle; its parameters must fit its configuration exactly."""
    folder = Path(folder).absolute()
    path = folder / "config.json"
    if not path.is_file():
        raise BundleError(f"{folder} is no policy bundle: it has no config.json")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    if description.get("format_version") != FORMAT_VERSION or description.get("policy") != "mem0":
        raise BundleError(
            f"{path}: expected policy 'mem0' of format version {FORMAT_VERSION}, got "
            f"{description.get('policy')!r} of version {description.get('format_version')!r}"
        )
    config = from_dict(Mem0Config, description["config"])
    abstract = jax.eval_shape(Mem0(config).init, jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder / "params", abstract)
    return Bundle(
        config=config,
        params=params,
        stats=NormStats.load(folder / "norm_stats.json"),
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        inputs=from_dict(Inputs, description["inputs"]),
        provenance=description["provenance"],
    )
