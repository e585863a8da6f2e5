"""Evaluation of representations: features, k-NN, collapse figures."""
