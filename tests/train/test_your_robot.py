"""From a LeRobot dataset of another robot to its served policy, by the commands of docs/your_robot.md."""

import json
import shutil
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arm import CAMERAS, NAMES, TASK, pictures
from jobs import write_config
from PIL import Image

from mem0_jax.cli import main
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.normalize import NormStats
from mem0_jax.errors import UserError
from mem0_jax.inference.session import Options, Session
from mem0_jax.policies.bundle import load_bundle
from mem0_jax.policies.inputs import Camera
from mem0_jax.train.episodes import check_offers
from mem0_jax.train.job import DataSettings

SIZES = ((32, 48), (24, 24))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Written by the real lerobot, see data/assets/make_arm.py."""
    assets = Path(__file__).parents[1] / "data" / "assets"
    return shutil.copytree(assets / "lerobot_v30_arm", tmp_path_factory.mktemp("arm") / "dataset")


@pytest.fixture(scope="module")
def settings(dataset, tmp_path_factory) -> list[str]:
    config = write_config(tmp_path_factory.mktemp("arm_job"), dataset)
    return [
        f"--config={config}",
        f"--config.data.cameras={tuple(CAMERAS)}",
        f"--config.data.camera_sizes={SIZES}",
        "--config.data.text=task",
        "--config.data.raw=('gripper*',)",
        "--config.data.delta=('*', '!gripper*')",
        "--config.train.steps=2",
        "--config.train.validate_every=2",
    ]


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("arm_run") / "run"
    assert main(["train", f"--workdir={workdir}", *settings]) == 0
    return workdir / "bundle"


def test_the_dataset_is_checked_and_measured(dataset, tmp_path, capsys):
    assert main(["data", "check", str(dataset)]) == 0
    assert main(["data", "stats", str(dataset), "--out", str(tmp_path / "stats.json")]) == 0
    assert "\nwrist_2.pos" in capsys.readouterr().out


def test_the_bundle_carries_the_whole_chain(folder, dataset):
    inputs = load_bundle(folder).inputs
    assert inputs.cameras == tuple(Camera(key, size) for key, size in zip(CAMERAS, SIZES))
    assert inputs.text == "task"
    assert inputs.robot.state.names == inputs.robot.action.names == tuple(NAMES)
    assert (inputs.robot.action.raw, inputs.robot.delta) == (("gripper.pos",), tuple(NAMES[:6]))


def test_a_prompt_that_is_too_long_is_told_before_anything_is_written(settings, tmp_path, capsys):
    assert main(["train", f"--workdir={tmp_path / 'run'}", *settings, "--config.data.max_length=9"]) == 1
    assert "more than max_length 9; set --config.data.max_length to that or more" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_camera_that_the_dataset_has_not_is_told_before_anything_is_written(settings, tmp_path, capsys):
    flags = [flag for flag in settings if not flag.startswith("--config.data.cameras=")]
    flags.append("--config.data.cameras=('observation.images.top', 'observation.image.head_camera')")
    assert main(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 1
    said = capsys.readouterr().err
    assert "there is no camera 'observation.image.head_camera'; this dataset has 'observation.images.top', " in said
    assert "--config.data.cameras=\"('observation.images.top', 'observation.images.wrist')\"" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cameras", "text", "said"),
    [
        ([[], []], "task", "this dataset has none: all datasets need a camera of one name"),
        ([[]], "task", "this dataset has none: a policy needs pictures"),
        ([["a.top"], ["a.front"]], "task", "this dataset has 'a.front': all datasets need a camera of one name"),
        ([["a.side", "a.top"], ["a.side"]], "task", """choose with --config.data.cameras="('a.side',)\""""),
        ([["a.top"]], "subtask", "there is no text 'subtask'; --config.data.text=task takes those of its tasks"),
    ],
)
def test_what_is_not_offered_is_told_with_a_fix_that_works(cameras, text, said):
    datasets = [SimpleNamespace(root=f"d{i}", cameras=of, features={}) for i, of in enumerate(cameras)]
    with pytest.raises(UserError) as told:
        check_offers(datasets, DataSettings(("d",), camera="a.top", text=text))
    assert said in str(told.value)


