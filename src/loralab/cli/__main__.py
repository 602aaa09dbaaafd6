"""``python -m loralab.cli``."""

from loralab.cli.main import main

main()
