"""The report of `eosjax inspect` as one HTML page that needs nothing else: charts are inline SVG, pictures data URIs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from eosjax.data.frames.store import FrameStore
from eosjax.reports import page, svg
from eosjax.reports.episode_view import EpisodeView, Substep
from eosjax.reports.survey import Dimension, Survey

AROUND_END = (-4, -2, 0, 2, 4)  # steps of the pictures in a strip, counted from the end
_LISTED_PROBLEMS = 200


def render(survey: Survey, store: FrameStore, views: Sequence[EpisodeView]) -> str:
    """The page.

    Args:
        survey: the numbers.
        store: where the pictures are.
        views: the episodes to show in pictures.
    """
    sections = [_verdict(survey), _tiles(survey), _problems(survey), _charts(survey), _buffer(survey)]
    sections += [_episode(view, survey, store) for view in views]
    sections += [_instructions(survey), _tasks(survey), _statistics(survey)]
    return page.document("eosjax inspect", survey.dataset, "".join(sections))


def _verdict(survey: Survey) -> str:
    if survey.labels is None:
        return '<p class="verdict none">No labels were given: this is the dataset alone.</p>'
    source = f"<code>{escape(survey.labels)}</code>"
    if survey.problems:
        return (
            f'<p class="verdict bad"><b>The labels do not fit.</b> {len(survey.problems)} problem(s); training would refuse them. '
            f"What follows is of the {survey.matched_episodes} episode(s) whose labels fit. {source}</p>"
        )
    left_out = survey.episodes - survey.matched_episodes
    rest = f" {left_out} unlabelled episode(s) would be left out." if left_out else ""
    return f'<p class="verdict good"><b>The labels fit.</b> Length and task of every labelled episode agree.{rest} {source}</p>'


def _tiles(survey: Survey) -> str:
    hours = survey.steps / survey.control_hz / 3600
    tiles = [
        ("episodes", f"{survey.episodes:,}", f"{len(survey.tasks)} task(s)"),
        ("steps", f"{survey.steps:,}", f"{hours:.2f} h at {survey.control_hz:g} Hz"),
    ]
    if survey.labels is not None:
        matched = survey.matched_episodes / survey.episodes
        share = "–" if survey.share_of_ends is None else f"{survey.share_of_ends:.2%}"
        without = f"{survey.episodes_without_end} episode(s) without any" if survey.episodes_without_end else "in every matched episode"
        tiles += [
            ("matched", f"{matched:.0%}" if matched in (0, 1) else f"{matched:.1%}", f"{survey.matched_episodes:,} of the episodes"),
            ("ends", f"{survey.ends:,}", without),
            ("share of ends", share, "of the steps of the matched episodes"),
        ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><small>{escape(note)}</small></div>" for name, value, note in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _problems(survey: Survey) -> str:
    if not survey.problems:
        return ""
    totals = Counter(problem["kind"] for problem in survey.problems)
    rows = [
        (problem["kind"], "–" if problem["episode"] is None else problem["episode"], problem["what"])
        for problem in survey.problems[:_LISTED_PROBLEMS]
    ]
    hidden = len(survey.problems) - len(rows)
    more = f"<p>… and {hidden} more; --json has all of them.</p>" if hidden else ""
    summary = ", ".join(f"{count} × {escape(kind)}" for kind, count in totals.most_common())
    return page.section("Problems", f"<p>{summary}</p>{page.table(('kind', 'episode', 'what'), rows)}{more}")


def _charts(survey: Survey) -> str:
    charts = [("Steps of an episode", survey.episode_steps), ("Steps of a sub-step", survey.substep_steps)]
    figures = ""
    for title, values in charts:
        if values is not None:
            seconds = f"{values.median / survey.control_hz:.2f} s"
            note = f"{values.min} to {values.max}, median {values.median:g} ({seconds}), mean {values.mean:.1f}"
            figures += f"<figure><figcaption><b>{title}</b> {note}</figcaption>{svg.histogram(values, 'steps', title)}</figure>"
    if survey.ends_per_episode:
        rows = [(ends, episodes) for ends, episodes in survey.ends_per_episode]
        figures += f"<figure><figcaption><b>Ends in an episode</b></figcaption>{page.table(('ends', 'episodes'), rows)}</figure>"
    return page.section("Lengths", f'<div class="charts">{figures}</div>')


def _buffer(survey: Survey) -> str:
    if survey.buffer is None:
        return ""
    buffer = survey.buffer
    flags = f"--eos_sample_positive {buffer.suggested_positives} --eos_min_positive {buffer.suggested_positives}"
    return page.section(
        "What it means for the buffer",
        f"<p>At <code>--batch_size {buffer.batch_size}</code> on one device a training step brings "
        f"{buffer.rows_per_step} rows ({survey.chunk} actions a sample), about <b>{buffer.ends_per_step:.1f}</b> of them ends. With the "
        f"default flags the first EOS update comes after about <b>{buffer.first_update}</b> step(s).</p>"
        f"<p>Suggested: <code>{flags}</code>: {escape(buffer.why)}; then the first update "
        f"comes after about {buffer.suggested_first_update} step(s).</p>",
    )


def _episode(view: EpisodeView, survey: Survey, store: FrameStore) -> str:
    strips = [
        _strip(f"{number + 1}. <b>{escape(substep.instruction)}</b>, steps {substep.first} to {substep.last}", substep, view, survey, store)
        for number, substep in enumerate(view.substeps)
    ]
    if not strips:
        middle = Substep("", 0, len(view.gripper) // 2, False)
        strips = [_strip("From the middle of the episode", middle, view, survey, store)]
    legend = (
        '<p class="legend"><span class="speed">speed of the hand, in units of the state a second</span> '
        '<span class="command">gripper command</span> <span class="last">end of a sub-step</span></p>'
    )
    return page.section(f"Episode {view.episode}: {view.task}", f'{legend}{svg.timeline(view)}<div class="strips">{"".join(strips)}</div>')


def _strip(title: str, substep: Substep, view: EpisodeView, survey: Survey, store: FrameStore) -> str:
    """The pictures round the last step of a sub-step, under a title in HTML."""
    first_frame = int(store.episode_starts[view.episode])
    pictures = []
    for offset in AROUND_END:
        step = substep.last + offset
        if not 0 <= step < len(view.gripper):
            pictures.append(f'<figure class="absent"><figcaption>{offset:+d}: no step</figcaption></figure>')
            continue
        images = "".join(
            f'<img src="{page.data_uri(data)}" alt="{escape(camera)}, step {step}">'
            for camera, data in zip(survey.cameras, store.images(first_frame + step), strict=True)
        )
        kind = ' class="last"' if offset == 0 and substep.is_end else ""
        name = f"step {step}" if offset == 0 else f"{offset:+d}"
        pictures.append(f"<figure{kind}><div>{images}</div><figcaption>{name}</figcaption></figure>")
    no_end = "" if substep.is_end or not view.substeps else " (no end is labelled here)"
    return f'<div class="strip"><p>{title}{no_end}</p><div class="pictures">{"".join(pictures)}</div></div>'


def _instructions(survey: Survey) -> str:
    if not survey.instructions:
        return ""
    rows = [(each.text, f"{each.steps:,}", f"{each.ends:,}") for each in survey.instructions]
    return page.section(f"Instructions ({len(rows)})", page.table(("instruction", "steps", "ends"), rows))


def _tasks(survey: Survey) -> str:
    rows = [(each.text, each.episodes, each.matched_episodes) for each in survey.tasks]
    return page.section(f"Tasks ({len(rows)})", page.table(("task", "episodes", "matched"), rows))


def _statistics(survey: Survey) -> str:
    tables = "".join(
        f"<h3>{name}</h3>{page.table(('', 'mean', 'std', 'min', '1 %', '99 %', 'max', 'clipped', ''), dimension_rows(dimensions))}"
        for name, dimensions in (("Actions", survey.action), ("State", survey.proprio))
    )
    return page.section("Statistics", f"<p>Over all steps, before normalisation; the last action is the gripper, 1 = open.</p>{tables}")


def dimension_rows(dimensions: Iterable[Dimension]) -> list[tuple[object, ...]]:
    """Rows (number, mean, std, min, q01, q99, max, share clipped, remark) of a table of statistics."""
    return [
        (
            number,
            *(f"{value:.3f}" for value in (each.mean, each.std, each.min, each.q01, each.q99, each.max)),
            f"{each.clipped:.1%}",
            "near-constant" if each.near_constant else "" if each.normalised else "not normalised",
        )
        for number, each in enumerate(dimensions)
    ]
