"""The optimizer inside a reference checkpoint: whose moments are whose, and with which settings training goes on.

torch numbers parameters by their place in the groups of the optimizer; a reference's groups are modules, in an order
that the model's `Format` says, their parameters in module order, tied ones once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mem0_jax.convert.format import Optimizer, Settings
from mem0_jax.convert.rules import AnyRule, Constant, ConversionError, Plan, Tied
from mem0_jax.convert.sources import Source, tied_tensors
from mem0_jax.convert.stored import StoredTensor
from mem0_jax.family import Config, policy_family_of
from mem0_jax.train.config import OptimizerConfig
from mem0_jax.train.optim import learning_rates
from mem0_jax.tree import select

MOMENTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}


@dataclass(frozen=True)
class Training:
    """A run to be continued.

    Attributes:
        step: batches the run has seen.
        count: updates it has applied: the place in the learning-rate schedule.
        config: the optimizer's settings.
        moments: "mu" and "nu" -> parameter's PyTorch name -> tensor.
    """

    step: int
    count: int
    config: OptimizerConfig
    moments: Mapping[str, Mapping[str, StoredTensor]]


def read_training(source: Source, config: Config, rules: Sequence[AnyRule], plan: Plan, settings: Settings) -> Training:
    """Finds moments and settings; reads nothing but the step counts.

    Raises:
        ConversionError: no optimizer in the file, one with other parameters, or settings that contradict the learning
            rates it holds.
    """
    known = source.model.optimizer
    if known is None:
        raise ConversionError(
            f"{source.path} is a {source.model.title}, which has no optimizer that is known here: "
            "leave out --with-optimizer"
        )
    try:
        saved = source.checkpoint["optimizer_state_dict"]
        states, groups = saved["state"], saved["param_groups"]
        owners = _owners(source, known, rules, groups)
        moments, counts = _moments(source, states, owners)
        _check_complete(config, plan, moments["mu"])
        if len(counts) != 1:
            raise ConversionError(f"{source.path}: parameters have seen {sorted(counts)} updates; expected one number")
        count = counts.pop()
        step = int(source.checkpoint.get("global_step", count))
        return Training(step, count, _settings(source, known, groups, settings, count), moments)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConversionError(
            f"{source.path}: no optimizer state as the reference saves it ({type(error).__name__}: {error}); "
            "leave out --with-optimizer"
        ) from None


def _owners(
    source: Source, known: Optimizer, rules: Sequence[AnyRule], groups: Sequence[Mapping[str, Any]]
) -> dict[int, str]:
    """Number of every parameter -> its name."""
    no_parameters = {rule.source for rule in rules if isinstance(rule, Tied | Constant)}
    no_parameters |= {name for name, _ in tied_tensors(source.tensors)}
    names = [name for name in source.tensors if name not in no_parameters]
    titles = [group.get("name", title) for group, title in zip(groups, known.groups)]
    owners: dict[int, str] = {}
    for title, group in zip(titles, groups):
        others = tuple(f"{other}." for other in titles if other != known.rest)
        mine = [n for n in names if (not n.startswith(others) if title == known.rest else n.startswith(f"{title}."))]
        if len(mine) != len(group["params"]):
            raise ConversionError(
                f"{source.path}: the optimizer's group {title!r} has {len(group['params'])} parameters, the model "
                f"{len(mine)}: a run with frozen modules cannot be continued here, leave out --with-optimizer"
            )
        owners |= dict(zip(group["params"], mine))
    return owners


def _moments(
    source: Source, states: Mapping[int, Any], owners: Mapping[int, str]
) -> tuple[dict[str, dict[str, StoredTensor]], set[int]]:
    moments: dict[str, dict[str, StoredTensor]] = {name: {} for name in MOMENTS}
    counts: set[int] = set()
    for number, state in states.items():
        name = owners[number]
        for ours, theirs in MOMENTS.items():
            tensor = state[theirs]
            if tuple(tensor.shape) != tuple(source.tensors[name].shape):
                raise ConversionError(
                    f"{source.path}: {theirs} of parameter {number} is {tensor.shape}, but {name} is "
                    f"{tuple(source.tensors[name].shape)}: the optimizer belongs to another model"
                )
            moments[ours][name] = tensor
        counts.add(int(state["step"].read()) if isinstance(state["step"], StoredTensor) else int(state["step"]))
    return moments, counts


def _check_complete(config: Config, plan: Plan, found: Mapping[str, Any]) -> None:
    """Moments for every leaf that is trained, and for no part of another."""
    untrained = select(policy_family_of(config).policy(config).no_gradient, plan.abstract, "no_gradient")
    wrong = [
        f"{entry.source} {'has none' if entry.source not in found else 'has some, but is never trained'}"
        for entry in plan.entries
        if (entry.source in found) == bool(untrained.intersection(entry.targets))
    ]
    if wrong:
        raise ConversionError("the optimizer's moments do not fit the model:\n  " + "\n  ".join(wrong))


def _settings(
    source: Source, known: Optimizer, groups: Sequence[Mapping[str, Any]], settings: Settings, count: int
) -> OptimizerConfig:
    first = groups[0]
    rates = {group.get("name", title): group["initial_lr"] for group, title in zip(groups, known.groups)}
    (b1, b2), eps = first["betas"], first["eps"]
    try:
        config = known.config(settings.training, rates, first["weight_decay"], b1=b1, b2=b2, eps=eps)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ConversionError(
            f"{source.path}: the optimizer cannot go on with the run's settings in {settings.where} "
            f"({type(error).__name__}: {error})"
        ) from None
    expected = learning_rates(config, count)
    for group, title in zip(groups, known.groups):
        name = known.groups[group.get("name", title)]
        if not abs(float(group["lr"]) - expected[name]) <= 1e-6 * expected[name]:
            raise ConversionError(
                f"{source.path}: after {count} updates the learning rate of {name} is {group['lr']:.6g} in the file, "
                f"but {expected[name]:.6g} by a {config.schedule} schedule of {config.total_steps} steps: give the "
                "run's own settings with --config FILE (its YAML with the section 'trainer')"
            )
    return config
