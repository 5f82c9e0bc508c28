"""Flags: the documented commands parse, and every mistake is answered with what to change."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.config import TrainConfig
from eosjax.flag_values import ALLOWANCES, NAMED_MIXTURES, ConfigError, parse_mixture
from eosjax.flags import load, parse, save
from tests.fuzz import JSON, damaged_bytes, in_bytes, refused_or_read

ROOT = Path(__file__).parents[1]


def test_the_original_command_parses():
    command = (
        "--vla_path openvla/openvla-7b --dataset_name libero_goal_no_noops --substep_labels_path substep_labels_output.json "
        "--use_eos_classification=True --eos_buffer_capacity=50 --eos_sample_positive=15 --eos_sample_negative=20 --lambda_eos=2.0"
    )
    config = parse(command.split())
    assert config == dataclasses.replace(
        TrainConfig(), dataset_name="libero_goal_no_noops", substep_labels_path=Path("substep_labels_output.json")
    )


def test_the_defaults_are_those_of_the_specification():
    config = parse([])
    expected = {
        "eos_buffer_capacity": 50, "eos_sample_positive": 15, "eos_sample_negative": 20, "eos_min_positive": 15,
        "eos_min_negative": 20, "eos_hidden_dim": 1024, "eos_dropout": 0.1, "lambda_eos": 2.0, "eos_threshold": 0.5,
        "use_eos_classification": True, "learning_rate": 5e-4, "lora_rank": 32, "batch_size": 8,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_switch_without_a_value_is_on():
    assert parse(["--resume", "--seed", "3"]) == dataclasses.replace(TrainConfig(), resume=True, seed=3)


def test_a_file_is_overridden_by_flags(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# a comment\nseed: 3\nlambda_eos: 1.5\n")
    config = parse(["--config_path", str(recipe), "--seed=4"])
    assert (config.seed, config.lambda_eos) == (4, 1.5)


def test_save_and_load_give_the_same_configuration(tmp_path):
    config = dataclasses.replace(
        TrainConfig(), substep_labels_path=Path("ä b/c.json " * 9), run_id_note="yes", learning_rate=1e-5, wandb_entity="null"
    )
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["false_alarms:0.5", "false_alarms:0", "f1:2", "cost:5", "early:0.05", "fixed"])
def test_operating_rules(text):
    rule = TrainConfig(eos_operating_point=text).operating_rule
    kind, _, number = text.partition(":")
    assert (rule.kind, rule.value, str(rule)) == (kind, float(number or 0), text)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse_and_open_with_their_command(recipe):
    parse(["--config_path", str(recipe)])
    assert f"--config_path configs/{recipe.name}" in recipe.read_text().split("\n\n")[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eos_min_positive 14", r"--eos_min_positive \(14\) is less than --eos_sample_positive \(15\).*to at least 15"),
        ("--eos_sample_negative 30", r"--eos_min_negative \(20\) is less than --eos_sample_negative \(30\)"),
        ("--eos_buffer_capacity 10", r"--eos_buffer_capacity \(10\) is less than --eos_min_positive \(15\).*at least 15"),
        ("--batch_size 0", "--batch_size must be greater than 0, got 0"),
        ("--max_steps=-1", "--max_steps must be greater than 0, got -1"),
        ("--learning_rate nan", "--learning_rate must be greater than 0, got nan"),
        ("--lora_dropout 1", "--lora_dropout must be at least 0 and less than 1"),
        ("--eos_threshold 1.5", "--eos_threshold must lie between 0 and 1"),
        ("--eos_operating_point best", "--eos_operating_point: expected false_alarms:K .* or fixed .*; got 'best'"),
        ("--eos_operating_point f1:1.5", "a whole number of steps.*; got 'f1:1.5'"),
        ("--eos_operating_point cost:0", "got 'cost:0'"),
        ("--eos_operating_point early:1", "got 'early:1'"),
        ("--eos_operating_point f1:inf", "got 'f1:inf'"),
        ("--eos_operating_point false_alarms:-1", "got 'false_alarms:-1'"),
        ("--eos_operating_point fixed:1", "got 'fixed:1'"),
        ("--model_dtype float16", "--model_dtype must be one of auto, bfloat16, float32, got float16"),
        ("--eos_tune off", "--eos_tune must be one of manual, auto"),
        ("--num_images_in_input 4", "--num_images_in_input must be one of 1, 2, 3"),
        ("--batch_size eight", "batch_size.*eight"),
        ("--eos_buffer_capcity 50", "unknown flag --eos_buffer_capcity: did you mean --eos_buffer_capacity?"),
        ("--frobnicate 1", "unknown flag --frobnicate; --help lists all"),
        ("--config_path nowhere.yaml", "--config_path nowhere.yaml: unreadable file: No such file"),
        ("--use_substep_eos False", "--use_substep_eos False leaves them out"),
        ("--vla_path demo", "add --use_lora False"),
        ("--vla_path demo --use_lora False --vla_revision v1", "--vla_revision v1: --vla_path demo is built here"),
        ("--use_diffusion True", "add --use_l1_regression False"),
        ("--use_diffusion True --use_l1_regression False --num_diffusion_steps_inference 51", "at most --num_diffusion_steps_train"),
        ("--use_film True --freeze_vision True", "choose one"),
        ("--vla_path demo --use_lora False --freeze_vision True", "not worth freezing"),
        ("--use_lora False --lora_adapter_path adapter", "needs --use_lora True"),
        ("--dataset_name a,b:0", "expected NAME, or NAME:WEIGHT with a weight above 0, separated by commas; got 'b:0'"),
        ("--dataset_name a:x", "got 'a:x'"),
        ("--dataset_name a:nan", "got 'a:nan'"),
        ("--dataset_name a:inf", "got 'a:inf'"),
        ("--dataset_name a,,b", "got ''"),
        ("--dataset_name a,b,a:2", "a is named twice"),
        ("--dataset_name a,b,c --substep_labels_path x,y", "expected one path, or one for each of the 3 datasets; got 2"),
        ("--allow unlabelled,all", r"--allow: expected some of these, .*mixed_conventions: mix datasets .*; got 'all'"),
        ("stray", "stray"),
        ("--run_id_note a/b", "--run_id_note: expected a plain name.*; got 'a/b': a / leads to another folder"),
        ("--run_id_override ..", "--run_id_override: expected a plain name.*; got '..': with a dot in front it is hidden"),
        ("--run_id_note .hidden", "--run_id_note: .*with a dot in front"),
        ("--dataset_name ../other", "--dataset_name: expected a plain name.*; got '..': with a dot in front"),
        ("--dataset_name libero_goal,.cache:2", "--dataset_name: .*'.cache': with a dot in front"),
        ("--vla_path .", "--vla_path: expected a plain name.*; got '.'"),
        ("--vla_path /", "--vla_path: .*a / leads to another folder"),
    ],
)  # fmt: skip
def test_mistakes_are_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"run_id_note": "a\0b"}, r"--run_id_note: .*got 'a\\x00b': it has characters that cannot be seen"),
        ({"run_id_override": "a\x1b[2J"}, "--run_id_override: .*cannot be seen"),
        ({"run_id_override": " "}, "--run_id_override: .*it is blank"),
        ({"run_id_override": "ü" * 128}, "--run_id_override: .*it has 256 bytes, and a file name has at most 255"),
        ({"run_id_note": "n" * 300}, "--run_id_note: .*it has 300 bytes"),
        ({"run_id_note": "n" * 200}, "--run_id_note: the name of the run's folder would have 2.. bytes.* --run_id_override"),
        ({"dataset_name": ",".join(f"dataset_{i:09}" for i in range(20)), "run_id_note": "n"}, "--dataset_name: .* would have 4.. bytes"),
    ],
)
def test_names_that_no_folder_can_have_are_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TrainConfig(), **flags)


@given(st.text(max_size=300), st.sampled_from(["run_id_note", "run_id_override", "dataset_name"]))
def test_a_name_that_is_accepted_is_that_of_a_folder_in_its_place(tmp_path_factory, text, flag):
    root = tmp_path_factory.getbasetemp() / "runs"
    try:
        config = dataclasses.replace(TrainConfig(), run_root_dir=root, **{flag: text})
    except ConfigError:
        return
    assert config.run_dir.parent == root
    config.run_dir.mkdir(parents=True, exist_ok=True)
    assert config.run_dir.name in os.listdir(root)
    assert not config.run_dir.name.startswith(".")


def test_a_name_as_long_as_a_file_name_may_be_is_accepted():
    short = dataclasses.replace(TrainConfig(), run_id_note="n")
    note = "n" * (256 - len(short.run_dir.name))
    assert len(dataclasses.replace(TrainConfig(), run_id_note=note).run_dir.name) == 255
    with pytest.raises(ConfigError, match="256 bytes"):
        dataclasses.replace(TrainConfig(), run_id_note=note + "n")
    # With a name of its own, what it would be made of does not matter.
    assert dataclasses.replace(TrainConfig(), run_id_override="run", run_id_note="n" * 300, vla_path=".").run_dir.name == "run"


def test_exceptions_are_named_one_by_one():
    assert parse(["--allow", "unlabelled, blank_tasks"]).allowances == {"unlabelled", "blank_tasks"}
    assert TrainConfig().allowances == frozenset()


def test_a_mixture_is_read_from_the_name():
    assert parse_mixture("one") == (("one", 1.0),)
    assert parse_mixture("one:2, two,three:0.5") == (("one", 2.0), ("two", 1.0), ("three", 0.5))
    suites = parse_mixture("libero_4_task_suites_no_noops")
    assert [name for name, _ in suites] == [f"libero_{suite}_no_noops" for suite in ("spatial", "object", "goal", "10")]
    assert {weight for _, weight in suites} == {1.0}
    assert "libero_4_task_suites" in NAMED_MIXTURES


@pytest.mark.parametrize("args", [["--substep_labels_path", ""], ["--data_root_dir= "], ["--cache_dir", "''"], ["--run_root_dir"]])
def test_an_empty_path_is_not_the_current_folder(args):
    with pytest.raises(ConfigError, match=f"{args[0].split('=')[0]}: expected a path, got an empty text"):
        parse(args)


def test_an_empty_path_of_a_file_is_not_the_current_folder(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("substep_labels_path: ''\n")
    with pytest.raises(ConfigError, match="--substep_labels_path: expected a path, got an empty text"):
        load(recipe)
    recipe.write_text("substep_labels_path:\n")
    assert load(recipe) == TrainConfig()


def test_each_dataset_of_a_mixture_has_its_labels():
    config = dataclasses.replace(TrainConfig(), dataset_name="one,eosjax_demo,two:3")
    assert config.label_paths == (None, None, None)
    one, each = (dataclasses.replace(config, substep_labels_path=Path(text)) for text in ("all.json", "a.json, b.json,c"))
    assert one.label_paths == (Path("all.json"), None, Path("all.json"))  # the demo brings its own
    assert each.label_paths == (Path("a.json"), Path("b.json"), Path("c"))
    assert dataclasses.replace(config, substep_labels_path=Path("a.json,, ")).label_paths == (Path("a.json"), None, None)  # of their own
    alone = dataclasses.replace(TrainConfig(), dataset_name="eosjax_demo", substep_labels_path=Path("mine.json"))
    assert alone.label_paths == (Path("mine.json"),)


def test_the_folder_of_a_mixture_has_a_plain_name():
    name = dataclasses.replace(TrainConfig(), dataset_name="one:2, two").run_dir.name
    assert name.startswith("openvla-7b+one-2+two+b8+")


def test_an_unknown_key_of_a_file_is_named_with_the_nearest(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lambda_eoss: 2\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml: unknown key lambda_eoss: did you mean lambda_eos\?"):
        parse(["--config_path", str(recipe)])


def test_a_key_twice_in_a_file_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 2\nbatch_size: 8\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"--config_path .*recipe.yaml: repeated key: 'seed' twice"):
        parse(["--config_path", str(recipe)])


def test_help_explains_every_flag():
    result = subprocess.run([sys.executable, ROOT / "train.py", "--help"], capture_output=True, text=True, check=True)
    text = re.sub(r"\s+", " ", result.stdout)
    for field in dataclasses.fields(TrainConfig):
        described = re.search(rf"--{field.name} \S+ (\w.{{10}})", text)
        assert described, field.name
    assert ", ".join(ALLOWANCES) in text


def test_a_mistake_on_the_command_line_ends_in_one_line():
    command = [sys.executable, str(ROOT / "train.py"), "--batchsize", "4"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "train.py: unknown flag --batchsize: did you mean --batch_size?\n"


RECIPE = "seed: 3\nlambda_eos: 1.5\nimage_aug: true\nvla_path: demo\nuse_lora: false\nallow: unlabelled, blank_tasks\n"
KEYS = st.sampled_from([field.name for field in dataclasses.fields(TrainConfig)])


@settings(max_examples=60)
@given(damaged_bytes(RECIPE.encode()) | st.dictionaries(KEYS, JSON, max_size=3).map(in_bytes) | JSON.map(in_bytes))
def test_any_file_is_a_configuration_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with refused_or_read():
        parse(["--config_path", str(path)])
