"""Heads: from context tokens to actions, or to the end-of-subtask probability."""
