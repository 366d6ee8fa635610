"""Batch 0 step by step: processors, backbone, head, sampling.

Axis letters: B samples, V pictures, N pixels along their side, S tokens, E width, C chunk length, A action width.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mem0_jax.backbones.internvl3.processor import Processor
from mem0_jax.backbones.internvl3.vision import normalised, pixel_shuffle
from mem0_jax.golden.models.evo1.folder import Golden, draws, exact, unit_noise
from mem0_jax.heads import flow
from mem0_jax.heads.cross_attention import CrossAttentionHead
from mem0_jax.nn import rope
from mem0_jax.policies.evo1.policy import Context
from mem0_jax.policies.inputs import widened
from mem0_jax.reference import Report
from mem0_jax.resize import resize


def processors(golden: Golden, report: Report) -> None:
    """Prompts, ids, masks, pictures, normalised numbers."""
    arrays, given, stage = golden.arrays, golden.arrays.below("batch0"), golden.arrays.below("stage")
    observation, config = golden.observation("batch0"), golden.config
    processor = Processor(golden.tokenizer, config.backbone, config.views, config.views, 2**14, whole=True)
    for text, expected in zip(given["task"], stage["prompts"], strict=True):
        report.add("processor: prompts", 0.0, float(processor.written(str(text)) != str(expected)), str(text))
    exact(report, "processor: ids", observation["input_ids"], stage["input_ids"], "batch 0")
    exact(report, "processor: what may be seen", observation["visible"], stage["context_mask"], "batch 0")
    side = config.backbone.vision.image_size
    for name in golden.cameras:
        ours = np.stack([resize(picture, (side, side), "bicubic_once") for picture in given[name]])
        levels(report, ours, stage[f"resized_uint8/{name}"].transpose(0, 2, 3, 1), name)
    if "resize/input_uint8" in arrays:
        expected = arrays["resize/output_uint8"]
        ours = resize(arrays["resize/input_uint8"], expected.shape[:2], "bicubic_once")
        levels(report, ours, expected, "resize")
    for dtype, name in ((jnp.float32, "pixel_values"), (jnp.bfloat16, "pixel_values_bf16")):
        expected = stage[name].transpose(0, 2, 3, 1)
        pixels = observation["pixels"]
        pixels = pixels.reshape(-1, *pixels.shape[2:]) if dtype == jnp.float32 else pixels[:, 0]
        ours = normalised(jnp.asarray(pixels), dtype).astype(jnp.float32)
        report.compare(f"pictures: {name}", 1e-5, ours, expected, "batch 0")
    numbers(golden, report)


def numbers(golden: Golden, report: Report) -> None:
    """States, actions and chunks in all modes of normalisation."""
    given, chunk, head = golden.arrays.below("batch0"), golden.arrays["sample/chunk"], golden.config.head
    width = len(golden.robot.action.names)
    for mode, prefix in (("MIN_MAX", ""), ("MEAN_STD", "norm/MEAN_STD/"), ("QUANTILES", "norm/QUANTILES/")):
        to = golden.normalizer(mode)
        state = widened(to.state.normalize(given["observation.state"]), head.state_dim)
        action = widened(to.action.normalize(given["action"]), head.action_dim)
        ours = {"state": state, "action": action, "postprocessed_chunk": to.action.denormalize(chunk[..., :width])}
        theirs = {name: f"{prefix}{name}" for name in ours}
        if not prefix:
            theirs = {name: f"batch0/preprocessed/{key}" for name, key in zip(ours, ("observation.state", "action"))}
            theirs["postprocessed_chunk"] = "sample/postprocessed_chunk"
        for name, value in ours.items():
            report.compare(f"normalisation: {name}", 2e-5, value, golden.arrays[theirs[name]], mode)


def levels(report: Report, ours: np.ndarray, theirs: np.ndarray, where: str) -> None:
    """Resized pictures may differ by one level where a value lies halfway between two."""
    off = np.abs(ours.astype(int) - theirs.astype(int))
    report.add("pictures: levels off", 1.0, float(off.max()), where)
    report.add("pictures: share of values off", 1e-4, float((off > 0).mean()), where)


def layers(stacked: nnx.Module) -> Iterator[Any]:
    """The layers of a `stacked` module."""
    graphdef, state = nnx.split(stacked)
    for n in range(len(jax.tree.leaves(state)[0])):
        yield nnx.merge(graphdef, jax.tree.map(lambda leaf, n=n: leaf[n], state))


def stages(golden: Golden, report: Report) -> None:
    """Batch 0 step by step, hidden tokens included."""
    model, stage = golden.policy.bind(golden.params), golden.arrays.below("stage")
    observation = golden.observation("batch0")

    def same(name: str, value: Any, gate: float = 1e-5, kind: str = "backbone") -> None:
        report.compare(f"{kind}: {name}", gate, value, stage[name], "batch 0")

    backbone, pixels = model.backbone, observation["pixels"]
    tower = backbone.vision_tower
    x = tower.embed(normalised(jnp.asarray(pixels.reshape(-1, *pixels.shape[2:])), jnp.float32))
    same("vision_embeddings", x)
    for n, block in enumerate(layers(tower.blocks)):
        x = block(x)
        same(f"vision_layer{n}" if f"vision_layer{n}" in stage else "vision_tower", x)
    shuffled = pixel_shuffle(x[:, 1:], golden.config.backbone.vision.side, golden.config.backbone.merge)
    same("pixel_shuffle", shuffled)
    tokens = backbone.projector(shuffled)
    same("projector", tokens)
    rows = len(observation["input_ids"])
    x = backbone.language_model.embed(tokens.reshape(rows, -1, tokens.shape[-1]), observation, jnp.float32)
    same("inputs_embeds", x)
    text = golden.config.backbone.text
    angle = observation["position"][..., None] * rope.inverse_frequencies(text.head_dim, text.rope_theta)
    mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool)) & observation["visible"][:, None]
    for n, layer in enumerate(layers(backbone.language_model.layers)):
        x = layer(x, jnp.asarray(angle), mask)[0]
        same(f"text_layer{n}", x)
    context = golden.policy.context(golden.params, observation)
    same("fused_tokens", context.tokens)
    head_stages(golden, model.head, context, report)


def head_stages(golden: Golden, head: CrossAttentionHead, context: Context, report: Report) -> None:
    """The head of batch 0 step by step, and its loss."""
    stage, given = golden.arrays.below("stage"), golden.arrays.below("batch0")

    def same(name: str, value: Any, gate: float = 1e-5) -> None:
        report.compare(f"head: {name}", gate, value, stage[name], "batch 0")

    state, action = stage["state_padded"], stage["action_padded"]
    condition = head.condition(context.tokens, context.copies, jnp.asarray(state), context.category)
    token = head.state_encoder(jnp.asarray(state), context.category)
    same("state_token", token)
    same("context", jnp.concatenate([context.tokens, token[:, None]], 1))
    exact(report, "head: key_padding_mask", np.isneginf(condition.weight), stage["key_padding_mask"], "batch 0")
    drawn, law = draws(given), golden.config.flow
    counts = np.asarray(context.real) & ~given["action_is_pad"][..., None]
    exact(report, "head: action_mask", counts, stage["action_mask_with_pad"], "batch 0")
    time = jnp.clip(drawn["time"], *law.time_range)
    same("noise_masked", drawn["noise"] * counts)
    point, velocity = flow.interpolate(drawn["noise"] * counts, action * counts, time)
    bucket = flow.bucket(time, law)
    exact(report, "head: time_index", bucket, stage["time_index"], "batch 0")
    row = head.time_table()[bucket]
    same("time_emb", row)
    x = head.tokens(jnp.asarray(point), context.category)
    if "action_encoder" in stage:
        same("action_encoder", x)
    for n, block in enumerate(layers(head.blocks)):
        kv = jax.tree.map(lambda leaf, n=n: leaf[n], condition.kv)
        same(f"block{n}_attn", block.attended(x, kv, condition.weight, None))
        x = block(x, row, kv, condition.weight, None)
        same(f"block{n}", x)
    x = head.norm_out(x)
    same("norm_out", x)
    if "seq_pool" in stage:
        same("seq_pool", head.pool(x.reshape(len(x), -1)))
    predicted = head.decode(x, context.category)
    same("velocity", predicted, 2e-5)
    error = np.square(np.asarray(predicted, np.float64) - np.asarray(velocity)) * counts
    same("loss_per_sample", error.sum((1, 2)) / np.maximum(counts.sum((1, 2)), 1))
    same("loss", error.sum() / counts.sum())


def sampling(golden: Golden, report: Report) -> None:
    """Chunks, their velocities, what is executed."""
    arrays, config = golden.arrays.below("sample"), golden.config
    head = golden.policy.bind(golden.params).head
    context = golden.policy.context(golden.params, golden.observation("batch0"))
    state, noise = golden.arrays["batch0/preprocessed/observation.state"], unit_noise(arrays["noise_unit"], config)
    drawn = np.abs(golden.policy.spec.draws(jax.random.key(0), 64))
    report.add("sampling: noise beyond [-1, 1)", 0.0, float(max(0, drawn.max() - 1)), "64 draws")
    exact(report, "sampling: time_index", flow.timesteps(config.flow), arrays["time_index"], "batch 0")
    condition, point = golden.policy.condition(golden.params, context, jnp.asarray(state)), noise * context.real
    for step, time in enumerate(flow.timesteps(config.flow)):
        velocity = head.velocity(condition, point, jnp.broadcast_to(time, len(point)))
        report.compare(
            "sampling: velocities", 2e-5, velocity, arrays["velocity_each_step_unmasked"][step], f"step {step}"
        )
        point = point + velocity * context.real / config.flow.solver_steps
    chunk = jax.jit(golden.policy.decide)(golden.params, context, state, noise)
    report.compare("sampling: chunk", 2e-5, chunk, arrays["chunk"], "batch 0")
    queue = golden.raw["sampling"]["queue_actions"]
    report.compare("sampling: queue", 2e-5, chunk[:, :queue], arrays["queue"], "batch 0")
    actions = golden.normalizer("MIN_MAX").action.denormalize(np.asarray(chunk)[..., : len(golden.robot.action.names)])
    report.compare("sampling: actions", 2e-5, actions, arrays["postprocessed_chunk"], "batch 0")
