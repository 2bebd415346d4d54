"""The `quarry` command: parses, prints, exits. One module per command group; all imports of the product are lazy."""
