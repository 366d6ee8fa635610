"""An EVO1 of the demo's size from random weights, for a CPU: to try a dataset with one picture and no memory.

mem0-jax train --config=evo1_small --workdir=runs/evo1_small --config.data.datasets="('runs/demo/dataset',)"
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mem0_jax.config import from_dict
from mem0_jax.family import policy_family
from mem0_jax.train.config import TrainSettings
from mem0_jax.train.job import DataSettings, Job

WIDTH = 96
MODEL = {
    "backbone": {
        "text": {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "intermediate_size": 192,
            "rope_theta": 1e4,
        },
        "vision": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 8,
        },
    },
    "head": {
        "width": WIDTH,
        "hidden_size": 128,
        "state_hidden_size": 96,
        "num_heads": 4,
        "num_layers": 3,
        "action_dim": 16,
        "state_dim": 16,
        "horizon": 30,
    },
    "flow": {"draws": 4, "solver_steps": 8},
    "views": 1,
}


def get_config() -> ConfigDict:
    """Batches of 16 single frames in a random order, one rate for everything."""
    rate = 1e-3
    data = DataSettings(
        datasets=("runs/demo/dataset",),
        camera_size=(64, 64),
        resample="bicubic_once",
        deploy_resample="bicubic_once",
        tokenizer="words",
        max_length=32,
        jitter=0.08,
        held_out=8,
        schedule="shuffled",
        cache_gib=2.0,
        threads=1,
        prefetch=4,
    )
    train = TrainSettings(
        steps=6000,
        batch_size=16,
        lanes=16,
        learning_rates={"backbone": rate, "head": rate},
        floors={"backbone": 0.0, "head": 0.0},
        precision="float32",
        log_every=50,
        save_every=1000,
        validate_every=1000,
    )
    model = from_dict(policy_family("evo1").config, MODEL)
    return ConfigDict(asdict(Job(data, model, train, policy="evo1")))
