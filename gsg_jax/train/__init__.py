"""Training: the step (read step.py first), the experiment it is built from, and the loop."""
