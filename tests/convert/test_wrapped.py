"""Weights under the names and keys that trainers leave, in .pt files and safetensors."""

import re

import numpy as np
import pytest

from mem0_jax.convert.hf_safetensors import write_safetensors
from mem0_jax.convert.rules import ConversionError
from mem0_jax.convert.sources import open_source
from mem0_jax.convert.torch_pt_write import write_pt

MEM0 = {
    "qwen_model.model.model.visual.blocks.0.norm1.weight": np.arange(3, dtype=np.float32),
    "qwen_model.model.lm_head.weight": np.ones((2, 3), np.float32),
    "action_model.model.proj_out_1.bias": np.full(2, 7, np.float32),
    "memory_bank.norm1.weight": np.full(1, 8, np.float32),
}
QWEN = {
    "model.visual.pos_embed.weight": np.ones((4, 2), np.float32),
    "model.language_model.norm.weight": np.arange(2, dtype=np.float32),
    "lm_head.weight": np.ones((2, 2), np.float32),
}


def prefixed(prefix: str, tensors=MEM0) -> dict[str, np.ndarray]:
    return {prefix + name: value for name, value in tensors.items()}


def inside(word: str, tensors=MEM0) -> dict[str, np.ndarray]:
    """`word` behind the first part of every name."""
    return {name.replace(".", f".{word}.", 1): value for name, value in tensors.items()}


def opened(folder, content, weights=None):
    write_pt(folder / "a.pt", content)
    return open_source(folder / "a.pt", weights)


def refused(folder, content, message, weights=None):
    with pytest.raises(ConversionError, match=message) as caught:
        opened(folder, content, weights)
    assert str(folder / "a.pt") in str(caught.value)
    return str(caught.value)


def assert_are(tensors, expected):
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name].read(), value)


