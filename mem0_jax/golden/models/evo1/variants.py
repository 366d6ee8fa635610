"""Other prompts and masks, other heads, and the authors' modes. Axis letters as in `folder`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.convert.models.evo1 import HEAD, head_rules
from mem0_jax.convert.rules import load, make_plan
from mem0_jax.convert.sources import open_source
from mem0_jax.golden.models.evo1.folder import Golden, draws, exact, loaded, unit_noise
from mem0_jax.golden.models.evo1.stages import levels
from mem0_jax.golden.models.evo1.training import gradient_norms
from mem0_jax.heads import flow
from mem0_jax.heads.cross_attention import CrossAttentionConfig, CrossAttentionHead
from mem0_jax.nn import module
from mem0_jax.policies.evo1.config import Flow
from mem0_jax.policies.evo1.policy import EVO1
from mem0_jax.policies.evo1.processor import Processor
from mem0_jax.policies.inputs import Camera, Inputs
from mem0_jax.reference import Entries, Report
from mem0_jax.resize import resize


def variants(golden: Golden, report: Report) -> None:
    """One token of context, per-row views and masks, a prompt that is cut off."""
    batch = golden.batch(0)
    flat = {name: value[0] for name, value in batch.items()}
    forward(golden, report, "cls_only", replace(golden.config, cls_only=True), flat, golden.arrays.below("cls_only"))
    given = golden.arrays.below("mixed")
    views = [given["images"][:, view] for view in range(golden.config.views)]
    mixed = golden.shown(views, given["image_mask"], given["task"]) | draws(given) | golden.kinds(given)
    mixed |= {name: given[name] for name in ("state", "action", "action_mask")}
    mixed["action_is_pad"] = np.zeros(mixed["action"].shape[:2], bool)
    exact(report, "mixed: ids", mixed["input_ids"], given["input_ids"], "mixed")
    forward(golden, report, "mixed", golden.config, mixed, given)
    cut = golden.arrays.below("truncated")
    shown = golden.observation("batch0", int(cut["max_text_length"]))
    exact(report, "truncated: ids", shown["input_ids"], cut["input_ids"], "truncated")
    tokens = golden.policy.context(golden.params, shown).tokens
    report.compare("truncated: tokens", 1e-5, tokens, cut["fused_tokens"], "truncated")


def forward(
    golden: Golden, report: Report, kind: str, config: Any, batch: Mapping[str, Any], expected: Entries
) -> None:
    """Loss, velocity, tokens and chunk of a flat batch: of them, what is expected."""
    policy, seen = EVO1(config), dict(batch)

    @jax.jit
    def play(params: Any, seen: dict[str, Any], noise: Any) -> dict[str, Any]:
        lane = {name: value[None] for name, value in seen.items()}
        loss = policy.loss(params, (), lane, jax.random.key(0), False)[0]
        context = policy.context(params, seen)
        counts = context.real & ~seen["action_is_pad"][..., None]
        if config.mode != "masked":  # the authors' solver knows which numbers the robot has, and no more
            context = context._replace(real=seen["real"][:, None])
        time = jnp.clip(seen["time"], *config.flow.time_range)
        point, _ = flow.interpolate(seen["noise"] * counts, seen["action"] * counts, time)
        condition = policy.condition(params, context, seen["state"])
        velocity = policy.bind(params).head.velocity(condition, point, flow.bucket(time, config.flow))
        chunk = policy.decide(params, context, seen["state"], noise)
        return {"loss": loss, "tokens": context.tokens, "velocity": velocity, "chunk": chunk}

    made = play(golden.params, seen, unit_noise(golden.arrays["sample/noise_unit"], config))
    for name, gate in (("loss", 1e-5), ("velocity", 2e-5), ("chunk", 2e-5)):
        if name in expected:
            report.compare(f"{kind}: {name}", gate, made[name], expected[name], kind)
    for name in {"fused_tokens", "fused"} & expected.keys():
        tokens, theirs = made["tokens"], expected[name]
        if tokens.ndim == theirs.ndim and tokens.shape[1] < theirs.shape[1]:  # padding stands once
            last = seen["attention_mask"].sum(1, keepdims=True) - 1
            place = np.minimum(np.arange(theirs.shape[1]), last)
            tokens = jnp.take_along_axis(tokens, place[..., None], 1)
        report.compare(f"{kind}: tokens", 1e-5, tokens, theirs, kind)


def heads(golden: Golden, report: Report) -> None:
    """Heads alone, with weights of their own: chunks of one action, several kinds of robots."""
    for kind, sizes in golden.raw["variants"].items():
        given = golden.arrays.below(f"variant_{kind}")
        config = replace(
            golden.config,
            head=CrossAttentionConfig(
                width=sizes["embed_dim"],
                hidden_size=sizes["hidden_dim"],
                state_hidden_size=sizes["state_hidden_dim"],
                num_heads=sizes["num_heads"],
                num_layers=sizes["num_layers"],
                action_dim=sizes["per_action_dim"],
                state_dim=sizes["state_dim"],
                horizon=sizes["horizon"],
                times=golden.arrays["variant_time_table"].shape[1],
                categories=sizes["num_categories"],
            ),
            backbone=replace(
                golden.config.backbone, text=replace(golden.config.backbone.text, hidden_size=sizes["embed_dim"])
            ),
            flow=Flow(solver_steps=sizes["num_inference_timesteps"]),
        )
        alone(config, given, golden.arrays["variant_time_table"], report, kind)


def alone(config: Any, given: Entries, table: np.ndarray, report: Report, kind: str) -> None:
    """One such head: velocity and chunk."""

    def build(rngs: Any) -> CrossAttentionHead:
        return CrossAttentionHead(config.head, rngs)

    tensors = {HEAD + name: value for name, value in given.below("weights").items()} | {f"{HEAD}time_pos_enc.pe": table}
    abstract = {"head": jax.eval_shape(lambda: module.init(build, jax.random.key(0)))}
    plan = make_plan(head_rules(config), {name: value.shape for name, value in tensors.items()}, abstract)
    head = module.bind(build)(jax.tree.map(jnp.asarray, load(plan, tensors))["head"])
    law, kinds = config.flow, jnp.asarray(given["embodiment_ids"], jnp.int32)
    condition = head.condition(
        jnp.asarray(given["fused"]), jnp.asarray(given["context_mask"], jnp.int32), jnp.asarray(given["state"]), kinds
    )
    drawn, counts = draws(given), given["action_mask"]
    time = jnp.clip(drawn["time"], *law.time_range)
    point, _ = flow.interpolate(drawn["noise"] * counts, given["action"] * counts, time)
    velocity = head.velocity(condition, point, flow.bucket(time, law))
    report.compare("other heads: velocity", 2e-5, velocity, given["velocity"], kind)
    real = counts.any(1, keepdims=True)
    noise = (2 * given["sample_noise_unit"].reshape(point.shape) - 1) * real

    def step(x: Any, time: Any) -> Any:
        return head.velocity(condition, x, jnp.broadcast_to(time, len(x))) * real

    report.compare("other heads: chunk", 2e-5, flow.solve(step, noise, law), given["chunk"], kind)


def authors(golden: Golden, report: Report) -> None:
    """Their checkpoint, in their modes, with prompts of a fixed length."""
    given, length = golden.arrays.below("upstream"), int(golden.arrays["upstream/pad_length"])
    for number, name in enumerate(golden.cameras):
        pictures, side = golden.arrays[f"batch0/{name}"], golden.config.backbone.vision.image_size
        ours = np.stack([resize(picture, (side, side), "bicubic") for picture in pictures])
        levels(report, ours, given["pil_resized_uint8"][:, number], f"authors, {name}")
    source = open_source(golden.folder / "upstream" / "mp_rank_00_model_states.pt")
    plan, params = loaded(source, golden.policy)
    wrong = sum(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, golden.params))))
    report.add("authors: parameters that differ", 0.0, float(wrong), str(source.path.name))
    batch = {name: value[0] for name, value in golden.batch(0).items()}
    for mode in ("fa2", "eager"):
        config = replace(golden.config, mode=mode)
        room = length if mode == "eager" else golden.longest("batch0") + 1
        inputs = Inputs(tuple(map(Camera, golden.cameras)), max_length=room, robot=golden.robot)
        processor = Processor(golden.tokenizer, config, inputs)
        task = golden.arrays["batch0/task"]
        shown = processor.prepare([golden.arrays[f"batch0/{name}"] for name in golden.cameras], list(map(str, task)))
        # Padded steps are supervised there.
        padded = np.zeros_like(batch["action_is_pad"])
        shown = batch | shown | {"action_mask": given["action_mask"], "action_is_pad": padded}
        visible = _filled(shown["visible"], length)
        exact(report, "authors: what may be seen", visible, given[f"{mode}/attention_mask"], mode)
        forward(golden, report, f"authors' {mode}", config, shown, given.below(mode))
        if mode == "fa2":
            ids = _filled(shown["input_ids"], length, config.backbone.tokens.pad)
            exact(report, "authors: ids", ids, given["fa2/input_ids"], mode)
            lane, policy = {name: value[None] for name, value in shown.items()}, EVO1(config)

            def loss(params: Any, policy: EVO1 = policy, lane: Any = lane) -> Any:
                return policy.loss(params, (), lane, jax.random.key(0), False)[0]

            gradients = jax.jit(jax.grad(loss))(params)
            norm = np.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(gradients)))
            report.compare("authors: gradient norm", 2e-5, norm, given["fa2/grad_norm"], mode)
            for entry in gradient_norms(plan, gradients, given.below("fa2/grad0_norm"), "", mode):
                report.add(entry[0].replace("training", "authors"), *entry[1:])
    mixed = golden.arrays.below("mixed")
    views = [mixed["images"][:, view] for view in range(golden.config.views)]
    shown = golden.shown(views, mixed["image_mask"], mixed["task"], length) | draws(mixed) | golden.kinds(mixed)
    shown |= {name: mixed[name] for name in ("state", "action", "action_mask")}
    shown["action_is_pad"] = np.zeros(shown["action"].shape[:2], bool)
    shown |= {"real": mixed["action_mask"].any(1), "copies": np.ones_like(shown["copies"])}
    forward(golden, report, "authors' fa2, mixed", replace(golden.config, mode="fa2"), shown, given.below("fa2_mixed"))


def _filled(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    """Arrays of prompts [B, S] filled up to so many tokens."""
    return np.pad(values, [(0, 0), (0, length - values.shape[1])], constant_values=fill)
