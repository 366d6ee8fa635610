"""Policies: a backbone, a memory and heads, wired. One file per policy."""
