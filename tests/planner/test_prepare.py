"""Questions from datasets: the reference's rows where it is right, pictures of the right frames, errors that help."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mem0_jax.cli import main
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.errors import UserError
from mem0_jax.planner.questions import read_questions
from mem0_jax.planner.system_prompt import KEY_FRAMES

CAMERA = "observation.image.head_camera"
END = 8  # marked frames at the end of a subtask
SORTING = [[("Open the lid.", 10), ("Open the lid.", 9), ("press the button", 12)], [("Close it.", 12)]]
# Written by running the reference's llamafactory_data_preparation.py over these two episodes.
HEAD = "<global_task>: Sort it.\n<initial_observation>: <image>.\n<finished_subtasks>: "
LID = "Open the lid. The corresponding image is: <image>"
REFERENCE = [
    (HEAD + "null.\n", "next_subtask: Open the lid.", ["episode_0/initial_observation"]),
    (HEAD + f"0: {LID}.\n", "next_subtask: Open the lid.", ["episode_0/initial_observation", "episode_0/frame_1"]),
    (
        HEAD + f"0: {LID}. 1: {LID}.\n",
        "next_subtask: press the button",
        ["episode_0/initial_observation", "episode_0/frame_1", "episode_0/frame_2"],
    ),
    (HEAD + "null.\n", "next_subtask: Close it.", ["episode_1/initial_observation"]),
]


def level(episode: int, frame: int) -> int:
    """Grey of a frame."""
    return 30 + 5 * frame + 60 * episode


def write(root: Path, episodes: list, *, global_task: bool = True, without: tuple[str, ...] = (), camera: str = CAMERA):
    features = staged_features(16, 32, camera=camera)
    if global_task:
        features["global_task"] = {"dtype": "string", "shape": [1], "names": ["text"]}
    for key in without:
        del features[key]
    with LeRobotWriter(root, 10, features, None) as writer:
        for e, segments in enumerate(episodes):
            texts = [text for text, length in segments for _ in range(length)]
            ends = [int(length - i <= END) for _, length in segments for i in range(length)]
            frames = {
                "observation.state": np.zeros((len(texts), 16), np.float32),
                "action": np.zeros((len(texts), 16), np.float32),
                camera: np.stack([np.full((16, 32, 3), level(e, i), np.uint8) for i in range(len(texts))]),
                "subtask": texts,
                "subtask_end": np.array(ends, np.int32),
                "episode_id": np.full(len(texts), e, np.int32),
                "global_task": ["Sort it."] * len(texts),
            }
            writer.add_episode({key: frames[key] for key in features}, "cover_blocks" if global_task else "Sort it.")
    return root


@pytest.fixture(scope="module")
def sorting(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("sorting") / "dataset", SORTING)


def run(*argv: object) -> int:
    return main(["plan", "prepare", *map(str, argv)])


def grey(path: Path) -> float:
    return float(np.asarray(Image.open(path)).mean())


def test_sharegpt_is_the_references(sorting, tmp_path):
    assert run(sorting, tmp_path / "mn_small", "--format", "sharegpt") == 0
    rows = json.loads((tmp_path / "mn_small/mn_small_high_level_finetune_data.json").read_text())
    for row, (user, answer, images) in zip(rows, REFERENCE, strict=True):
        assert row["messages"] == [
            {"role": "system", "content": KEY_FRAMES},
            {"role": "user", "content": user},
            {"role": "assistant", "content": answer},
        ]
        assert row["images"] == [f"mn_small_images/{name}.png" for name in images]
        assert all((tmp_path / "mn_small" / name).is_file() for name in row["images"])
    assert json.loads((tmp_path / "mn_small/dataset_info.json").read_text()) == {
        "mn_small": {
            "file_name": "mn_small_high_level_finetune_data.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }


def test_rows_and_pictures(sorting, tmp_path):
    out, figures = tmp_path / "rows", tmp_path / "figures.json"
    assert run(sorting, out, "--json", figures) == 0
    found = read_questions(out)
    texts = ["".join(part if isinstance(part, str) else "<image>" for part in q.prompt.parts) for q in found]
    assert [(text, q.answer) for text, q in zip(texts, found)] == [row[:2] for row in REFERENCE]
    assert [(q.episode, q.frame) for q in found] == [(0, 0), (0, 9), (0, 18), (1, 0)]
    for question in found:
        shown = [(0, question.initial), *zip([9, 18], [image for _, image in question.finished])]
        for frame, image in shown:
            assert abs(grey(out / image) - level(question.episode, frame)) < 2
    assert json.loads(figures.read_text()) == {
        "questions": 4,
        "images": 4,
        "episodes": 2,
        "skipped": [],
        "silent": 0,
        "out": str(out),
    }


def test_summaries_are_carried_from_question_to_question(sorting, tmp_path):
    assert run(sorting, tmp_path / "out", "--summaries", "--episodes", "0:1") == 0
    found = read_questions(tmp_path / "out")
    assert [q.summary for q in found] == ["", "null.", "Open the lid."]
    assert [q.answer for q in found] == [
        "next_subtask: Open the lid.\nsummary: null.",
        "next_subtask: Open the lid.\nsummary: Open the lid.",
        "next_subtask: press the button\nsummary: Open the lid (2 times).",
    ]
    assert [len(q.prompt.images) for q in found] == [1, 2, 2]


def test_short_and_null_subtasks(tmp_path):
    """A subtask of marked frames only is asked for as well; frames without a subtask are passed over."""
    segments = [("null", 2), ("a", 9), ("null", 9), ("b", 5), ("", 3), ("c", 4)]
    root = write(tmp_path / "dataset", [segments, [("null", 5)]], global_task=False)
    assert run(root, tmp_path / "out", "--json", tmp_path / "figures.json") == 0
    found = read_questions(tmp_path / "out")
    assert [(q.frame, q.plan.subtask) for q in found] == [(0, "a"), (10, "b"), (24, "c")]
    assert [text for text, _ in found[-1].finished] == ["a", "b"]
    assert {q.task for q in found} == {"Sort it."}
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["skipped"], figures["silent"]) == ([1], 0)


def test_unmarked_changes_are_told(tmp_path, capsys):
    root = write(tmp_path / "dataset", [[("a", 9), ("b", 9)]])
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("subtask")
    texts = ["a"] + ["x"] * 8 + ["b"] * 9  # only the first frame is not marked
    pq.write_table(table.set_column(at, table.schema.field(at), [texts]), path)
    assert run(root, tmp_path / "out") == 0
    assert "1 subtasks begin without a subtask_end" in capsys.readouterr().err
    assert [q.plan.subtask for q in read_questions(tmp_path / "out")] == ["a", "b"]


@pytest.mark.parametrize(
    ("episodes", "options", "flags", "message"),
    [
        ([[("a", 9)]], {"without": ("subtask_end",)}, [], "no 'subtask_end'"),
        ([[("a", 9)], [("a", 9)]], {}, [], "nothing to plan"),
        ([[("move 0.5 m", 9), ("b", 9)]], {}, [], "'move 0.5 m' cannot be read back"),
        ([[("a <image>", 9), ("b", 9)]], {}, [], "frame 0: the subtask 'a <image>' cannot be read back"),
        ([[("a" * 501, 9), ("b", 9)]], {}, [], "one line of at most 500 letters"),
        ([[("a", 9), ("b", 9)]], {}, ["--episodes", "7:9"], "its last episode is 0"),
        ([[("a", 9), ("b", 9)]], {}, ["--camera", "wrist"], "no video feature 'wrist'"),
    ],
)
def test_bad_datasets_leave_nothing(tmp_path, capsys, episodes, options, flags, message):
    root = write(tmp_path / "dataset", episodes, **options)
    assert run(root, tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_an_existing_folder_is_left_alone(sorting, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(sorting, tmp_path) == 1
    assert "exists; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("flags", [["--episodes", "3:3"], ["--episodes", "a"], ["--format", "xml"]])
def test_bad_flags(sorting, tmp_path, flags):
    assert run(sorting, tmp_path / "out", *flags) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": "../../etc/passwd"}, "leads outside"),
        ({"finished": [{"subtask": "a", "image": "/etc/passwd"}]}, "leads outside"),
        ({"finished": [{"subtask": "a"}]}, "finished.image is 'None'; expected str"),
        ({"task": 7}, "task is '7'; expected str"),
        ({"plan": {"subtask": "a"}}, "plan.summary is 'None'"),
    ],
)
def test_hostile_rows_are_refused(sorting, tmp_path, change, message):
    assert run(sorting, tmp_path / "out") == 0
    path = tmp_path / "out/rows.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([*rest, json.dumps(json.loads(first) | change)]))
    with pytest.raises(UserError, match=message) as error:
        read_questions(tmp_path / "out")
    assert "question 4" in str(error.value)
