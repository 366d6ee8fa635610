"""The script that makes checkpoints: their layout is the one that training in PyTorch leaves, at any size."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mem0_jax.convert.files import Digest, Parts
from mem0_jax.convert.torch_pt import StoredTensor, open_pt, read_pt
from mem0_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_checkpoint.py"
REFERENCE = ROOT / "tests" / "model" / "assets" / "tiny_a" / "initial.pt"
# What three steps of training wrote beside the weights of that file; params as [first, last].
LAYOUT = json.loads((Path(__file__).parent / "assets" / "trained_layout.json").read_text())
EMBEDDING = "qwen_model.model.model.language_model.embed_tokens.weight"
HEAD = "qwen_model.model.lm_head.weight"


def script():
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules["make_checkpoint"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The shapes of the reference's small checkpoint."""
    path = tmp_path_factory.mktemp("shapes") / "shapes.json"
    tensors = open_pt(REFERENCE)["model_state_dict"]
    path.write_text(json.dumps({name: tensor.shape for name, tensor in tensors.items()}))
    return path


def make(*arguments) -> None:
    script().main([str(argument) for argument in arguments])


def test_layout_is_that_of_training(tmp_path, shapes):
    make(tmp_path / "x.pt", "--shapes", shapes)
    tree = read_pt(tmp_path / "x.pt")
    reference = read_pt(REFERENCE)["model_state_dict"]
    assert set(tree) == set(LAYOUT["keys"])
    model = tree["model_state_dict"]
    assert {name: array.shape for name, array in model.items()} == {name: a.shape for name, a in reference.items()}
    assert list(model) == list(reference)
    optimizer = tree["optimizer_state_dict"]
    indices = range(LAYOUT["groups"][-1]["params"][1] + 1)
    assert set(optimizer["state"]) == set(indices) - set(LAYOUT["without_state"])
    assert {tuple(state) for state in optimizer["state"].values()} == {tuple(LAYOUT["state_keys"])}
    for group, want in zip(optimizer["param_groups"], LAYOUT["groups"], strict=True):
        first, last = want["params"]
        assert list(group) == list(want)
        changed = {"params": list(range(first, last + 1)), "betas": tuple(want["betas"]), "lr": group["lr"]}
        assert group == want | changed
        assert 0 < group["lr"] <= group["initial_lr"]
    scheduler = tree["scheduler_state_dict"]
    assert set(scheduler) == set(LAYOUT["scheduler"])
    assert scheduler["_last_lr"] == [group["lr"] for group in optimizer["param_groups"]]
    assert scheduler["base_lrs"] == LAYOUT["scheduler"]["base_lrs"]
    assert scheduler["last_epoch"] == tree["global_step"] == 50_000


def test_numbers_are_finite_and_moments_belong_to_their_tensors(tmp_path, shapes):
    make(tmp_path / "x.pt", "--shapes", shapes)
    tree = read_pt(tmp_path / "x.pt")
    model = tree["model_state_dict"]
    for name, array in model.items():
        half = name.startswith(("qwen_model", "memory_bank"))
        assert array.dtype == (ml_dtypes.bfloat16 if half else np.float32)
        assert np.isfinite(array.astype(np.float32)).all()
    assert model["classifier.pos_weight"] == 10
    assert np.shares_memory(model[EMBEDDING], model[HEAD])
    assert len({array.tobytes() for array in model.values()}) == len(model) - 1  # only the tied one repeats
    trained = [
        name
        for prefix in ("qwen_model", "action_model", "classifier", "memory_bank")
        for name in model
        if name.startswith(prefix) and name not in (HEAD, "classifier.pos_weight")
    ]
    for index, state in tree["optimizer_state_dict"]["state"].items():
        array = model[trained[index]]
        for key in ("exp_avg", "exp_avg_sq"):
            assert (state[key].shape, state[key].dtype) == (array.shape, array.dtype)
            assert np.isfinite(state[key].astype(np.float32)).all()
        assert (state["exp_avg_sq"].astype(np.float32) >= 0).all()
        assert (state["step"].dtype, state["step"].shape, float(state["step"])) == (np.float32, (), 50_000)


