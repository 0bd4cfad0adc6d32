"""Every benchmark beside its baseline, alternated in one run; medians and ratios."""
