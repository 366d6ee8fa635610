"""Measure how fast batches are ready: our lanes against bare decoding, packed shards and LeRobot's own loader.

All runs take turns in one process tree, so that a busy machine slows all of them alike; ratios are formed within a
repetition, and their spread is reported. Episodes are 240x320 AV1 as RMBench's converters write them (one mp4 an
episode, a keyframe every second picture, crf 30), with textures that give a simulator's 5 to 7 KB a picture.

    python scripts/bench_data.py --out /tmp/bench
    python scripts/bench_data.py --out /tmp/bench --lerobot-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21
from mem0_jax.data.pack import pack
from mem0_jax.data.packed import PackedDataset
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.video_join import EncodedVideo
from mem0_jax.progress import Progress
from mem0_jax.resize import resize

HEIGHT, WIDTH, SIZE, HORIZON, FPS = 240, 320, (224, 224), 30, 30
CAMERA = "observation.image.head_camera"
SHAPES = ((8, 56), (8, 7))  # lanes, frames of a window

# Runs in the other interpreter: reads frames in order to the last, prints their number, wall time after the first batch
# and processor time of all processes.
LEROBOT = """
import json, resource, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, frames, horizon, fps, side, backend = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
def used():
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)
def main():
    delta = {"action": [i / fps for i in range(horizon)]}
    resize = None
    if side:
        from torchvision.transforms import v2
        resize = v2.Resize((side, side))
    dataset = LeRobotDataset(
        "bench/data", root=root, delta_timestamps=delta, video_backend=backend, image_transforms=resize
    )
    part, before = torch.utils.data.Subset(dataset, range(frames)), used()
    batches = iter(torch.utils.data.DataLoader(part, batch_size=56, num_workers=2, shuffle=False))
    first = len(next(batches)["index"])
    start = time.perf_counter()
    count = sum(len(batch["index"]) for batch in batches)
    seconds = time.perf_counter() - start
    del batches
    print(json.dumps({"rate": count / seconds, "cpu_ms": 1000 * (used() - before) / (first + count)}))
if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True)
class Speed:
    """One run: frames a second of wall time, and milliseconds of processor time a frame (None if not known)."""

    rate: float
    cpu_ms: float | None


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the episodes; kept and used again")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--length", type=int, default=250, help="frames of an episode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=4000, help="frames of a run")
    parser.add_argument("--processors", type=int, default=2, help="use only this many")
    parser.add_argument("--lerobot-python", type=Path, help="an interpreter that has lerobot, 0.3 or later")
    parser.add_argument("--lerobot-backend", default="pyav", help="pyav or torchcodec")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.lerobot_python and not args.lerobot_python.is_file():
        parser.error(f"--lerobot-python: {args.lerobot_python} does not exist; give the path of an interpreter")
    if min(args.episodes, args.length, args.repeats, args.frames, args.processors) < 1:
        parser.error("--episodes, --length, --repeats, --frames and --processors must be positive")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.processors])
    os.environ["JAX_PLATFORMS"] = "cpu"
    cv2.setNumThreads(1)
    data = make_data(args.out, args.episodes, args.length)
    results = measure(runs_of(data, args), args.repeats)
    report = summarise(results, data, args)
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    return 0


# The episodes


def scene(episode: int, length: int) -> np.ndarray:
    """Pictures uint8 [length, H, W, 3]: a textured table under a still camera, moving boxes, a little noise."""
    rng = np.random.default_rng(episode)
    table = rng.uniform(60, 200, 3) + cv2.GaussianBlur(rng.normal(0, 150, (HEIGHT, WIDTH, 3)), (0, 0), 2.2)
    boxes = [(rng.uniform(0.2, 0.8, 2), rng.uniform(-0.25, 0.25, 2), rng.uniform(0, 255, 3)) for _ in range(6)]
    noise = rng.normal(0, 2.0, (8, HEIGHT, WIDTH, 3))
    pictures = np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(length):
        picture = table.copy()
        for centre, reach, colour in boxes:
            x, y = (centre + reach * np.sin(t / 40 + centre)) * (WIDTH, HEIGHT)
            corner = (int(x) - 16, int(y) - 16), (int(x) + 16, int(y) + 16)
            cv2.rectangle(picture, *corner, colour.tolist(), -1)
        pictures[t] = np.clip(picture + noise[t % 8], 0, 255)
    return pictures