def test_parts_and_sums_and_seeds(tmp_path, shapes):
    make(tmp_path / "a" / "x.pt", "--shapes", shapes, "--slim")
    make(tmp_path / "b" / "x.pt", "--shapes", shapes, "--slim", "--parts", 7)
    make(tmp_path / "c" / "x.pt", "--shapes", shapes, "--slim", "--seed", 1)
    names = [*(f"x.pt.part{n:02}" for n in range(7)), "x.pt.sha256"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    whole = (tmp_path / "a" / "x.pt").read_bytes()
    assert b"".join((tmp_path / "b" / name).read_bytes() for name in names[:-1]) == whole
    subprocess.run("cat x.pt.part* > x.pt && sha256sum -c x.pt.sha256", shell=True, check=True, cwd=tmp_path / "b")
    (tmp_path / "b" / "x.pt").unlink()
    parts = Parts.open(tmp_path / "b")
    assert set(parts.expected_sha256()) == {"x.pt", *names[:-1]}
    Digest(parts).result()
    tree = open_pt(parts)
    assert set(tree) == {"model_state_dict", "global_step"}
    other = open_pt(tmp_path / "c" / "x.pt")["model_state_dict"]
    assert not np.array_equal(other[EMBEDDING].read(), tree["model_state_dict"][EMBEDDING].read())


def test_the_released_size():
    """Of the plan: nothing is written."""
    module = script()
    tree = module.checkpoint(json.loads(gzip.decompress(module.SHAPES.read_bytes())), slim=False, seed=0)
    model, state = tree["model_state_dict"], tree["optimizer_state_dict"]["state"]
    elements = {name: int(np.prod(tensor.shape)) for name, tensor in model.items()}
    assert (len(model), sum(elements.values())) == (910, 2_669_204_498)
    assert model[HEAD] is model[EMBEDDING]
    weights = sum(elements[name] * model[name].dtype.itemsize for name in model if name != HEAD)
    moments = sum(np.prod(s["exp_avg"].shape) * s["exp_avg"].dtype.itemsize * 2 for s in state.values())
    assert weights == pytest.approx(5.1e9, rel=0.01)
    assert weights + moments == pytest.approx(15.3e9, rel=0.01)
    assert [len(group["params"]) for group in tree["optimizer_state_dict"]["param_groups"]] == [625, 247, 20, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", 0], "--parts 0: expected 1 to 100"),
        (["--parts", 101], "--parts 101: expected 1 to 100"),
        (["--shapes", "none.json"], "--shapes none.json: expected .* No such file"),
        (["--shapes", REFERENCE], "expected a .gzipped. JSON table"),
        (["--shapes", Path(__file__).parent / "assets" / "trained_layout.json"], "expected a table of name and shape"),
    ],
)
def test_bad_flags(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "x.pt", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_the_program_says_why(tmp_path):
    (tmp_path / "x.pt.part03").write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "x.pt"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} holds x.pt.part03 already: remove it or name another OUT\n"


@pytest.mark.torch
def test_torch_loads_it(tmp_path, shapes):
    torch = pytest.importorskip("torch")
    make(tmp_path / "x.pt", "--shapes", shapes)
    tree = torch.load(tmp_path / "x.pt", weights_only=True)
    assert tree["model_state_dict"][HEAD].data_ptr() == tree["model_state_dict"][EMBEDDING].data_ptr()
    assert isinstance(open_pt(tmp_path / "x.pt")["model_state_dict"][HEAD], StoredTensor)
    trained = [tensor for name, tensor in tree["model_state_dict"].items() if name.startswith("action_model.")]
    groups = tree["optimizer_state_dict"]["param_groups"]
    first = groups[1]["params"][0]
    parameters = [torch.nn.Parameter(tensor) for tensor in trained]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    state = {n: tree["optimizer_state_dict"]["state"][first + n] for n in range(len(trained))}
    optimizer.load_state_dict({"state": state, "param_groups": [groups[1] | {"params": list(range(len(trained)))}]})
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.state[parameters[0]]["step"] == 50_001
