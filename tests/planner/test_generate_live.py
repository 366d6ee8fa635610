"""Greedy answers live against Hugging Face, float32, models and prompts anew."""

import pytest
import random_models
from random_models import CONFIGS, prompts

from mem0_jax.backbones.qwen3_vl.generate import Settings

pytestmark = pytest.mark.torch
NEW = 24


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_equal(name):
    for seed in (2, 3):
        _, _, ask = random_models.hugging_face(name, seed)
        asked = prompts(seed)
        answers = random_models.generator(name, seed).generate(asked, Settings(max_tokens=NEW))
        assert [list(answer.tokens) for answer in answers] == ask(asked, NEW)
