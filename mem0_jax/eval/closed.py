"""Closed-loop evaluation: variants of a policy, all on the same episodes, and where their results go."""

import dataclasses
import platform
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from mem0_jax import __version__
from mem0_jax.disk import safe_name
from mem0_jax.envs import TASKS, make
from mem0_jax.errors import UserError
from mem0_jax.eval.episode import Oracle, Outcome
from mem0_jax.eval.film import can_film
from mem0_jax.eval.lockstep import ROWS, Films, Planners, check_cameras, play
from mem0_jax.eval.results import Ledger, VariantResult, bundle_digest, new_folder
from mem0_jax.inference.session import Options

FIRST_SEED = 300_000_000  # "mem0-jax demo" tests its policies on the seeds from here on, and never trains on them
MEMORIES: dict[str, tuple[str, ...]] = {
    "both": ("window", "anchor"),
    "window only": ("window",),
    "anchor only": ("anchor",),
    "none": (),
}


@dataclass(frozen=True)
class Variant:
    """One way to play: how the policy acts, and the memory branches it reads (None: those it was trained with)."""

    name: str
    options: Options
    branches: tuple[str, ...] | None = None


def horizon_sweep(options: Options, horizons: Sequence[int]) -> list[Variant]:
    """Variants that differ in how many actions of a chunk they execute."""
    return [Variant(f"horizon {k}", dataclasses.replace(options, n_action_steps=k)) for k in horizons]


def memory_ablation(options: Options) -> list[Variant]:
    """Variants of one policy that read both branches of memory, one, or none. Its parameters stay as they are."""
    return [Variant(f"memory {name}", options, branches) for name, branches in MEMORIES.items()]


class Player(Protocol):
    """Where a policy's actions come from.

    Attributes:
        policy: what it is, for results.json.
        name: of its setting, where no other is given.
    """

    policy: dict[str, Any]
    name: str

    def settings(self, task: str, variant: Variant) -> dict[str, Any]:
        """All that decides how a variant acts. Raises UserError where it cannot be."""
        ...

    def play(
        self, task: str, variant: Variant, seeds: Sequence[int], parallel: int, films: Films
    ) -> Generator[Outcome]:
        """Plays one episode a seed, `parallel` at once; gives each outcome as soon as its episode is over."""
        ...


class LocalPlayer:
    """A bundle in this process.

    Args:
        folder: the bundle.
        planner: of staged tasks, see `lockstep.play`, and what it is called.
        solver_steps: Euler steps of the flow; None: the policy's own.
        rows: of every step, see `lockstep`.
    """

    def __init__(
        self,
        folder: Path,
        planner: tuple[str, Planners | None] = ("oracle", Oracle),
        solver_steps: int | None = None,
        rows: int = ROWS,
    ):
        from mem0_jax.policies.bundle import load_bundle

        bundle = load_bundle(folder).with_flow_steps(solver_steps)
        self.bundle, self.name, self._planner, self._rows = bundle, folder.absolute().name, planner, rows
        self.policy = {
            "bundle": str(folder),
            "sha256": bundle_digest(folder),
            "provenance": dict(bundle.provenance),
        }

    def settings(self, task: str, variant: Variant) -> dict[str, Any]:
        """See `Player`."""
        name, planner = self._planner
        check_cameras(task, self.bundle.transform.cameras)
        staged = make(task, render=False).staged
        return {
            **dataclasses.asdict(variant.options.completed(self.bundle, staged and planner is not None)),
            "flow_steps": self.bundle.flow_steps,
            "memory": list(self._branches(variant)),
            "planner": name if staged else None,
            "rows": self._rows,
        }

    def play(
        self, task: str, variant: Variant, seeds: Sequence[int], parallel: int, films: Films
    ) -> Generator[Outcome]:
        """See `lockstep.play`."""
        memory = dataclasses.replace(self.bundle.config.memory, branches=self._branches(variant))
        bundle = dataclasses.replace(self.bundle, config=dataclasses.replace(self.bundle.config, memory=memory))
        how: dict[str, Any] = {"planner": self._planner[1], "parallel": parallel, "rows": self._rows, "films": films}
        return play(bundle, task, seeds, variant.options, **how)

    def _branches(self, variant: Variant) -> tuple[str, ...]:
        return self.bundle.config.memory.branches if variant.branches is None else variant.branches


