"""What is decided without looking: names, requests, plans, conditions, errors as they are recorded. No I/O, no clock.

What needs a store, a target or a host to be asked belongs to the rooms beside this one.
"""
