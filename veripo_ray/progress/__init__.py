"""What a person sees while a run goes on: a live panel in a terminal, plain lines elsewhere."""

from veripo_ray.progress.display import Progress
from veripo_ray.progress.eta import Eta
from veripo_ray.progress.status import Status

__all__ = ["Eta", "Progress", "Status"]
