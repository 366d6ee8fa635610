"""Meshes of devices, what lies where on them, and the start-up of several hosts."""
