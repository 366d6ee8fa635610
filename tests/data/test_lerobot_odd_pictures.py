"""Pictures and videos of other writers, odd in one way each: shown as recorded, or refused with the reason."""

import functools
import io
import itertools
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from episodes import CAMERA, picture, read_code
from odd_sets import LENGTHS, edit_data, edit_features, with_column, write_set
from PIL import Image

from mem0_jax.data.check import check_dataset
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.pack import pack
from mem0_jax.data.show import show_dataset
from mem0_jax.errors import UserError

HEIGHT, WIDTH = 64, 96
AS_PNG = "expected PNG, JPEG, .* or PPM: convert the pictures to PNG"
AS_MP4 = r"expected .*: convert it: ffmpeg -i \S*file-000.mp4 -c:v libx264 .* new.mp4"
FRAMES = [(e, i) for e, length in enumerate(LENGTHS) for i in range(length)]


@dataclass(frozen=True)
class Odd:
    """A way to bend a set.

    Attributes:
        bend: changes the files below a folder.
        refused: "" where the pictures are as recorded, else a pattern of the error.
        found: a pattern of the only findings of a check besides; "" for none.
    """

    bend: Callable[[Path], Any]
    refused: str = ""
    found: str = ""


# Declared shapes


def declared(shape: Any, names: Any = None, **more: Any) -> Callable[[Path], None]:
    key = CAMERA.replace(".", "__")
    return lambda root: edit_features(root, **{key: {"shape": shape, "names": names, **more}})


SHAPES = {
    "c, h, w": Odd(declared([3, 64, 96], ["c", "h", "w"])),
    "channels first": Odd(declared([3, 64, 96], ["channels", "height", "width"])),
    "Channel, Height, Width": Odd(declared([3, 64, 96], ["Channel", "Height", "Width"])),
    "rgb first": Odd(declared([3, 64, 96], ["rgb", "height", "width"])),
    "channels first without names": Odd(declared([3, 64, 96])),
    "channels first, empty names": Odd(declared([3, 64, 96], [])),
    "channels first, names that do not tell": Odd(declared([3, 64, 96], ["r", "g", "b"])),
    "width first": Odd(declared([96, 64, 3], ["width", "height", "channel"])),
    "channels between": Odd(declared([64, 3, 96], ["h", "c", "w"])),
    "a name left out": Odd(declared([3, 64, 96], ["channels", None, "width"])),
    "names in an object": Odd(declared([3, 64, 96], {"axes": ["c", "h", "w"]})),
    "sizes in an object": Odd(declared([3, 64, 96], {"channels": 3, "height": 64, "width": 96})),
    "names in a list": Odd(declared([3, 64, 96], [["c", "h", "w"]])),
    "chw": Odd(declared([3, 64, 96], "chw")),
    "grey": Odd(declared([64, 96], ["height", "width"])),
    "grey without names": Odd(declared([64, 96])),
    "one channel": Odd(declared([64, 96, 1])),
    "four channels": Odd(declared([64, 96, 4], ["height", "width", "channels"])),
    "four channels first": Odd(declared([4, 64, 96])),
    "whole floats": Odd(declared([64.0, 96.0, 3.0], ["height", "width", "channels"])),
    "texts": Odd(declared(["64", "96", "3"]), "expected whole numbers above 0, without quotes", "whole numbers"),
    "fractions": Odd(declared([64.5, 96, 3]), "expected whole numbers above 0$", "whole numbers"),
    "nothing below 1": Odd(declared([-1, 96, 3]), "expected whole numbers above 0$", "whole numbers"),
    "empty": Odd(declared([]), r"shape \[\] .* expected height", r"shape \[\]"),
    "turned": Odd(declared([96, 64, 3]), "64x96, info.json declares 96x64.*names", "64x96, .* names"),
    "another size": Odd(declared([3, 48, 64]), "64x96, info.json declares 48x64", "declares 48x64"),
    "channels first by the sizes, last by the names": Odd(
        declared([3, 64, 96], ["height", "width", "channels"]),
        r"shape \[3, 64, 96\] .* read as height, width, channels, .* expected .* 1, 3 or 4 channels",
        "read as height, width, channels",
    ),
    "no channels": Odd(declared([64, 96, 64]), "expected height, width and 1, 3 or 4 channels", "1, 3 or 4"),
    "no shape": Odd(declared(None), "shape None .* expected height", "shape None"),
    "four axes": Odd(declared([1, 64, 96, 3]), "expected height", "expected height"),
}


