"""InternVL3 without its language-model head: InternViT, pixel shuffle, projector, Qwen2.5. Source: transformers 5.5."""
