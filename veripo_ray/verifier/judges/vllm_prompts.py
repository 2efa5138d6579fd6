"""A checkpoint's tokenizer: a judge's prompt as token ids, and the tokens of yes and no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from veripo_ray.errors import CheckpointError


class Prompts:
    """yes_ids, no_ids: every spelling of the two words that is a single token.

    Raises CheckpointError for a folder without tokenizer, or one that cannot say yes or no.
    """

    def __init__(self, checkpoint: str) -> None:
        from transformers import AutoTokenizer

        if not (Path(checkpoint) / "tokenizer_config.json").is_file():
            raise CheckpointError(
                f"judges.vllm.model = {checkpoint!r} is no folder with a model and its tokenizer",
                fix="give a folder in Hugging Face layout, there on every node",
            )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.yes_ids, self.no_ids = self._spellings("yes"), self._spellings("no")
        if not (self.yes_ids and self.no_ids):
            raise CheckpointError(
                f"the tokenizer of judges.vllm.model = {checkpoint!r} has no token for yes and no",
                fix="use a language model whose vocabulary has both words",
            )
        self._special = re.compile("|".join(map(re.escape, self._specials())) or "(?!)")

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids [P] of each: a user's turn, in the checkpoint's chat template if it has one.
        What a prompt spells of the model's special tokens is taken apart.

        All at once, since the tokenizer then lets other threads work meanwhile.
        """
        templated = self._tokenizer.chat_template is not None
        turns = [self._turn(prompt) for prompt in prompts]
        encoded = self._tokenizer(
            turns, add_special_tokens=not templated, return_attention_mask=False
        )
        return encoded.input_ids if turns else []

    def _turn(self, prompt: str) -> str:
        plain = self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", prompt)
        if self._tokenizer.chat_template is None:
            return plain
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": plain}],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,  # known to templates of models that would think first
        )

    def _specials(self) -> list[str]:
        """The special tokens' text, the longest first."""
        added = self._tokenizer.added_tokens_decoder.values()
        named = {token.content for token in added if token.special}
        return sorted(named | set(self._tokenizer.all_special_tokens), key=len, reverse=True)

    def _spellings(self, word: str) -> list[int]:
        spelled = product(("", " "), (word, word.capitalize(), word.upper()))
        encoded = (
            self._tokenizer(space + form, add_special_tokens=False).input_ids
            for space, form in spelled
        )
        known = {ids[0] for ids in encoded if len(ids) == 1}
        return sorted(known - {self._tokenizer.unk_token_id})
