"""`python -m teachonce` is the console script `teachonce`."""

from teachonce.cli import main

if __name__ == "__main__":
    main()
