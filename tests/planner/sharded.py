"""Answers the golden prompts with a bundle read into shards, on as many devices as there are; run by test_sharded."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import random_models

from mem0_jax.backbones.qwen3_vl.generate import Settings
from mem0_jax.config import to_dict
from mem0_jax.distributed.mesh import parse_mesh
from mem0_jax.planner.local import IMAGES, load_generator
from mem0_jax.policies.bundle import new_folder, save_params, write_description


def main(folder: Path, mesh: str) -> None:
    config = random_models.CONFIGS["untied"]
    with new_folder(folder) as unfinished:
        write_description(unfinished, config, **{IMAGES: to_dict(random_models.BOUNDS["untied"])})
        random_models.tokenizer().save(str(unfinished / "tokenizer.json"))
        save_params(unfinished, random_models.params(config, 1))
    generator: Any = load_generator(folder, mesh=parse_mesh(mesh), context=100, batch=4)
    compiled: list[str] = []
    generator.warm_up()
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **about: compiled.append(event))
    kernel = generator.weights["language_model"]["layers"][0]["mlp"]["up_proj"]["kernel"]
    answers = generator.generate(random_models.prompts(1), Settings(max_tokens=40))
    late = [event for event in compiled if event.endswith("backend_compile_duration")]
    small = load_generator(folder, mesh=parse_mesh(mesh), int8=True)
    rounded = small.generate(random_models.prompts(1)[2:3], Settings(max_tokens=8))[0].tokens
    shard = list(kernel.sharding.shard_shape(kernel.shape))
    print(json.dumps({"shard": shard, "late": late, "answers": [answer.tokens for answer in answers], "int8": rounded}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
