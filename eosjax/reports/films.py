"""Filmed episodes as video files: MP4 where PyAV can encode H.264, GIF otherwise."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from eosjax.ends.closed_loop import Episode

_STAYS = 120  # milliseconds that a picture stays
_QUALITY = "20"  # H.264's constant rate factor


def film_file(episode: Episode) -> tuple[str, bytes]:
    """The pictures of a filmed episode, the cameras side by side: the suffix of the file, and its content."""
    assert episode.film is not None
    frames = [np.concatenate([np.asarray(Image.open(io.BytesIO(data))) for data in cameras], axis=1) for cameras in episode.film.pictures]
    return (".mp4", _mp4(frames)) if _has_h264() else (".gif", _gif(frames))


def _has_h264() -> bool:
    if importlib.util.find_spec("av") is None:
        return False
    import av

    return "libx264" in av.codecs_available


def _mp4(frames: Sequence[np.ndarray]) -> bytes:
    import av

    height, width = (side - side % 2 for side in frames[0].shape[:2])  # H.264 with halved colours needs even sides
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1000, _STAYS), options={"crf": _QUALITY})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _gif(frames: Sequence[np.ndarray]) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=_STAYS, loop=0)
    return file.getvalue()
