"""A planner in this process: a backbone's bundle that answers `planner.prompt`'s questions."""

import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.chat import CONTEXT, GenerationError, Generator, PixelBounds, Prompt, Settings
from mem0_jax.config import from_dict
from mem0_jax.distributed.mesh import make_mesh
from mem0_jax.distributed.sharding import STANDARD, partition_specs
from mem0_jax.family import ChatFamily, family_of
from mem0_jax.inference.planning import Plan, PlannerError, Situation
from mem0_jax.planner.prompt import ask, parse_answer
from mem0_jax.planner.render import chat_text
from mem0_jax.policies.bundle import BundleError, abstract_params, load_backbone, read_description

IMAGES = "images"  # entry of a bundle's config.json: the `PixelBounds` it was trained with
MAX_TOKENS = 512  # of an answer; the reference's are about 20, running summaries longer


def load_generator(
    folder: str | Path,
    *,
    dtype: Any = None,
    int8: bool = False,
    mesh: dict[str, int] | None = None,
    context: int = CONTEXT,
    batch: int = 8,
) -> Generator:
    """A bundle of a backbone alone, ready to answer.

    Args:
        folder: the bundle.
        dtype: of weights and computing; None: float32 on a CPU, else bfloat16.
        int8: round the kernels of the text layers to 8 bits, see `nn.int8`.
        mesh: sizes of the mesh's axes, of `parse_mesh`: weights are read into their shards. None: one device.
        context: tokens of a prompt and its answer together.
        batch: prompts answered together.

    Raises:
        UserError: no bundle, one of a policy, one without a tokenizer, or a mesh that does not fit the devices.
    """
    folder = Path(folder).absolute()
    config, description = read_description(folder)
    family = family_of(config)
    if not isinstance(family, ChatFamily):
        raise BundleError(
            f"{folder} holds a policy: a planner is a backbone alone, of 'mem0-jax plan merge' or 'mem0-jax convert'"
        )
    if not (folder / "tokenizer.json").is_file():
        raise BundleError(f"{folder} has no tokenizer.json, which a planner needs: convert it with --backbone DIR")
    bounds = from_dict(PixelBounds, description.get(IMAGES, {}))
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype, devices, shardings = jnp.dtype(dtype), None, None
    if mesh is not None:
        devices = make_mesh(mesh)
        specs = partition_specs(abstract_params(config), family.logical_axes(config), STANDARD, mesh)
        shardings = {path: jax.sharding.NamedSharding(devices, spec) for path, spec in specs.items()}
    backbone = load_backbone(folder, dtype, shardings)
    assert backbone.tokenizer is not None
    sizes = {"bounds": bounds, "context": context, "batch": batch}
    return family.generator(config, backbone.params, backbone.tokenizer, int8=int8, **sizes, dtype=dtype, mesh=devices)


class LocalPlanner:
    """Plans with a generator of this process. Threads may ask at once; they are answered one after another.

    The likeliest answer is tried first; where it cannot be used, others are drawn, `retries` at most.

    Args:
        generator: of `load_generator`.
        summary: the planner keeps a running summary in place of key frames; as it was trained.
        retries: further answers.
        temperature: at which those are drawn.
        seed: of what is drawn.
        max_tokens: of an answer.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        summary: bool = False,
        retries: int = 3,
        temperature: float = 0.7,
        seed: int = 0,
        max_tokens: int = MAX_TOKENS,
    ):
        if retries < 0 or temperature <= 0:
            raise PlannerError(f"retries must be at least 0 and temperature above 0, got {retries} and {temperature}")
        self._generator, self._summary, self._max_tokens = generator, summary, max_tokens
        self._turn = threading.Lock()  # the device need not hold the caches of several answers
        self._attempts = [Settings(max_tokens)] + [
            Settings(max_tokens, temperature, seed=seed + i) for i in range(retries)
        ]

    def warm_up(self) -> None:
        """Compiles what questions and answers of any length can need; see `Generator.warm_up`."""
        dot = np.zeros((1, 1, 3), np.uint8)
        question = ask(Situation("", dot, dot), self._summary)
        shortest = self._generator.encode(Prompt(chat_text(question), tuple(question.images)))
        self._generator.warm_up(len(shortest.ids))

    def next_subtask(self, situation: Situation) -> Plan:
        """Raises PlannerError: no answer could be used, which it quotes, or the question is longer than the context."""
        question = ask(situation, self._summary)
        try:
            encoded = self._generator.encode(
                Prompt(chat_text(question), tuple(question.images)), Settings(self._max_tokens)
            )
        except GenerationError as error:
            raise PlannerError(f"the planner cannot be asked: {error}") from error
        for number, settings in enumerate(self._attempts, 1):
            with self._turn:
                answer = self._generator.generate([encoded], settings)[0]
            try:
                return parse_answer(answer.text, self._summary, answer.finished)
            except PlannerError as error:
                if number == len(self._attempts):
                    raise PlannerError(f"{error} ({number} answers were tried)") from error
        raise AssertionError
