"""The report of a run: `write_report(folder)` makes one self-contained report.html of its files."""

from veripo_ray.report.page import write_report
from veripo_ray.report.samples import (
    Sample,
    SampleResponse,
    add_stage_samples,
    filmstrip,
    read_samples,
    write_samples,
)

__all__ = [
    "Sample",
    "SampleResponse",
    "add_stage_samples",
    "filmstrip",
    "read_samples",
    "write_report",
    "write_samples",
]
