"""The settings of `deploy_policy.yml` and of `--overrides`, checked. Python 3.10, standard library only."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent  # where a link leads: inside the repository
# What RMBench's own scripts read or add.
HARNESS = (
    *("policy_name", "task_config", "ckpt_setting", "instruction_type"),
    *("left_arm_dim", "right_arm_dim"),
)
ELSEWHERE = {
    "device": "choose devices by CUDA_VISIBLE_DEVICES or JAX_PLATFORMS",
    "image_size": "a bundle knows the size of its images",
    "execution_module": "a bundle knows its sizes",
    "planning_module_config_path": "the planner is the one at vllm_url, its prompt is built in",
}


class SettingsError(ValueError):
    """A setting that cannot be, or that contradicts another."""


@dataclass(frozen=True)
class Settings:
    """What the policy is asked for; see `deploy_policy.yml` for each."""

    task_name: str
    seed: int = 0
    server: str | None = None
    execution_ckpt: str | None = None
    state_stats_path: str | None = None
    camera_key: str | None = None
    action_horizon: int | None = None
    threshold: int = 2
    task_type: str | None = None
    global_task: str | None = None
    vllm_url: str | None = None
    planner_model: str | None = None

    @property
    def staged(self) -> bool:
        """M(n): a planner names the subtasks."""
        return self.task_type == "Mn"


def read(usr_args: Mapping[str, Any]) -> Settings:
    """The settings RMBench passes to `get_model`.

    Raises:
        SettingsError: naming the setting, what was expected, and what to do.
    """
    known = {field.name for field in fields(Settings)}
    given = {name: _null(value) for name, value in usr_args.items() if name not in HARNESS}
    for name in given.keys() - known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise SettingsError(f"the setting {name!r} is unknown: {ELSEWHERE.get(name, hint)}")
    given = {name: value for name, value in given.items() if value is not None}
    _check_types(given)
    return _complete(given)


def find(name: str, place: str) -> ModuleType:
    """A module of mem0_jax that needs nothing of it: beside this file, in the repository, or installed.

    Args:
        name: its file beside this one, without ".py".
        place: its path in the repository.
    """
    repository, spec = HERE.parents[1] if len(HERE.parents) > 1 else HERE, importlib.util.find_spec("mem0_jax")
    installed = [Path(root).parent for root in (spec.submodule_search_locations or [])] if spec else []
    for path in (HERE / f"{name}.py", *(root / place for root in (repository, *installed))):
        if path.is_file():
            found = importlib.util.spec_from_file_location(f"_{HERE.name}_{name}", path)
            assert found is not None
            assert found.loader is not None
            module = importlib.util.module_from_spec(found)
            sys.modules[found.name] = module  # dataclasses look for it there
            found.loader.exec_module(module)
            return module
    raise SettingsError(
        f"{place} of mem0_jax is not found: make {HERE} a link to its scripts/rmbench, or copy the file to "
        f"{HERE / name}.py"
    )


def _null(value: Any) -> Any:
    """RMBench's command line gives "null" as a text."""
    return None if value in ("null", "None", "") else value


def _check_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        expected = int if name in ("seed", "action_horizon", "threshold") else str
        if not isinstance(value, expected) or isinstance(value, bool):
            raise SettingsError(f"{name} is {value!r}; expected {'a whole number' if expected is int else 'a text'}")
    for name, least in (("seed", 0), ("action_horizon", 1), ("threshold", 1)):
        if name in given and given[name] < least:
            raise SettingsError(f"{name} is {given[name]}; expected at least {least}")


def _complete(given: dict[str, Any]) -> Settings:
    if "task_name" not in given:
        raise SettingsError("task_name is missing: the task to evaluate, such as put_back_block")
    tasks = find("rmbench_tasks", "mem0_jax/data/rmbench_tasks.py").TASKS
    name = given["task_name"]
    kind = ("Mn" if tasks[name].staged else "M1") if name in tasks else None
    asked = given.setdefault("task_type", kind)
    if asked is None:
        close = difflib.get_close_matches(name, tasks, 1)
        raise SettingsError(
            f"task_name {name!r} is no task of RMBench{f'; did you mean {close[0]}?' if close else ''}. For a task of "
            "your own, set task_type to M1 or Mn (a planner names its subtasks), and global_task"
        )
    if asked not in ("M1", "Mn") or kind not in (None, asked):
        raise SettingsError(f"task_type is {asked!r}; expected {f'{kind}, as {name} is' if kind else 'M1 or Mn'}")
    if "global_task" not in given and kind is None:
        raise SettingsError(f"global_task is missing: what the policy is told to do in {name}")
    given.setdefault("global_task", tasks[name].instruction if kind else None)
    settings = Settings(**given)
    _check_road(settings)
    return settings


def _check_road(settings: Settings) -> None:
    """Raises where the two ways to run a policy are mixed."""
    if (settings.server is None) == (settings.execution_ckpt is None):
        raise SettingsError(
            "set either server (ws://host:port of 'mem0-jax serve') or execution_ckpt (a bundle's folder, to run the "
            f"policy in this process); got server={settings.server!r}, execution_ckpt={settings.execution_ckpt!r}"
        )
    if settings.server is not None and settings.state_stats_path is not None:
        raise SettingsError("state_stats_path: the server's bundle holds its statistics; leave it out")
    if not settings.staged:  # a planner that is named but not asked: RMBench's own M(1) commands do so
        return
    if settings.server is not None and (settings.vllm_url or settings.planner_model):
        raise SettingsError(
            "vllm_url and planner_model: the server asks the planner; leave them out and start it with "
            f"'mem0-jax serve BUNDLE --planner {settings.vllm_url or 'URL'}'"
        )
    if settings.server is None and settings.vllm_url is None:
        raise SettingsError(
            f"vllm_url is missing: {settings.task_name} is M(n), a planner names its subtasks; give the address of its "
            "chat API, such as http://localhost:8123/v1"
        )
