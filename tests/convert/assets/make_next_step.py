"""Makes next_step.npz: what torch does next with tests/model/assets/tiny_a/step3.pt. Run where torch is installed."""

# pyright: reportMissingImports=false

import math
import pathlib
import zlib
from typing import Any

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parents[1] / "model" / "assets" / "tiny_a"
BUFFERS = {"classifier.pos_weight"}
TIED = {"qwen_model.model.lm_head.weight"}
# config.json of the folder: warm-up 0.05 of 40 steps, cosine to the floors.
TOTAL, WARMUP = 40, 2
FLOORS = {"qwen_model": 1e-6, "action_model": 5e-6, "classifier": 5e-6, "base": 1e-6}
CLIP = 2.5


def gradient(name: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    """Any numbers will do, if they can be made again."""
    rng = np.random.Generator(np.random.Philox(key=[zlib.crc32(name.encode()), step]))
    return (0.01 * rng.standard_normal(shape)).astype(np.float32)


def main() -> None:
    checkpoint = torch.load(GOLDEN / "step3.pt", weights_only=False)
    state = {k: v for k, v in checkpoint["model_state_dict"].items() if k not in BUFFERS | TIED}
    params = {name: torch.nn.Parameter(value.clone()) for name, value in state.items()}
    groups = []
    for group in checkpoint["optimizer_state_dict"]["param_groups"]:
        others = tuple(f"{name}." for name in FLOORS if name != "base")
        title = group["name"]
        mine = [n for n in params if (not n.startswith(others) if title == "base" else n.startswith(title + "."))]
        groups.append({"params": [params[n] for n in mine], "lr": group["initial_lr"], "name": title})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.005)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [schedule(g["lr"], FLOORS[g["name"]]) for g in groups])
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
    trained = set(checkpoint["optimizer_state_dict"]["state"])
    numbered = [n for group in groups for n in (names_of(group, params))]
    for step in (3, 4):
        for i, name in enumerate(numbered):
            if i in trained:
                params[name].grad = torch.from_numpy(gradient(name, tuple(params[name].shape), step))
        torch.nn.utils.clip_grad_norm_([p for p in params.values() if p.grad is not None], CLIP)
        optimizer.step()
        scheduler.step()
    after: dict[str, Any] = {name: summary(param.detach().numpy()) for name, param in params.items()}
    np.savez_compressed(HERE / "next_step.npz", **after)


def names_of(group, params) -> list[str]:
    by_id = {id(p): n for n, p in params.items()}
    return [by_id[id(p)] for p in group["params"]]


def schedule(rate: float, floor: float):
    def factor(step: int) -> float:
        rising = step / WARMUP
        falling = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))
        return (rising if step < WARMUP else falling) * (1 - floor / rate) + floor / rate

    return factor


def summary(value: np.ndarray) -> np.ndarray:
    """float64 [18]: norm, sum, and sixteen of the values spread over the array."""
    flat = value.astype(np.float64).ravel()
    return np.array([np.linalg.norm(flat), flat.sum(), *flat[np.linspace(0, flat.size - 1, 16).astype(int)]])


if __name__ == "__main__":
    main()
