"""Self-describing policy folders: loading one needs nothing else.

config.json       format version, what it holds (a policy, or a backbone alone), its configuration, how observations
                  become its inputs, provenance
params/           Orbax checkpoint of the parameters
norm_stats.json   statistics of state and action
tokenizer.json    the tokenizer
processor/        further files of the Hugging Face processor, as they came
optimizer/        Orbax checkpoint of the optimizer's moments, where a run is to be continued
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from tokenizers import Tokenizer

from mem0_jax import __version__
from mem0_jax.config import from_dict, to_dict
from mem0_jax.data.normalize import NormStats
from mem0_jax.disk import behind, disk_told
from mem0_jax.errors import UserError
from mem0_jax.family import Config, Family, PolicyFamily, family, family_of, names, policy_family_of
from mem0_jax.lock import hold_output
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.policies.base import Params
from mem0_jax.policies.inputs import Inputs, Transform, from_version_1
from mem0_jax.stand_in import stand_in
from mem0_jax.store import check_folder, first_line, open_tree
from mem0_jax.tokenizer import load_tokenizer
from mem0_jax.tree import flatten, unflatten

FORMAT_VERSION = 2


class BundleError(UserError):
    """A folder that is no bundle, or one of another version."""


@dataclass(frozen=True)
class Bundle:
    """A policy with everything it needs; without statistics or tokenizer it can be looked into and trained on only."""

    config: Config
    params: Params
    stats: NormStats | None
    tokenizer: Tokenizer | None
    inputs: Inputs = field(default_factory=Inputs)
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def family(self) -> PolicyFamily:
        """What kind of policy it is."""
        return policy_family_of(self.config)

    @cached_property
    def policy(self) -> Any:
        """The policy of this configuration."""
        return self.family.policy(self.config)

    @cached_property
    def processor(self) -> Any:
        """Images and instructions to the policy's arrays."""
        if self.tokenizer is None:
            raise BundleError(
                "this bundle has no tokenizer.json: convert it again with --backbone DIR, the folder of its backbone"
            )
        return self.family.processor(self.tokenizer, self.config, self.inputs)

    @cached_property
    def transform(self) -> Transform:
        """Observations to images and states, and chunks back to actions."""
        if self.stats is None:
            raise BundleError("this bundle has no norm_stats.json: convert it again with --norm-stats FILE")
        return Transform(self.inputs, self.stats, self.policy.spec)

    @property
    def flow_steps(self) -> int:
        """Euler steps of the flow."""
        return self.config.flow.solver_steps

    def with_flow_steps(self, steps: int | None) -> "Bundle":
        """The same policy with so many Euler steps of the flow; None: its own. Raises UserError: fewer than one."""
        if steps is None:
            return self
        if steps < 1:
            raise UserError(f"flow steps must be at least 1, got {steps}")
        flow = replace(self.config.flow, solver_steps=steps)
        return replace(self, config=replace(self.config, flow=flow))


@dataclass(frozen=True)
class Backbone:
    """A backbone alone: to start training from, or to plan with."""

    config: Config
    params: Params
    tokenizer: Tokenizer | None


def abstract_params(config: Config) -> Params:
    """The parameter tree of a policy or a backbone as `jax.ShapeDtypeStruct`, float32."""
    return jax.eval_shape(family_of(config).init(config), jax.random.key(0))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to fill: takes its place when the block ends well, else goes without a trace.

    Raises:
        BundleError: `folder` exists and is no bundle.
        LockedError: another process fills it.
        DiskError: the disk refused; an older bundle is still there.
    """
    folder = behind(folder)  # a link to a bundle stays one
    if folder.exists() and not _replaceable(folder):
        raise BundleError(f"{folder} exists and is no bundle: name another folder, or remove it")
    unfinished, replaced = (folder.with_name(f".{folder.name}.{what}") for what in ("unfinished", "replaced"))
    with hold_output(folder), disk_told(folder):
        if replaced.exists() and not folder.exists():  # a process was killed between the renames below
            replaced.rename(folder)
        for left in (unfinished, replaced):
            shutil.rmtree(left, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            if folder.exists():
                folder.rename(replaced)
            unfinished.rename(folder)
        finally:
            for left in (unfinished, replaced):
                shutil.rmtree(left, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """Only a bundle of ours, or an empty folder, may go."""
    path = folder / "config.json"
    if folder.is_dir() and path.is_file():
        return path.stat().st_size < 2**24 and '"format_version"' in path.read_text("utf-8", errors="replace")
    return folder.is_dir() and not any(folder.iterdir())


def write_description(folder: Path, config: Config, **entries: Any) -> None:
    """Writes config.json; `entries` are `inputs`, `provenance`, `training`."""
    entries["provenance"] = {"mem0_jax": __version__, "jax": jax.__version__, **entries.get("provenance", {})}
    description = {
        "format_version": FORMAT_VERSION,
        "policy": family_of(config).name,
        "config": to_dict(config),
        **entries,
    }
    (folder / "config.json").write_text(json.dumps(description, indent=1))


def save_bundle(bundle: Bundle, folder: str | Path) -> Path:
    """Writes a bundle; the folder appears when complete and replaces an older one."""
    folder = Path(folder).absolute()
    with new_folder(folder) as unfinished:
        write_description(unfinished, bundle.config, inputs=to_dict(bundle.inputs), provenance=bundle.provenance)
        if bundle.stats is not None:
            bundle.stats.save(unfinished / "norm_stats.json")
        if bundle.tokenizer is not None:
            bundle.tokenizer.save(str(unfinished / "tokenizer.json"))
        save_params(unfinished, bundle.params)
    return folder


def save_params(folder: Path, params: Params) -> None:
    """Writes the parameters of a bundle; the process that calls writes alone, in a run of several too."""
    alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()}, "bundle")
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        checkpointer.save(check_folder(folder, joined=True) / "params", params)


def read_description(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a bundle and all of its config.json. Raises BundleError."""
    path = folder / "config.json"
    if not path.is_file():
        raise BundleError(f"{folder} is no policy bundle: it has no config.json")
    if said := stand_in(path):
        raise BundleError(f"{path} {said}")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from None
    entries = description if isinstance(description, dict) else {}
    version, policy, config = (entries.get(name) for name in ("format_version", "policy", "config"))
    known = isinstance(policy, str) and policy in names()
    if version not in (1, FORMAT_VERSION) or not known or not isinstance(config, dict):
        raise BundleError(
            f"{path}: expected {' or '.join(map(repr, names()))} of format version 1 or {FORMAT_VERSION}, got "
            f"{policy!r} of version {version!r}"
        )
    if version == 1:
        entries = migrated(entries)
    return from_dict(family(policy).config, config), entries


