"""Training networks on pairs of records and velocity models: scales, losses, rates, scores."""
