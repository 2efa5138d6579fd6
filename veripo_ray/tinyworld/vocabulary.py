"""The words of the tiny world: every token of its tokenizer is one of these."""

from __future__ import annotations

STEPS = 8
COLOURS = ("red", "green", "blue", "yellow")
SIDES = ("left", "right")
LETTERS = ("A", "B", "C", "D")
NUMBERS = tuple(str(n) for n in range(STEPS + 1))
FRAMES = tuple(f"f{k}" for k in range(1, STEPS + 1))
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TASKS = ("count", "moves", "last", "after")
ROLES = ("system", "user", "assistant")
GLUE = ("?", "so", "wait")

UNKNOWN = "<|unknown|>"
END_OF_TEXT = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
VISION_PAD, IMAGE_PAD, VIDEO_PAD = "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"

SPECIALS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    VISION_START,
    VISION_END,
    VISION_PAD,
    IMAGE_PAD,
    VIDEO_PAD,
    UNKNOWN,
)
WORDS = (*TAGS, *TASKS, *GLUE, *COLOURS, *SIDES, *LETTERS, *NUMBERS, *FRAMES, *ROLES)
