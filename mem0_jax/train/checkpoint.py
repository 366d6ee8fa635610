"""Checkpoints of a run: the whole `TrainState`, the data iterator's place, the log's open window, and the settings.

A checkpoint is written in the background, beside its final place, and renamed once complete, so that an interrupted
write never carries a step's name. What is on disk is a nested dict of arrays by `/`-joined path: it depends on no class
of ours. Every leaf's fingerprint is stored with it and compared when it is read, because a flipped bit in an array
file, or in a name, would otherwise load without complaint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mem0_jax import tree
from mem0_jax.disk import explained
from mem0_jax.errors import UserError
from mem0_jax.store import check_folder
from mem0_jax.train.state import TrainState
from mem0_jax.train.watch import DiskFullError, check_disk, tree_bytes

FORMAT_VERSION = 2
_log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint that belongs to another run or model, or none of which can be read."""


class CorruptedError(Exception):
    """One checkpoint's files do not hold what was saved; an older one may."""


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found: the state, and the JSON values given to `save` with it."""

    state: TrainState
    extra: dict[str, Any]


class _Kept:
    """Which checkpoints stay: the `newest` and those of the `best` lowest scores."""

    def __init__(self, newest: int, best: int) -> None:
        self._newest, self._best = newest, best
        self.scores: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer a checkpoint, as Orbax asks for."""
        steps = [info.step for info in checkpoints]
        scored = sorted((step for step in steps if step in self.scores), key=lambda step: self.scores[step])
        kept = {*sorted(steps)[-self._newest :], *scored[: self._best]}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of one run in one folder; use it as a context manager, which waits for the last write."""

    def __init__(self, directory: Path, keep: int, keep_best: int = 0, read_only: bool = False) -> None:
        """Open `directory`, made if absent; unfinished writes go before the next save.

        Stay: the `keep` newest, and the `keep_best` of the lowest score. With `read_only` nothing is changed, so that
        the run may be under way.
        """
        self._read_only = read_only
        self._directory = check_folder(directory.resolve(), joined=True)
        self._kept = _Kept(keep, keep_best)
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._kept,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                enable_async_checkpointing=True,
                lightweight_initialize=True,  # a damaged checkpoint must not prevent opening the others
            ),
        )
        for step in self._manager.all_steps() if keep_best else ():
            try:
                score = self._read_meta(step)["score"]
            except CorruptedError:
                continue  # `restore` deals with it
            if score is not None:
                self._kept.scores[step] = score

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._failure_told():
                self._manager.close()
        except DiskFullError as error:
            with contextlib.suppress(Exception):
                self._manager.close()  # what the failure left open
            if kind is None:
                raise
            _log.warning("%s", error)

    def save(self, state: TrainState, extra: Mapping[str, Any], score: float | None = None) -> None:
        """Save under `state.step`, unless that step is there already; returns once `state` may be donated.

        `extra` must be JSON values (TypeError otherwise), which may change afterwards. `score`, finite, is what
        validation found, the lower the better. That the disk refused the write before is a warning: this one counts.

        Raises:
            DiskFullError: the disk has too little space for it, or refuses. What is there stays.
        """
        step = int(state.step)
        try:
            self.wait()
        except DiskFullError as error:
            _log.warning("%s", error)
        if step == self._manager.latest_step():
            return
        check_disk(self._directory, tree_bytes(state), f"the checkpoint of step {step}", self._what_is_kept())
        flat = _flat(state)
        prints = _fingerprints(list(flat.values()))
        leaves = {p: [list(v.shape), str(v.dtype), f] for (p, v), f in zip(flat.items(), prints)}
        if score is not None:
            self._kept.scores[step] = score
        meta = {"format_version": FORMAT_VERSION, "leaves": leaves, "score": score, "extra": extra}
        # A copy: training goes on, and changes the log's lists, while this is written.
        sealed = {"crc32": _crc32(meta), "content": json.loads(json.dumps(meta))}
        args = ocp.args.Composite(state=ocp.args.StandardSave(tree.unflatten(flat)), meta=ocp.args.JsonSave(sealed))
        with self._failure_told():
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Return once the latest checkpoint is completely written. Raises DiskFullError where the disk refused it."""
        with self._failure_told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        """Makes one sentence of what a write that the disk refused raises, and clears away what it left."""
        try:
            yield
        except Exception as error:  # the storage library raises whatever its many layers raise
            if explained(error) is None:
                raise
            if jax.process_index() == 0:
                for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._manager.reload()
            told = explained(error, f"a checkpoint in {self._directory}", self._what_is_kept())
            raise DiskFullError(str(told)) from error

    def _what_is_kept(self) -> str:
        good = self._manager.latest_step()
        return "no checkpoint is kept yet" if good is None else f"the last good checkpoint, of step {good}, is kept"

    def restore(self, template: TrainState) -> Restored | None:
        """Read the newest intact checkpoint; None if there is none at all.

        A damaged one is moved aside unless `read_only`, with a warning, and the one before is tried.

        Args:
            template: the state expected, as arrays or `jax.ShapeDtypeStruct`; those with a sharding are read into it.
        Raises:
            CheckpointError: the checkpoint holds other leaves, shapes or dtypes (lists all of them) or was written by
                another format version; or every checkpoint is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for step in steps:
            try:
                return self._read(step, template)
            except CorruptedError as error:
                reasons.append(f"step {step}: {error}")
                what = "left where it is" if self._read_only else f"moved to {self._move_aside(step)}"
                _log.warning("checkpoint of step %d is damaged (%s); %s, trying the one before", step, error, what)
        if not steps:
            return None
        raise CheckpointError(
            f"{self._directory}: no checkpoint can be read:\n  " + "\n  ".join(reasons) + "\nStart in a new folder."
        )

    def _read(self, step: int, template: TrainState) -> Restored:
        meta = self._read_meta(step)
        expected = _flat(template)
        self._check_leaves(step, meta["leaves"], expected)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {p: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding or device) for p, v in expected.items()}
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(tree.unflatten(target)))
            flat = tree.flatten(self._manager.restore(step, args=args)["state"])
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # a device without room for them says nothing of the files
        except Exception as error:  # the storage library raises whatever its many layers raise
            raise CorruptedError(f"its arrays cannot be read: {_first_line(error)}") from error
        leaves = [flat[path] for path in expected]
        changed = [p for p, f in zip(expected, _fingerprints(leaves)) if f != meta["leaves"][p][2]]
        if changed:
            raise CorruptedError(f"{len(changed)} of {len(leaves)} arrays changed on disk, the first is {changed[0]!r}")
        return Restored(jax.tree.unflatten(jax.tree.structure(template), leaves), meta["extra"])

    def _read_meta(self, step: int) -> dict[str, Any]:
        try:
            sealed = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            meta, crc32 = sealed["content"], sealed["crc32"]
            version = meta["format_version"]
        except Exception as error:  # as above
            raise CorruptedError(f"its description cannot be read: {_first_line(error)}") from error
        if crc32 != _crc32(meta):
            raise CorruptedError("its description changed on disk")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self._directory / str(step)}: checkpoint format {version!r}, this program reads {FORMAT_VERSION}; "
                "continue the run with the version that started it, or start in a new folder"
            )
        return meta

    def _check_leaves(self, step: int, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        problems = [f"{path}: not in the checkpoint" for path in expected if path not in found]
        problems += [f"{path}: in the checkpoint, unknown to this run" for path in found if path not in expected]
        for path, leaf in expected.items():
            if path in found and [list(leaf.shape), str(leaf.dtype)] != found[path][:2]:
                problems.append(
                    f"{path}: {found[path][1]}{found[path][0]} saved, {leaf.dtype}{list(leaf.shape)} expected"
                )
        if problems:
            raise CheckpointError(
                f"{self._directory / str(step)} is of another model, optimizer or number of lanes:\n  "
                + "\n  ".join(problems)
                + "\nRestore the settings it was made with, or start in a new folder."
            )

    def _move_aside(self, step: int) -> Path:
        source = self._directory / str(step)
        aside = self._directory.parent / f"damaged_checkpoint_{step}_{time.time_ns()}"
        if jax.process_index() == 0:
            source.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved aside")
        self._manager.reload()
        return aside


def _flat(state: TrainState) -> dict[str, Any]:
    """Leaves of any pytree by `/`-joined path, in the order of `jax.tree.leaves`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _fingerprints(leaves: Sequence[jax.Array]) -> list[int]:
    # One at a time: on CPU devices of several processes, hundreds of small collectives under way can wait for each
    # other for ever.
    return [int(_fingerprint(leaf)) for leaf in leaves]


@jax.jit
def _fingerprint(leaf: jax.Array) -> jax.Array:
    """uint32 []: sum of the array's bits times an odd weight for their place, modulo 2^32.

    Odd weights are invertible modulo 2^32, so a change within one element always shows. Integer sums do not
    depend on order: the value is the same however an array is split over devices.
    """
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)  # 8-byte elements get an axis of 2
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _crc32(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
