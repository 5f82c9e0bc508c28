"""`meta/info.json` of a LeRobot dataset: its version, frame rate and features.

Layout as in github.com/huggingface/lerobot: version 3 has many episodes in a file, versions 2.0 and 2.1 a file for each episode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from eosjax.data.episode import DatasetError
from eosjax.documents import DocumentError, read_json
from eosjax.fields import Field, check_fields, show, table

INFO = "meta/info.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
LEGACY_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
LEGACY_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
FASTEST = 1e6  # frames per second
# How far a time may be from that of its frame, in seconds: the default of LeRobot's own reader.
TOLERANCE = 1e-4

INFO_FIELDS = table(
    Field("codebase_version", "honoured", "v3.x, v2.1 or v2.0: the layout of the folder"),
    Field("fps", "honoured", "frames per second: assigns times to frames"),
    Field("features", "honoured", "columns and cameras; for labels the columns of the files themselves are read"),
    Field("robot_type", "honoured", "part of what a built-in description is recognised by"),
    Field("total_episodes", "honoured", "compared with meta/episodes"),
    Field("total_frames", "honoured", "compared with meta/episodes"),
    Field("chunks_size", "honoured", "v2: episodes in a folder of files"),
    Field("data_path", "refused", "frames are looked for there", accepts=(DATA_PATH, LEGACY_DATA_PATH, None)),
    Field("video_path", "refused", "videos are looked for there", accepts=(VIDEO_PATH, LEGACY_VIDEO_PATH, None)),
    *(
        Field(name, "harmless", "for people, or about the making of the dataset")
        for name in (
            "total_tasks total_videos total_chunks data_files_size_in_mb video_files_size_in_mb splits image_path audio_path"
        ).split()
    ),
)
FEATURE_FIELDS = table(
    Field("dtype", "honoured", "video, image, string or a type of numbers"),
    Field("shape", "honoured", "size of a vector; height and width of a picture"),
    Field("names", "honoured", "of the dimensions, shown in messages"),
    Field("info", "honoured", "of a video: video.is_depth_map must not be true; nothing else is read"),
    Field("video_info", "honoured", "as info, in older datasets"),
    Field("fps", "harmless", "that of the dataset"),
)


class Feature(NamedTuple):
    """A column of the frames, or a camera."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]  # () where there are none
    is_depth: bool

    @property
    def is_camera(self) -> bool:
        """Whether it is made of pictures."""
        return self.dtype in ("video", "image")

    @property
    def size(self) -> int:
        """Dimensions of a vector."""
        return self.shape[0] if self.shape else 1


class Info(NamedTuple):
    """What `meta/info.json` says."""

    folder: Path
    legacy: bool  # version 2
    fps: float
    robot_type: str
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    chunks_size: int

    @property
    def cameras(self) -> list[str]:
        """The features that are pictures in colour."""
        return [key for key, feature in self.features.items() if feature.is_camera and not feature.is_depth]


def read_info(folder: Path) -> Info:
    """Reads `meta/info.json` of the dataset in a folder.

    Raises:
        DatasetError: missing, damaged, another version, an unknown field or one of an impossible value; names file and field.
    """
    path = folder / INFO
    try:
        content = check_fields(read_json(path), INFO_FIELDS, path, DatasetError)
    except DocumentError as error:
        raise DatasetError(str(error)) from error
    version, features, robot = content.get("codebase_version"), content.get("features"), content.get("robot_type")
    legacy = version in ("v2.0", "v2.1")
    if not legacy and not (isinstance(version, str) and version.startswith("v3.")):
        raise DatasetError(f"{path}: codebase_version: expected v3.x, v2.1 or v2.0, got {show(version)}; convert the dataset with lerobot")
    fps = content.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= FASTEST:
        raise DatasetError(f"{path}: fps: expected a number above 0, got {show(fps)}")
    if not isinstance(features, dict) or not features:
        raise DatasetError(f"{path}: features: expected the columns of the dataset by name, got {show(features)}")
    return Info(
        folder=folder,
        legacy=legacy,
        fps=float(fps),
        robot_type=robot if isinstance(robot, str) else "",
        features={key: _feature(path, key, feature) for key, feature in features.items()},
        total_episodes=_count(path, content, "total_episodes"),
        total_frames=_count(path, content, "total_frames"),
        chunks_size=_count(path, content, "chunks_size") if legacy else 0,
    )


def _feature(path: Path, key: str, content: Any) -> Feature:
    where = f"features.{key}."
    content = check_fields(content, FEATURE_FIELDS, path, DatasetError, where)
    dtype, shape, names = content.get("dtype"), content.get("shape"), content.get("names")
    if "/" in key or key.startswith("."):
        raise DatasetError(f"{path}: {where} expected a name without /, which becomes that of a folder")
    if not isinstance(dtype, str):
        raise DatasetError(f"{path}: {where}dtype: expected text, got {show(dtype)}")
    if not isinstance(shape, list) or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise DatasetError(f"{path}: {where}shape: expected a list of whole numbers, got {show(shape)}")
    if isinstance(names, dict):  # such as {"motors": […]}
        names = next(iter(names.values()), None)
    texts = tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
    video = content.get("info") or content.get("video_info") or {}
    return Feature(dtype, tuple(shape), texts, bool(isinstance(video, dict) and video.get("video.is_depth_map")))


def _count(path: Path, content: dict[str, Any], field: str) -> int:
    value = content.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise DatasetError(f"{path}: {field}: expected a whole number, got {show(value)}")
    return value
