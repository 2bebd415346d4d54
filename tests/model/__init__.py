"""A model of what CSI promises, and random sequences of calls from several clients checked against it."""
