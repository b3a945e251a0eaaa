"""trio's streams and listeners, what opens them, and how a run is enabled."""
