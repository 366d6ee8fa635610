"""A folder with the numbers of EVO1's references.

Axis letters: B samples, V pictures, N pixels along their side, S tokens, E width, C chunk length, A action width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mem0_jax.backbones.internvl3.processor import Processor, token_ids
from mem0_jax.convert.format import Settings
from mem0_jax.convert.lerobot_folder import MODES
from mem0_jax.convert.rules import Plan, load, make_plan
from mem0_jax.convert.settings import configuration, read_settings
from mem0_jax.convert.sources import Source, open_source
from mem0_jax.data.normalize import LEROBOT, Normalizer, NormStats
from mem0_jax.data.robot import Robot, Vector
from mem0_jax.errors import UserError
from mem0_jax.policies.evo1.config import EVO1Config
from mem0_jax.policies.evo1.policy import EVO1
from mem0_jax.policies.inputs import widened
from mem0_jax.reference import Report, read_arrays, read_entries
from mem0_jax.tokenizer import load_tokenizer


class Golden:
    """A golden folder, opened: configuration, policy in float32, parameters, tokenizer, statistics and arrays."""

    def __init__(self, folder: Path):
        self.folder, self.raw = folder, read_entries(folder / "config.json")
        self.arrays = read_arrays(folder / "golden.npz")
        self.tokenizer = load_tokenizer(folder / "vlm" / "tokenizer.json")
        self.source = open_source(folder / "pretrained_model")
        settings = [
            read_settings(folder / name / "config.json", self.source.model) for name in ("vlm", "pretrained_model")
        ]
        tokens = {f"backbone.tokens.{name}": number for name, number in vars(token_ids(self.tokenizer)).items()}
        values = settings[0].values | settings[1].values | tokens
        self.config: EVO1Config = replace(
            configuration(self.source.model, self.source.shapes, Settings(values, str(folder))), dtype="float32"
        )
        self.policy = EVO1(self.config)
        self.plan, self.params = loaded(self.source, self.policy)
        data = self.raw["data"]
        self.cameras = [str(name) for name in data["camera_keys_in_order"]]
        state, action = (tuple(f"{kind}_{i}" for i in range(data[f"{kind}_dim"])) for kind in ("state", "action"))
        self.robot = Robot(Vector(state), Vector(action))
        self.stats = NormStats(*(self.arrays.below(f"stats/{key}") for key in ("observation.state", "action")))

    def shown(self, pictures: Sequence[np.ndarray], mask: np.ndarray, texts: Any, length: int = 0) -> dict[str, Any]:
        """What the backbone is shown of pictures uint8 [B, height, width, 3] at every place of a prompt, of which bool
        [B, V] are there; no place is left out. `length` 0: as long as the longest prompt."""
        texts, config = [str(text) for text in texts], self.config.backbone
        processor = Processor(self.tokenizer, config, len(pictures), len(pictures), length or 2**14, whole=True)
        made = processor.prepare(pictures, texts)
        length = length or int(made["attention_mask"].sum(1).max())
        shown = {name: value if name == "pixels" else value[:, :length] for name, value in made.items()}
        place = np.maximum(shown["image_slot"], 0) // config.image_tokens
        padding = shown["input_ids"] == config.tokens.pad
        there = (shown["image_slot"] < 0) | np.take_along_axis(mask, place, 1)
        visible = there & ~padding
        # In the authors' modes the head attends to all.
        return shown | {"visible": visible, "copies": visible.astype(np.int32), "real": self.real(len(texts))}

    def real(self, rows: int) -> np.ndarray:
        """Numbers of an action that the robot has, bool [B, A]."""
        return np.tile(np.arange(self.config.head.action_dim) < len(self.robot.action.names), (rows, 1))

    def observation(self, prefix: str, length: int = 0) -> dict[str, Any]:
        """The same of batch `prefix`; places without a camera are black, and not there."""
        given, rows = self.arrays.below(prefix), len(self.arrays[f"{prefix}/task"])
        side, views = self.config.backbone.vision.image_size, self.config.views
        black = np.zeros((rows, side, side, 3), np.uint8)
        pictures = [given[name] for name in self.cameras]
        pictures += [black] * (views - len(pictures))
        mask = np.tile(np.arange(views) < len(self.cameras), (rows, 1))
        return self.shown(pictures, mask, given["task"], length) | self.kinds(given)

    def longest(self, prefix: str) -> int:
        """Tokens of the longest prompt of a batch."""
        return self.observation(prefix)["input_ids"].shape[1]

    def normalizer(self, mode: str) -> Normalizer:
        """Of one of LeRobot's modes."""
        return Normalizer(self.stats, LEROBOT + MODES[mode], self.robot)

    def batch(self, index: int) -> dict[str, Any]:
        """Training batch `index` as one lane [1, B, ...]."""
        given, head, to = self.arrays.below(f"batch{index}"), self.config.head, self.normalizer("MIN_MAX")
        flat = self.observation(f"batch{index}", self.length) | {
            "state": widened(to.state.normalize(given["observation.state"]), head.state_dim),
            "action": widened(to.action.normalize(given["action"]), head.action_dim),
            "action_is_pad": given["action_is_pad"],
        }
        return {name: value[None] for name, value in (flat | draws(given)).items()}

    @cached_property
    def length(self) -> int:
        """Tokens of the longest prompt of all batches: one program serves them."""
        return max(self.longest(f"batch{index}") for index in range(3))

    def kinds(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The kinds of robots, where a batch names them."""
        named = "embodiment_id" in given
        return {"category": np.asarray(given["embodiment_id"], np.int32)} if named else {}


def draws(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's random draws."""
    return {"noise": 2 * given["noise_unit"] - 1, "time": given["t_raw"]}


def unit_noise(drawn: np.ndarray, config: EVO1Config) -> np.ndarray:
    """Noise [B, C, A] in [-1, 1) of draws in [0, 1)."""
    return 2 * drawn.reshape(-1, config.head.horizon, config.head.action_dim) - 1


def loaded(source: Source, policy: EVO1) -> tuple[Plan, Any]:
    """How the tensors of a checkpoint become parameters, and these."""
    plan = make_plan(source.model.rules(policy.config), source.shapes, jax.eval_shape(policy.init, jax.random.key(0)))
    return plan, jax.device_put(load(plan, source.tensors), jax.local_devices()[0])


def exact(report: Report, name: str, ours: Any, theirs: Any, where: str) -> None:
    """Adds how many entries differ; UserError when the shapes do."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise UserError(f"{name} ({where}): the golden holds {list(theirs.shape)}, expected {list(ours.shape)}")
    report.add(name, 0.0, float((ours != theirs).sum()), where)
