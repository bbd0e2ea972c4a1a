"""What the suites share: how much they measure, whom, and how figures are printed."""
