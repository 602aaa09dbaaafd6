"""Files become rows, rows become `Text` or `Chat`, those become an `Example`, examples become a `Batch`."""
