"""Settings: the installed configurations, what presets and precisions mean, and what is refused."""

import dataclasses
import re
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
from jobs import write_config, write_dataset

from mem0_jax import tree
from mem0_jax.cli import main
from mem0_jax.commands.train import read_config
from mem0_jax.config import ConfigError, from_dict, to_dict
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.distributed.mesh import lane_shards, parse_mesh
from mem0_jax.errors import UserError
from mem0_jax.inference.session import Session
from mem0_jax.policies.bundle import load_bundle, save_bundle
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.policies.mem0.flops import parts
from mem0_jax.train.config import SettingsError
from mem0_jax.train.flops import peak_flops, training_flops
from mem0_jax.train.job import DataSettings, Job, TrainSettings
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.run import prepare

INSTALLED = ("m1_mix", "m1_task", "mn_task", "lora_24gb", "small")


def job(name: str, *overrides: str) -> Job:
    return from_dict(Job, read_config(name, overrides, Job))


def trained(job: Job) -> tuple[set[str], set[str]]:
    """Paths that are trained, and those kept in bfloat16."""
    policy = Mem0(job.model)
    policy = LoraPolicy(policy, job.lora) if job.lora else policy
    paths = set(tree.flatten(jax.eval_shape(policy.init, jax.random.key(0))))
    config = job.train_config()
    left = tree.select(policy.no_gradient, paths, "no_gradient") | tree.select(config.freeze, paths, "freeze")
    return paths - left, tree.select(config.bfloat16, paths, "bfloat16")


@pytest.mark.parametrize("name", INSTALLED)
def test_installed_configurations_are_complete_and_fit_together(name):
    settings = job(name)
    config = settings.train_config()
    assert config.lanes * settings.frames == settings.train.batch_size
    assert trained(settings)[0]
    # Every field of a job can be set on the command line.
    assert from_dict(Job, asdict(settings)) == settings


def test_the_recipe_is_the_reference_s():
    """Numbers of RMBench, policy/Mem-0/source/config/execution_module_train.yaml."""
    settings = job("m1_mix")
    config, optimizer = settings.train_config(), settings.train_config().optimizer
    assert optimizer.learning_rates == {"backbone": 1e-5, "action": 1e-4, "classifier": 1e-4, "memory": 1e-5}
    assert optimizer.floors == {"backbone": 1e-6, "action": 5e-6, "classifier": 5e-6, "memory": 1e-6}
    assert (optimizer.warmup_ratio, optimizer.weight_decay, optimizer.clip_norm) == (0.05, 0.005, 2.5)
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.schedule) == (0.9, 0.999, 1e-8, "cosine")
    assert (settings.train.batch_size, settings.lanes, settings.frames) == (448, 8, 56)
    assert (config.steps, job("m1_task").train.steps) == (50000, 30000)
    assert (config.log_every, config.save_every, config.metrics_window, config.seed) == (10, 1000, 20, 42)
    assert settings.model == dataclasses.replace(Mem0Config(), remat=True)
    assert (settings.model.lambda_action, settings.model.lambda_classifier) == (1.0, 0.2)
    data = settings.data
    assert (data.camera_size, data.resample, data.deploy_resample) == ((224, 224), "bilinear", "bicubic")
    assert (data.jitter, data.normalization, data.max_length) == (0.1, "min_max", 128)