# Image columns


def as_images(
    *encoders: Callable[[np.ndarray], bytes | None] | str,
    channels: int = 3,
    names: Callable[[Path, str], str] = lambda root, place: place,
) -> Callable[[Path], None]:
    """Put the pictures into an image column, encoded by each of `encoders` in turn; names are those of files beside."""

    def cell(root: Path, encoder: Callable[[np.ndarray], bytes | None] | str, e: int, i: int) -> dict[str, Any]:
        if callable(encoder):
            return {"bytes": encoder(picture(e, i)), "path": f"frame_{i:06d}.png"}
        place = root / f"{e}:{i} %d" / f"frame{encoder}"
        place.parent.mkdir()
        Image.fromarray(picture(e, i)).save(place)
        return {"bytes": None, "path": names(root, place.relative_to(root).as_posix())}

    def bend(root: Path) -> None:
        def change(table: pa.Table) -> pa.Table:
            numbers = zip(
                table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), itertools.cycle(encoders)
            )
            cells = [cell(root, encoder, e, i) for e, i, encoder in numbers]
            return with_column(table, CAMERA, pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})))

        edit_data(root, change)
        declared([HEIGHT, WIDTH, channels], ["height", "width", "channel"], dtype="image", info=None)(root)

    return bend


def pil(kind: str, mode: str = "RGB", **options: Any) -> Callable[[np.ndarray], bytes]:
    def encode(image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).convert(mode).save(out, kind, **options)
        return out.getvalue()

    return encode


def turned(kind: str) -> Callable[[np.ndarray], bytes]:
    def encode(image: np.ndarray) -> bytes:
        out, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        Image.fromarray(np.rot90(image)).save(out, kind, exif=exif, quality=95)
        return out.getvalue()

    return encode


def arrays(root: Path) -> None:
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    cells = lambda table: pa.array([picture(0, i).tolist() for i in range(len(table))], kind)  # noqa: E731
    edit_data(root, lambda table: with_column(table, CAMERA, cells(table)))
    declared([HEIGHT, WIDTH, 3], dtype="image", info=None)(root)


def sixteen_bits(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def depth(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., 0].astype(np.uint16) * 257)[1].tobytes()


def animated(image: np.ndarray) -> bytes:
    out, other = io.BytesIO(), Image.fromarray(255 - image)
    Image.fromarray(image).save(out, "WEBP", save_all=True, append_images=[other], lossless=True)
    return out.getvalue()


