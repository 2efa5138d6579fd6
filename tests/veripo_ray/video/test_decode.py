from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

import numpy as np
import pytest
from PIL import Image

from veripo_ray.config import Video
from veripo_ray.errors import ConfigError, DataError, ResourceError
from veripo_ray.video import child, decode
from veripo_ray.video.decode import Decoder

CFG = Video(fps=4.0, max_frames=8, min_pixels=784, decode_timeout_s=30)


@pytest.fixture(scope="module")
def decoder():
    with Decoder(CFG) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def every_frame():
    """Needs every frame of a test's video, so that damage anywhere in it matters."""
    with Decoder(CFG.model_copy(update={"fps": 8.0, "max_frames": 64})) as decoder:
        yield decoder


def grey_levels(clip: decode.Clip) -> list[float]:
    return clip.frames[:, -1].mean(axis=(1, 2)).tolist()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("size", [(28, 56), (56, 84), (120, 160)])
def test_a_clip_has_the_right_frames_at_their_true_times(tmp_path, video, decoder, codec, size):
    path = video(tmp_path / "a.mp4", frames=24, fps=8, size=size, codec=codec)
    clip = decoder.clip(path)
    chosen = np.linspace(0, 23, 8).round()  # 3 s at 4 a second is 12, the budget says 8
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape[0] == 8
    assert clip.frames.shape[1] % 28 == clip.frames.shape[2] % 28 == 0
    assert clip.seconds == pytest.approx(chosen / 8, abs=1e-6)
    assert clip.fps == pytest.approx(8 / 3)
    assert grey_levels(clip) == pytest.approx((10 * chosen % 250).tolist(), abs=4)


def test_an_uneven_video_keeps_its_own_timestamps(tmp_path, video, decoder):
    times = [0, 0.1, 0.2, 0.3, 1, 2, 3, 3.1, 3.2, 5]
    clip = decoder.clip(video(tmp_path / "a.mp4", seconds=times))
    assert clip.seconds[[0, -1]] == pytest.approx([0, 5])
    assert set(clip.seconds.round(3)) <= set(times)
    assert clip.fps == pytest.approx(8 / (5 * 10 / 9))


def test_a_video_of_one_frame_makes_a_pair(tmp_path, video, decoder):
    clip = decoder.clip(video(tmp_path / "a.mp4", frames=1))
    assert clip.frames.shape == (2, 56, 84, 3)
    assert (clip.frames[0] == clip.frames[1]).all()
    assert clip.seconds.tolist() == [0.0, 0.0]
    assert clip.fps == 4.0


def test_a_video_is_turned_as_the_camera_says(tmp_path, video, decoder):
    path = video(tmp_path / "a.mp4", size=(56, 112))
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: behind times, layer, volume
    quarter_turn = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *quarter_turn)
    path.write_bytes(content)
    assert decoder.clip(path).frames.shape[1:] == (112, 56, 3)


def test_frames_of_the_right_size_are_those_of_the_file(tmp_path, video, decoder):
    import av

    path = video(tmp_path / "a.mp4", frames=8, noise=True)
    with av.open(str(path)) as file:
        own = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    clip = decoder.clip(path)
    taken = own[np.linspace(0, 7, len(clip.frames)).round().astype(int)]
    assert np.abs(clip.frames.astype(int) - taken).mean() < 2  # two colour conversions


def test_decoding_twice_gives_the_same_bytes(tmp_path, video, decoder):
    path = video(tmp_path / "a.mp4", noise=True)
    assert (decoder.clip(path).frames == decoder.clip(path).frames).all()


