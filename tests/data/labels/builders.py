"""Small label files of every format, and what the join reads of a dataset."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from eosjax.data.labels import LabelError, Segment, join_labels, make_table

TASK = "put the bowl on the plate"
KEY = TASK.replace(" ", "_")


def dataset(*lengths: int, tasks: list[str] | None = None) -> Any:
    """What the join reads of a frame store."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(name="made", episode_starts=starts, tasks=tasks or [TASK] * len(lengths))


def rows_of(table, episode=0):
    """(first, last, is_end, instruction) of the segments of an episode."""
    columns = (table.first.tolist(), table.last.tolist(), table.is_end.tolist(), table.instruction)
    return [row for row, number in zip(zip(*columns, strict=True), table.episode, strict=True) if number == episode]


def kinds(table, store, **options):
    """(kind, episode) of the problems for which the join refuses the table."""
    with pytest.raises(LabelError) as raised:
        join_labels(table, store, **options)
    return [(problem.kind, problem.episode) for problem in raised.value.problems]


def ends_of(table, store):
    """The frames at which a sub-step ends."""
    return np.flatnonzero(join_labels(table, store).ends).tolist()


def entry(step: Any, instruction: Any = "pick", end: Any = False) -> dict[str, Any]:
    return {"timestep": step, "APD_step": instruction, "is_substep_end": end}


def body(length, *entries, instruction=TASK):
    return {"instruction": instruction, "total_timesteps": length, "timestep_labels": list(entries)}


def cyclevla(episode, n_steps, *chunks, task=TASK, **metadata):
    """A CycleVLA episode of chunks (start, end, subtask); subtask None for a chunk that was not labelled."""
    named = [
        {"value": (-1) ** index, "start": start, "end": end} | ({} if subtask is None else {"subtask": subtask})
        for index, (start, end, subtask) in enumerate(chunks)
    ]
    metadata = {"episode_id": str(episode), "n_steps": n_steps, "language_instruction": task} | metadata
    return {"metadata": metadata, "chunks": named}


def lerobot(folder: Path, lengths, fps: float = 10, tasks=None, episodes=None, data=None, subtasks=None) -> Path:
    """A LeRobot 3.0 folder with an episode each length, two episodes a data file; more columns by `episodes` and `data`.

    `data` has the values of all frames, `episodes` those of all episodes; `subtasks` are the texts by index.
    """
    count = len(lengths)
    episode = np.repeat(np.arange(count), lengths)
    frame = np.concatenate([np.arange(length) for length in lengths])
    columns = {"episode_index": episode, "frame_index": frame, "timestamp": (frame / fps).astype(np.float32)}
    frames = pa.table(columns | {"observation.state": np.zeros(len(frame))} | (data or {}))
    meta = {"episode_index": list(range(count)), "length": list(lengths), "tasks": [[task] for task in tasks or [TASK] * count]}
    meta |= {"stats/action/mean": [0.0] * count} | (episodes or {})
    write_parquet(folder / "meta/episodes/chunk-000/file-000.parquet", meta)
    for file in range((count + 1) // 2):
        write_parquet(folder / f"data/chunk-000/file-{file:03d}.parquet", frames.take(np.flatnonzero(episode // 2 == file)))
    if subtasks is not None:
        write_parquet(folder / "meta/subtasks.parquet", {"subtask_index": list(range(len(subtasks))), "subtask": list(subtasks)})
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": fps}))
    return folder


def write_parquet(path: Path, columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


RECORD = pa.struct({"role": pa.string(), "content": pa.string(), "style": pa.string(), "timestamp": pa.float32(), "camera": pa.string()})


def language(lengths, *episodes):
    """The column `language_persistent`: the rows (time, content) of each episode, of style subtask, at each of its frames."""
    rows = [
        [
            {"role": "assistant", "content": content, "style": style, "timestamp": time, "camera": None}
            for time, content, style in (row if len(row) == 3 else (*row, "subtask") for row in episode)
        ]
        for episode in episodes
    ]
    everywhere = [row for row, length in zip(rows, lengths, strict=True) for _ in range(length)]
    return {"language_persistent": pa.array(everywhere, pa.list_(RECORD))}


def sarm(*episodes, level="sparse", times=None):
    """Columns of SARM: each episode's (name, start frame, end frame), or None for one that is not annotated.

    `times` is the fps by which the columns of times are made too.
    """
    prefix = f"{level}_subtask_" if level else "subtask_"
    columns: dict[str, list[Any]] = {"names": [], "start_frames": [], "end_frames": []}
    for episode in episodes:
        for field, values in zip(columns, zip(*episode, strict=True) if episode else [None] * 3, strict=True):
            columns[field].append(None if values is None else list(values))
    if times:
        for side in ("start", "end"):
            frames = columns[f"{side}_frames"]
            columns[f"{side}_times"] = [None if row is None else [frame / times for frame in row] for row in frames]
    return {prefix + field: values for field, values in columns.items()}


@st.composite
def tables(draw, min_labelled=0):
    """A table without problems: episodes of 1 to 12 steps in random segments with gaps, some without any."""
    segments, lengths, tasks = {}, {}, {}
    for episode in range(draw(st.integers(max(1, min_labelled), 4))):
        length = lengths[episode] = draw(st.integers(1, 12))
        tasks[episode] = draw(st.sampled_from(["a", "Open  the drawer", "put the b on É", "open the drawer "]))
        starts = [0, *sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=5)))]
        stops = [*starts[1:], length]
        segments[episode] = []
        for start, stop in zip(starts, stops, strict=True):
            covered, text, is_end = draw(st.tuples(st.booleans(), st.sampled_from("abc"), st.booleans()))
            if start < stop <= length and (covered or (episode < min_labelled and start == 0)):
                segments[episode].append(Segment(start, draw(st.integers(start, stop - 1)), is_end, text))
    return make_table(segments, "drawn", lengths, tasks)


def steps_of(table, episode):
    """What a table says of each step of an episode: (instruction, is end); the obvious model of the join."""
    steps = [(table.tasks[episode].lower(), False)] * table.lengths[episode]
    for first, last, is_end, instruction in rows_of(table, episode):
        for step in range(first, last + 1):
            steps[step] = instruction, is_end and step == last
    return steps


def dataset_of(table):
    """A dataset that the table fits."""
    count = len(table.lengths)
    return dataset(*[table.lengths[episode] for episode in range(count)], tasks=[table.tasks[episode] for episode in range(count)])
