"""Weights as trainers leave them: one set among several, under a key, their names inside wrappers.

One rule for all: a set of weights is a dict of tensors some of which have the names of a model here. Parts of a name
that wrappers add are taken off, wherever they stand; then whatever precedes the model's own names in all of the set.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mem0_jax.convert.format import Format
from mem0_jax.convert.models import dialects
from mem0_jax.convert.rules import ConversionError
from mem0_jax.convert.stored import StoredTensor, is_float, nbytes

# DistributedDataParallel and DeepSpeed, torch.compile, FSDP, activation checkpointing, Lightning Fabric.
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module")
)
ADAPTERS = ("lora_", "base_layer", "modules_to_save", "ia3_")  # beginnings of what PEFT adds
COUNTERS = frozenset(("n_averaged",))  # of torch.optim.swa_utils, beside the weights
# Keys under which weights may lie without being asked for by name.
KEYS = frozenset(("model_state_dict", "state_dict", "model", "module", "net", "network", "policy", "weights", "params"))
AVERAGES = frozenset(
    (
        "ema",
        "ema_state_dict",
        "ema_model",
        "ema_model_state_dict",
        "ema_weights",
        "model_ema",
        "state_dict_ema",
        "swa_model",
    )
)
MAX_DEPTH = 3  # of keys above a set
MANY = 8  # tensors in a list: the weights of a model, not the states of random generators


@dataclass(frozen=True)
class Weights:
    """The weights of one model.

    Attributes:
        model: which.
        keys: under which they lie in the file.
        tensors: by the model's own names.
        notes: what was done to find them, for the user.
    """

    model: Format
    keys: tuple[str, ...]
    tensors: Mapping[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class _Set:
    """Weights as they lie in a file: `names` are those in `state` and, without wrappers and prefix, the model's own."""

    model: Format
    keys: tuple[str, ...]
    prefix: str
    state: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        """As `--weights` takes it: keys and prefix, `.` for neither."""
        return "/".join(filter(None, (*self.keys, self.prefix.rstrip(".")))) or "."


def find_weights(content: Any, chosen: str | None = None) -> Weights:
    """Finds the weights in what a file holds.

    Args:
        content: nested dicts and lists with `StoredTensor`.
        chosen: the name of a set, where there are several.

    Raises:
        ConversionError: no set, several and none chosen, an adapter instead of weights, two tensors of one name,
            empty ones, or something other than tensors among them.
    """
    states = dict(_states(content, ()))
    sets = [one for keys, state in states.items() for one in _sets(keys, state)]
    found = _one_of(sets, _barred(content, states, sets), chosen)
    if found is None:
        raise ConversionError(_absent(content, states))
    notes = _notes(found)
    if not set(found.keys) <= KEYS | AVERAGES:
        others = _others(found, states)
        if chosen is None:
            raise ConversionError(
                f"has weights under {'/'.join(found.keys)!r} alone{others and f'; {others}'}: take them "
                f"with --weights {found.name}"
            )
        notes += [others] if others else []
    if modules := _apart(functools.reduce(lambda node, key: node[key], found.keys, content)):
        notes.append(f"modules saved apart are taken together: {', '.join(modules)}")
    return Weights(found.model, found.keys, _unwrapped(found), notes)


