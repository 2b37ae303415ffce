"""A synthetic referring data set of coloured shapes, in the real input formats (SPEC section 3)."""
