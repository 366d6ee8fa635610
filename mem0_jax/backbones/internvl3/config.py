"""Sizes of an InternVL3 backbone."""

from dataclasses import astuple, dataclass, field, fields

from mem0_jax.config import check_ranges


@dataclass(frozen=True)
class TextConfig:
    """The decoder; the defaults are the first 14 of the 24 layers of Qwen2.5-0.5B."""

    hidden_size: int = 896
    num_hidden_layers: int = 14
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 4864
    vocab_size: int = 151674
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    def __post_init__(self):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
        sizes = dict.fromkeys((*sizes, "intermediate_size", "vocab_size"), "[1, inf)")
        check_ranges(self, **sizes, rope_theta="(1, 1e30)", rms_norm_eps="(0, 1)")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower, for square images of `image_size` pixels; the defaults are InternViT-300M."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches along the side of an image."""
        return self.image_size // self.patch_size

    def __post_init__(self):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
        check_ranges(self, **dict.fromkeys((*sizes, "patch_size"), "[1, inf)"), layer_norm_eps="(0, 1)")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} must divide {self.hidden_size}")


@dataclass(frozen=True)
class TokenIds:
    """Ids of the special tokens, no two alike."""

    image_start: int = 151665
    image_end: int = 151666
    image: int = 151667
    pad: int = 151643

    def __post_init__(self):
        names = [item.name for item in fields(self)]
        check_ranges(self, **dict.fromkeys(names, "[0, 2147483648)"))
        if len(set(astuple(self))) < len(names):
            raise ValueError(f"expected ids that differ, got {self}")


@dataclass(frozen=True)
class InternVL3Config:
    """A backbone of any size; the defaults are InternVL3-1B with 14 of its text layers.

    Attributes:
        merge: neighbouring patches along a side that become one token; 1 / downsample_ratio.
        projector_norm_eps: of the norm before the projector.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    tokens: TokenIds = field(default_factory=TokenIds)
    merge: int = 2
    projector_norm_eps: float = 1e-5

    @property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        return (self.vision.side // self.merge) ** 2

    def __post_init__(self):
        check_ranges(self, merge="[1, inf)", projector_norm_eps="(0, 1)")
        if self.vision.side % self.merge:
            raise ValueError(f"merge {self.merge} must divide the {self.vision.side} patches of a side")
