"""`mem0-jax convert` as a user calls it: there, back, looking, comparing, and everything that can go wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mem0_jax.backbones.qwen3_vl.processor import word_tokenizer
from mem0_jax.cli import main
from mem0_jax.convert.sources import open_source
from mem0_jax.convert.stored import array_of
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.golden.stream import Golden, replay_forward
from mem0_jax.policies.bundle import BundleError, load_backbone, load_bundle
from mem0_jax.reference import Report
from mem0_jax.store import open_tree
from mem0_jax.tree import flatten

GOLDEN = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
CONFIG = ["--config", str(GOLDEN / "config.json")]


def convert(*words) -> int:
    return main(["convert", *map(str, words)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    assert convert(GOLDEN / "initial.pt", out, *CONFIG, "--report", out.with_suffix(".json")) == 0
    return out


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return {name: array_of(tensor) for name, tensor in open_source(GOLDEN / "initial.pt").tensors.items()}


def test_the_bundle_holds_the_checkpoint(bundle, tensors):
    loaded = load_bundle(bundle)
    assert loaded.config.memory.window_size == 6
    kernel = flatten(loaded.params)["backbone/language_model/layers/mlp/gate_proj/kernel"]
    for layer in range(4):
        source = tensors[f"qwen_model.model.model.language_model.layers.{layer}.mlp.gate_proj.weight"]
        np.testing.assert_array_equal(kernel[layer], source.T)
    (source,) = loaded.provenance["source"]
    assert source["name"] == "initial.pt"
    assert len(source["sha256"]) == 64
    report = json.loads(bundle.with_suffix(".json").read_text())
    assert (report["consumed"], report["unmapped"], report["unfilled"]) == (250, [], [])
    assert report["bytes"] > 3e6
    assert report["peak_rss_bytes"] > 0
    assert report["seconds"] > 0


def test_round_trip_is_equal_in_every_byte(bundle, tensors, tmp_path, capsys):
    assert convert(bundle, tmp_path / "back.pt", "--to", "torch") == 0
    back = open_source(tmp_path / "back.pt").tensors
    assert set(back) == set(tensors)
    for name, tensor in back.items():
        assert tensor.dtype == tensors[name].dtype
        assert tensor.read().tobytes() == tensors[name].tobytes(), name
    assert convert("diff", GOLDEN / "initial.pt", bundle) == 0
    assert "249 identical in every byte, 0 within" in capsys.readouterr().out


def test_mixed_precision_round_trip(tensors, tmp_path):
    """As the released checkpoint: backbone and memory in bfloat16, heads in float32."""
    half = ("qwen_model.", "memory_bank.")
    mixed = {n: v.astype(ml_dtypes.bfloat16) if n.startswith(half) else v for n, v in tensors.items()}
    mixed["qwen_model.model.lm_head.weight"] = mixed["qwen_model.model.model.language_model.embed_tokens.weight"]
    write_pt(tmp_path / "mixed.pt", {"model_state_dict": mixed})
    assert convert(tmp_path / "mixed.pt", tmp_path / "kept", *CONFIG) == 0
    leaves = open_tree(tmp_path / "kept" / "params")
    assert leaves["memory/norm1/scale"].dtype == ml_dtypes.bfloat16
    assert leaves["classifier/head/kernel"].dtype == np.float32
    assert convert(tmp_path / "kept", tmp_path / "back.pt", "--to", "torch") == 0
    for name, tensor in open_source(tmp_path / "back.pt").tensors.items():
        assert tensor.read().tobytes() == mixed[name].tobytes(), name
    assert convert(tmp_path / "mixed.pt", tmp_path / "wide", *CONFIG, "--dtype", "float32") == 0
    assert {leaf.dtype for leaf in open_tree(tmp_path / "wide" / "params").values()} == {np.dtype("f4")}
    stored = load_bundle(tmp_path / "kept", dtype=None).params
    assert flatten(stored)["memory/norm1/scale"].dtype == ml_dtypes.bfloat16


def test_a_leaf_of_two_dtypes_needs_a_choice(tensors, tmp_path, capsys):
    name = "qwen_model.model.model.visual.blocks.2.attn.proj.weight"
    write_pt(tmp_path / "a.pt", dict(tensors) | {name: tensors[name].astype(np.float16)})
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG) == 1
    error = capsys.readouterr().err
    assert "choose one with --dtype" in error
    assert "blocks.2.attn.proj.weight is float16" in error
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG, "--dtype", "float32") == 0


def test_everything_that_does_not_fit_is_listed_and_nothing_is_written(tensors, tmp_path, capsys):
    wrong = dict(tensors)
    del wrong["memory_bank.norm1.weight"]
    wrong["memory_bank.extra"] = np.zeros(3, np.float32)
    wrong["classifier.head.weight"] = np.zeros((1, 7), np.float32)
    write_pt(tmp_path / "a.pt", wrong)
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG, "--report", tmp_path / "r.json") == 1
    error = capsys.readouterr().err
    for name in ("memory_bank.norm1.weight is missing", "memory_bank.extra", "classifier.head.weight (1, 7)"):
        assert name in error
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["unmapped"] == ["memory_bank.extra (3,)"]
    assert report["missing"] == ["memory_bank.norm1.weight"]
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_tied_is_refused(tensors, tmp_path, capsys):
    name = "qwen_model.model.lm_head.weight"
    write_pt(tmp_path / "a.pt", dict(tensors) | {name: tensors[name] + 1})
    assert convert(tmp_path / "a.pt", tmp_path / "out", *CONFIG) == 1
    assert "lm_head.weight must equal" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path, capsys):
    assert convert(GOLDEN / "initial.pt", "--dry-run", *CONFIG) == 0
    out = capsys.readouterr().out
    assert "backbone/visual/blocks/attn/q/kernel" in out
    assert "qwen_model.model.model.visual.blocks.0.attn.qkv.weight ... 5 tensors" in out
    assert "250 tensors consumed, none unmapped; 139 leaves, none unfilled" in out


def test_parts_with_sums(tmp_path, capsys):
    content = (GOLDEN / "initial.pt").read_bytes()
    size = len(content) // 3 + 1
    for i in range(3):
        (tmp_path / f"tiny.pt.part{i:02}").write_bytes(content[i * size : (i + 1) * size])
    import hashlib

    (tmp_path / "tiny.pt.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  tiny.pt\n")
    assert convert(tmp_path / "tiny.pt.part*", tmp_path / "one", *CONFIG) == 0
    assert convert("diff", GOLDEN / "initial.pt", tmp_path / "one") == 0
    # A byte of a weight changes: only the sum can tell.
    damaged = bytearray((tmp_path / "tiny.pt.part01").read_bytes())
    damaged[size // 2] ^= 1
    (tmp_path / "tiny.pt.part01").write_bytes(damaged)
    capsys.readouterr()
    assert convert(tmp_path, tmp_path / "two", *CONFIG) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not list(tmp_path.glob("*two*"))


def test_with_a_backbone_folder_and_statistics(tensors, tmp_path, capsys):
    """Tokenizer, processor and statistics end up in the bundle; special tokens must be the model's."""
    assert convert(GOLDEN / "initial.pt", tmp_path / "plain", *CONFIG) == 0
    assert convert(tmp_path / "plain", tmp_path / "hf", "--to", "safetensors") == 0
    (tmp_path / "hf" / "preprocessor_config.json").write_text("{}")
    numbers = {"min": [-1.0] * 16, "max": [1.0] * 16}
    stats = {f"{kind}_{name}": value for kind in ("state", "action") for name, value in numbers.items()}
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    flags = [*CONFIG, "--backbone", tmp_path / "hf", "--norm-stats", tmp_path / "stats.json"]
    assert convert(GOLDEN / "initial.pt", tmp_path / "full", *flags) == 0
    loaded = load_bundle(tmp_path / "full")
    assert loaded.stats is not None
    assert (tmp_path / "full" / "processor" / "preprocessor_config.json").is_file()
    with pytest.raises(BundleError, match=r"no tokenizer\.json: convert it again with --backbone"):
        _ = loaded.processor
    word_tokenizer(["go"]).save(str(tmp_path / "hf" / "tokenizer.json"))
    capsys.readouterr()
    assert convert(GOLDEN / "initial.pt", tmp_path / "full", *flags) == 1
    assert "has the special tokens" in capsys.readouterr().err