def migrated(description: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of format version 1 as version 2 has it."""
    new = {**description, "format_version": FORMAT_VERSION}
    return new | {"inputs": from_version_1(new["inputs"])} if "inputs" in new else new


Shardings = Mapping[str, jax.sharding.Sharding]


@same_numbers
def load_bundle(folder: str | Path, dtype: Any = jnp.float32, shardings: Shardings | None = None) -> Bundle:
    """Reads a policy; its parameters must fit its configuration exactly.

    Args:
        folder: the bundle.
        dtype: of the parameters; None keeps each as it is stored; "serving" stores them in the compute dtype where they
            are cast to it before use anyway, so that results are the same and less is read.
        shardings: path -> where a parameter is to lie; each device reads its part. Default: all on one device.
    """
    folder = Path(folder).absolute()
    config, description = read_description(folder)
    if not isinstance(family_of(config), PolicyFamily):
        raise BundleError(f"{folder} holds a backbone alone, not a policy: train one from it, or name another bundle")
    stats = folder / "norm_stats.json"
    return Bundle(
        config=config,
        params=_load_params(folder, config, dtype, shardings),
        stats=NormStats.load(stats) if stats.is_file() else None,
        tokenizer=_tokenizer(folder),
        inputs=from_dict(Inputs, description.get("inputs", {})),
        provenance=description.get("provenance", {}),
    )


@same_numbers
def load_backbone(folder: str | Path, dtype: Any = jnp.float32, shardings: Shardings | None = None) -> Backbone:
    """Reads the backbone of a bundle, of one alone or of a policy's; arguments as in `load_bundle`."""
    folder = Path(folder).absolute()
    config, _ = read_description(folder)
    if isinstance(found := family_of(config), PolicyFamily) and not found.backbone:
        raise BundleError(f"{folder} holds a {found.name}, a policy without a backbone")
    params = _load_params(folder, config, dtype, shardings)
    if isinstance(found, PolicyFamily):
        config, params = getattr(config, found.backbone), params[found.backbone]
    return Backbone(config, params, _tokenizer(folder))


def _tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return load_tokenizer(path) if path.is_file() else None


def _load_params(folder: Path, config: Config, dtype: Any, shardings: Shardings | None) -> Params:
    abstract, found = flatten(abstract_params(config)), open_tree(folder / "params")
    problems = [f"{path} is missing" for path in abstract if path not in found]
    problems += [f"{path} is unknown to this configuration" for path in found if path not in abstract]
    problems += [
        f"{path} is {found[path].shape}, expected {leaf.shape}"
        for path, leaf in abstract.items()
        if path in found and found[path].shape != leaf.shape
    ]
    if problems:
        raise BundleError(f"{folder}: parameters and config.json do not fit:\n  " + "\n  ".join(problems))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = dict.fromkeys(abstract, device) if shardings is None else shardings
    kind: Family = family_of(config)

    def kept(path: str) -> Any:
        if dtype == "serving":
            return kind.serving_dtype(path, config)
        return found[path].dtype if dtype is None else dtype

    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, kept(path), sharding=where[path]) for path, leaf in abstract.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(folder / "params", unflatten(target))
        except jax.errors.JaxRuntimeError:  # a device's, such as too little memory
            raise
        except Exception as error:  # TensorStore and Orbax have no narrower one
            said = first_line(error)
            raise BundleError(f"{folder / 'params'} cannot be read ({said}): damaged? Copy it again") from error
