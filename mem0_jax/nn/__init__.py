"""Layers, attention, rotary embeddings, scanned stacks: the parts every model is built from."""
