"""What the PyTorch original predicted, from raw images to unnormalised actions."""

import dataclasses

import numpy as np
import pytest

from benchmarks import parity
from eosjax.data.samples.tokens import load_tokenizer
from eosjax.data.stats import stats_from_json, unnormalise
from eosjax.ends.calibration import Calibration
from eosjax.ends.operating_points import OperatingPoint
from eosjax.serving.policy import Policy, Settings

_RECORDED = ("normalized_actions", "unnormalized_actions", "actions_hidden_states", "eos_logits")


@pytest.mark.parametrize(("views", "proprio"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_predict_action(golden, views, proprio):
    folder = golden / "tiny32k"
    arrays = dict(np.load(folder / "predict_action.npz"))
    recorded = {name: arrays[f"img{views}_proprio{proprio}/{name}"] for name in _RECORDED}
    model = parity.load(folder)
    config = dataclasses.replace(
        model.config,
        proprio_dim=arrays["proprio"].size if proprio else 0,
        llama=dataclasses.replace(model.config.llama, lm_head=False),
    )
    base = model.params | {"language_model": {key: tree for key, tree in model.params["language_model"].items() if key != "lm_head"}}
    parts = model.parts if proprio else {part: tree for part, tree in model.parts.items() if part != "proprio_projector"}
    (content,) = parity.files.read_json(folder / "checkpoint", "config.json")["norm_stats"].values()
    stats = stats_from_json(content)
    settings = Settings(
        cameras=("image", "wrist")[:views],
        image_aug=False,
        normalisation="q99",
        gripper="as_stored",
        control_hz=5.0,
        eos=OperatingPoint.unseen(Calibration(), 0.5),
    )
    policy = Policy(config, {"vla": base, **parts}, stats, load_tokenizer(folder / "checkpoint" / "tokenizer.json"), settings)

    pictures = [arrays["raw_image"][..., 3 * view : 3 * view + 3] for view in range(views)]
    # What was recorded went in normalised.
    observation = {"images": pictures, "state": unnormalise(arrays["proprio"], stats.proprio)}
    instruction = str(arrays["prompt"]).removeprefix("In: What action should the robot take to ").removesuffix("?\nOut:")
    outputs, prediction = policy.outputs(observation, instruction), policy(observation, instruction)
    expected = recorded["actions_hidden_states"].reshape(outputs.hidden.shape)
    np.testing.assert_allclose(outputs.hidden, expected, atol=parity.ABSOLUTE, rtol=0)
    np.testing.assert_allclose(outputs.actions[0], recorded["normalized_actions"], atol=parity.ABSOLUTE, rtol=0)
    np.testing.assert_allclose(outputs.eos_logits, recorded["eos_logits"][..., 0], atol=parity.ABSOLUTE, rtol=0)
    np.testing.assert_allclose(prediction.actions, recorded["unnormalized_actions"], atol=parity.ABSOLUTE, rtol=0)
    probabilities = 1 / (1 + np.exp(-recorded["eos_logits"][0, :, 0]))
    np.testing.assert_allclose(prediction.eos_raw, probabilities, atol=parity.ABSOLUTE, rtol=0)
    assert prediction.cut == 0  # every recorded logit is above 0
