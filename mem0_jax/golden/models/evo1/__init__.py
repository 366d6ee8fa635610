"""The numbers of EVO1's references, LeRobot's and the authors', and what of ours they are compared with."""

from pathlib import Path
from typing import Any

from mem0_jax.golden.models.evo1.folder import Golden
from mem0_jax.golden.models.evo1.stages import processors, sampling, stages
from mem0_jax.golden.models.evo1.training import training
from mem0_jax.golden.models.evo1.variants import authors, heads, variants
from mem0_jax.golden.numbers import check_same_model
from mem0_jax.progress import Progress
from mem0_jax.reference import Report

PARTS = (processors, stages, sampling, variants, heads, authors, training)


class Numbers:
    """See `mem0_jax.golden.numbers.Numbers`."""

    files = ("config.json", "golden.npz", "pretrained_model/model.safetensors", "vlm/config.json", "vlm/tokenizer.json")

    def replay(self, folder: Path, bundle: Any | None, report: Report) -> None:
        """Replays a folder."""
        with Progress(f"opening {folder}"):
            golden = Golden(folder)
        if bundle is not None:
            check_same_model(bundle.config, golden.config)
            golden.params = bundle.params
        with Progress("compiling and replaying", len(PARTS), "part") as progress:
            for part in progress.over(PARTS):
                part(golden, report)


NUMBERS = Numbers()
