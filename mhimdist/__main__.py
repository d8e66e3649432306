"""`python -m mhimdist` is the command `mhimdist`."""

from mhimdist.commands.main import main

if __name__ == "__main__":
    main()
