"""What the engine asks of a model whose checkpoints it converts: one `Format` each, see `convert.models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem0_jax.convert.rules import AnyRule, ConversionError
from mem0_jax.family import Config
from mem0_jax.policies.inputs import Inputs
from mem0_jax.train.config import OptimizerConfig

if TYPE_CHECKING:
    from mem0_jax.convert.lerobot_folder import Beside

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Settings:
    """Values for fields of a configuration by dotted path such as `backbone.text.rope_theta`.

    Attributes:
        where: the file, for messages.
        training: what the file says of the run, as found; empty if nothing.
        notes: what the user should know about the file, such as entries that are not read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: str = "the shapes of the tensors"
    training: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """Shapes of the tensors whose names begin with a prefix."""

    shapes: Shapes
    prefix: str = ""

    def below(self, prefix: str) -> Names:
        """Those under a longer prefix."""
        return Names(self.shapes, self.prefix + prefix)

    def __getitem__(self, key: tuple[str, int]) -> tuple[int, ...]:
        """The shape of a tensor of so many axes. Raises ConversionError: missing, or another."""
        name, axes = self.prefix + key[0], key[1]
        shape = self.shapes.get(name)
        if shape is None or len(shape) != axes or 0 in shape:
            found = "is missing" if shape is None else f"has shape {tuple(shape)}, expected {axes} axes"
            raise ConversionError(f"{name} {found}: not a checkpoint of this model")
        return shape

    def count(self, stem: str) -> int:
        """Layers `stem`0, `stem`1, ... without a gap (a tensor beyond a gap is found unmapped by the plan)."""
        found = {
            key[len(self.prefix) + len(stem) :].split(".")[0]
            for key in self.shapes
            if key.startswith(self.prefix + stem)
        }
        n = 0
        while str(n) in found:
            n += 1
        return n


@dataclass(frozen=True)
class Optimizer:
    """torch's AdamW as a reference saves it.

    Attributes:
        groups: the reference's parameter groups in its order -> our learning-rate groups. A group has the parameters
            whose names begin with its own.
        rest: the group that has all others; "" for none.
        config: (settings of the run, learning rate by group of the reference's, weight decay, b1, b2, eps) -> ours.
            What the settings leave out is as released.
    """

    groups: Mapping[str, str]
    rest: str
    config: Callable[..., OptimizerConfig]


@dataclass(frozen=True)
class Inside:
    """The model inside another: field of its configuration and subtree of its parameters; prefix of its tensors."""

    format: Format
    prefix: str
    field: str = "backbone"


@dataclass(frozen=True, eq=False)
class Format:
    """One model's checkpoints in the PyTorch world.

    Attributes:
        name: of the model's family.
        title: of the model, for messages.
        mark: what the names of some of its tensors begin with, and those of no other model.
        modules: what the names of all its tensors begin with; trainers may save the modules apart, under these.
        rules: configuration -> tensors' names and leaves of our tree, see `rules`.
        sizes: shapes of the tensors -> the fields of the configuration that they tell.
        untold: fields that shapes do not tell and the outputs depend on; others have their defaults where no file says.
        released: configurations of released models, which tell `untold` of checkpoints that agree in `known_by`.
        files: those with settings of this model besides bundles', for messages.
        reads: whether the content of a YAML or JSON file is one of them.
        read: that content -> what it says; None: there are no such files. Raises ConversionError: settings that are not
            supported.
        theirs: fields -> what those files call them, where that is another name.
        buffers: tensors of one number that are settings of ours -> fields.
        check: what is wrong with a configuration besides what its class refuses; "": nothing.
        backbone: the model inside it; its fields are told by its own format.
        inputs: how observations become inputs of such a checkpoint; None for a backbone alone, or where `beside` tells.
        beside: the folder of the weights -> what its other files tell of inputs and statistics; None: nothing.
        tokens: tokenizer -> the fields that it tells.
        optimizer: how a run's optimizer is read; None: it is not.
        hugging_face: (configuration, dtype) -> config.json of its Hugging Face folder; None: it has none.
        processor: (configuration, least and most pixels of an image) -> the folder's other files in JSON, by name.
        dialects: the same model as others name its tensors.
    """

    name: str
    title: str
    mark: str
    rules: Callable[[Config], list[AnyRule]]
    sizes: Callable[[Names], dict[str, Any]]
    modules: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    released: tuple[Config, ...] = ()
    known_by: tuple[str, ...] = ()
    files: str = "the config.json of a bundle"
    reads: Callable[[Mapping[str, Any]], bool] = lambda data: False
    read: Callable[[Any], Settings] | None = None
    theirs: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Config], str] = lambda config: ""
    backbone: Inside | None = None
    inputs: Inputs | None = None
    beside: Callable[[Path], Beside] | None = None
    tokens: Callable[[Any], dict[str, Any]] = lambda tokenizer: {}
    optimizer: Optimizer | None = None
    hugging_face: Callable[[Config, str], dict[str, Any]] | None = None
    processor: Callable[[Config, int, int], dict[str, dict[str, Any]]] = lambda config, least, most: {}
    dialects: tuple[Format, ...] = ()

    @property
    def innermost(self) -> Format:
        """That of the backbone, or this one where there is none."""
        return self.backbone.format if self.backbone else self

    @property
    def prefix(self) -> str:
        """Of the names of the backbone's tensors; "" for a model alone."""
        return self.backbone.prefix if self.backbone else ""
