"""The pictures of an MP4 file by their times, decoded with PyAV (FFmpeg). Every fault is a `DatasetError` that names the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error

from eosjax.data.episode import DatasetError
from eosjax.data.lerobot.info import TOLERANCE
from eosjax.fields import show

_SEEK_AHEAD = 2.0  # seconds; nearer pictures are reached by decoding those in between
# The frame store keeps pictures as JPEG. At this quality and with full colour resolution a copy differs from the decoded picture by less
# than the codec of the video has changed it.
_QUALITY = 95


class Video:
    """The colour pictures of one video file, read forward."""

    def __init__(self, path: Path):
        """Opens a file and reads its header.

        Raises:
            DatasetError: no file, no video in it, or no 8-bit colour: depth, greyscale, more bits.
        """
        self.path = path
        try:
            self._container = av.open(str(path))
        except FileNotFoundError as error:
            raise DatasetError(f"{path}: this video of the dataset is missing") from error
        except (av.error.FFmpegError, OSError) as error:
            raise DatasetError(f"{path}: expected an MP4 file: {_reason(error)} (is it truncated?)") from error
        if not self._container.streams.video:
            raise DatasetError(f"{path}: expected a video, found none in the file")
        self._stream = self._container.streams.video[0]
        if self._stream.time_base is None or self._stream.codec_context is None:
            raise DatasetError(f"{path}: expected a video that can be decoded, got codec {show(self._stream.name)}")
        self._stream.thread_type = "AUTO"
        _check_colour(self._stream.codec_context.format, path)
        self._frames: Iterator[Any] | None = None
        self._ahead: Any = None  # decoded, and not asked for yet
        self._reached = 0.0  # time behind which nothing was decoded

    @property
    def num_frames(self) -> int:
        """Frames that the header announces; 0 if it does not say."""
        return self._stream.frames

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def pictures(self, start: float, count: int, fps: float, size: tuple[int, int], where: str) -> Iterator[Any]:
        """The frames of an episode: those at `start` + i / fps seconds, for i below `count`, and none in between.

        Args:
            start: time of the first one; not before what was read last.
            count: number of frames.
            fps: of the dataset.
            size: height and width.
            where: the episode and camera, for messages.

        Raises:
            DatasetError: no frame at one of these times, more frames than that, another size, or a damaged file.
        """
        if start > self._reached + _SEEK_AHEAD:
            self._seek(start)
        for step in range(count):
            wanted = start + step / fps
            frame = self._peek(where, step)
            while frame is not None and frame.time < wanted - TOLERANCE:
                if step:
                    between = f"a frame at {frame.time:.4f} s that no step has"
                    raise DatasetError(f"{self.path}: {where}, step {step}: {between}: is its rate another than fps {fps:g}, or variable?")
                self._ahead = None
                frame = self._peek(where, step)
            if frame is None:
                raise DatasetError(f"{self.path}: {where}, step {step}: expected a frame at {wanted:.4f} s, but the video ends before it")
            if frame.time > wanted + TOLERANCE:
                raise DatasetError(
                    f"{self.path}: {where}, step {step}: expected a frame at {wanted:.4f} s, and the next one is at {frame.time:.4f} s: "
                    f"is its rate another than fps {fps:g}, or variable?"
                )
            if (frame.height, frame.width) != size:
                found = f"{frame.height} x {frame.width}"
                raise DatasetError(f"{self.path}: {where}, step {step}: expected a picture of {size[0]} x {size[1]} pixels, got {found}")
            self._ahead, self._reached = None, frame.time
            yield frame

    def ends(self, where: str) -> bool:
        """Whether no frame is left."""
        return self._peek(where, None) is None

    def _peek(self, where: str, step: int | None) -> Any:
        """The next frame, which stays the next one; None behind the last."""
        if self._frames is None:
            self._frames = self._container.decode(self._stream)
        if self._ahead is None:
            place = where if step is None else f"{where}, step {step}"
            try:
                self._ahead = next(self._frames, None)
            except (av.error.FFmpegError, OSError) as error:
                raise DatasetError(f"{self.path}: {place}: does not decode: {_reason(error)}") from error
            if self._ahead is not None and (self._ahead.time is None or self._ahead.is_corrupt):
                fault = "a damaged frame" if self._ahead.is_corrupt else "a frame without a time"
                raise DatasetError(f"{self.path}: {place}: {fault}")
        return self._ahead

    def _seek(self, time: float) -> None:
        """Goes on from the last key frame at or before a time; where the file finds none, from where it is."""
        assert self._stream.time_base is not None
        try:
            self._container.seek(int(time / self._stream.time_base), stream=self._stream)
        except (av.error.FFmpegError, OSError):
            return
        self._frames = self._ahead = None


def to_jpeg(frame: Any) -> bytes:
    """A decoded frame as a JPEG file. Colour range and matrix are those that the video states."""
    file = io.BytesIO()
    frame.to_image().save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def _check_colour(format: Any, path: Path) -> None:
    """Raises `DatasetError` unless pixels have three colours of eight bits."""
    name = getattr(format, "name", None)
    components = getattr(format, "components", ())
    if len(components) != 3 or any(component.bits != 8 for component in components):
        raise DatasetError(f"{path}: expected pictures of three colours of eight bits, got the pixel format {name}; depth is not supported")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
