"""What the steps tell each other: a layer, an image, a graph, an engine, a verdict. Standard library only."""