def test_presets_say_what_is_trained_and_precisions_how_it_is_kept():
    every = {f"--config.train.preset={preset}": preset for preset in ("full", "action_expert_only", "lora")}
    by_preset = {
        preset: trained(job("small", "--config.train.precision=mixed", flag)) for flag, preset in every.items()
    }
    full, kept = by_preset["full"]
    assert {path.split("/")[0] for path in full} == {"backbone", "memory", "action", "classifier"}
    assert not kept
    action, kept = by_preset["action_expert_only"]
    assert {path.split("/")[0] for path in action} == {"action"}
    assert {path.split("/")[0] for path in kept} == {"backbone", "memory"}
    lora, kept = by_preset["lora"]
    backbone = {path for path in lora if path.startswith("backbone/")}
    assert len(backbone) == 2 * 7
    assert all(re.fullmatch(r".*_proj/lora_[ab]", path) for path in backbone)
    assert {path for path in full if not path.startswith("backbone/")} < lora
    assert all(path.startswith("backbone/") and "lora" not in path for path in kept)
    reference = trained(job("small", "--config.train.precision=reference"))
    assert reference[0] == full
    assert {path.split("/")[0] for path in reference[1]} == {"backbone", "memory"}
    assert not trained(job("small", "--config.train.precision=float32", "--config.train.preset=lora"))[1]
    assert job("small").compute_dtype == "float32"
    assert job("m1_mix").compute_dtype == "bfloat16"


