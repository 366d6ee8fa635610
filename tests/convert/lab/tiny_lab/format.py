"""Its checkpoints."""

from typing import Any

from mem0_jax.convert.format import Format, Names, Settings
from mem0_jax.convert.rules import AnyRule, Constant, Rule, linear

from .config import TinyConfig


def rules(config: TinyConfig) -> list[AnyRule]:
    """All tensors."""
    embedding = Rule("encoder.embed.weight", ("embed/embedding",))
    return [embedding, *linear("encoder.layers.{n}", "layers"), Constant("encoder.temperature", config.temperature)]


def sizes(names: Names) -> dict[str, Any]:
    """What shapes tell."""
    encoder = names.below("encoder.")
    vocabulary, width = encoder["embed.weight", 2]
    return {"vocabulary": vocabulary, "width": width, "stack.layers": encoder.count("layers.")}


FORMAT = Format(
    name="tiny_lab",
    title="TinyLab",
    mark="encoder.",
    rules=rules,
    sizes=sizes,
    untold=("stack.reach",),
    files="a mapping called lab",
    reads=lambda data: "lab" in data,
    read=lambda data: Settings({"stack.reach": data["lab"]["looks_back"]}, notes=("of the lab",)),
    buffers={"encoder.temperature": "temperature"},
)
