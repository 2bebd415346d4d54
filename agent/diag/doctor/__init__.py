"""The checks of `quarry doctor`: facts of a machine, gathered in one place, and pure functions that judge them."""
