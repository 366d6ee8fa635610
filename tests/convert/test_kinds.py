"""Files and folders that are no weights we read: what they are, and what to do."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pt_files import ASSETS, tensor_pickle, write

from mem0_jax.cli import main
from mem0_jax.convert.hf_safetensors import write_safetensors
from mem0_jax.convert.sources import open_source
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.errors import UserError

WHOLE = (ASSETS / "views.pt").read_bytes()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


FILES = {
    "lfs": (LFS, r"is a Git LFS pointer \(12345 bytes are elsewhere\): git lfs pull, or download it again"),
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "is a web page .*: the download failed"),
    "answer": (b"Entry not found", "a server's error message: the download failed"),
    "text": (b"No such object: x/y.pt\n" * 90, "is a text that begins with 'No such object: .*', not weights"),
    "empty": (b"", "is empty: download it again"),
    "gzip": (gzip.compress(WHOLE), "compressed by gzip: unpack it first"),
    "bzip2": (bz2.compress(WHOLE), "compressed by bzip2: unpack it first"),
    "xz": (lzma.compress(WHOLE), "compressed by xz: unpack it first"),
    "tar": (tar("model.pt"), "is a tar archive that begins with 'model.pt': unpack it first"),
    "gguf": (b"GGUF" + bytes(40), "is a GGUF file of llama.cpp: convert the model's safetensors"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5 file"),
    "pickle": (pickle.dumps({"a": 1}, 4), r"plain pickle format \(protocol 4\); convert it where torch is installed"),
}
PT_FILES = {
    "zip around": (zipped(**{"model.pt": WHOLE}), "is a zip archive around 'model.pt': unzip it first"),
    "npz": (zipped(**{"a.npy": b"1"}), "is an archive of NumPy arrays"),
    "torchscript": (
        zipped(x__data__pkl=b"", **{"x/data.pkl": b"N.", "x/constants.pkl": b"N.", "x/code/a.py": b""}),
        r"TorchScript archive .*torch\.jit\.load .*state_dict",
    ),
    "other zip": (zipped(readme=b"1"), "not a file of torch.save, it holds 'readme'"),
    "no entries": (zipped(), "zip archive that holds nothing"),
    "cut": (WHOLE[:1000], "the zip directory is missing or damaged .*: truncated"),
    "noise": (bytes(range(100)), "not a file of torch.save"),
}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("case", FILES)
def test_files_of_other_kinds(tmp_path, capsys, case, suffix):
    content, message = FILES[case]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", PT_FILES)
def test_zip_files_of_other_kinds(tmp_path, case):
    content, message = PT_FILES[case]
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "a.pt")


OBJECTS = {
    "module": ("torch.nn.modules.linear\nLinear", r"whole module, not its weights; .*model\.state_dict\(\)"),
    "deepspeed": ("deepspeed.runtime.zero.config\nZeroStageEnum", "zero_to_fp32"),
    "distributed": ("torch.distributed.tensor\nDTensor", "pieces of distributed tensors"),
    "quantized": ("torch._utils\n_rebuild_qtensor", "quantized"),
    "float8": ("torch._utils\n_rebuild_tensor_v3", "float8"),
    "others": ("argparse\nNamespace", "Save a file with only the state_dict"),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_objects_in_a_pickle_tell_what_it_is(tmp_path, case):
    name, message = OBJECTS[case]
    path = write(tmp_path / "a.pt", b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(UserError, match=message):
        open_source(path)


def test_formats_under_each_others_names(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(WHOLE)
    with pytest.raises(UserError, match=r"a\.safetensors: not a safetensors file, it is a zip file.*call it NAME\.pt"):
        open_source(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "hf", {"a": np.ones(3)})
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"is in the safetensors format: call it NAME\.safetensors"):
        open_source(tmp_path / "b.pt")


def test_safetensors_in_byte_parts(tmp_path):
    tensors = {"model.visual.a": np.arange(40, dtype=np.float32), "lm_head.weight": np.ones(3)}
    write_safetensors(tmp_path / "hf", tensors)
    content = (tmp_path / "hf" / "model.safetensors").read_bytes()
    for n, start in enumerate(range(0, len(content), 100)):
        (tmp_path / f"model.safetensors.part{n:02}").write_bytes(content[start : start + 100])
    source = open_source(tmp_path)
    assert source.format == "safetensors"
    np.testing.assert_array_equal(source.tensors["model.visual.a"].read(), tensors["model.visual.a"])


FOLDERS = {
    "__0_0.distcp": "checkpoint of torch.distributed: join it first with",
    "zero_to_fp32.py": "checkpoint of DeepSpeed: join its files first",
    "pytorch_model.bin.index.json": "weights in several .bin files: save it with save_pretrained as safetensors",
    "pytorch_model-00001-of-00002.bin": "weights in several .bin files: save it with save_pretrained as safetensors",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": "a step of a checkpoint of DeepSpeed: .* in the folder above",
    "model.safetensors.index.json": "index of safetensors and none of them",
    "a.gguf": "GGUF file of llama.cpp",
    "model.pt": r"a directory without parts .*, it holds model\.pt: name a file",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_kinds(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=FOLDERS[name]):
        open_source(tmp_path)


def test_an_optimizer_state_of_deepspeed(tmp_path):
    path = tmp_path / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"optimizer's state of DeepSpeed: .* zero_to_fp32\.py in the folder above"):
        open_source(path)


def test_a_folder_of_hugging_face_with_a_torch_file(tmp_path):
    tensors = {"model.visual.a": np.ones(3, np.float32), "lm_head.weight": np.zeros(2, np.float32)}
    write_pt(tmp_path / "pytorch_model.bin", tensors)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        source = open_source(path)
        assert (source.format, source.model.name, source.model_folder) == ("pt", "qwen3_vl", tmp_path)
        assert source.shapes == {name: tensor.shape for name, tensor in tensors.items()}
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.pt")
    assert open_source(tmp_path / "model.pt").model_folder is None


def test_one_shard_of_several(tmp_path):
    tensors = {"model.visual.a": np.ones(30), "lm_head.weight": np.ones(30)}
    write_safetensors(tmp_path, tensors, shard_bytes=200)
    with pytest.raises(
        UserError, match=r"model-00001-of-00002\.safetensors is one of 2 shards of a model: name their f"
    ):
        open_source(tmp_path / "model-00001-of-00002.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert set(open_source(source).tensors) == set(tensors)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(LFS)
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors: .*Git LFS pointer"):
        open_source(tmp_path)


def test_a_quantized_model_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12")
    with pytest.raises(
        UserError, match=r"dtype 'F8_E4M3'.*if the model is quantized, convert the one it was made from"
    ):
        open_source(tmp_path / "a.safetensors")


def test_pointers_among_the_other_files(tmp_path, capsys):
    """Every file a conversion reads or copies, and those of a bundle."""
    golden = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
    flags = {"--config": tmp_path / "c.json", "--norm-stats": tmp_path / "n.json"}
    for path in flags.values():
        path.write_bytes(LFS)
    good = ["--config", str(golden / "config.json")]
    for flag, path in flags.items():
        words = [flag, str(path)] if flag == "--config" else [*good, flag, str(path)]
        assert main(["convert", str(golden / "initial.pt"), "--dry-run", *words]) == 1
        assert f"{path} is a Git LFS pointer" in capsys.readouterr().err
    assert main(["convert", str(golden / "initial.pt"), "--dry-run", "--config", str(tmp_path)]) == 1
    assert "is a folder: name the file" in capsys.readouterr().err
    (tmp_path / "bundle" / "params").mkdir(parents=True)
    (tmp_path / "bundle" / "config.json").write_bytes(LFS)
    assert main(["convert", "inspect", str(tmp_path / "bundle")]) == 1
    assert "config.json is a Git LFS pointer" in capsys.readouterr().err


def test_the_hand_written_file_is_a_good_one(tmp_path):
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16)})
    with pytest.raises(UserError, match=r"found a tensor of shape \(4,\)"):
        open_source(path)


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04", b"\x1f\x8b", b"BZh"])
def test_a_length_that_looks_like_a_signature(tmp_path, start):
    """The first bytes of safetensors are a number."""
    length = int.from_bytes(start, "little")
    entry = {"model.visual.a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    header = json.dumps(entry).encode().ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"12")
    assert list(open_source(tmp_path / "a.safetensors").tensors) == ["model.visual.a"]
