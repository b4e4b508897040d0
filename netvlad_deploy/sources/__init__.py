"""Where items come from: folders, lists and files that hold many."""
