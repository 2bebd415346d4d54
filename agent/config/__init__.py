"""Settings: their defaults with units and reasons, where they are read from, and what is said of wrong ones."""
