"""Whether the processes of every GPU fit its memory, at their worst moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veripo_ray import config
from veripo_ray.placement.cluster import GB, Node
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.memory import CONTEXT, Memory, longest_pair, of_process, rank
from veripo_ray.placement.packing import Placed
from veripo_ray.placement.roles import Process, Role

Need = tuple[Process, Memory]


@dataclass(frozen=True, slots=True)
class Load:
    """One GPU of a node with what sits there. peak: bytes at the worst moment; there: the GPU's,
    None where nobody tells."""

    node: Node
    gpu: int
    needs: tuple[Need, ...]
    peak: float
    there: float | None

    @property
    def fits(self) -> bool:
        return self.there is None or self.peak <= self.there


def loads(run: config.Run, placed: Sequence[Placed], model: Geometry) -> list[Load]:
    """Of every GPU that is used."""
    on: dict[tuple[str, int], tuple[Node, list[Need]]] = {}
    for place in placed:
        for process in place.bundle.processes:
            need = of_process(process, run, model, gpu_memory(run, place.node))
            for gpu in place.gpus:
                on.setdefault((place.node.id, gpu), (place.node, []))[1].append((process, need))
    return [
        Load(node, gpu, tuple(needs), _peak(run, model, needs), gpu_memory(run, node))
        for (_, gpu), (node, needs) in sorted(on.items(), key=lambda item: item[0])
    ]


def gpu_memory(run: config.Run, node: Node) -> float | None:
    """Bytes; what the settings say goes before what the node tells."""
    said = run.placement.gpu_memory_gb
    return said * GB if said else node.gpu_memory


def shortages(run: config.Run, found: Sequence[Load]) -> Iterator[str]:
    """What does not fit, each with its numbers; of GPUs that are short alike, one."""
    texts = [text for load in found if load.there for text in _short(run, load)]
    yield from dict.fromkeys(texts)


def _short(run: config.Run, load: Load) -> Iterator[str]:
    own = [*_own_share(run, load)]
    yield from own
    if load.there and not load.fits and not own:
        parts = ", ".join(f"{p.role} {m.total / GB:.1f}" for p, m in load.needs)
        yield (
            f"a GPU has {load.there / GB:.1f} GB of memory, and what sits on it takes "
            f"{load.peak / GB:.1f} at its worst moment: {parts}"
        )


def _own_share(run: config.Run, load: Load) -> Iterator[str]:
    """vLLM fills its share and no more: weights, one step's work and one sequence must fit that."""
    assert load.there
    share = run.rollout.gpu_memory_utilization * load.there
    for process, need in load.needs:
        if process.role == Role.ROLLOUT and need.total > share * (1 + 1e-9):
            yield (
                f"a rollout worker takes {need.total / GB:.1f} GB of each GPU (weights "
                f"{need.weights / GB:.1f}, keys and values of one sequence "
                f"{need.kv_cache / GB:.1f}), and rollout.gpu_memory_utilization = "
                f"{run.rollout.gpu_memory_utilization:g} of {load.there / GB:.1f} GB leaves it "
                f"{share / GB:.1f}"
            )


def _peak(run: config.Run, model: Geometry, needs: Sequence[Need]) -> float:
    """Where workers and ranks share a GPU they take turns; the encoder goes on. In a grpo step the
    reference rests, in the node's memory, or works before it; in a dpo step it works ahead of the
    learner."""
    if run.placement.layout == "separate":
        return sum(need.total for _, need in needs)
    of_pairs = rank(run, model, longest_pair(run)).total
    sampling = grpo = dpo = 0.0
    for process, need in needs:
        learner, reference = process.role == Role.LEARNER, process.role == Role.REFERENCE
        worker = process.role == Role.ROLLOUT
        away = worker or reference  # from the GPU, but for a context
        sampling += CONTEXT if reference else need.resting if learner else need.total
        grpo += CONTEXT if away else need.total
        dpo += CONTEXT if worker else of_pairs if learner else need.total
    return max(sampling, grpo, dpo)
