"""Questions from files: our JSONL, the formats of others, and what is wrong with each bad row.

A row that cannot be used is reported by place and reason and left out; a file that cannot be
read, or whose format cannot be told, raises DataError.
"""

from veripo_ray.questions.left_out import LeftOut
from veripo_ray.questions.load import (
    FORMATS,
    BadItem,
    iter_questions,
    load_questions,
    write_questions,
)
from veripo_ray.questions.table import QuestionTable

__all__ = [
    "FORMATS",
    "BadItem",
    "LeftOut",
    "QuestionTable",
    "iter_questions",
    "load_questions",
    "write_questions",
]
