"""What LeRobot keeps beside a policy's weights: its cameras, its robot's numbers, and how these are normalised.

Source: LeRobot 0.6, `pretrained_model` folders (behaviour).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mem0_jax.convert.files import Parts
from mem0_jax.convert.hf_safetensors import read_safetensors
from mem0_jax.convert.rules import ConversionError
from mem0_jax.data.normalize import LEROBOT, NormStats
from mem0_jax.data.robot import Robot, Vector
from mem0_jax.policies.inputs import Camera, Inputs

MODES = {"MIN_MAX": "min_max", "MEAN_STD": "mean_std", "QUANTILES": "quantile"}
STATISTICS = ("min", "max", "mean", "std", "q01", "q99")
KEYS = {"state": "observation.state", "action": "action"}
EMPTY = "empty_camera_"  # in the names of cameras that are places without pictures


class Beside(NamedTuple):
    """What was found; `stats` None: the folder has no processors."""

    inputs: Inputs
    stats: NormStats | None
    notes: tuple[str, ...]


def read_folder(folder: Path, max_length: int) -> Beside:
    """Reads config.json and the state of the normaliser.

    Args:
        folder: of LeRobot.
        max_length: tokens of a prompt.

    Raises:
        ConversionError: the files are damaged, or ask for what there is not here.
    """
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text("utf-8"))
        given = data["input_features"]
        shown = [name for name, feature in given.items() if feature["type"] == "VISUAL" and EMPTY not in name]
        widths = {kind: _width(data, key) for kind, key in KEYS.items()}
        mapping = {data["normalization_mapping"][kind] for kind in ("STATE", "ACTION")}
        side, _ = data["image_resolution"]
        cameras = tuple(Camera(name, (int(side), int(side))) for name in shown)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: not a policy of LeRobot ({type(error).__name__}: {error})") from None
    if len(mapping) > 1 or not mapping <= MODES.keys():
        raise ConversionError(f"{path}: normalization_mapping: expected one of {', '.join(MODES)} for STATE and ACTION")
    same = len(set(widths.values())) == 1
    names = {k: tuple(f"{'number' if same else k}_{i}" for i in range(width)) for k, width in widths.items()}
    inputs = Inputs(
        cameras=cameras,
        resample="bicubic_once",
        deploy_resample="bicubic_once",
        text="task",
        max_length=max_length,
        normalization=LEROBOT + MODES[mapping.pop()],
        robot=Robot(Vector(names["state"]), Vector(names["action"])),
    )
    binary = data.get("binarize_gripper")
    notes = ("binarize_gripper is not taken along: the gripper's numbers are given as they are",) if binary else ()
    return Beside(inputs, _statistics(folder, widths), notes)


def _width(data: Mapping[str, Any], key: str) -> int:
    features = data["output_features"] if key == "action" else data["input_features"]
    (width,) = features[key]["shape"]
    return int(width)


def _statistics(folder: Path, widths: Mapping[str, int]) -> NormStats | None:
    """Those of the numbers that the robot has: LeRobot keeps them for as many as the policy takes."""
    path = folder / "policy_preprocessor.json"
    if not path.is_file():
        return None
    try:
        steps = json.loads(path.read_text("utf-8"))["steps"]
        file = next(step["state_file"] for step in steps if step["registry_name"] == "normalizer_processor")
        tensors = read_safetensors(Parts.open(folder / Path(file).name))
        found = {
            kind: {
                name: np.asarray(tensors[f"{key}.{name}"].read(), np.float64)[: widths[kind]]
                for name in STATISTICS
                if f"{key}.{name}" in tensors
            }
            for kind, key in KEYS.items()
        }
        return NormStats(**found)
    except (StopIteration, OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path}: no statistics found ({type(error).__name__}: {error})") from None