def test_a_setting_that_the_models_folder_has_otherwise_is_noted(bundle, tmp_path, capsys):
    assert convert(bundle, tmp_path / "hf", "--to", "safetensors") == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["text_config"]["rope_theta"] = 1e6
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "hf", "--dry-run", *CONFIG) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"note: .*config\.json is followed where .*hf.*config\.json says otherwise: .*rope_theta is 5", said
    )


def test_backbone_there_and_back(bundle, tmp_path, capsys):
    assert convert(bundle, tmp_path / "hf", "--to", "safetensors") == 0
    assert convert(tmp_path / "hf", tmp_path / "backbone", *CONFIG) == 0
    assert "is followed where" not in capsys.readouterr().out
    backbone = load_backbone(tmp_path / "backbone")
    assert backbone.config == load_bundle(bundle).config.backbone
    assert set(backbone.params) == {"visual", "language_model"}
    with pytest.raises(BundleError, match="holds a backbone alone"):
        load_bundle(tmp_path / "backbone")
    assert convert("diff", tmp_path / "hf", tmp_path / "backbone") == 0
    capsys.readouterr()
    assert convert("diff", bundle, tmp_path / "hf") == 1
    assert "action_model.model.proj_out_1.bias: only in" in capsys.readouterr().out
    assert convert(bundle, tmp_path / "hf", "--to", "safetensors") == 1
    assert "exists: name a new folder" in capsys.readouterr().err


