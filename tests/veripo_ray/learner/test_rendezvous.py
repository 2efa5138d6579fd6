"""Ranks that do not come are named, within a bounded time."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist

from veripo_ray.errors import ResourceError
from veripo_ray.learner import rendezvous


def test_missing_ranks_are_named_after_a_bounded_wait():
    store, port = rendezvous.host()
    other = rendezvous.connect(("127.0.0.1", port), 5)
    other.set("here/2", "elsewhere")
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"ranks \[1, 3\] of 4 did not join within 0.3 s"):
        rendezvous.call_the_roll(store, 0, 4, 0.3)
    assert time.monotonic() - started < 30


def test_the_roll_is_complete_when_everybody_has_come():
    store, port = rendezvous.host()
    rendezvous.connect(("127.0.0.1", port), 5).set("here/1", "elsewhere")
    rendezvous.call_the_roll(store, 0, 2, 5)


def test_rank_0_that_does_not_answer_is_named_with_its_address():
    store, port = rendezvous.host()
    del store
    with pytest.raises(ResourceError, match=f"rank 0 did not answer at 127.0.0.1:{port}"):
        rendezvous.connect(("127.0.0.1", port), 1)


def test_two_meetings_never_share_a_port():
    (first, port), (second, other) = rendezvous.host(), rendezvous.host()
    assert port != other
    first.set("name", "first")
    second.set("name", "second")
    assert first.get("name") == b"first"


def test_a_process_is_one_rank_for_life(learner):
    learner()
    assert dist.is_initialized()
    with pytest.raises(ResourceError, match="rank 0 of 1 already, not rank 1 of 2"):
        rendezvous.join(rendezvous.alone(), 1, 2, "gloo", 1)


def test_ranks_meet_on_the_interface_of_their_nodes_address() -> None:
    assert rendezvous.interface_of("127.0.0.1") == "lo"
    assert rendezvous.interface_of("203.0.113.7") is None  # of documentation: nobody has it
