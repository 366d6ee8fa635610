"""Configurations, one file per job; `get_config()` returns an `ml_collections.ConfigDict`."""
