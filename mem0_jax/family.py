"""Kinds of models, found by name, and what the rest of the house asks of one.

A policy is a package `mem0_jax.policies.NAME`, a backbone one of `mem0_jax.backbones`, each with a module `family` that
holds a `Family` called FAMILY. An installed package adds its own by an entry point of the group `mem0_jax.families`:
NAME = "package.module:FAMILY". Configurations live in a module beside `family`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from mem0_jax.errors import UserError, did_you_mean

ROOMS = ("mem0_jax.policies", "mem0_jax.backbones")
PLUGINS = "mem0_jax.families"
Config = Any  # a frozen dataclass of the family's own
Rules = tuple[tuple[str, str], ...]
NO_FACTOR = r"(?!.*/lora_[ab]$)"  # what follows matches no low-rank factor
Named = TypeVar("Named")


def _float32(path: str, config: Config) -> str:
    return "float32"


@dataclass(frozen=True)
class Part:
    """Operations of one frame's forward pass through a part of a model, whose parameters lie under the part's name.

    Attributes:
        operations: by formula.
        upstream: parts whose parameters get gradients through this one.
    """

    operations: float
    upstream: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """What of a model is trained, by regexes of whole paths.

    Attributes:
        frozen: parameters that are not.
        bfloat16: parameters that mixed precision keeps in bfloat16.
        lora: kernels that get low-rank factors, where a job names no others; empty: this preset trains none.
    """

    frozen: tuple[str, ...] = ()
    bfloat16: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One kind of model: a backbone alone, or a policy.

    Attributes:
        name: as bundles and jobs call it.
        config: class of its configurations.
        init: configuration -> (key -> fresh parameters, float32).
        logical_axes: configuration -> (logical axes, path regex) pairs, see `distributed.sharding`.
        vocabulary: configuration -> tokens that it knows.
        check_tokenizer: (tokenizer, configuration); raises UserError where its special tokens are not the model's.
        serving_dtype: (path, configuration) -> the narrowest dtype in which a parameter can be stored without changing
            what the model gives.
        unnamed: it is what jobs mean that name none; of one policy, and of one planner.
    """

    name: str
    config: type
    init: Callable[[Config], Callable[[Any], dict[str, Any]]]
    logical_axes: Callable[[Config], Rules]
    vocabulary: Callable[[Config], int]
    check_tokenizer: Callable[[Any, Config], None]
    serving_dtype: Callable[[str, Config], Any] = _float32
    unnamed: bool = False


@dataclass(frozen=True, kw_only=True)
class ChatFamily(Family):
    """A backbone that answers prompts of text and images, and so can plan; see `backbones.chat`.

    Attributes:
        title: of the models, for messages.
        marks: its control tokens by name; `im_end` ends an answer, `pad` fills rows.
        generator: (configuration, parameters, tokenizer, int8, further settings) -> `backbones.chat.Generator`.
        lessons: configuration -> `backbones.chat.Lessons`.
        completed: (configuration, tokenizer, vocabulary or None) -> the configuration with the tokenizer's ids, and as
            many tokens.
    """

    title: str
    marks: Mapping[str, str]
    generator: Callable[..., Any]
    lessons: Callable[[Config], Any]
    completed: Callable[[Config, Any, int | None], Config]