class RemotePlayer:
    """A policy server.

    Args:
        address: such as "ws://127.0.0.1:8000".
        planner: of staged tasks: "server", "client" or "none", see `clients.play_on_server`.
        token: the server's.
    """

    def __init__(self, address: str, planner: str = "client", token: str | None = None):
        from mem0_jax.eval.clients import server_metadata

        self.address, self._planner, self._token = address, planner, token
        about = server_metadata(address, token)
        self.policy = {"server": address, "metadata": about, "provenance": about["provenance"]}
        self.name = safe_name(address.partition("://")[2])

    def settings(self, task: str, variant: Variant) -> dict[str, Any]:
        """See `Player`."""
        if variant.branches is not None:
            raise UserError("a memory ablation changes the policy itself: give it as a bundle, not as a server")
        about, planner = self.policy["metadata"], self._planner if make(task, render=False).staged else None
        check_cameras(task, about.get("cameras") or [about["camera"]])
        settings = {**about["options"], **_given(variant.options)}
        if not 1 <= settings["n_action_steps"] <= about["horizon"]:
            got = settings["n_action_steps"]
            raise UserError(f"n_action_steps must lie between 1 and the policy's horizon {about['horizon']}, got {got}")
        if planner == "server" and about["planner"] != "server":
            raise UserError(f"{self.address} has no planner: start it with --planner URL, or give another --planner")
        settings["classify"] |= planner not in (None, "none")  # staged sessions judge every frame
        return {**settings, "flow_steps": about["flow_steps"], "planner": planner}

    def play(
        self, task: str, variant: Variant, seeds: Sequence[int], parallel: int, films: Films
    ) -> Generator[Outcome]:
        """See `clients.play_on_server`."""
        from mem0_jax.eval.clients import play_on_server

        given = _given(variant.options)
        return play_on_server(
            self.address,
            task,
            seeds,
            given,
            token=self._token,
            planner=self._planner,
            parallel=parallel,
            films=films,
        )


def _given(options: Options) -> dict[str, Any]:
    """The options that differ from the defaults; a server keeps its own of the others."""
    default = dataclasses.asdict(Options())
    return {name: value for name, value in dataclasses.asdict(options).items() if value != default[name]}


def begin(
    player: Player, task: str, variants: Sequence[Variant], seeds: Sequence[int], out: Path, setting: str | None = None
) -> Ledger:
    """Checks all settings and opens the folder of the results.

    Args:
        player: the policy.
        task: of `mem0_jax.envs`.
        variants: the first one is what the others are compared with.
        seeds: of the episodes, the same for all variants.
        out: root of the results; see `results` for the layout.
        setting: name of the policy's setting there; None: the player's.

    Raises:
        UserError: settings that cannot be, or a folder that cannot be written.
    """
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    if not seeds or not variants:
        raise UserError(f"expected at least one episode and one variant, got {len(seeds)} and {len(variants)}")
    now, name = datetime.now(), setting or player.name
    settings = [(variant.name, player.settings(task, variant)) for variant in variants]
    env = make(task, render=False)
    facts = {"instruction": env.instruction, "chance": env.chance, "policy": player.policy, **software()}
    return Ledger(new_folder(out, task, name, now), task, name, seeds, facts, settings, now)


def play_all(
    ledger: Ledger,
    player: Player,
    variants: Sequence[Variant],
    *,
    parallel: int = ROWS,
    videos: int | None = None,
    progress: Callable[[str, Outcome], Any] = lambda variant, outcome: None,
) -> None:
    """Plays all variants; whatever stops it, what is finished is written and the summary shows it.

    Args:
        ledger: of `begin`, with the same player and variants.
        parallel: episodes side by side.
        videos: episodes of each variant that are filmed; None: all.
        progress: called with every episode that is over.

    Raises:
        UserError: the player's.
    """
    from mem0_jax.eval.summary_html import write_summary

    filmed = (len(ledger.seeds) if videos is None else videos) if can_film() else 0
    try:
        for variant, result in zip(variants, ledger.variants):
            started = time.perf_counter()

            def film(number: int, result: VariantResult = result) -> Path | None:
                return ledger.film(result, number) if number < filmed else None

            with closing(player.play(ledger.task, variant, ledger.seeds, parallel, film)) as outcomes:
                for outcome in outcomes:
                    ledger.add(result, outcome, time.perf_counter() - started)
                    progress(variant.name, outcome)
    finally:
        write_summary(ledger.folder, ledger.summary())


def software() -> Mapping[str, Any]:
    """How it was called, and with what."""
    packages = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless")
    return {
        "command": sys.argv,
        "versions": {"mem0-jax": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
