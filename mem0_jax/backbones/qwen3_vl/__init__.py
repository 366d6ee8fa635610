"""Qwen3-VL (dense sizes): vision tower, deepstack, interleaved MRoPE, text stack. Source: transformers 4.57.1."""
