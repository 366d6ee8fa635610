"""Backbones: from an observation (images and text) to features. Each lives in a package of its own."""