def make_data(out: Path, episodes: int, length: int) -> dict[str, Path]:
    """Write the same episodes in v2.1, v3.0 and as packed shards, unless they are there."""
    out.mkdir(parents=True, exist_ok=True)
    name = f"{episodes}x{length}"
    paths = {form: out / f"{name}_{form}" for form in ("v21", "v30", "packed")}
    if not (paths["v21"].exists() and paths["v30"].exists()):
        features = staged_features(HEIGHT, WIDTH)
        with (
            LeRobotWriterV21(paths["v21"], FPS, features, "bench") as v21,
            LeRobotWriter(paths["v30"], FPS, features, "bench") as v30,
            Progress("encoding", episodes, "episode") as progress,
        ):
            for e in progress.over(range(episodes)):
                state = np.random.default_rng(e).normal(size=(length, 16)).astype(np.float32)
                video = out / f"episode_{e}.mp4"
                video.unlink(missing_ok=True)
                frames = {
                    "observation.state": state,
                    "action": np.roll(state, -1, 0),
                    CAMERA: EncodedVideo.encode(video, scene(e, length), length, fps=FPS),
                    "subtask": ["put the block back"] * length,
                    "subtask_end": (np.arange(length) >= length - 8).astype(np.int32),
                    "episode_id": np.full(length, e, np.int32),
                }
                v21.add_episode(frames, "bench")
                v30.add_episode(frames, "bench")
                video.unlink()
    if not paths["packed"].exists():
        pack(LeRobotDataset(paths["v21"]), paths["packed"], size=SIZE)
    return paths


# What is measured


