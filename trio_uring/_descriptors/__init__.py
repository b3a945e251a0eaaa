"""Who uses a descriptor, in which direction, and how it closes."""
