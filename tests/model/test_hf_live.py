"""The backbone live against Hugging Face's Qwen3-VL: random small models, non-square images, mixed prompt lengths."""

import jax
import numpy as np
import pytest

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.positions import arrays_of
from mem0_jax.convert.models.qwen3_vl import rules as qwen3_vl_rules
from mem0_jax.convert.rules import load, make_plan
from mem0_jax.nn import module

pytestmark = pytest.mark.torch
TOKENS = TokenIds(290, 291, 292, 293, 294, 295, 296)
CONFIGS = {
    "grouped": Qwen3VLConfig(
        TextConfig(64, 4, 4, 2, 16, 96, 300, 5e6, (4, 2, 2)),
        VisionConfig(5, 48, 96, 4, 64, (1, 2, 3), 16, 2, 2, 64),
        TOKENS,
    ),
    "few_taps": Qwen3VLConfig(
        TextConfig(48, 6, 3, 3, 24, 64, 300, 1e4, (6, 3, 3)),
        VisionConfig(3, 32, 48, 2, 100, (0, 2), 8, 2, 2, 48),
        TOKENS,
    ),
}
GRIDS = {"one": [[(1, 4, 6)], [(1, 4, 6)]], "two": [[(1, 4, 8), (1, 6, 4)], [(1, 2, 4)]]}


def hugging_face(config: Qwen3VLConfig, seed: int):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text, vision, tokens = config.text, config.vision, config.tokens
    rope = {"mrope_interleaved": True, "mrope_section": list(text.mrope_section), "rope_type": "default"}
    names = TextConfig.__dataclass_fields__.keys() - {"mrope_section"}
    text_config = {name: getattr(text, name) for name in names}
    text_config |= {"rope_scaling": rope, "rope_parameters": rope | {"rope_theta": text.rope_theta}}
    vision_config = {name: getattr(vision, name) for name in VisionConfig.__dataclass_fields__}
    vision_config |= {"deepstack_visual_indexes": list(vision.deepstack_visual_indexes), "in_channels": 3}
    hf_config = transformers.Qwen3VLConfig(
        text_config=text_config | {"tie_word_embeddings": True, "pad_token_id": tokens.pad},
        vision_config=vision_config,
        image_token_id=tokens.image,
        video_token_id=tokens.video,
        vision_start_token_id=tokens.vision_start,
        vision_end_token_id=tokens.vision_end,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = transformers.Qwen3VLForConditionalGeneration._from_config(hf_config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # Hugging Face's small initial weights would hide errors
        parameter.data += 0.05 * torch.randn_like(parameter)
    return torch, transformers, model.float()


def prompts(config: Qwen3VLConfig, grids, rng) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of samples with their images among text of different lengths, padded on the right."""
    tokens, rows = config.tokens, []
    for own in grids:
        row = [tokens.im_start, *rng.integers(0, 290, rng.integers(1, 30))]
        for grid in own:
            count = int(np.prod(grid)) // config.vision.spatial_merge_size**2
            row += [tokens.vision_start, *[tokens.image] * count, tokens.vision_end, *rng.integers(0, 290, 7)]
        rows.append([*row, *rng.integers(0, 290, rng.integers(0, 40)), tokens.im_end])
    length = max(map(len, rows))
    ids = np.array([row + [tokens.pad] * (length - len(row)) for row in rows])
    return ids, np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])


@pytest.mark.parametrize("images", GRIDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_last_hidden_states_are_equal(name, images):
    config, rng = CONFIGS[name], np.random.default_rng([len(name), len(images)])
    torch, transformers, reference = hugging_face(config, 1)
    ids, mask = prompts(config, GRIDS[images], rng)
    grids = [grid for own in GRIDS[images] for grid in own]
    patches = rng.normal(size=(sum(map(np.prod, grids)), config.vision.patch_width)).astype(np.float32)
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor(grids),
    }
    major = int(transformers.__version__.split(".")[0])
    if major >= 5:
        inputs["mm_token_type_ids"] = torch.tensor((ids == config.tokens.image).astype(np.int32))
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True).hidden_states[-1].numpy()

    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    build = lambda rngs: Qwen3VL(config, rngs)  # noqa: E731
    abstract = jax.eval_shape(lambda key: module.init(build, key), jax.random.key(0))
    params = load(make_plan(qwen3_vl_rules(config), {k: v.shape for k, v in state.items()}, abstract), state)
    with jax.default_matmul_precision("highest"):
        features = module.bind(build)(params).encode(arrays_of(ids, mask, patches, grids, config))
    # transformers 4.57 returns the last layer's output before the final norm, transformers 5 after it.
    ours, other = (features.normed, features.hidden) if major >= 5 else (features.hidden, features.normed)
    seen = mask.astype(bool)

    def error(value):
        return np.linalg.norm(np.asarray(value)[seen] - expected[seen]) / np.linalg.norm(expected[seen])

    print(f"transformers {transformers.__version__} {name} {images}: {error(ours):.1e}")
    assert error(ours) < 1e-5
    assert error(other) > 1e-2