def broken(kind: str, path, video):
    """A video broken in one way."""
    fast = {"movflags": "faststart"} if "fast" in kind else {}
    codec = "mpeg4" if "mpeg4" in kind else "libx264"
    if kind == "audio only":
        return audio(path)
    if kind == "text":
        path.write_text("not a video\n" * 50)
    elif kind != "missing":
        video(path, noise=True, codec=codec, **fast)
        whole = path.read_bytes()
        half = len(whole) // 2
        wiped = whole[:half] + bytes(half // 3) + whole[half + half // 3 :]
        cuts = {"empty": b"", "blotted": blotted(path), "wiped": wiped}
        path.write_bytes(cuts.get(kind.split(",")[0], whole[:half]))
    return path


def blotted(path) -> bytes:
    """The video with the middle of every frame but the first flipped: a codec without checksums
    does not notice each, and not twice the same where its encoder ran in several threads."""
    import av

    damaged = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    for start, size in packets[1:]:
        middle = slice(start + size // 2, start + size // 2 + min(60, size // 3))
        damaged[middle] = bytes(byte ^ 0x5A for byte in damaged[middle])
    return bytes(damaged)


def audio(path):
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_384), np.float32), "fltp", "mono")
        sound.rate = 16_000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "it is empty (0 bytes)"),
        ("text", "it cannot be decoded (mov: moov atom not found)"),
        ("audio only", "it has no video track"),
        ("cut, index at the end", "it is cut short"),
        ("cut, fast start", "it is cut short"),
        ("cut, fast start, mpeg4", "it is cut short"),
        ("blotted, fast start", "it has damaged frames: h264: error while decoding"),
        ("blotted, fast start, mpeg4", "mpeg4: "),
        ("wiped, fast start", "it cannot be decoded (h264"),
    ],
)
def test_a_broken_video_is_reported_by_name(tmp_path, video, every_frame, kind, reason):
    path = broken(kind, tmp_path / "broken one.mp4", video)
    with pytest.raises(DataError) as error:
        every_frame.clip(path)
    assert error.value.problem.startswith(f"{path}: ")
    assert reason in error.value.problem
    assert error.value.fix


