"""Builds reflection traces: problems, teachers, a sandbox, the reflection loop and a TensorFlow Datasets builder."""

VERSION = "1.0.0"  # of the records that are built; another one means other records for the same settings
