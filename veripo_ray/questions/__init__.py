"""Questions from files: our JSONL, the formats of others, and what is wrong with each bad row.

A row that cannot be used is reported by place and reason and left out; a file that cannot be
read, or whose format cannot be told, raises DataError.
"""

from veripo_ray.questions.load import FORMATS, BadItem, load_questions, write_questions

__all__ = ["FORMATS", "BadItem", "load_questions", "write_questions"]
