"""Questions letter for letter as the reference writes its training rows, and answers read back."""

import base64
import hashlib
import io
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mem0_jax.inference.planning import Finished, Plan, PlannerError, Situation
from mem0_jax.planner.prompt import MAX_PIXELS, MAX_SUBTASK, ask, build, parse_answer, shrink, summarize
from mem0_jax.planner.prompt import answer as answer_of
from mem0_jax.planner.render import chat_messages, chat_text, data_url, sharegpt_row
from mem0_jax.planner.system_prompt import KEY_FRAMES, SUMMARY

FIRST, ONE, TWO = (PurePosixPath(f"{name}.png") for name in ("first", "one", "two"))
# Written by running the reference's llamafactory_data_preparation.py.
REFERENCE = [
    ([], "<global_task>: Sort it.\n<initial_observation>: <image>.\n<finished_subtasks>: null.\n"),
    (
        [("Open the lid.", ONE)],
        "<global_task>: Sort it.\n<initial_observation>: <image>.\n<finished_subtasks>: "
        "0: Open the lid. The corresponding image is: <image>.\n",
    ),
    (
        [("Open the lid.", ONE), ("press the button", TWO)],
        "<global_task>: Sort it.\n<initial_observation>: <image>.\n<finished_subtasks>: "
        "0: Open the lid. The corresponding image is: <image>. 1: press the button The corresponding image is: "
        "<image>.\n",
    ),
]


def grey(level: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(("finished", "user"), REFERENCE)
def test_rows_are_the_references(finished, user):
    row = sharegpt_row(build("Sort it.", FIRST, finished), "next_subtask: Close it.")
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][1]["content"] == user
    assert row["messages"][2]["content"] == "next_subtask: Close it."
    assert row["images"] == ["first.png", "one.png", "two.png"][: 1 + len(finished)]


def test_system_prompt_is_the_released_one():
    digest = "2480479e8f09c220a3512ea8313ecad58eb1025b5b0dbe18b7ded6d091db4ea5"
    assert hashlib.sha256(KEY_FRAMES.encode()).hexdigest() == digest


@pytest.mark.parametrize(("finished", "user"), REFERENCE)
def test_deployment_asks_what_was_trained(finished, user):
    done = tuple(Finished(text, grey(i)) for i, (text, _) in enumerate(finished, 1))
    prompt = ask(Situation("Sort it.", grey(0), grey(9), done))
    system, turn = chat_messages(prompt)
    assert system == {"role": "system", "content": KEY_FRAMES}
    texts = [part["text"] if part["type"] == "text" else "<image>" for part in turn["content"]]
    assert "".join(texts) == user
    urls = [part["image_url"]["url"] for part in turn["content"] if part["type"] == "image_url"]
    levels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
    assert [int(picture.max()) for picture in levels] == list(range(1 + len(finished)))
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    assert chat_text(prompt) == (
        f"<|im_start|>system\n{KEY_FRAMES}<|im_end|>\n<|im_start|>user\n{user.replace('<image>', vision)}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_summary_replaces_the_list():
    first = build("Sort it.", FIRST, [], summary="")
    assert first.system == SUMMARY
    assert first.parts == (
        "<global_task>: Sort it.\n<initial_observation>: ",
        FIRST,
        ".\n<summary>: null.\n<finished_subtask>: null.\n",
    )
    later = build("Sort it.", FIRST, [("Open the lid.", ONE), ("press", TWO)], summary="Open the lid.")
    assert later.parts == (
        "<global_task>: Sort it.\n<initial_observation>: ",
        FIRST,
        ".\n<summary>: Open the lid.\n<finished_subtask>: press The corresponding image is: ",
        TWO,
        ".\n",
    )


def test_summaries_count_repetitions_in_order():
    assert summarize([]) == "null."
    assert summarize(["Open the lid.", "press", "press", "Open the lid."]) == (
        "Open the lid; press (2 times); Open the lid."
    )


subtasks = st.text(st.characters(codec="utf-8", exclude_characters=".\n\r", exclude_categories=["C", "Z"]), min_size=1)
subtasks = subtasks.filter(lambda text: "next_subtask:" not in text and len(text) < MAX_SUBTASK)


@given(subtasks, st.sampled_from(["", "."]), st.lists(subtasks))
def test_answers_are_read_back(subtask, stop, finished):
    plan = Plan(subtask + stop)
    assert parse_answer(answer_of(plan)) == plan
    plan = Plan(subtask + stop, summarize(finished[:5]))
    assert parse_answer(answer_of(plan, summary=True), summary=True) == plan


@pytest.mark.parametrize(
    ("text", "subtask"),
    [
        ("next_subtask: Press the left button. Then rest.", "Press the left button."),
        ("I think. next_subtask: a.\nNo: next_subtask:  b \nc.", "b"),
        ("next_subtask:go home", "go home"),
    ],
)
def test_answers_of_all_kinds(text, subtask):
    assert parse_answer(text) == Plan(subtask)


def test_summary_on_the_same_line():
    assert parse_answer("next_subtask: press. summary: lid open. Twice.", True) == Plan("press.", "lid open. Twice.")


@pytest.mark.parametrize(
    "text", ["", "press the button", "next_subtask:", "next_subtask: .", "next_subtask: " + "a" * 600, " " * 10**6]
)
def test_nonsense_is_quoted(text):
    with pytest.raises(PlannerError, match="the planner answered '"):
        parse_answer(text)


def test_a_missing_summary_is_told():
    with pytest.raises(PlannerError, match="expected 'summary: '"):
        parse_answer("next_subtask: press.", summary=True)


@pytest.mark.parametrize("text", ["next_subtask: press", "press", "next_subtask: press.\nsummary: lid op"])
def test_cut_off_answers_lack_something(text):
    with pytest.raises(PlannerError, match=r"cut off after|expected 'next_subtask"):
        parse_answer(text, summary="summary" in text, whole=False)
    assert parse_answer("next_subtask: press. Then I wou", whole=False) == Plan("press.")
    assert parse_answer("next_subtask: press\nThen I wou", whole=False) == Plan("press")


@pytest.mark.parametrize("answer", ["next_subtask: see <image>.\nsummary: a", "next_subtask: b.\nsummary: a<|im_end|>"])
def test_answers_that_no_question_could_repeat_are_refused(answer):
    with pytest.raises(PlannerError, match="cannot be part of another question"):
        parse_answer(answer, summary=True)


@pytest.mark.parametrize("text", ["see <image>", "a<|im_end|>b"])
def test_controls_in_texts_are_refused(text):
    with pytest.raises(PlannerError, match="for an image or a control"):
        build(text, FIRST)
    with pytest.raises(PlannerError, match="for an image or a control"):
        build("Sort it.", FIRST, [(text, ONE)])


def test_images_are_bounded():
    assert shrink(grey(1, 240, 320)).shape == (240, 320, 3)
    shrunk = shrink(grey(7, 1080, 1920))
    assert shrunk.shape == (384, 682, 3)  # int(1080 f), int(1920 f) with f = sqrt(262144 / (1080 * 1920))
    assert shrunk.shape[0] * shrunk.shape[1] <= MAX_PIXELS
    assert (shrunk == 7).all()
    assert data_url(grey(1)).startswith("data:image/png;base64,")
