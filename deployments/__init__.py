"""Ray Serve applications: the verifier's endpoint."""
