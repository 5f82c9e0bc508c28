"""Run folders with random weights in them, as training leaves them: made without training."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eosjax import config as configs
from eosjax import flags
from eosjax.config import TrainConfig
from eosjax.data.specs import spec_for
from eosjax.ends.calibration import Calibration
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import Rule
from eosjax.models.parts import base_parts, init_params, split_params
from eosjax.models.policies import Params
from eosjax.runs.checkpoint import Checkpoints, fetch_fingerprints
from eosjax.runs.data import PolicySource
from eosjax.training.state import init_state, make_learner
from eosjax.types import Batch
from tests.checkpoints import HEADS, write_checkpoint

SPECS = """
tiny: {image_keys: [image], state_keys: [state], gripper: as_stored, chunk: 2, action_size: 2, proprio_size: 3, control_hz: 5}
"""
POINT = OperatingPoint(
    Calibration(shift=-3.0, scale=1.5, bias=0.25, note="made up"), Rule(0.2, min_steps=4), 0.4, 0.25, "false_alarms:1", 7
)
SHARE, STATISTICS = 0.02, {"tiny": {"action": {"mean": [0.0, 1.0]}, "num_transitions": 9}}


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


def save_run(folder: Path, config: TrainConfig, steps: tuple[int, ...], point: OperatingPoint = POINT) -> Saved:
    """Saves random parameters as the checkpoints of a run with this configuration and operating point."""
    policy = PolicySource.open(config)
    shape = policy.vla_config(config, spec_for(config.mixture[0].name, config.dataset_specs))
    learner = make_learner(config, shape)
    shapes = jax.eval_shape(lambda key: init_params(learner.policy, learner.eos_head, example_batch(shape), key), jax.random.key(0))
    trainable, frozen = split_params(shapes)
    base = base_parts(policy.pretrained.load_base(shape, np.asarray)[0], shape) if policy.pretrained else {}
    base = {part: base[part] for part in frozen}
    folder.mkdir()
    flags.save(config, folder / configs.CONFIG_FILE)
    checkpoints = Checkpoints(folder / configs.CHECKPOINTS, keep=len(steps))
    for step in steps:
        trainable = random_like(trainable, step)
        record = {
            "samples": 8 * step,
            "config": (folder / configs.CONFIG_FILE).read_text(),
            "statistics": STATISTICS,
            "share_of_ends": SHARE,
            "operating_point": point.to_json() if config.use_eos_classification else None,
            "base": fetch_fingerprints(base),
            "validation": {},
        }
        state = init_state(learner, jax.tree.map(jnp.asarray, trainable), jax.random.key(1))
        checkpoints.save(step, state, record, None)
    checkpoints.close()
    return Saved(folder, config, trainable | base)


def make_run(folder: Path, steps: tuple[int, ...] = (10,), **changes) -> Saved:
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
    return save_run(folder / "run", TrainConfig(**(settings | changes)), steps)