def _others(found: _Set, states: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    counts = {
        "/".join(keys): sum(isinstance(value, StoredTensor) for value in state.values())
        for keys, state in states.items()
        if keys != found.keys
    }
    listed = ", ".join(map(repr, counts))
    return f"the {sum(counts.values())} other tensors, under {listed}, are not taken with them" if counts else ""


def _apart(node: Mapping[Any, Any]) -> tuple[str, ...]:
    """The modules of a model that a dict holds, each without its own name; none where one of them is missing."""
    models = (one.modules for one in dialects() if one.modules)
    return next((names for names in models if all(isinstance(node.get(name), dict) for name in names)), ())


def _unwrapped(found: _Set) -> dict[str, Any]:
    if adapter := _adapter(found.names):
        raise ConversionError(f"holds {_unmerged(adapter)}")
    tensors: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, own in found.names.items():
        tensor = found.state[name]
        if not isinstance(tensor, StoredTensor):
            raise ConversionError(
                f"among the weights {name!r:.100} is a {type(tensor).__name__}, not a tensor: remove it"
            )
        if own in tensors:
            raise ConversionError(
                f"{origin[own]} and {name} are both {own} without what wraps them: remove one of them"
            )
        tensors[own], origin[own] = tensor, name
    empty = [name for name, tensor in tensors.items() if not nbytes(tensor)]
    if empty:
        raise ConversionError(
            f"{len(empty)} tensors are empty, such as {empty[0]}: DeepSpeed's ZeRO-3 keeps the values elsewhere; join "
            "its files first with the zero_to_fp32.py beside them"
        )
    return tensors


def _notes(found: _Set) -> list[str]:
    notes = []
    if found.keys not in ((), ("model_state_dict",)):
        averages = " (averages over training)" if AVERAGES & set(found.keys) else ""
        notes.append(f"the weights are those under {'/'.join(found.keys)!r}{averages}")
    words = sorted(WRAPPERS & {part for name in found.names for part in str(name).split(".")})
    if words:
        notes.append(
            f"names are taken without {', '.join(f'{word}.' for word in words)}, which wrappers of PyTorch add"
        )
    if found.prefix:
        notes.append(f"names are taken without {found.prefix!r} before them")
    if left := sorted(map(str, set(found.state) - set(found.names))):
        notes.append(f"left out: {', '.join(left[:8])}" + (f" and {len(left) - 8} more" if len(left) > 8 else ""))
    return notes


def _one_of(sets: list[_Set], barred: Mapping[str, tuple[str, str]], chosen: str | None) -> _Set | None:
    listed = ", ".join(
        [f"{one.name} ({len(one.names)} tensors)" for one in sets]
        + [f"{name} ({what})" for name, (what, _) in barred.items()]
    )
    if chosen is not None:
        named = [one for one in sets if chosen in (one.name, "/".join(one.keys))]
        if chosen in barred:
            raise ConversionError(barred[chosen][1])
        if len(named) != 1:
            raise ConversionError(f"--weights {chosen}: expected one of {listed or 'none'}")
        return named[0]
    if len(sets) + len(barred) > 1:
        raise ConversionError(f"holds several sets of weights, {listed}: choose one with --weights NAME")
    for _, why in barred.values():
        raise ConversionError(why)
    return sets[0] if sets else None


def _barred(
    content: Any, states: Mapping[tuple[str, ...], Mapping[str, Any]], sets: list[_Set]
) -> dict[str, tuple[str, str]]:
    """What may be meant as weights and cannot be taken: its name -> what it is, and why not."""
    found = {
        keys: ("a LoRA", f"holds {_unmerged(adapter)}")
        for keys, state in states.items()
        if (adapter := _adapter(state)) and all(one.keys != keys for one in sets)
    }
    for keys in _nameless(content, ()):
        said = "is a list of tensors without names, as torch_ema and diffusers keep averages: copy it into the model"
        found[keys] = "a list", f"{'/'.join(keys) or 'it'} {said} (ema.copy_to) and save the model's state dict"
    return {"/".join(keys) or ".": barred for keys, barred in found.items()}


def _adapter(names: Iterable[str]) -> list[str]:
    return [name for name in names if any(part.startswith(ADAPTERS) for part in str(name).split("."))]


def _unmerged(adapter: list[str]) -> str:
    return (
        f"a LoRA or another adapter of PEFT, {len(adapter)} tensors such as {adapter[0]}: merge it into the model "
        "first (model.merge_and_unload()) and save that"
    )


def _absent(content: Any, states: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    """Why there are no weights."""
    for keys, state in states.items():
        if set(keys) <= KEYS | AVERAGES:
            known = ", ".join(f"{one.title} ({one.mark}...)" for one in dialects())
            found = ", ".join(f"{name!r:.100}" for name in list(state)[:4])
            return f"holds no model that is known here by the names of its tensors: {known}; it begins with {found}"
    if isinstance(content, dict) and "ds_version" in content:
        return (
            "holds a part of DeepSpeed's checkpoint without the weights: join its files first with the zero_to_fp32.py "
            "in the folder above"
        )
    under: list[str] = []
    while isinstance(content, dict) and len(under) <= MAX_DEPTH:
        inner = next((key for key in content if isinstance(key, str) and key in KEYS | AVERAGES), None)
        if inner is None:
            break
        under, content = [*under, inner], content[inner]
    where = f" under {'/'.join(under)!r}" if under else ""
    return f"expected a dict of tensors, or one under 'model_state_dict'; found {_described(content)}{where}"


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"the entries {', '.join(f'{key!r:.60}' for key in list(content)[:8])}" if content else "an empty dict"
    if isinstance(content, StoredTensor):
        return f"a tensor of shape {content.shape}"
    if isinstance(content, list | tuple):
        return f"{type(content).__name__} of {len(content)} entries"
    return f"{content!r:.60}"


def _states(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every dict of named tensors in the file, and where."""
    if not isinstance(node, dict) or len(keys) > MAX_DEPTH:
        return
    apart = _apart(node)
    if apart:
        yield keys, {f"{module}.{name}": value for module in apart for name, value in _named(node[module])}
    elif any(isinstance(key, str) and isinstance(value, StoredTensor) for key, value in node.items()):
        yield keys, node
    for key, value in node.items():
        if isinstance(key, str) and key not in apart:
            yield from _states(value, (*keys, key))


def _named(node: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts, by the keys above it."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in _named(value))
        else:
            yield str(key), value


def _nameless(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Lists of tensors that look like the weights of a model, and not like a record of losses or random states."""
    if isinstance(node, dict) and len(keys) <= MAX_DEPTH:
        for key, value in node.items():
            if isinstance(key, str):
                yield from _nameless(value, (*keys, key))
    elif isinstance(node, list | tuple) and len(node) > MANY and all(isinstance(item, StoredTensor) for item in node):
        yield from [keys] if any(item.shape and is_float(item) for item in node) else []


def _sets(keys: tuple[str, ...], state: Mapping[str, Any]) -> list[_Set]:
    """The sets of weights in a dict of tensors: one for each prefix of the model's own names."""
    own = {name: ".".join(part for part in str(name).split(".") if part not in WRAPPERS) for name in state}
    model, prefixes = _model(own.values())
    if model is None:
        return []
    names: dict[str, dict[str, str]] = {prefix: {} for prefix in sorted(prefixes)}
    for name, bare in own.items():
        if bare in COUNTERS:
            continue
        mine = max((prefix for prefix in prefixes if bare.startswith(prefix)), key=len, default=None)
        for prefix in names if mine is None else (mine,):  # what has no prefix is left to the plan, to refuse it
            names[prefix][name] = bare.removeprefix(mine or "")
    return [_Set(model, keys, prefix, state, mine) for prefix, mine in names.items()]


def _model(names: Collection[str]) -> tuple[Format | None, set[str]]:
    """Whose names they are, and what precedes the model's own in them; a model inside another does not count."""
    found = [(one, prefixes) for one in dialects() if (prefixes := _prefixes(names, one.mark))]
    inside = [one.backbone.format for one, _ in found if one.backbone]
    outer = [(one, prefixes) for one, prefixes in found if one not in inside]
    if len(outer) > 1:
        raise ConversionError(
            f"holds tensors of {' and of '.join(one.title for one, _ in outer)} in one: save them apart"
        )
    return outer[0] if outer else (None, set())


def _prefixes(names: Iterable[str], mark: str) -> set[str]:
    """What precedes `mark`, the begin of a part of a name, in those that have it."""
    places = ((name, f".{name}".find(f".{mark}")) for name in names)
    return {name[:at] for name, at in places if at >= 0}
