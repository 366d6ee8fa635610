"""Reading a planner's question and writing its answer: tokens a second here and in transformers, on this machine.

    python scripts/bench_planner.py                                      # real widths of 2B, 4 layers: a CPU
    python scripts/bench_planner.py --size 8b --layers 0 --dtype bfloat16 --json h.json      # all of 8B: one GPU

Both sides have random weights of the same shapes, get the same question (text and camera images of 320x240 pixels, the
vision tower included) and answer greedily; they take turns, `--rounds` times, and the medians are compared. `prefill`
counts the tokens of the prompt until the first of the answer, `decode` those that follow. transformers runs as it
comes: `generate` with its dynamic cache and torch's fused attention.
"""

# pyright: reportMissingImports=false

import argparse
import dataclasses
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the other side its share of the memory

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import Encoded, Generator, Settings
from mem0_jax.backbones.qwen3_vl.images import PixelBounds, image_patches
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS
from mem0_jax.convert.models.qwen3_vl import hugging_face_config
from mem0_jax.disk import write_json
from mem0_jax.nn import module

SIZES = {
    "tiny": Qwen3VLConfig(
        TextConfig(32, 2, 2, 1, 16, 32, mrope_section=(4, 2, 2)),
        VisionConfig(2, 32, 32, 2, 16, (0,), out_hidden_size=32),
    ),
    "2b": Qwen3VLConfig(),
    "8b": Qwen3VLConfig(
        TextConfig(4096, 36, 32, 8, 128, 12288, tie_word_embeddings=False),
        VisionConfig(27, 1152, 4304, 16, deepstack_visual_indexes=(8, 16, 24), out_hidden_size=4096),
    ),
}
Answer = Callable[[int], list[list[int]]]  # (tokens) -> the answers


def main() -> None:
    """Measures and prints."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", choices=SIZES, default="2b")
    flags.add_argument("--layers", type=int, default=4, help="of the text stack and the tower; 0: all")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    flags.add_argument("--int8", action="store_true", help="8-bit weights on this side")
    for name, value in (("batch", 1), ("images", 3), ("text", 180), ("new", 32), ("rounds", 3)):
        flags.add_argument(f"--{name}", type=int, default=value)
    flags.add_argument("--json", type=Path, metavar="FILE")
    args = flags.parse_args()
    config = sized(SIZES[args.size], args.layers)
    prompt = question(config, args.images, args.text)
    sides = {"mem0_jax": ours(config, args, prompt)}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        sides["transformers"] = theirs(config, args, prompt)
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], 1 + args.new: []} for name in sides}
    for turn in range(args.rounds + 1):  # the first compiles
        for name, answer in sides.items():
            for new, times in seconds[name].items():
                began = time.perf_counter()
                said = answer(new)
                if turn:
                    times.append(time.perf_counter() - began)
                if [len(tokens) for tokens in said] != [new] * args.batch:
                    raise SystemExit(f"{name}: expected {args.batch} answers of {new} tokens")
    report(args, len(prompt.ids), seconds)


def sized(config: Qwen3VLConfig, layers: int) -> Qwen3VLConfig:
    """The configuration with so many layers in either stack."""
    if not layers:
        return config
    taps = tuple(range(min(layers, len(config.vision.deepstack_visual_indexes))))
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, num_hidden_layers=layers),
        vision=dataclasses.replace(config.vision, depth=layers, deepstack_visual_indexes=taps),
    )


def question(config: Qwen3VLConfig, images: int, text: int) -> Encoded:
    """Random words with camera images among them, as a planner's questions have."""
    rng, tokens = np.random.default_rng(0), config.tokens
    cut = [
        image_patches(rng.integers(0, 256, (240, 320, 3), np.uint8), config.vision, PixelBounds())
        for _ in range(images)
    ]
    ids: list[int] = []
    for patches, _ in cut:
        ids += [*rng.integers(0, 150_000, text // (images + 1)).tolist(), tokens.vision_start]
        ids += [*[tokens.image] * (len(patches) // config.vision.spatial_merge_size**2), tokens.vision_end]
    ids += rng.integers(0, 150_000, text // (images + 1)).tolist()
    return Encoded(tuple(ids), tuple(patches for patches, _ in cut), tuple(grid for _, grid in cut))


def ours(config: Qwen3VLConfig, args: argparse.Namespace, prompt: Encoded) -> Answer:
    """This project's side."""

    def make(key):
        return jax.tree.map(lambda leaf: leaf.astype(args.dtype), module.init(lambda rngs: Qwen3VL(config, rngs), key))

    weights = take_apart(jax.jit(make)(jax.random.key(0)), int8=args.int8)
    generator = Generator(config, weights, _no_words(config), dtype=jnp.dtype(args.dtype))

    def answer(new: int) -> list[list[int]]:
        said = generator.generate([prompt] * args.batch, Settings(max_tokens=new))
        return [list(one.tokens) for one in said]

    return answer


def _no_words(config: Qwen3VLConfig):
    from tokenizers import Tokenizer, models

    vocabulary = {mark: getattr(config.tokens, name) for name, mark in SPECIAL_TOKENS.items()}
    return Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["pad"]))


def theirs(config: Qwen3VLConfig, args: argparse.Namespace, prompt: Encoded) -> Answer:
    """transformers' side, on the device that jax uses."""
    import torch
    import transformers

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    described = hugging_face_config(config, args.dtype)
    del described["architectures"]
    with torch.device(device):
        model = transformers.Qwen3VLForConditionalGeneration._from_config(
            transformers.Qwen3VLConfig(**described), dtype=getattr(torch, args.dtype)
        ).eval()
    ids = torch.tensor([list(prompt.ids)] * args.batch, device=device)
    pixels = np.concatenate(prompt.patches * args.batch).astype(np.float32) / 127.5 - 1
    arrays = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.tensor(pixels, device=device, dtype=model.dtype),
        "image_grid_thw": torch.tensor(prompt.grids * args.batch, device=device),
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        arrays["mm_token_type_ids"] = (ids == config.tokens.image).int()
    model.generation_config.eos_token_id = None

    def answer(new: int) -> list[list[int]]:
        with torch.no_grad():
            said = model.generate(**arrays, do_sample=False, max_new_tokens=new, pad_token_id=config.tokens.pad)
        return said[:, ids.shape[1] :].tolist()

    return answer


def report(args: argparse.Namespace, prompt: int, seconds: dict[str, dict[int, list[float]]]) -> None:
    """Prints and writes medians and their ratios."""
    rates = {}
    for name, times in seconds.items():
        first, whole = (statistics.median(values) for values in times.values())
        rates[name] = {
            "prefill_tokens_per_second": args.batch * prompt / first,
            "decode_tokens_per_second": args.batch * args.new / (whole - first),
        }
        print(
            f"{name:<13}"
            + "  ".join(f"{what.split('_')[0]} {rate:9.1f} tokens/s" for what, rate in rates[name].items())
        )
    result = {"settings": {**vars(args), "json": None}, "prompt_tokens": prompt, "device": jax.devices()[0].device_kind}
    result |= {"rates": rates}
    if "transformers" in rates:
        pairs = zip(rates["mem0_jax"].items(), rates["transformers"].values())
        result["ratios"] = {what.removesuffix("_tokens_per_second"): rate / other for (what, rate), other in pairs}
        print("ratios       " + "  ".join(f"{what} {ratio:.2f}" for what, ratio in result["ratios"].items()))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
