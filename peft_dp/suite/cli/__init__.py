"""The command line: one file per verb, and `main`, which finds the verb and turns errors into exit codes."""
