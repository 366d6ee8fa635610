"""Training planners: the loss by hand, rows in order, what each preset trains, runs that resume, bundles that plan."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import lessons
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax import tree
from mem0_jax.backbones.qwen3_vl.images import PixelBounds
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.positions import arrays_of
from mem0_jax.cli import main
from mem0_jax.commands.train import read_config
from mem0_jax.config import from_dict
from mem0_jax.data.pipeline import make_loader
from mem0_jax.distributed.mesh import parse_mesh
from mem0_jax.distributed.sharding import STANDARD, placements
from mem0_jax.errors import UserError
from mem0_jax.nn import module
from mem0_jax.planner.job import PlannerJob
from mem0_jax.planner.local import LocalPlanner, load_generator
from mem0_jax.planner.merge import merge
from mem0_jax.planner.prompt import parse_answer
from mem0_jax.planner.questions import read_questions
from mem0_jax.planner.render import chat_text
from mem0_jax.planner.rows import RowSource
from mem0_jax.planner.training import Questions, make_policy, train_planner
from mem0_jax.policies.bundle import load_backbone
from mem0_jax.train.config import SettingsError
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.run import prepare as prepare_any

prepare = partial(prepare_any, read=Questions.read)
ROWS = sum(lessons.TIMES) + len(lessons.TIMES)
CHOSEN = (2, 7)  # rows that differ in length, size of images and length of the answer


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return lessons.write(tmp_path_factory.mktemp("questions"))


@pytest.fixture(scope="module")
def taught(questions, tmp_path_factory) -> Path:
    """A run until the planner knows all answers."""
    run = tmp_path_factory.mktemp("runs") / "taught"
    result = train_planner(lessons.job(questions, steps=150, warmup_ratio=0.05), run)
    assert result.rows[-1]["answer_accuracy"] == 1.0
    return run


@pytest.fixture(scope="module")
def bundle(taught) -> Path:
    merge(taught, taught.with_name("bundle"), taught.with_name("hugging_face"))
    return taught.with_name("bundle")


def by_hand(prepared, params, rows) -> float:
    """The mean over all answer tokens, each row on its own, without padding, from logits of every place."""
    config, total, count = prepared.job.model.backbone, 0.0, 0
    encode = jax.jit(lambda arrays: module.bind(lambda rngs: Qwen3VL(config, rngs))(params).encode(arrays))
    source = RowSource(prepared.lessons.rows, config, prepared.job.data.images, lanes=1)
    for row in rows:
        ids = np.concatenate([row.question, row.answer])[None]
        patches = np.concatenate([source._patches(*image) for image in zip(row.images, row.grids)])
        arrays = arrays_of(ids, np.ones_like(ids, bool), patches, row.grids, config)
        hidden = np.asarray(encode(arrays).normed[0], np.float64)
        tied = config.text.tie_word_embeddings
        head = params["language_model"]["embed_tokens"]["embedding"].T if tied else params["lm_head"]["kernel"]
        logits = hidden @ np.asarray(head, np.float64)
        for i, token in enumerate(row.answer):
            at = logits[len(row.question) + i - 1]
            total += np.log(np.exp(at - at.max()).sum()) + at.max() - at[token]
            count += 1
    return total / count


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_mean_cross_entropy_of_answer_tokens(questions, tied):
    prepared = prepare(lessons.job(questions, tied))
    policy, source = prepared.policy, prepared.lessons.source(0, 4)
    params = policy.init(jax.random.key(0))
    batch = {name: np.stack([source[i][name] for i in CHOSEN]) for name in source[0]}
    rows = [prepared.lessons.rows[source._row(i)] for i in CHOSEN]
    assert len({len(row) for row in rows}) > 1
    assert len({row.grids for row in rows}) > 1
    assert len({len(row.answer) for row in rows}) > 1
    loss = jax.jit(lambda params, batch: policy.loss(params, (), batch, jax.random.key(1), True)[0])
    expected = by_hand(prepared, params, rows)
    assert float(loss(params, batch)) == pytest.approx(expected, rel=1e-6)
    # What must not count does not; what must, does.
    masked = batch | {"target": np.where(batch["target_mask"], batch["target"], 7)}
    assert float(loss(params, masked)) == pytest.approx(expected, rel=1e-6)
    late = batch | {"target_place": batch["target_place"] + batch["target_mask"]}
    assert float(loss(params, late)) != pytest.approx(expected, rel=1e-3)
    swapped = batch | {"grid_id": 1 - batch["grid_id"]}
    assert float(loss(params, swapped)) != pytest.approx(expected, rel=1e-5)


def test_an_answer_ends_with_its_control_token_and_reads_back(questions, tmp_path):
    for folder, summary in ((questions, False), (lessons.write(tmp_path / "summaries", summaries=True), True)):
        prepared = prepare(lessons.job(folder))
        for row, question in zip(prepared.lessons.rows, read_questions(folder)):
            assert row.answer[-1] == prepared.job.model.backbone.tokens.im_end
            said = prepared.tokenizer.decode(row.answer.tolist(), skip_special_tokens=True)
            assert parse_answer(said, summary) == question.plan


@settings(max_examples=10)
@given(lanes=st.integers(2, 4), parts=st.integers(1, 2), seed=st.integers(0, 100), data=st.data())
def test_every_pass_takes_all_rows_once_whatever_the_hosts(prepared_rows, lanes, parts, seed, data):
    make = partial(RowSource, *prepared_rows, lanes=lanes, parts=parts, seed=seed)
    whole, cut = make(), data.draw(st.integers(1, lanes - 1))
    hosts = [make(num_local_lanes=cut), make(first_lane=cut, num_local_lanes=lanes - cut)]
    seen: list[bytes] = []
    for batch in range(-(-2 * ROWS // (lanes * parts))):
        elements = [whole[batch * lanes + lane] for lane in range(lanes)]
        split = [hosts[0][batch * cut + lane] for lane in range(cut)]
        split += [hosts[1][batch * (lanes - cut) + lane] for lane in range(lanes - cut)]
        for ours, theirs in zip(elements, split):
            np.testing.assert_equal(ours, theirs)
        for element in elements:
            seen += [ids.tobytes() + image.tobytes() for ids, image in zip(element["input_ids"], element["patches"])]
    assert len(set(seen[:ROWS])) == ROWS
    assert sorted(seen[ROWS : 2 * ROWS]) == sorted(seen[:ROWS])


@pytest.fixture(scope="module")
def prepared_rows(questions):
    prepared = prepare(lessons.job(questions))
    return prepared.lessons.rows, prepared.job.model.backbone, prepared.job.data.images


def test_a_loader_goes_on_where_another_stopped(prepared_rows):
    make = partial(RowSource, *prepared_rows, lanes=4)
    with make_loader(make(), threads=2) as loader:
        expected = [next(loader) for _ in range(6)]
    with make_loader(make(), threads=0) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.get_state()))
    with make_loader(make(), threads=1) as loader:
        loader.set_state(state)
        np.testing.assert_equal(next(loader), expected[3])
    with make_loader(make(seed=1), threads=1) as loader, pytest.raises(ValueError, match="seed was 0, now 1"):
        loader.set_state(state)


def test_a_bundle_plans_as_it_was_taught(bundle):
    planner = LocalPlanner(load_generator(bundle), retries=0)
    for episode in range(len(lessons.TIMES)):
        for stage, situation in enumerate(lessons.situations(episode)):
            assert planner.next_subtask(situation).subtask == lessons.subtask(episode, stage)


def test_low_rank_factors_alone_are_trained_and_resume_exactly(questions, bundle, tmp_path):
    """In mixed precision: what is frozen is kept in bfloat16, and so is the bundle that comes of it."""
    begun = shutil.copytree(bundle, tmp_path / "begun")
    (begun / "processor" / "chat_template.jinja").write_text("as it came")
    (begun / "processor" / "preprocessor_config.json").write_text('{"resample": 3, "size": {"shortest_edge": 65536}}')
    bundle = begun
    job = partial(lessons.job, questions, init_from=str(bundle), preset="lora", precision="mixed", learning_rate=0.02)
    job = partial(job, steps=4, save_every=2, accumulate=2, log_every=1, weight_decay=0.1, ema_decay=0.5)
    straight = train_planner(job(), tmp_path / "straight").state

    class KilledError(Exception):
        pass

    def kill(row):
        if row["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train_planner(job(), tmp_path / "resumed", kill)
    resumed = train_planner(job(), tmp_path / "resumed")
    assert resumed.resumed_from == 2
    after, base = tree.flatten(straight.params), tree.flatten(load_backbone(bundle, jnp.bfloat16).params)
    for path, leaf in after.items():
        np.testing.assert_array_equal(leaf, tree.flatten(resumed.state.params)[path], err_msg=path)
        if path in base:
            np.testing.assert_array_equal(leaf, base[path], err_msg=path)
    factors = set(after) - set(base)
    assert len(factors) == 2 * 7
    assert all(path.startswith("language_model/layers/") for path in factors)
    assert all(np.any(np.asarray(after[path]) != 0) for path in factors)

    merge(tmp_path / "resumed", tmp_path / "bundle", tmp_path / "hugging_face")
    assert (tmp_path / "hugging_face" / "chat_template.jinja").read_text() == "as it came"
    pictures = json.loads((tmp_path / "hugging_face" / "preprocessor_config.json").read_text())
    assert (pictures["resample"], pictures["size"]) == (3, {"shortest_edge": 1024, "longest_edge": 2048})
    policy = make_policy(prepare(job()).job)
    assert isinstance(policy, LoraPolicy)
    expected = tree.flatten(policy.merge(straight.averaged_params))
    merged = tree.flatten(load_backbone(tmp_path / "bundle", dtype=None).params)
    assert merged.keys() == base.keys()
    for path, leaf in merged.items():
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
        adapted = path.startswith("language_model/layers/") and path.endswith("_proj/kernel")
        assert adapted == bool(np.any(np.asarray(leaf) != np.asarray(base[path]))), path


def test_full_training_leaves_the_vision_tower_unless_told(questions):
    def trained(**training) -> set[str]:
        prepared = prepare(lessons.job(questions, **training))
        paths = tree.flatten(jax.eval_shape(prepared.policy.init, jax.random.key(0)))
        return set(paths) - tree.select(prepared.config.freeze, paths, "freeze")

    assert not any(path.startswith("visual/") for path in trained(train_vision=False))
    assert trained() - trained(train_vision=False) == {path for path in trained() if path.startswith("visual/")}


def test_passes_are_counted_in_rows(questions):
    assert lessons.job(questions, steps=0, epochs=25.0).steps(ROWS) == int(25 * ROWS / 4)
    assert prepare(lessons.job(questions, steps=0, epochs=2.0)).config.steps == int(2 * ROWS / 4)


def test_the_recipe_is_the_reference_s():
    """RMBench, policy/Mem-0/scripts/planning_train_pipeline.py, and the defaults of LLaMA-Factory."""
    job = from_dict(PlannerJob, read_config("planner_8b", []))
    train, config = job.train, job.train_config(1000)
    assert (train.preset, train.lora.rank, train.lora.alpha, train.epochs) == ("lora", 8, 16.0, 25.0)
    assert (train.per_device, job.data.cutoff, job.data.images) == (16, 2048, PixelBounds(65536, 262144))
    assert (train.learning_rate, train.floor, train.schedule, train.warmup_ratio) == (1e-4, 0.0, "cosine", 0.1)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm, job.compute_dtype) == (0.0, 1.0, "bfloat16")
    assert config.steps == 25 * 1000 // 16
    assert from_dict(PlannerJob, dataclasses.asdict(from_dict(PlannerJob, read_config("planner_small", []))))


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_every_parameter_has_a_place_on_a_mesh(questions, mesh):
    for preset in ("full", "lora"):
        policy = prepare(lessons.job(questions, tied=False, preset=preset)).policy
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
        placed = placements(abstract, policy.logical_axes, STANDARD, parse_mesh(mesh))
        assert placed.keys() == tree.flatten(abstract).keys()


def test_two_devices_train_what_one_does(questions, tmp_path):
    """The two in a process of their own, because the number of devices of one cannot change."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import dataclasses, lessons, pathlib\n"
        "from mem0_jax.planner.training import train_planner\n"
        f"job = lessons.job(pathlib.Path({str(questions)!r}), steps=2, log_every=1, per_device=2)\n"
        f"train_planner(dataclasses.replace(job, hardware='cpu2'), pathlib.Path({str(tmp_path / 'two')!r}))\n"
    )
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | flags, timeout=600)
    one = train_planner(lessons.job(questions, steps=2, log_every=1), tmp_path / "one").rows
    two = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)


