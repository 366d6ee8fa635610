"""The only tiny Mem-0 of the tests: one layer of everything. A test names the sizes that matter to it, no others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.robot import RMBENCH, Robot
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.bundle import Bundle
from mem0_jax.policies.inputs import Camera, Inputs
from mem0_jax.policies.mem0 import Mem0, Mem0Config

Config = TypeVar("Config")


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with other values of fields, named as in `flow.solver_steps`."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        field, _, inner = name.partition(".")
        parts.setdefault(field, {})[inner] = value
    fields = {
        field: values[""] if "" in values else changed(getattr(config, field), values)
        for field, values in parts.items()
    }
    return dataclasses.replace(config, **fields)  # pyright: ignore[reportArgumentType]


def mem0_config(
    changes: Mapping[str, Any] | None = None, tokens: TokenIds | None = None, vocabulary: int = 15
) -> Mem0Config:
    """Width 16, pictures of 32 x 32 in patches of 16, a window of 4 frames, chunks of 3 actions, 2 solver steps."""
    text = TextConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        vocab_size=vocabulary,
        rope_theta=1e4,
        mrope_section=(2, 1, 1),
    )
    vision = VisionConfig(
        depth=1,
        hidden_size=16,
        intermediate_size=16,
        num_heads=2,
        num_position_embeddings=16,
        deepstack_visual_indexes=(0,),
        temporal_patch_size=1,
        out_hidden_size=16,
    )
    head = DiTConfig(width=16, num_heads=2, num_layers=2, context_width=16, hidden_size=16, output_dim=16, horizon=3)
    config = Mem0Config(
        Qwen3VLConfig(text, vision, tokens or TokenIds()),
        MemoryConfig(window_size=4, num_heads=2),
        FlowConfig(solver_steps=2),
        head,
        ClassifierConfig(hidden_sizes=(48, 8)),
        image_size=(32, 32),
        dtype="float32",
    )
    return changed(config, changes or {})


def mem0_bundle(
    texts: Sequence[str],
    changes: Mapping[str, Any] | None = None,
    *,
    camera_size: tuple[int, int] = (32, 32),
    cameras: Sequence[Camera] = (),
    robot: Robot = RMBENCH,
    max_length: int = 24,
    span: float = 1.5,
    random: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """An untrained policy with a tokenizer of the words of `texts`; numbers lie in [-span, span].

    With `random` all parameters are random, the classifier's too: what is at rest hides mistakes.
    """
    tokenizer = word_tokenizer(texts)
    config = mem0_config(changes, token_ids(tokenizer), tokenizer.get_vocab_size())
    params = jax.jit(Mem0(config).init)(jax.random.key(0))
    if random:
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(0, 0.3, x.shape), np.float32), params)
    state, action = (
        {"min": np.full(len(vector.names), -span), "max": np.full(len(vector.names), span)}
        for vector in (robot.state, robot.action)
    )
    inputs = Inputs(
        cameras=tuple(cameras) or (Camera(size=camera_size),),
        deploy_resample="bilinear",
        max_length=max_length,
        robot=robot,
    )
    return Bundle(config, params, NormStats(state, action), tokenizer, inputs, dict(provenance or {}))
