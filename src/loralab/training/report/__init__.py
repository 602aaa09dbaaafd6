"""What came of a run: ``report.md`` and its pictures.

`measuring` is the part that needs the model, before the first step and after the last; `report` writes the
page from the run's files alone, `advice` says in words what the numbers mean, `curves` draws, and `compare`
sets runs side by side.
"""
