"""Bytes of tensors against the checksums of their .pt file."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.convert.files import PartsError
from mem0_jax.convert.torch_pt import PtError, open_pt, read_pt
from mem0_jax.convert.torch_pt_write import write_pt

GOLDEN = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
CONFIG = ["--config", str(GOLDEN / "config.json")]
TREE = {"model_state_dict": {"a.weight": np.arange(900, dtype=np.float32), "b.weight": np.ones(500)}, "step": 3}


def damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def without_checksums(path: Path, local: bool = True) -> None:
    """Zeroes them in the directory, and in the entries themselves."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries, start = archive.infolist(), archive.start_dir
    for info in entries:
        if local:
            content[info.header_offset + 14 : info.header_offset + 18] = bytes(4)
        content[start + 16 : start + 20] = bytes(4)
        start += 46 + sum(struct.unpack_from("<HHH", content, start + 28))
    path.write_bytes(content)


@pytest.fixture
def sample(tmp_path) -> Path:
    write_pt(tmp_path / "x.pt", TREE)
    return tmp_path / "x.pt"


def place(path: Path, name: str) -> int:
    tensor = open_pt(path)["model_state_dict"][name]
    return tensor.start


def test_the_damaged_tensor_is_named_and_the_others_are_read(sample):
    damage(sample, place(sample, "a.weight") + 1717)
    state = open_pt(sample)["model_state_dict"]
    np.testing.assert_array_equal(state["b.weight"].read(), np.ones(500))
    message = r"x\.pt: tensor 'model_state_dict/a\.weight' does not match its checksum: damaged, copy it again"
    for _ in range(2):
        with pytest.raises(PartsError, match=message):
            state["a.weight"].read()
    with pytest.raises(PtError, match=message):
        read_pt(sample)


@pytest.mark.parametrize(("size", "where"), [(2500, "in x.pt.part00 to x.pt.part01, "), (5000, "in x.pt.part00, ")])
def test_the_damaged_part_is_named(sample, size, where):
    damage(sample, place(sample, "a.weight") + 1)
    content = sample.read_bytes()
    sample.unlink()
    for n, start in enumerate(range(0, len(content), size)):
        sample.with_name(f"x.pt.part{n:02}").write_bytes(content[start : start + size])
    with pytest.raises(PartsError) as caught:
        open_pt(sample.parent)["model_state_dict"]["a.weight"].read()
    assert f"x.pt: {where}tensor 'model_state_dict/a.weight' does not match" in str(caught.value)


def test_zero_stands_for_a_checksum_that_was_not_computed(sample):
    without_checksums(sample)
    tree = open_pt(sample)
    assert tree["step"] == 3
    np.testing.assert_array_equal(tree["model_state_dict"]["a.weight"].read(), TREE["model_state_dict"]["a.weight"])


def test_directory_and_entry_must_agree(sample):
    without_checksums(sample, local=False)
    with pytest.raises(PtError, match="has another checksum in its header"):
        open_pt(sample)


def test_conversion_and_comparison_read_and_so_compare(tmp_path, capsys):
    content = (GOLDEN / "initial.pt").read_bytes()
    damaged, bare = tmp_path / "damaged.pt", tmp_path / "bare.pt"
    damaged.write_bytes(content)
    name = "memory_bank.norm2.bias"
    damage(damaged, open_pt(damaged)["model_state_dict"][name].start + 9)
    assert main(["convert", str(damaged), str(tmp_path / "out"), *CONFIG]) == 1
    assert f"tensor 'model_state_dict/{name}' does not match its checksum" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))
    assert main(["convert", "diff", str(GOLDEN / "initial.pt"), str(damaged)]) == 1
    assert f"tensor 'model_state_dict/{name}' does not match its checksum" in capsys.readouterr().err
    tensors = {key: tensor.read() for key, tensor in open_pt(GOLDEN / "initial.pt")["model_state_dict"].items()}
    write_pt(bare, tensors)
    without_checksums(bare)
    assert main(["convert", str(bare), "--dry-run", *CONFIG]) == 0
    assert "note: 250 tensors have no checksum" in capsys.readouterr().out
    assert main(["convert", "diff", str(GOLDEN / "initial.pt"), str(bare)]) == 0


@pytest.mark.torch
def test_files_that_torch_wrote_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_pt(tmp_path / "a.pt")["a"].read().tolist() == [0, 1, 2, 3, 4]
