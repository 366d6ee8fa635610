"""The demo: a small Mem-0 that learns a tabletop memory task from scratch on one CPU core in minutes.

Found on validation seeds; the demo reports figures on test seeds that were not used here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All settings of `mem0-jax demo`."""
    width = 96
    return ConfigDict(
        {
            "data": {"episodes": 400, "camera_size": (64, 64), "max_length": 18, "jitter": 0.08},
            "policy": "mem0",
            "model": {
                "backbone": {
                    "text": {
                        "hidden_size": width,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 4,
                        "num_key_value_heads": 2,
                        "head_dim": 24,
                        "intermediate_size": 192,
                        "rope_theta": 1e4,
                        "mrope_section": (4, 4, 4),
                    },
                    "vision": {
                        "depth": 2,
                        "hidden_size": 64,
                        "intermediate_size": 128,
                        "num_heads": 4,
                        "num_position_embeddings": 64,
                        "deepstack_visual_indexes": (0,),
                        "temporal_patch_size": 1,
                        "out_hidden_size": width,
                    },
                },
                # A window that reaches back to the first grasp tempts the policy to look for the past at a fixed age,
                # which fails when an episode runs slower; with a short one it learns to read the anchor.
                "memory": {"window_size": 8, "num_heads": 4, "dropout": 0.0},
                "flow": {"draws": 4},
                "action": {
                    "width": 64,
                    "num_heads": 4,
                    "num_layers": 4,
                    "context_width": width,
                    "hidden_size": 128,
                    "output_dim": 128,
                    "horizon": 6,
                    "max_positions": 16,
                    "dropout": 0.0,
                },
                "classifier": {"hidden_sizes": (3 * width, 128, 64), "dropout": 0.0},
                "image_size": (64, 64),
                "dtype": "float32",
            },
            "train": {
                "steps": 17000,
                "lanes": 16,
                "learning_rate": 1.2e-3,
                "floor": 0.03,
                "warmup_steps": 50,
                "b2": 0.99,
            },
            "eval": {"episodes": 100, "n_action_steps": 3, "recorded": 3},
        }
    )
