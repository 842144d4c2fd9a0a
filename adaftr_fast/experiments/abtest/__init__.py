"""The online A/B test of Section 3.4 as a simulation on a synthetic log, whose true probabilities are known."""
