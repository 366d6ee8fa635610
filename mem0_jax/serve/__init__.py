"""The policy server: wire protocol, sessions batched into steps, a page to watch, and its client."""
