"""A run, a cluster or the verifier on Kubernetes: manifests for KubeRay, and the image."""