def test_inspect(bundle, tmp_path, capsys):
    assert convert("inspect", GOLDEN / "step3.pt", "--json", tmp_path / "a.json") == 0
    out = capsys.readouterr().out
    assert "tied to qwen_model.model.model.language_model.embed_tokens.weight" in out
    assert "also holds global_step, optimizer_state_dict, scheduler_state_dict" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["modules"]["memory_bank"]["tensors"] == 16
    assert convert("inspect", bundle, "--json", tmp_path / "b.json") == 0
    ours = json.loads((tmp_path / "b.json").read_text())
    assert ours["tensors"] == found["tensors"]


def test_diff_tells_how_far(bundle, tensors, tmp_path, capsys):
    name = "memory_bank.norm2.bias"
    moved = tensors[name].copy()
    moved[3] += 0.5
    gone = {k: v for k, v in tensors.items() if k != "classifier.head.bias"}
    write_pt(tmp_path / "a.pt", gone | {name: moved, "memory_bank.norm1.weight": np.full(64, np.nan, np.float32)})
    assert convert("diff", bundle, tmp_path / "a.pt", "--json", tmp_path / "d.json") == 1
    out = capsys.readouterr().out
    assert "memory_bank.norm2.bias: greatest error 5.000e-01" in out
    assert "memory_bank.norm1.weight: greatest error inf" in out
    assert "classifier.head.bias: only in" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "d.json").read_text())["tensors"]}
    assert rows["memory_bank.norm1.weight"]["error"] is None
    gentle = tensors[name] * (1 + 1e-4)
    write_pt(tmp_path / "b.pt", dict(tensors) | {name: gentle.astype(np.float32)})
    assert convert("diff", bundle, tmp_path / "b.pt") == int(np.any(gentle.astype(np.float32) != tensors[name]))
    assert convert("diff", bundle, tmp_path / "b.pt", "--tolerance", "1e-3") == 0


def test_a_mesh_cuts_files_at_the_shards(tmp_path, capsys):
    assert convert(GOLDEN / "initial.pt", tmp_path / "out", *CONFIG, "--mesh", "fsdp=4,tensor=2") == 0
    leaf = open_tree(tmp_path / "out" / "params")["backbone/language_model/layers/mlp/gate_proj/kernel"]
    assert leaf.shape == (4, 64, 128)
    assert leaf.store.chunk_layout.read_chunk.shape == (1, 16, 64)
    assert convert("diff", GOLDEN / "initial.pt", tmp_path / "out") == 0
    assert convert(GOLDEN / "initial.pt", tmp_path / "out", *CONFIG, "--mesh", "fsdp=4,width=2") == 1
    assert "width" in capsys.readouterr().err


