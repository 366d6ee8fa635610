"""Measure inference by the engine: deferred frames, batched sessions, one control step against the memory bandwidth.

Ways are measured in turns, so that a busy machine slows both alike; a ratio is formed within a turn, and the median and
the spread over turns are reported. Random weights: speed does not depend on their values.

    python scripts/bench_inference.py                  # real width, reduced depth: for a CPU
    python scripts/bench_inference.py --full --json f  # the released 2.67 B parameters in bfloat16: for a GPU

With --full, and where torch and transformers can be imported, one frame through Hugging Face's backbone (sdpa,
bfloat16) on the same card stands beside it.
"""

# pyright: reportMissingImports=false

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.inference.engine import Engine, Request
from mem0_jax.policies.bundle import Bundle
from mem0_jax.policies.inputs import Camera, Inputs
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.policies.mem0.policy import serving_dtype
from mem0_jax.tree import flatten, unflatten

TEXT = " ".join(["move the red block"] * 10)  # 40 words, as long as the released instructions
FRAMES, SESSIONS = 30, 16
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12, "L4": 0.3e12}  # bytes a second, of data sheets


def make_bundle(text_layers: int, vision_layers: int, head_layers: int, dtype: str, full: bool) -> Bundle:
    """Real width; the parameters are made where they are to lie, in the dtype they are served in."""
    tokenizer = word_tokenizer([TEXT])
    text, vision = TextConfig(num_hidden_layers=text_layers), VisionConfig()
    if not full:
        text = replace(text, vocab_size=tokenizer.get_vocab_size())
        vision = replace(vision, depth=vision_layers, deepstack_visual_indexes=(0, vision_layers - 1))
    backbone = Qwen3VLConfig(text, vision, token_ids(tokenizer))
    config = Mem0Config(backbone, action=DiTConfig(num_layers=head_layers), dtype=dtype)
    shapes = flatten(jax.eval_shape(Mem0(config).init, jax.random.key(0)))
    make = jax.jit(lambda key, shape, kind: 0.02 * jax.random.normal(key, shape, kind), static_argnums=(1, 2))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = {p: make(k, leaf.shape, serving_dtype(p, config)) for k, (p, leaf) in zip(keys, shapes.items())}
    return Bundle(config, unflatten(leaves), None, tokenizer, Inputs(cameras=(Camera(size=(256, 256)),)))


def requests(bundle: Bundle, sessions: int, frames: int, *, fresh: bool = False) -> list[Request]:
    """One request a session with random contents."""
    rng, action = np.random.default_rng(0), bundle.config.action
    state = rng.normal(size=action.state_dim).astype(np.float32)
    noise = rng.normal(size=(action.horizon, action.action_dim)).astype(np.float32)
    images = rng.integers(0, 256, (sessions, frames, *bundle.inputs.cameras[0].size, 3), np.uint8)
    return [Request(slot, (images[slot],), TEXT, fresh, state, noise) for slot in range(sessions)]


def in_turns(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of every way, once a turn, after one turn that compiles."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                taken[name].append(time.perf_counter() - started)
    return taken


def compared(what: str, taken: dict[str, list[float]], goal: float) -> dict[str, Any]:
    """Medians of a slow and a fast way and of their ratio, and its least and greatest."""
    slow, fast = taken
    ratios = [a / b for a, b in zip(taken[slow], taken[fast])]
    result = {name: statistics.median(seconds) for name, seconds in taken.items()}
    result |= {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios), "goal": goal}
    print(f"{what}: " + ", ".join(f"{name} {result[name] * 1e3:.1f} ms" for name in (slow, fast)))
    print(f"    ratio {result['ratio']:.2f} ({result['least']:.2f} to {result['greatest']:.2f}), goal {goal}")
    return result


def deferred(bundle: Bundle, turns: int, goal: float) -> dict[str, Any]:
    """A chunk of 30 executed actions: 30 full forwards, as the frames come, against one step at the next decision."""
    policy, engine = bundle.policy, Engine(bundle)
    [whole] = requests(bundle, 1, FRAMES, fresh=True)
    observe, decide = jax.jit(policy.observe), jax.jit(policy.decide)

    def frame_by_frame():
        memory, context = policy.init_state(1), None
        for image in whole.images[0]:
            inputs = bundle.processor.prepare([image[None]], [TEXT]) | {"episode": np.zeros(1, np.int32)}
            context, info, memory = observe(bundle.params, memory, inputs)
            float(info["end_probability"][0])
        assert context is not None
        assert whole.state is not None
        assert whole.noise is not None
        return np.asarray(decide(bundle.params, context, whole.state[None], whole.noise[None]))

    ways = {"30 full forwards": frame_by_frame, "deferred": lambda: engine.step([whole])}
    return compared("a chunk of 30 frames", in_turns(ways, turns), goal)


def batched(bundle: Bundle, turns: int) -> dict[str, Any]:
    """16 sessions observe and decide: one after another, or in one step."""
    engine = Engine(bundle, SESSIONS, growth=SESSIONS)
    engine.step(requests(bundle, SESSIONS, 1, fresh=True))
    all_of_them = requests(bundle, SESSIONS, 1)
    ways = {
        "one after another": lambda: [engine.step([one]) for one in all_of_them],
        "in one step": lambda: engine.step(all_of_them),
    }
    return compared("16 sessions", in_turns(ways, turns), 6.0)


