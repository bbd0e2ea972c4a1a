"""The parts that all suites share: sizes, samples, budgets and reports."""
