"""`python -m veripo_ray` is `veripo`."""

from veripo_ray.cli import main

if __name__ == "__main__":
    main()
