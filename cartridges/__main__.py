"""`python -m cartridges` is the command `cartridges`."""

from cartridges.cli import main

if __name__ == "__main__":
    main()
