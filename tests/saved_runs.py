"""Run folders with random weights in them, as training leaves them: made without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax import config as configs
from eosjax import flags
from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import PromptForm
from eosjax.data.specs import DatasetSpec, spec_for
from eosjax.data.stats import DatasetStats, compute_stats
from eosjax.ends.calibration import Calibration
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import Rule
from eosjax.models.openvla import VLAConfig
from eosjax.models.parts import base_parts, init_params, split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.load import TOKENIZER_FILE
from eosjax.runs.policy_source import PolicySource
from eosjax.runs.record import CheckpointRecord, DatasetRecord, RunRecord, Software, Validation, fingerprint
from eosjax.training.state import init_state, make_learner
from eosjax.types import Batch
from tests.checkpoints import HEADS, write_checkpoint

SPECS = """
tiny: {image_keys: [image], state_keys: [state], gripper: as_stored, chunk: 2, action_size: 2, proprio_size: 3, control_hz: 5}
"""
POINT = OperatingPoint(
    Calibration(shift=-3.0, scale=1.5, bias=0.25, note="made up"), Rule(0.2, min_steps=4), 0.4, 0.25, "false_alarms:1", 7
)
SHARE = 0.02
SOFTWARE = Software("0", "0", "cpu", "cpu", 1)


def statistics(spec: DatasetSpec, seed: int = 0) -> DatasetStats:
    """Statistics of made-up actions and states."""
    rng = np.random.default_rng(seed)
    actions, states = rng.normal(2.0, 3.0, (100, spec.action_size)), rng.normal(size=(100, spec.proprio_size))
    return compute_stats(actions, states, 5, spec.action_mask)


class Saved(NamedTuple):
    """A run folder and what its last checkpoint holds, the frozen base included."""

    folder: Path
    config: TrainConfig
    params: Params


def random_like(tree, seed):
    """A tree of the same shapes and dtypes, no array of which is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), tree)


def example_batch(shape):
    """A batch of one sample, zeros, for a policy of the shape."""
    size, text = shape.dino.image_size, shape.action_tokens + 3
    return Batch(
        images=np.zeros((1, 1, size, size, 3), np.uint8),
        input_ids=np.zeros((1, text), np.int32),
        attn_mask=np.ones((1, text), bool),
        proprio=np.zeros((1, shape.proprio_dim), np.float32),
        actions=np.zeros((1, shape.chunk, shape.action_dim), np.float32),
        eos=np.zeros((1, shape.chunk), np.float32),
        valid=np.ones((1, shape.chunk), bool),
        key=np.zeros(1, np.int32),
    )


def run_record(config: TrainConfig, shape: VLAConfig, tokenizer_json: bytes, base: Params) -> RunRecord:
    """A record as training makes one, of datasets that nobody has read."""
    specs = {member.name: spec_for(member.name, config.dataset_specs) for member in config.mixture}
    return RunRecord(
        config=config,
        datasets=tuple(
            DatasetRecord(member.name, member.weight, spec, statistics(spec, number), f"frames {number}", f"labels {number}", (1, 4))
            for number, (member, spec) in enumerate(zip(config.mixture, specs.values(), strict=True))
        ),
        share_of_ends=SHARE,
        samples_per_update=8,
        model=shape,
        prompt=PromptForm.of(config.rephrase),
        tokenizer=fingerprint(tokenizer_json),
        base=fetch_fingerprints(base),
        base_revision=None,
        software=SOFTWARE,
        wandb_id=None,
    )


def save_run(
    folder: Path, config: TrainConfig, steps: tuple[int, ...], point: OperatingPoint = POINT, scores: Mapping[int, float] | None = None
) -> Saved:
    """Saves random parameters as the checkpoints of a run with this configuration and operating point.

    `scores`: frame average precision of the validation at some of the steps; later ones keep it. None: the last step has one.
    """
    policy = PolicySource.open(config)
    shape = policy.vla_config(config, spec_for(config.mixture[0].name, config.dataset_specs))
    learner = make_learner(config, shape)
    shapes = jax.eval_shape(lambda key: init_params(learner.policy, learner.eos_head, example_batch(shape), key), jax.random.key(0))
    trainable, frozen = split_params(shapes)
    base = base_parts(policy.pretrained.load_base(shape, lambda _, array: np.asarray(array))[0], shape) if policy.pretrained else {}
    base = {part: base[part] for part in frozen}
    folder.mkdir()
    flags.save(config, folder / configs.CONFIG_FILE)
    (folder / TOKENIZER_FILE).write_bytes(policy.tokenizer_json)
    run = run_record(config, shape, policy.tokenizer_json, base)
    checkpoints = Checkpoints(folder / configs.CHECKPOINTS, keep=len(steps))
    scores = {steps[-1]: 0.5} if scores is None else scores
    validation, chosen = None, point if config.use_eos_classification else None
    for step in steps:
        trainable = random_like(trainable, step)
        state = init_state(learner, jax.tree.map(jnp.asarray, trainable), jax.random.key(1))
        if step in scores:
            validation = Validation(step, {"val/action_loss": 0.25, "val/frame/average_precision": scores[step]}, chosen)
        checkpoints.save(state, CheckpointRecord(run, step, validation, chosen, fetch_fingerprints(state)))
    checkpoints.close()
    return Saved(folder, config, trainable | base)


def make_run(folder: Path, steps: tuple[int, ...] = (10,), scores: Mapping[int, float] | None = None, **changes) -> Saved:
    """A run from the checkpoint that `write_checkpoint` writes to `folder`/base; with LoRA unless the changes say otherwise."""
    folder.mkdir(exist_ok=True)
    (folder / "specs.yaml").write_text(SPECS)
    write_checkpoint(folder / "base")
    settings = {
        "vla_path": str(folder / "base"),
        "vision_heads": HEADS,
        "model_dtype": "float32",
        "lora_rank": 4,
        "dataset_name": "tiny",
        "dataset_specs": folder / "specs.yaml",
        "use_proprio": True,
        "eos_hidden_dim": 6,
    }
    return save_run(folder / "run", TrainConfig(**(settings | changes)), steps, scores=scores)
