"""Many runs that differ in a few settings, on one loaded base: which settings reach the lowest loss?

`space` says what is varied, `asking` which values come next (optuna), `trials` trains, `results` keeps.
"""
