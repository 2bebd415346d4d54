"""Where desired and observed state lives: the interface, and one module per database."""
