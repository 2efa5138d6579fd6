"""VeriPO-Ray: the VerIPO loop (GRPO, verifier, DPO) for video language models, on Ray.

This package is the method as a plain library; nothing in it imports Ray but the command line,
which hands over to `cluster`. It is imported at interpreter start (see `compat`): it stays empty.
"""

__version__ = "0.1.0"
