"""How a run meets a cluster: checks before anything starts, launching, following."""
