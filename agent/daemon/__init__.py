"""The composition roots: each builds the parts of one role, starts them in order, stops them in the reverse order."""
