"""Values of fields of JSON files, of the right type and within the range that a policy can have."""

from __future__ import annotations

from eosjax.fields import show
from eosjax.models.hf.weights import WeightsError


def whole(value: object, what: str, least: int = 1, most: int = 1 << 20) -> int:
    """A whole number; `WeightsError` otherwise, which begins with `what`: file and field."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WeightsError(f"{what}: expected a whole number from {least} to {most}, got {show(value)}")
    return value


def real(value: object, what: str, least: float, most: float) -> float:
    """A number, as `whole`; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise WeightsError(f"{what}: expected a number from {least:g} to {most:g}, got {show(value)}")
    return float(value)


def flag(value: object, what: str) -> bool:
    """True or false; null stands for false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise WeightsError(f"{what}: expected true or false, got {show(value)}")


def sequence(value: object, what: str, length: int) -> list:
    """A list of that length."""
    if not isinstance(value, list) or len(value) != length:
        raise WeightsError(f"{what}: expected a list of {length} values, got {show(value)}")
    return value


def mapping(value: object, what: str) -> dict:
    """An object."""
    if not isinstance(value, dict):
        raise WeightsError(f"{what}: expected an object, got {show(value)}")
    return value
