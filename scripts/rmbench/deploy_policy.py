"""What RMBench's harness calls: `get_model`, `reset_model` at the start of an episode, `eval` for each action chunk.

Runs on Python 3.10 with NumPy alone where the policy is served elsewhere. After each executed action its frame goes to
the policy; in M(1) tasks frames are kept until the next decision, which gives the same memory for less work. The end of
a subtask abandons the rest of a chunk.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .settings import Settings, SettingsError, find, read

PLANNER_SECONDS = 600.0  # an answer of the server may take: planners think


class Model:
    """A policy, here or behind a server, and the episode it is in.

    Attributes:
        settings: what was asked for.
        policy: `mem0_jax.inference.session.Session`, or `Client` of mem0_jax/serve/client.py.
        cameras: what the policy calls its cameras.
        episode: episodes begun, less one; with the seed it seeds the sampling of chunks.
    """

    def __init__(self, settings: Settings):
        self.settings, self.episode, self.fresh, self._said = settings, -1, True, ""
        if settings.server is None:
            self.policy, self.cameras, self._options = _in_process(settings)
        else:
            self.policy, self.cameras, self._options = _served(settings)

    @property
    def acting(self) -> dict[str, Any]:
        """All that decides how the policy acts, with what the settings leave to it."""
        if self.settings.server:
            about = self.policy.metadata
            own = {name: value for name, value in self._options.items() if name != "planner"}
            options, flow_steps = {**about["options"], **own}, about["flow_steps"]
            options["classify"] |= self.settings.staged  # staged sessions judge every frame
        else:
            options, flow_steps = asdict(self.policy.pilot.options), self.policy.pilot.bundle.flow_steps
        return {**options, "flow_steps": flow_steps}

    def reset(self) -> None:
        """Begins the next episode, with an empty memory."""
        self.episode, self.fresh, self._said = self.episode + 1, True, ""
        seed = 100_000 * self.settings.seed + self.episode
        self.policy.reset(self.settings.global_task, seed=seed, **self._options)

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Shows the policy a frame."""
        views = {}
        for camera in self.cameras:
            key = self.settings.camera_key if self.settings.camera_key and len(self.cameras) == 1 else camera
            if key not in observation["observation"]:
                found = ", ".join(sorted(observation["observation"]))
                what = f"camera_key is {key!r}" if key != camera else f"the policy was trained on {key!r}"
                raise SettingsError(f"{what}; the observation has {found}: set camera_key")
            views[camera] = observation["observation"][key]
        self.fresh = False
        self.policy.observe({"observation": views, "joint_action": observation["joint_action"]})
        self._say()

    def _say(self) -> None:
        """Prints the subtask where it changes."""
        if not self.settings.staged:
            return
        state = self.policy.status if self.settings.server else vars(self.policy.pilot)
        line = f"stage {state['stage']}: {state['instruction']}"
        if line != self._said:
            print(f"\n[mem0_jax] {line}", flush=True)
            self._said = line


def get_model(usr_args: Mapping[str, Any]) -> Model:
    """The policy that `deploy_policy.yml` and the overrides describe. Raises SettingsError."""
    model = Model(read(usr_args))
    print(f"[mem0_jax] {json.dumps(asdict(model.settings))}", flush=True)
    print(f"[mem0_jax] acts by {json.dumps(model.acting, sort_keys=True)}", flush=True)
    if model.settings.vllm_url and not model.settings.staged:
        print(f"[mem0_jax] {model.settings.task_name} is M(1): no planner is asked, vllm_url stays unused", flush=True)
    return model


def reset_model(model: Model) -> None:
    """Begins an episode."""
    model.reset()


def eval(TASK_ENV: Any, model: Model, observation: Mapping[str, Any]) -> None:
    """Executes one action chunk, or its part up to the end of the subtask or of the episode."""
    if model.episode < 0:
        raise SettingsError("eval before reset_model: no episode has begun")
    if model.fresh:  # later the policy has seen this frame already, after the last action
        model.observe(observation)
    for action in model.policy.act():
        TASK_ENV.take_action(action, action_type="qpos")
        model.observe(TASK_ENV.get_obs())
        if model.policy.due or TASK_ENV.eval_success or TASK_ENV.take_action_cnt >= TASK_ENV.step_lim:
            break


def _in_process(settings: Settings) -> tuple[Any, Sequence[str], dict[str, Any]]:
    """The policy, its cameras, and what its `reset` is told besides the task and the seed."""
    try:
        from mem0_jax.inference.session import Options, Session
        from mem0_jax.planner.remote import RemotePlanner
        from mem0_jax.policies.bundle import load_bundle
    except ImportError as error:
        raise SettingsError(
            f"execution_ckpt runs the policy in this process, which needs mem0_jax and Python 3.11 ({error}); install "
            "it here, or run 'mem0-jax serve' elsewhere and set server"
        ) from error
    assert settings.execution_ckpt is not None
    bundle = load_bundle(settings.execution_ckpt)
    _check_horizon(settings, bundle.policy.spec.horizon)
    if settings.state_stats_path is not None:
        _check_statistics(bundle, settings.state_stats_path)
    planner = None
    if settings.staged:
        assert settings.vllm_url is not None
        planner = RemotePlanner(settings.vllm_url, settings.planner_model)
    options = Options(n_action_steps=settings.action_horizon, patience=settings.threshold)
    return Session(bundle, options, planner), bundle.transform.cameras, {}


def _check_horizon(settings: Settings, horizon: int) -> None:
    if settings.action_horizon is not None and settings.action_horizon > horizon:
        raise SettingsError(f"action_horizon is {settings.action_horizon}; the policy's chunks have {horizon}")


def _check_statistics(bundle: Any, path: str) -> None:
    """A bundle holds its statistics: others would be a mistake."""
    import numpy as np

    from mem0_jax.data.normalize import NormStats

    stats, given = bundle.transform.normalizer.stats, NormStats.load(path)
    for kind in ("state", "action"):
        own, other = getattr(stats, kind), getattr(given, kind)
        differ = [name for name in own.keys() & other.keys() if not np.allclose(own[name], other[name], atol=1e-6)]
        if differ or not own.keys() & other.keys():
            raise SettingsError(
                f"state_stats_path: {path} differs from the statistics in the bundle ({kind}: "
                f"{', '.join(sorted(differ)) or 'none in common'}); leave it out, the bundle's are the trained ones"
            )


def _served(settings: Settings) -> tuple[Any, Sequence[str], dict[str, Any]]:
    client = find("client", "mem0_jax/serve/client.py")
    policy = client.Client(
        settings.server,
        env=settings.task_name,
        token=os.environ.get("MEM0_TOKEN") or None,
        timeout=PLANNER_SECONDS,
    )
    atexit.register(policy.close)  # the server has its place for others again
    about = policy.metadata
    _check_horizon(settings, about["horizon"])
    if settings.staged and about["planner"] != "server":
        raise SettingsError(
            f"{settings.task_name} is M(n), and the server at {settings.server} has no planner: start it with "
            "'mem0-jax serve BUNDLE --planner URL'"
        )
    options = {"planner": "server" if settings.staged else "none", "patience": settings.threshold}
    horizon = {} if settings.action_horizon is None else {"n_action_steps": settings.action_horizon}
    return policy, about.get("cameras") or [about["camera"]], {**options, **horizon}
