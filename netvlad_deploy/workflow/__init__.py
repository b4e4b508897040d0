"""The verbs of the command line as functions, a file for each: artifacts in, results out."""
