"""Evaluation: closed loop in the built-in tasks, open loop on datasets, statistics and reports."""
