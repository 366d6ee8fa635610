"""The configuration of an EVO1."""

from dataclasses import dataclass, field
from typing import Literal

from mem0_jax.backbones.internvl3.config import InternVL3Config
from mem0_jax.config import check_ranges
from mem0_jax.heads.cross_attention import CrossAttentionConfig
from mem0_jax.heads.flow import FlowConfig


@dataclass(frozen=True)
class Flow(FlowConfig):
    """Times of training follow Beta(2, 2), clipped to `time_range`; the solver takes 32 steps, and the network sees
    rows of a table."""

    time_beta: tuple[float, float] = (2.0, 2.0)
    time_scale: float = 1.0
    draws: int = 1
    solver_steps: int = 32
    buckets: int = 999
    time_range: tuple[float, float] = (0.02, 0.98)

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, time_range="[0, 1]")


@dataclass(frozen=True)
class EVO1Config:
    """An EVO1 of any size; the defaults are LeRobot's.

    Attributes:
        views: places for pictures in a prompt.
        mode: what the head attends to, and what tokens do that nobody may see (padding, and the tokens of pictures that
            are not given). A checkpoint is good for the mode that it was trained in alone.
            "masked": the head attends to what may be seen. LeRobot's.
            "fa2": the head attends to all tokens, padding up to `padded` of them included, and hidden ones attend to
            nothing. The authors' own, with FlashAttention-2.
            "eager": the same, but hidden tokens attend to what lies before them. The authors' own without
            FlashAttention-2: not what their checkpoints were trained in.
        padded: tokens of a prompt with padding, in the authors' modes.
        cls_only: the head attends to one token alone: the last that may be seen, or in the authors' modes the first.
        category: kind of robot where a batch names none.
        dtype: compute dtype of the backbone; the head is float32 always.
        remat: recompute the layers of the backbone and the head in the backward pass.
        remat_keep: what is stored still, then; see `nn.stack.REMAT`.
    """

    backbone: InternVL3Config = field(default_factory=InternVL3Config)
    head: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    flow: Flow = field(default_factory=Flow)
    views: int = 3
    mode: Literal["masked", "fa2", "eager"] = "masked"
    padded: int = 1024
    cls_only: bool = False
    category: int = 0
    dtype: str = "bfloat16"
    remat: bool = False
    remat_keep: Literal["nothing", "weight_products", "products"] = "nothing"

    @property
    def recompute(self) -> bool | str:
        """The `remat` of `nn.stack.scan_layers`."""
        return self.remat and self.remat_keep

    def __post_init__(self):
        check_ranges(self, views="[1, inf)", padded="[1, inf)", category=f"[0, {self.head.categories})")
        width = self.backbone.text.hidden_size
        if self.head.width != width:
            raise ValueError(f"head.width must equal the backbone's width {width}")
        if self.head.times <= self.flow.buckets:
            raise ValueError(f"head.times {self.head.times} must be above flow.buckets {self.flow.buckets}")