def runs_of(data: dict[str, Path], args: argparse.Namespace) -> dict[str, Callable[[], Speed]]:
    """Return the runs by name."""
    videos = sorted(data["v21"].glob("videos/**/*.mp4"))
    files = (videos * (1 + args.frames // (len(videos) * args.length)))[: max(2, args.frames // args.length)]
    pool = multiprocessing.get_context("spawn").Pool(args.processors)
    pool.map(decode_file, videos[:1] * args.processors)  # starts the processes, and fills the file cache
    threads = ThreadPoolExecutor(args.processors)
    runs: dict[str, Callable[[], Speed]] = {
        "bare decoding, threads": lambda: bare(lambda: sum(threads.map(decode_file, files))),
        "bare decoding, processes": lambda: bare(lambda: sum(pool.map(decode_file, files, chunksize=1)), pool),
    }
    video, packed = LeRobotDataset(data["v21"]), PackedDataset(data["packed"])
    for form, dataset in (("video", video), ("packed", packed)):
        for lanes, frames in SHAPES:
            runs[f"{form} L={lanes} T={frames}"] = lambda d=dataset, n=lanes, t=frames: lanes_run(d, n, t, SIZE, args)
    if args.lerobot_python:
        lanes, frames = SHAPES[0]
        runs["lerobot, resized"] = lambda: lerobot_run(data, SIZE[0], args)
        runs["lerobot, camera's size"] = lambda: lerobot_run(data, 0, args)
        runs["video, camera's size"] = lambda: lanes_run(video, lanes, frames, None, args)
    return runs


def decode_file(path: Path) -> int:
    """Decode one mp4 from start to end by PyAV alone, convert to RGB and resize; return the number of pictures."""
    reformatter, count = VideoReformatter(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            resize(reformatter.reformat(frame, format="rgb24").to_ndarray(), SIZE, "bilinear")
            count += 1
    return count


def bare(work: Callable[[], int], pool: Any = None) -> Speed:
    """Time a decoding of several files; the processor time of another process is not known."""
    start, used = time.perf_counter(), time.process_time()
    frames = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    return Speed(frames / seconds, None if pool else 1000 * cpu / frames)


def lanes_run(dataset: Any, lanes: int, frames: int, size: tuple[int, int] | None, args: argparse.Namespace) -> Speed:
    """Time batches that are asked for as fast as they come, once what was prefetched at the start is used up."""
    source = LaneSource(dataset, lanes=lanes, frames=frames, horizon=HORIZON, seed=0, cameras={CAMERA: size})
    batches = max(2, round(args.frames / (lanes * frames)))
    with make_loader(source, threads=args.processors) as loader:
        for _ in range(4):
            next(loader)
        start, used = time.perf_counter(), time.process_time()
        for _ in range(batches):
            batch = next(loader)
            assert batch["images"][CAMERA].shape == (lanes, frames, *(size or (HEIGHT, WIDTH)), 3)
            assert batch["action"].shape == (lanes, frames, HORIZON, 16)
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
    source.close()
    count = batches * lanes * frames
    return Speed(count / seconds, 1000 * cpu / count)


def lerobot_run(data: dict[str, Path], side: int, args: argparse.Namespace) -> Speed:
    """Time LeRobot's loader with two workers, reading in order; `side` 0 leaves pictures as they are."""
    code = "import lerobot; print(lerobot.__version__)"
    asked = subprocess.run([args.lerobot_python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        sys.exit(f"{args.lerobot_python} cannot import lerobot; install it there:\n{asked.stderr[-500:]}")
    root = data["v21" if asked.stdout.startswith(("0.1", "0.2", "0.3")) else "v30"]
    frames = min(args.frames // 4, args.episodes * args.length)
    command = [args.lerobot_python, "-c", LEROBOT, root, frames, HORIZON, FPS, side, args.lerobot_backend]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"lerobot could not read {root}:\n{done.stderr[-2000:]}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def measure(runs: dict[str, Callable[[], Speed]], repeats: int) -> dict[str, list[Speed]]:
    """Run everything `repeats` times, in turns, each time starting with another."""
    results: dict[str, list[Speed]] = {name: [] for name in runs}
    names = list(runs)
    with Progress("measuring", repeats, "repetition") as progress:
        for repeat in progress.over(range(repeats)):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                results[name].append(runs[name]())
    return results


def stages(path: Path) -> dict[str, float]:
    """Processor milliseconds a frame of decoding, conversion to RGB and resizing, one after the other on one core."""
    spent = dict.fromkeys(("decode", "to RGB", "resize"), 0.0)
    reformatter, count = VideoReformatter(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = iter(container.decode(video=0))
        while True:
            marks = [time.thread_time()]
            frame = next(frames, None)
            if frame is None:
                break
            marks.append(time.thread_time())
            picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
            marks.append(time.thread_time())
            resize(picture, SIZE, "bilinear")
            marks.append(time.thread_time())
            for name, a, b in zip(spent, marks, marks[1:]):
                spent[name] += b - a
            count += 1
    return {name: 1000 * seconds / count for name, seconds in spent.items()}


# The report


def summarise(results: dict[str, list[Speed]], data: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Return medians and ranges of the speeds, and of the ratios within repetitions."""
    rates = {name: [speed.rate for speed in speeds] for name, speeds in results.items()}
    rates["bare"] = [max(pair) for pair in zip(rates["bare decoding, threads"], rates["bare decoding, processes"])]
    # A busy machine cannot distort processor time, while of wall time it gives more to a run of more threads.
    frames_a_ms = {name: [1 / (speed.cpu_ms or np.nan) for speed in speeds] for name, speeds in results.items()}
    frames_a_ms["bare"] = frames_a_ms["bare decoding, threads"]
    ratios = {}
    for lanes, frames in SHAPES:
        shape = f" L={lanes} T={frames}"
        goals = [("video" + shape, "bare", 0.8), ("packed" + shape, "video" + shape, 1.3)]
        if args.lerobot_python:
            goals.append(("video" + shape, "lerobot, resized", 10))
        if args.lerobot_python and not ratios:
            goals.append(("video, camera's size", "lerobot, camera's size", 10))
        for a, b, goal in goals:
            for what, of in (("wall time", rates), ("processor time", frames_a_ms)):
                ratios[f"{a} / {b} by {what} (goal {goal})"] = [x / y for x, y in zip(of[a], of[b])]
    del rates["bare"]
    videos = sorted(data["v21"].glob("videos/**/*.mp4"))
    shards = list(data["packed"].glob("*.array_record-*"))
    total = args.episodes * args.length
    return {
        "repeats": args.repeats,
        "processors": args.processors,
        "bytes_a_frame": {
            "video": sum(path.stat().st_size for path in videos) / total,
            "packed": sum(path.stat().st_size for path in shards) / total,
        },
        "frames_a_second": {name: spread(values) for name, values in rates.items()},
        "cpu_ms_a_frame": {
            name: spread([s.cpu_ms for s in speeds if s.cpu_ms is not None])
            for name, speeds in results.items()
            if speeds[0].cpu_ms is not None
        },
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "stages_ms_a_frame": stages(videos[0]),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def print_report(report: dict[str, Any]) -> None:
    """Print the tables, and what bounds the runs."""
    size = report["bytes_a_frame"]
    print(f"\n240x320 -> 224x224, {report['processors']} processors, median (range) of {report['repeats']}")
    print(f"video {size['video'] / 1000:.1f} KB a frame, packed {size['packed'] / 1000:.1f} KB a frame\n")
    for name, value in report["frames_a_second"].items():
        cpu = report["cpu_ms_a_frame"].get(name)
        used = f"   {cpu['median']:.2f} ms of processor time a frame" if cpu else ""
        print(f"{name:28} {value['median']:7.0f} frames/s ({value['min']:.0f} to {value['max']:.0f}){used}")
    print()
    for name, value in report["ratios"].items():
        print(f"{name:72} {value['median']:6.2f} ({value['min']:.2f} to {value['max']:.2f})")
    parts = ", ".join(f"{name} {value:.2f}" for name, value in report["stages_ms_a_frame"].items())
    print(
        f"\nWhat bounds them. Bare and video: processor time, in ms a frame: {parts}; what video"
        "\nadds is copying pictures into batches. Packed: decoding JPEGs of the final size, and the same copying."
        "\nLeRobot: opening and seeking the mp4 for every frame, float32 pictures, and 30 small tensors a frame.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
