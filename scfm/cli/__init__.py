"""The ``scfm`` command, one file each. Nothing heavy is imported before a command runs."""
