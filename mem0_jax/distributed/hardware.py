"""Hardware by name: the mesh, the devices it takes and the lanes of a batch they share.

A name with a number is a slice of so many chips (v5p counts two cores a chip, as its maker does). `data` and `fsdp`
split the lanes, so their product divides `lanes`. One lane a device of 56 frames is the reference's batch.
"""

from typing import Any


def _hardware(devices: int, mesh: str, lanes: int) -> dict[str, Any]:
    return {"devices": devices, "mesh": mesh, "lanes": lanes}


FIRST = "first"  # device, whatever others there are
HARDWARE: dict[str, dict[str, Any]] = {
    FIRST: _hardware(1, "data=1", 16),
    "cpu": _hardware(1, "data=1", 16),
    "cpu2": _hardware(2, "data=2", 16),  # two processes of one machine, to try a mesh
    "gpu1": _hardware(1, "data=1", 8),
    "gpu2": _hardware(2, "fsdp=2", 8),
    "gpu4": _hardware(4, "fsdp=4", 8),
    "gpu8": _hardware(8, "fsdp=8", 8),
    "gpu16": _hardware(16, "data=2,fsdp=8", 16),  # nodes of eight, whose links are faster than those between nodes
    "gpu32": _hardware(32, "data=4,fsdp=8", 32),
    "v5e-8": _hardware(8, "fsdp=8", 8),
    "v5e-16": _hardware(16, "fsdp=16", 16),
    "v5e-256": _hardware(256, "data=16,fsdp=16", 256),
    "v6e-8": _hardware(8, "fsdp=8", 16),
    "v5p-64": _hardware(32, "fsdp=32", 32),
}
