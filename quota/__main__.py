"""`python -m quota`: the command line, where its script is not on the path."""

from quota.cli import main

if __name__ == "__main__":
    main()
