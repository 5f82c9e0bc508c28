"""Small LeRobot datasets, versions 3.0 and 2.1, with images or with videos."""

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eosjax.data.lerobot import info

FPS, HEIGHT, WIDTH = 10, 48, 64
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
TASKS = ("Put the cup away", "Open the drawer")
LENGTHS = (5, 3, 4)


def picture(episode: int, step: int, camera: int) -> np.ndarray:
    """u8 [h w 3] that tells the episode, the step and the camera."""
    pixels = np.full((HEIGHT, WIDTH, 3), (40 * episode + 20, 12 * step + 20, 100 * camera + 50), np.uint8)
    pixels[8:24, 4 * step : 4 * step + 16] = 200
    return pixels


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_video(path: Path, pictures, fps: int = FPS, codec: str = "libx264", pix_fmt: str = "yuv420p", times=None) -> Path:
    """An MP4 file of the pictures u8 [h w 3]; `times` in frames, where they are not 0, 1, 2, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = list(pictures)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, fps, options={"g": "2", "crf": "20"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, fps)
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.ndim == 3 else "gray")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_parquet(path: Path, columns, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)


def frames_of(lengths, cameras, kind, row_bytes=png):
    """The columns of all frames, and the features that describe them."""
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    state = np.stack([episode * 10 + step / 10] * 6, axis=1).astype(np.float32)
    action = state + 0.5
    action[:, -1] = 100.0 * (step % 2)
    columns = {
        "observation.state": pa.array(state.tolist(), pa.list_(pa.float32(), 6)),
        "action": pa.array(action.tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array((step / FPS).astype(np.float32)),
        "frame_index": pa.array(step),
        "episode_index": pa.array(episode),
        "index": pa.array(np.arange(len(step))),
        "task_index": pa.array(episode % len(TASKS)),
    }
    features = {name: {"dtype": "float32", "shape": [6], "names": [*"abcde", "gripper"]} for name in ("observation.state", "action")}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in list(columns)[2:]}
    for number, camera in enumerate(cameras):
        names = ["height", "width", "channels"]
        features[camera] = {"dtype": kind, "shape": [HEIGHT, WIDTH, 3], "names": names, "info": {"video.is_depth_map": False}}
        if kind == "image":
            rows = [{"bytes": row_bytes(picture(e, s, number)), "path": None} for e, s in zip(episode.tolist(), step.tolist(), strict=True)]
            columns[camera] = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns), features


def make_info(legacy, features, lengths, robot_type="so101_follower", **changes):
    version = (
        {"codebase_version": "v2.1", "chunks_size": 2, "total_chunks": 2, "total_videos": 0}
        if legacy
        else {"codebase_version": "v3.0", "chunks_size": 1000}
    )
    paths = (info.LEGACY_DATA_PATH, info.LEGACY_VIDEO_PATH) if legacy else (info.DATA_PATH, info.VIDEO_PATH)
    totals = {"total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": len(TASKS)}
    content = version | totals | {"fps": FPS, "robot_type": robot_type, "features": features, "splits": {"train": f"0:{len(lengths)}"}}
    return content | {"data_path": paths[0], "video_path": paths[1]} | changes


def make_lerobot(folder: Path, legacy=False, kind="image", lengths=LENGTHS, cameras=(FRONT, WRIST), codec="libx264", **changes) -> Path:
    """A dataset of version 3.0 (two episodes a data file, two a video) or 2.1; `changes` are fields of `meta/info.json`."""
    frames, features = frames_of(lengths, cameras, kind)
    write_json(folder / info.INFO, make_info(legacy, features, lengths, **changes))
    starts = np.cumsum([0, *lengths])
    groups = (
        [[number] for number in range(len(lengths))]
        if legacy
        else [[*range(len(lengths))][at : at + 2] for at in range(0, len(lengths), 2)]
    )
    for file, group in enumerate(groups):
        rows = frames.slice(starts[group[0]], starts[group[-1] + 1] - starts[group[0]])
        if legacy:
            path = folder / info.LEGACY_DATA_PATH.format(episode_chunk=file // 2, episode_index=file)
        else:
            path = folder / info.DATA_PATH.format(chunk_index=0, file_index=file)
        write_parquet(path, rows, row_group_size=3)
        for number, camera in enumerate(cameras if kind == "video" else ()):
            place = {"video_key": camera, "episode_chunk": file // 2, "episode_index": file, "chunk_index": 0, "file_index": file}
            pattern = info.LEGACY_VIDEO_PATH if legacy else info.VIDEO_PATH
            write_video(folder / pattern.format(**place), [picture(e, s, number) for e in group for s in range(lengths[e])], codec=codec)
    (_write_legacy_meta if legacy else _write_meta)(folder, lengths, cameras if kind == "video" else (), groups)
    return folder


def _write_legacy_meta(folder, lengths, cameras, groups):
    episodes = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": length} for e, length in enumerate(lengths)]
    tasks = [{"task_index": index, "task": task} for index, task in enumerate(TASKS)]
    for name, rows in (("episodes", episodes), ("tasks", tasks)):
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_meta(folder, lengths, cameras, groups):
    file_of = {e: file for file, group in enumerate(groups) for e in group}
    columns = {
        "episode_index": list(range(len(lengths))),
        "length": list(lengths),
        "tasks": [[TASKS[e % 2]] for e in range(len(lengths))],
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [file_of[e] for e in range(len(lengths))],
    }
    for camera in cameras:
        before = [sum(lengths[group[0] : e]) for group in groups for e in group]
        columns[f"videos/{camera}/chunk_index"] = columns["data/chunk_index"]
        columns[f"videos/{camera}/file_index"] = columns["data/file_index"]
        columns[f"videos/{camera}/from_timestamp"] = [frames / FPS for frames in before]
        columns[f"videos/{camera}/to_timestamp"] = [(frames + length) / FPS for frames, length in zip(before, lengths, strict=True)]
    write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet", columns)
    write_parquet(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(TASKS)})


def change_frames(path: Path, **columns) -> None:
    """Writes a data file anew with other columns; a function gets the values as a list."""
    table = pq.read_table(path)
    for name, change in columns.items():
        values = change(table[name].to_pylist())
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, table.schema.field(name).type))
    write_parquet(path, table)
