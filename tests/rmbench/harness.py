"""RMBench's evaluation as a policy folder sees it: settings read and overridden, episodes, calls in their order.

`evaluate` does with a policy folder what RMBench's script/eval_policy.py does; `TaskEnv` has the face of its
environments over a task of mem0_jax.envs. Everything that happens is written into `trace`:

    reset         an episode begins
    look N        the observation of frame N is taken; its number is painted into its corner
    do            an action is executed
    see N TEXT    the policy takes frame N into its memory, told TEXT
    sample        an action chunk is sampled
    ask N (...)   the planner is shown frame N as the first one, and the finished subtasks with the frames of their ends
"""

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mem0_jax.envs import make

ROOT = Path(__file__).parents[2]
PAINT = 8  # grey levels between two frame numbers


def frame_number(image: np.ndarray) -> int:
    """The number painted into an image of any size."""
    return round(int(image[0, 0, 0]) / PAINT)


class TaskEnv:
    """What a policy may use of RMBench's environments: `get_obs`, `take_action`, and the counters."""

    def __init__(self, task: str, step_lim: int, trace: list[str]):
        self._env, self._trace, self.step_lim = make(task), trace, step_lim
        self.actions: list[np.ndarray] = []
        self.instruction = ""

    def setup_demo(self, seed: int) -> None:
        """A new episode."""
        self._seen, _ = self._env.reset(seed=seed)
        self.take_action_cnt, self.eval_success, self.now_obs = 0, False, {}

    def set_instruction(self, instruction: str) -> None:
        """The harness tells the environment, not the policy."""
        self.instruction = instruction

    def get_obs(self) -> dict[str, Any]:
        """The frame now, with things around it that a policy may not need."""
        observation = copy.deepcopy(self._seen)
        observation["observation"]["head_camera"]["rgb"][:60, :60] = PAINT * self.take_action_cnt
        observation |= {"pointcloud": [], "endpose": {}}
        observation["observation"]["left_camera"] = observation["observation"]["head_camera"]
        self._trace.append(f"look {self.take_action_cnt}")
        self.now_obs = copy.deepcopy(observation)
        return observation

    def take_action(self, action: np.ndarray, action_type: str = "qpos") -> None:
        """Executes an action, unless the episode is over."""
        assert action_type == "qpos"
        if self.take_action_cnt == self.step_lim or self.eval_success:
            return
        self._trace.append("do")
        self.actions.append(np.array(action))
        self._seen, _, _, _, info = self._env.step(action)
        self.take_action_cnt += 1
        self.eval_success = bool(info["success"])


def settings(config: Path, overrides: list[str]) -> dict[str, Any]:
    """The policy's settings file with `--name value` pairs over it, values as Python reads them, else texts."""
    read = yaml.safe_load(config.read_text())
    for name, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            read[name.removeprefix("--")] = eval(value)
        except (NameError, SyntaxError):
            read[name.removeprefix("--")] = value
    return read


def load(policies: Path, overrides: list[str]) -> tuple[Any, Any]:
    """The policy folder as a module, imported by the name in its settings, and its model."""
    (folder,) = policies.iterdir()
    usr_args = settings(folder / "deploy_policy.yml", ["--policy_name", folder.name, *overrides])
    if str(policies) not in sys.path:
        sys.path.append(str(policies))
    module = importlib.import_module(usr_args["policy_name"])
    usr_args |= {"left_arm_dim": 6, "right_arm_dim": 6}  # the harness adds them
    return module, module.get_model(usr_args)


def evaluate(module: Any, model: Any, env: TaskEnv, trace: list[str], seeds: list[int]) -> list[bool]:
    """Whether each episode succeeded."""
    succeeded = []
    for seed in seeds:
        env.setup_demo(seed)
        env.set_instruction("not what the policy is told")
        trace.append("reset")
        module.reset_model(model)
        while env.take_action_cnt < env.step_lim:
            observation = env.get_obs()
            module.eval(env, model, observation)
            if env.eval_success:
                break
        succeeded.append(env.eval_success)
    return succeeded


def watch(session: Any, trace: list[str]) -> None:
    """Writes what a session's engine does into `trace`."""
    step = session.engine.step

    def watched(requests):
        for request in requests:
            trace.extend(f"see {frame_number(image)} {request.instruction}" for image in request.images[0])
            if request.noise is not None:
                trace.append("sample")
        return step(requests)

    session.engine.step = watched
