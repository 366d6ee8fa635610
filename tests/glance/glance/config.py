"""The configuration of a Glance."""

from dataclasses import dataclass, field

from mem0_jax.heads.flow import FlowConfig


@dataclass(frozen=True)
class GlanceConfig:
    """A Glance of any size.

    Attributes:
        width: of every feature.
        sizes: (height, width) of each camera's pictures as the eyes see them.
        patch: side of a patch.
        vocabulary: words.
        horizon, action_dim, state_dim: sizes of a chunk, an action and a state.
        dtype: of the eyes; the head is float32.
    """

    width: int = 16
    sizes: tuple[tuple[int, int], ...] = ((32, 48), (24, 24))
    patch: int = 8
    vocabulary: int = 16
    horizon: int = 4
    action_dim: int = 10
    state_dim: int = 7
    flow: FlowConfig = field(default_factory=lambda: FlowConfig(solver_steps=2, draws=2))
    dtype: str = "float32"

    @property
    def chunk(self) -> int:
        """Numbers of a chunk."""
        return self.horizon * self.action_dim
