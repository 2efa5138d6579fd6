"""How a response becomes a reward: reading it, and comparing its answer with the gold one."""
