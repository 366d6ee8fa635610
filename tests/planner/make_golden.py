"""Writes assets/generation.npz with torch and transformers: what Hugging Face answers, greedily and in float32.

python tests/planner/make_golden.py        # in an environment with torch, transformers and this project
"""

from pathlib import Path

import numpy as np
from random_models import CONFIGS, hugging_face, prompts

SEED, NEW = 1, 40
FILE = Path(__file__).parent / "assets" / "generation.npz"


def main() -> None:
    """Asks each model the prompts as one batch."""
    made = {}
    for name in CONFIGS:
        _, processor, ask = hugging_face(name, SEED)
        asked = prompts(SEED)
        for number, tokens in enumerate(ask(asked, NEW)):
            made[f"{name}/answer_{number}"] = np.array(tokens, np.int16)
            print(name, number, len(tokens), "tokens,", len(set(tokens)), "different", flush=True)
        for number, image in enumerate(image for prompt in asked for image in prompt.images):
            seen = processor(image, return_tensors="np")
            made[f"{name}/grid_{number}"] = seen["image_grid_thw"][0]
            made[f"{name}/patches_{number}"] = np.round((seen["pixel_values"] + 1) * 127.5).astype(np.uint8)
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **made)


if __name__ == "__main__":
    main()
