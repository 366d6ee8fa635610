"""Sizes of a Qwen3-VL backbone."""

from dataclasses import astuple, dataclass, field, fields
from itertools import pairwise
from typing import Any

from mem0_jax.config import check_ranges


@dataclass(frozen=True)
class TextConfig:
    """The decoder.

    Attributes:
        mrope_section: rotary frequencies for time, height and width; sums to head_dim / 2.
        tie_word_embeddings: the language-model head is the transposed embedding table, not a matrix of its own.
    """

    hidden_size: int = 2048
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 6144
    vocab_size: int = 151936
    rope_theta: float = 5e6
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    def __post_init__(self):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
        sizes = dict.fromkeys((*sizes, "intermediate_size", "vocab_size"), "[1, inf)")
        check_ranges(self, **sizes, rope_theta="(1, 1e30)", mrope_section="[0, inf)", rms_norm_eps="(0, 1)")
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section {self.mrope_section} must sum to head_dim / 2 = {self.head_dim // 2}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Deepstack features are tapped after the blocks `deepstack_visual_indexes`, which rise."""

    depth: int = 24
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_heads: int = 16
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (5, 11, 17)
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    out_hidden_size: int = 2048

    @property
    def patch_width(self) -> int:
        """Numbers in one patch: 3 * temporal * patch * patch."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def table_side(self) -> int:
        """Side of the square table of learned positions."""
        return round(self.num_position_embeddings**0.5)

    def __post_init__(self):
        sizes = ("depth", "hidden_size", "intermediate_size", "num_heads", "num_position_embeddings", "patch_size")
        sizes += ("temporal_patch_size", "spatial_merge_size", "out_hidden_size")
        check_ranges(self, **dict.fromkeys(sizes, "[1, inf)"))
        if self.hidden_size % (4 * self.num_heads):  # rows and columns turn pairs of numbers each
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 4 * num_heads {self.num_heads}")
        if self.table_side**2 != self.num_position_embeddings:
            raise ValueError(f"num_position_embeddings must be a square, got {self.num_position_embeddings}")
        if any(not 0 <= i < self.depth for i in self.deepstack_visual_indexes):
            raise ValueError(f"deepstack_visual_indexes {self.deepstack_visual_indexes} must lie in [0, {self.depth})")
        if any(a >= b for a, b in pairwise(self.deepstack_visual_indexes)):
            raise ValueError(f"deepstack_visual_indexes {self.deepstack_visual_indexes} must rise")


@dataclass(frozen=True)
class TokenIds:
    """Ids of the special tokens, no two alike."""

    vision_start: int = 151652
    vision_end: int = 151653
    image: int = 151655
    video: int = 151656
    im_start: int = 151644
    im_end: int = 151645
    pad: int = 151643

    def __post_init__(self):
        names = [item.name for item in fields(self)]
        check_ranges(self, **dict.fromkeys(names, "[0, 2147483648)"))
        values = astuple(self)
        if twice := [f"{name} {value}" for name, value in zip(names, values) if values.count(value) > 1]:
            raise ValueError(f"expected ids that differ, got {', '.join(twice)}")


@dataclass(frozen=True)
class Qwen3VLConfig:
    """A backbone of any size; the defaults are Qwen3-VL-2B-Instruct."""

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    tokens: TokenIds = field(default_factory=TokenIds)

    def __post_init__(self):
        image, text = self.vision.out_hidden_size, self.text.hidden_size
        if image != text:
            raise ValueError(f"vision.out_hidden_size {image} must equal text.hidden_size {text}")
        if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
            raise ValueError("more deepstack taps than text layers")

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "Qwen3VLConfig":
        """Reads a Hugging Face `config.json`; see `read_hf_config`, which also tells what it does not read."""
        from mem0_jax.backbones.qwen3_vl.hf_config import read_hf_config

        return read_hf_config(config)[0]