@pytest.mark.parametrize("name", HARDWARE)
def test_lanes_divide_among_the_devices(name):
    hardware = HARDWARE[name]
    sizes = parse_mesh(hardware["mesh"])
    assert sizes["data"] * sizes["fsdp"] * sizes["tensor"] == hardware["devices"]
    assert hardware["lanes"] % lane_shards(sizes) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=small", "--config.train.stepz=3"], "no field 'stepz', did you mean 'steps'?"),
        (["--config=small", "--config.policy=mem1"], "there is no model 'mem1'"),
        (["--config=small", "--config.policy=qwen3_vl"], "is a backbone alone"),
        (["--config=small", "--config.train.learning_rates.actoin=3"], "did you mean 'action'?"),
        (["--config=small", "--config.train.steps.x=3"], "--config.train.steps has no field 'x'"),
        (["--config=small", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--config=small", "--config.train.preset=lora_all"], "expected one of 'full'"),
        (["--config=small", "--config.train.batch_size=17"], "choose a multiple of 16"),
        (["--config=small", "--config.hardware=v5e-17"], "expected one of first, cpu"),
        (["--config=small", "--config.data.datasets=()"], "name at least one"),
        (["--config=small", "--config.data.datasets=('nowhere',)"], "nowhere/meta/info.json is missing"),
        (["--config=small", "--config.data.held_out=0"], "nothing to validate on"),
        (["--config=small", "--config.data.tokenizer="], "name a tokenizer.json"),
        (["--config=smal"], "did you mean 'small'?"),
        (["--config=small", "--steps=3"], "settings are given as --config.path=value"),
    ],
)
def test_what_is_wrong_is_named(arguments, message, tmp_path, capsys):
    assert main(["train", f"--workdir={tmp_path / 'run'}", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_policy_knows_the_camera_it_is_trained_on(tmp_path):
    wrist = "observation.images.wrist"
    config = write_config(tmp_path, write_dataset(tmp_path / "dataset", camera=wrist))
    prepared = prepare(job(str(config), f"--config.data.camera={wrist}"))
    folder = save_bundle(prepared.lessons.bundle(prepared.policy.init(jax.random.key(0))), tmp_path / "bundle")
    bundle = load_bundle(folder)
    assert (bundle.inputs.cameras[0].feature, bundle.transform.cameras) == (wrist, ("wrist",))
    with pytest.raises(UserError, match=r"trained on the camera 'wrist', the observation has 'head_camera'"):
        Session(bundle).observe({"observation": {"head_camera": {"rgb": np.zeros((32, 32, 3), np.uint8)}}})


def test_hardware_that_is_not_there_is_named(tmp_path, capsys):
    flags = ["--config=small", "--config.hardware=gpu8", "--config.train.batch_size=32"]
    assert main(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 1
    assert "has 8 devices" in capsys.readouterr().err


def test_a_file_without_get_config_is_named(tmp_path, capsys):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    assert main(["train", f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 1
    assert "defines no get_config()" in capsys.readouterr().err


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(SettingsError, match="nothing to validate on"):
        Job(DataSettings(("d",), tokenizer="words"), train=TrainSettings(validate_every=5, lanes=8))
    with pytest.raises(SettingsError, match="3 equal parts; choose a multiple of 24"):
        Job(DataSettings(("d",), tokenizer="words"), train=TrainSettings(batch_size=56, lanes=8, accumulate=3))


def test_operations_by_formula():
    """Against products counted by hand: a layer's weights times tokens times two, modules trained or not."""
    config = Mem0Config()
    forward = {name: part.operations for name, part in parts(config, 128).items()}
    # 28 layers of 50.3 M weights and 24 of 12.6 M, twice their tokens; heads and attention come on top.
    assert forward["backbone"] == pytest.approx(2 * 128 * 28 * 50.33e6 + 2 * 256 * 24 * 12.58e6, rel=0.1)
    assert forward["classifier"] == pytest.approx(2 * (2 * 6144 * 2048 + 2048**2 + 2 * 2048 * 512 + 512**2))
    whole = training_flops(config, 128, ["backbone/k/kernel", "memory/k/kernel", "action/kernel", "classifier/kernel"])
    assert whole == pytest.approx(3 * sum(forward.values()))
    action = training_flops(config, 128, ["action/blocks/kernel"])
    assert action == pytest.approx(sum(forward.values()) + 2 * forward["action"])
    lora = training_flops(config, 128, ["backbone/x/lora_a", "backbone/x/lora_b"])
    assert lora == pytest.approx(2 * sum(forward.values()))
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("cpu") is None


def test_configurations_are_found_by_path_and_by_name():
    root = Path(__file__).parents[2]
    assert read_config(str(root / "configs" / "small.py"), []) == read_config("small", [])
    assert read_config("configs/small.py", ["--config.train.steps=7"])["train"]["steps"] == 7


def test_job_files_from_before_jobs_named_a_policy_are_read(tmp_path):
    """As their authors wrote them: no policy, rates by a class of their own, settings of the model written over."""
    path = tmp_path / "old.py"
    path.write_text(
        "from dataclasses import asdict\n"
        "from ml_collections import ConfigDict\n"
        "from mem0_jax.train.job import DataSettings, Job, Rates, TrainSettings\n"
        "def get_config():\n"
        "    train = TrainSettings(learning_rates=Rates(1e-3, 2e-3, 3e-3, memory=4e-3), batch_size=16)\n"
        "    config = ConfigDict(asdict(Job(DataSettings(('d',)), train=train, init_from='bundle')))\n"
        "    config.model.remat = True\n"
        "    config.train.floors.backbone = 1e-7\n"
        "    return config\n"
    )
    read = job(str(path), "--config.train.learning_rates.action=0.5")
    assert (read.policy, read.model.remat) == ("mem0", True)
    assert read.train.learning_rates == {"backbone": 1e-3, "action": 0.5, "classifier": 3e-3, "memory": 4e-3}
    assert read.train.floors["backbone"] == 1e-7
    settings = to_dict(read)
    del settings["policy"]  # as in the job.json of a run begun before
    assert from_dict(Job, settings) == read


def test_a_job_takes_from_its_policy_what_it_leaves_open_and_no_other_names():
    data = DataSettings(("d",), tokenizer="words")
    bare = Job(data, policy="mem0")
    assert bare == Job(data)
    assert bare == Job(data, Mem0Config())
    assert bare.train.learning_rates["action"] == 1e-4
    rates = dict(bare.train.learning_rates)
    with pytest.raises(SettingsError, match=r"'actoin' is no group of the policy, did you mean 'action'\?"):
        Job(data, train=TrainSettings(learning_rates={"actoin": rates.pop("action"), **rates}))
    with pytest.raises(UserError, match=r"there is no model 'mem1'.*did you mean 'mem0'"):
        Job(data, policy="mem1")
    with pytest.raises(SettingsError, match="a Qwen3VLConfig is no configuration of 'mem0'"):
        Job(data, Mem0Config().backbone, policy="mem0")
    with pytest.raises(ConfigError, match=r"Job.policy: there is no model 'mem1'.*did you mean 'mem0'"):
        from_dict(Job, to_dict(bare) | {"policy": "mem1"})
