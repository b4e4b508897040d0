"""The verbs of the command line: options in, one call of the workflow, lines or JSON out."""
