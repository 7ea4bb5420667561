"""`python -m gnnrec`, which is also how torchrun starts the command: `torchrun ... -m gnnrec train`."""

from gnnrec.cli import main

if __name__ == "__main__":
    main()
