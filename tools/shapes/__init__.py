"""A synthetic data set of coloured shapes, in the format of RefCOCO."""
