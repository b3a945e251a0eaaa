"""Lists of buffers, exact reads and frames, over any trio stream. Nothing here knows of a ring."""
