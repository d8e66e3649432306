"""The parts of the check: each is a module with `check(notes, setting)`, run in a process of its own."""