def test_frames_that_no_container_announced_are_not_invented(tmp_path, video, every_frame):
    """With the length in its header mended, a cut file still gives no clip of repeated frames."""
    path = video(tmp_path / "a.mp4", noise=True, codec="mpeg4", movflags="faststart")
    whole = bytearray(path.read_bytes()[: path.stat().st_size // 2])
    mdat = whole.index(b"mdat") - 4
    whole[mdat : mdat + 4] = (len(whole) - mdat).to_bytes(4, "big")
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"damaged frames|cannot be decoded"):
        every_frame.clip(path)


def test_a_folder_is_reported(tmp_path, decoder):
    with pytest.raises(DataError, match="cannot be read"):
        decoder.clip(tmp_path)


def test_an_absurd_shape_is_reported_by_name(tmp_path, video, decoder):
    path = video(tmp_path / "ribbon.mp4", frames=2, size=(2, 802))
    with pytest.raises(DataError, match=r"ribbon\.mp4: its frames are 802x2 pixels"):
        decoder.clip(path)


def test_good_clips_come_after_bad_ones_from_the_same_process(tmp_path, video):
    good, bad = video(tmp_path / "good.mp4"), broken("text", tmp_path / "bad.mp4", video)
    with Decoder(CFG) as decoder:
        decoder.clip(good)
        process = decoder._child._process.pid
        with pytest.raises(DataError):
            decoder.clip(bad)
        decoder.clip(good)
        assert decoder._child._process.pid == process


def test_a_decode_that_hangs_is_killed_at_the_limit_and_the_next_one_works(tmp_path, video):
    path = video(tmp_path / "a.mp4")
    with Decoder(CFG.model_copy(update={"decode_timeout_s": 0.5})) as decoder:
        decoder.clip(path)
        stuck = decoder._child._process
        stuck.send_signal(signal.SIGSTOP)  # no less stuck than a loop in C
        with pytest.raises(
            DataError, match=r"a\.mp4: .* video\.decode_timeout_s = 0\.5 s"
        ) as error:
            decoder.clip(path)
        assert "raise video.decode_timeout_s" in error.value.fix
        assert stuck.poll() == -signal.SIGKILL
        assert len(decoder.clip(path).frames) == 8


def test_a_decoder_that_crashes_is_reported_and_replaced(tmp_path, video):
    path = video(tmp_path / "a.mp4")
    with Decoder(CFG) as decoder:
        decoder.clip(path)
        process = decoder._child._process
        process.send_signal(signal.SIGSTOP)
        killer = threading.Timer(0.3, process.kill)
        killer.start()
        with pytest.raises(DataError, match=r"a\.mp4: it made the decoder crash \(SIGKILL\)"):
            decoder.clip(path)
        killer.join()
        assert len(decoder.clip(path).frames) == 8
        decoder._child._process.kill()
        decoder._child._process.wait(10)
        assert len(decoder.clip(path).frames) == 8  # a process that died idle blames no file


def test_a_decoder_that_cannot_start_says_why(tmp_path, video, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoder(CFG) as decoder, pytest.raises(ResourceError, match="does not start: no reason"):
        decoder.clip(video(tmp_path / "a.mp4"))


def test_closing_ends_the_process_and_may_be_repeated(tmp_path, video):
    decoder = Decoder(CFG)
    decoder.clip(video(tmp_path / "a.mp4"))
    process = decoder._child._process
    decoder.close()
    decoder.close()
    assert process.poll() is not None


SCRIPT = """
import sys
from veripo_ray.config import Video
from veripo_ray.video.decode import Decoder
decoder = Decoder(Video(min_pixels=784))
clip = decoder.clip(sys.argv[1])
print(decoder._child._process.pid, len(clip.frames), "torch" in sys.modules, flush=True)
sys.stdin.readline()
"""


def test_a_plain_script_decodes_and_the_child_ends_with_it(tmp_path, video):
    """No main-module guard, a process that is killed outright: nothing is left behind."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = video(tmp_path / "a.mp4")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, str(script), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, env=environment, **pipes) as process:
        pid, frames, torch = process.stdout.readline().split()
        process.kill()
    assert (frames, torch) == ("6", "False")
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}/fd/0") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}/fd/0")


def test_the_child_answers_until_its_parent_hangs_up(tmp_path, video, monkeypatch):
    ours, theirs = socket.socketpair()
    parent = Connection(ours.detach())
    common = {"fps": 4.0, "max_frames": 4, "min_pixels": 784, "max_pixels": 200_704, "factor": 28}
    good, text = video(tmp_path / "a.mp4"), broken("text", tmp_path / "b.mp4", video)
    ribbon = video(tmp_path / "c.mp4", frames=2, size=(2, 802))
    for path in (good, text, audio(tmp_path / "d.mp4"), ribbon):
        parent.send((30.0, {"path": str(path), **common}))
    socket.socket(fileno=os.dup(parent.fileno())).shutdown(socket.SHUT_WR)
    monkeypatch.setattr(sys, "argv", ["child", str(theirs.detach())])
    child.main()
    assert parent.recv() == "ready"
    frames, seconds, fps = parent.recv()
    assert (frames.shape, len(seconds), fps) == ((4, 56, 84, 3), 4, pytest.approx(4 / 3))
    assert "Error reading" in parent.recv()
    assert parent.recv() == "it has no video track"
    assert "200 to 1" in parent.recv()
    parent.close()


@pytest.mark.parametrize(("setting", "value"), [("max_frames", 1), ("max_pixels", 783)])
def test_budgets_that_no_clip_fits_are_refused_at_once(setting, value):
    with pytest.raises(ConfigError, match=rf"video\.{setting} is {value}"):
        Decoder(CFG.model_copy(update={setting: value}))


def test_images_follow_the_same_rule(tmp_path, decoder):
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "c.png")]
    Image.new("RGB", (300, 100), (200, 10, 10)).save(paths[0])
    Image.new("L", (56, 84), 77).save(paths[1])
    Image.new("RGBA", (56, 56), (0, 0, 0, 0)).save(paths[2])
    wide, grey, clear = decoder.images(paths)
    assert wide.shape == (112, 308, 3)
    assert grey.shape == (84, 56, 3)
    assert abs(grey.astype(int) - 77).max() <= 2
    assert (clear == 255).all()


def test_an_image_is_turned_as_the_camera_says(tmp_path, decoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.new("RGB", (112, 56)).save(tmp_path / "a.jpg", exif=exif)
    assert decoder.images([tmp_path / "a.jpg"])[0].shape == (112, 56, 3)


def test_a_broken_image_is_reported_by_name(tmp_path, decoder):
    good, text, cut = tmp_path / "good.png", tmp_path / "text.png", tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(good)
    text.write_text("no image")
    cut.write_bytes(good.read_bytes()[:6000])
    for path in (text, cut):
        with pytest.raises(DataError, match=rf"{path.name}: it is not a usable image"):
            decoder.images([good, path])
    with pytest.raises(DataError, match="no such file"):
        decoder.images([tmp_path / "none.png"])