@dataclass(frozen=True, kw_only=True)
class PolicyFamily(Family):
    """A kind of policy; its configurations have a field `flow`, see `heads.flow.FlowConfig`.

    Attributes:
        policy: configuration -> `policies.base.Policy`.
        processor: (tokenizer, configuration, `policies.inputs.Inputs`) -> pictures and instructions to the model's
            arrays. `prepare(views, texts)` makes a batch of pictures uint8 [B, h, w, 3] of each camera; for the engine,
            `prompt(text)` has the arrays of an instruction, `attention_mask` and others of its tokens of the shape
            [..., max_length], `image_prefix` those of its part up to the last picture, and `resized(views)` gives what
            `Policy.inputs` takes, with a leading B.
        word_tokenizer: texts -> a tokenizer with one token a word, for models trained from scratch.
        completed: (configuration, tokenizer, vocabulary, dtype) -> the configuration that is trained; without a
            tokenizer, None, one of the same sizes.
        parts: (configuration, tokens of a prompt) -> operations by part, see `train.flops`.
        backbone: field of the configuration, and subtree of the parameters, that is a model of another family; or "".
        learning_rates, floors: of a job that names none, by the policy's learning-rate groups.
        no_decay: of a job that names none, parameters that do not decay, as path regexes.
        presets: by name; the first is that of a job that names none.
        reference: parameters that precision "reference" keeps in bfloat16, as path regexes; empty: there is none such.
        free: fields of the configuration that change nothing but how it is computed; a run may change them.
        recomputes: configuration -> the backward pass computes the forward pass a second time.
    """

    policy: Callable[[Config], Any]
    processor: Callable[[Any, Config, Any], Any]
    word_tokenizer: Callable[[Iterable[str]], Any]
    completed: Callable[[Config, Any, int, str], Config]
    parts: Callable[[Config, int], Mapping[str, Part]]
    backbone: str = ""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    no_decay: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=lambda: {"full": Preset()})
    reference: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    recomputes: Callable[[Config], bool] = lambda config: False


@cache
def family(name: str) -> Family:
    """The family of a name. Raises UserError: there is none; it lists those there are."""
    known = names()
    if name not in known:
        raise UserError(f"there is no model {name!r}, only {', '.join(known)}{did_you_mean(name, known)}")
    return found_at(known[name], Family, name)


def found_at(where: str, kind: type[Named], name: str) -> Named:
    """What lies at "module:attribute". Raises UserError: it is no `kind` of this name."""
    module, attribute = where.split(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, kind) or getattr(found, "name", None) != name:
        raise UserError(f"{where} is no {kind.__name__} called {name!r}")
    return found


def policy_family(name: str) -> PolicyFamily:
    """The same, of a policy; "" is that of jobs which name none. Raises UserError: there is none, or it is a backbone
    alone."""
    found = family(name or _unnamed(PolicyFamily))
    if not isinstance(found, PolicyFamily):
        raise UserError(f"{name!r} is a backbone alone, no policy")
    return found


def chat_family(name: str) -> ChatFamily:
    """The same, of a backbone that can plan; "" is that of planners' jobs which name none. Raises UserError: there is
    none, or it cannot plan."""
    return _can_plan(family(name or _unnamed(ChatFamily)))


@cache
def _unnamed(kind: type[Family]) -> str:
    return next(one.name for one in map(family, names()) if isinstance(one, kind) and one.unnamed)


def family_of(config: Config) -> Family:
    """The family of a configuration."""
    package = type(config).__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.family").FAMILY


def policy_family_of(config: Config) -> PolicyFamily:
    """The family of a policy's configuration."""
    found = family_of(config)
    assert isinstance(found, PolicyFamily), found.name
    return found


def chat_family_of(config: Config) -> ChatFamily:
    """The family of a backbone that can plan. Raises UserError: it is a policy, or cannot."""
    return _can_plan(family_of(config))


def _can_plan(found: Family) -> ChatFamily:
    if not isinstance(found, ChatFamily):
        raise UserError(f"a {found.name} is no planner: that is a bundle of a backbone alone that answers questions")
    return found


def names() -> dict[str, str]:
    """Where each family lies, "module:attribute" by name; nothing is imported but the rooms."""
    found = {point.name: point.value for point in entry_points(group=PLUGINS)}
    for room in ROOMS:
        folder = Path(importlib.import_module(room).__file__ or "").parent
        inner = sorted(path.parent.name for path in folder.glob("*/family.py"))
        found |= {name: f"{room}.{name}.family:FAMILY" for name in inner}
    return found
