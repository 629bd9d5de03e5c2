"""Measuring a model: held-out problems, execution of what it wrote, pass@k, and the page that shows a run."""
