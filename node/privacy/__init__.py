"""Differential privacy at the level of patients: one accountant over all rounds, and DP-SGD that obeys it."""
