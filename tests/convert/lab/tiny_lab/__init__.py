"""A model of another project, as an installed package brings it: an embedding and a stack of layers."""
