"""Some episodes as a dataset of their own: the same rows, texts and pictures, and nothing of the others."""

import numpy as np
import pytest
from episodes import CAMERA, LENGTHS, read_code
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.data.files import DatasetError
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.subset import Subset, hold_out


@given(st.sets(st.integers(0, len(LENGTHS) - 1), min_size=1))
@settings(max_examples=20)
def test_rows_are_those_of_the_chosen_episodes(recorded, chosen):
    subset = Subset(recorded, sorted(chosen, reverse=True))
    assert [e.index for e in subset.episodes] == sorted(chosen)
    ids, texts = subset.texts("subtask")
    whole_ids, whole_texts = recorded.texts("subtask")
    for episode in subset.episodes:
        mine = slice(episode.start, episode.start + episode.length)
        theirs = recorded.episodes[episode.index]
        rows = slice(theirs.start, theirs.start + theirs.length)
        assert np.array_equal(subset.column("action")[mine], recorded.column("action")[rows])
        assert [texts[i] for i in ids[mine]] == [whole_texts[i] for i in whole_ids[rows]]
    assert len(subset.column("action")) == sum(LENGTHS[i] for i in chosen)


def test_lanes_and_mixtures_play_only_the_chosen_episodes_with_their_own_pictures(recorded):
    training, held_out = hold_out(recorded, 3, seed=1)
    indices = [{e.index for e in part.episodes} for part in (training, held_out)]
    assert indices[0] | indices[1] == set(range(len(LENGTHS)))
    assert not indices[0] & indices[1]
    assert len(indices[1]) == 3
    assert [e.index for e in hold_out(recorded, 3, seed=1)[1].episodes] == sorted(indices[1])
    for part, allowed in ((training, indices[0]), (Mixture([held_out, held_out]), indices[1])):
        source = LaneSource(part, lanes=2, frames=5, horizon=2, seed=0)
        seen = set()
        for i in range(24):
            element = source[i]
            for image, frame, state in zip(element["images"][CAMERA], element["frame"], element["state"]):
                episode, coded = read_code(image)
                assert coded == frame
                row = recorded.episodes[episode].start + frame
                assert np.array_equal(state, recorded.column("observation.state")[row])
                seen.add(episode)
        assert seen <= allowed
        assert len(seen) > 1
        source.close()
    assert training.image_shape(CAMERA) == (64, 96)


def test_nothing_held_out_is_the_dataset_itself_and_too_much_is_refused(recorded):
    assert hold_out(recorded, 0, seed=0)[0] is recorded
    with pytest.raises(DatasetError, match="cannot hold out 7 of 7 episodes"):
        hold_out(recorded, len(LENGTHS), seed=0)
