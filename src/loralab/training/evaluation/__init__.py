"""Measuring a base and adapters: loss, perplexity, generated answers, and the table that they are kept in.

`settings` says what to measure, `lineup` holds one base with any number of adapters, `measure` goes through
them, and `table` is ``evaluations.csv``. `loralab.training.loop.evaluate` is what makes the loss.
"""