PALETTE = pil("PNG", "P", transparency=bytes(range(256)))
IMAGES = {
    **{f"{mode} PNG": Odd(as_images(pil("PNG", mode))) for mode in ("RGB", "RGBA", "L", "LA", "P")},
    "black and white PNG": Odd(as_images(pil("PNG", "1"))),
    "palette with transparency": Odd(as_images(PALETTE)),
    "16 bits a channel": Odd(as_images(sixteen_bits)),
    "WEBP": Odd(as_images(pil("WEBP", quality=90))),
    "WEBP with transparency": Odd(as_images(pil("WEBP", "RGBA", lossless=True))),
    "animation": Odd(as_images(animated)),
    "BMP": Odd(as_images(pil("BMP"))),
    "progressive JPEG": Odd(as_images(pil("JPEG", progressive=True))),
    "grey JPEG": Odd(as_images(pil("JPEG", "L"))),
    "CMYK JPEG": Odd(as_images(pil("JPEG", "CMYK"))),
    "turned JPEG": Odd(as_images(turned("JPEG"))),
    "of every kind": Odd(as_images(pil("PNG", "RGBA"), pil("WEBP"), PALETTE, pil("JPEG", "L"), pil("BMP"), ".png")),
    "in files beside": Odd(as_images(".png", ".webp", ".jpg")),
    "RGBA as declared": Odd(as_images(pil("PNG", "RGBA"), channels=4)),
    "grey as declared": Odd(as_images(pil("PNG", "L"), channels=1)),
    "depth": Odd(as_images(depth), "mode I;16, as depth maps have", "mode I;16"),
    "GIF": Odd(as_images(pil("GIF"))),
    "TIFF": Odd(as_images(pil("TIFF"), pil("TIFF", compression="tiff_lzw"), pil("TIFF", "L"))),
    "turned TIFF": Odd(as_images(turned("TIFF"))),
    "TIFF of depths": Odd(as_images(pil("TIFF", "F")), "mode F, as depth maps have", "mode F"),
    "TIFF of another space": Odd(as_images(pil("TIFF", "LAB")), "mode LAB; expected 8 bits", "mode LAB"),
    "PPM and PGM": Odd(as_images(pil("PPM"), pil("PPM", "L"))),
    "JPEG 2000": Odd(as_images(pil("JPEG2000")), f"a JPEG 2000; {AS_PNG}", "a JPEG 2000"),
    "AVIF": Odd(as_images(pil("AVIF")), f"an AVIF; {AS_PNG}", "an AVIF"),
    "cut off": Odd(as_images(lambda image: pil("PNG")(image)[:-40]), "a PNG that is damaged or cut", "a PNG that"),
    "arrays of pixels": Odd(arrays, "got list<.* encode arrays of pixels as PNG", "encode arrays of pixels"),
    "whole names of files beside": Odd(as_images(".png", names=lambda root, place: str(root.resolve() / place))),
    "whole names of files elsewhere": Odd(
        as_images(".png", names=lambda root, place: str(root.resolve().parent / place)),
        "leads outside the dataset",
        r"^episode ., frames 0-., observation.image.head_camera: '/",
    ),
    "LFS pointers": Odd(
        as_images(lambda image: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a Git LFS pointer",
        "is a Git LFS pointer",
    ),
    "empty files": Odd(as_images(lambda image: b""), "it is empty", "it is empty"),
    "empty cells": Odd(as_images(lambda image: None), "neither the image nor its file", "neither"),
}


# Videos


def again(
    change: Callable[[list[np.ndarray]], list[np.ndarray]] = lambda pictures: pictures,
    *,
    codec: str = "libx264",
    kind: str = "mp4",
    pixels: str = "yuv420p",
    times: Callable[[int], int] = lambda i: 100 * i,
    before: Callable[[Any, int], Any] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    plain: bool = False,
    options: dict[str, str] | None = None,
) -> Callable[[Path], None]:
    """Encode every video anew.

    Args:
        change: the pictures of a file.
        times: of picture i, in milliseconds.
        plain: times count the frames, as old containers want it.
        before: adds another stream and returns what writes into it.
    """

    def bend(root: Path) -> None:
        for path in sorted((root / "videos").rglob("*.mp4")):
            with av.open(str(path)) as source:
                pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
            # Pictures shown before 0 are kept, and hidden by an edit list.
            with av.open(str(path), "w", format=kind, options={"avoid_negative_ts": "disabled"}) as out:
                write = before(out, len(pictures)) if before else lambda: None
                stream: Any = out.add_stream(codec, rate=10, options={"crf": "18"} | (options or {}))
                stream.height, stream.width, stream.pix_fmt = *size, pixels
                stream.codec_context.time_base = Fraction(1, 10 if plain else 1000)
                write()
                for i, image in enumerate(change(pictures)):
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                    frame.pts, frame.time_base = (i if plain else times(i)), stream.codec_context.time_base
                    out.mux(stream.encode(frame))
                out.mux(stream.encode())

    return bend


def sound(out: Any, frames: int) -> Callable[[], None]:
    stream = out.add_stream("aac", rate=8000)
    stream.layout = "mono"

    def write() -> None:
        for i in range(frames):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 800 * i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())

    return write


def quarter_turn(root: Path) -> None:
    """Have players turn the pictures, as phones do."""
    again()(root)
    upright, turned = (
        struct.pack(">9i", *matrix, 1 << 30)
        for matrix in ((1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0), (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0))
    )
    for path in (root / "videos").rglob("*.mp4"):
        head, track = path.read_bytes().split(b"tkhd")
        path.write_bytes(head + b"tkhd" + track.replace(upright, turned, 1))


