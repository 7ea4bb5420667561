"""Memory tiers: what there is, what it can do, what goes where, and how it gets there.

discover -> calibrate -> costs, planner -> storage, stream
"""
