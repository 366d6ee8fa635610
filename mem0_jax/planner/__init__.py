"""Naming the next subtask of a staged task."""
