"""Reductions over the devices of a mapped axis; without an axis they leave things as they are."""

from __future__ import annotations

from typing import TypeVar

from jax import lax

T = TypeVar("T")


def psum(tree: T, axis_name: str | None) -> T:
    """The sum over the devices."""
    return lax.psum(tree, axis_name) if axis_name else tree


def pmean(tree: T, axis_name: str | None) -> T:
    """The mean over the devices."""
    return lax.pmean(tree, axis_name) if axis_name else tree


def all_gather(tree: T, axis_name: str | None) -> T:
    """The rows of all devices, in the order of the devices: [n ...] becomes [devices * n ...]."""
    return lax.all_gather(tree, axis_name, tiled=True) if axis_name else tree