def control_step(bundle: Bundle, turns: int) -> dict[str, Any]:
    """One frame and one chunk against the time it takes to read the weights that are used once each."""
    engine, params = Engine(bundle), flatten(bundle.params)
    engine.step(requests(bundle, 1, 1, fresh=True))
    taken = in_turns({"observe and act": partial(engine.step, requests(bundle, 1, 1))}, turns)["observe and act"]
    unused = ("embed_tokens", "pos_embed", "position_embedding", "language_model/norm", "lm_head")
    used = {p: leaf.nbytes for p, leaf in params.items() if not any(part in p for part in unused)}
    once = sum(used.values())
    # The head is read at every solver step, but for what is constant over the chunk or for ever.
    constant = ("norm1", "cross/to_k", "cross/to_v", "time_linear", "proj_out_1", "state_encoder")
    again = sum(size for p, size in used.items() if p.startswith("action/") and not any(c in p for c in constant))
    reads = once + (bundle.config.flow.solver_steps - 1) * again
    kind = jax.devices()[0].device_kind
    rate = next((rate for name, rate in BANDWIDTH.items() if name in kind), None)
    result: dict[str, Any] = {"seconds": statistics.median(taken), "least": min(taken), "greatest": max(taken)}
    result |= {"weights_bytes": once, "read_bytes": reads, "device": kind}
    print(f"one control step on {kind}: {result['seconds'] * 1e3:.2f} ms; weights {once / 1e9:.2f} GB", end="")
    print(f", {reads / 1e9:.2f} GB read as the solver goes")
    if rate:
        result |= {"floor_seconds": once / rate, "solver_floor_seconds": reads / rate}
        result |= {
            "times_floor": result["seconds"] * rate / once,
            "times_solver_floor": result["seconds"] * rate / reads,
        }
        print(
            f"    {result['times_floor']:.2f} times the floor of each weight once ({once / rate * 1e3:.2f} ms), ",
            end="",
        )
        print(f"{result['times_solver_floor']:.2f} times that of the solver ({reads / rate * 1e3:.2f} ms); goal 3")
    return result


def hugging_face(bundle: Bundle, turns: int) -> dict[str, Any] | str:
    """One frame through Hugging Face's Qwen3VLModel of this size, and 30 of them in turn, on the same card."""
    try:
        import torch
        from transformers import Qwen3VLConfig as TheirConfig
        from transformers import Qwen3VLModel
    except ImportError as error:
        print(f"PyTorch: not measured ({error})")
        return str(error)
    text, vision = bundle.config.backbone.text, bundle.config.backbone.vision
    given = {
        "text_config": {k: getattr(text, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        | {"num_key_value_heads": text.num_key_value_heads, "head_dim": text.head_dim, "vocab_size": text.vocab_size}
        | {"intermediate_size": text.intermediate_size},
        "vision_config": {k: getattr(vision, k) for k in ("depth", "hidden_size", "intermediate_size", "num_heads")}
        | {"out_hidden_size": vision.out_hidden_size}
        | {"deepstack_visual_indexes": list(vision.deepstack_visual_indexes)},
        "image_token_id": bundle.config.backbone.tokens.image,
        "vision_start_token_id": bundle.config.backbone.tokens.vision_start,
        "vision_end_token_id": bundle.config.backbone.tokens.vision_end,
        "video_token_id": bundle.config.backbone.tokens.video,
    }
    place = "cuda" if torch.cuda.is_available() else "cpu"
    config = TheirConfig(**given, attn_implementation="sdpa")
    with torch.device(place):
        model = Qwen3VLModel(config).to(torch.bfloat16).eval()
    arrays = bundle.processor.prepare(requests(bundle, 1, 1)[0].images, [TEXT])
    side = 256 // vision.patch_size
    tensors = {
        "input_ids": torch.tensor(arrays["input_ids"].astype(np.int64), device=place),
        "attention_mask": torch.tensor(arrays["attention_mask"].astype(np.int64), device=place),
        "pixel_values": torch.tensor(arrays["patches"][0, 0] / 127.5 - 1.0, dtype=torch.bfloat16, device=place),
        "image_grid_thw": torch.tensor([[1, side, side]], device=place),
    }

    def frame():
        with torch.inference_mode():
            return model(**tensors).last_hidden_state[0, 0, 0].item()  # .item() waits for the card

    taken = in_turns({"frame": frame, "chunk": lambda: [frame() for _ in range(FRAMES)]}, turns)
    result = {f"{name}_seconds": statistics.median(seconds) for name, seconds in taken.items()}
    print(f"PyTorch {torch.__version__} on {place}, backbone alone (sdpa, bfloat16): one frame ", end="")
    print(f"{result['frame_seconds'] * 1e3:.1f} ms, 30 frames {result['chunk_seconds'] * 1e3:.1f} ms")
    return result


def main() -> None:
    """Runs what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="released size in bfloat16")
    parser.add_argument("--layers", type=int, default=2, help="of text, vision and head, without --full")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=("deferred", "batched", "step"), action="append")
    parser.add_argument("--json")
    args = parser.parse_args()
    size = (28, 24, 16, "bfloat16") if args.full else (args.layers, args.layers, args.layers, "float32")
    bundle, wanted = make_bundle(*size, full=args.full), args.only or ("deferred", "batched", "step")
    results: dict[str, Any] = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "layers": size[:3]}
    if "deferred" in wanted:
        results["deferred"] = deferred(bundle, args.turns, 5.0 if args.full else 1.5)
    if "batched" in wanted:
        results["batched"] = batched(bundle, args.turns)
    if "step" in wanted:
        results["step"] = control_step(bundle, args.turns)
    if args.full:
        results["pytorch"] = hugging_face(bundle, args.turns)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
