import json

import pytest

from eosjax.config import TrainConfig
from eosjax.data.specs import spec_for
from eosjax.flag_values import ConfigError
from eosjax.runs.policy_source import PolicySource
from tests.checkpoints import HEADS, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "vla"
    write_checkpoint(folder)
    return folder


def shape(folder, **flags):
    config = TrainConfig(vla_path=str(folder), vision_heads=HEADS, **flags)
    return PolicySource.open(config).vla_config(config, spec_for("libero_goal_no_noops", None))


def test_actions_are_the_last_ids_of_the_text(folder):
    assert shape(folder, use_l1_regression=False).action_vocab == 560
    assert shape(folder).action_vocab == 0


def test_a_tokenizer_of_another_vocabulary_is_refused(folder):
    path = folder / "config.json"
    content = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(content) | {"pad_to_multiple_of": 64}))
        shape(folder)  # without actions as tokens nothing depends on it
        with pytest.raises(ConfigError, match=r"tokenizer.json: expected as many ids of text .* pad_to_multiple_of = 512; got 560"):
            shape(folder, use_l1_regression=False)
    finally:
        path.write_text(content)


@pytest.mark.parametrize(("fields", "scaling"), [({}, 3.5), ({"use_rslora": True}, 7 / 2**0.5), (None, 1.0)])
def test_the_scale_is_that_of_the_adapter_or_of_openvla(folder, tmp_path, fields, scaling):
    adapter = None
    if fields is not None:
        adapter = tmp_path
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 7, **fields}))
    config = shape(folder, lora_rank=2, lora_adapter_path=adapter)
    assert (config.lora_scaling, config.lora_rank) == (scaling, 2)
    assert shape(folder, lora_rank=32).lora_scaling == 0.5
