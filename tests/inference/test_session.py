"""Sessions: deferred frames, stages with a planner, averaging, against the plain way and the reference's numbers."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from plain import CAMERA, HORIZON, TEXTS, WINDOW, Plain, frames, tiny_bundle

from mem0_jax.errors import UserError
from mem0_jax.inference.engine import Engine, Reply
from mem0_jax.inference.planning import Plan, Situation
from mem0_jax.inference.session import Options, Pilot, Session, advance

DEPLOY = Path(__file__).parents[1] / "data" / "assets" / "deploy" / "golden.npz"
BUNDLE = tiny_bundle()
ALWAYS, NEVER = 1e-6, 1 - 1e-6


def observation(image: np.ndarray, shift: float = 0.0, dim: int = 14) -> dict:
    vector = np.sin(np.arange(dim) + shift).astype(np.float32)
    return {"observation": {"head_camera": {"rgb": image}}, "joint_action": {"vector": vector}}


class Script:
    """A planner that counts, and keeps what it was asked."""

    def __init__(self):
        self.asked: list[Situation] = []

    def next_subtask(self, situation: Situation) -> Plan:
        self.asked.append(situation)
        return Plan(TEXTS[len(situation.finished) % 2], f"summary {len(self.asked)}")


def shown(session: Session, image: np.ndarray) -> Pilot:
    return session.observe(observation(image))


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    return frames(np.random.default_rng(3), 3 * WINDOW + 1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(BUNDLE, 2, growth=4)


def actions_after(engine, stream, *, classify: bool, cuts: list[int]) -> list[np.ndarray]:
    """Shows the frames, decides where the cuts say so."""
    pilot, taken = Pilot(BUNDLE, Options(classify=classify), slot=1), []
    pilot.reset(TEXTS[1], seed=4)
    for time, image in enumerate(stream):
        pilot.observe(observation(image, time))
        decide = time in cuts
        advance(engine, [pilot], [decide])
        if decide:
            taken.append(pilot.actions())
    return taken


CUTS = [0, 2, 3 * WINDOW]  # more frames before the last decision than the window holds


def test_frames_kept_for_later_equal_frames_judged_at_once(engine, stream):
    deferred = actions_after(engine, stream, classify=False, cuts=CUTS)
    at_once = actions_after(engine, stream, classify=True, cuts=CUTS)
    plain = actions_after(Plain(BUNDLE, 2), stream, classify=True, cuts=CUTS)
    for a, b, c in zip(deferred, at_once, plain):
        assert a.shape == (HORIZON, 14)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spared", ["the anchor", "the oldest of the window"])
def test_a_pilot_that_forgets_too_much_is_found_out(engine, stream, monkeypatch, spared):
    def forget(self):
        if spared == "the anchor" and len(self._pending) > WINDOW + 1:
            del self._pending[0]
        elif spared != "the anchor" and len(self._pending) > WINDOW + self._fresh:
            del self._pending[int(self._fresh)]

    cuts = CUTS[-1:]
    right = actions_after(engine, stream, classify=True, cuts=cuts)[0]
    monkeypatch.setattr(Pilot, "_forget", forget)
    wrong = actions_after(engine, stream, classify=False, cuts=cuts)[0]
    assert np.abs(right - wrong).max() > 1e-3


def test_stages_end_after_patience_and_begin_with_the_frame_that_ended_them(stream):
    script = Script()
    session = Session(BUNDLE, Options(threshold=ALWAYS, patience=3), script)
    session.reset("the whole task", seed=1)
    pilot = shown(session, stream[0])
    session.act()
    assert (pilot.stage, pilot.instruction, session.due) == (0, TEXTS[0], False)
    shown(session, stream[1])
    assert (pilot.stage, session.due) == (0, False)
    shown(session, stream[2])  # the third positive frame
    assert (pilot.stage, pilot.instruction, session.due) == (1, TEXTS[1], True)
    assert pilot.reply is not None
    assert (pilot.reply.info["attention"] == 0).all(), "the new stage has seen this frame with an empty memory"
    session.act()
    shown(session, stream[3])  # the opening frame counted: two positives
    assert (pilot.stage, session.due) == (1, False)
    assert (pilot.reply.info["attention"] > 0).sum() == 1
    shown(session, stream[4])
    assert pilot.stage == 2
    assert [len(asked.finished) for asked in script.asked] == [0, 1, 2]
    last, seen = script.asked[-1], [pilot.bundle.transform(observation(image)).images[0] for image in stream]
    assert (last.task, last.summary) == ("the whole task", "summary 2")
    assert [finished.subtask for finished in last.finished] == [TEXTS[0], TEXTS[1]]
    for finished, number in zip(last.finished, (2, 4)):
        np.testing.assert_array_equal(finished.image, seen[number])
    np.testing.assert_array_equal(last.initial, seen[0])
    np.testing.assert_array_equal(last.present, seen[4])


def test_the_opening_frame_ends_no_stage_and_doubt_ends_none(stream):
    session = Session(BUNDLE, Options(threshold=ALWAYS, patience=1), Script())
    session.reset("task")
    stages = [shown(session, image).stage for image in stream[:4]]
    assert stages == [0, 1, 2, 3]
    doubting = Session(BUNDLE, Options(threshold=NEVER), Script())
    doubting.reset("task")
    assert [shown(doubting, image).stage for image in stream[:4]] == [0] * 4


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_frames_that_come_together_are_judged_each_at_its_time(engine, stream, patience):
    """The stages, their images and their memories are those of frames that come one by one."""
    results = []
    for together in (1, 3):
        script, pilot = Script(), Pilot(BUNDLE, Options(threshold=ALWAYS, patience=patience), staged=True)
        pilot.reset("task", seed=2)
        for start in range(0, 6, together):
            for time in range(start, start + together):
                pilot.observe(observation(stream[time], time))
            advance(engine, [pilot], [False], [script])
        advance(engine, [pilot], [True], [script])
        results.append((pilot.stage, [asked.present for asked in script.asked], pilot.actions()))
    (stage, images, actions), (stage_too, images_too, actions_too) = results
    assert stage == stage_too > 0
    np.testing.assert_array_equal(images, images_too)
    np.testing.assert_allclose(actions, actions_too, rtol=1e-5, atol=1e-5)


def test_overlapping_chunks_are_averaged_as_the_reference_does():
    golden = np.load(DEPLOY)
    chunks, executed = (  # the golden has three dimensions
        np.pad(golden[name], [(0, 0), (0, 0), (0, 13)]) for name in ("smooth_chunks", "smooth_executed")
    )
    executed = executed.reshape(-1, 16)
    config = dataclasses.replace(BUNDLE.config, action=dataclasses.replace(BUNDLE.config.action, horizon=10))
    bundle = dataclasses.replace(BUNDLE, config=config)
    image, taken = np.zeros((*CAMERA, 3), np.uint8), []
    pilot = Pilot(bundle, Options(n_action_steps=4, average=True))
    pilot.reset("task")
    for time in range(len(executed)):
        pilot.observe(observation(image, dim=16))
        if pilot.due:
            request = pilot.request(True)
            assert request.frames == (1 if time == 0 else 4)
            pilot.receive(Reply({}, chunks[time // 4]))
        taken.append(pilot.actions()[0])
    np.testing.assert_allclose(taken, bundle.transform.actions(executed[:, None], 16), rtol=1e-6, atol=1e-6)


def test_noise_depends_on_seed_and_time_and_not_on_the_company(engine, stream):
    def act(slots, seed):
        pilots = [Pilot(BUNDLE, Options(), slot=slot) for slot in slots]
        for pilot in pilots:
            pilot.reset(TEXTS[0], seed + pilot.slot)
            pilot.observe(observation(stream[pilot.slot]))
        advance(engine, pilots, [True] * len(pilots))
        return pilots[-1].actions()

    alone, together = act([0], 5), act([1, 0], 5)
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)
    assert np.abs(act([0], 6) - alone).max() > 1e-3


def test_wrong_use_is_named():
    session = Session(BUNDLE)
    session.reset("task")
    with pytest.raises(UserError, match="call observe before act"):
        session.act()
    with pytest.raises(UserError, match=r"lacks joint_action.vector"):
        session.observe({"observation": {"head_camera": {"rgb": np.zeros((*CAMERA, 3), np.uint8)}}})
    with pytest.raises(UserError, match="13 numbers; expected 14"):
        session.observe(observation(np.zeros((*CAMERA, 3), np.uint8), dim=13))
    assert session.pilot.time == -1
    with pytest.raises(UserError, match="seed must be a whole number"):
        session.reset("task", seed=-1)
    for wrong, message in (
        (Options(n_action_steps=6), "between 1 and the policy's horizon 5"),
        (Options(threshold=1.0), "threshold must lie between 0 and 1"),
        (Options(patience=0), "patience must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            Session(BUNDLE, wrong)
    pilot = Pilot(BUNDLE, Options(), staged=True)
    pilot.observe(observation(np.zeros((*CAMERA, 3), np.uint8)))
    with pytest.raises(UserError, match="needs a planner"):
        advance(session.engine, [pilot], [True])


def test_what_a_program_around_ours_set_in_jax_changes_no_number(stream):
    def play() -> np.ndarray:
        session = Session(BUNDLE, Options(classify=True))
        session.reset(TEXTS[1], seed=4)
        for image in stream[:3]:
            shown(session, image)
        return session.act()

    expected = play()
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
    ):
        np.testing.assert_array_equal(play(), expected)
        assert jax.numpy.arange(2.0).dtype == np.float64  # theirs is as it was
