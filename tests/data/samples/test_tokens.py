import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosjax.data.samples.tokens import (
    REPHRASINGS,
    TokenizerError,
    demo_tokenizer,
    evaluation_prompt,
    load_tokenizer,
    training_prompt,
    wordings,
)

TOKENIZER = demo_tokenizer()


@pytest.fixture(scope="module")
def llama(golden):
    return load_tokenizer(golden / "tiny32k" / "checkpoint" / "tokenizer.json")


@pytest.mark.parametrize("case", ["fwd_img1_proprio0", "fwd_img2_proprio1"])
def test_prompts_have_the_ids_of_the_original(golden, llama, case):
    arrays = np.load(golden / "tiny32k" / f"{case}.npz")
    # As recorded: "<s> " + prompt + space (the empty token of the layout) + "</s>".
    prompts = [text.removeprefix("<s> ").removesuffix(" </s>") for text in json.loads(str(arrays["prompts_json"]))]
    input_ids, attn_mask = llama.encode(prompts, arrays["input_ids"].shape[1], 56)
    assert not attn_mask.all()
    for row, ids in enumerate(arrays["input_ids"]):
        recorded = ids[arrays["attention_mask"][row]]
        ours = input_ids[row, attn_mask[row]]
        at_actions = slice(-57, -1)
        assert np.isin(recorded[at_actions], np.arange(31744, 32000)).all()
        assert (ours[at_actions] == 1).all()
        np.testing.assert_array_equal(np.delete(ours, at_actions), np.delete(recorded, at_actions))


def test_evaluation_prompt_has_the_ids_of_the_original(golden, llama):
    arrays = np.load(golden / "tiny32k" / "predict_action.npz")
    assert evaluation_prompt("Pick up the cream cheese") == str(arrays["prompt"])
    expected = [*arrays["input_ids"][0], 29871, *[1] * 56, 2]
    input_ids, attn_mask = llama.encode([str(arrays["prompt"])], len(expected), 56)
    np.testing.assert_array_equal(input_ids[0], expected)
    assert attn_mask.all()


def test_ids_of_the_llama_vocabulary(llama):
    ids = (llama.bos_id, llama.stop_id, llama.pad_id, llama.empty_id)
    assert ids == (1, 2, 32000, 29871)


def test_prompts():
    assert len(REPHRASINGS) == len(set(REPHRASINGS)) == 14
    assert training_prompt("Lift {it}", 1) == "In: What is the correct procedure for the robot to Lift {it}\nOut:"
    assert evaluation_prompt("Lift It") == "In: What action should the robot take to lift it?\nOut:"
    assert wordings("lift it", rephrase=False) == [evaluation_prompt("lift it")]
    assert wordings("lift it", rephrase=True)[4] == training_prompt("lift it", 3)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 10))
def test_layout(prompts, num_placeholders, spare):
    sizes = [len(TOKENIZER.tokenizer.encode(prompt).ids) for prompt in prompts]
    length = max(sizes) + num_placeholders + 3 + spare
    input_ids, attn_mask = TOKENIZER.encode(prompts, length, num_placeholders)
    assert input_ids.dtype == np.int32
    assert input_ids.shape == attn_mask.shape == (len(prompts), length)
    tail = [TOKENIZER.empty_id, *[1] * num_placeholders, TOKENIZER.stop_id]
    for prompt, size, ids, mask in zip(prompts, sizes, input_ids, attn_mask, strict=True):
        assert ids[0] == TOKENIZER.bos_id
        assert TOKENIZER.tokenizer.decode(ids[1 : 1 + size].tolist()) == prompt
        padding = np.arange(length)[1 + size : length - len(tail)]
        assert (ids[padding] == TOKENIZER.pad_id).all()
        assert ids[length - len(tail) :].tolist() == tail
        assert np.flatnonzero(~mask).tolist() == padding.tolist()


