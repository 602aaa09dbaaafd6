"""The mathematics of low-rank adapters. Needs torch and nothing else."""
