"""Dense detectors: models, data, training and evaluation. Knows nothing of sparsity."""
