"""Shapes and dtypes of the arrays that modules exchange, in one place.

The containers are `NamedTuple`s: JAX sees pytrees, NumPy code needs no JAX.

Letters: b batch · v views (cameras) · h, w image size · l text length · p proprio size · k chunk length · a action size ·
d width of the language model · n rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # np.ndarray on the host, jax.Array on the device


class UserError(ValueError):
    """Something that the user can mend; the message says what and how, so that no traceback is needed."""


class Batch(NamedTuple):
    """One batch of training samples; a sample is an *anchor* step of an episode and the chunk that starts there."""

    images: Array  # u8 [b v h w 3], RGB
    input_ids: Array  # i32 [b l]: prompt, padding, empty token, k*a placeholders, stop token (see `data.samples.tokens`)
    attn_mask: Array  # bool [b l]: False on the padding
    proprio: Array  # f32 [b p], normalised; p = 0 when the policy sees none
    actions: Array  # f32 [b k a], normalised
    eos: Array  # f32 [b k]: 1 where a sub-step ends at that step
    valid: Array  # bool [b k]: False past the end of the episode
    key: Array  # i32 [b]: index of the sample in its dataset; -1 for a row that only fills up the batch


class EosSample(NamedTuple):
    """A class-balanced draw from the buffer: positives and negatives, shuffled."""

    items: Any  # pytree of arrays [n ...]
    labels: Array  # f32 [n]
    weights: Array  # f32 [n]: 1 for a real row, 0 for one that only fills the static shape
    ages: Array  # i32 [n]: additions to the buffer since the row entered
