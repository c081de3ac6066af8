"""Differential privacy: the plan, the sampler, per-example gradients, the noised sum."""
