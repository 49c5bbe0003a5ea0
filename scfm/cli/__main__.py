"""python -m scfm.cli: the program, for torchrun."""

from scfm.cli.app import main

if __name__ == "__main__":
    main()
