"""A bundle at work: memory slots, compiled steps, and what a session does between two action chunks."""