def test_a_prompt_that_does_not_fit_is_named_with_the_length_it_needs():
    prompts = ["In: a\nOut:", "In: a much longer one\nOut:"]
    needed = len(TOKENIZER.tokenizer.encode(prompts[1]).ids) + 56 + 3
    TOKENIZER.encode(prompts, needed, 56)
    with pytest.raises(ValueError, match=rf"'In: a much longer one\\nOut:' needs a length of {needed} tokens, got {needed - 1}"):
        TOKENIZER.encode(prompts, needed - 1, 56)


@pytest.mark.parametrize("rephrase", [False, True])
def test_required_length_is_the_smallest_that_fits(rephrase):
    instructions = ["pick up the bowl", "place the cream cheese next to the wine bottle"]
    prompts = [prompt for instruction in instructions for prompt in wordings(instruction, rephrase)]
    length = TOKENIZER.required_length(instructions, 56, rephrase)
    TOKENIZER.encode(prompts, length, 56)
    with pytest.raises(ValueError, match="needs a length"):
        TOKENIZER.encode(prompts, length - 1, 56)


def test_special_tokens_in_an_instruction_are_text():
    ids = TOKENIZER.tokenizer.encode("pick </s> <s> up").ids
    assert not {TOKENIZER.stop_id, TOKENIZER.bos_id, TOKENIZER.pad_id} & set(ids)


def test_demo_vocabulary_never_changes():
    """The ids are part of every demo checkpoint. After a change that is meant, put the digest that the failing test shows."""
    vocabulary = sorted(TOKENIZER.tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    assert digest[:16] == "89ec8198edc17105"
    assert TOKENIZER.vocab_size <= 600
    assert (TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.stop_id, TOKENIZER.empty_id) == (0, 1, 2, 3)


def with_tokens(body, path, **changes):
    """A tokenizer file with other ids; `changes`: token -> (id, place of its entry: vocab, added or both)."""
    body = json.loads(json.dumps(body))
    for token, (number, place) in changes.items():
        body["model"]["vocab"].pop(token, None)
        body["added_tokens"] = [entry for entry in body["added_tokens"] if entry["content"] != token]
        if place != "added":
            body["model"]["vocab"][token] = number
        if place != "vocab":
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            body["added_tokens"].append({"id": number, "content": token, **flags, "special": True})
    body["added_tokens"].sort(key=lambda entry: entry["id"])
    path.write_text(json.dumps(body), encoding="utf-8")
    return load_tokenizer(path)


@pytest.mark.parametrize("place", ["vocab", "added", "both"])
def test_action_ids_end_where_the_text_ends_wherever_the_pad_token_stands(golden, tmp_path, place):
    body = json.loads((golden / "tiny32k" / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = with_tokens(body, tmp_path / "tokenizer.json", **{"<PAD>": (32_000, place)})
    assert (tokenizer.text_vocab_size, tokenizer.vocab_size, tokenizer.pad_id) == (32_000, 32_001, 32_000)


def test_the_stop_token_is_that_of_the_file(tmp_path):
    body = json.loads(TOKENIZER.tokenizer.to_str())
    taken = next(token for token, number in body["model"]["vocab"].items() if number == 559)
    del body["model"]["vocab"][taken]
    body["model"]["merges"] = [pair for pair in body["model"]["merges"] if "".join(pair) != taken]
    tokenizer = with_tokens(body, tmp_path / "tokenizer.json", **{"</s>": (559, "both")})
    assert tokenizer.stop_id == 559
    ids, _ = tokenizer.encode(["In: a\nOut:"], 40, 4)
    assert ids[0, -1] == 559


def test_typical_instructions_are_short():
    for instruction in ("pick up the red block", "place the black bowl on the plate", "move the gripper away"):
        words = len(evaluation_prompt(instruction).split())
        assert len(TOKENIZER.tokenizer.encode(evaluation_prompt(instruction)).ids) <= words + 8


def test_files_that_are_no_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(TokenizerError, match=f"{path}: expected a tokenizer.json"):
        load_tokenizer(path)
    body = json.loads(TOKENIZER.tokenizer.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] != "<PAD>"]
    del body["model"]["vocab"]["<PAD>"]
    path.write_text(json.dumps(body))
    with pytest.raises(TokenizerError, match=f"{path}: expected the tokens .*; missing: <PAD>"):
        load_tokenizer(path)
