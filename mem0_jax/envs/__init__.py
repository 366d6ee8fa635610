"""Built-in tabletop memory tasks (gymnasium API, NumPy and OpenCV only).

    from mem0_jax.envs import Expert, Noise, make, rollout

    env = make("put_back_block")
    expert = Expert(env, np.random.default_rng(0), noise=Noise())
    episode = rollout(env, expert, seed=0)

`TASKS` maps each task's name to its class, as "module:Class". `gymnasium.make("mem0_jax/PutBackBlock-v0")` works too.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from mem0_jax.envs.expert import Demonstration, Expert, FrameOracle, Noise, frame_oracle, rollout
    from mem0_jax.envs.tabletop import Tabletop

TASKS = {
    "put_back_block": "mem0_jax.envs.put_back_block:PutBackBlock",
    "observe_and_pickup": "mem0_jax.envs.observe_and_pickup:ObserveAndPickup",
    "swap_blocks": "mem0_jax.envs.swap_blocks:SwapBlocks",
    "press_button": "mem0_jax.envs.press_button:PressButton",
}
__all__ = ["TASKS", "Demonstration", "Expert", "FrameOracle", "Noise", "Tabletop", "frame_oracle", "make", "rollout"]

for _entry in TASKS.values():
    gymnasium.register(id=f"mem0_jax/{_entry.rpartition(':')[2]}-v0", entry_point=_entry)


def make(task: str, **options: Any) -> Tabletop:
    """The environment of `task` (a key of `TASKS`), without wrappers. `render=False` leaves images out.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"there is no task {task!r}{hint} The tasks are {', '.join(TASKS)}.")
    module, _, name = TASKS[task].partition(":")
    return getattr(import_module(module), name)(**options)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tabletop" if name == "Tabletop" else "expert"
    return getattr(import_module(f"{__name__}.{module}"), name)