def test_bad_input_is_named(questions, taught, bundle, tmp_path):
    def refused(job, message, exception: type[Exception] = UserError):
        with pytest.raises(exception, match=message):
            prepare(job)

    refused(lessons.job(tmp_path / "nowhere"), "nowhere/rows.jsonl")
    refused(lessons.job(questions, cutoff=150), r"question at frame 0 of episode 0 has 1 images and \d+ tokens, more")
    damaged = lessons.write(tmp_path / "damaged")
    (damaged / "images" / "0_0.png").write_text("no picture")
    refused(lessons.job(damaged), "0_0.png: cannot be read as an image")
    refused(lessons.job(questions, init_from=str(tmp_path)), "is missing|no policy bundle")
    with pytest.raises(SettingsError, match="cannot be cut into 3 equal parts"):
        lessons.job(questions, accumulate=3)
    with pytest.raises(SettingsError, match="leave it empty"):
        dataclasses.replace(lessons.job(questions), init_from=str(bundle))
    with pytest.raises(UserError, match=r"no run of 'mem0-jax plan train'"):
        merge(questions, tmp_path / "out")
    with pytest.raises(UserError, match="exists: name a new folder"):
        merge(taught, tmp_path / "out", questions)
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "job.json").write_bytes((taught / "job.json").read_bytes())
    with pytest.raises(UserError, match="no checkpoint yet"):
        merge(tmp_path / "young", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_commands(questions, tmp_path, capsys):
    config, run, out = tmp_path / "lesson.py", tmp_path / "run", tmp_path / "bundle"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from dataclasses import asdict\nimport lessons\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(asdict(lessons.job({str(questions)!r})))\n"
    )
    words = ["plan", "train", f"--config={config}", f"--workdir={run}"]
    assert main([*words, "--config.train.steps=1", "--json", str(tmp_path / "a.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["steps"] == 1
    assert "step 1 of 1, loss " in capsys.readouterr().err
    assert main(["plan", "merge", str(run), str(out), "--json", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "b.json").read_text())["step"] == 1
    assert load_generator(out).bounds == PixelBounds(1024, 2048)
    assert main([*words, "--config.train.epoch=3"]) == 1
    assert "did you mean 'epochs'" in capsys.readouterr().err


@pytest.mark.torch
def test_transformers_gives_the_same_answers(bundle, questions):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = bundle.with_name("hugging_face")
    model, notes = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prepared = prepare(lessons.job(questions))
    config = prepared.job.model.backbone
    source = RowSource(prepared.lessons.rows, config, prepared.job.data.images, lanes=1)
    for row, question in zip(prepared.lessons.rows, read_questions(questions)):
        parts = [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in question.prompt.parts
        ]
        messages = [{"role": "system", "content": question.prompt.system}, {"role": "user", "content": parts}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == chat_text(question.prompt)
        image, said = config.tokens.image, tokenizer(text).input_ids
        assert [t for t in said if t != image] == [t for t in row.question.tolist() if t != image]
    assert tokenizer.eos_token_id == config.tokens.im_end
    newer = "mm_token_type_ids" in inspect.signature(model.forward).parameters  # transformers 5 asks for it
    for row in prepared.lessons.rows:
        patches = np.concatenate([source._patches(*image) for image in zip(row.images, row.grids)])
        is_image = torch.tensor((row.question[None] == config.tokens.image).astype(np.int64))
        with torch.no_grad():
            said = model.generate(
                input_ids=torch.tensor(row.question[None].astype(np.int64)),
                attention_mask=torch.ones(1, len(row.question), dtype=torch.int64),
                pixel_values=torch.tensor(patches.astype(np.float32) / 127.5 - 1),
                image_grid_thw=torch.tensor(row.grids),
                max_new_tokens=len(row.answer),
                do_sample=False,
                **({"mm_token_type_ids": is_image} if newer else {}),
            )
        assert said[0, len(row.question) :].tolist() == row.answer.tolist()