def test_differences_are_measured_over_chunks(folder, dataset):
    bundle, whole = load_bundle(folder), LeRobotDataset(dataset)
    found = NormStats.from_dataset(whole, bundle.inputs.robot, 3)
    state, action = (whole.column(key) for key in ("observation.state", "action"))
    places = [(e, t, k) for e in whole.episodes for t in range(e.length) for k in range(3) if t + k < e.length]
    differences = np.array([action[e.start + t + k] - state[e.start + t] for e, t, k in places])
    np.testing.assert_allclose(found.action["max"][:6], differences[:, :6].max(0), rtol=1e-6)
    np.testing.assert_allclose(found.action["std"][:6], differences[:, :6].std(0), rtol=1e-5)
    np.testing.assert_array_equal(found.action["max"][6], 1)
    assert bundle.stats is not None
    assert (np.abs(bundle.stats.action["max"][:6]) < 1).all()  # training measured differences, too


def test_open_loop_takes_cameras_and_text_from_the_bundle(folder, dataset, tmp_path):
    out = tmp_path / "out"
    assert main(["eval", "openloop", str(dataset), "--bundle", str(folder), "--every", "4", "--out", str(out)]) == 0
    result = json.loads((out / "openloop.json").read_text())
    assert result["settings"]["text"] == "task"
    assert result["settings"]["camera"] == ", ".join(CAMERAS)
    assert {joint["name"] for joint in result["joints"]} == set(NAMES)
    assert result["frames"] == sum(episode.length for episode in LeRobotDataset(dataset).episodes) == 73


def test_the_session_and_the_server_decide_alike(folder):
    pytest.importorskip("aiohttp")
    from live import address, serving

    from mem0_jax.serve.client import Client
    from mem0_jax.serve.service import Service

    bundle, state = load_bundle(folder), np.linspace(-0.5, 0.5, 7, dtype=np.float32)
    session = Session(bundle, Options(2))
    with serving(lambda: Service(bundle, slots=2, rows=2)) as server, Client(address(server)) as policy:
        assert (policy.metadata["cameras"], policy.metadata["state"]) == (["top", "wrist"], [7])
        session.reset(TASK, seed=1)
        policy.reset(TASK, seed=1, n_action_steps=2)
        for frame in range(3):
            views = pictures(1, frame)
            session.observe({"images": views, "state": state})
            policy.observe({f"observation/{name}": view for name, view in views.items()} | {"observation/state": state})
        actions = session.act()
        assert actions.shape == (2, 7)
        np.testing.assert_allclose(policy.act(), actions, atol=1e-4)
        for absent in ("top", "wrist"):
            views = {name: view for name, view in pictures(1, 3).items() if name != absent}
            with pytest.raises(ValueError, match="trained on the cameras 'top', 'wrist', the observation has"):
                policy.observe({"images": views, "state": state})
        with pytest.raises(ValueError, match="state must be 7 numbers, got 14"):
            policy.observe({"images": pictures(1, 3), "state": np.zeros(14)})
        forms = [["image", "image"], ["image.top", "image.wrist"]]
        ordered, named = (form(address(server), pictures(1, 0), state, names)["response"] for names in forms)
        assert np.shape(ordered) == (3, 7)
        np.testing.assert_allclose(named, ordered, atol=1e-4)
        crossed = form(address(server), pictures(1, 0), state, ["image.wrist", "image.top"])["response"]
        assert np.abs(np.subtract(crossed, ordered)).max() > 1e-4
        for names in (["image"], ["image.top"], ["image.top", "image.top"], ["image", "image.top"], ["side", "image"]):
            assert "image" in form(address(server), pictures(1, 0), state, names)["error"]["message"]


def form(address: str, views: dict[str, np.ndarray], state: np.ndarray, names: list[str]) -> dict:
    """What /process_frame says to pictures under these names."""
    parts = [f'name="{name}"\r\n\r\n{value}' for name, value in {"text": TASK, "state": state.tolist()}.items()]
    data = "".join(f"--x\r\nContent-Disposition: form-data; {part}\r\n" for part in parts).encode()
    for name, view in zip(names, views.values()):
        file = BytesIO()
        Image.fromarray(view).save(file, "PNG")
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="f.png"\r\n\r\n'
        data += head.encode() + file.getvalue() + b"\r\n"
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    url = address.replace("ws", "http", 1) + "/process_frame"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data + b"--x--\r\n", head)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
