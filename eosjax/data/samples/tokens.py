"""Prompts and their token ids in the static layout of the model's text input.

The layout of a row, l ids: `[BOS, prompt, padding, empty token, k*a placeholders, stop token]`. The padding stands
between prompt and actions, with the mask off, so that the action tokens are always at the same places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from eosjax.types import UserError

PLACEHOLDER_ID = 1  # embedded as zero by the model; the id is the one that the original uses at inference

# Ways to ask for an action, drawn at random in training when `rephrase` is on.
REPHRASINGS = (
    "What action should the robot take to {instruction}",
    "What is the correct procedure for the robot to {instruction}",
    "which action would the robot take to achive {instruction}",  # spelled as in the original's recorded prompts
    "What should the robot do to {instruction}",
    "What should the robot do in order to {instruction}",
    "How should the robot move to {instruction}",
    "How can the robot {instruction}",
    "How does the robot {instruction}",
    "What is the next action for the robot to {instruction}",
    "What motion lets the robot {instruction}",
    "Which movement is needed to {instruction}",
    "Which step should the robot take to {instruction}",
    "What would a robot do now to {instruction}",
    "What does it take for the robot to {instruction}",
)

# The corpus and the number of tokens of the demo tokenizer; a change of either changes every id.
_DEMO_VOCAB_SIZE = 560
_DEMO_WORDS = (
    "In Out What action should the robot take to do is correct procedure for which would achive how can does next "
    "motion lets needed move movement step pick place put push pull lift lower grasp release open close turn reach "
    "rotate slide insert stack pour press up down on in into onto from of at above below under over near left right "
    "front back top middle bottom away and it with without a an red green blue yellow orange purple black white "
    "grey brown big small gripper hand arm object block cube ball bowl plate cup mug pot pan box basket tray table "
    "stove cabinet drawer shelf rack door knob handle button bottle wine butter milk cheese cream soup sauce tomato "
    "salad dressing chocolate pudding book caddy target goal home position first second again then until ready"
)


def training_prompt(instruction: str, rephrasing: int) -> str:
    """The prompt with one of the `REPHRASINGS`, the instruction as it is stored.

    The space that follows "Out:" in the original is the empty token of the layout.
    """
    return f"In: {REPHRASINGS[rephrasing].format(instruction=instruction)}\nOut:"


def evaluation_prompt(instruction: str) -> str:
    """The one prompt of evaluation and of training without rephrasing; the instruction is lower-cased."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def wordings(instruction: str, rephrase: bool) -> list[str]:
    """The evaluation prompt and, with `rephrase`, the training prompts in the order of `REPHRASINGS`."""
    rephrased = [training_prompt(instruction, index) for index in range(len(REPHRASINGS))] if rephrase else []
    return [evaluation_prompt(instruction), *rephrased]


class TokenizerError(UserError):
    """A file that is no tokenizer of a policy."""


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """How an instruction becomes a prompt; `{instruction}` stands for it."""

    evaluation: str  # the instruction is lower-cased
    training: tuple[str, ...]  # drawn at random; empty: that of evaluation

    @classmethod
    def of(cls, rephrase: bool) -> PromptForm:
        """The form of this version, with or without `rephrase`."""
        evaluation, *training = wordings("{instruction}", rephrase)
        return cls(evaluation, tuple(training))


@dataclasses.dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer with the ids that the layout needs."""

    tokenizer: tokenizers.Tokenizer
    bos_id: int
    stop_id: int
    pad_id: int
    empty_id: int  # a lone word-boundary mark, "▁"

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest, added tokens included."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def text_vocab_size(self) -> int:
        """Number of ids up to the last one of text: the last ones stand for actions where actions are tokens.

        `<PAD>` and other added tokens behind the text do not count, whether the file has them within its vocabulary or beside it.
        """
        added = self.tokenizer.get_added_tokens_decoder().keys() | {self.pad_id}
        return 1 + max(set(self.tokenizer.get_vocab(with_added_tokens=True).values()) - added, default=-1)

    def encode(self, prompts: Sequence[str], length: int, num_placeholders: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask of n prompts in the static layout.

        Args:
            prompts: texts that end with "Out:".
            length: l, ids in a row.
            num_placeholders: action tokens, k*a.

        Returns:
            input_ids i32 [n l], attn_mask bool [n l] (False on the padding).

        Raises:
            ValueError: a prompt does not fit; names the longest one and the length it needs.
        """
        encoded = self._ids(prompts)
        needed = [self._row_length(ids, num_placeholders) for ids in encoded]
        if needed and max(needed) > length:
            longest = int(np.argmax(needed))
            raise ValueError(
                f"prompt {prompts[longest]!r} needs a length of {needed[longest]} tokens, got {length}; "
                f"{sum(n > length for n in needed)} of {len(prompts)} prompts do not fit"
            )
        input_ids = np.full((len(prompts), length), self.pad_id, np.int32)
        attn_mask = np.ones((len(prompts), length), bool)
        actions_at = length - num_placeholders - 1
        input_ids[:, 0] = self.bos_id
        input_ids[:, actions_at - 1] = self.empty_id
        input_ids[:, actions_at:-1] = PLACEHOLDER_ID
        input_ids[:, -1] = self.stop_id
        for row, ids in enumerate(encoded):
            input_ids[row, 1 : 1 + len(ids)] = ids
            attn_mask[row, 1 + len(ids) : actions_at - 1] = False
        return input_ids, attn_mask

    def required_length(self, instructions: Sequence[str], num_placeholders: int, rephrase: bool = False) -> int:
        """The smallest length that fits every prompt (see `wordings`) of these instructions."""
        prompts = [prompt for instruction in instructions for prompt in wordings(instruction, rephrase)]
        return max(self._row_length(ids, num_placeholders) for ids in self._ids(prompts))

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts), add_special_tokens=False)]

    @staticmethod
    def _row_length(ids: list[int], num_placeholders: int) -> int:
        return len(ids) + num_placeholders + 3  # BOS, empty token, stop token


def load_tokenizer(path: str | Path) -> PromptTokenizer:
    """The tokenizer of a Hugging Face `tokenizer.json` with the Llama special tokens and OpenVLA's `<PAD>`.

    Raises:
        TokenizerError: unreadable file, or one of the tokens is missing; names the file.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and panics that are no Exception
        raise TokenizerError(f"{path}: expected a tokenizer.json of Hugging Face tokenizers: {str(error)[:200]}") from error
    return _prompt_tokenizer(tokenizer, str(path), bos="<s>", stop="</s>", pad="<PAD>", empty="▁")


def demo_tokenizer() -> PromptTokenizer:
    """A byte-level BPE tokenizer of at most 560 ids for the demo model: always the same; it encodes any text."""
    special = ["<PAD>", "<s>", "</s>", "▁"]  # ids 0 to 3; <s> is 1 and </s> is 2 as in Llama's vocabulary
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_DEMO_VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_DEMO_WORDS, *wordings("", rephrase=True)], trainer)
    return _prompt_tokenizer(tokenizer, "demo tokenizer", bos="<s>", stop="</s>", pad="<PAD>", empty="▁")


def _prompt_tokenizer(tokenizer: tokenizers.Tokenizer, source: str, **tokens: str) -> PromptTokenizer:
    tokenizer.encode_special_tokens = True  # "</s>" in an instruction is text, not a stop token
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in tokens.values() if token not in vocabulary]
    if missing:
        raise TokenizerError(f"{source}: expected the tokens {', '.join(tokens.values())}; missing: {', '.join(missing)}")
    return PromptTokenizer(tokenizer, **{f"{role}_id": vocabulary[token] for role, token in tokens.items()})
