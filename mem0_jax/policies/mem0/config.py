"""The configuration of a Mem-0."""

from dataclasses import dataclass, field
from typing import Literal

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.config import check_ranges
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig


@dataclass(frozen=True)
class Mem0Config:
    """A Mem-0 of any size; the defaults are the released 2B configuration.

    Attributes:
        lambda_action, lambda_classifier: weights of the two losses.
        image_size: (height, width) of the images the vision tower sees.
        dtype: compute dtype of backbone and memory; the heads are float32 always.
        remat: recompute the layers of the backbone and the action head in the backward pass.
        remat_keep: what is stored still, then; see `nn.stack.REMAT`.
    """

    backbone: Qwen3VLConfig = field(default_factory=Qwen3VLConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    action: DiTConfig = field(default_factory=DiTConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    lambda_action: float = 1.0
    lambda_classifier: float = 0.2
    image_size: tuple[int, int] = (256, 256)
    dtype: str = "bfloat16"
    remat: bool = False
    remat_keep: Literal["nothing", "weight_products", "products"] = "nothing"

    @property
    def recompute(self) -> bool | str:
        """The `remat` of `nn.stack.scan_layers`."""
        return self.remat and self.remat_keep

    def __post_init__(self):
        check_ranges(self, lambda_action="[0, inf)", lambda_classifier="[0, inf)", image_size="[1, inf)")
        width = self.backbone.text.hidden_size
        if self.action.context_width != width:
            raise ValueError(f"action.context_width must equal the backbone's width {width}")
        if self.classifier.hidden_sizes[0] != 3 * width:
            raise ValueError(f"classifier.hidden_sizes must start with 3 * {width}, the flattened context")
        if width % self.memory.num_heads:
            raise ValueError(f"memory.num_heads {self.memory.num_heads} must divide the width {width}")
