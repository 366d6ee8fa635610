"""The demo: record experts, train a small Mem-0 with and without memory, evaluate both, report."""
