"""Commands: check the arguments, call the rooms that do the work, and print the results."""
