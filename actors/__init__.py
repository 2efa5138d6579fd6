"""Ray actors: each a thin host of one part of the library, and the coordinator that leads them."""
