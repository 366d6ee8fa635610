"""Makes the ``.pt`` files beside it and the arrays expected from them. Run where torch is installed."""

# pyright: reportMissingImports=false

import pathlib
from collections import OrderedDict

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 3)
        self.norm = torch.nn.BatchNorm1d(3)


def save(name: str, tree: dict) -> None:
    """Writes NAME.pt, and NAME.npz with every tensor of the (one level) dict; bfloat16 as its bits, uint16."""
    torch.save(tree, HERE / f"{name}.pt")
    arrays = {}
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().resolve_conj()
            arrays[key] = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def main() -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    save(
        "dtypes",
        {
            str(dtype).removeprefix("torch."): (torch.randn(3, 4) * 50).to(dtype)
            for dtype in (
                *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
                *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
            )
        }
        | {"uint8": torch.arange(12, dtype=torch.uint8)},
    )
    save(
        "views",
        {
            "base": base,
            "row": base[2],
            "column": base[:, 3],
            "transposed": base.T,
            "strided": base[1::2, ::3],
            "expanded": base[:1].expand(4, 8),
            "permuted": base.reshape(2, 3, 8).permute(2, 0, 1),
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 7),
            "one": base[4:5, 5:6],
        },
    )
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.float64(1e-3))
    model.norm(model.linear(torch.randn(4, 5))).square().sum().backward()
    optimizer.step()
    checkpoint = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "plain": OrderedDict(a=[1, 2.5, None, True], b=("x", -7, 2**40, "größe"), c={3: {}, ("k", 1): []}),
        "number": np.float64(0.1),
    }
    torch.save(checkpoint, HERE / "checkpoint.pt")
    np.savez_compressed(
        HERE / "checkpoint.npz",
        **{f"model/{key}": value.numpy() for key, value in model.state_dict().items()},
        **{f"moment/{index}": state["exp_avg"].numpy() for index, state in optimizer.state_dict()["state"].items()},
    )
    torch.save({"a": base}, HERE / "legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
