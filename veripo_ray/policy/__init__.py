"""The policy: prompts, media features, positions, the model family and its grouped forward."""
