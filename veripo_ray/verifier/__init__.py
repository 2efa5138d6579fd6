"""The Rollout-Aware Verifier: checks of one response, judges of its consistency, and a client."""
