"""What a file of weights is when it is not what its reader expected."""

import re
from collections.abc import Iterable

from mem0_jax.stand_in import stand_in

SAVE_AGAIN = "torch.save(torch.load(SRC, weights_only=True), DST)"
SAVE_STATE = "save its state dict instead: torch.save(model.state_dict(), DST)"
SAFETENSORS = "is in the safetensors format: call it NAME.safetensors"
HEAD_BYTES = 1024

# First bytes -> what follows the file's name.
KINDS: dict[bytes, str] = {
    b"\x1f\x8b": "is compressed by gzip: unpack it first (gunzip, or tar xzf)",
    b"BZh": "is compressed by bzip2: unpack it first (bunzip2, or tar xjf)",
    b"\xfd7zXZ": "is compressed by xz: unpack it first (unxz, or tar xJf)",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it first (unzstd)",
    b"7z\xbc\xaf": "is a 7-Zip archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"GGUF": "is a GGUF file of llama.cpp: convert the model's safetensors instead",
    b"\x89HDF": "is an HDF5 file, such as Keras writes, not a file of torch.save or safetensors",
    b"\x93NUMPY": "is an array of NumPy, not a file of torch.save or safetensors",
    b"PAR1": "is a Parquet table, not weights",
    b"PK\x05\x06": "is a zip archive that holds nothing",
    b"PK\x03\x04": "is a zip file, as torch.save writes it: call it NAME.pt",
}
# Beginnings of the names of Python objects in a .pt file -> what it holds, and what to do.
FOREIGN: dict[tuple[str, ...], str] = {
    ("torch.nn.modules.",): f"It is a whole module, not its weights; {SAVE_STATE}",
    ("deepspeed.",): "It is of DeepSpeed; join its files first with the zero_to_fp32.py beside them",
    ("torch.distributed.", "torch.nn.parallel."): "It holds pieces of distributed tensors; gather the full state first",
    ("torch._utils._rebuild_qtensor", "torchao.", "bitsandbytes."): "Its weights are quantized; convert the originals",
    ("torch._utils._rebuild_tensor_v3",): "Its tensors have a dtype such as float8; save them as float32 or bfloat16",
    ("torch._utils._rebuild_meta",): "Its tensors hold no numbers (device='meta')",
    (
        "torch._utils._rebuild_device",
        "torch._utils._rebuild_xla",
    ): "Its tensors are of a device; save them from the CPU",
}
TEXT = re.compile(rb"[\t\n\r\x20-\x7e]+")
LEGACY_TAR = (b"sys_info", b"storages", b"tensors", b"pickle")


def kind(head: bytes) -> str:
    """What follows the name of a file that begins with `head`, its first `HEAD_BYTES`; "" if that tells nothing."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return SAFETENSORS  # first: the length at its begin may look like the signature of another
    if said := stand_in(head):
        return said
    for start, said in KINDS.items():
        if head.startswith(start):
            return said
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        torch = head[1:2] == b"\x02"
        what = "legacy pickle format of torch < 1.6" if torch else f"plain pickle format (protocol {head[1]})"
        return f"is in the {what}; convert it where torch is installed: {SAVE_AGAIN}"
    if head[257:262] == b"ustar":
        name = head[:100].rstrip(b"\0").decode("utf-8", "replace")
        if name.encode().startswith(LEGACY_TAR):
            return f"is in the legacy tar format of torch < 0.2; convert it where torch is installed: {SAVE_AGAIN}"
        return f"is a tar archive that begins with {name!r}: unpack it first (tar xf)"
    if TEXT.fullmatch(head):
        begin = head[:40].decode()
        return f"is a text that begins with {begin!r}, not weights: name another file, or download it again"
    return ""


def foreign(names: Iterable[str]) -> str:
    """What a .pt file is that names these Python objects (`module.name`), and what to do."""
    names = tuple(names)
    for starts, said in FOREIGN.items():
        if any(name.startswith(starts) for name in names):
            return said
    return "Save a file with only the state_dict, or turn these objects into plain Python values first"
