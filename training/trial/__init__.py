"""Trials: the same data, model and budget, two to four ways to train, paired seeds, and what differs."""
