"""Tables of `eosjax plan`: the parameters of a policy, and what fills the memory of a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eosjax.reports.tables import Row, table

_PURPOSES = {"frozen": "frozen weights", "trained": "trained weights", "temporaries": "activations, gradients"}


_TRAFFIC = {"gradients": "gradients", "layers": "frozen layers", "rows": "rows for the buffer"}


class ParameterGroup(NamedTuple):
    """A part of the policy."""

    name: str
    number: int
    size: int  # bytes
    trained: bool
    dtypes: Sequence[str]


def parameter_table(groups: Sequence[ParameterGroup]) -> str:
    """A row a group, and the sum."""
    rows: list[Row] = [("parameters", "number", "GB", "")]
    for each in groups:
        state = "trained" if each.trained else "frozen"
        rows.append((each.name, f"{each.number:,}", _gigabytes(each.size), f"{state}, {' and '.join(each.dtypes)}"))
    trained = sum(each.number for each in groups if each.trained)
    rows.append(("all", f"{sum(each.number for each in groups):,}", "", f"{trained:,} of them trained"))
    return table(rows, right=" rr")


def memory_table(memories: Mapping[int, Mapping[str, int]]) -> str:
    """A column a batch size, a row a purpose, and the sum.

    Args:
      memories: by batch size, bytes by purpose: the fields of `eosjax.training.plan.Memory`.
    """
    rows: list[Row] = [("GB on a device, at --batch_size", *map(str, memories))]
    for purpose in next(iter(memories.values())):
        rows.append((_PURPOSES.get(purpose, purpose), *(_gigabytes(memory[purpose]) for memory in memories.values())))
    rows.append(("peak", *(_gigabytes(sum(memory.values())) for memory in memories.values())))
    return table(rows, right=" rr")


def remat_table(options: Sequence[tuple[str, float, int, int]]) -> str:
    """A row for each way to recompute: its name, products of an update relative to none recomputed, bytes at the peak, largest batch."""
    rows: list[Row] = [("--remat", "products", "GB at the peak", "largest --batch_size")]
    for name, ratio, peak, batch in options:
        rows.append((name, f"{ratio:.2f}", _gigabytes(peak), str(batch) if batch else "none"))
    return table(rows, right=" rrr")


def speed_table(cards: Sequence[tuple[str, float]], mfu: float) -> str:
    """A row a card: samples a second at a model FLOPs utilisation of `mfu` percent."""
    rows: list[Row] = [("card", f"samples/s at {mfu:g} % MFU"), *((name, f"{samples:.3g}") for name, samples in cards)]
    return table(rows, right=" r")


def traffic_table(traffic: Mapping[str, int], devices: int, processes: int) -> str:
    """A row a purpose, and the sum: GB that a device sends, and receives, in an update.

    Args:
      traffic: bytes by purpose: the fields of `eosjax.training.traffic.Traffic`.
      devices, processes: of the run.
    """
    among = f"{devices} devices" + (f" of {processes} processes" if processes > 1 else "")
    rows: list[Row] = [(f"a device sends and receives, {among}", "GB an update")]
    rows += [(_TRAFFIC[purpose], _gigabytes(size)) for purpose, size in traffic.items()]
    return table([*rows, ("all", _gigabytes(sum(traffic.values())))], right=" r")


def scaling_table(cards: Sequence[tuple[str, float, float]], devices: int) -> str:
    """A row a card: samples/s of one device and of all, and the latter in percent of as many times the former."""
    rows: list[Row] = [("card", "samples/s, 1 device", f"{devices} devices", "of ideal")]
    rows += [(name, f"{one:.3g}", f"{several:.3g}", f"{several / (devices * one):.0%}") for name, one, several in cards]
    return table(rows, right=" rrr")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f}"
