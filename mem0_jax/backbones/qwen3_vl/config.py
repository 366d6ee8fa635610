"""Sizes of a Qwen3-VL backbone."""

from dataclasses import dataclass, field
from typing import Any


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
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section {self.mrope_section} must sum to head_dim / 2 = {self.head_dim // 2}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Deepstack features are tapped after the blocks `deepstack_visual_indexes`."""

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
        if self.table_side**2 != self.num_position_embeddings:
            raise ValueError(f"num_position_embeddings must be a square, got {self.num_position_embeddings}")
        if any(not 0 <= i < self.depth for i in self.deepstack_visual_indexes):
            raise ValueError(f"deepstack_visual_indexes {self.deepstack_visual_indexes} must lie in [0, {self.depth})")


@dataclass(frozen=True)
class TokenIds:
    """Ids of the special tokens."""

    vision_start: int = 151652
    vision_end: int = 151653
    image: int = 151655
    video: int = 151656
    im_start: int = 151644
    im_end: int = 151645
    pad: int = 151643


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
