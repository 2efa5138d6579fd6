"""A chain is searched for cues from its end, in pieces, and none is missed or made up by that."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from veripo_ray.verifier.judges import windows
from veripo_ray.verifier.judges.patterns import any_case, each

PIECES = (
    *("So ", "the answer is therefore ", "answer: ", "B is correct", "matches (B)", "so that "),
    *("it is option ", "\\boxed{3}", "x", "7", " ", ". ", ",", "\n", "a red car passes " * 9),
)


@given(st.lists(st.sampled_from(PIECES), max_size=80).map("".join))
def test_cues_of_the_pieces_are_those_of_the_whole_text(thinking):
    whole = [cue.span() for cue in windows._CUE.finditer(thinking)]
    assert [cue.span() for cue in windows._cues(thinking)] == whole[::-1]


def test_any_of_several_phrases_is_found_in_either_case():
    pattern = any_case(*each("so|thus|to sum up"), "sea")
    assert pattern.count("[sS]") == 1
    found = re.findall(rf"\b{pattern}", "So it is. THUS, tO sum uP: sofa, Sea")
    assert found == ["So", "THUS", "tO sum uP", "Sea"]
