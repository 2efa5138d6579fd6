"""Options in prose, by their letters (see `letters`) or their words, affirmed or denied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from veripo_ray.scoring import answers
from veripo_ray.verifier.judges import letters
from veripo_ray.verifier.judges.letters import Said
from veripo_ray.verifier.judges.quantities import in_digits
from veripo_ray.verifier.judges.windows import Window

_FUNCTION_WORDS = frozenset(
    {
        *("a", "an", "the", "he", "she", "it", "they", "his", "her", "its", "their", "in", "on"),
        *("at", "by", "with", "to", "of", "from", "through", "over", "under", "along", "into"),
    }
)
_ARTICLES = frozenset({"a", "an", "the"})
_DENIALS = frozenset(
    {"not", "t", "cannot", "neither", "nor", "never", "without", "no", "rather", "instead"}
)
_DENIALS_BEHIND = frozenset(
    {
        *("not", "isn", "wasn", "aren", "doesn", "didn", "cannot", "never", "wrong", "incorrect"),
        *("excluded", "impossible", "loses"),
    }
)
_VERBS = frozenset(
    {
        *("is", "are", "was", "were", "be", "s", "being", "shows", "to", "means", "remains"),
        *("seems", "becomes", "called"),
    }
)
_CACHED = 4096  # characters: a group's rollouts share their options, a stranger's may be large
_MIN_SUBJECT = 3  # words in front of an option that ends a sentence


@dataclass(frozen=True, slots=True)
class _Mention:
    letter: str
    start: int  # of its words in the text's
    end: int


class Options:
    """The options of one question, ready to be found in prose."""

    @classmethod
    def of(cls, options: tuple[str, ...]) -> Options:
        return _cached(options) if sum(map(len, options)) <= _CACHED else cls(options)

    def __init__(self, options: tuple[str, ...]) -> None:
        self.letters = answers.LETTERS[: len(options)].upper()
        whole = [_words(option) for option in options[: len(answers.LETTERS)]]
        cores = [_core(words) for words in whole]
        # `the box` for `In the box`, unless another option is `On the box`
        self._phrases: dict[str, list[tuple[str, tuple[str, ...]]]] = {}  # by their first word
        for letter, words, core in zip(self.letters, whole, cores, strict=True):
            own = {words} | ({core} if cores.count(core) == 1 else set())
            for phrase in filter(None, own):
                self._phrases.setdefault(phrase[0], []).append((letter, phrase))
        # `Point B` may be option A: then a letter in prose is not yet an option's
        self._labelled = any(
            len(word) == 1 and word.upper() in answers.LETTERS.upper() and word not in ("a", "i")
            for words in whole
            for word in words
        ) or ("a",) in {words[-1:] for words in whole}

    def read(self, window: Window) -> Said:
        """What a window concludes."""
        if window.stated:
            return letters.stated(window, labelled=self._labelled)
        if not window.cued:
            return self._read_sentence(window)
        by_words = self._only(window.text) if window.strong or window.last else None
        if self._labelled and by_words:
            return Said(by_words)
        if self._labelled and not window.strong:
            return Said()
        said = letters.read(window)
        if said.letter or said.unclear or (said.denied & set(self.letters) and not by_words):
            return said
        return Said(by_words, denied=said.denied)

    def named(self, text: str) -> str | None:
        """The letter of the only option whose words occur in `text`, or None."""
        found = {mention.letter for mention in _widest(self._mentions(_words(text)))}
        return found.pop() if len(found) == 1 else None

    def remaining(self, thinking: str) -> str | None:
        """The only letter that the chain does not exclude anywhere, if it excludes all others."""
        if len(set(self.letters) - letters.alone(thinking)) > 1:
            return None  # the usual case, for little
        excluded = letters.excluded(thinking)
        left = [letter for letter in self.letters if letter not in excluded]
        return left[0] if len(left) == 1 and len(self.letters) > 1 else None

    def _only(self, text: str) -> str | None:
        """The only option that `text` affirms by its words, or the one that it ends on."""
        words = _words(text)
        mentions = _widest(self._mentions(words))
        affirmed = [mention for mention in mentions if not _denied_before(mention, words)]
        if any(_DENIALS_BEHIND & set(words[m.end : m.end + 2]) for m in affirmed):
            return None
        found = {mention.letter for mention in affirmed}
        if len(found) > 1:
            found = {m.letter for m in affirmed if m.end == len(words) and _predicate(m, words)}
        return found.pop() if len(found) == 1 else None

    def _read_sentence(self, window: Window) -> Said:
        """A sentence without a cue is read only where it puts an option after its verb or last."""
        words = _words(window.text)
        letter = self._only(window.text)
        places = [m for m in _widest(self._mentions(words)) if m.letter == letter]
        if any(_predicate(m, words) or _ends(m, words) for m in places):
            return Said(letter)
        return Said()

    def _mentions(self, words: tuple[str, ...]) -> Iterator[_Mention]:
        for start, word in enumerate(words):
            for letter, phrase in self._phrases.get(word, ()):
                if words[start : start + len(phrase)] == phrase:
                    yield _Mention(letter, start, start + len(phrase))


@lru_cache(maxsize=256)
def _cached(options: tuple[str, ...]) -> Options:
    return Options(options)


def _widest(mentions: Iterator[_Mention]) -> list[_Mention]:
    """Without `red` inside a `dark red`, which was not meant by itself."""
    found = list(mentions)
    return [
        one
        for one in found
        if not any(
            other.start <= one.start
            and one.end <= other.end
            and other.end - other.start > one.end - one.start
            and other.letter != one.letter
            for other in found
        )
    ]


def _denied_before(mention: _Mention, words: tuple[str, ...]) -> bool:
    return bool(_DENIALS & set(words[max(0, mention.start - 3) : mention.start]))


def _predicate(mention: _Mention, words: tuple[str, ...]) -> bool:
    """Whether a verb such as `is` stands directly before it."""
    before = [word for word in words[: mention.start] if word not in _ARTICLES]
    return bool(before) and before[-1] in _VERBS


def _ends(mention: _Mention, words: tuple[str, ...]) -> bool:
    """Whether it comes last, give or take `after all`, and is not what the sentence is about."""
    return mention.end >= len(words) - 2 and mention.start >= _MIN_SUBJECT


def _core(words: tuple[str, ...]) -> tuple[str, ...]:
    """Without the small words that it begins with."""
    first = next((at for at, word in enumerate(words) if word not in _FUNCTION_WORDS), len(words))
    return words[first:]


def _words(text: str) -> tuple[str, ...]:
    """Words alone, folded, numbers as digits, for comparing an option with prose."""
    return tuple(re.findall(r"\w+", in_digits(text).casefold()))
