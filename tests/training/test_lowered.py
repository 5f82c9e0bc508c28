"""The step of the 7B policy as a GPU gets it, from shapes alone: fused attention, and no product that is not needed."""

import dataclasses
import re
from collections import Counter

import pytest

from eosjax.cli.plan import policy_shape
from eosjax.config import TrainConfig
from eosjax.data.specs import DatasetSpec
from eosjax.training.plan import count_flops, trace_step, without_kernels

TEXT = 101
FLAGS = {"num_images_in_input": 2, "use_proprio": True, "batch_size": 8}


def shape(**changes):
    vla_config, _ = policy_shape(TrainConfig(**FLAGS), DatasetSpec())
    return dataclasses.replace(vla_config, **changes)


@pytest.fixture
def a_gpu_with_cudnn(monkeypatch):
    """Stands in for what JAX asks of the card: a CPU installation has neither."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo", reason="this JAX keeps it elsewhere")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.usefixtures("a_gpu_with_cudnn")
def test_lowered_for_cuda_attention_is_fused_and_no_array_has_two_sequence_axes():
    config = TrainConfig(**FLAGS)
    text = trace_step(config, shape(attention="cudnn"), TEXT, 8).traced.lower(lowering_platforms=("cuda",)).as_text()
    # The language model and two encoders, each a loop over its layers
    assert Counter(re.findall(r"custom_call @(\S+?)\(", text)) == {"__cudnn$fmhaSoftmax": 3, "__cudnn$fmhaSoftmaxBackward": 3}
    tokens = {TEXT + 2 * 256 + 1, 256 + 1 + 4, 256}
    squares = {int(size) for size in re.findall(r"x(\d+)x\1x(?:bf16|f32|i1)>", text)}
    assert not squares & {size + more for size in tokens for more in (0, 1)}


def layer(tokens, inputs, outputs, rank=0, *, trained=False, first=False):
    """Products of a linear layer in an update: forward, for its input (not if it is the first), and for what is trained of it."""
    once = 2 * tokens * inputs * outputs
    return once * (1 + (not first) + trained) + 2 * 3 * tokens * rank * (inputs + outputs)


def attention(rows, tokens, width):
    """Scores and their sums of values, forward; two products for each of them backward."""
    return 3 * 2 * 2 * rows * tokens**2 * width


def minimal_flops(config, samples, rows_of_eos):
    """Floating-point operations in matrix products that an update of adapters and heads cannot do without."""
    rank, llama = config.lora_rank, config.llama
    images, total = samples * FLAGS["num_images_in_input"], 0
    for vit in (config.dino, config.siglip):
        tokens = vit.num_patches + vit.class_token + vit.register_tokens
        total += layer(images * vit.num_patches, 3 * vit.patch_size**2, vit.width, rank, first=True)
        block = [(vit.width, 3 * vit.width), (vit.width, vit.width), (vit.width, vit.mlp_dim), (vit.mlp_dim, vit.width)]
        each = sum(layer(images * tokens, *sizes, rank) for sizes in block) + attention(images, tokens, vit.width)
        total += (vit.depth - 1) * each
    vision = config.dino.width + config.siglip.width
    for sizes in ((vision, 4 * vision), (4 * vision, llama.width), (llama.width, llama.width)):
        total += layer(images * config.dino.num_patches, *sizes, rank)
    tokens = TEXT + FLAGS["num_images_in_input"] * config.dino.num_patches + 1
    sizes = 4 * [(llama.width, llama.width)] + 2 * [(llama.width, llama.mlp_dim)] + [(llama.mlp_dim, llama.width)]
    each = sum(layer(samples * tokens, *size, rank) for size in sizes) + attention(samples, tokens, llama.width)
    total += llama.depth * each
    width = config.action_dim * llama.width
    for sizes in ((width, llama.width), (llama.width, llama.width), (llama.width, llama.width), (llama.width, config.action_dim)):
        total += layer(samples * config.chunk, *sizes, trained=True)
    return total + layer(rows_of_eos, width, 1024, trained=True, first=True)


def test_without_recomputation_there_is_no_product_too_many():
    config, samples = TrainConfig(**FLAGS), 2
    vla_config = shape(attention="xla", remat="none")
    counted = count_flops(trace_step(config, vla_config, TEXT, samples))
    assert 0.99 < counted / minimal_flops(vla_config, samples, 35) < 1.05


def test_a_plan_of_fused_attention_compiles_what_needs_as_much_memory():
    config = TrainConfig(**FLAGS)
    assert without_kernels(config, shape()).attention == "blockwise"
    assert without_kernels(dataclasses.replace(config, attention="xla"), shape()).attention == "xla"
    assert without_kernels(config, shape(dtype="float32")).attention == "xla"
