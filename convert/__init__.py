"""Weight conversion between PyTorch checkpoints and our parameter tree."""
