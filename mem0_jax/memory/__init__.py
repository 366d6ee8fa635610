"""Memories: what a policy keeps of the past, as explicit state. One file per kind."""
