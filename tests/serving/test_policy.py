import dataclasses
import subprocess
import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from eosjax.config import TrainConfig
from eosjax.data.samples.tokens import demo_tokenizer
from eosjax.data.specs import DatasetSpec
from eosjax.ends.calibration import Calibration
from eosjax.ends.operating_points import OperatingPoint
from eosjax.ends.protocols import Clock, Rule
from eosjax.models.openvla import OpenVLA, with_action_tokens
from eosjax.models.policies import vla_variables
from eosjax.runs.checkpoint import CheckpointError
from eosjax.runs.load import load_run
from eosjax.runs.policy_source import PolicySource
from eosjax.serving import policy as module
from eosjax.serving.policy import ObservationError, Origin, OutputError, Outputs, Policy, first_end
from eosjax.types import UserError
from tests.saved_runs import POINT, random_like, save_run, statistics
from tests.serving.conftest import SETTINGS, TINY, params


def row_of(observation, row):
    return {"images": [view[row] for view in observation["images"]], "state": observation["state"][row]}


def test_a_row_of_a_batch_is_what_it_is_alone(policy, observe):
    observation, instructions = observe(3), ["close it", "open the top drawer of the cabinet", "push it"]
    together = policy(observation, instructions)
    assert together.actions.shape == (3, 8, 7)
    assert together.eos.shape == together.eos_raw.shape == (3, 8)
    assert len(together.cut) == 3
    assert together.clock == [None] * 3
    clocks = [Clock(steps, 0) for steps in (0, 3, 9)]
    after = policy(observation, instructions, clocks).clock
    for row, instruction in enumerate(instructions):
        alone = policy(row_of(observation, row), instruction)
        for field in ("actions", "eos_raw", "eos"):
            np.testing.assert_allclose(getattr(alone, field), getattr(together, field)[row], atol=1e-5, err_msg=field)
        assert alone.cut == together.cut[row]
        assert policy(row_of(observation, row), instruction, clocks[row]).clock == after[row]
    assert np.ptp(together.actions, axis=0).max() > 1e-2


