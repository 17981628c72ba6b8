"""Synthetic scenes with exact ground truth: textured shapes over photographs, and prompts that ask for them."""
