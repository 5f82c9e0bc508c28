"""Scaled dot-product attention over the first keys of each row, by one of several programs that compute the same.

xla        plain products; holds arrays [b n t s] of scores
cudnn      the fused kernel of NVIDIA's cuDNN (Dao et al. 2022, FlashAttention, arXiv:2205.14135), which holds none; 16-bit types only
blockwise  products for some queries at a time, computed again in the backward pass; holds none either, and runs anywhere
auto       cudnn where it can run, else xla
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from eosjax.types import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "blockwise")
SIXTEEN_BITS = ("bfloat16", "float16")
_BLOCK = 128  # queries at a time


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, implementation: str) -> jax.Array:
    """softmax(q kᵀ / √h) v, where every query of row b sees the first `lengths[b]` keys of the row; the softmax is float32.

    Args:
      q: [b t n h].
      k, v: [b s m h], where n is a multiple of m: query head i sees key-value head i // (n / m).
      lengths: i32 [b], at least 1; None for all keys.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      [b t n h] in the dtype of `q`.
    """
    if implementation == "auto":
        implementation = choose_attention(q.dtype.name, q.shape[-1])
    if implementation == "blockwise":
        return _blockwise(q, k, v, lengths)
    if implementation == "cudnn":
        return _cudnn(q, k, v, lengths)
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else None):  # see `lora.precision_of`
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="xla")


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> jax.Array:
    queries, keys = q.shape[1], k.shape[1]
    if keys % 2 and lengths is None:
        lengths = jnp.full(len(k), keys, jnp.int32)
    # The kernel of the backward pass takes even numbers of tokens alone.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")[:, :queries]


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None) -> jax.Array:
    queries = q.shape[1]
    blocks = -(-queries // _BLOCK)
    padded = jnp.pad(q, ((0, 0), (0, blocks * _BLOCK - queries), (0, 0), (0, 0)))
    split = jnp.moveaxis(padded.reshape(len(q), blocks, _BLOCK, *q.shape[2:]), 1, 0)

    @jax.checkpoint
    def of_block(block: jax.Array) -> jax.Array:
        return attend(block, k, v, lengths, "xla")

    merged = jnp.moveaxis(jax.lax.map(of_block, split), 0, 1)
    return merged.reshape(padded.shape)[:, :queries]


@functools.cache
def cudnn_problem() -> str | None:
    """Why cuDNN's kernel cannot be used on the default device; None if it can. Compiles a tiny case, once."""
    if jax.default_backend() != "gpu":
        return f"the devices are of the kind {jax.default_backend()}"
    shape = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    loss = lambda q, k, v: attend(q, k, v, jnp.full((1,), 32, jnp.int32), "cudnn").astype(jnp.float32).sum()
    try:
        jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    except Exception as error:  # no cuDNN, an old one, another card: each has a kind of its own
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return None


def choose_attention(dtype: str, head_dim: int) -> str:
    """The fastest program on the default device for a type and a size of heads: `cudnn` or `xla`."""
    fits = dtype in SIXTEEN_BITS and head_dim % 8 == 0 and head_dim <= 128  # more on Hopper alone
    return "cudnn" if jax.default_backend() == "gpu" and fits and cudnn_problem() is None else "xla"


def check_attention(implementation: str, dtype: str) -> str | None:
    """A line to say where a GPU must do without the fused kernel; None where there is nothing to say.

    Args:
      implementation: the flag `--attention`.
      dtype: of the computation.

    Raises:
      UserError: the flag asks for the kernel, which cannot run here.
    """
    if implementation == "cudnn":
        problem = cudnn_problem()
        if problem is None and dtype not in SIXTEEN_BITS:
            problem = f"it computes in {' or '.join(SIXTEEN_BITS)}, not in {dtype}"
        if problem is not None:
            raise UserError(f"--attention cudnn: the fused kernel cannot run here: {problem}")
    if implementation == "auto" and jax.default_backend() == "gpu" and dtype in SIXTEEN_BITS and (problem := cudnn_problem()) is not None:
        return f"attention by XLA: cuDNN's fused kernel cannot run here: {problem}"
    return None
