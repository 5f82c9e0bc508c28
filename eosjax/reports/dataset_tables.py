"""What `eosjax inspect` and `eosjax label` print of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from eosjax.data.frames.store import FrameStore
from eosjax.data.labels.labelling import Labelling
from eosjax.data.labels.plausibility import Finding
from eosjax.reports.agreement import Agreement
from eosjax.reports.survey import Buffer, Dimension, Survey
from eosjax.reports.tables import Row, table

_LISTED_PROBLEMS, _LISTED_INSTRUCTIONS, _LISTED_EPISODES = 10, 15, 12
_STATISTICS = ("", "mean", "std", "min", "1 %", "99 %", "max", "clipped", "")


def survey_text(survey: Survey) -> str:
    """The text of `eosjax inspect`."""
    blocks = [table(_overview_rows(survey))]
    if survey.problems:
        blocks.append(_problems(survey))
    if survey.instructions:
        rows = [(f"{each.steps:,}", f"{each.ends:,}", each.text) for each in survey.instructions[:_LISTED_INSTRUCTIONS]]
        hidden = len(survey.instructions) - len(rows)
        more = f"\n… and {hidden} more (--json and --html have all)" if hidden else ""
        blocks.append(table([("steps", "ends", "instruction"), *rows], right="rr") + more)
    for name, dimensions in (("action", survey.action), ("state", survey.proprio)):
        header, *rows = statistics_rows(dimensions)
        blocks.append(table([(name, *header[1:]), *rows], right="rrrrrrrr"))
    return "\n\n".join(blocks)


def statistics_rows(dimensions: Iterable[Dimension]) -> list[Row]:
    """A table of statistics, a row a dimension, the header first."""
    rows: list[Row] = [_STATISTICS]
    for number, each in enumerate(dimensions):
        values = (f"{value:.3f}" for value in (each.mean, each.std, each.min, each.q01, each.q99, each.max))
        remark = "near-constant" if each.near_constant else "" if each.normalised else "not normalised"
        rows.append((str(number), *values, f"{each.clipped:.1%}", remark))
    return rows


def labelling_text(store: FrameStore, labelling: Labelling, control_hz: float) -> str:
    """How much of a dataset `eosjax label` could label, how long the sub-steps are, and why not the rest."""
    found, reasons = labelling
    ends, steps = sum(map(len, found.values())), int(np.diff(store.episode_starts)[list(found)].sum())
    share = f", {ends / steps:.2%} of their steps" if steps else ""
    lines = [f"labelled: {len(found)} of {store.num_episodes} episodes of {store.name}, {ends} ends{share}"]
    if found:
        least, median, most = (float(value) for value in np.quantile(labelling.durations, (0, 0.5, 1)))
        seconds = f"{least / control_hz:.2f} to {most / control_hz:.2f} s"
        lines.append(f"sub-steps: {least:g} to {most:g} steps ({seconds}), median {median:g}")
        counts = sorted(Counter(labelling.cycles.values()).items())
        lines.append("cycles in an episode: " + ", ".join(f"{cycles} in {episodes}" for cycles, episodes in counts))
    if reasons:
        lines.append(f"not labelled: {store.num_episodes - len(found)}")
    for reason, episodes in sorted(reasons.items(), key=lambda item: -len(item[1])):
        listed = ", ".join(map(str, episodes[:_LISTED_EPISODES])) + (", …" if len(episodes) > _LISTED_EPISODES else "")
        lines.append(f"  {len(episodes)}: {reason} (episode {listed})")
    return "\n".join(lines)


def findings_text(findings: Iterable[Finding]) -> str:
    """What is unlikely, a line each."""
    return "".join(f"\nwarning: {finding.what}" for finding in findings if not finding.impossible)


def agreement_text(agreement: Agreement) -> str:
    """Precision and recall of found ends at each collar, and how far the ends of each kind of sub-step are off."""
    rows: list[Row] = [("within", "matched", "precision", "recall")]
    for collar, matched in agreement.matched.items():
        precision = f"{matched / agreement.found:.3f}" if agreement.found else "–"
        rows.append((f"±{collar} steps", str(matched), precision, f"{matched / agreement.true:.3f}"))
    late: list[Row] = [("found - true", "matched", "mean", "least", "most")]
    for kind, off in agreement.offsets.items():
        if off:
            late.append((kind, str(len(off)), f"{np.mean(off):+.1f}", f"{min(off):+d}", f"{max(off):+d}"))
    title = f"{agreement.found} found and {agreement.true} true ends in {agreement.episodes} episodes"
    about = f"steps between the ends matched within ±{max(agreement.matched)}"
    return "\n".join([title, table(rows, " rrr"), "", about, table(late, " rrrr")])


def _overview_rows(survey: Survey) -> list[Row]:
    rows: list[Row] = [
        ("dataset", f"{survey.dataset}: {survey.episodes:,} episodes of {len(survey.tasks)} task(s), {survey.steps:,} steps"),
        ("cameras", ", ".join(survey.cameras)),
    ]
    warnings = [("warning", warning) for warning in survey.warnings]
    if survey.labels is None:
        return [*rows, ("labels", "none given"), *warnings]
    verdict = "fit" if not survey.problems else f"DO NOT FIT: {len(survey.problems)} problem(s)"
    rows += [
        ("labels", f"{survey.labels}: {verdict}"),
        ("matched", f"{survey.matched_episodes:,} of {survey.episodes:,} episodes ({survey.matched_episodes / survey.episodes:.1%})"),
    ]
    if survey.share_of_ends is not None:
        counts = ", ".join(f"{ends} in {episodes:,}" for ends, episodes in survey.ends_per_episode[:6])
        more = ", …" if len(survey.ends_per_episode) > 6 else ""
        rows.append(("ends", f"{survey.ends:,}, {survey.share_of_ends:.2%} of the steps; in an episode: {counts}{more}"))
    rows += warnings
    if survey.substep_steps is not None:
        lengths = survey.substep_steps
        seconds = f"{lengths.median / survey.control_hz:.2f} s"
        rows.append(("sub-steps", f"{lengths.min} to {lengths.max} steps, median {lengths.median:g} ({seconds}), mean {lengths.mean:.1f}"))
    return rows if survey.buffer is None else [*rows, *_buffer_rows(survey.buffer, survey.chunk)]


def _buffer_rows(buffer: Buffer, chunk: int) -> list[Row]:
    count = buffer.suggested_positives
    return [
        (
            "buffer",
            f"--batch_size {buffer.batch_size} x {chunk} actions: about {buffer.ends_per_step:.1f} ends in the "
            f"{buffer.rows_per_step} rows of a step; first EOS update after about {buffer.first_update} step(s) with the defaults",
        ),
        (
            "suggested",
            f"--eos_sample_positive {count} --eos_min_positive {count} ({buffer.why}); then after about {buffer.suggested_first_update}",
        ),
    ]


def _problems(survey: Survey) -> str:
    totals = Counter(problem["kind"] for problem in survey.problems)
    rows = [
        (problem["kind"], "" if problem["episode"] is None else f"episode {problem['episode']}", problem["what"])
        for problem in survey.problems[:_LISTED_PROBLEMS]
    ]
    hidden = len(survey.problems) - len(rows)
    more = f"\n… and {hidden} more (--json has all)" if hidden else ""
    return "problems: " + ", ".join(f"{count} x {kind}" for kind, count in totals.most_common()) + "\n" + table(rows) + more
