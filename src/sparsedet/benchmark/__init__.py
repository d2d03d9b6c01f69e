"""Where sparsity meets detection: recipes, experiments, suites, and the files of other projects."""
