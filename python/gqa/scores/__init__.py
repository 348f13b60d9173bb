"""Score functions: Python functions of one score, traced once into programs that the kernels run."""