def headless(root: Path) -> None:
    """Leave the first keyframe out of every video, as cutting at any frame does."""
    again(options={"g": "250"})(root)
    for path in (root / "videos").rglob("*.mp4"):
        whole = io.BytesIO(path.read_bytes())
        with av.open(whole, "r") as source, av.open(str(path), "w", format="mp4") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size and not packet.is_keyframe:
                    packet.stream = stream
                    out.mux(packet)


def replaced(data: bytes) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        for path in (root / "videos").rglob("*.mp4"):
            path.write_bytes(data)

    return bend


VIDEOS = {
    "4:4:4": Odd(again(pixels="yuv444p")),
    "4:2:2 of 10 bits": Odd(again(pixels="yuv422p10le")),
    "grey": Odd(again(pixels="gray")),
    "full range": Odd(again(pixels="yuvj420p")),
    "RGB": Odd(again(codec="libx264rgb", pixels="rgb24")),
    "B-frames": Odd(again(options={"bf": "3", "g": "250"})),
    "open groups": Odd(again(options={"bf": "2", "g": "4", "x264-params": "open-gop=1"})),
    "times from 5 s on": Odd(again(times=lambda i: 5000 + 100 * i), found="starts at 5 s; LeRobot"),
    "hidden by an edit list": Odd(again(lambda p: [p[0]] * 30 + p, times=lambda i: 100 * (i - 30))),
    "uneven times": Odd(again(times=lambda i: 100 * i + 30 * (i % 2)), found="off its time"),
    "Matroska": Odd(again(kind="matroska")),
    "WebM": Odd(again(kind="webm", codec="libvpx-vp9")),
    "sound first": Odd(again(before=sound)),
    "turned": Odd(quarter_turn, found="shown turned by -?90 degrees"),
    "one frame more": Odd(again(lambda pictures: [*pictures, pictures[-1]]), found="of which the episodes use"),
    "one frame less": Odd(again(lambda pictures: pictures[:-1]), "holds 14 frames", "5 of 6"),
    "other sizes": Odd(again(lambda p: [x[:48, :64] for x in p], size=(48, 64)), "48x64, info.json", "48x64"),
    "another codec": Odd(again(codec="mjpeg", pixels="yuvj420p"), f"codec mjpeg; {AS_MP4}", "codec mjpeg"),
    "AVI": Odd(again(kind="avi", codec="mpeg4", plain=True), f"is an AVI video; {AS_MP4}", "an AVI"),
    "GIF": Odd(again(kind="gif", codec="gif", pixels="rgb8", plain=True), f"is a GIF; {AS_MP4}", "a GIF"),
    "MPEG-TS": Odd(again(kind="mpegts"), f"is an MPEG-TS video; {AS_MP4}", "an MPEG-TS"),
    "FLV": Odd(again(kind="flv"), f"is an FLV video; {AS_MP4}", "an FLV"),
    "Ogg": Odd(replaced(b"OggS" + bytes(99)), f"is an Ogg video; {AS_MP4}", "an Ogg"),
    "a picture": Odd(replaced(pil("PNG")(picture(0, 0))), f"is a PNG; {AS_MP4}", "is a PNG"),
    "without its keyframe": Odd(headless, "before frame 0 .* first keyframe", " 0 of . can be decoded"),
    "empty": Odd(replaced(b""), "is empty", "is empty"),
    "an LFS pointer": Odd(
        replaced(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        r"file-000.mp4 is a Git LFS pointer \(9 bytes",
        "is a Git LFS pointer",
    ),
    "a web page": Odd(replaced(b"<!DOCTYPE html><html>"), "is a web page", "is a web page"),
}


KINDS = {"shape": SHAPES, "image": IMAGES, "video": VIDEOS}


@pytest.fixture(scope="module")
def bend(tmp_path_factory):
    """A function that copies the set as recorded to a folder and bends it there."""
    recorded = functools.cache(lambda version: write_set(tmp_path_factory.mktemp("odd") / "set", version, camera=True))

    def copy(root: Path, odd: Odd, version: str = "v3.0") -> Path:
        shutil.copytree(recorded(version), root)
        odd.bend(root)
        return root

    return copy


def read(dataset: LeRobotDataset) -> np.ndarray:
    """The pictures of all frames, uint8 [F, H, W, 3]."""
    pictures = []
    for episode in dataset.episodes:
        video = dataset.open_video(episode, CAMERA)
        try:
            pictures.append(video.read(0, episode.length))
        finally:
            video.close()
    return np.concatenate(pictures)


ODD = {f"{kind}: {name}": odd for kind, odds in KINDS.items() for name, odd in odds.items()}


@pytest.fixture(params=ODD)
def odd(request, bend, tmp_path):
    """(Folder of an odd set, how it is odd)."""
    return bend(tmp_path / "set", ODD[request.param]), ODD[request.param]


def test_pictures_are_as_recorded_or_refused_with_the_reason(odd):
    root, kind = odd
    if kind.refused:
        with pytest.raises(UserError, match=kind.refused):
            read(LeRobotDataset(root))
    else:
        assert list(map(read_code, read(LeRobotDataset(root)))) == FRAMES


def test_a_check_has_one_finding_a_cause_and_episode(odd):
    root, kind = odd
    found = [finding for finding in check_dataset(root).findings if finding.feature == CAMERA]
    # What else follows from encoding anew: the codec that info.json declares, the colours of the statistics.
    found = [finding for finding in found if finding.kind not in ("codec", "statistics")]
    assert all(re.search(kind.found or "nothing", str(finding)) for finding in found), [str(f) for f in found]
    assert bool(found) == bool(kind.found)
    assert len({finding.episode for finding in found}) == len(found)


def test_of_many_files_with_one_cause_one_finding_is_made(bend, tmp_path):
    root = bend(tmp_path / "set", SHAPES["another size"], "v2.1")
    [found] = [finding for finding in check_dataset(root).findings if finding.kind == "shape"]
    assert re.search(r"declares 48x64 .* \(in 3 files, the first is .*episode_000000.mp4\)", found.message)


def test_depth_maps_are_no_cameras(bend, tmp_path):
    """They are left out unless asked for by name, which is refused."""
    root = bend(tmp_path / "set", IMAGES["depth"])
    declared([HEIGHT, WIDTH, 1], dtype="image", info={"is_depth_map": True})(root)
    assert not [finding for finding in check_dataset(root).findings if finding.feature == CAMERA]
    dataset = LeRobotDataset(root)
    assert dataset.cameras == []
    with pytest.raises(UserError, match="depth maps are none"):
        dataset.image_shape(CAMERA)
    assert pack(dataset, tmp_path / "packed").frames == len(FRAMES)


def test_a_camera_that_cannot_be_read_is_named_on_the_page(bend, tmp_path):
    root = bend(tmp_path / "set", SHAPES["no channels"])
    view = show_dataset(root, tmp_path / "show.html")
    assert all("expected height, width and 1, 3 or 4 channels" in sheets[0].problem for sheets in view.sheets.values())


@pytest.mark.lerobot
@pytest.mark.parametrize("name", ODD)
def test_where_lerobot_reads_an_odd_set_the_pictures_are_the_same(name, bend, tmp_path):
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    root, kind = bend(tmp_path / "set", ODD[name], module.CODEBASE_VERSION), ODD[name]
    try:
        theirs = module.LeRobotDataset("local/odd", root=root, video_backend="pyav")
        items = [theirs[i][CAMERA].numpy() for i in range(len(theirs))]
    except Exception as error:  # whatever it is: then there is nothing to compare with
        pytest.skip(f"lerobot does not read it ({type(error).__name__}: {str(error)[:200]})")
    if kind.refused:
        pytest.skip("we say why we do not")
    mine = read(LeRobotDataset(root))
    for ours, item in zip(mine, items, strict=True):
        if len(item) == 3:  # lerobot gives the channels as they are stored, of a palette its indices
            np.testing.assert_array_equal(ours, (item.transpose(1, 2, 0) * 255).round().astype(np.uint8))