def test_instructions_and_rows_share_compiled_functions(make_policy, observe, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(module, "_run", chex.assert_max_traces(module._run, n=1))
    policy = make_policy()
    policy(observe(3), ["close it", "open it", "push it"])
    policy(observe(4, size=8), ["close it", "open it", "put the bowl on top of the cabinet near the stove", "push it"])
    with pytest.raises(AssertionError, match="traced"):
        policy(observe(2), ["close it", "open it"])  # two rows are not padded to four


@pytest.mark.parametrize("image_aug", [False, True])
def test_a_frame_is_seen_as_in_evaluation(make_source, make_policy, image_aug):
    rng = np.random.default_rng(3)
    source = make_source((4, 3), image_aug=image_aug, image_size=TINY.dino.image_size)
    batch = source.batch(np.array([2, 5]))
    noise = rng.integers(0, 256, (2, 2, 20, 24, 3), dtype=np.uint8)
    policy = make_policy(source.data.datasets[0].stats, image_aug=image_aug)
    prepare = module.transforms.centre_crop if image_aug else module.transforms.resize
    batch = batch._replace(images=np.stack([[prepare(view, TINY.dino.image_size) for view in row] for row in noise]))
    names = source.data.labels.instructions
    frames = source.anchors[[2, 5]]
    instructions = [names[number] for number in source.data.labels.instruction_ids[frames]]
    observation = {"images": list(noise.swapaxes(0, 1)), "state": source.data.datasets[0].store.proprio[frames]}
    outputs = policy.outputs(observation, instructions)
    expected = OpenVLA(TINY).apply(vla_variables(params()), batch.images, batch.input_ids, batch.attn_mask, batch.proprio)
    np.testing.assert_allclose(outputs.hidden, expected, atol=1e-5)


def test_actions_are_in_the_units_of_the_dataset(policy, observe, stats):
    observation = observe(2)
    actions = policy(observation, ["close it", "open it"]).actions
    normalised = np.asarray(policy.outputs(observation, ["close it", "open it"]).actions, np.float64)
    low, high = stats.action.q01, stats.action.q99
    expected = (normalised + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(actions[..., :6], expected[..., :6], atol=1e-6)
    np.testing.assert_array_equal(actions[..., 6], normalised[..., 6])


def test_state_beyond_the_bounds_is_clipped_where_it_is_not_normalised_too(make_policy, observe, stats):
    proprio = dataclasses.replace(stats.proprio, mask=np.arange(8) < 7)
    policy, observation = make_policy(dataclasses.replace(stats, proprio=proprio)), row_of(observe(1), 0)
    far = [policy(observation | {"state": np.where(np.arange(8) == 7, value, 0.0)}, "close it").actions for value in (1.0, 5.0, 0.5)]
    np.testing.assert_array_equal(far[0], far[1])
    assert np.abs(far[0] - far[2]).max() > 1e-4


@pytest.mark.parametrize(("threshold", "cut"), [(0.5, 5), (0.12, 2), (0.999, None)])
def test_cut_at_the_first_calibrated_probability_that_reaches_the_threshold(make_policy, observe, threshold, cut, monkeypatch):
    calibration = Calibration(shift=-3.0, scale=0.8, bias=0.4)
    rule = Rule(0.05, debounce=2, min_steps=20)
    policy = make_policy(eos=OperatingPoint(calibration, rule, threshold, 0.9))
    wanted = np.array([0.01, 0.1, 0.2, 0.01, 0.3, 0.6, 0.9, 0.1])
    raw = (np.log(wanted / (1 - wanted)) - 0.4) / 0.8 + 3.0
    monkeypatch.setattr(policy, "_run", lambda *_: Outputs(jnp.zeros((1, 8, 7, 16)), jnp.zeros((1, 8, 7)), jnp.asarray(raw[None])))
    prediction = policy(row_of(observe(1), 0), "close it")
    np.testing.assert_allclose(prediction.eos, wanted, atol=1e-6)
    np.testing.assert_allclose(prediction.eos_raw, 1 / (1 + np.exp(-raw)), atol=1e-6)
    assert prediction.eos_raw[2] > 0.5  # raw, the cut would come too early
    assert (prediction.cut, prediction.clock) == (cut, None)
    with_clock = policy(row_of(observe(1), 0), "close it", Clock(steps=18, crossings=1))
    assert (with_clock.cut, with_clock.clock) == (2, Clock())  # step 21 of the sub-step, and the second crossing in a row
    early = policy(row_of(observe(1), 0), "close it", Clock(steps=3))
    assert (early.cut, early.clock) == (None, Clock(11, 4))
    assert policy.settings.rule == rule


def shapes_of(kind):
    changed = {"diffusion": True, "diffusion_train_steps": 4, "diffusion_steps": 2, "film": True}
    return dataclasses.replace(TINY, **changed) if kind == "diffusion" else with_action_tokens(TINY, TINY.llama.vocab_size)


@pytest.mark.parametrize("kind", ["diffusion", "tokens"])
def test_a_policy_without_regression_acts_alike_alone_and_in_company(make_policy, observe, kind):
    policy, observation = make_policy(config=shapes_of(kind)), observe(2)
    both = policy(observation, ["close it", "open it"])
    alone = policy(row_of(observation, 1), "open it")
    np.testing.assert_allclose(alone.actions, both.actions[1], atol=1e-4)
    np.testing.assert_allclose(alone.eos_raw, both.eos_raw[1], atol=1e-4)
    assert np.isfinite(both.actions).all()
    assert np.abs(both.actions[0] - both.actions[1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["regression", "diffusion"])
def test_unrolled_layers_with_weights_of_their_own_say_the_same(make_policy, observe, kind, monkeypatch):
    config = dataclasses.replace(TINY if kind == "regression" else shapes_of(kind), llama=dataclasses.replace(TINY.llama, depth=2))
    scanned = make_policy(config=config)(observe(2), ["close it", "open it"])
    monkeypatch.setattr(module, "unrolls", lambda: True)
    policy = make_policy(config=config)
    assert len(policy._params["vla"]["language_model"]["model"]["layers"]["mlp"]["up_proj"]["kernel"]) == 2
    unrolled = policy(observe(2), ["close it", "open it"])
    np.testing.assert_allclose(unrolled.actions, scanned.actions, atol=1e-4)
    np.testing.assert_allclose(unrolled.eos_raw, scanned.eos_raw, atol=1e-4)


def test_the_threshold_itself_is_reached():
    assert first_end(np.array([0.4, 0.5, 0.6]), 0.5) == 1


def test_without_an_eos_head_nothing_is_said_of_ends(make_policy, observe):
    prediction = make_policy(with_eos=False, eos=None)(observe(2), ["close it", "open it"])
    assert (prediction.eos, prediction.eos_raw, prediction.cut, prediction.clock) == (None, None, [None, None], [None, None])


@pytest.mark.parametrize(
    ("change", "instruction", "clock", "message"),
    [
        ({"state": [0.0] * 7 + [float("nan")]}, "close it", None, "state: .* got nan at index 7"),
        ({"images": [np.zeros((8, 8, 3), np.uint16)] * 2}, "close it", None, r"camera 0 \(image\): expected uint8 .* got uint16"),
        ({}, " ", None, "instruction: expected a text with a letter or digit"),
        ({}, b"close it", None, "instruction: expected a text .* got bytes"),
        ({}, "close it", 3, "clock: expected .* got int 3"),
    ],
)
def test_a_faulty_observation_is_told_before_the_networks_run(policy, observe, change, instruction, clock, message, monkeypatch):
    monkeypatch.setattr(policy, "_run", None)
    with pytest.raises(ObservationError, match=message):
        policy(row_of(observe(1), 0) | change, instruction, clock)


def test_a_batch_has_as_many_rows_as_instructions(policy, observe, monkeypatch):
    monkeypatch.setattr(policy, "_run", None)
    with pytest.raises(ObservationError, match="camera 0: expected 3 rows, one for each instruction, got 2"):
        policy(observe(2), ["close it"] * 3)
    with pytest.raises(ObservationError, match="clock: expected 2, one for each instruction, got 1"):
        policy(observe(2), ["close it"] * 2, [Clock()])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("field", "what"), [("actions", "normalised action"), ("eos_logits", "EOS logit")])
def test_what_is_not_finite_is_never_returned(policy, observe, field, what, value, monkeypatch):
    outputs = Outputs(jnp.zeros((1, 8, 7, 16)), jnp.zeros((1, 8, 7)), jnp.zeros((1, 8)))
    faulty = outputs._replace(**{field: getattr(outputs, field).at[0, 5].set(value)})
    monkeypatch.setattr(policy, "_run", lambda *_: faulty)
    for call in (policy, policy.outputs):
        with pytest.raises(OutputError, match=f"the policy's {what} is not finite in . place.*row 0, slot 5"):
            call(row_of(observe(1), 0), "close it")


def test_statistics_that_are_not_finite_are_told(make_policy, observe, stats, monkeypatch):
    action = dataclasses.replace(stats.action, q99=np.full(7, np.inf))
    policy = make_policy(dataclasses.replace(stats, action=action))
    monkeypatch.setattr(policy, "_run", lambda *_: Outputs(jnp.zeros((1, 8, 7, 16)), jnp.zeros((1, 8, 7)), None))
    with pytest.raises(OutputError, match="the policy's action is not finite in 48 place"):
        policy(row_of(observe(1), 0), "close it")


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run on two datasets with checkpoints of steps 1 and 2, the last of which is validated."""
    flags = {"dataset_name": "libero_goal,libero_10", "use_proprio": True, "image_aug": False}
    return save_run(tmp_path_factory.mktemp("runs") / "run", TrainConfig(vla_path="demo", use_lora=False, **flags), (1, 2))


def test_load_is_the_policy_that_was_saved(saved_run, observe, monkeypatch):
    """From the record: descriptions that were built in then need not be now."""
    vla_config = PolicySource.open(saved_run.config).vla_config(saved_run.config, DatasetSpec())
    monkeypatch.setattr("eosjax.data.specs.SPECS", {})
    observation = {"images": observe(1)["images"][0], "state": np.zeros(8)}
    settings = dataclasses.replace(SETTINGS, cameras=("image",), eos=POINT)
    origins = set()
    for step, number, dataset in ((None, 0, "libero_goal"), (1, 1, "libero_10")):
        loaded = Policy.load(saved_run.folder, step, dataset)
        origin = Origin(load_run(saved_run.folder, step).record.fingerprint, step or 2)
        assert loaded.settings == dataclasses.replace(settings, origin=origin)
        origins.add(origin)
        params = random_like(saved_run.params, step or 2)
        expected = Policy(vla_config, params, statistics(DatasetSpec(), number), demo_tokenizer(), settings)(observation, "close it")
        found = loaded(observation, "close it")
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.eos, expected.eos)
    assert len({origin.record for origin in origins}) == 2


def test_a_threshold_of_another_step_or_of_none_is_told(saved_run, tmp_path, caplog):
    caplog.set_level("INFO", "eosjax")
    Policy.load(saved_run.folder, dataset="libero_10")
    (record,) = caplog.records
    assert (record.levelname, "checkpoint of step 2 (the best validated" in record.getMessage()) == ("INFO", True)
    config = dataclasses.replace(saved_run.config, dataset_name="libero_10")
    untried = OperatingPoint.unseen(POINT.calibration, 0.5)
    saved = save_run(tmp_path / "run", config, (3,), untried, scores={})
    assert Policy.load(saved.folder).settings.rule == Rule(0.5)
    assert f"{saved.folder}, step 3: threshold 0.5; no held-out episodes were looked at" in caplog.records[-1].getMessage()
    between = save_run(tmp_path / "between", config, (4, 6), POINT, scores={4: 0.5})
    Policy.load(between.folder, "newest")
    assert caplog.records[-1].levelname == "WARNING"
    assert "chosen at step 4, not at this checkpoint's step 6" in caplog.records[-1].getMessage()


def test_load_asks_for_what_it_cannot_know(saved_run, tmp_path):
    folder = saved_run.folder
    with pytest.raises(UserError, match="trained on 2 datasets; name the one whose robot is used: libero_goal, libero_10"):
        Policy.load(folder)
    with pytest.raises(UserError, match="bridge_orig"):
        Policy.load(folder, dataset="bridge_orig")
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; expected best, newest or one of 1, 2"):
        Policy.load(folder, 7, "libero_10")
    with pytest.raises(CheckpointError, match="no checkpoint; expected the folder of a training run"):
        Policy.load(tmp_path)


def test_serving_comes_without_tensorflow():
    code = "import sys, eosjax.serving.policy; print([m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
