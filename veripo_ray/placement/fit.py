"""Whether the processes of every GPU fit its memory, at their worst moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veripo_ray import config
from veripo_ray.placement.cluster import GB, Node
from veripo_ray.placement.geometry import Geometry
from veripo_ray.placement.memory import CONTEXT, Memory, of_process
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
        Load(node, gpu, tuple(needs), _peak(run, needs), gpu_memory(run, node))
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


def _peak(run: config.Run, needs: Sequence[Need]) -> float:
    """Where processes share a GPU, workers, ranks and the reference take turns, see `actors.turns`;
    the encoder goes on."""
    if run.placement.layout == "separate":
        return sum(need.total for _, need in needs)
    return max(sum(_held(*need, working) for need in needs) for working in _TURNS)


_TURNS = (Role.ROLLOUT, Role.LEARNER, Role.REFERENCE)


def _held(process: Process, need: Memory, working: Role) -> float:
    """While one of them works the others wait: the rank on the GPU, worker and reference in the
    node's memory, but for a CUDA context."""
    if process.role not in _TURNS or process.role == working:
        return need.total
    return need.resting if process.role == Role.LEARNER else CONTEXT
