from __future__ import annotations

import pytest

from veripo_ray.video.container import declared_size

CONTAINERS = ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"]


def codec_of(name: str) -> str:
    return {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name.split(".")[-1], "libx264")


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_whole_file_is_as_long_as_it_says(tmp_path, video, name):
    path = video(tmp_path / name, frames=6, codec=codec_of(name))
    assert declared_size(path) == path.stat().st_size


@pytest.mark.parametrize("name", [*CONTAINERS, "fast.mp4"])
@pytest.mark.parametrize("kept", [0.4, 0.99])
def test_a_cut_file_is_shorter_than_it_says(tmp_path, video, name, kept):
    options = {"movflags": "faststart"} if name == "fast.mp4" else {}
    path = video(tmp_path / name, frames=12, codec=codec_of(name), noise=True, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    promised = declared_size(path)
    assert path.stat().st_size < promised <= len(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a text file\n" * 9,
        b"\x1a\x45\xdf\xa3",  # Matroska that ends after its mark
        b"\x1a\x45\xdf\xa3\x80",  # ... after an empty header
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff",  # a segment of unknown length, as in streams
        b"RIFF\x00\x00\x00\x00WAVE",
    ],
)
def test_a_file_that_does_not_say_its_length_is_left_to_the_decoder(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert declared_size(path) is None


def test_large_and_open_ended_boxes_are_understood(tmp_path):
    path = tmp_path / "a.mp4"
    ftyp = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00"
    path.write_bytes(ftyp + b"\x00\x00\x00\x01mdat" + (1 << 33).to_bytes(8, "big"))
    assert declared_size(path) == 16 + (1 << 33)
    path.write_bytes(ftyp + b"\x00\x00\x00\x00mdat" + b"rest")
    assert declared_size(path) == path.stat().st_size
