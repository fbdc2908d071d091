"""`python -m fastslm`, as launchers of several processes start it."""

from fastslm.cli import main

if __name__ == "__main__":
    main()
