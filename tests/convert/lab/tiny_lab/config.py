"""Its sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StackConfig:
    """Layers, and how many tokens back they look."""

    layers: int = 2
    reach: int = 3


@dataclass(frozen=True)
class TinyConfig:
    """The model."""

    width: int = 4
    vocabulary: int = 6
    temperature: float = 1.0
    stack: StackConfig = field(default_factory=StackConfig)
