"""Where subtasks end, given what the classifier says of each frame."""

import numpy as np
import pytest
from plain import TEXTS, frames, tiny_bundle

from mem0_jax.inference.engine import Reply
from mem0_jax.inference.planning import Plan
from mem0_jax.inference.session import Options, Pilot

BUNDLE = tiny_bundle()
# One end, seen in six frames, between frames that are none.
SEEN = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def ends(probabilities, options: Options) -> list[int]:
    """Frames at which a subtask ended, for frames that the classifier gives these probabilities."""
    pilot, images, found = Pilot(BUNDLE, options, staged=True), frames(np.random.default_rng(0), len(SEEN)), []
    pilot.reset("the task")
    for time, (image, probability) in enumerate(zip(images, probabilities)):
        pilot.observe(
            {"observation": {"head_camera": {"rgb": image}}, "joint_action": {"vector": np.zeros(14, np.float32)}}
        )
        while pilot.plan_needed or pilot.step_needed(False):
            if pilot.plan_needed:
                pilot.planned(Plan(TEXTS[0]))
                continue
            stage = pilot.stage
            pilot.request(False)
            pilot.receive(Reply({"end_probability": probability}, None))
            found += [time] * (pilot.stage - stage)
    return found


@pytest.mark.parametrize(("patience", "without"), [(2, [3, 4, 5, 6, 7]), (3, [4, 6])])
def test_what_is_left_of_one_end_does_not_end_the_next_subtask(patience, without):
    assert ends(SEEN, Options(patience=patience)) == without
    assert ends(SEEN, Options(patience=patience, rearm=True)) == without[:1]


def test_the_next_end_counts_once_a_frame_was_none():
    assert ends([0, 1, 1, 0, 1, 1, 1, 0, 1, 1], Options(rearm=True)) == [2, 5, 9]
    assert ends([1] * len(SEEN), Options(rearm=True)) == []  # armed by a frame that is no end
