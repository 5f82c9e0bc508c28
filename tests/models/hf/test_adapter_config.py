import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.models.hf.adapter_config import AdapterConfig
from eosjax.models.hf.patterns import PatternError, check_pattern
from eosjax.models.hf.weights import WeightsError

CONTENT = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
NAME = "language_model.model.layers.10.self_attn.q_proj"
EXPONENTIAL = [
    "(a+)+$",
    "(a|a)*b",
    "(a{2,9}){9}",
    r"(\w\w)*",
    "(?=a)",
    ".*" * 6,
    "(.|.)" * 30 + "Z",
    "((.|.)|.)" * 30,
    "a" * 200_000,
    "(" * 300,
]


@pytest.mark.parametrize("text", EXPONENTIAL, ids=lambda text: text[:12])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_expressions_that_take_exponential_time_are_refused(field, text):
    value = {text: 4} if field.endswith("pattern") else text
    with pytest.raises(WeightsError, match=f"adapter_config.json: {field}: .*regular expression"):
        AdapterConfig.from_json(CONTENT | {field: value})


WRITTEN = [
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"(?:.*?(?:language|text).*?\.(?:q_proj|v_proj))",
    r"[a-z_]+\.fc\d",
    r".*\.(0|1)\.q",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_expressions_that_people_write_are_read(text):
    check_pattern(text, 2_000_000)
    assert AdapterConfig.from_json(CONTENT | {"target_modules": text}).targets == re.compile(text)


@settings(max_examples=50)
@given(st.text(st.sampled_from(list("a.*+|()?[]\\d$")), max_size=12))
def test_what_is_read_is_valid(text):
    try:
        check_pattern(text, 1000)
    except PatternError:
        return
    re.compile(text)


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({}, NAME, (2, 1.0)),
        ({"rank_pattern": {"q_proj": 8}}, NAME, (8, 0.25)),
        ({"rank_pattern": {"proj": 8}}, NAME, (2, 1.0)),  # a pattern is a whole part of the name, or several
        ({"rank_pattern": {"self_attn.q_proj": 4, "q_proj": 8}}, NAME, (4, 0.5)),  # the first one counts
        ({"alpha_pattern": {r"layers.\d+.self_attn.q_proj": 6}, "use_rslora": True}, NAME, (2, 6 / 2**0.5)),
        ({"alpha_pattern": {"^projector.fc1": 6}}, "projector.fc1", (2, 3.0)),
        ({"alpha_pattern": {"^fc1": 6}}, "projector.fc1", (2, 1.0)),
    ],
)
def test_rank_and_scale_of_a_layer(fields, name, expected):
    assert AdapterConfig.from_json(CONTENT | fields).of_module(name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({}, NAME, True),
        ({}, "projector.q_proj2", False),
        ({"target_modules": ["proj"]}, NAME, False),
        ({"target_modules": [NAME]}, NAME, True),
        ({"target_modules": ["self_attn.q_proj"]}, NAME, True),
        ({"target_modules": r".*\.layers\.(1|10)\.self_attn\.[qk]_proj"}, NAME, True),
        ({"target_modules": r"layers\.10\.self_attn\.q_proj"}, NAME, False),
        ({"exclude_modules": ["q_proj"]}, NAME, False),
        ({"exclude_modules": r".*\.10\..*"}, NAME, False),
    ],
)
def test_layers_with_a_branch(fields, name, expected):
    assert AdapterConfig.from_json(CONTENT | fields).has(name) is expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r: expected a whole number from 1 to 65536, got 0"),
        ({"r": True}, "r: expected a whole number from 1 to 65536, got True"),
        ({"lora_alpha": 0}, "lora_alpha: expected a number from 1e-6 to 1e6, or minus one, got 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha: expected a number"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false, got 'yes'"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern.q_proj: expected a whole number"),
        ({"rank_pattern": [1]}, "rank_pattern: expected an object"),
        ({"target_modules": "all-linear"}, "target_modules: expected a regular expression or a list of names, got 'all-linear'"),
        ({"target_modules": [1]}, "target_modules: expected a regular expression or a list of names"),
        ({"peft_type": "LOHA"}, "peft_type: expected 'LORA', got 'LOHA': other kinds of adapters"),
        ({"use_dorra": True}, r"use_dorra: unknown field \(did you mean use_dora\?\)"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: expected True or False or .*: this initialisation changes the base weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: expected None"),
    ],
)
def test_the_field_is_named(fields, message):
    with pytest.raises(WeightsError, match=f"^adapter_config.json: {message}"):
        AdapterConfig.from_json(CONTENT | fields)


def test_a_file_that_is_no_adapters():
    with pytest.raises(WeightsError, match="peft_type: expected 'LORA', got no such field"):
        AdapterConfig.from_json({"r": 2})
