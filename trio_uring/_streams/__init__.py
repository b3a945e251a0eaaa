"""trio's streams and listeners, the functions that open them, and enabling a run."""
