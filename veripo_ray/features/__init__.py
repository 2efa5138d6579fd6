"""Features of clips and images: each made once, and kept on disk for whoever wants them next."""

from veripo_ray.features.cache import DiskCache, default_folder
from veripo_ray.features.source import Counts, FeatureSource, open_cache

__all__ = ["Counts", "DiskCache", "FeatureSource", "default_folder", "open_cache"]
