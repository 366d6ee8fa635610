"""A planner in this process: answers that can be used, others drawn where they cannot, and clear errors."""

from contextlib import suppress

import jax
import numpy as np
import pytest
import random_models
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import Generator
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS
from mem0_jax.inference.planning import Finished, PlannerError, Situation
from mem0_jax.planner.local import LocalPlanner, load_generator
from mem0_jax.policies.bundle import BundleError, new_folder, write_description

CONFIG, TOKENS = random_models.CONFIGS["tied"], random_models.TOKENS
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
SITUATION = Situation("count", IMAGE, IMAGE, (Finished("press.", 255 - IMAGE),))


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def generator(usable: range, **settings) -> Generator:
    """Of a random model: the tokens `usable` alone are answers that can be used."""
    vocabulary = {(f"next_subtask:w{i}." if i in usable else f"w{i}"): i for i in range(290)}
    vocabulary |= {mark: getattr(TOKENS, name) for name, mark in SPECIAL_TOKENS.items()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    weights = take_apart(random_models.params(CONFIG, 1))
    return Generator(CONFIG, weights, tokenizer, bounds=random_models.BOUNDS["tied"], **settings)


def test_usable_answers_are_taken_and_others_drawn_again():
    plan = LocalPlanner(generator(range(290)), max_tokens=1).next_subtask(SITUATION)
    assert plan.subtask.startswith("w")
    assert plan.subtask.endswith(".")
    likeliest = int(plan.subtask[1:-1])
    others = generator(range(0 if likeliest >= 145 else 145, 145 if likeliest >= 145 else 290))
    planner = LocalPlanner(others, max_tokens=1, retries=20, temperature=50.0)
    drawn = planner.next_subtask(SITUATION)
    assert drawn.subtask != plan.subtask
    assert planner.next_subtask(SITUATION) == drawn
    with pytest.raises(PlannerError, match=rf"answered 'w{likeliest}'; expected .* \(1 answers were tried\)"):
        LocalPlanner(others, max_tokens=1, retries=0).next_subtask(SITUATION)


def test_nonsense_is_quoted_after_a_bounded_number_of_answers():
    with pytest.raises(PlannerError, match=r"answered 'w.*expected 'next_subtask: '.*\(3 answers were tried\)"):
        LocalPlanner(generator(range(0)), max_tokens=5, retries=2).next_subtask(SITUATION)


def test_summaries_that_were_cut_off_are_drawn_again():
    planner = LocalPlanner(generator(range(290)), max_tokens=5, retries=1, summary=True)
    with pytest.raises(PlannerError, match=r"summary.*\(2 answers were tried\)"):
        planner.next_subtask(SITUATION)


def test_after_the_warm_up_no_question_compiles_anything(compiled):
    """With more and more finished subtasks, and images of other sizes."""
    planner = LocalPlanner(generator(range(290), context=900, batch=1), max_tokens=3, retries=1)
    planner.warm_up()
    compiled.clear()
    for count in range(4):
        image = np.zeros((40 + 30 * count, 60, 3), np.uint8)
        situation = Situation("count", image, image, (Finished("press.", image),) * count)
        with suppress(PlannerError):
            planner.next_subtask(situation)
    assert compiled == []


def test_questions_longer_than_the_context_are_refused():
    planner = LocalPlanner(generator(range(290), context=100))
    with pytest.raises(PlannerError, match=r"the planner cannot be asked: .* context of 100 tokens"):
        planner.next_subtask(SITUATION)


def test_bundles_that_are_no_planners_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"no config\.json"):
        load_generator(tmp_path)
    folder = tmp_path / "bundle"
    with new_folder(folder) as unfinished:
        write_description(unfinished, CONFIG)
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        load_generator(folder)
