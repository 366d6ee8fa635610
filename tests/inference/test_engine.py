"""The engine against the plain way, in every road it takes, and against the reference's deployment steps."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import HORIZON, TEXTS, WINDOW, Plain, difference, frames, request, tiny_bundle
from tiny import mem0_bundle
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS
from mem0_jax.convert.rules import load
from mem0_jax.convert.torch_pt import read_pt
from mem0_jax.errors import UserError
from mem0_jax.golden.stream import Golden
from mem0_jax.inference import engine as engine_module
from mem0_jax.inference.engine import Engine, Request, batches
from mem0_jax.policies.bundle import Bundle, load_bundle, save_bundle
from mem0_jax.policies.inputs import Camera, Inputs
from mem0_jax.policies.mem0 import policy as policy_module
from mem0_jax.reference import relative
from mem0_jax.tree import flatten

TINY_A = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
SLOTS, GATE = 3, 1e-5
PLAIN = Plain(tiny_bundle(), SLOTS)


@pytest.fixture(scope="module", params=[{}, {"rows": 2}], ids=["sizes that grow", "even rows"])
def engine(request) -> Engine:
    return Engine(tiny_bundle(), SLOTS, **request.param)


@st.composite
def conversations(draw):
    """Steps of requests of some slots in any order; the first of a slot begins its episode."""
    rng, begun, steps = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), set(), []
    for _ in range(draw(st.integers(1, 4))):
        step = []
        for slot in draw(st.permutations(range(SLOTS)))[: draw(st.integers(1, SLOTS))]:
            fresh = slot not in begun or draw(st.integers(0, 4)) == 0
            count = draw(st.integers(1 if fresh else 0, WINDOW + 3))
            decide, text = draw(st.booleans()), draw(st.integers(0, len(TEXTS) - 1))
            step.append(request(rng, slot, count, fresh=fresh, decide=decide, text=text))
            begun.add(slot)
        steps.append(step)
    return steps


@settings(max_examples=15)
@given(steps=conversations())
def test_any_interleaving_equals_the_plain_way(engine, steps):
    for step in steps:
        assert difference(engine.step(step), PLAIN.step(step)) < GATE


def scenario() -> list[list[Request]]:
    """Frames kept for later, of other counts in each slot; longer and shorter texts; decisions without a frame."""
    rng = np.random.default_rng(5)
    return [
        [request(rng, 2, 3, fresh=True, text=2), request(rng, 0, 2, fresh=True, text=1)],
        [request(rng, 1, 1, fresh=True), request(rng, 2, 7, text=0), request(rng, 0, 1, decide=False, text=1)],
        [request(rng, 0, 0), request(rng, 1, 4, text=2)],
        [request(rng, 1, 0), request(rng, 2, 1), request(rng, 0, 2)],
    ]


def error_of(engine: Engine) -> float:
    return max(difference(engine.step(step), PLAIN.step(step)) for step in scenario())


def prefix_too_short(engine, monkeypatch):
    prefix = engine.bundle.processor.image_prefix
    cut = {name: value[..., :-1] for name, value in prefix.items()}
    monkeypatch.setitem(engine.bundle.processor.__dict__, "image_prefix", cut)


def texts_cut(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "token_bucket", lambda length, longest: max(32, length // 32 * 32))


def stale_context(engine, monkeypatch):
    whole = engine._programs.look

    def look(params, slots, *rest):
        context = jax.numpy.copy(slots.context)
        return dataclasses.replace(whole(params, slots, *rest), context=context)

    engine._programs.look = look


def wrong_slot(engine, monkeypatch):
    whole = engine._programs.decide
    engine._programs.decide = lambda p, c, slots, rows, *rest: whole(p, c, slots, np.roll(rows, 1), *rest)


def counts_ignored(engine, monkeypatch):
    whole = engine._programs.remember
    engine._programs.remember = lambda *args: whole(*args[:-1], np.full_like(args[-1], args[-1].max()))


def frames_of_a_neighbour(engine, monkeypatch):
    whole = engine._programs.remember
    engine._programs.remember = lambda *args: whole(*args[:-2], args[-2] * 0 + np.arange(len(args[-2])), args[-1])


def solver_backwards(engine, monkeypatch):
    engine._constants = jax.tree.map(lambda x: x[::-1], engine._constants)


def memory_emptied_twice(engine, monkeypatch):
    whole = engine._programs.look
    engine._programs.look = lambda p, s, rows, fresh, *rest: whole(p, s, rows, np.ones_like(fresh), *rest)


def test_the_engine_right():
    assert error_of(Engine(tiny_bundle(), SLOTS)) < GATE


MUTANTS = [
    prefix_too_short,
    texts_cut,
    stale_context,
    wrong_slot,
    counts_ignored,
    frames_of_a_neighbour,
    solver_backwards,
    memory_emptied_twice,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_engine_wrong(mutant, monkeypatch):
    engine = Engine(tiny_bundle(), SLOTS)
    own = engine._programs
    programs = SimpleNamespace(
        look=own.look, decide=own.decide, remember=own.remember, empty=own.empty, policy=own.policy
    )
    monkeypatch.setattr(engine, "_programs", programs)
    mutant(engine, monkeypatch)
    assert error_of(engine) > 100 * GATE


def test_several_cameras_equal_the_plain_way_and_all_count():
    sizes = {"memory.window_size": WINDOW, "action.horizon": HORIZON}
    cameras = [Camera("observation.images.top", (40, 48)), Camera("observation.images.wrist", (32, 24))]
    bundle = mem0_bundle(TEXTS[:2], sizes, cameras=cameras, max_length=64, random=True)
    engine, plain, rng = Engine(bundle, 2), Plain(bundle, 2), np.random.default_rng(0)

    def asked(slot: int, count: int, fresh: bool) -> Request:
        views = tuple(rng.integers(0, 256, (count, *camera.size, 3)).astype(np.uint8) for camera in cameras)
        state, noise = (rng.normal(size=shape).astype(np.float32) for shape in (16, (HORIZON, 16)))
        return Request(slot, views, TEXTS[slot], fresh, state, noise)

    for step in ([asked(1, 3, True)], [asked(0, 2, True), asked(1, 4, False)]):
        assert difference(engine.step(step), plain.step(step)) < GATE
    [first], [again] = (engine.step([dataclasses.replace(step[0], fresh=True)]) for _ in range(2))
    assert difference([first], [again]) == 0
    for camera in (0, 1):
        views = list(step[0].images)
        views[camera] = 255 - views[camera]
        assert difference(engine.step([dataclasses.replace(step[0], images=tuple(views), fresh=True)]), [first]) > GATE
    with pytest.raises(UserError, match="pictures of 1 cameras, the policy has 2"):
        engine.step([dataclasses.replace(step[0], images=step[0].images[:1])])


@given(counts=st.lists(st.integers(1, 9), max_size=5), most=st.integers(1, 8))
def test_batches_hold_all_frames_in_order(counts, most):
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, (2, count, 2)).astype(np.uint8) for count in counts]
    parts = [(slot, True, tuple(views[slot])) for slot, count in enumerate(counts)]
    cut = list(batches(parts, most))
    assert all(sum(len(images[0]) for _, _, images in batch) == most for batch in cut[:-1])
    assert all(0 < sum(len(images[0]) for _, _, images in batch) <= most for batch in cut)
    for slot, _, whole in parts:
        own = [(fresh, images) for batch in cut for of, fresh, images in batch if of == slot]
        for view in (0, 1):
            np.testing.assert_array_equal(np.concatenate([images[view] for _, images in own]), whole[view])
        assert [fresh for fresh, _ in own] == [True] + [False] * (len(own) - 1)


def test_nothing_is_compiled_after_the_warm_up_nor_after_a_failure(tmp_path, compiled):
    bundle = load_bundle(save_bundle(tiny_bundle(), tmp_path / "bundle"), dtype="serving")
    engine = Engine(bundle, SLOTS, growth=4)
    engine.warm_up(frames=8)
    compiled.clear()
    for step in scenario():
        engine.step(step)
    engine.bundle = dataclasses.replace(bundle, params={})
    with pytest.raises(Exception):  # noqa: B017, PT011
        engine.step(scenario()[0])
    engine.bundle = bundle
    for step in scenario():
        engine.step(step)
    assert compiled == []


def test_what_cannot_be_served_is_named_and_changes_nothing():
    rng, bundle = np.random.default_rng(1), tiny_bundle()
    engine, plain = Engine(bundle, SLOTS), Plain(bundle, SLOTS)
    good = [request(rng, 0, 2, fresh=True)]
    assert difference(engine.step(good), plain.step(good)) < GATE
    sound = request(rng, 0, 2)
    wrong = {
        "3 slots": request(rng, SLOTS, 1, fresh=True),
        "two requests in one step": request(rng, 0, 1),
        "needs a frame": request(rng, 1, 0, fresh=True),
        "never begun": request(rng, 1, 2),
        r"expected uint8 \[1, 40, 48, 3\]": dataclasses.replace(
            sound, slot=1, fresh=True, images=(frames(rng, 1) * 1.0,)
        ),
        r"images of head_camera are uint8 \[1, 48, 40, 3\]": dataclasses.replace(
            sound, slot=1, fresh=True, images=(frames(rng, 1).swapaxes(1, 2),)
        ),
        "special token": dataclasses.replace(sound, slot=1, fresh=True, instruction="<|im_end|>"),
        "more than max_length": dataclasses.replace(sound, slot=1, fresh=True, instruction="pick " * 70),
        "both be given": dataclasses.replace(request(rng, 1, 1, fresh=True), noise=None),
        r"state has the shape \[3\]": dataclasses.replace(request(rng, 1, 1, fresh=True), state=np.zeros(3)),
        rf"expected \[{HORIZON}, 16\]": dataclasses.replace(request(rng, 1, 1, fresh=True), noise=np.zeros((2, 16))),
    }
    for message, bad in wrong.items():
        with pytest.raises(UserError, match=message):
            engine.step([sound, bad])
    assert engine.step([]) == []
    assert difference(engine.step([sound]), plain.step([sound])) < GATE


def test_a_device_that_fails_takes_all_memories_with_it():
    rng, engine = np.random.default_rng(1), Engine(tiny_bundle(), SLOTS)
    engine.step([request(rng, 0, 2, fresh=True)])
    engine.bundle = dataclasses.replace(engine.bundle, params={})
    with pytest.raises(Exception):  # noqa: B017, PT011
        engine.step([request(rng, 1, 2, fresh=True)])
    engine.bundle = tiny_bundle()
    with pytest.raises(UserError, match="slot 0: its memory was never begun, or is lost"):
        engine.step([request(rng, 0, 1)])
    again = [request(rng, 0, 1, fresh=True)]
    assert difference(engine.step(again), PLAIN.step(again)) < GATE


def test_weights_as_served_give_the_same_numbers(tmp_path):
    """bfloat16 compute: kernels that are cast before use can be stored so; the rest stays float32."""
    bundle = dataclasses.replace(tiny_bundle(), config=dataclasses.replace(tiny_bundle().config, dtype="bfloat16"))
    served = load_bundle(save_bundle(bundle, tmp_path / "bundle"), dtype="serving")
    narrow = {path for path, leaf in flatten(served.params).items() if leaf.dtype == jax.numpy.bfloat16}
    assert {path.split("/")[0] for path in narrow} == {"backbone", "memory"}
    large = {path for path, leaf in flatten(served.params).items() if leaf.size >= 256 and path not in narrow}
    assert not [path for path in large if path.startswith("backbone/") and "pos_embed" not in path]
    ours, plain = Engine(served, SLOTS), Engine(bundle, SLOTS)
    for step in scenario():
        assert difference(ours.step(step), plain.step(step)) == 0


def golden_bundle(golden: Golden) -> Bundle:
    """The reference's trained policy, with a tokenizer that gives the golden's ids."""
    names = {getattr(golden.config.backbone.tokens, name): mark for name, mark in SPECIAL_TOKENS.items()}
    names |= {10: "user", 11: "\n"}
    vocabulary = {names.get(i, f"t{i}"): i for i in range(golden.config.backbone.text.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    params = jax.tree.map(jax.numpy.asarray, load(golden.plan, read_pt(TINY_A / "step3.pt")["model_state_dict"]))
    config = dataclasses.replace(golden.config, image_size=(128, 128))
    return Bundle(config, params, None, tokenizer, Inputs(cameras=(Camera(size=(256, 128)),), max_length=48))


def golden_requests(golden: Golden, bundle: Bundle) -> list[Request]:
    given, tokens = golden.arrays.below("infer"), golden.config.backbone.tokens
    images = given["pixel_uint8"].reshape(24, 256, 128, 3)
    requests, tokenizer = [], bundle.tokenizer
    assert tokenizer is not None
    for step, ids in enumerate(given["input_ids"]):
        start, stop = (int(np.flatnonzero(ids == token)[0]) for token in (tokens.vision_end, tokens.im_end))
        text = " ".join(str(tokenizer.id_to_token(int(i))) for i in ids[start + 1 : stop])
        fresh = step in (0, golden.raw["inference"]["memory_reset_after_step"] + 1)
        state, noise = given["state"][step, 0, 0], given["noise"][step, 0]
        requests.append(Request(1, (images[step : step + 1],), text, fresh, state, noise))
    return requests


def test_deployment_steps_of_the_reference(monkeypatch):
    golden = Golden(TINY_A)
    bundle, given = golden_bundle(golden), golden.arrays.below("infer")
    # The two pictures of the golden's patches differ, as of no still image: its patches pass as they are.
    monkeypatch.setattr(bundle.processor, "resized", lambda images: np.stack(images, 1))
    monkeypatch.setattr(policy_module, "patchify", lambda images, _: images.reshape(*images.shape[:-3], 64, 1536))
    engine = Engine(bundle, 2)
    with jax.default_matmul_precision("highest"):
        for step, wanted in enumerate(requests := golden_requests(golden, bundle)):
            [reply] = engine.step([wanted])
            assert reply.chunk is not None
            assert relative(reply.chunk, given["actions"][step, 0]) < GATE
            assert abs(reply.end_probability - given["prob"][step]) < GATE * given["prob"][step]
        for start, stop in ((0, 3), (3, 13), (13, 24)):  # only the last of several frames is decided upon
            images = np.concatenate([one.images[0] for one in requests[start:stop]])
            last = dataclasses.replace(requests[stop - 1], images=(images,), fresh=requests[start].fresh)
            [reply] = engine.step([last])
            assert reply.chunk is not None
            assert relative(reply.chunk, given["actions"][stop - 1, 0]) < GATE
