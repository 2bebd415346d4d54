"""Work in the background: what is to go on for ever, what is to be done once, and what became of both."""