WRAPPED = {
    "ddp": ({"model_state_dict": prefixed("module.")}, "without module."),
    "compiled": ({"model_state_dict": prefixed("_orig_mod.")}, "without _orig_mod."),
    "both": (prefixed("module._orig_mod."), "without _orig_mod., module."),
    "compiled inside": ({"model_state_dict": inside("_orig_mod")}, "_orig_mod."),
    "fsdp": (prefixed("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module")), "_fsdp_wrapped_module."),
    "checkpointed": (inside("_checkpoint_wrapped_module"), "_checkpoint_wrapped_module."),
    "fabric": (prefixed("_forward_module."), "_forward_module."),
    "lightning": ({"state_dict": prefixed("model."), "epoch": 3}, "without 'model.' before them"),
    "lightning, compiled": ({"state_dict": prefixed("policy.model._orig_mod.")}, "without 'policy.model.' before them"),
    "deepspeed": ({"module": MEM0, "ds_config": {}}, "are those under 'module'"),
    "model": ({"model": MEM0}, "are those under 'model'"),
    "nested": ({"model": {"state_dict": MEM0}, "args": {"lr": 1.0}}, "are those under 'model/state_dict'"),
    "averages alone": ({"ema_state_dict": MEM0}, r"'ema_state_dict' \(averages over training\)"),
    "swa": (prefixed("module.") | {"n_averaged": np.array(5)}, "left out: n_averaged"),
    "merged peft": (prefixed("base_model.model."), "without 'base_model.model.'"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_taken_off_and_noted(tmp_path, case):
    content, note = WRAPPED[case]
    source = opened(tmp_path, content)
    assert_are(source.tensors, MEM0)
    assert source.model.name == "mem0"
    assert any(re.search(note, line) for line in source.notes), source.notes


def test_plain_weights_need_no_note(tmp_path):
    for content in (MEM0, {"model_state_dict": MEM0, "global_step": 3}):
        source = opened(tmp_path, content)
        assert_are(source.tensors, MEM0)
        assert source.notes == []
    assert source.checkpoint == {"global_step": 3}


def test_a_backbone_and_safetensors_follow_the_same_rule(tmp_path):
    for prefix in ("", "module.", "model.", "_orig_mod.model."):
        source = opened(tmp_path, {"state_dict": prefixed(prefix, QWEN)})
        assert_are(source.tensors, QWEN)
        write_safetensors(tmp_path / f"hf{prefix}", prefixed(prefix, QWEN))
        source = open_source(tmp_path / f"hf{prefix}")
        assert {name: tensor.read().tobytes() for name, tensor in source.tensors.items()} == {
            name: value.tobytes() for name, value in QWEN.items()
        }
        assert bool(source.notes) == bool(prefix)
        assert source.model.name == "qwen3_vl"


def test_several_sets_must_be_chosen_from(tmp_path):
    averaged = {name: value + 1 for name, value in MEM0.items()}
    both = {"model": MEM0, "ema": averaged, "step": 4}
    message = refused(tmp_path, both, "holds several sets of weights, ")
    assert "model (4 tensors), ema (4 tensors): choose one with --weights NAME" in message
    assert_are(opened(tmp_path, both, "ema").tensors, averaged)
    assert_are(opened(tmp_path, both, "model").tensors, MEM0)
    refused(tmp_path, both, r"--weights emma: expected one of model \(4", "emma")
    beside = {"state_dict": prefixed("model.") | prefixed("ema_model.", averaged)}
    refused(tmp_path, beside, r"state_dict/ema_model \(4 tensors\), state_dict/model \(4 tensors\)")
    source = opened(tmp_path, beside, "state_dict/ema_model")
    assert_are(source.tensors, averaged)
    assert "left out: model." in source.notes[-1]
    write_safetensors(tmp_path / "hf", MEM0 | prefixed("ema.", averaged))
    with pytest.raises(ConversionError, match=r"\. \(4 tensors\), ema \(4 tensors\)"):
        open_source(tmp_path / "hf")
    assert len(open_source(tmp_path / "hf", ".").tensors) == 4


def test_averages_without_names(tmp_path):
    shadow = {"shadow_params": [np.ones(2, np.float32)] * 20, "decay": 0.999}
    refused(tmp_path, {"ema": shadow}, r"ema/shadow_params is a list of tensors without names.*ema\.copy_to")
    refused(tmp_path, {"model": MEM0, "ema": shadow}, r"model \(4 tensors\), ema/shadow_params \(a list\): choose")
    assert_are(opened(tmp_path, {"model": MEM0, "ema": shadow}, "model").tensors, MEM0)
    refused(tmp_path, {"model": MEM0, "ema": shadow}, "without names", "ema/shadow_params")


ADAPTER = "base_model.model.model.language_model.layers.0.self_attn.q_proj."
REFUSED = {
    "lora": ({f"{ADAPTER}lora_A.weight": np.ones(2)}, r"LoRA .* 1 tensors such as .*lora_A.*merge_and_unload"),
    "lora in a model": (MEM0 | {"qwen_model.x.base_layer.weight": np.ones(2)}, "LoRA .*base_layer"),
    "collision": (MEM0 | prefixed("module."), r"are both qwen_model\..* without what wraps them"),
    "zero-3": ({"module": {name: np.zeros(0, np.float32) for name in MEM0}}, "4 tensors are empty.*zero_to_fp32"),
    "number": (MEM0 | {"epoch": 3}, "among the weights 'epoch' is a int, not a tensor"),
    "unknown key": ({"gradients": MEM0}, "has weights under 'gradients' alone: take them with --weights gradients"),
    "another model": (
        {"state_dict": {"resnet.w": np.ones(2)}},
        "no model that is known .*Mem-0 .* it begins with 'resnet.w'",
    ),
    "no dict": ([1, 2], "expected a dict of tensors.*found list"),
    "nothing": ({}, "found an empty dict"),
    "bare list": ([np.ones(2, np.float32)] * 20, r"a\.pt: it is a list of tensors without names"),
    "bare tensor": (np.ones((2, 3)), r"found a tensor of shape \(2, 3\)$"),
    "empty set": ({"model_state_dict": {}, "step": 3}, "found an empty dict under 'model_state_dict'"),
    "null": ({"model_state_dict": None}, "found None under 'model_state_dict'"),
    "empty, deeper": ({"model": {"state_dict": {}}}, "found an empty dict under 'model/state_dict'"),
    "number for a set": ({"state_dict": 3}, "found 3 under 'state_dict'"),
    "zero's optimizer": ({"optimizer_state_dict": {"zero_stage": 2}, "ds_version": "0.14"}, "DeepSpeed.*zero_to_fp32"),
    "no tensors": ({"epoch": 3, "args": {}}, "found the entries 'epoch', 'args'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_set_of_weights_is_named(tmp_path, case):
    refused(tmp_path, *REFUSED[case])


def test_an_adapter_beside_whole_weights_is_left_out_when_asked(tmp_path):
    for adapter in ({"a.lora_A.weight": np.ones((2, 2))}, {f"{ADAPTER}lora_B.weight": np.ones(2)}, prefixed("lora_x.")):
        content = {"model_state_dict": MEM0, "adapter": adapter}
        assert_are(opened(tmp_path, content, "model_state_dict").tensors, MEM0)
        assert "model_state_dict (4 tensors)" in refused(tmp_path, content, r"several sets .*adapter.*: choose one")
        refused(tmp_path, content, "LoRA .*merge it into the model", "adapter")
    refused(tmp_path, {"adapter": {"a.lora_A.weight": np.ones(2)}}, "LoRA .*merge it into the model")


def test_lists_that_are_no_weights(tmp_path):
    for record in ([np.float32(0.1)] * 20, [np.zeros(9, np.uint8)] * 20):
        content = {"model_state_dict": MEM0, "record": [np.asarray(item) for item in record]}
        assert_are(opened(tmp_path, content).tensors, MEM0)


def test_what_has_another_beginning_is_left_to_the_plan(tmp_path):
    source = opened(tmp_path, {"state_dict": prefixed("model.") | {"loss.weight": np.ones(1, np.float32)}})
    assert set(source.tensors) == {*MEM0, "loss.weight"}


def test_keys_that_are_no_names(tmp_path):
    source = opened(tmp_path, {"state_dict": prefixed("model.") | {7: np.ones(1, np.float32)}})
    assert len(source.tensors) == 5


PARTS = {
    "qwen_model": {"model.model.visual.blocks.0.norm1.weight": np.arange(3, dtype=np.float32)},
    "memory_bank": {"norm1.weight": np.full(1, 8, np.float32)},
    "action_model": {"model.proj_out_1.bias": np.full(2, 7, np.float32)},
    "classifier": {"head.weight": np.full((1, 2), 9, np.float32)},
}
JOINED = {f"{module}.{name}": value for module, state in PARTS.items() for name, value in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        PARTS,
        PARTS | {"global_step": 3, "optimizer_state_dict": {"state": {}}, "rng": np.zeros(3, np.uint8)},
        {"state_dict": PARTS},
        {module: prefixed("module.", state) for module, state in PARTS.items()},
        PARTS | {"qwen_model": {"model": {"model.visual.blocks.0.norm1.weight": np.arange(3, dtype=np.float32)}}},
    ],
)
def test_modules_saved_apart_are_one_model(tmp_path, content):
    source = opened(tmp_path, content)
    assert source.model.name == "mem0"
    assert_are(source.tensors, JOINED)
    assert source.checkpoint.get("global_step") == content.get("global_step")
    assert any(note.startswith("modules saved apart are taken together: qwen_model, ") for note in source.notes)


def test_averages_beside_modules_saved_apart_are_chosen_from(tmp_path):
    content = PARTS | {"ema": PARTS}
    refused(tmp_path, content, r"several sets of weights, \. \(4 tensors\), ema \(4 tensors\): choose one")
    assert_are(opened(tmp_path, content, "ema").tensors, JOINED)


@pytest.mark.parametrize("head", ["classifier", "head"])
def test_what_would_not_be_taken_is_said(tmp_path, head):
    content = {"qwen_model": PARTS["qwen_model"], head: PARTS["classifier"], "lr": {"decay": np.ones(2, np.float32)}}
    said = f"the 2 other tensors, under '{head}', 'lr', are not taken with them"
    refused(tmp_path, content, f"under 'qwen_model' alone; {said}: take them with --weights qwen_model/model")
    assert said in opened(tmp_path, content, "qwen_model/model").notes
