"""From a checkpoint of the PyTorch world to a bundle: everything is planned and checked before any tensor is read."""

import dataclasses
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mem0_jax.config import to_dict
from mem0_jax.convert.files import Digest, Parts, PartsError
from mem0_jax.convert.finite import not_finite, refusal
from mem0_jax.convert.format import Format, Settings
from mem0_jax.convert.lerobot_folder import Beside
from mem0_jax.convert.optimizer import Training, read_training
from mem0_jax.convert.rules import ConversionError, Entry, Misfits, Plan, PlanError, make_plan, pieces, verify
from mem0_jax.convert.settings import configuration, read_folder_settings, read_settings
from mem0_jax.convert.sources import Source
from mem0_jax.convert.stored import FLOATS, array_of, is_float, nbytes
from mem0_jax.data.normalize import NormStats
from mem0_jax.errors import UserError
from mem0_jax.family import Config, family_of
from mem0_jax.policies.bundle import abstract_params, new_folder, write_description
from mem0_jax.policies.inputs import Inputs
from mem0_jax.stand_in import stand_in
from mem0_jax.store import LeafSpec, TreeWriter
from mem0_jax.tokenizer import load_tokenizer

THREADS = 2  # one reads and transposes while the other writes; each holds one tensor
LOADED = np.dtype(np.float32)  # the widest that a bundle is loaded in
TOKENIZER = "tokenizer.json"
PROCESSOR_FILES = (
    *("tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"),
    *("chat_template.jinja", "generation_config.json", "merges.txt", "vocab.json", "special_tokens_map.json"),
)
DTYPES: Mapping[str, Any] = {"keep": None, "float32": np.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        config: YAML or JSON with settings that the tensors do not tell.
        backbone: the Hugging Face folder of the backbone: its configuration, tokenizer and processor.
        norm_stats: statistics of state and action.
        dtype: "keep", "float32" or "bfloat16".
        shards: (configuration, abstract tree) -> pieces of every axis by path, for a mesh; None cuts nothing.
        with_optimizer: take the optimizer's moments along.
        allow_nonfinite: take weights that are NaN or infinite.
    """

    config: Path | None = None
    backbone: Path | None = None
    norm_stats: Path | None = None
    dtype: str = "keep"
    shards: Callable[[Config, Any], Mapping[str, tuple[int, ...]]] | None = None
    with_optimizer: bool = False
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Job:
    """A conversion that is sure to fit: every tensor has its leaf and every leaf its tensors."""

    source: Source
    config: Config
    plan: Plan
    specs: Mapping[str, LeafSpec]
    inputs: Inputs | None
    stats: NormStats | None
    processor: Path | None
    training: Training | None
    allow_nonfinite: bool
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes to be read."""
        tensors = [self.source.tensors[entry.source] for entry in self.plan.entries]
        for moment in self.training.moments.values() if self.training else ():
            tensors += moment.values()
        return sum(map(nbytes, tensors))


def prepare(source: Source, request: Request) -> Job:
    """Plans a conversion without reading a tensor.

    Raises:
        PlanError: tensors and leaves that do not fit, all of them.
        UserError: anything else that stands in the way.
    """
    if source.format == "bundle":
        raise ConversionError(f"{source.path} is a bundle already; --to torch and --to safetensors turn it back")
    processor = request.backbone or source.model_folder
    if processor is not None and processor.is_file():
        processor = processor.parent
    settings = _settings(source, request, processor)
    config = configuration(source.model, source.shapes, settings)
    _check_processor(config, processor)
    rules, abstract = source.model.rules(config), abstract_params(config)
    plan = make_plan(rules, source.shapes, abstract)
    beside = _beside(source)
    shards = request.shards(config, abstract) if request.shards else {}
    _check_floats(source, source.tensors)
    training = None
    if request.with_optimizer:
        training = read_training(source, config, rules, plan, settings)
        for name, moment in training.moments.items():
            _check_floats(source, {f"{name}/{parameter}": tensor for parameter, tensor in moment.items()})
    return Job(
        source=source,
        config=config,
        plan=plan,
        specs=_specs(plan, source.tensors, DTYPES[request.dtype], shards),
        inputs=beside.inputs if beside else source.model.inputs,
        stats=_stats(request.norm_stats) or (beside.stats if beside else None),
        processor=processor,
        training=training,
        allow_nonfinite=request.allow_nonfinite,
        notes=(*source.notes, *settings.notes, *(beside.notes if beside else ())),
    )


def convert(job: Job, out: Path, progress: Callable[[int], object] = lambda count: None) -> dict[str, Any]:
    """Writes the bundle, which appears at `out` when complete, and returns the report.

    Args:
        job: from `prepare`.
        out: the folder; an older bundle there is replaced.
        progress: called with the bytes of each tensor done, from any thread.
    """
    start = time.perf_counter()
    verify(job.plan, job.source.tensors)
    with new_folder(out) as folder:
        digests = {parts: Digest(parts) for parts in _files(job.source)}
        try:
            wrong = _write(job, folder, progress)
            sums = {parts.name: digest.result() for parts, digest in digests.items()}
        except PartsError:
            for parts, digest in digests.items():
                if parts.expected_sha256():
                    digest.result()  # says which part to download again
            raise
        finally:
            for digest in digests.values():
                digest.cancel()
        if wrong and not job.allow_nonfinite:
            raise refusal(wrong)
        _describe(job, folder, sums)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    report = {"seconds": time.perf_counter() - start, "peak_rss_bytes": peak, "sha256": sums, "nonfinite": wrong}
    return summary(job) | report


def summary(job: Job) -> dict[str, Any]:
    """What the plan says, for the report."""
    consumed = [entry.source for entry in job.plan.entries] + [check.source for check in job.plan.checks]
    return {"consumed": len(consumed), "unmapped": [], "unfilled": [], "bytes": job.bytes, "leaves": len(job.specs)}


def failed_summary(misfits: Misfits) -> dict[str, Any]:
    """The same for a plan that failed."""
    return {
        "consumed": 0,
        "unmapped": misfits.unmapped,
        "missing": misfits.missing,
        "unfilled": misfits.unfilled,
        "clashes": misfits.clashes,
        "bytes": 0,
    }


def _beside(source: Source) -> Beside | None:
    """What lies beside weights in a folder."""
    folder = source.path.parent if source.path.is_file() else source.path
    read = source.model.beside
    return read(folder) if read is not None and (folder / "config.json").is_file() else None


def _settings(source: Source, request: Request, processor: Path | None) -> Settings:
    settings = Settings()
    if processor is not None and (processor / "config.json").is_file():
        settings = read_folder_settings(processor, source.model)
        if processor != source.model_folder and source.model.beside and source.model_folder is not None:
            own = read_settings(source.model_folder / "config.json", source.model)
            settings = Settings({**settings.values, **own.values}, own.where, notes=(*settings.notes, *own.notes))
    elif request.backbone is not None:
        title = source.model.innermost.title
        raise ConversionError(f"{request.backbone}: no config.json, expected the folder of a {title} model")
    if request.config is not None:
        given = read_settings(request.config, source.model)
        notes = (*settings.notes, *given.notes, *_overridden(settings, given))
        settings = Settings({**settings.values, **given.values}, given.where, given.training, notes)
    if processor is not None and (processor / TOKENIZER).is_file():
        settings.values.update(_told_by_the_tokenizer(load_tokenizer(processor / TOKENIZER), source.model))
    for name, setting in source.model.buffers.items():
        number = source.tensors.get(name)
        if number is not None and not tuple(number.shape) and is_float(number):
            settings.values.setdefault(setting, float(array_of(number)))
    return settings


def _told_by_the_tokenizer(tokenizer: Any, model: Format) -> dict[str, Any]:
    told, inside = model.tokens(tokenizer), model.backbone
    if inside:
        told |= {f"{inside.field}.{name}": value for name, value in inside.format.tokens(tokenizer).items()}
    return told


def _overridden(settings: Settings, given: Settings) -> list[str]:
    """What --config says otherwise than the model's own folder."""
    other = [
        f"{name} is {given.values[name]!r}, not {value!r}"
        for name, value in settings.values.items()
        if name in given.values and given.values[name] != value and ".tokens." not in f".{name}"
    ]
    return [f"{given.where} is followed where {settings.where} says otherwise: {'; '.join(other)}"] if other else []


def _check_floats(source: Source, tensors: Mapping[str, Any]) -> None:
    """Numbers of another kind are not the weights: quantized ones lack their scales, complex ones would be halved."""
    others = [f"{name} is {np.dtype(tensor.dtype).name}" for name, tensor in tensors.items() if not is_float(tensor)]
    if others:
        raise ConversionError(
            f"{source.path}: {len(others)} tensors hold no floats, such as {others[0]}: expected {', '.join(FLOATS)}; "
            "if the model is quantized, convert the one it was made from"
        )


def _check_processor(config: Config, processor: Path | None) -> None:
    """Files to be copied are what they are called, and the special tokens those of the model."""
    if processor is None:
        return
    for name in (TOKENIZER, *PROCESSOR_FILES):
        if said := stand_in(processor / name):
            raise ConversionError(f"{processor / name} {said}")
    if not (processor / TOKENIZER).is_file():
        return
    tokenizer = load_tokenizer(processor / TOKENIZER)
    try:
        family_of(config).check_tokenizer(tokenizer, config)
    except UserError as error:
        raise ConversionError(f"{processor / TOKENIZER}: {error}") from None


def _specs(
    plan: Plan, tensors: Mapping[str, Any], dtype: Any, shards: Mapping[str, tuple[int, ...]]
) -> dict[str, LeafSpec]:
    found: dict[str, dict[np.dtype, str]] = {path: {} for path in plan.abstract}
    layered = {target: entry.layer is not None for entry in plan.entries for target in entry.targets}
    for entry in plan.entries:
        for target in entry.targets:
            found[target].setdefault(np.dtype(tensors[entry.source].dtype), entry.source)
    mixed = [
        f"{path}: " + ", ".join(f"{source} is {dtype.name}" for dtype, source in dtypes.items())
        for path, dtypes in found.items()
        if len(dtypes) > 1 and dtype is None
    ]
    if mixed:
        raise PlanError(Misfits(clashes=["layers of one leaf differ in dtype (choose one with --dtype):", *mixed]))
    return {
        path: LeafSpec(
            tuple(leaf.shape), np.dtype(dtype or next(iter(found[path]))), layered[path], shards.get(path, ())
        )
        for path, leaf in plan.abstract.items()
    }


def _stats(path: Path | None) -> NormStats | None:
    if path is None:
        return None
    try:
        return NormStats.load(path)
    except (OSError, ValueError) as error:
        raise ConversionError(str(error)) from None


def _files(source: Source) -> list[Parts]:
    return list(dict.fromkeys(tensor.parts for tensor in source.tensors.values()))


def _tasks(job: Job, folder: Path) -> Iterator[tuple[TreeWriter, str, Entry, Mapping[str, Any]]]:
    """Every tensor to be moved: where to, under which prefix, by which entry, from which tensors."""
    writer = TreeWriter(folder / "params", job.specs)
    yield from ((writer, "", entry, job.source.tensors) for entry in job.plan.entries)
    if job.training is None:
        return
    trained = [entry for entry in job.plan.entries if entry.source in job.training.moments["mu"]]
    specs = {
        f"{name}/{target}": dataclasses.replace(
            job.specs[target], dtype=np.dtype(job.training.moments[name][entry.source].dtype)
        )
        for name in job.training.moments
        for entry in trained
        for target in entry.targets
    }
    writer = TreeWriter(folder / "optimizer", specs)
    for name, moment in job.training.moments.items():
        yield from ((writer, f"{name}/", entry, moment) for entry in trained)


def _write(job: Job, folder: Path, progress: Callable[[int], object]) -> list[str]:
    """Returns what is not finite, one line a tensor."""

    def move(task: tuple[TreeWriter, str, Entry, Mapping[str, Any]]) -> str:
        writer, prefix, entry, tensors = task
        values = array_of(tensors[entry.source])
        with np.errstate(over="ignore", invalid="ignore"):  # a cast that overflows is found below
            for target, value in pieces(entry, {entry.source: values}):
                writer.write(prefix + target, value, entry.layer)
        progress(values.nbytes)
        dtype = values.dtype if prefix else job.specs[entry.targets[0]].dtype
        return not_finite(prefix + entry.source, values, dtype if dtype.itemsize <= LOADED.itemsize else LOADED)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return [line for line in pool.map(move, _tasks(job, folder)) if line]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _number(step: Any) -> int | None:
    """A step count as JSON has it, be it a number in the file or a tensor."""
    try:
        return int(array_of(step)) if step is not None else None
    except (TypeError, ValueError, OverflowError):
        return None


def _describe(job: Job, folder: Path, sums: Mapping[str, str]) -> None:
    entries: dict[str, Any] = {
        "provenance": {
            "source": [{"name": name, "sha256": value} for name, value in sums.items()],
            "source_format": job.source.format,
            "source_step": _number(job.source.checkpoint.get("global_step")),
        }
    }
    if job.inputs is not None:
        entries["inputs"] = to_dict(job.inputs)
    if job.training is not None:
        entries["training"] = {
            "step": job.training.step,
            "count": job.training.count,
            "optimizer": dataclasses.asdict(job.training.config),
        }
    write_description(folder, job.config, **entries)
    if job.stats is not None:
        job.stats.save(folder / "norm_stats.json")
    if job.processor is not None:
        for name in (TOKENIZER, *PROCESSOR_FILES):
            if (job.processor / name).is_file():
                target = folder / name if name == TOKENIZER else folder / "processor" / name
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(job.processor / name, target)
