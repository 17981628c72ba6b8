"""Training of sam3-nano on rendered scenes, from nothing to a directory in facebook/sam3's format."""
