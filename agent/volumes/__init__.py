"""What a volume is and how it comes to be: placement, the pure plan, the loop that applies it, the service in front.

The way of a request: `service` writes what is desired to the store, `reconcile.settle` compares it with what
`observed` knows of the target, `plan` says what is missing, `actions` does it in pipelined rounds.
"""
