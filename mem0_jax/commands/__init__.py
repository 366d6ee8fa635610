"""The commands of the `mem0-jax` program: one module each, with `main(argv)`."""
