"""Small Qwen3-VLs with random weights, the same for this project and for Hugging Face, and prompts for them."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import Generator, Prompt
from mem0_jax.backbones.qwen3_vl.images import PixelBounds
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS
from mem0_jax.convert.models.qwen3_vl import hugging_face_config, rules
from mem0_jax.convert.rules import export, make_plan
from mem0_jax.nn import module
from mem0_jax.tree import flatten, unflatten

TOKENS = TokenIds(290, 291, 292, 293, 294, 295, 296)
CONFIGS = {
    "tied": Qwen3VLConfig(
        TextConfig(64, 4, 4, 2, 16, 96, 300, 5e6, (4, 2, 2)),
        VisionConfig(5, 48, 96, 4, 64, (1, 2, 3), 16, 2, 2, 64),
        TOKENS,
    ),
    "untied": Qwen3VLConfig(
        TextConfig(48, 6, 3, 3, 24, 64, 300, 1e4, (6, 3, 3), tie_word_embeddings=False),
        VisionConfig(3, 32, 48, 2, 100, (0, 2), 8, 2, 2, 48),
        TOKENS,
    ),
}
BOUNDS = {"tied": PixelBounds(2048, 8192), "untied": PixelBounds(512, 2048)}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def tokenizer() -> Tokenizer:
    """Words w0 to w289, and the special tokens of `TOKENS`."""
    vocabulary = {f"w{i}": i for i in range(290)}
    vocabulary |= {mark: getattr(TOKENS, name) for name, mark in SPECIAL_TOKENS.items()}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return made


def prompts(seed: int) -> list[Prompt]:
    """Of different lengths, with none to three images of different sizes."""
    rng = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 290, n)) + " "

    def picture(height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (height, width, 3), np.uint8)

    return [
        Prompt(words(9) + IMAGE + words(4), (picture(40, 72),)),
        Prompt(words(2) + IMAGE + words(5) + IMAGE + words(17), (picture(64, 64), picture(20, 100))),
        Prompt(words(30)),
        Prompt(words(1) + IMAGE + IMAGE + words(2) + IMAGE, (picture(30, 30), picture(120, 24), picture(64, 96))),
    ]


def params(config: Qwen3VLConfig, seed: int) -> dict[str, Any]:
    """Parameters drawn in the order of their paths, so that a seed is all that must be kept."""
    rng, made = np.random.default_rng(seed), {}
    abstract = flatten(jax.eval_shape(lambda key: module.init(lambda r: Qwen3VL(config, r), key), jax.random.key(0)))
    for path, leaf in sorted(abstract.items()):
        value, kind = rng.standard_normal(leaf.shape, np.float32), path.rpartition("/")[2]
        scale = {"kernel": 1.3 * leaf.shape[-2] ** -0.5, "embedding": 0.1}.get(kind, 0.1) if leaf.ndim > 1 else 0.1
        made[path] = value * np.float32(scale) + np.float32(kind == "scale")
    return unflatten(made)


def generator(name: str, seed: int, **settings: Any) -> Generator:
    """Of one of `CONFIGS`."""
    config = CONFIGS[name]
    weights = take_apart(params(config, seed), int8=settings.pop("int8", False))
    return Generator(config, weights, tokenizer(), bounds=BOUNDS[name], **settings)


def hugging_face(name: str, seed: int) -> tuple[Any, Any, Callable[..., list[list[int]]]]:
    """The same model in transformers and its image processor; and what asks it, greedily: (prompts, new tokens) to the
    tokens of each answer, the prompts as one batch padded on the left."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module_name = "transformers.models.qwen2_vl.image_processing_"
    try:
        processing = importlib.import_module(module_name + "pil_qwen2_vl").Qwen2VLImageProcessorPil
    except ImportError:  # before transformers 5
        processing = importlib.import_module(module_name + "qwen2_vl").Qwen2VLImageProcessor
    config, bounds, tokens = CONFIGS[name], BOUNDS[name], TOKENS
    described = hugging_face_config(config, "float32")
    del described["architectures"]
    model = transformers.Qwen3VLForConditionalGeneration._from_config(
        transformers.Qwen3VLConfig(**described), attn_implementation="eager"
    ).eval()
    ours = params(config, seed)
    state = export(make_plan(rules(config), None, ours), ours)
    missing = model.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"lm_head.weight"} if config.text.tie_word_embeddings else set())
    processor = processing(
        patch_size=config.vision.patch_size,
        temporal_patch_size=config.vision.temporal_patch_size,
        merge_size=config.vision.spatial_merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels},
    )

    def answers(asked: Sequence[Prompt], new: int) -> list[list[int]]:
        images = [Image.fromarray(image) for prompt in asked for image in prompt.images]
        seen = processor(images, return_tensors="np") if images else {}
        counts = iter([int(np.prod(grid)) // config.vision.spatial_merge_size**2 for grid in seen["image_grid_thw"]])
        rows = []
        for prompt in asked:
            plain = tokenizer().encode(prompt.text, add_special_tokens=False).ids
            rows.append([t for one in plain for t in [one] * (next(counts) if one == tokens.image else 1)])
        longest = max(map(len, rows))
        ids = torch.tensor([[tokens.pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        arrays = {key: torch.tensor(seen[key]) for key in ("pixel_values", "image_grid_thw")}
        if int(transformers.__version__.split(".")[0]) >= 5:
            arrays["mm_token_type_ids"] = (ids == tokens.image).int()
        with torch.no_grad():
            said = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=[tokens.im_end, tokens.pad],
                pad_token_id=tokens.pad,
                **arrays,
            )
        stops = (tokens.im_end, tokens.pad)
        ends = [next((i for i, t in enumerate(row) if t in stops), new) + 1 for row in said[:, longest:].tolist()]
        return [row[:end] for row, end in zip(said[:, longest:].tolist(), ends)]

    return model, processor, answers