def test_other_models_and_other_folders_are_left_alone(bundle, tmp_path, capsys):
    write_pt(tmp_path / "a.pt", {"state": {"weight": np.zeros(3, np.float32)}})
    assert convert(tmp_path / "a.pt", tmp_path / "out") == 1
    assert (
        "expected a dict of tensors, or one under 'model_state_dict'; found the entries 'state'"
        in capsys.readouterr().err
    )
    write_pt(tmp_path / "a.pt", {"resnet.weight": np.zeros(3, np.float32)})
    assert convert(tmp_path / "a.pt", tmp_path / "out") == 1
    assert "holds no model that is known here" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert convert(GOLDEN / "initial.pt", tmp_path / "mine", *CONFIG) == 1
    assert "exists and is no bundle" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert convert(bundle, tmp_path / "out") == 1
    assert "is a bundle already" in capsys.readouterr().err
    assert convert(tmp_path / "nothing.pt", tmp_path / "out") == 1
    assert convert(GOLDEN / "initial.pt") == 2
    assert convert(bundle, tmp_path / "x.pt", "--to", "torch", "--dtype", "float32", "--dry-run") == 2
    assert "--dry-run, --dtype" in capsys.readouterr().err


def test_a_damaged_bundle_is_named(bundle, tmp_path, capsys):
    shutil.copytree(bundle, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "params" / "classifier.head.bias")
    assert convert("inspect", tmp_path / "b") == 1
    assert "no readable parameter tree" in capsys.readouterr().err
    description = json.loads((bundle / "config.json").read_text())
    description["config"]["classifier"]["hidden_sizes"] = [192, 64, 25]
    shutil.copytree(bundle, tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=r"classifier/head/kernel is \(24, 1\), expected \(25, 1\)"):
        load_bundle(tmp_path / "c")


def test_killed_halfway_leaves_no_bundle_and_the_next_run_succeeds(tensors, tmp_path):
    """A real process, killed while it writes: a wide vocabulary gives it something to do."""
    name = "qwen_model.model.model.language_model.embed_tokens.weight"
    wide = dict(tensors) | {name: np.random.default_rng(0).standard_normal((1_000_000, 64)).astype(np.float32)}
    wide["qwen_model.model.lm_head.weight"] = wide[name]
    write_pt(tmp_path / "wide.pt", wide)
    settings = json.loads((GOLDEN / "config.json").read_text())
    settings["backbone"]["text"]["vocab_size"] = 1_000_000
    (tmp_path / "config.json").write_text(json.dumps(settings))
    out = tmp_path / "bundles" / "wide"
    words = [sys.executable, "-m", "mem0_jax.cli", "convert", "wide.pt", str(out), "--config", "config.json"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("bundles/.wide.*/params/*embed_tokens*/*")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob("bundles/.wide.unfinished*"))) == 1
    subprocess.run(words, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["wide"]
    np.testing.assert_array_equal(open_source(out).tensors[name].read(), wide[name])


def test_verify_replays_the_golden(bundle, tmp_path, capsys):
    assert convert("verify", bundle, "--golden", GOLDEN, "--json", tmp_path / "v.json") == 0
    assert "all within their gates" in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["passed"]
    settings = json.loads((GOLDEN / "config.json").read_text())
    settings["memory_bank"]["window_size"] = 7
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert convert(GOLDEN / "initial.pt", tmp_path / "other", "--config", tmp_path / "config.json") == 0
    assert convert("verify", tmp_path / "other", "--golden", GOLDEN) == 1
    assert "memory.window_size is 7, the golden's 6" in capsys.readouterr().err


def test_other_weights_fail_a_gate(tmp_path):
    """What verify compares, its quickest part: the forward pass with weights of three steps later."""
    assert convert(GOLDEN / "step3.pt", tmp_path / "later", *CONFIG) == 0
    golden, report = Golden(GOLDEN), Report()
    golden.params = load_bundle(tmp_path / "later").params
    replay_forward(golden, report)
    assert not report.passed


def test_a_part_of_the_parameters_that_is_missing_or_something_else_is_named(bundle, tmp_path, capsys):
    bundle = shutil.copytree(bundle, tmp_path / "bundle")
    chunk = next(path for path in (bundle / "params").rglob("0.0") if "embed_tokens" in str(path))
    for damage in (b"version https://git-lfs.github.com/spec/v1\n", None):
        chunk.unlink() if damage is None else chunk.write_bytes(damage)
        capsys.readouterr()
        assert convert(bundle, tmp_path / "out.pt", "--to", "torch") == 1
        error = capsys.readouterr().err
        assert "params: backbone/language_model/embed_tokens/embedding is damaged, copy it again" in error
        assert not (tmp_path / "out.pt").exists()
        with pytest.raises(BundleError, match=r"params cannot be read .*damaged\? Copy it again"):
            load_bundle(bundle)
