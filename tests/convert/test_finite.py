"""Weights that are NaN or infinite are named and refused, unless they are asked for."""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.convert.finite import not_finite
from mem0_jax.convert.sources import open_source
from mem0_jax.convert.stored import array_of
from mem0_jax.convert.torch_pt import StoredTensor, open_pt
from mem0_jax.convert.torch_pt_write import write_pt

GOLDEN = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
CONFIG = ["--config", str(GOLDEN / "config.json")]
NAME = "action_model.state_encoder.layer1.weight"
DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def convert(*words) -> int:
    return main(["convert", *map(str, words)])


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return {name: array_of(tensor) for name, tensor in open_source(GOLDEN / "initial.pt").tensors.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_dtype(dtype):
    values = np.zeros((700, 900), dtype)  # more than are looked at together
    assert not_finite("w", values) == not_finite("w", values.T) == ""
    values[650, 899] = values[651, 3] = np.nan
    assert not_finite("w", values) == "w: 2 of 630000 values are not finite, first nan at [650, 899]"
    assert not_finite("w", values.T).endswith("first nan at [3, 651]")
    assert not_finite("w", values[650, 899]) == "w: 1 of 1 values are not finite, first nan at []"
    if dtype is not ml_dtypes.float8_e4m3fn:  # has no infinity
        values[0, 1] = -np.inf
        assert "3 of 630000 values are not finite, first -inf at [0, 1]" in not_finite("w", values)


def test_whole_numbers_empty_and_cast_values():
    assert not_finite("w", np.arange(3)) == not_finite("w", np.zeros((0, 3))) == ""
    large = np.array([1.0, 1e300])
    assert not_finite("w", large) == ""
    assert not_finite("w", large, np.float32) == "w: 1 of 2 values are not finite as float32, first inf at [1]"


def test_refused_by_name_with_all_that_is_wrong(tensors, tmp_path, capsys):
    bad = {NAME: tensors[NAME].copy(), "memory_bank.norm1.weight": tensors["memory_bank.norm1.weight"] * np.inf}
    bad[NAME][2, 5] = np.nan
    write_pt(tmp_path / "a.pt", tensors | bad)
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG) == 1
    error = capsys.readouterr().err
    assert re.search(rf"{NAME}: 1 of \d+ values are not finite, first nan at \[2, 5\]", error)
    assert "memory_bank.norm1.weight: 64 of 64 values are not finite" in error
    assert "--allow-nonfinite" in error
    assert not list(tmp_path.glob("*out*"))


def test_taken_when_asked_for_and_refused_on_the_way_back(tensors, tmp_path, capsys):
    bad = tensors[NAME].copy()
    bad[2, 5] = np.nan
    write_pt(tmp_path / "a.pt", tensors | {NAME: bad})
    out, back = tmp_path / "out", tmp_path / "back.pt"
    assert convert(tmp_path / "a.pt", out, *CONFIG, "--allow-nonfinite", "--report", tmp_path / "r.json") == 0
    assert f"note: {NAME}: 1 of" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "r.json").read_text())["nonfinite"]) == 1
    assert convert(out, back, "--to", "torch") == 1
    assert f"{NAME}: 1 of" in capsys.readouterr().err
    assert not back.exists()
    assert convert(out, back, "--to", "torch", "--allow-nonfinite") == 0
    np.testing.assert_array_equal(open_source(back).tensors[NAME].read(), bad)
    assert convert(out, tmp_path / "hf", "--to", "safetensors") == 0  # the backbone is sound


def test_what_is_compared_is_named_where_it_is_not_finite(tensors, tmp_path, capsys):
    embedding, head = (f"qwen_model.model.{n}.weight" for n in ("model.language_model.embed_tokens", "lm_head"))
    copy = tensors[embedding].copy()
    copy[3, 5] = np.nan
    scalar = np.array(np.nan, np.float32)
    changes = {
        r"lm_head\.weight must equal \S+embed_tokens\.weight, but is nan at \[3, 5\], not -?\d": {head: copy},
        r"classifier\.pos_weight must equal the setting 10\.0, but is nan, not 10\.0": {
            "classifier.pos_weight": scalar
        },
    }
    for message, change in changes.items():
        write_pt(tmp_path / "a.pt", tensors | change)
        assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG) == 1
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("which", "dtype"), [("", np.int8), (NAME, np.complex64), (NAME, np.bool_), ("classifier.pos_weight", np.complex64)]
)
def test_numbers_that_are_no_weights(tensors, tmp_path, capsys, which, dtype):
    """All quantized, one layer, or a buffer; no --dtype turns them into weights."""
    named = [which] if which else list(tensors)
    write_pt(tmp_path / "a.pt", tensors | {name: tensors[name].astype(dtype) for name in named})
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG, "--dtype", "float32", "--dry-run") == 1
    error = capsys.readouterr().err
    assert f"{len(named)} tensors hold no floats, such as {named[0]} is {np.dtype(dtype).name}: expected" in error
    assert "--dtype" not in error


def test_moments_of_the_optimizer(tmp_path, capsys):
    def read(node) -> Any:
        if isinstance(node, StoredTensor):
            return node.read().copy()
        if isinstance(node, dict):
            return {key: read(value) for key, value in node.items()}
        return [read(item) for item in node] if isinstance(node, list) else node

    tree = read(open_pt(GOLDEN / "step3.pt"))
    moment = next(iter(tree["optimizer_state_dict"]["state"].values()))["exp_avg_sq"]
    moment.flat[0] = np.inf
    write_pt(tmp_path / "a.pt", tree)
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG, "--with-optimizer") == 1
    assert re.search(r"nu/qwen_model\S+: 1 of \d+ values are not finite, first inf at \[0", capsys.readouterr().err)


@pytest.mark.parametrize("dtype", ["float32", "keep"])  # a kept one is loaded as float32
def test_a_cast_that_overflows(dtype, tensors, tmp_path, capsys):
    wide = tensors[NAME].astype(np.float64)
    wide[0, 0] = 1e200
    write_pt(tmp_path / "a.pt", tensors | {NAME: wide})
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG, "--dtype", dtype) == 1
    assert "values are not finite as float32, first inf at [0, 0]" in capsys.readouterr().err
