"""The numbers of a dataset and its labels that a person wants to see before training on them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosjax.config import TrainConfig
from eosjax.data.frames.store import FrameStore
from eosjax.data.labels import LEFT_OUT_BY, LabelError, Labels, Problem, SegmentTable, import_labels, join_labels
from eosjax.data.labels.advice import advise_positives, steps_to_first_update
from eosjax.data.labels.kept import Kept
from eosjax.data.labels.plausibility import check_dataset, substep_lengths
from eosjax.data.samples.mixture import stats_of
from eosjax.data.specs import DatasetSpec
from eosjax.data.stats import FieldStats, describe
from eosjax.data.targets import learnt_actions


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often whole numbers fall into bins; bin i is `edges[i]` to `edges[i + 1]` (exclusive)."""

    edges: list[int]
    counts: list[int]
    min: int
    median: float
    mean: float
    max: int

    @classmethod
    def of(cls, values: np.ndarray, bins: int = 30) -> Histogram | None:
        """At most `bins` bins of one width over `values` i64 [n]; None of no values."""
        if not len(values):
            return None
        low, high = int(values.min()), int(values.max())
        width = -(-(high - low + 1) // bins)
        edges = np.arange(low, high + width + 1, width)
        counts = np.histogram(values, edges)[0]
        return cls(edges.tolist(), counts.tolist(), low, float(np.median(values)), float(values.mean()), high)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task instruction of the dataset."""

    text: str
    episodes: int
    matched_episodes: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of sub-steps: how many steps have it, and how many sub-steps that have it end."""

    text: str
    steps: int
    ends: int


@dataclasses.dataclass(frozen=True)
class Buffer:
    """What the share of ends means for the class-balanced buffer on one device."""

    batch_size: int
    rows_per_step: int  # batch_size x chunk
    ends_per_step: float
    first_update: int  # training steps until the first EOS update with the default flags
    suggested_positives: int  # for eos_sample_positive and eos_min_positive
    suggested_first_update: int
    why: str


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of the actions or the state, over all steps."""

    mean: float
    std: float
    min: float
    max: float
    q01: float
    q99: float
    normalised: bool
    near_constant: bool  # normalised, though its range is hardly more than noise
    clipped: float  # share of the steps whose value the normalisation cuts off


@dataclasses.dataclass(frozen=True)
class Survey:
    """A dataset and its labels in numbers. Without labels: no ends, no problems, and None for what depends on them.

    Attributes:
        matched_episodes, matched_steps: episodes whose labels fit, and their steps.
        ends, share_of_ends: of the matched episodes.
        episodes_without_end: matched episodes in which no sub-step ends.
        problems: what does not fit, or cannot be right; empty when training would accept the labels.
        warnings: what is unlikely in the labels that fit, and statistics that the dataset states otherwise.
        ends_per_episode: pairs (ends, matched episodes that have as many).
        substep_steps: steps of the sub-steps that end.
    """

    dataset: str
    labels: str | None
    cameras: list[str]
    control_hz: float
    chunk: int
    episodes: int
    matched_episodes: int
    steps: int
    matched_steps: int
    ends: int
    share_of_ends: float | None
    episodes_without_end: int
    problems: list[dict[str, Any]]
    warnings: list[str]
    buffer: Buffer | None
    episode_steps: Histogram | None
    ends_per_episode: list[tuple[int, int]]
    substep_steps: Histogram | None
    tasks: list[Task]
    instructions: list[Instruction]
    action: list[Dimension]
    proprio: list[Dimension]

    def to_json(self) -> dict[str, Any]:
        """The survey as JSON-able dictionaries under the names of its attributes."""
        return dataclasses.asdict(self)


class JoinedLabels(NamedTuple):
    """Labels that fit, and what is wrong with the others."""

    labels: Labels | None  # None if no episode's labels fit; `Labels.labelled` tells those whose labels do
    problems: list[Problem]


def join_what_fits(
    path: Path, store: FrameStore, format: str = "auto", allow: Collection[str] = (), kept: Kept | None = None
) -> JoinedLabels:
    """The labels of those episodes that fit the dataset, whatever is wrong with others; arguments as of `import_labels`, `join_labels`."""
    try:
        table = import_labels(path, store.name, format, kept)
    except LabelError as error:
        return JoinedLabels(None, error.problems)
    try:
        return JoinedLabels(join_labels(table, store, allow), [])
    except LabelError as error:
        problems = error.problems
    sound = _without(table, {problem.episode for problem in problems})
    try:
        return JoinedLabels(join_labels(sound, store, LEFT_OUT_BY.values()), problems)
    except LabelError:  # nothing is left
        return JoinedLabels(None, problems)


def _without(table: SegmentTable, episodes: set[int | None]) -> SegmentTable:
    """The table without the problems of a file and without some of its episodes."""
    kept = ~np.isin(table.episode, [episode for episode in episodes if episode is not None])
    return dataclasses.replace(
        table,
        **{column: getattr(table, column)[kept] for column in ("episode", "segment", "first", "last", "is_end")},
        instruction=[text for text, keep in zip(table.instruction, kept, strict=True) if keep],
        lengths={episode: length for episode, length in table.lengths.items() if episode not in episodes},
        tasks={episode: task for episode, task in table.tasks.items() if episode not in episodes},
        problems=(),
    )


def survey(
    store: FrameStore, spec: DatasetSpec, source: Path | None, joined: JoinedLabels, batch_size: int = TrainConfig.batch_size
) -> Survey:
    """The numbers of a dataset and the labels that fit it.

    Args:
        store, spec: the dataset.
        source: where the labels came from; None if there are none.
        joined: the labels.
        batch_size: of the training that the advice is about.
    """
    labels = joined.labels
    lengths = np.diff(store.episode_starts)
    labelled = np.zeros(len(lengths), bool) if labels is None else labels.labelled
    in_labelled = np.repeat(labelled, lengths)
    ends = np.zeros(store.num_frames, bool) if labels is None else labels.ends
    per_episode = np.diff(np.concatenate([[0], np.cumsum(ends)])[store.episode_starts])[labelled]
    matched_steps = int(in_labelled.sum())
    share = float(ends.sum() / matched_steps) if matched_steps else None
    findings = [] if labels is None else check_dataset(labels, store, store.actions[:, -1], spec.control_hz)
    impossible = [Problem("implausible", None, finding.what) for finding in findings if finding.impossible]
    stats = stats_of(store, spec)
    return Survey(
        dataset=store.name,
        labels=None if source is None else str(source),
        cameras=list(spec.image_keys),
        control_hz=spec.control_hz,
        chunk=spec.chunk,
        episodes=store.num_episodes,
        matched_episodes=int(labelled.sum()),
        steps=store.num_frames,
        matched_steps=matched_steps,
        ends=int(ends.sum()),
        share_of_ends=share,
        episodes_without_end=int((per_episode == 0).sum()),
        problems=[problem._asdict() for problem in [*joined.problems, *impossible]],
        warnings=[finding.what for finding in findings if not finding.impossible],
        buffer=_buffer(share, batch_size, spec.chunk) if share else None,
        episode_steps=Histogram.of(lengths),
        ends_per_episode=sorted(Counter(per_episode.tolist()).items()),
        substep_steps=Histogram.of(substep_lengths(ends, store.episode_starts)),
        tasks=_tasks(store.tasks, labelled),
        instructions=[] if labels is None else _instructions(labels, in_labelled, ends),
        action=_dimensions(learnt_actions(store, spec), stats.action, spec),
        proprio=_dimensions(store.proprio, stats.proprio, spec),
    )


def _buffer(share: float, batch_size: int, chunk: int) -> Buffer | None:
    if share >= 1:
        return None  # every step an end: no negatives to balance with
    rows = batch_size * chunk
    positives = advise_positives(share)
    default, negative = TrainConfig.eos_min_positive, TrainConfig.eos_min_negative
    return Buffer(
        batch_size=batch_size,
        rows_per_step=rows,
        ends_per_step=share * rows,
        first_update=steps_to_first_update(share, rows, default, negative),
        suggested_positives=positives.count,
        suggested_first_update=steps_to_first_update(share, rows, positives.count, negative),
        why=positives.why,
    )


def _tasks(tasks: Sequence[str], labelled: np.ndarray) -> list[Task]:
    matched = Counter(task for task, is_labelled in zip(tasks, labelled, strict=True) if is_labelled)
    return [Task(text, count, matched[text]) for text, count in sorted(Counter(tasks).items())]


def _instructions(labels: Labels, in_labelled: np.ndarray, ends: np.ndarray) -> list[Instruction]:
    """The instructions of the labelled episodes, the most frequent first."""
    size = len(labels.instructions)
    steps = np.bincount(labels.instruction_ids[in_labelled], minlength=size)
    closed = np.bincount(labels.instruction_ids[ends], minlength=size)
    return [
        Instruction(labels.instructions[index], int(steps[index]), int(closed[index]))
        for index in np.argsort(-steps, kind="stable")
        if steps[index]
    ]


def _dimensions(values: np.ndarray, stats: FieldStats, spec: DatasetSpec) -> list[Dimension]:
    report = describe(values, stats, spec.normalisation)
    columns = (stats.mean, stats.std, stats.min, stats.max, stats.q01, stats.q99, stats.mask, report.near_constant, report.clipped)
    return [Dimension(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def spread_over_tasks(tasks: Sequence[str], candidates: Iterable[int], count: int = 4) -> list[int]:
    """Up to `count` of the candidate episodes, of as many different tasks as there are, in order."""
    turns: Counter[str] = Counter()
    order = []
    for episode in candidates:
        order.append((turns[tasks[episode]], episode))
        turns[tasks[episode]] += 1
    return sorted(episode for _, episode in sorted(order)[:count])
