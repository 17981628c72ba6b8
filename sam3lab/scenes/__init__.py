"""Synthetic scenes with exact ground truth: coloured, textured shapes over photographs, and prompts that ask for them."""
